from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression.distill import Lesson, answer_of, distance, endless, layers_like
from qn_deploy.compression.student import student_of
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 3))


def disturbed(net: nn.Sequential) -> nn.Sequential:
    student = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return student


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))


def a_program() -> Program:
    return capture(a_net(), (X,))


def test_distance_is_kl_for_logits_and_relative_mean_squares_otherwise() -> None:
    ours, theirs = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])
    expected = 0.25 * torch.log(torch.tensor(0.5)) + 0.75 * torch.log(torch.tensor(1.5))
    torch.testing.assert_close(distance(ours, theirs), expected)
    torch.testing.assert_close(distance(2 * ours, 2 * theirs, temperature=2.0), 4 * expected)
    assert float(distance(torch.tensor([3.0]), torch.tensor([2.0]))) == 0.25
    assert float(distance((torch.tensor([3.0]), torch.tensor([3.0])), (torch.tensor([2.0]), torch.tensor([2.0])))) == 0.5


def test_a_step_is_the_optimizers_at_the_rate_asked_for() -> None:
    teacher = a_net()
    student, expected = disturbed(teacher), disturbed(teacher)
    before = distance(expected(X), teacher(X).detach())
    lesson = Lesson(student, torch.optim.SGD(student.parameters(), lr=0.4))
    assert lesson.step((X,), answer_of(teacher, (X,)), 0.25, "here") == before.item()
    before.backward()  # type: ignore[no-untyped-call]
    for found, parameter in zip(student.parameters(), expected.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(found, parameter - 0.1 * parameter.grad)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_gradient_is_clipped_as_a_whole() -> None:
    teacher = a_net()
    student = disturbed(teacher)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    Lesson(student, torch.optim.SGD(student.parameters(), lr=1.0), clip=1e-3).step((X,), answer_of(teacher, (X,)), 1.0, "here")
    moved = torch.cat([(new - old).flatten() for new, old in zip(student.parameters(), before, strict=True)])
    torch.testing.assert_close(float(moved.detach().norm()), 1e-3, rtol=1e-2, atol=0)


def test_hints_count_beside_the_outputs() -> None:
    teacher = a_net()
    student = disturbed(teacher)
    hidden = layers_like(a_program(), ("0", "2.*"))
    ours, theirs = (student_of(capture(net, (X,)), hidden) for net in (student, teacher))
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.0)
    plain = Lesson(student, optimizer).step((X,), answer_of(teacher, (X,)), 1.0, "here")
    hinted = Lesson(ours, optimizer, hints=2, hint_weight=0.5).step((X,), answer_of(theirs, (X,)), 1.0, "here")
    pairs = [(student[0](X), teacher[0](X)), (student[2][0](student[:2](X)), teacher[2][0](teacher[:2](X)))]
    expected = plain + 0.5 * sum(((ours - theirs).square().mean() / theirs.square().mean()).item() for ours, theirs in pairs)
    assert hinted == pytest.approx(expected, rel=1e-5)


def test_bfloat16_changes_the_products_and_not_the_parameters() -> None:
    teacher = a_net()
    student = disturbed(teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    exact, rough = (Lesson(student, optimizer, bfloat16=b).step((X,), answer_of(teacher, (X,), b), 1.0, "here") for b in (False, True))
    assert rough != exact and rough == pytest.approx(exact, rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())


def test_a_loss_that_is_not_finite_says_where() -> None:
    teacher = a_net()
    lesson = Lesson(disturbed(teacher), torch.optim.SGD(teacher.parameters(), lr=0.5), lambda ours, theirs: ours[0].sum() / 0)
    with pytest.raises(
        CompressionError, match=r"the loss became (nan|-?inf) while fine-tuning in the attic; try a learning rate below 0\.5"
    ):
        lesson.step((X,), answer_of(teacher, (X,)), 1.0, "in the attic")


def test_globs_find_layers_by_the_names_of_their_weights_and_one_that_finds_none_is_refused() -> None:
    assert layers_like(a_program(), ("2.*", "0")) == ("linear", "linear_1")
    assert layers_like(a_program(), ()) == ()
    with pytest.raises(InputError, match=r"the hint 'layer\.\*' matches no layer; the model has 0, 2\.0, 3"):
        layers_like(a_program(), ("layer.*",))


def test_batches_come_again_and_again_in_the_order_of_the_inputs() -> None:
    stream = endless(a_program(), [(torch.ones(1, 4),), {"input": torch.full((2, 4), 2.0)}])
    assert [(len(batch[0]), float(batch[0][0, 0])) for batch, _ in zip(stream, range(5), strict=False)] == [(1, 1), (2, 2)] * 2 + [(1, 1)]


def test_frozen_parameters_become_trainable_and_integers_stay() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2).requires_grad_(False)
            self.count = nn.Parameter(torch.tensor([1]), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.layer(x) * self.count
            return scores

    student = student_of(capture(Counted(), (X,)))
    assert {name: parameter.requires_grad for name, parameter in student.named_parameters() if parameter.is_floating_point()} == {
        "layer.weight": True,
        "layer.bias": True,
    }
    assert student(X)[0].requires_grad


def test_the_loss_sees_the_outputs_of_both_as_tuples() -> None:
    seen: list[Tensor] = []

    def loss(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
        assert type(ours) is type(theirs) is tuple and len(ours) == len(theirs) == 1
        seen.extend((ours[0].detach(), theirs[0]))
        return (ours[0] - theirs[0]).square().sum()

    teacher = a_net()
    student = disturbed(teacher)
    expected = student(X).detach(), teacher(X).detach()
    Lesson(student, torch.optim.SGD(student.parameters(), lr=0.1), loss).step((X,), answer_of(teacher, (X,)), 1.0, "here")
    assert all(torch.equal(found, value) for found, value in zip(seen, expected, strict=True))
