from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Graph, Node

from qn_deploy.compression.moments import Geometry, Moments, geometry_of, inputs_at, measured, source_of

_aten = torch.ops.aten


def reader(target: object, arguments: tuple[object, ...] = (), lookup: bool = False) -> Node:
    """A node of x and a weight with more arguments, as capture writes it."""
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    return graph.call_function(target, ((weight, x) if lookup else (x, weight)) + arguments)  # type: ignore[arg-type]


LINEAR, EMBEDDING = reader(_aten.linear.default), reader(_aten.embedding.default, lookup=True)


def of(node: Node, weight: Tensor, ours: Sequence[Tensor], theirs: Sequence[Tensor] | None = None) -> Moments:
    return measured(node, weight, zip(ours, theirs or ours, strict=True), len(ours))


def gram(width: int, *batches: Tensor) -> Tensor:
    found = of(LINEAR, torch.empty(5, width), batches).gram
    assert found is not None
    return found


def close(found: Tensor | None, expected: Tensor) -> None:
    """Up to the floor under the size of an input, a thousandth."""
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=3e-3)


def test_each_input_is_scaled_to_unit_mean_square() -> None:
    tokens = torch.tensor([[[3.0, 4.0], [3.0, 4.0]]])
    close(gram(2, tokens), 2 * torch.tensor([[[0.72, 0.96], [0.96, 1.28]]]))
    close(gram(2, tokens, 10 * tokens), 4 * torch.tensor([[[0.72, 0.96], [0.96, 1.28]]]))


def test_an_input_next_to_zero_is_not_blown_up() -> None:
    close(gram(2, torch.tensor([[1.0, 1.0], [1e-6, -1e-6], [0.0, 0.0]])), torch.ones(1, 2, 2))


def test_the_shift_is_how_the_float_models_inputs_differ_times_the_compressed_models() -> None:
    x, y = torch.tensor([[4.0, 3.0]]), torch.tensor([[3.0, 4.0]])
    found = of(LINEAR, torch.empty(5, 2), [x], [y])
    close(found.gram, torch.tensor([[[1.28, 0.96], [0.96, 0.72]]]))
    close(found.shift, torch.tensor([[[-0.32, -0.24], [0.32, 0.24]]]))
    same = of(LINEAR, torch.empty(5, 2), [x]).shift
    assert same is not None and not same.any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 9))
