"""A decoder with its cache as inputs and outputs writes on both runtimes, token by token: python examples/decoder.py FOLDER.

The weights are random. Train your own on whole sequences, as ever; only the step is captured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qn_deploy
from qn_deploy import recipe
from qn_deploy.exporters.to_executorch.runtime import load_program

TOKENS, WIDTH, LENGTH = 256, 64, 32  # LENGTH: slots of the cache, the most tokens that a text can have

Tensors = tuple[Tensor, ...]


# --8<-- [start:step]
class Step(nn.Module):
    """One token of each text -> the logits of the next, and the cache with this token in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, TOKENS)

    def forward(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensors:
        """int64 [B, 1], int64 [B], float32 [B, LENGTH, WIDTH] twice -> logits [B, TOKENS], keys, values."""
        x = self.embedding(token) + self.positions(position)[:, None]
        slots = torch.arange(LENGTH)
        here, seen = (slots == position[:, None])[:, :, None], (slots <= position[:, None])[:, None]
        keys = torch.where(here, self.key(x), keys)  # a new tensor: a program changes none of its inputs
        values = torch.where(here, self.value(x), values)
        x = x + self.out(F.scaled_dot_product_attention(self.query(x), keys, values, attn_mask=seen))
        return self.head(self.norm(x))[:, 0], keys, values


# --8<-- [end:step]


# --8<-- [start:loop]
def write(step: Callable[[Tensors], Tensors], prompt: list[int], length: int) -> list[int]:
    """The prompt, and the likeliest tokens after it; each step gets the cache that the one before gave."""
    tokens, cache = list(prompt), [torch.zeros(1, LENGTH, WIDTH)] * 2
    for position in range(length - 1):
        logits, *cache = step((torch.tensor([[tokens[position]]]), torch.tensor([position]), *cache))
        if position + 1 == len(tokens):
            tokens.append(int(logits.argmax()))
    return tokens


def on_onnxruntime(file: Path) -> Callable[[Tensors], Tensors]:
    """A model.onnx that stays loaded."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]  # in the order of the step's arguments

    def step(inputs: Tensors) -> Tensors:
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(value) for value in session.run(None, feeds))

    return step


def on_executorch(file: Path) -> Callable[[Tensors], Tensors]:
    """A model.pte that stays loaded."""
    return load_program(file).run


# --8<-- [end:loop]


def real_steps(model: Step, texts: int, seed: int) -> list[Tensors]:
    """Steps as they come when the model reads texts: each with the cache that the ones before it left."""
    draw = torch.Generator().manual_seed(seed)
    cache, steps = [torch.zeros(texts, LENGTH, WIDTH)] * 2, []
    for position in range(LENGTH):
        steps.append((torch.randint(TOKENS, (texts, 1), generator=draw), torch.full((texts,), position), *cache))
        with torch.no_grad():
            _, *cache = model(*steps[-1])
    return steps


def main() -> None:
    """The whole road."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = Step().eval()
    steps = real_steps(model, texts=16, seed=0)
    program = qn_deploy.capture(model, tuple(value[:2] for value in steps[LENGTH // 2]))  # the batch stays open
    small = qn_deploy.compress(program, recipe.transformer(), steps)
    qn_deploy.save(small, folder / "model.pt")
    print(qn_deploy.export(small, folder / "build", qn_deploy.ExportConfig(activations="dynamic")))
    report = qn_deploy.verify(folder / "build")
    print(report)

    prompt = [72, 101, 108, 108, 111]
    for runtime, step in (
        ("onnxruntime", on_onnxruntime(folder / "build/model.onnx")),
        ("ExecuTorch", on_executorch(folder / "build/model.pte")),
    ):
        print(runtime, write(step, prompt, 16))
    sys.exit(not report.passed)


if __name__ == "__main__":
    main()
