"""Linear layers and 1x1 convolutions that keep their tables: to the bit what XNNPACK computes with dense weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from qn_deploy.exporters.to_executorch import EXPORTER
from qn_deploy.exporters.to_executorch import tile_blob as tiles
from qn_deploy.exporters.to_executorch.options import ExecutorchOptions
from qn_deploy.exporters.to_executorch.pte import LAYER_BACKEND, backends, named_data
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.rules import XNNPACK
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Twins = Callable[[Written, Batch], Batch]
COMPRESSED, AUTO = (ExecutorchOptions(memory=memory) for memory in ("compressed", "auto"))


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept(written: Written) -> int:
    """How many tables stay tables."""
    return sum(tiles.is_blob(constant) for constant in named_data(written.data).values())


class Attention(nn.Module):
    """Layers that read one input, which an addition reads as well; a clamp behind one of them; one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(64, 64), nn.Linear(64, 64, bias=False), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(torch.relu(self.q(x)) + self.k(x) + F.hardtanh(self.v(x), -0.25, 0.5))


def attention(make_program: MakeProgram, random_table: RandomTable, x: Tensor, calibration: object = None) -> Program:
    forms = {"q": (2, 16, 4), "k": (4, 16, 1), "v": (2, 200, 1), "out": (8, 3, 2)}
    weights = {f"{name}.weight": random_table((64, 64), d, size, books) for name, (d, size, books) in forms.items()}
    return make_program(Attention(), (x,), weights, calibration)


