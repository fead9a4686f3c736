"""End-to-end tuning of a compressed sentence encoder: unlabelled pieces of text, and what the student learns of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from torch import Tensor

from qn_deploy.compression import TuneConfig

Tokenize = Callable[..., tuple[Tensor, Tensor]]
"""(texts, most tokens) -> ids int64 [N, T], mask int64 [N, T], 0 where a text has ended."""

BATCH, LONGEST = 32, 64  # texts; tokens
HIDDEN_WEIGHT = 0.3  # of each layer's hidden states, beside twice the angle of the sentence vectors
CONFIG = TuneConfig(lr=1e-2, scale_lr=5e-3, rest_lr=5e-3, warmup=0.03, bfloat16=True)


class Pieces:
    """Batches of text, in each pass cut anew: whole sentences, parts of one, and the ends of one with the beginning of another.

    Some have words of the vocabulary in place of their own, or hold nothing else: all embeddings share centroids, those of words that the
    text has never heard of too. Texts of about one length share a batch.
    """

    def __init__(self, sentences: list[str], vocabulary: list[str], tokenize: Tokenize, seed: int = 0) -> None:
        self.sentences, self.vocabulary, self.tokenize, self.random = sentences, vocabulary, tokenize, random.Random(seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        texts = sorted((self._piece(sentence.split()) for sentence in self.sentences), key=len)
        batches = [texts[first : first + BATCH] for first in range(0, len(texts), BATCH)]
        self.random.shuffle(batches)
        return (self.tokenize(batch, LONGEST) for batch in batches)

    def _piece(self, words: list[str]) -> str:
        kind = self.random.random()
        if kind < 0.15:
            words = self.random.choices(self.vocabulary, k=self.random.randint(3, 16))
        elif kind < 0.3:
            words = [self.random.choice(self.vocabulary) if self.random.random() < 0.3 else word for word in words[:24]]
        elif kind < 0.58:
            first = self.random.randrange(max(1, len(words) - 4))
            words = words[first : first + self.random.randint(4, 24)]
        elif kind < 0.65:
            words = words[-12:] + self.random.choice(self.sentences).split()[:12]
        return " ".join(words)


def learnt(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """2 (1 - cosine) of the sentence vectors, and the squared error of each layer's states over the teacher's square."""
    loss = 2 * (1 - (student[0] * teacher[0]).sum(1)).mean()
    for ours, theirs in zip(student[1:], teacher[1:], strict=True):
        loss = loss + HIDDEN_WEIGHT * (ours - theirs).square().sum() / theirs.square().sum()
    return loss
