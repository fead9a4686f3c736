from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression.student import attach_weight, clamp_tables, compressed_weights, learnt, round_centroids, student_of
from qn_deploy.errors import CompressionError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.graph.sites import weights
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int4, Table
from qn_deploy.weights.compressed import IntWeight, PQWeight
from qn_deploy.weights.tables import table_from_weight


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


X = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def a_program() -> Program:
    torch.manual_seed(0)
    return capture(Net(), (X,))


def a_student(int8_in_loop: bool = True) -> Any:
    program = a_program()
    net = student_of(program)
    attach_weight(net, "conv.weight", table_from_weight(program.exported.state_dict["conv.weight"], Table(9, 8)), int8_in_loop)
    attach_weight(net, "body.weight", IntWeight.from_float(program.exported.state_dict["body.weight"]))
    return net


def some_steps(net: nn.Module, x: Tensor, steps: int = 5) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x)[0].square().mean().backward()
        optimizer.step()
        clamp_tables(net)


def test_attach_then_fine_tune_then_store_keeps_every_bit() -> None:
    program, net = a_program(), a_student(int8_in_loop=False)
    before = net.conv.weight.detach().clone()
    some_steps(net, X)
    round_centroids(net)
    some_steps(net, X)
    assert not torch.equal(before, net.conv.weight)
    done = learnt(program, net)
    state = done.exported.state_dict
    assert torch.equal(state["conv.weight"], net.conv.weight) and torch.equal(state["body.weight"], net.body.weight)
    assert torch.equal(unlifted(done.exported)(X)[0], net(X)[0])
    assert list(done.weights) == ["conv.weight", "body.weight"]
    assert torch.equal(done.weights["conv.weight"].dequantize(), net.conv.weight)
    assert not torch.equal(state["head.weight"], program.exported.state_dict["head.weight"])  # what stays float has learnt as well


def test_a_table_just_attached_is_given_back_as_it_was() -> None:
    net = nn.Linear(8, 4)
    table = table_from_weight(net.weight, Table(2, 4))
    attach_weight(net, "weight", table)
    back = compressed_weights(net)["weight"]
    assert isinstance(back, PQWeight)
    assert torch.equal(back.codes, table.codes) and torch.equal(back.centroids, table.centroids) and torch.equal(back.scale, table.scale)


def test_an_int8_weight_just_attached_is_given_back_as_it_was() -> None:
    net = nn.Linear(2, 3)
    values = torch.tensor([[127, -127], [0, 1], [-3, 64]], dtype=torch.int8)
    attach_weight(net, "weight", IntWeight(values, torch.tensor([0.1, 3e-5, 7.0])))
    back = compressed_weights(net)["weight"]
    assert torch.equal(back.int8(), values)
    assert torch.equal(net.weight, back.dequantize())


def test_the_program_is_spared_by_its_student() -> None:
    program = a_program()
    before = {name: value.clone() for name, value in program.exported.state_dict.items()}
    done = learnt(program, a_student())
    net = student_of(done)
    some_steps(net, X)
    stored = {name: weight.dequantize() for name, weight in done.weights.items()}
    assert list(program.exported.state_dict) == list(done.exported.state_dict) == list(before) and program.weights == {}
    assert all(torch.equal(value, before[name]) for name, value in program.exported.state_dict.items())
    for name, value in done.exported.state_dict.items():
        assert torch.equal(value, stored.get(name, before[name]))


def test_the_student_of_a_stored_program_is_that_program() -> None:
    done = learnt(a_program(), a_student())
    net = student_of(done)
    assert torch.equal(net(X)[0], unlifted(done.exported)(X)[0])
    back = compressed_weights(net)
    assert all(torch.equal(back[name].int8(), weight.int8()) for name, weight in done.weights.items())