@pytest.mark.slow
def test_static_layers_are_exact(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    x = normal(2, 9, 64)
    program = attention(make_program, random_table, x)
    plain, written = (write_file(EXPORTER, program, Activations.STATIC, options) for options in (ExecutorchOptions(), COMPRESSED))
    assert kept(written) == 4 and any("4 layers keep their tables in memory" in note for note in written.notes)
    (found,), (expected,) = twins(written, (x,)), IntegerReference(written.lowered.exported, XNNPACK)((x,))
    assert torch.equal(found, expected)
    assert torch.equal(found, EXPORTER.run(plain.data, ((x,),))[0][0])


@pytest.mark.slow
def test_dynamic_layers_are_exact(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    x = normal(3, 64) * torch.tensor([[1e-4], [1.0], [1e4]])
    x[1] = (x[1] * 8).round() / 8  # zero points and values that are ties
    x[1, :2] = torch.tensor([-1.0, 1.0]) * x[1].abs().max()
    program = attention(make_program, random_table, x, ())
    plain, written = (write_file(EXPORTER, program, Activations.DYNAMIC, options) for options in (ExecutorchOptions(), COMPRESSED))
    assert kept(written) == 4
    assert torch.equal(twins(written, (x,))[0], EXPORTER.run(plain.data, ((x,),))[0][0])


@pytest.mark.slow
def test_rows_of_every_range_are_quantized_as_xnnpack_does(make_program: MakeProgram, random_table: RandomTable) -> None:
    rows = 2048
    x, draw = normal(rows, 40), torch.Generator().manual_seed(2)
    ends = torch.randint(255, (rows,), generator=draw) + 0.5
    x[0::8] *= torch.logspace(-6, 6, rows // 8)[:, None]
    x[1::8] = x[1::8].abs()
    x[2::8] = -x[2::8].abs()
    for first, unit in ((3, 1 / 64), (4, 0.7 / 3)):  # zero points halfway between two steps, exactly or nearly
        x[first::8] = x[first::8].clamp(-0.1, 0.1)
        x[first::8, 0], x[first::8, 1] = -ends[first::8] * unit, (255 - ends[first::8]) * unit
    x[5::8] = (x[5::8] * 16).round() / 16
    x[5::8, 0], x[5::8, 1] = -x[5::8].abs().amax(1), x[5::8].abs().amax(1)
    x[6] = 0
    program = make_program(nn.Sequential(nn.Linear(40, 70)), (x,), {"0.weight": random_table((70, 40), 2)}, ())
    written = write_file(EXPORTER, program, Activations.DYNAMIC, COMPRESSED)
    (found,), (expected,) = EXPORTER.run(written.data, ((x,),))[0], EXPORTER.run(EXPORTER.dense(written.data), ((x,),))[0]
    assert kept(written) == 1
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.DYNAMIC])
def test_every_batch_and_length_runs(make_program: MakeProgram, random_table: RandomTable, activations: Activations) -> None:
    module = nn.Sequential(nn.Linear(32, 1100), nn.ReLU(), nn.Linear(1100, 24))  # more outputs than one job has
    weights = {"0.weight": random_table((1100, 32), 2), "2.weight": random_table((24, 1100), 4)}
    sizes = ({0: Dim("batch", min=1, max=8), 1: Dim("length", min=1, max=16)},)
    program = make_program(module, (normal(4, 8, 32),), weights, None, sizes)
    written = write_file(EXPORTER, program, activations, COMPRESSED)
    batches = tuple((normal(*shape, 32),) for shape in ((1, 1), (8, 16), (3, 7)))
    assert kept(written) == 2
    for found, expected in zip(EXPORTER.run(written.data, batches), EXPORTER.run(EXPORTER.dense(written.data), batches), strict=True):
        assert torch.equal(found[0], expected[0])


class Several(nn.Module):
    """A table that pays, one of too many centroids, one that two layers share, and one that the kernels do not take."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.twice, self.residual = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.large(torch.relu(self.small(x)))))))))


@pytest.mark.slow
def test_auto_keeps_what_pays_and_a_shared_table_is_expanded(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    sizes = {"small": 16, "large": 256, "twice": 16}
    weights = {f"{name}.weight": random_table((64, 64), 4, size, seed=index) for index, (name, size) in enumerate(sizes.items())}
    first = random_table((64, 64), 4, seed=9)
    weights["residual.weight"] = PQWeight(first.codes, first.centroids, first.scale, first.shape, residual=first)
    x = normal(5, 64)
    program = make_program(Several(), (x,), weights)
    for options, expected in ((ExecutorchOptions(), set()), (AUTO, {"small"}), (COMPRESSED, {"small", "large"})):
        written = write_file(EXPORTER, program, Activations.STATIC, options)
        found = [tiles.read(constant) for constant in named_data(written.data).values() if tiles.is_blob(constant)]
        names = {name for name in ("small", "large") for table in found if torch.equal(table.codes, weights[f"{name}.weight"].codes)}
        assert names == expected and len(found) == len(expected)
        assert (LAYER_BACKEND in backends(written.data)) == bool(expected)
        twins(written, (x,))


class Mobile(nn.Module):
    """1x1 convolutions around a depthwise one, two that read one value, one beside an addition; and others that are no products."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project, self.beside = nn.Conv2d(24, 72, 1), nn.Conv2d(72, 24, 1, bias=False), nn.Conv2d(24, 24, 1)
        self.depthwise = nn.Conv2d(72, 72, 3, padding=1, groups=72)
        self.strided, self.padded, self.grouped = nn.Conv2d(24, 24, 1, 2), nn.Conv2d(24, 24, 1, padding=1), nn.Conv2d(24, 24, 1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        y = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return self.grouped(torch.relu(self.padded(torch.relu(self.strided(torch.relu(x + y + self.beside(x)))))))


@pytest.mark.slow
def test_1x1_convolutions_are_exact(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    forms = {"expand": (4, 16, 2), "project": (2, 16, 3), "beside": (8, 200, 1), "strided": (2, 16, 1), "padded": (2, 16, 1)}
    shapes = {"expand": (72, 24, 1, 1), "project": (24, 72, 1, 1)}
    weights = {f"{name}.weight": random_table(shapes.get(name, (24, 24, 1, 1)), d, size, books) for name, (d, size, books) in forms.items()}
    weights["grouped.weight"] = random_table((24, 8, 1, 1), 2)
    sizes = ({0: Dim("batch", min=1, max=8)},)
    program = make_program(Mobile(), (normal(3, 24, 7, 5),), weights, None, sizes)
    written = write_file(EXPORTER, program, Activations.STATIC, COMPRESSED)
    assert kept(written) == 2 and any(
        "2 layers keep their tables in memory" in note for note in written.notes
    )  # `beside` is larger as a table
    twins(written, (normal(3, 24, 7, 5),))
    for batch in (1, 3, 8):
        x = normal(batch, 24, 7, 5, seed=batch)
        (found,), (expected,) = EXPORTER.run(written.data, ((x,),))[0], IntegerReference(written.lowered.exported, XNNPACK)((x,))
        assert torch.equal(found, expected)
    assert kept(write_file(EXPORTER, program, Activations.STATIC, AUTO)) == 0


@pytest.mark.slow
def test_a_convolution_along_a_line_is_expanded(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    x = normal(2, 32, 9)
    module = nn.Sequential(nn.Conv1d(32, 64, 1), nn.ReLU(), nn.Conv1d(64, 8, 3))
    program = make_program(module, (x,), {"0.weight": random_table((64, 32, 1), 2), "2.weight": random_table((8, 64, 3), 3)})
    written = write_file(EXPORTER, program, Activations.STATIC, COMPRESSED)
    (found,), (expected,) = twins(written, (x,)), IntegerReference(written.lowered.exported, XNNPACK)((x,))
    assert kept(written) == 0 and torch.equal(found, expected)


@pytest.mark.slow
def test_no_layer_is_said_to_be_kept_where_there_is_none(make_program: MakeProgram, random_table: RandomTable) -> None:
    program = make_program(nn.Sequential(nn.Linear(64, 64)), (normal(5, 64),), {"0.weight": random_table((64, 64), 8, 16)})
    written = write_file(EXPORTER, program, Activations.NONE, COMPRESSED)
    assert kept(written) == 0 and any("no layer keeps its table in memory" in note for note in written.notes)
