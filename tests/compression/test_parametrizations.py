from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression.student import attach_weight
from qn_deploy.recipe import Table
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.tables import table_from_weight


def gradients(table: PQWeight, grad: Tensor) -> list[Tensor]:
    """Of the centroids, the scale and the residual centroids, by autograd."""
    net = nn.Embedding(*grad.shape)
    attach_weight(net, "weight", table)
    torch.autograd.backward(net.weight, grad)
    found = [parameter.grad for parameter in net.get_submodule("parametrizations.weight").parameters()]
    assert all(value is not None for value in found)
    return [value for value in found if value is not None]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("residual", [0, 3])
@pytest.mark.parametrize("read", [[], [1], [4, 0, 7], range(9)])
def test_rows_without_a_gradient_count_in_the_means_of_all(read: list[int], residual: int, per_channel: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, 12, generator=generator) * torch.arange(1.0, 10.0)[:, None]
    table = table_from_weight(weight, Table(2, 4, codebooks=3, residual=residual), per_channel=per_channel)
    grad = torch.zeros(9, 12)
    grad[list(read)] = torch.randn(len(read), 12, generator=generator)

    centroids, scale, *second = gradients(table, grad)
    rowwise, values = table.scale.expand(9)[:, None], table.int8().float()
    for book, part in zip((centroids, *second), table.tables, strict=True):
        for number in range(len(book.flatten(0, 1))):
            holds = (part.rows == number).repeat_interleave(2, 1)  # weights of this centroid's blocks
            expected = (rowwise * grad * holds).reshape(9, 6, 2).sum((0, 1)) / (rowwise.square() * holds).sum().div(2).clamp_min(1e-30)
            torch.testing.assert_close(book.flatten(0, 1)[number], expected, rtol=1e-4, atol=1e-6)
    along, length = (values * grad).sum(1), values.square().sum(1)
    torch.testing.assert_close(scale, along / length if per_channel else (along.sum() / length.sum())[None], rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_is_not_swallowed() -> None:
    table = table_from_weight(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), Table(2, 2))
    grad = torch.zeros(4, 4)
    grad[2] = float("nan")
    assert gradients(table, grad)[0].isnan().any()