@pytest.mark.parametrize("size", [1, 7, 65, 100])  # the batch is 1 to 64 in exported files
def test_a_student_takes_batches_of_any_size(size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(size, 4, 6, 6)
    net = a_student()
    torch.testing.assert_close(net(x)[0], torch.cat([net(row.repeat(2, 1, 1, 1))[0][:1] for row in x.split(1)]))


def test_parameters_of_the_model_itself_and_of_numbered_modules() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(8, 6))
            self.layers = nn.ParameterList([nn.Parameter(torch.randn(4, 8))])

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x @ self.matrix.T, self.layers[0])

    torch.manual_seed(0)
    x = torch.randn(3, 6)
    program = capture(Root(), (x,))
    net = student_of(program, hidden=("linear",))
    names = [weight.name for weight in weights(program.exported)]
    assert names == ["matrix", "layers.0"]
    for name in names:
        attach_weight(net, name, table_from_weight(net.get_parameter(name).detach(), Table(2, 4)))
    some_steps(net, x)
    done = learnt(program, net)
    assert list(done.weights) == names
    assert torch.equal(unlifted(done.exported)(x)[0], net(x)[0]) and net(x)[1].shape == (3, 8)


def test_local_codebooks_decode_like_the_table() -> None:
    table = PQWeight(
        torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.uint8),
        torch.tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], dtype=torch.int8),
        torch.tensor([0.3, 0.7]),
        (2, 6),
    )
    net = nn.Linear(6, 2)
    attach_weight(net, "weight", table)
    assert torch.equal(net.weight, table.dequantize())


def test_a_residual_table_is_trained_beside_the_first() -> None:
    torch.manual_seed(0)
    net = nn.Linear(8, 6)
    table = table_from_weight(net.weight, Table(2, 4, residual=4))
    attach_weight(net, "weight", table)
    assert torch.equal(net.weight, table.dequantize())
    net.weight.square().sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, value in net.named_parameters() if value.grad is not None and value.grad.any()] == [
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
        "parametrizations.weight.original2",
    ]


@pytest.mark.parametrize(
    "net", [nn.LSTM(8, 4, bidirectional=True), nn.GRU(8, 4), nn.MultiheadAttention(8, 2)], ids=lambda net: type(net).__name__
)
def test_modules_with_several_weights_compute_with_all_of_them(net: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 1, 8)
    program = capture(net, (x, x, x) if isinstance(net, nn.MultiheadAttention) else (x,), dynamic_shapes=())
    student = student_of(program)
    before = student(*program.golden.inputs)[0]
    sites = weights(program.exported)
    for site in sites:
        attach_weight(student, site.name, table_from_weight(site.value, Table(2, 8)))
    after = student(*program.golden.inputs)[0]
    after.sum().backward()
    assert len(sites) == {nn.LSTM: 4, nn.GRU: 2, nn.MultiheadAttention: 2}[type(net)]
    assert not torch.equal(before, after)
    assert all(value.grad is not None for name, value in student.named_parameters() if "in_proj" in name or "weight_" in name)
    stored = unlifted(learnt(program, student).exported)(*program.golden.inputs)[0]
    torch.testing.assert_close(stored, after, rtol=0, atol=1e-6)


def test_four_bit_weights_train_through_their_rounding() -> None:
    torch.manual_seed(0)
    net = nn.Linear(8, 6)
    attach_weight(net, "weight", IntWeight.from_float(net.weight, method=Int4()))
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
    attach_weight(net, "weight", table)
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
    attach_weight(net, "weight", table)
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
    attach_weight(net, "weight", table)
    torch.autograd.backward(net.weight, torch.ones(2, 2))
    found = net.get_parameter("parametrizations.weight.original0").grad
    assert found is not None and found.abs().max() <= 1


def test_gradients_are_finite_even_if_every_scale_has_vanished() -> None:
    table = PQWeight(torch.zeros(2, 1, dtype=torch.uint8), torch.zeros(1, 1, 2, dtype=torch.int8), torch.full((2,), 1e-30), (2, 2))
    net = nn.Linear(2, 2)
    attach_weight(net, "weight", table)
    torch.autograd.backward(net.weight, torch.zeros(2, 2))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.get_submodule("parametrizations.weight").parameters())


