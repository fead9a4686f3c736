from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qn_deploy.compression.auto import auto_recipe
from qn_deploy.compression.targets import targets
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int8, Method, Table


def methods(program: Program) -> dict[str, Method]:
    found, _ = targets(program, auto_recipe(program))
    return {target.name: target.method for target in found}


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 5, groups=8), nn.Conv2d(8, 16, 1)
        self.d, self.e, self.f = nn.Conv2d(16, 16, (1, 7)), nn.Conv2d(16, 16, 7, padding=3), nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.c(self.b(self.a(image).relu()))
        return self.f(self.e(self.d(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_convolutions_share_a_code_for_each_kernel_and_the_first_is_int8() -> None:
    assert methods(capture(Convolutions(), (torch.randn(2, 3, 20, 20),))) == {
        "a.weight": Int8(),
        "b.weight": Table(25),
        "c.weight": Table(4),
        "d.weight": Table(7),
        "e.weight": Int8(),
        "f.weight": Table(4),
    }


class Attention(nn.Module):
    """Names say nothing here."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.words, self.fused = nn.Embedding(20, 16), fused
        self.one, self.two, self.three, self.four, self.five = (nn.Linear(16, 16) for _ in range(5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        q, k, v = (layer(x).unflatten(2, (2, 8)).transpose(1, 2) for layer in (self.one, self.two, self.three))
        mixed = F.scaled_dot_product_attention(q, k, v) if self.fused else ((q * 8**-0.5) @ k.transpose(2, 3)).softmax(3) @ v
        return self.five(self.four(mixed.transpose(1, 2).flatten(2)).relu())  # type: ignore[no-any-return]


def test_what_meets_in_attention_goes_by_4_and_the_rest_by_8() -> None:
    for fused in (True, False):
        found = methods(capture(Attention(fused), (torch.zeros(2, 5, dtype=torch.int64),)))
        meeting = {f"{name}.weight": Table(4) for name in ("one", "two", "three")}
        assert found == {"words.weight": Table(8), **meeting, "four.weight": Table(8), "five.weight": Table(8)}
