from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qn_deploy.compression.layers import attach_tied, attach_weight, bake, clamp_tables, compressed_weights, round_centroids
from qn_deploy.compression.tables import table_from_weight
from qn_deploy.errors import CompressionError
from qn_deploy.recipe import Int4, Table
from qn_deploy.recipe.parameters import Slot, compressible
from qn_deploy.weights.compressed import IntWeight, PQWeight


def at(module: nn.Module) -> Slot:
    """Where the module's own weight stands."""
    return next(slot for slot in compressible(module) if slot.module is module)


class Net(nn.Module):
    """One of each: a convolution as a table, a Linear as int8, a Linear left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.body = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.body(torch.relu(self.conv(x)).mean((2, 3)))))
        return out


def a_net(int8_in_loop: bool = True) -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    attach_weight(at(net.conv), table_from_weight(net.conv.weight, Table(9, 8)), int8_in_loop)
    attach_weight(at(net.body), IntWeight.from_float(net.body.weight))
    return net


def some_steps(net: nn.Module, x: Tensor, steps: int = 5) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        clamp_tables(net)


X = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def test_attach_then_fine_tune_then_bake_keeps_every_bit() -> None:
    net = a_net(int8_in_loop=False)
    before = net.conv.weight.detach().clone()
    some_steps(net, X)
    round_centroids(net)
    some_steps(net, X)
    assert not torch.equal(before, net.conv.weight)
    baked = copy.deepcopy(net)
    bake(baked)
    assert torch.equal(baked.conv.weight, net.conv.weight) and torch.equal(baked.body.weight, net.body.weight)
    assert torch.equal(baked(X), net(X))
    weights = compressed_weights(net)
    assert list(weights) == ["conv.weight", "body.weight"]
    assert torch.equal(weights["conv.weight"].dequantize(), net.conv.weight)


def test_a_table_just_attached_is_given_back_as_it_was() -> None:
    net = nn.Linear(8, 4)
    table = table_from_weight(net.weight, Table(2, 4))
    attach_weight(at(net), table)
    back = compressed_weights(net)["weight"]
    assert isinstance(back, PQWeight)
    assert torch.equal(back.codes, table.codes) and torch.equal(back.centroids, table.centroids) and torch.equal(back.scale, table.scale)


def test_an_int8_weight_just_attached_is_given_back_as_it_was() -> None:
    net = nn.Linear(2, 3)
    values = torch.tensor([[127, -127], [0, 1], [-3, 64]], dtype=torch.int8)
    attach_weight(at(net), IntWeight(values, torch.tensor([0.1, 3e-5, 7.0])))
    back = compressed_weights(net)["weight"]
    assert torch.equal(back.int8(), values)
    assert torch.equal(net.weight, back.dequantize())


def test_bake_leaves_plain_modules_and_spares_the_copy_it_was_made_from() -> None:
    net = a_net()
    baked = copy.deepcopy(net)
    bake(baked)
    assert [type(module) for module in baked.children()] == [nn.Conv2d, nn.Linear, nn.Linear]
    assert set(baked.state_dict()) == set(Net().state_dict())
    assert compressed_weights(baked) == {}
    assert torch.equal(net(X), baked(X))  # the class of a copy is shared: bake must not take the original's weight away


def test_local_codebooks_decode_like_the_table() -> None:
    table = PQWeight(
        torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.uint8),
        torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], dtype=torch.int8),
        torch.tensor([0.3, 0.7]),
        (2, 6),
    )
    net = nn.Linear(6, 2)
    attach_weight(at(net), table)
    assert torch.equal(net.weight, table.dequantize())


def test_a_residual_table_is_trained_beside_the_first() -> None:
    torch.manual_seed(0)
    net = nn.Linear(8, 6)
    table = table_from_weight(net.weight, Table(2, 4, residual=4))
    attach_weight(at(net), table)
    assert torch.equal(net.weight, table.dequantize())
    net.weight.square().sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, value in net.named_parameters() if value.grad is not None and value.grad.any()] == [
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
        "parametrizations.weight.original2",
    ]
    bake(net)
    assert torch.equal(net.weight, table.dequantize())


@pytest.mark.parametrize(
    "net", [nn.LSTM(8, 4, bidirectional=True), nn.GRU(8, 4), nn.MultiheadAttention(8, 2)], ids=lambda net: type(net).__name__
)
def test_modules_with_several_weights_compute_with_all_of_them(net: nn.Module) -> None:
    torch.manual_seed(0)
    net.eval()
    x = torch.randn(3, 1, 8)
    call = (lambda module: module(x, x, x)[0]) if isinstance(net, nn.MultiheadAttention) else (lambda module: module(x)[0])
    before = call(net)
    for slot in list(compressible(net)):
        attach_weight(slot, table_from_weight(slot.weight, Table(2, 8)))
    after = call(net)
    after.sum().backward()
    assert not torch.equal(before, after)
    assert all(value.grad is not None for name, value in net.named_parameters() if "in_proj" in name or "weight_" in name)
    bake(net)
    torch.testing.assert_close(call(net), after, rtol=0, atol=1e-6)


def test_four_bit_weights_train_through_their_rounding() -> None:
    torch.manual_seed(0)
    net = nn.Linear(8, 6)
    attach_weight(at(net), IntWeight.from_float(net.weight, method=Int4()))
    torch.autograd.backward(net.weight, torch.ones(6, 8))
    assert torch.equal(net.get_parameter("parametrizations.weight.original").grad, torch.ones(6, 8))
    back = compressed_weights(net)["weight"]
    assert isinstance(back, IntWeight) and back.bits == 4 and int(back.values.abs().max()) <= 7
    assert torch.equal(net.weight, back.dequantize())


def test_a_centroid_gets_the_mean_gradient_of_its_blocks() -> None:
    # Scale 1: rows (a, b) and (a, a). The paper's update is the mean over the three blocks of a, and the one of b.
    table = PQWeight(
        torch.tensor([[0, 1], [0, 0]], dtype=torch.uint8), torch.tensor([[[1, 2], [3, 4]]], dtype=torch.int8), torch.ones(2), (2, 4)
    )
    net = nn.Linear(4, 2)
    attach_weight(at(net), table)
    grad = torch.tensor([[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 5.0, 6.0]])
    torch.autograd.backward(net.weight, grad)
    centroids, scale = (parameter.grad for parameter in net.get_submodule("parametrizations.weight").parameters())
    assert centroids is not None and centroids.tolist() == [[[3.0, 4.0], [10.0, 20.0]]]
    torch.testing.assert_close(scale, torch.tensor([(1 + 4 + 30 + 80) / 30, (3 + 8 + 5 + 12) / 10]))


@pytest.mark.parametrize("which", ["centroids", "scale"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_gradient_is_the_least_squares_projection_of_the_weights(which: str, per_channel: bool) -> None:
    # If the weight's gradient is itself a move of the centroids (or of the scale), the projection gives exactly that move back.
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7.0)[:, None]
    table = table_from_weight(weight, Table(2, 4), per_channel=per_channel)
    move = torch.randn(table.centroids.shape if which == "centroids" else table.scale.shape, generator=torch.Generator().manual_seed(1))
    scale = table.scale.reshape(-1, 1)
    net = nn.Linear(8, 6)
    attach_weight(at(net), table)
    if which == "centroids":
        torch.autograd.backward(net.weight, scale * move[0][table.codes.long()].flatten(1))
        found = net.get_parameter("parametrizations.weight.original0").grad
    else:
        torch.autograd.backward(net.weight, move.reshape(-1, 1) * table.int8().float())
        found = net.get_parameter("parametrizations.weight.original1").grad
    torch.testing.assert_close(found, move, rtol=1e-4, atol=1e-5)


def test_a_dead_row_does_not_throw_its_centroid_away() -> None:
    table = PQWeight(torch.tensor([[0], [1]], dtype=torch.uint8), torch.ones(1, 2, 2, dtype=torch.int8), torch.tensor([1.0, 1e-20]), (2, 2))
    net = nn.Linear(2, 2)
    attach_weight(at(net), table)
    torch.autograd.backward(net.weight, torch.ones(2, 2))
    found = net.get_parameter("parametrizations.weight.original0").grad
    assert found is not None and found.abs().max() <= 1


def test_gradients_are_finite_even_if_every_scale_has_vanished() -> None:
    table = PQWeight(torch.zeros(2, 1, dtype=torch.uint8), torch.zeros(1, 1, 2, dtype=torch.int8), torch.full((2,), 1e-30), (2, 2))
    net = nn.Linear(2, 2)
    attach_weight(at(net), table)
    torch.autograd.backward(net.weight, torch.zeros(2, 2))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.get_submodule("parametrizations.weight").parameters())


def test_int8_gradient_goes_straight_through() -> None:
    net = nn.Linear(2, 2)
    attach_weight(at(net), IntWeight.from_float(net.weight))
    grad = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    torch.autograd.backward(net.weight, grad)
    latent = net.get_parameter("parametrizations.weight.original").grad
    assert latent is not None and torch.equal(latent, grad)


def test_rounding_grows_the_grid_only_for_centroids_out_of_reach() -> None:
    table = PQWeight(torch.tensor([[0], [1]], dtype=torch.uint8), torch.tensor([[[10], [-100]]], dtype=torch.int8), torch.ones(2), (2, 1))
    net = nn.Linear(1, 2)
    attach_weight(at(net), table, int8_in_loop=False)
    round_centroids(net)
    assert net.weight.tolist() == [[10.0], [-100.0]]

    net = nn.Linear(1, 2)
    attach_weight(at(net), table, int8_in_loop=False)
    with torch.no_grad():
        net.get_parameter("parametrizations.weight.original0")[0, 1] = -254.0
    before = compressed_weights(net)["weight"]
    round_centroids(net)
    assert net.weight.tolist() == [[10.0], [-254.0]] == before.dequantize().tolist()
    assert compressed_weights(net)["weight"].int8().tolist() == [[5], [-127]]


def test_clamp_keeps_scales_positive() -> None:
    net = a_net()
    with torch.no_grad():
        net.get_parameter("conv.parametrizations.weight.original1").fill_(-1.0)
    with pytest.raises(CompressionError, match=r"conv\.weight: a scale is zero, negative"):
        compressed_weights(net)
    clamp_tables(net)
    assert (compressed_weights(net)["conv.weight"].scale > 0).all()


def test_state_dict_carries_codes_and_centroids() -> None:
    net, other = a_net(), a_net()
    with torch.no_grad():
        net.get_parameter("conv.parametrizations.weight.original0").neg_()
        net.get_buffer("conv.parametrizations.weight.0.codes").fill_(1)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(X), other(X))


def test_tied_modules_share_one_table() -> None:
    torch.manual_seed(0)
    embedding, output = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
    output.weight = embedding.weight
    net = nn.Sequential(embedding, output)
    attach_weight(at(embedding), table_from_weight(embedding.weight, Table(4, 4)))
    attach_tied(at(output), at(embedding))
    tokens = torch.arange(6)
    assert len(list(net.parameters())) == 2
    some_steps(net, tokens)
    assert torch.equal(embedding.weight, output.weight)
    weights = compressed_weights(net)
    assert weights["0.weight"] is weights["1.weight"]
    baked = copy.deepcopy(net)
    bake(baked)
    assert baked[0].weight is baked[1].weight and torch.equal(baked(tokens), net(tokens))


def test_what_does_not_fit_is_refused() -> None:
    table = table_from_weight(torch.randn(4, 8), Table(4, 4))
    with pytest.raises(CompressionError, match=r"a Linear weight of torch.float32 \[4, 9\] can't hold float32 \[4, 8\]"):
        attach_weight(at(nn.Linear(9, 4)), table)
    with pytest.raises(CompressionError, match=r"call model\.float\(\)"):
        attach_weight(at(nn.Linear(8, 4).bfloat16()), table)
    noisy = parametrize.register_parametrization(nn.Linear(8, 4), "weight", nn.Identity())
    with pytest.raises(CompressionError, match=r"Linear still carries a parametrization; call qn_deploy\.noise\.remove"):
        attach_weight(at(noisy), table)


def test_a_table_weight_can_not_be_assigned() -> None:
    net = a_net()
    with pytest.raises(CompressionError, match=r"call bake\(model\) first"):
        net.conv.weight = torch.zeros(8, 4, 3, 3)


def test_a_weight_that_is_no_longer_finite_is_named() -> None:
    net = a_net()
    with torch.no_grad():
        net.get_parameter("conv.parametrizations.weight.original0")[0, 0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"conv\.weight: a centroid is NaN"):
        bake(net)
