from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import CompressConfig, IntWeight, PQWeight, calibrate, compress
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.graph.sites import weights
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Float, Int4, Int8, Recipe, Rule, Table

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe((Rule(Float(), name="last.*"), Rule(Table(9, 8), module="Conv2d", kernel=(3, 3)), Rule(Table(4, 16), module="Linear")))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.body = nn.Linear(24, 8)
        self.small = nn.Linear(8, 5)
        self.odd = nn.Linear(5, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        out: Tensor = self.last(self.odd(self.small(torch.relu(self.body(x)))))
        return out


class Language(nn.Module):
    """Embedding and output layer share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.out = nn.Linear(16, 64)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(self.embed(tokens))
        return out


class Attends(nn.Module):
    """Three layers that read one value, and one that reads what they gave."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.last = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.softmax(self.query(x) @ self.key(x).mT, -1) @ self.value(x)
        out: Tensor = self.last(mixed)
        return out


def a_net() -> Net:
    torch.manual_seed(0)
    return Net()


def a_program() -> Program:
    return capture(a_net(), (IMAGES,))


def run(program: Program, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = program.exported.module(check_guards=False)(x)[0]
    return found


def the_same(first: Program, second: Program) -> bool:
    pairs = [(first.weights[name], second.weights[name]) for name in first.weights]
    equal = all(torch.equal(a.int8(), b.int8()) and torch.equal(a.scale, b.scale) for a, b in pairs)
    return equal and list(first.weights) == list(second.weights) and first.ranges == second.ranges


def test_the_recipe_decides_and_what_is_left_says_why() -> None:
    result = compress(a_program(), RECIPE)
    kinds = {name: type(weight) for name, weight in result.weights.items()}
    assert kinds == {"conv.weight": PQWeight, "body.weight": PQWeight, "small.weight": IntWeight, "odd.weight": IntWeight}
    assert result.left == {
        "small.weight": "int8: a table takes 65 bytes, int8 60",
        "odd.weight": "int8: blocks of 4 weights do not divide a row of 5",
    }
    assert result.recipe is RECIPE


def test_the_users_model_and_program_are_not_changed() -> None:
    model = a_net().train()
    before = copy.deepcopy(model.state_dict())
    program = capture(model, (IMAGES,))
    expected = run(program, IMAGES)
    result = compress(program, RECIPE, [(IMAGES,)])
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(run(program, IMAGES), expected) and not program.weights and not program.ranges
    assert result.golden is program.golden and not torch.equal(run(result, IMAGES), expected)


def test_a_module_is_captured_with_the_first_batch() -> None:
    result = compress(a_net(), RECIPE, [(IMAGES,), (IMAGES[:2],)])
    assert torch.equal(result.golden.inputs[0], IMAGES)
    assert the_same(result, compress(a_program(), RECIPE, [(IMAGES,), (IMAGES[:2],)]))
    with pytest.raises(InputError, match="there are no batches, and a module is captured with the first"):
        compress(a_net(), RECIPE)


def test_batchnorm_ends_in_the_scale_and_leaves_the_codes_alone() -> None:
    model = a_net().eval()
    plain = compress(capture(model, (IMAGES,)), RECIPE).weights["conv.weight"]
    nn.init.uniform_(model.norm.weight, 0.5, 2.0)
    folded = compress(capture(model, (IMAGES,)), RECIPE).weights["conv.weight"]
    factor = model.norm.weight.detach()
    assert torch.equal(plain.int8(), folded.int8())
    torch.testing.assert_close(folded.scale, plain.scale * factor)


def test_the_program_holds_the_dequantized_values() -> None:
    program = a_program()
    result = compress(program, RECIPE, [(IMAGES,)])
    for name, weight in result.weights.items():
        assert torch.equal(result.exported.state_dict[name], weight.dequantize())
    biases = {weight.bias[1].name for weight in weights(program.exported) if weight.bias is not None and weight.name in result.weights}
    assert biases
    for name in program.exported.state_dict.keys() - result.weights.keys():
        same = result.exported.state_dict[name] is program.exported.state_dict[name]
        assert same != (name in biases)  # a bias makes up for the mean of what its layer loses


@pytest.mark.parametrize("method", [Table(4, 4), Int4()])
def test_each_layer_gives_in_the_mean_what_the_float_models_gives(method: Table | Int4) -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 4, 6, 6) + 1
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 6))
    program = capture(model, (images[:2],))
    small = compress(program, Recipe((Rule(method),)), [(batch,) for batch in images.split(16)])
    exported = {"float": program.exported, "small": small.exported}
    found = {name: torch.cat([unlifted(each)(batch)[0] for batch in images.split(16)]).detach() for name, each in exported.items()}
    off, mean = (found["small"] - found["float"]), (found["small"] - found["float"]).mean(0)
    assert bool((mean.abs() < 0.1 * off.std(0)).all())
    plain = compress(program, Recipe((Rule(method),)))
    with torch.no_grad():
        without = torch.cat([unlifted(plain.exported)(batch)[0] for batch in images.split(16)])
    assert float((without - found["float"]).mean(0).abs().mean()) > 5 * float(mean.abs().mean())


