"""Bytes of a text for a decoder: plain training on them, single steps in their midst, and what a step function writes after them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from decoder_model import Decoder
from torch import Tensor

BATCH = 16  # texts of a training step
STEPS = 32  # single steps at once

Step = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(token int64 [B, 1], position int64 [B], *cache) -> (logits [B, tokens], *cache)."""


@dataclass(frozen=True)
class Text:
    """A file's bytes as tokens, int64 [N]."""

    tokens: Tensor

    @staticmethod
    def of(file: Path) -> Text:
        """All of a file."""
        return Text(torch.tensor(list(file.read_bytes())))

    def drawn(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """int64 [count, length]: pieces from anywhere."""
        begins = torch.randint(len(self.tokens) - length + 1, (count,), generator=generator)
        return self.tokens[begins[:, None] + torch.arange(length)]

    def spread(self, count: int, length: int) -> Tensor:
        """int64 [count, length]: pieces at equal distances."""
        begins = torch.linspace(0, len(self.tokens) - length, count).long()
        return self.tokens[begins[:, None] + torch.arange(length)]


@dataclass(frozen=True)
class RealSteps:
    """Batches of single steps at random places of real texts, beside the cache as the float model has filled it by then."""

    model: Decoder
    text: Text
    batches: int
    seed: int

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(self.seed)
        length = self.model.shape.length
        for _ in range(self.batches):
            tokens = self.text.drawn(STEPS, length, generator)
            position = torch.randint(length, (STEPS,), generator=generator)
            with torch.no_grad():
                _, cache = self.model.read(tokens)
            before = (torch.arange(length) < position[:, None])[:, None, :, None]
            yield tokens.gather(1, position[:, None]), position, *(each * before for each in cache)


def fit(model: Decoder, text: Text, steps: int, lr: float, seed: int) -> None:
    """AdamW on pieces of a text as long as the cache, in place; the rate falls as a cosine does."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        tokens = text.drawn(BATCH, model.shape.length, generator)
        logits, _ = model.read(tokens)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def logits_of(step: Step, tokens: Tensor, cache: tuple[Tensor, ...]) -> Tensor:
    """Texts int64 [B, T], read token by token from an empty cache -> logits [B, T, tokens] of what follows each."""
    found = []
    for position, token in enumerate(tokens.split(1, 1)):
        logits, *rest = step((token, torch.full((len(tokens),), position), *cache))
        cache = tuple(rest)
        found.append(logits)
    return torch.stack(found, 1)


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    """Of each byte of texts int64 [B, T] after those before it, by logits [B, T, tokens]."""
    return math.exp(F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))


@torch.no_grad()
def written(step: Step, prompt: Tensor, count: int, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The likeliest text after a prompt int64 [T], token by token from an empty cache.

    Returns:
        Tokens int64 [count], and the logits [count, tokens] that they were taken by.
    """
    tokens, found = prompt.tolist(), []
    for position in range(len(prompt) + count - 1):
        logits, *rest = step((torch.tensor([[tokens[position]]]), torch.tensor([position]), *cache))
        cache = tuple(rest)
        if position + 1 >= len(prompt):
            found.append(logits[0])
            tokens.append(int(logits.argmax()))
    return torch.tensor(tokens[len(prompt) :]), torch.stack(found)
