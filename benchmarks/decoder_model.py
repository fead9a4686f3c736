"""A small decoder as Llama is built: it reads whole sequences to learn, and single tokens, beside a cache of fixed length, to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        tokens: how many there are.
        width: of the residual stream.
        layers: how many.
        heads: of queries.
        groups: of keys and values; each serves `heads / groups` heads.
        hidden: of the gated feed-forward network.
        length: most positions of a text: the slots of the cache.
        tied: the embedding is the head's weight as well.
    """

    tokens: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 4
    groups: int = 2
    hidden: int = 384
    length: int = 128
    tied: bool = True


class Attention(nn.Module):
    """Queries in groups over rotated keys (Ainslie et al. 2023, Su et al. 2021)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.groups, self.size = shape.groups, shape.width // shape.heads
        self.query, self.out = (nn.Linear(shape.width, shape.width, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(shape.width, shape.groups * self.size, bias=False) for _ in range(2))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, width] -> queries [B, G, R, T, D] of the R heads of each group, keys and values [B, G, T, D]."""
        query, key, value = (
            layer(x).unflatten(2, (self.groups, -1, self.size)).permute(0, 2, 3, 1, 4) for layer in (self.query, self.key, self.value)
        )
        return rotated(query, cos, sin), rotated(key, cos, sin).squeeze(2), value.squeeze(2)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Queries [B, G, R, T, D] over keys and values [B, G, S, D], where bool [B or 1, 1, T, S] is True -> [B, T, width]."""
        heads = query.shape[2]
        # The heads of a group are further rows that look at the same keys: nothing is repeated.
        found = F.scaled_dot_product_attention(query.flatten(2, 3), keys, values, attn_mask=seen.repeat(1, 1, heads, 1))
        mixed: Tensor = self.out(found.unflatten(2, (heads, -1)).permute(0, 3, 1, 2, 4).flatten(2))
        return mixed


class Layer(nn.Module):
    """Attention and a gated feed-forward network, norms first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(shape.width, eps=1e-5), nn.RMSNorm(shape.width, eps=1e-5)
        self.attention = Attention(shape)
        self.gate, self.up = nn.Linear(shape.width, shape.hidden, bias=False), nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def feed_forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width], the residual added."""
        y = self.ffn_norm(x)
        moved: Tensor = self.down(F.silu(self.gate(y)) * self.up(y))
        return x + moved


class Decoder(nn.Module):
    """Tokens -> logits of the next ones. `forward` reads one token a text, `read` whole texts."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.tokens, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm, self.head = nn.RMSNorm(shape.width, eps=1e-5), nn.Linear(shape.width, shape.tokens, bias=False)
        nn.init.normal_(self.embedding.weight, std=shape.width**-0.5)
        if shape.tied:
            self.head.weight = self.embedding.weight
        half = shape.width // shape.heads // 2
        angles = torch.arange(shape.length)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, token: Tensor, position: Tensor, cache: Sequence[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """One step.

        Args:
            token: int64 [B, 1].
            position: int64 [B], of the token in its text; below `length`.
            cache: float32 [B, G, length, D]: keys and values of the first layer, of the second, and so on. What lies at `position` and
                after it does not matter.

        Returns:
            logits [B, tokens], and the cache with this token's keys and values at its position.
        """
        slots = torch.arange(self.shape.length)
        here = (slots == position[:, None])[:, None, :, None]
        seen = (slots <= position[:, None])[:, None, None, :]
        cos, sin = (table[position][:, None, None, None] for table in (self.cos, self.sin))
        x = self.embedding(token)
        updated = []
        for layer, keys, values in zip(self.layers, cache[::2], cache[1::2], strict=True):
            query, key, value = layer.attention.project(layer.attention_norm(x), cos, sin)
            keys, values = torch.where(here, key, keys), torch.where(here, value, values)
            updated += [keys, values]
            x = layer.feed_forward(x + layer.attention.attend(query, keys, values, seen))
        return {"logits": self.head(self.norm(x))[:, 0], "cache": updated}

    def read(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """int64 [B, T] -> logits [B, T, tokens] of what follows each, and the cache [B, G, T, D] that it leaves."""
        length = tokens.shape[1]
        seen, cos, sin = torch.ones(length, length, dtype=torch.bool).tril()[None, None], self.cos[:length], self.sin[:length]
        x = self.embedding(tokens)
        cache = []
        for layer in self.layers:
            query, key, value = layer.attention.project(layer.attention_norm(x), cos, sin)
            cache += [key, value]
            x = layer.feed_forward(x + layer.attention.attend(query, key, value, seen))
        return self.head(self.norm(x)), cache

    def empty(self, texts: int) -> tuple[Tensor, ...]:
        """The cache of so many texts that have not begun."""
        return tuple(
            torch.zeros(texts, self.shape.groups, self.shape.length, self.shape.width // self.shape.heads)
            for _ in range(2 * self.shape.layers)
        )


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[..., T, D] with the halves of each vector turned by its position's angles, cos and sin [..., T, D]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
