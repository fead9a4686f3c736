from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qn_deploy.compression.moments import Moments, inputs_of, measured
from qn_deploy.errors import InputError
from qn_deploy.recipe.parameters import Slot, compressible


def slots(model: nn.Module) -> dict[str, list[Slot]]:
    """Where each weight stands, by its first name."""
    places: dict[int, list[Slot]] = {}
    for slot in compressible(model):
        places.setdefault(id(slot.weight), []).append(slot)
    return {found[0].name: found for found in places.values()}


def measure(model: nn.Module, *batches: Tensor) -> list[tuple[list[str], Moments | None]]:
    """All stages of a model that is its own student."""
    places = slots(model)
    names = list(places)
    stages = measured(model, model, list(places.values()), [(batch,) for batch in batches])
    return [([names[index] for index in stage], moments) for stage, moments in stages]


def of_one(model: nn.Module, *batches: Tensor) -> Moments:
    [(_, moments)] = measure(model, *batches)
    assert moments is not None
    return moments


def gram(model: nn.Module, *batches: Tensor) -> Tensor:
    found = of_one(model, *batches).gram
    assert found is not None
    return found


def close(found: Tensor | None, expected: Tensor) -> None:
    """Up to the floor under the size of an input, a thousandth."""
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=3e-3)


def test_each_input_is_scaled_to_unit_mean_square() -> None:
    tokens = torch.tensor([[[3.0, 4.0], [3.0, 4.0]]])
    close(gram(nn.Linear(2, 5), tokens), 2 * torch.tensor([[[0.72, 0.96], [0.96, 1.28]]]))
    close(gram(nn.Linear(2, 5), tokens, 10 * tokens), 4 * torch.tensor([[[0.72, 0.96], [0.96, 1.28]]]))


def test_an_input_next_to_zero_is_not_blown_up() -> None:
    found = gram(nn.Linear(2, 5), torch.tensor([[1.0, 1.0], [1e-6, -1e-6], [0.0, 0.0]]))
    close(found, torch.ones(1, 2, 2))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([nn.Conv1d, nn.Conv2d]),
    st.sampled_from([(4, 4, 1), (4, 6, 2), (6, 6, 6)]),
    st.sampled_from([(1, 0, 1, "zeros"), (3, 1, 1, "zeros"), (3, "same", 2, "zeros"), (2, 1, 2, "reflect"), (5, 2, 1, "circular")]),
    st.integers(1, 2),
)
def test_a_convolution_is_its_weight_times_these_inputs(
    kind: type[nn.Conv1d] | type[nn.Conv2d], channels: tuple[int, int, int], geometry: tuple[int, int, int, str], stride: int
) -> None:
    kernel, padding, dilation, mode = geometry
    inside, out, groups = channels
    if padding == "same":
        stride = 1
    torch.manual_seed(0)
    module = kind(inside, out, kernel, stride, padding, dilation, groups, bias=False, padding_mode=mode)
    x = torch.randn(2, inside, *[7] * (1 if kind is nn.Conv1d else 2))
    expected = module(x).flatten(2)  # [N, out, positions]
    rows = module.weight.reshape(groups, out // groups, -1)
    found = inputs_of(module, x) @ rows.mT  # [groups, N * positions, out / groups]
    torch.testing.assert_close(found.unflatten(1, (2, -1)).permute(1, 0, 3, 2).flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_an_embedding_counts_its_lookups() -> None:
    found = of_one(nn.Embedding(4, 2), torch.tensor([[0, 2, 2]]), torch.tensor([[2, 3, 3]]))
    assert found.lookups is not None and found.lookups.tolist() == [1, 0, 3, 2] and found.gram is None


class Attention(nn.Module):
    """Called in another order than it is written down; `unused` never."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.key, self.query = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.softmax(self.query(x) @ self.key(x).mT, -1) @ x
        out: Tensor = self.out(mixed)
        return out


def test_stages_are_in_the_order_of_the_calls_and_share_an_input() -> None:
    stages = measure(Attention(), torch.randn(2, 3, 4))
    assert [names for names, _ in stages] == [["query.weight", "key.weight"], ["out.weight"], ["unused.weight"]]
    assert [moments is None for _, moments in stages] == [False, False, True]


def test_convolutions_that_read_one_input_are_stages_of_their_own() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.narrow(x) + self.wide(x)
            return out

    stages = measure(Branches(), torch.randn(2, 4, 6))
    assert [(names, moments and moments.gram is not None and moments.gram.shape[1]) for names, moments in stages] == [
        (["narrow.weight"], 4),
        (["wide.weight"], 12),
    ]


def test_a_weight_with_two_readers_has_the_moments_of_both() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    nn.init.eye_(first.weight)
    second.weight = first.weight
    x = torch.tensor([[3.0, 4.0]])
    model = nn.Sequential(first, nn.ReLU(), second, second)  # three calls, each with x
    close(gram(model, x), 3 * torch.tensor([[[0.72, 0.96], [0.96, 1.28]]]))


def test_moments_are_of_what_compressed_layers_give() -> None:
    reference = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    nn.init.eye_(reference[0].weight)
    student = copy.deepcopy(reference)
    stages = measured(reference, student, list(slots(student).values()), [(torch.tensor([[3.0, 4.0]]),)])
    next(stages)
    student[0].weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # compression swaps the features
    _, moments = next(stages)
    assert moments is not None
    close(moments.gram, torch.tensor([[[1.28, 0.96], [0.96, 0.72]]]))
    close(moments.cross, torch.tensor([[[0.96, 0.72], [1.28, 0.96]]]))  # the float model's input times the student's


def test_what_writes_into_an_input_later_changes_nothing() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            self.layer(x)
            x += 10
            out: Tensor = self.layer(x)
            return out

    x = torch.tensor([[3.0, -4.0]])
    expected = torch.tensor([[[0.72, -0.96], [-0.96, 1.28]]]) + gram(nn.Linear(2, 2), x + 10)
    close(gram(InPlace(), x), expected)


def test_hooks_are_gone_afterwards() -> None:
    model = Attention()
    measure(model, torch.randn(2, 3, 4))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_without_batches_there_is_nothing_to_measure() -> None:
    with pytest.raises(InputError, match="no calibration batches"):
        measure(nn.Linear(2, 2))