@pytest.mark.parametrize("batches", [None, [(IMAGES,)]])
def test_same_seed_same_weights(batches: list[tuple[Tensor, ...]] | None) -> None:
    config = CompressConfig(seed=3)
    first, second, other = (compress(a_program(), RECIPE, batches, each) for each in (config, config, CompressConfig(seed=4)))
    assert the_same(first, second) and not the_same(first, other)


def test_spooled_values_and_more_threads_give_the_same_bytes() -> None:
    batches = [(IMAGES,), (IMAGES[1:] * 2,)]
    usual = compress(a_program(), RECIPE, batches)
    assert the_same(usual, compress(a_program(), RECIPE, batches, CompressConfig(memory=0)))
    torch.set_num_threads(2)
    try:
        assert the_same(usual, compress(a_program(), RECIPE, batches))
    finally:
        torch.set_num_threads(1)


def test_a_tied_weight_has_one_table() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(64, (4, 9))
    for batches in (None, [(tokens,)]):
        result = compress(capture(Language(), (tokens,)), Recipe((Rule(Table(4, 16)),)), batches)
        [(name, weight)] = result.weights.items()
        assert name in ("embed.weight", "out.weight") and result.left == {}
        assert weight.scale.shape == (1,)  # four bytes a row would cost as much as the codes


