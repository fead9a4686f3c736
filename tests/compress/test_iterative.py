from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compress import IPQ, IntWeight, PQWeight, compress, ipq
from qn_deploy.compress.apply import attach
from qn_deploy.compress.iterative import distance
from qn_deploy.compress.parametrizations import TableWeight
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.recipe import Int8, Recipe, Rule, Table

RECIPE = Recipe((Rule(Int8(), name="6.*"), Rule(Table(9, 8), module="Conv2d"), Rule(Table(4, 8), module="Linear")))
QUICK = IPQ(steps=15, final_steps=15, lr=0.02)


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


def loss(model: nn.Module, reference: nn.Module) -> float:
    with torch.no_grad():
        return sum(float(distance(model(*batch), reference(*batch))) for batch in batches())


def test_ipq_is_closer_to_the_teacher_than_compression_alone() -> None:
    net = a_net()
    before = copy.deepcopy(net.state_dict())
    alone, tuned = compress(net, RECIPE, batches()[0]), ipq(net, RECIPE, batches(), QUICK)
    assert loss(tuned.model, tuned.reference) < 0.5 * loss(alone.model, alone.reference)
    assert {name: type(weight) for name, weight in tuned.weights.items()} == {
        "0.weight": PQWeight,
        "5.0.weight": PQWeight,
        "6.weight": IntWeight,
    }
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()) and net.training


def test_the_result_is_what_will_be_stored() -> None:
    tuned = ipq(a_net(), RECIPE, batches(), QUICK)
    (x,) = batches()[0]
    assert torch.equal(tuned.baked()(x), tuned.model(x))


def test_two_runs_are_equal() -> None:
    first, second = (ipq(a_net(), RECIPE, batches(), QUICK).model.state_dict() for _ in range(2))
    assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_without_a_step_it_is_compression_alone() -> None:
    alone, tuned = compress(a_net(), RECIPE, batches()[0]), ipq(a_net(), RECIPE, batches(), IPQ(steps=0, final_steps=0))
    for name, weight in alone.weights.items():
        assert torch.equal(weight.dequantize(), tuned.weights[name].dequantize())


def test_groups_follow_the_globs_in_order_and_the_rest_comes_last() -> None:
    seen: list[tuple[int, tuple[str, ...]]] = []
    config = IPQ(groups=("6.*", "0.*"), steps=1, final_steps=1)
    ipq(a_net(), RECIPE, batches(), config, progress=lambda index, names, value: seen.append((index, names)))
    everything = ("0.weight", "5.0.weight", "6.weight")
    assert seen == [(0, ("6.weight",)), (1, ("0.weight",)), (2, ("5.0.weight",)), (3, everything)]


def test_the_first_glob_that_matches_decides() -> None:
    seen: list[tuple[str, ...]] = []
    config = IPQ(groups=("0.*", "*"), steps=0, final_steps=0)
    ipq(a_net(), RECIPE, batches(), config, progress=lambda index, names, value: seen.append(names))
    assert seen[:2] == [("0.weight",), ("5.0.weight", "6.weight")]


def test_centroids_are_float_until_the_int8_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[TableWeight] = []

    def watched(*args: Any, **options: Any) -> str | None:
        reason = attach(*args, **options)
        tables.extend(module for module in args[0].slots[0].module.modules() if isinstance(module, TableWeight))
        return reason

    monkeypatch.setattr("qn_deploy.compress.iterative.attach", watched)
    seen: list[set[bool]] = []
    ipq(a_net(), RECIPE, batches(), QUICK, progress=lambda *_: seen.append({table.int8_in_loop for table in tables}))
    assert seen == [{False}, {False}, {False}, {True}]


def test_a_scale_that_is_pushed_below_zero_stays_positive() -> None:
    teacher = a_net()
    with torch.no_grad():
        teacher.get_parameter("6.weight").neg_()
    recipe = Recipe((Rule(Table(4, 8), name="6.*"),))
    tuned = ipq(a_net(), recipe, batches(), IPQ(steps=5, final_steps=0, lr=2.0), teacher=teacher)
    assert (tuned.weights["6.weight"].scale > 0).all()


@pytest.mark.parametrize(
    ("stages", "groups"),
    [
        (1, [("0.weight", "5.0.weight", "6.weight")]),
        (3, [("0.weight",), ("5.0.weight",), ("6.weight",)]),  # 288, 2048, 160 weights
        (9, [("0.weight",), ("5.0.weight",), ("6.weight",)]),
    ],
)
def test_stages_cut_the_model_by_bytes(stages: int, groups: list[tuple[str, ...]]) -> None:
    seen: list[tuple[str, ...]] = []
    ipq(a_net(), RECIPE, batches(), IPQ(stages=stages, steps=1, final_steps=0), progress=lambda index, names, value: seen.append(names))
    assert seen[:-1] == groups


def test_a_frozen_model_is_still_tuned() -> None:
    net = a_net().requires_grad_(False)
    alone, tuned = compress(net, RECIPE, batches()[0]), ipq(net, RECIPE, batches(), QUICK)
    assert loss(tuned.model, tuned.reference) < 0.5 * loss(alone.model, alone.reference)


def test_another_teacher_is_followed_and_not_changed() -> None:
    teacher = a_net()
    with torch.no_grad():
        teacher.get_parameter("6.bias").add_(torch.tensor([30.0, 0.0, 0.0, 0.0, 0.0]))
    config = IPQ(steps=40, final_steps=40, lr=0.1)
    tuned = ipq(a_net(), RECIPE, batches(), config, teacher=teacher)
    assert (tuned.model(*batches()[0]).argmax(1) == 0).all() and teacher.training


def test_distance_is_kl_for_logits_and_relative_mean_squares_otherwise() -> None:
    ours, theirs = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])
    expected = 0.25 * torch.log(torch.tensor(0.5)) + 0.75 * torch.log(torch.tensor(1.5))
    torch.testing.assert_close(distance(ours, theirs), expected)
    torch.testing.assert_close(distance(2 * ours, 2 * theirs, temperature=2.0), 4 * expected)
    assert float(distance(torch.tensor([3.0]), torch.tensor([2.0]))) == 0.25
    assert float(distance((torch.tensor([3.0]), torch.tensor([3.0])), (torch.tensor([2.0]), torch.tensor([2.0])))) == 0.5


def test_a_loss_that_explodes_names_the_group() -> None:
    with pytest.raises(CompressionError, match=r"loss became (nan|inf) while fine-tuning after group 0 \(0\.weight\); .* below 1e\+30"):
        ipq(a_net(), RECIPE, batches(), IPQ(lr=1e30, steps=20))


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"the group 'encoder\.\*' is empty; .* 0\.weight, 5\.0\.weight, 6\.weight"):
        ipq(a_net(), RECIPE, batches(), IPQ(groups=("encoder.*",)))


@pytest.mark.parametrize(
    ("given", "says"),
    [([], "there are no batches"), ((b for b in batches(2)), "not a generator"), ([batches()[0][0]], r"a batch is a Tensor; .* \(x,\)")],
    ids=["empty", "generator", "tensor"],
)
def test_batches_of_another_form_are_refused(given: list[tuple[Tensor, ...]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ipq(a_net(), RECIPE, given, QUICK)