def test_int8_gradient_goes_straight_through() -> None:
    net = nn.Linear(2, 2)
    attach_weight(net, "weight", IntWeight.from_float(net.weight))
    grad = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    torch.autograd.backward(net.weight, grad)
    latent = net.get_parameter("parametrizations.weight.original").grad
    assert latent is not None and torch.equal(latent, grad)


def test_rounding_grows_the_grid_only_for_centroids_out_of_reach() -> None:
    table = PQWeight(torch.tensor([[0], [1]], dtype=torch.uint8), torch.tensor([[[10], [-100]]], dtype=torch.int8), torch.ones(2), (2, 1))
    net = nn.Linear(1, 2)
    attach_weight(net, "weight", table, int8_in_loop=False)
    round_centroids(net)
    assert net.weight.tolist() == [[10.0], [-100.0]]

    net = nn.Linear(1, 2)
    attach_weight(net, "weight", table, int8_in_loop=False)
    with torch.no_grad():
        net.get_parameter("parametrizations.weight.original0")[0, 1] = -254.0
    before = compressed_weights(net)["weight"]
    round_centroids(net)
    assert net.weight.tolist() == [[10.0], [-254.0]] == before.dequantize().tolist()
    assert compressed_weights(net)["weight"].int8().tolist() == [[5], [-127]]


def test_clamp_keeps_scales_positive() -> None:
    net = a_student()
    with torch.no_grad():
        net.get_parameter("conv.parametrizations.weight.original1").fill_(-1.0)
    with pytest.raises(CompressionError, match=r"conv\.weight: a scale is zero, negative"):
        compressed_weights(net)
    clamp_tables(net)
    assert (compressed_weights(net)["conv.weight"].scale > 0).all()


def test_state_dict_carries_codes_and_centroids() -> None:
    net, other = a_student(), a_student()
    with torch.no_grad():
        net.get_parameter("conv.parametrizations.weight.original0").neg_()
        net.get_buffer("conv.parametrizations.weight.0.codes").fill_(1)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(X)[0], other(X)[0])


def test_tied_modules_share_one_table() -> None:
    torch.manual_seed(0)
    embedding, output = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
    output.weight = embedding.weight
    tokens = torch.arange(6)
    program = capture(nn.Sequential(embedding, output), (tokens,))
    program = replace(program, weights={"0.weight": table_from_weight(embedding.weight.detach(), Table(4, 4))})
    net = student_of(program)
    assert len(list(net.parameters())) == 2
    some_steps(net, tokens)
    done = learnt(program, net)
    assert list(done.weights) == ["0.weight"]
    assert not torch.equal(done.weights["0.weight"].dequantize(), program.weights["0.weight"].dequantize())
    assert torch.equal(unlifted(done.exported)(tokens)[0], net(tokens)[0])


def test_what_does_not_fit_is_refused() -> None:
    table = table_from_weight(torch.randn(4, 8), Table(4, 4))
    with pytest.raises(CompressionError, match=r"weight: torch.float32 \[4, 9\] can't hold float32 \[4, 8\]"):
        attach_weight(nn.Linear(9, 4), "weight", table)
    with pytest.raises(CompressionError, match=r"0\.weight: torch.bfloat16 \[4, 8\] can't hold float32 \[4, 8\]"):
        attach_weight(nn.Sequential(nn.Linear(8, 4)).bfloat16(), "0.weight", table)
    net = nn.Linear(8, 4)
    attach_weight(net, "weight", table)
    with pytest.raises(CompressionError, match=r"weight is compressed already"):
        attach_weight(net, "weight", table)


def test_a_table_weight_can_not_be_assigned() -> None:
    net = a_student()
    with pytest.raises(CompressionError, match=r"held as a table and can't be assigned to"):
        net.conv.weight = torch.zeros(8, 4, 3, 3)


def test_a_weight_that_is_no_longer_finite_is_named() -> None:
    net = a_student()
    with torch.no_grad():
        net.get_parameter("conv.parametrizations.weight.original0")[0, 0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"conv\.weight: a centroid is NaN"):
        learnt(a_program(), net)
