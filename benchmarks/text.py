"""Labelled sentences from files on disk, a small Transformer that reads them, and plain training of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, UNKNOWN = 0, 1
BATCH = 64
LONGEST = 64  # words; the rest of a sentence is cut off


@dataclass(frozen=True)
class Sentences:
    """Sentences as words' numbers: ids int64 [N, T], PAD after each sentence's end; labels int64 [N]."""

    ids: Tensor
    labels: Tensor

    def accuracy(self, model: Callable[[Tensor], Tensor]) -> float:
        """Share of right answers, in %, of a model in eval mode."""
        with torch.no_grad():
            answers = torch.cat([model(ids).argmax(1) for ids in self.ids.split(256)])
        return 100 * float((answers == self.labels).double().mean())

    def batches(self, size: int, seed: int) -> list[Sentences]:
        """Batches of sentences of about one length, each cut to its longest; batches and sentences in a random order."""
        generator = torch.Generator().manual_seed(seed)
        words = (self.ids != PAD).sum(1)
        order = torch.argsort(words + 4 * torch.rand(len(words), generator=generator))
        chosen = order.split(size)
        return [
            Sentences(self.ids[chosen[i]][:, : int(words[chosen[i]].max())], self.labels[chosen[i]])
            for i in torch.randperm(len(chosen), generator=generator).tolist()
        ]


def lines(file: Path) -> list[tuple[str, int]]:
    """(sentence, label) of a file with a sentence, a tab and a label a line."""
    pairs = (line.rsplit("\t", 1) for line in file.read_text().splitlines())
    return [(sentence, int(label)) for sentence, label in pairs]


def vocabulary(sentences: Iterable[str]) -> dict[str, int]:
    """A number for each word, in alphabetical order, after PAD and UNKNOWN."""
    words = sorted({word for sentence in sentences for word in sentence.split()})
    return {word: number for number, word in enumerate(words, UNKNOWN + 1)}


def encode(labelled: list[tuple[str, int]], numbers: dict[str, int]) -> Sentences:
    """Sentences as the numbers of their words."""
    ids = torch.full((len(labelled), LONGEST), PAD)
    for row, (sentence, _) in zip(ids, labelled, strict=True):
        words = [numbers.get(word, UNKNOWN) for word in sentence.split()[:LONGEST]]
        row[: len(words)] = torch.tensor(words)
    return Sentences(ids, torch.tensor([label for _, label in labelled]))


class Layer(nn.Module):
    """A Transformer layer, norms first: self-attention that does not see PAD, then a feed-forward network of 4 times the width."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn_in, self.ffn_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout, self.heads = nn.Dropout(dropout), heads

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """[N, T, width], bool [N, T] True for words -> [N, T, width]."""
        q, k, v = self.attention_in(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        x = x + self.dropout(self.attention_out(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn_out(self.dropout(F.relu(self.ffn_in(self.ffn_norm(x))))))


class TextClassifier(nn.Module):
    """Word and position embeddings, Transformer layers, the mean over the words, a linear classifier."""

    def __init__(self, words: int, width: int = 128, heads: int = 4, layers: int = 2, classes: int = 2, dropout: float = 0.3) -> None:
        super().__init__()
        self.word_embedding, self.position_embedding = nn.Embedding(words, width), nn.Embedding(LONGEST, width)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.norm, self.classifier, self.dropout = nn.LayerNorm(width), nn.Linear(width, classes), nn.Dropout(dropout)
        for embedding in (self.word_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [N, T], PAD at the ends of rows -> logits [N, classes]."""
        real = ids != PAD
        x = self.dropout(self.word_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1])))
        for layer in self.layers:
            x = layer(x, real)
        x = self.norm(x) * real[..., None]
        logits: Tensor = self.classifier(self.dropout(x.sum(1) / real.sum(1, keepdim=True)))
        return logits


def fit(model: nn.Module, train: Sentences, dev: Sentences, epochs: int, lr: float, seed: int, before: Callable[[], object]) -> None:
    """AdamW on labelled sentences, in place; the model keeps the weights of the epoch that is best on dev.

    `before` is called before each epoch.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    best, kept = -1.0, model.state_dict()
    for epoch in range(epochs):
        before()
        model.train()
        for batch in train.batches(BATCH, 100 * seed + epoch):
            loss = F.cross_entropy(model(batch.ids), batch.labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found = dev.accuracy(model.eval())
        if found > best:
            best, kept = found, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
