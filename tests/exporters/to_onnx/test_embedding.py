from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx
import pytest
import torch
from torch import nn

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import IntWeight, PQWeight
from tests.processor import adds_in_16_bits

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Write = Callable[[str, str, Activations], Written]
Optimized = Callable[[bytes], "Counter[str]"]
TOKENS = torch.tensor([[0, 19, 3], [7, 7, 0]])


def initializers(data: bytes) -> dict[str, tuple[int, ...]]:
    return {entry.name: tuple(entry.dims) for entry in onnx.load_model_from_string(data).graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "books", "per_row"), [(4, 1, False), (4, 2, True), (17, 2, False), (300, 1, True), (300, 2, False)])
def test_rows_are_looked_up_exactly(make_program: MakeProgram, random_table: RandomTable, size: int, books: int, per_row: bool) -> None:
    table = random_table((20, 8), block=4, size=size, books=books, per_row=per_row)
    written = write_file(
        EXPORTER, make_program(nn.Sequential(nn.Embedding(20, 8)), (TOKENS,), {"0.weight": table}, ()), Activations.DYNAMIC
    )
    for optimized in (False, True):
        assert torch.equal(EXPORTER.run(written.data, ((TOKENS,),), optimized)[0][0], table.dequantize()[TOKENS])


def test_an_int8_embedding_stays_int8(make_program: MakeProgram) -> None:
    module = nn.Sequential(nn.Embedding(20, 64))
    weight = IntWeight.from_float(module.get_parameter("0.weight"), per_channel=False)
    written = write_file(EXPORTER, make_program(module, (TOKENS,), {"0.weight": weight}, ()), Activations.DYNAMIC)
    assert torch.equal(EXPORTER.run(written.data, ((TOKENS,),))[0][0], weight.dequantize()[TOKENS])
    assert len(written.data) < weight.nbytes + 1000


def test_the_table_stays_a_table_in_memory(write: Write, optimized: Optimized) -> None:
    """Nothing of the size of the weight is left after onnxruntime folded its constants."""
    found = optimized(write("words", "onnx", Activations.DYNAMIC).data)
    assert found["Gather"] == 3  # rows of bytes, the two codes of each, centroids


def test_batch_and_length_are_dynamic(programs: Programs, write: Write) -> None:
    written = write("words", "onnx", Activations.DYNAMIC)
    for shape in ((1, 2), (5, 31)):
        tokens = torch.randint(100, shape, generator=torch.Generator().manual_seed(0))
        (found,) = EXPORTER.run(written.data, ((tokens,),))[0]
        torch.testing.assert_close(found, written.lowered.simulate((tokens,))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activations", [Activations.DYNAMIC, Activations.NONE])
def test_a_tied_weight_is_stored_once(programs: Programs, write: Write, activations: Activations) -> None:
    program, written = programs("tied"), write("tied", "onnx", activations)
    stored = initializers(written.data)
    table = program.weights["embed.weight"]
    assert isinstance(table, PQWeight)
    assert list(stored.values()).count((64, 2)) == 1  # four codes in two bytes a row
    assert stored["embed.weight/codes"] == (64, 2)
    x = program.golden.inputs
    found = EXPORTER.run(written.data, (x,), optimized=False)[0][0]
    if activations is Activations.NONE or not adds_in_16_bits():  # where the optimizer is off, nothing keeps sums from saturating
        torch.testing.assert_close(found, written.lowered.simulate(x)[0], rtol=1e-4, atol=1e-5)
    shipped, twin = (EXPORTER.run(data, (x,))[0][0] for data in (written.data, EXPORTER.dense(written.data)))
    assert torch.equal(shipped, twin)


def test_an_int8_weight_tied_with_the_embedding_runs(make_program: MakeProgram) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 16)
            self.out = nn.Linear(16, 20)
            self.out.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.out(self.embed(tokens))
            return scores

    model = Model()
    weight = IntWeight.from_float(model.embed.weight, per_channel=False)
    written = write_file(EXPORTER, make_program(model, (TOKENS,), {"embed.weight": weight, "out.weight": weight}, ()), Activations.DYNAMIC)
    found = EXPORTER.run(written.data, ((TOKENS,),))[0][0]
    torch.testing.assert_close(found, written.lowered.simulate((TOKENS,))[0], rtol=1e-4, atol=1e-5)
    assert list(initializers(written.data).values()).count((20, 16)) == 1
