from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import TRANSFORMER, IntWeight, IPQConfig, PQWeight, Progress, calibrate, compress, ipq
from qn_deploy.compression.distill import distance
from qn_deploy.compression.parametrizations import TableWeight
from qn_deploy.compression.student import attach_weight, student_of
from qn_deploy.configs import to_dict
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int4, Int8, Recipe, Rule, Table

RECIPE = Recipe((Rule(Int8(), name="6.*"), Rule(Table(9, 8), module="Conv2d"), Rule(Table(4, 8), module="Linear")))
QUICK = IPQConfig(steps=15, final_steps=15, lr=0.02)


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(32, 5),
    )
    with torch.no_grad():
        net.get_parameter("6.weight").mul_(20)  # logits as far apart as a trained model's
    return net


def batches(count: int = 4) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 2, 6, 6, generator=generator),) for _ in range(count)]


def run(program: Program, x: Tensor) -> Tensor:
    (output,) = unlifted(program.exported)(x)
    return output


def loss(program: Program, teacher: nn.Module) -> float:
    """Summed over the batches; the teacher's mode is not changed."""
    teacher = copy.deepcopy(teacher).eval()
    with torch.no_grad():
        return sum(float(distance(run(program, x), teacher(x))) for (x,) in batches())


def alone(model: nn.Module) -> Program:
    """Compressed without a step of fine-tuning."""
    return compress(capture(model, batches()[0]), RECIPE)


def same(one: Program, other: Program) -> bool:
    """Bit for bit, what is float and what is compressed."""
    first, second = student_of(one).state_dict(), student_of(other).state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_ipq_is_closer_to_the_teacher_than_compression_alone() -> None:
    net = a_net()
    before = copy.deepcopy(net.state_dict())
    tuned = ipq(net, RECIPE, batches(), QUICK)
    assert loss(tuned, net) < 0.5 * loss(alone(net), net)
    assert {name: type(weight) for name, weight in tuned.weights.items()} == {
        "0.weight": PQWeight,
        "5.0.weight": PQWeight,
        "6.weight": IntWeight,
    }
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()) and net.training


def test_the_result_is_what_will_be_stored() -> None:
    tuned = ipq(a_net(), RECIPE, batches(), QUICK)
    (x,) = batches()[0]
    assert torch.equal(run(tuned, x), student_of(tuned)(x)[0])
    assert all(torch.equal(tuned.exported.state_dict[name], weight.dequantize()) for name, weight in tuned.weights.items())


def test_the_run_is_told_in_the_provenance_and_ranges_are_taken() -> None:
    tuned = ipq(a_net(), RECIPE, batches(), QUICK)
    (entry,) = tuned.provenance
    assert list(entry.pop("sqnr_db")) == list(tuned.weights) and entry == {"stage": "ipq", "config": to_dict(QUICK)}
    assert tuned.ranges == calibrate(tuned, batches()).ranges != {}


def test_a_program_and_a_module_are_the_same_to_it() -> None:
    program = capture(a_net(), batches()[0])
    named = [{"input": x} for (x,) in batches()]
    assert same(ipq(program, RECIPE, named, QUICK), ipq(a_net(), RECIPE, batches(), QUICK)) and program.weights == {}


@pytest.mark.slow
def test_batches_may_be_larger_than_exported_files_take() -> None:
    tuned = ipq(a_net(), RECIPE, batches(), QUICK)
    large = [(torch.cat([x for (x,) in batches(8)]),)]  # 128
    torch.testing.assert_close(run(tuned, *large[0])[:16], run(tuned, *batches()[0]), rtol=1e-4, atol=1e-4)
    assert loss(ipq(capture(a_net(), batches()[0]), RECIPE, large, QUICK), a_net()) < 0.7 * loss(alone(a_net()), a_net())


def test_two_runs_are_equal() -> None:
    assert same(*(ipq(a_net(), RECIPE, batches(), QUICK) for _ in range(2)))


def test_without_a_step_it_is_compression_alone() -> None:
    plain, tuned = alone(a_net()), ipq(a_net(), RECIPE, batches(), IPQConfig(steps=0, final_steps=0))
    assert list(plain.weights) == list(tuned.weights)
    for name, weight in plain.weights.items():
        assert torch.equal(weight.dequantize(), tuned.weights[name].dequantize())


def stages(config: IPQConfig, net: nn.Module | None = None, recipe: Recipe = RECIPE) -> list[tuple[str, ...]]:
    """The names of the weights that each stage fine-tunes after, the int8 stage last."""
    seen: dict[int, tuple[str, ...]] = {}

    def note(at: Progress) -> None:
        if at.task == "fine-tuning":
            seen[at.stage] = at.names

    ipq(net or a_net(), recipe, batches(), config, progress=note)
    return [seen[stage] for stage in sorted(seen)]