def test_a_tied_weight_is_calibrated_for_all_readers() -> None:
    class Twice(nn.Module):
        """One layer for two halves of the features' range: what the second reader reads, the first never sees."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.arange(32) < 16, torch.arange(32) >= 16
            return torch.cat([self.layer(x * left), self.layer(x * right)], -1)

    torch.manual_seed(0)
    x = torch.randn(256, 4) @ torch.randn(4, 32)
    program = capture(Twice(), (x,))
    with torch.no_grad():
        expected = run(program, x)
    lost = [(run(compress(program, Recipe((Rule(Table(4, 8)),)), given), x) - expected).square().mean(0) for given in (None, [(x,)])]
    for half in (slice(32), slice(32, 64)):
        assert float(lost[1][half].mean()) < 0.5 * float(lost[0][half].mean())


def test_a_weight_that_another_operator_reads_too_stays_float() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) + self.layer.weight * x.sum()
            return out

    result = compress(capture(Squared(), (torch.ones(8, 8),), dynamic_shapes=()), Recipe((Rule(Int8()),)))
    assert result.weights == {}
    assert result.left == {"layer.weight": "float: mul reads it too, which knows no compressed weights"}


def test_large_weights_that_stay_float_are_told() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer, self.other = nn.Parameter(torch.randn(16, 32)), nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.other(self.layer(x + self.table))
            return out

    recipe = Recipe((Rule(Float(), name="layer.*"),))
    result = compress(capture(Positions(), (torch.randn(2, 16, 32),)), recipe)
    assert result.left == {
        "table": "float: add reads it, which knows no compressed weights",
        "layer.weight": "float: as the recipe says",
        "other.weight": "float: no rule of the recipe matches it",
    }


def test_what_is_compressed_is_not_compressed_again() -> None:
    result = compress(a_program(), RECIPE)
    with pytest.raises(CompressionError, match=r"compressed already, conv\.weight for one"):
        compress(result, RECIPE)


@pytest.mark.slow
@pytest.mark.parametrize("batches", [None, [(IMAGES,)]])
@pytest.mark.parametrize("method", [Table(4, 16), Int8()])
def test_nan_names_the_layer(method: Table | Int8, batches: list[tuple[Tensor, ...]] | None) -> None:
    model = a_net()
    with torch.no_grad():
        model.body.weight[0, 0] = float("nan")
    program = replace(a_program(), exported=capture(model, (IMAGES,)).exported)
    with pytest.raises(CompressionError, match=r"body\.weight: the weight holds NaN or infinity"):
        compress(program, Recipe((Rule(method, module="Linear"),)), batches)


def test_calibration_inputs_halve_what_is_lost() -> None:
    model = a_net().eval()
    inputs = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + torch.linspace(-2, 2, 8)
    seen, unseen = inputs[:64], inputs[64:]
    program = capture(model, (IMAGES,))
    plain = compress(program, RECIPE)
    found = compress(program, RECIPE, [(batch,) for batch in seen.split(32)])

    def lost(result: Program) -> float:
        return float((run(result, unseen) - run(program, unseen)).square().mean())

    assert {name: type(weight) for name, weight in found.weights.items()} == {name: type(weight) for name, weight in plain.weights.items()}
    assert sum(weight.nbytes for weight in found.weights.values()) <= sum(weight.nbytes for weight in plain.weights.values())
    assert found.left == plain.left
    assert lost(found) < 0.5 * lost(plain)


def test_layers_that_read_one_value_make_up_for_nothing_but_what_was_before() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 16, 32)
    program = capture(Attends(), (x,))
    order: list[str] = []
    recipe = Recipe((Rule(Table(4, 16)),))
    together = compress(program, recipe, [(x,)], progress=lambda at: order.extend(at.names))
    assert order == ["query.weight", "key.weight", "value.weight", "last.weight"] and together.left == {}
    alone = compress(program, Recipe((Rule(Table(4, 16), name="value.*"),)), [(x,)])
    assert torch.equal(alone.weights["value.weight"].int8(), together.weights["value.weight"].int8())


def test_weights_without_moments_are_told() -> None:
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.last = nn.LSTM(32, 32, batch_first=True), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.lstm(x)[0])
            return out

    result = compress(capture(Recurrent(), (x,)), Recipe((Rule(Table(4, 4)),)), [(x,)])
    assert list(result.weights) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "last.weight"]
    reason = "compressed without error feedback: lstm tells nothing of what meets it"
    assert result.left == {"lstm.weight_ih_l0": reason, "lstm.weight_hh_l0": reason}


def test_the_ranges_are_those_of_the_compressed_program() -> None:
    batches = [(IMAGES,), (IMAGES[:3] * 3,)]
    result = compress(a_program(), RECIPE, batches)
    assert result.ranges == calibrate(result, batches).ranges
    assert result.ranges.keys() >= {"x", "conv2d", "relu", "mean"}
    assert compress(a_program(), RECIPE).ranges == {}


def test_progress_names_each_weight() -> None:
    seen: list[tuple[tuple[str, ...], float]] = []
    compress(a_program(), RECIPE, [(IMAGES,)], progress=lambda at: seen.append((at.names, at.share)))
    assert seen == [
        ((f"{name}.weight",), share) for name, share in zip(("conv", "body", "small", "odd"), (0.25, 0.5, 0.75, 1.0), strict=True)
    ]


def test_what_was_done_is_in_the_provenance() -> None:
    result = compress(a_program(), RECIPE, config=CompressConfig(seed=7, rounds=2))
    [stage] = result.provenance
    assert stage["stage"] == "compress" and CompressConfig(**json.loads(json.dumps(stage["config"]))) == CompressConfig(seed=7, rounds=2)


@pytest.mark.parametrize("method", [Table(4, 4), Int8()])
def test_a_weight_without_values_is_left(method: Table | Int8) -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(8, 0), nn.Linear(0, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(self.into(x))
            return result

    small = compress(capture(Narrow(), (torch.randn(2, 8),)), Recipe((Rule(method),)))
    assert small.weights == {}
    assert small.left == {"into.weight": "float: its shape [0, 8] holds no values", "out.weight": "float: its shape [4, 0] holds no values"}


@pytest.mark.parametrize("rate", [-0.1, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="expected 0 or more"):
        CompressConfig(rate=rate)


def test_a_rate_reaches_the_tables() -> None:
    batches = [(IMAGES,), (IMAGES[1:] * 2,)]
    plain, small = (compress(a_program(), RECIPE, batches, CompressConfig(rate=rate)) for rate in (0.0, 1.0))
    tables = [(weight, small.weights[name]) for name, weight in plain.weights.items() if isinstance(weight, PQWeight)]
    assert tables and any(int(after.int8().abs().max()) < int(before.int8().abs().max()) for before, after in tables)  # a coarser grid