def test_a_bias_takes_the_means_out(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    ours = [torch.randn(size, 3).double() + 2 for size in sizes]
    theirs = [batch + torch.randn(len(batch), 3) / 4 + 1 for batch in ours]
    found = measured(LINEAR, torch.empty(5, 3), zip(ours, theirs, strict=True), len(sizes), bias=True)
    x, y = torch.cat(ours), torch.cat(theirs)
    square = x.square().mean(1, keepdim=True)
    factors = [(part + 1e-3 * part.mean()).rsqrt() for part in square.split(sizes)]
    factor = torch.cat(factors).square()
    mean, their_mean = ((factor * value).sum(0) / factor.sum() for value in (x, y))
    x, y = x - mean, y - their_mean
    close(found.gram, ((factor * x).mT @ x)[None].float())
    close(found.shift, ((factor * (y - x)).mT @ x)[None].float())
    close(found.mean, mean[None, None].float())
    close(found.their_mean, their_mean[None, None].float())


@pytest.mark.parametrize("before", [[], [torch.zeros(8, 256)]])
def test_inputs_next_to_their_mean_leave_moments_that_no_rounding_made(before: list[Tensor]) -> None:
    torch.manual_seed(0)
    inputs = 1000 * torch.randn(256) + torch.randn(512, 256)
    found = measured(LINEAR, torch.empty(5, 256), [(x, x) for x in (*before, inputs)], 1, bias=True).gram
    centred = (inputs - inputs.mean(0)).double()
    assert found is not None and float(torch.linalg.eigvalsh(found.double()).min()) > 0
    off, expected = (matrix - matrix.diagonal().diag() for matrix in (found[0], centred.mT @ centred / inputs.square().mean()))
    assert float((off - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("bias", [False, True])
def test_the_noise_is_how_far_the_gram_of_such_a_sample_is_off(bias: bool) -> None:
    torch.manual_seed(0)
    grams, noises = [], []
    for _ in range(200):
        x = [torch.randn(20, 6) @ torch.diag(torch.arange(1.0, 7)) + 3 for _ in range(4)]
        found = measured(LINEAR, torch.empty(5, 6), zip(x, x, strict=True), 4, bias=bias)
        assert found.gram is not None and found.noise is not None
        grams.append(found.gram)
        noises.append(found.noise)
    off = torch.stack(grams).sub(torch.stack(grams).mean(0)).square().sum((2, 3)).mean()
    assert float(torch.stack(noises).mean()) == pytest.approx(float(off), rel=0.15)


@pytest.mark.parametrize("silent", [torch.zeros(3, 2), torch.full((3, 2), 1e-18)])
def test_a_batch_of_silent_inputs_says_nothing(silent: Tensor) -> None:
    batch = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    for order in ([batch, silent], [silent, batch], [silent, silent]):
        found = measured(LINEAR, torch.empty(5, 2), zip(order, order, strict=True), 2, bias=True)
        alone = measured(LINEAR, torch.empty(5, 2), [(batch, batch)], 1, bias=True)
        said = [found.gram, found.shift, found.mean, found.their_mean]
        assert all(each is not None and bool(each.isfinite().all()) for each in said)
        if order[0] is batch or order[1] is batch:
            close(found.mean, alone.mean if alone.mean is not None else batch)
            close(found.gram, alone.gram if alone.gram is not None else batch)


def test_one_batch_tells_nothing_of_its_noise() -> None:
    found = of(LINEAR, torch.empty(5, 2), [torch.randn(9, 2)]).noise
    assert found is not None and found.tolist() == [0]


def test_an_embedding_counts_its_lookups() -> None:
    found = of(EMBEDDING, torch.empty(4, 2), [torch.tensor([[0, 2, 2]]), torch.tensor([[2, 3, 3]])])
    assert found.lookups is not None and found.lookups.tolist() == [1, 0, 3, 2] and found.gram is None


def test_moments_of_several_readers_add_up() -> None:
    x = torch.tensor([[3.0, 4.0]])
    once = of(LINEAR, torch.empty(5, 2), [x])
    looked_up = of(EMBEDDING, torch.empty(4, 2), [torch.tensor([1])])
    total = Moments()
    for each in (of(LINEAR, torch.empty(5, 2), [x]), Moments(), once, looked_up):
        total += each
    close(total.gram, 2 * gram(2, x))
    close(once.gram, gram(2, x))
    assert total.lookups is looked_up.lookups


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([(4, 4, 1), (4, 6, 2), (6, 6, 6)]),
    st.sampled_from(
        [(1, 0, 1), (3, 1, 1), (3, "same", 2), (2, "same", 1), (2, "valid", 2), (2, 1, 2), (5, 2, 1), ((3, 2, 1), (2, 0, 1), 1)]
    ),
    st.integers(1, 2),
)
def test_a_convolution_is_its_weight_times_these_inputs(
    dimensions: int, channels: tuple[int, int, int], kind: tuple[object, object, int], stride: int
) -> None:
    kernel, padding, dilation = (each[:dimensions] if isinstance(each, tuple) else each for each in kind)
    if isinstance(padding, str):
        stride = 1
    inside, out, groups = channels
    module = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    torch.manual_seed(0)
    layer = module(inside, out, kernel, stride, padding, dilation, groups, bias=False)  # type: ignore[arg-type]
    x = torch.randn(2, inside, *(7, 6, 5)[:dimensions])
    exported = torch.export.export(layer, (x,), strict=False)
    [node] = [node for node in exported.graph.nodes if node.op == "call_function"]
    geometry = geometry_of(node, layer.weight)
    expected = layer(x).flatten(2)  # [N, out, positions]
    rows = layer.weight.reshape(groups, out // groups, -1)
    positions = torch.arange(len(x) * expected.shape[2])
    found = inputs_at(x, geometry, positions) @ rows.mT  # [groups, N * positions, out / groups]
    torch.testing.assert_close(found.unflatten(1, (2, -1)).permute(1, 0, 3, 2).flatten(1, 2), expected, rtol=1e-4, atol=1e-5)
    some = torch.tensor([1, 4])
    assert torch.equal(inputs_at(x, geometry, some), inputs_at(x, geometry, positions)[:, some])


def test_a_sample_is_seeded_and_says_nearly_what_all_inputs_say() -> None:
    x = [
        torch.randn(30_000, 4, generator=torch.Generator().manual_seed(i))
        @ torch.tensor([[2.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])
        for i in range(4)
    ]
    weight = torch.empty(5, 4)
    first, again, other = (measured(LINEAR, weight, zip(x, x, strict=True), 4, seed).gram for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again) and not torch.equal(first, other)
    every = sum(measured(LINEAR, weight, [(part, part)], 1).gram for batch in x for part in batch.split(1000))  # type: ignore[misc]
    assert isinstance(every, Tensor) and float(first.diagonal(dim1=1, dim2=2).sum()) == pytest.approx(32_768 * 4, rel=0.01)
    torch.testing.assert_close(first / first[0, 0, 0], every / every[0, 0, 0], rtol=0.05, atol=0.02)


def test_what_reads_a_weight_in_another_way_has_no_moments() -> None:
    lstm = Graph().call_function(_aten.lstm.input, (None, [], []))
    assert source_of(lstm) is None and source_of(reader(_aten.conv_transpose2d.input)) is None
    assert source_of(LINEAR) is LINEAR.args[0] and source_of(EMBEDDING) is EMBEDDING.args[1]
    assert geometry_of(LINEAR, torch.empty(2, 2)) == Geometry()