def test_groups_follow_the_globs_in_order_and_the_rest_comes_last() -> None:
    everything = ("0.weight", "5.0.weight", "6.weight")
    found = stages(IPQConfig(groups=("6.*", "0.*"), steps=1, final_steps=1))
    assert found == [("6.weight",), ("0.weight",), ("5.0.weight",), everything]


def test_the_first_glob_that_matches_decides() -> None:
    found = stages(IPQConfig(groups=(("nothing", "0.*"), "*"), steps=1, final_steps=0))
    assert found == [("0.weight",), ("5.0.weight", "6.weight")]


class Named(nn.Module):
    """A chain of Linear layers by the names that a checkpoint of another library gives them."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            *path, leaf = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.add_module(leaf, nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            x = module(x) if isinstance(module, nn.Linear) else x
        return x


FAIRSEQ = ("decoder.embed_tokens", "decoder.layers.0.self_attn.q_proj", "decoder.layers.0.fc1", "decoder.layers.0.fc2", "output_projection")
BERT = (
    "embeddings.word_embeddings",
    "encoder.layer.0.attention.self.query",
    "encoder.layer.0.attention.output.dense",
    "encoder.layer.0.intermediate.dense",
    "encoder.layer.0.output.dense",
    "classifier",
)


@pytest.mark.parametrize(
    ("names", "order"), [(FAIRSEQ, [(2, 3), (0,), (1,), (4,)]), (BERT, [(3, 4), (0,), (1, 2), (5,)])], ids=["fairseq", "bert"]
)
@pytest.mark.parametrize("groups", [(), TRANSFORMER], ids=["default", "asked"])
def test_transformers_go_by_the_papers_order(names: tuple[str, ...], order: list[tuple[int, ...]], groups: tuple[str, ...]) -> None:
    seen: dict[int, list[str]] = {}

    def note(at: Progress) -> None:
        seen.setdefault(at.stage, []).extend(at.names)

    data = [(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),)]
    ipq(Named(*names), Recipe((Rule(Int8()),)), data, IPQConfig(groups=groups, steps=0, final_steps=0), progress=note)
    assert [seen[stage] for stage in sorted(seen)] == [[f"{names[i]}.weight" for i in group] for group in order]


def test_progress_tells_each_weight_and_each_step() -> None:
    seen: list[Progress] = []
    ipq(a_net(), RECIPE, batches(), IPQConfig(stages=1, steps=2, final_steps=1), progress=seen.append)
    everything = ("0.weight", "5.0.weight", "6.weight")
    assert [(at.stage, at.stages, at.task, at.names, round(at.share, 2)) for at in seen] == [
        (0, 2, "compressing", ("0.weight",), 0.33),
        (0, 2, "compressing", ("5.0.weight",), 0.67),
        (0, 2, "compressing", ("6.weight",), 1.0),
        (0, 2, "fine-tuning", everything, 0.5),
        (0, 2, "fine-tuning", everything, 1.0),
        (1, 2, "fine-tuning", everything, 1.0),
    ]
    assert all((at.loss is None) == (at.task == "compressing") for at in seen)


def test_centroids_are_float_until_the_int8_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[TableWeight] = []

    def watched(model: nn.Module, *args: Any, **options: Any) -> None:
        attach_weight(model, *args, **options)
        tables[:] = [module for module in model.modules() if isinstance(module, TableWeight)]

    monkeypatch.setattr("qn_deploy.compression.iterative.attach_weight", watched)
    seen: dict[int, bool] = {}
    ipq(a_net(), RECIPE, batches(), QUICK, progress=lambda at: seen.update({at.stage: all(table.int8_in_loop for table in tables)}))
    assert seen[0] is False and seen == {0: False, 1: False, 2: False, 3: True} and len(tables) == 2


class Killed(Exception):
    """What stops a run in these tests."""


RESIDUAL = Recipe(
    (Rule(Int4(), name="6.*"), Rule(Table(9, 8), module="Conv2d"), Rule(Table(4, 8, codebooks=2, residual=4), module="Linear"))
)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [RECIPE, RESIDUAL], ids=["tables and int8", "residual and int4"])
@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path: Path, killed_in: int, recipe: Recipe) -> None:
    stages: list[int] = []

    def kill(at: Progress) -> None:
        if at.stage == killed_in and at.share == 1:
            raise Killed

    config = IPQConfig(steps=5, final_steps=5, lr=0.02)
    whole = ipq(a_net(), recipe, batches(), config)
    with pytest.raises(Killed):
        ipq(a_net(), recipe, batches(), config, progress=kill, resume=tmp_path / "run")
    resumed = ipq(a_net(), recipe, batches(), config, progress=lambda at: stages.append(at.stage), resume=tmp_path / "run")
    assert min(stages) == killed_in
    assert same(resumed, whole) and resumed.ranges == whole.ranges
    assert whole.left == resumed.left and whole.weights.keys() == resumed.weights.keys()
    for name, weight in whole.weights.items():
        assert torch.equal(weight.dequantize(), resumed.weights[name].dequantize())


def test_a_finished_run_is_given_back(tmp_path: Path) -> None:
    recipe = Recipe((*RECIPE.rules[:-1], Rule(Table(5, 8), module="Linear")))  # 5 does not divide 64
    first = ipq(a_net(), recipe, batches(), QUICK, resume=tmp_path / "run")
    again = ipq(a_net(), recipe, batches(), QUICK, resume=tmp_path / "run", progress=lambda at: pytest.fail("it ran again"))
    assert same(first, again) and list(again.left) == ["5.0.weight"] and again.left == first.left


@pytest.mark.parametrize("what", ["config", "recipe", "model", "batches"])
def test_the_state_of_another_run_is_refused(tmp_path: Path, what: str) -> None:
    ipq(a_net(), RECIPE, batches(), IPQConfig(steps=1, final_steps=1), resume=tmp_path / "run")
    other = a_net()
    if what == "model":
        with torch.no_grad():
            other.get_parameter("6.bias").add_(1)
    recipe = RESIDUAL if what == "recipe" else RECIPE
    data = batches()[::-1] if what == "batches" else batches()
    with pytest.raises(InputError, match=r"run is the state of another run: .* resume with the same ones, .* or delete this one"):
        ipq(other, recipe, data, IPQConfig(steps=2 if what == "config" else 1, final_steps=1), resume=tmp_path / "run")


def test_a_scale_that_is_pushed_below_zero_stays_positive() -> None:
    teacher = a_net()
    with torch.no_grad():
        teacher.get_parameter("6.weight").neg_()
    recipe = Recipe((Rule(Table(4, 8), name="6.*"),))
    tuned = ipq(a_net(), recipe, batches(), IPQConfig(steps=5, final_steps=0, lr=2.0), teacher=teacher)
    assert (tuned.weights["6.weight"].scale > 0).all()


@pytest.mark.parametrize(
    ("count", "groups"),
    [
        (1, [("0.weight", "5.0.weight", "6.weight")]),
        (3, [("0.weight",), ("5.0.weight",), ("6.weight",)]),  # 288, 2048, 160 weights
        (9, [("0.weight",), ("5.0.weight",), ("6.weight",)]),
    ],
)
def test_stages_cut_the_model_by_bytes(count: int, groups: list[tuple[str, ...]]) -> None:
    assert stages(IPQConfig(stages=count, steps=1, final_steps=0)) == groups


def test_a_frozen_model_is_still_tuned() -> None:
    net = a_net().requires_grad_(False)
    tuned = ipq(net, RECIPE, batches(), QUICK)
    assert loss(tuned, net) < 0.5 * loss(alone(net), net)


@pytest.mark.slow
def test_another_teacher_is_followed_and_not_changed() -> None:
    teacher = a_net()
    with torch.no_grad():
        teacher.get_parameter("6.bias").add_(torch.tensor([30.0, 0.0, 0.0, 0.0, 0.0]))
    config = IPQConfig(steps=40, final_steps=40, lr=0.1)
    tuned = ipq(a_net(), RECIPE, batches(), config, teacher=teacher)
    assert (run(tuned, *batches()[0]).argmax(1) == 0).all() and teacher.training
    as_program = ipq(a_net(), RECIPE, batches(), config, teacher=capture(teacher, batches()[0]))
    assert loss(as_program, teacher) == pytest.approx(loss(tuned, teacher), rel=1e-3)


def test_a_loss_that_explodes_names_the_group() -> None:
    with pytest.raises(CompressionError, match=r"loss became (nan|inf) while fine-tuning after group 0 \(0\.weight\); .* below 1e\+30"):
        ipq(a_net(), RECIPE, batches(), IPQConfig(lr=1e30, steps=20))


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"the group 'encoder\.\*' is empty; .* 0\.weight, 5\.0\.weight, 6\.weight"):
        ipq(a_net(), RECIPE, batches(), IPQConfig(groups=("encoder.*",)))


@pytest.mark.parametrize(
    ("given", "says"),
    [([], "there are no batches"), ((b for b in batches(2)), "not a generator"), ([batches()[0][0]], r"a batch is a Tensor; .* \(x,\)")],
    ids=["empty", "generator", "tensor"],
)
def test_batches_of_another_form_are_refused(given: list[tuple[Tensor, ...]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ipq(a_net(), RECIPE, given, QUICK)
