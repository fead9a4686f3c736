from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.test_benchmarks import load

model_file, text = load("decoder_model"), load("decoder_text")
SHAPE = model_file.Shape(tokens=256, width=16, layers=2, heads=4, groups=2, hidden=24, length=12)


@pytest.mark.parametrize("tied", [True, False])
def test_steps_with_a_cache_give_what_a_whole_text_gives(tied: bool) -> None:
    torch.manual_seed(0)
    decoder = model_file.Decoder(replace(SHAPE, tied=tied)).eval()
    tokens = torch.randint(256, (3, SHAPE.length))

    def step(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(pytree.tree_leaves(decoder(*inputs[:2], inputs[2:])))

    with torch.no_grad():
        whole, cache = decoder.read(tokens)
    stale = tuple(torch.randn_like(each) for each in decoder.empty(3))  # of an earlier text: what has not been written yet is not read
    for empty in (decoder.empty(3), stale):
        assert torch.allclose(text.logits_of(step, tokens, empty), whole, atol=1e-5)
    assert (decoder.head.weight is decoder.embedding.weight) is tied
    assert [each.shape for each in cache] == [each.shape for each in decoder.empty(3)]


def test_real_steps_hold_the_cache_before_their_token() -> None:
    torch.manual_seed(0)
    decoder = model_file.Decoder(SHAPE).eval()
    source = text.Text(torch.randint(256, (400,)))
    first, again = (next(iter(text.RealSteps(decoder, source, 1, seed=7))) for _ in range(2))
    assert all(map(torch.equal, first, again))
    token, position, *cache = first
    assert token.shape == (text.STEPS, 1) and int(position.max()) < SHAPE.length
    for each in cache:
        filled = each.abs().sum((1, 3)) > 0
        assert torch.equal(filled, torch.arange(SHAPE.length) < position[:, None])


def test_a_text_is_written_by_the_likeliest_token() -> None:
    def count_up(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        token, position, seen = inputs
        assert int(seen) == int(position)  # each step gets the cache that the one before gave
        return torch.eye(10)[(token[:, 0] + 1) % 10], seen + 1

    tokens, logits = text.written(count_up, torch.tensor([5, 6, 7]), 4, (torch.zeros(()),))
    assert tokens.tolist() == [8, 9, 0, 1]
    assert logits.argmax(1).tolist() == [8, 9, 0, 1]


def test_perplexity_of_a_certain_and_of_an_even_guess() -> None:
    tokens = torch.tensor([[1, 2, 3]])
    assert text.perplexity(torch.zeros(1, 3, 8), tokens) == pytest.approx(8)
    assert text.perplexity(100 * torch.eye(8)[tokens.roll(-1, 1)], tokens) == pytest.approx(1)


def test_logits_count_until_the_texts_part() -> None:
    one, other = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 3]])
    logits = torch.zeros(1, 3, 5)
    apart = logits + torch.tensor([0.0, 0.5, 9.0])[None, :, None]
    rows = load("decoder")._alike("a", (one, logits), (other, apart))
    assert [row.value for row in rows] == [pytest.approx(100 * 2 / 3), 0.5]


def test_a_folder_without_texts_is_skipped(tmp_path: Path) -> None:
    result = CliRunner().invoke(load("decoder").main, ["--data", str(tmp_path)])
    assert result.exit_code == 0 and result.output.startswith("skipped: Decoder")
