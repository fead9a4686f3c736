from __future__ import annotations

from dataclasses import replace
from math import inf, log10
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression.calibrate import calibrate
from qn_deploy.compression.published import Blocks, Rest, rounded, with_tables
from qn_deploy.errors import CompressionError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.program.store import load, save
from qn_deploy.weights.compressed import IntWeight, PQWeight


def blocks(shape: tuple[int, ...], d: int, size: int, seed: int = 0) -> Blocks:
    draw = torch.Generator().manual_seed(seed)
    columns = torch.Size(shape[1:]).numel() // d
    codes = torch.randint(0, size, (shape[0], columns), generator=draw)
    return Blocks(codes, torch.randn(size, d, generator=draw).half().float(), shape)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(image)).relu().mean((2, 3)))


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TABLES = {"conv.weight": blocks((8, 3, 3, 3), 9, 16), "head.weight": blocks((4, 8), 4, 300)}


def net(gain: Tensor | None = None) -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.conv.weight.copy_(TABLES["conv.weight"].decoded())
        model.head.weight.copy_(TABLES["head.weight"].decoded())
        model.norm.weight.copy_(torch.linspace(0.5, 2, 8) if gain is None else gain)
        model.norm.bias.normal_()
        model.norm.running_mean.normal_()  # type: ignore[union-attr]
    return model


def table(program: Program, name: str) -> PQWeight:
    weight = program.weights[name]
    assert isinstance(weight, PQWeight)
    return weight


def same_but_for_rounding(program: Program, model: nn.Module, least: float = 30.0) -> None:
    """The program computes what the model does, but for what int8 centroids lose."""
    with torch.no_grad():
        ours, theirs = unlifted(program.exported)(IMAGES)[0], model(IMAGES)
    assert 10 * log10(float(theirs.square().sum() / (ours - theirs).square().sum())) > least


def test_codes_stay_and_the_factor_of_a_norm_ends_in_the_scales() -> None:
    model = net()
    program = with_tables(capture(model, (IMAGES,)), TABLES)
    conv, head = table(program, "conv.weight"), table(program, "head.weight")
    assert torch.equal(conv.codes.long(), TABLES["conv.weight"].codes) and torch.equal(head.codes.long(), TABLES["head.weight"].codes)
    assert head.codes.dtype == torch.uint16 and head.scale.shape == (1,) and conv.scale.shape == (8,)
    torch.testing.assert_close(conv.scale / conv.scale[0], model.norm.weight.detach() / model.norm.weight[0].item(), rtol=1e-5, atol=0)
    same_but_for_rounding(program, model)
    assert program.left == {} and "mul.Tensor" not in str(program.exported.graph)


def test_signs_of_a_norm_are_multiplied_behind_the_layer() -> None:
    model = net(torch.tensor([1.0, -1.0, 0.5, -0.25, 0.0, -1e-9, 2.0, 3.0]))  # one channel is dead, and one next to it
    program = with_tables(capture(model, (IMAGES,)), TABLES)
    conv = table(program, "conv.weight")
    assert torch.equal(conv.codes.long(), TABLES["conv.weight"].codes) and bool((conv.scale > 0).all())
    assert conv.scale[[4, 5]].tolist() == pytest.approx([3e-6 * float(conv.scale[0])] * 2, rel=1e-4)
    same_but_for_rounding(program, model)
    assert str(program.exported.graph).count("mul.Tensor") == 1
    assert any("channels behind 1 tables are multiplied by -1" in note for note in program.notes)
    ranges = calibrate(program, [(IMAGES,)]).ranges
    assert {"mul", "relu"} <= set(ranges)


def test_the_batch_stays_dynamic_where_signs_are_multiplied() -> None:
    model = net(torch.full((8,), -1.0))
    program = with_tables(capture(model, (IMAGES[:1],)), TABLES)
    assert unlifted(program.exported)(torch.cat([IMAGES] * 3))[0].shape == (6, 4)
    assert torch.equal(program.golden.inputs[0], IMAGES[:1])


def test_centroids_go_to_the_grid_that_loses_least_over_the_blocks() -> None:
    """One centroid that a single block reads lies far out: the grid need not reach it."""
    centroids = torch.linspace(-1, 1, 64).reshape(16, 4)
    centroids[0] = 1.7
    many = Blocks(torch.randint(1, 16, (4096, 8), generator=torch.Generator().manual_seed(0)), centroids, (4096, 32))
    many.codes[0, 0] = 0
    weight, db = rounded(many, torch.ones(4096))
    assert float(weight.scale[0]) < 1.65 / 127
    lost = (weight.dequantize() - many.decoded()).double().square().sum()
    assert db == pytest.approx(10 * log10(float(many.decoded().double().square().sum() / lost)), abs=0.01)
    whole = torch.round(many.decoded() / (1.7 / 127)) * (1.7 / 127)
    assert float(lost) < float((whole - many.decoded()).double().square().sum())


def test_the_sqnr_counts_the_factors_of_rows() -> None:
    one, factor = blocks((32, 16), 4, 16), torch.linspace(0.1, 3, 32)
    weight, db = rounded(one, factor)
    true = one.decoded() * factor[:, None]
    assert db == pytest.approx(
        10 * log10(float(true.double().square().sum() / (weight.dequantize() - true).double().square().sum())), abs=0.01
    )


def test_what_the_rounding_costs_is_told() -> None:
    program = with_tables(capture(net(), (IMAGES,)), TABLES)
    [entry] = program.provenance
    assert entry["stage"] == "import" and set(entry["rounding_db"]) == set(TABLES)
    worst = min(entry["rounding_db"].values())
    assert any("2 tables with the codes of the checkpoint" in note and f"{worst:.1f} dB" in note for note in program.notes)


@pytest.mark.parametrize("rest", ["int8", "float"])
def test_the_rest_becomes_what_is_asked_for(rest: Rest) -> None:
    program = with_tables(capture(net(), (IMAGES,)), {"conv.weight": TABLES["conv.weight"]}, rest)
    if rest == "int8":
        assert isinstance(program.weights["head.weight"], IntWeight) and program.left == {}
    else:
        assert "head.weight" not in program.weights and program.left == {"head.weight": "float: as the recipe says"}


class Odd(nn.Module):
    """Weights that are not read as they were published."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.squared, self.sum, self.table = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False), nn.Embedding(8, 4)
        self.table.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        looked = nn.functional.embedding(x.abs().long() % 8, self.table.weight * self.table.factor)
        return nn.functional.linear(x, self.squared.weight.square()) + x[:, :4] * self.sum.weight.sum() + looked.sum(1)


def odd(factor: Tensor) -> tuple[Program, dict[str, Blocks]]:
    torch.manual_seed(0)
    model = Odd(factor).eval()
    published = {f"{name}.weight": blocks(shape, 4, 8) for name, shape in {"squared": (4, 8), "sum": (4, 8), "table": (8, 4)}.items()}
    with torch.no_grad():
        for name, each in published.items():
            model.get_parameter(name).copy_(each.decoded())
    published["table.weight"].centroids[0] = 0
    with torch.no_grad():
        model.table.weight.copy_(published["table.weight"].decoded())
    return with_tables(capture(model, (torch.randn(2, 8),)), published), published


def test_a_table_that_the_graph_does_not_read_as_it_was_is_told() -> None:
    program, _ = odd(torch.linspace(1, 2, 8)[:, None])
    assert all(isinstance(weight, IntWeight) for weight in program.weights.values())
    assert program.left["squared.weight"].startswith("int8: the graph computes with other values than those of its table")
    assert program.left["table.weight"].startswith("int8: the graph computes with other values")  # lookups have one scale for all rows
    assert (
        program.left["sum.weight"]
        == "its table is not kept: the graph reads no weight of this name, but computes another one of it or leaves it out"
    )


def test_one_factor_for_all_rows_needs_one_scale() -> None:
    program, published = odd(torch.tensor(2.0))
    weight = table(program, "table.weight")
    assert weight.scale.shape == (1,) and "table.weight" not in program.left
    assert torch.equal(weight.codes.long(), published["table.weight"].codes)
    torch.testing.assert_close(weight.dequantize(), 2 * published["table.weight"].decoded(), rtol=0, atol=0.02)


def test_centroids_of_whole_steps_and_of_zeros_lose_nothing(tmp_path: Path) -> None:
    whole = Blocks(TABLES["conv.weight"].codes, torch.randint(-127, 128, (16, 9)).float(), (8, 3, 3, 3))
    whole.centroids[int(whole.codes[0, 0]), 0] = 127
    weight, db = rounded(whole, torch.ones(8))
    assert db == inf and torch.equal(weight.dequantize(), whole.decoded())
    model = net()
    with torch.no_grad():
        model.conv.weight.copy_(whole.decoded())
        model.head.weight.zero_()
    zeros = replace(TABLES["head.weight"], centroids=torch.full((300, 4), 1e-40))
    program = with_tables(capture(model, (IMAGES,)), {"conv.weight": whole, "head.weight": replace(zeros, centroids=torch.zeros(300, 4))})
    assert any(
        "2 tables with the codes of the checkpoint; rounding their centroids to int8 loses nothing" in note for note in program.notes
    )
    save(program, tmp_path / "model.pt")
    assert load(tmp_path / "model.pt").provenance[-1]["rounding_db"] == {}
    assert not rounded(zeros, torch.ones(4))[0].dequantize().any()


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = net()
    model.norm.running_var[3] = torch.nan  # type: ignore[index]
    with pytest.raises(CompressionError, match=r"conv.weight: the weight holds NaN or infinity"):
        with_tables(capture(model, (IMAGES,)), TABLES)


class Shared(nn.Module):
    """One layer, and a norm for each place where it is used, as detectors have for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, image: Tensor) -> Tensor:
        return self.one(self.conv(image)) + self.two(self.conv(image * 2))


@pytest.mark.parametrize("rest", ["int8", "float"])
def test_a_layer_with_two_norms_keeps_its_codes_with_both(rest: Rest) -> None:
    torch.manual_seed(0)
    model = Shared().eval()
    with torch.no_grad():
        model.conv.weight.copy_(TABLES["conv.weight"].decoded())
        for norm in (model.one, model.two):
            norm.weight.normal_()
    program = with_tables(capture(model, (IMAGES,)), {"conv.weight": TABLES["conv.weight"]}, rest)
    assert set(program.weights) == {"conv.weight", "conv.weight_1"} and program.left == {}
    assert all(torch.equal(table(program, name).codes.long(), TABLES["conv.weight"].codes) for name in program.weights)
    same_but_for_rounding(program, model)
