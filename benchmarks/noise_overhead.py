"""What Quant-Noise costs a training step: a small Transformer, with noise and without, in turn; time, and tensors alive at the peak."""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from paired import paired
from rows import Row, at_most, chosen, finish, json_option, seed_option
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qn_deploy import noise
from qn_deploy.recipe import Int4, Int8, Recipe, Rule, Table

TITLE = "Overhead of Quant-Noise"
WORDS, WIDTH, LAYERS, LENGTH = 4_000, 256, 8, 64
P, BLOCK = 0.1, 8
MAX_RATIO = {"zero blocks": 1.02, "mean blocks": 1.02, "exact blocks": 1.10, "int8": 1.05}  # of a step with noise to one without

TABLES = Recipe((Rule(Table(BLOCK)),))
KINDS: dict[str, tuple[Recipe, noise.Options]] = {
    "zero blocks": (TABLES, noise.Options()),
    "mean blocks": (TABLES, noise.Options("mean")),
    "exact blocks": (TABLES, noise.Options("exact")),
    "int8 over zero blocks": (TABLES, noise.Options(over=Int8())),
    "int8": (Recipe((Rule(Int8()),)), noise.Options()),
    "int8 with zero point": (Recipe((Rule(Int8()),)), noise.Options(grid="channel")),
    "int4": (Recipe((Rule(Int4()),)), noise.Options()),
}


@click.command(help=__doc__)
@click.option("--tokens", default=512, show_default=True, help=f"In a step, a multiple of {LENGTH}.")
@click.option("--samples", default=40, show_default=True, help="Steps of each, of which the first quarter warms up.")
@click.option("--threads", default=1, show_default=True)
@seed_option
@json_option
def main(tokens: int, samples: int, threads: int, seed: int, json_file: Path | None) -> None:
    settings = chosen()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = Words()
    text = torch.randint(WORDS, (tokens // LENGTH, LENGTH))
    weights = sum(weight.numel() for weight in model.parameters())
    plain = _step(copy.deepcopy(model), text)
    plain_peak = peak_bytes(plain)
    rows = [Row("parameters", weights, ""), Row("one mask: a byte for each parameter", weights, "bytes")]
    for kind, (recipe, options) in KINDS.items():
        click.echo(f"{kind} ...", err=True)
        noised = copy.deepcopy(model)
        noise.attach(noised, recipe, P, options)
        step = _step(noised, text)
        pair, extra = paired(step, plain, samples), peak_bytes(step) - plain_peak
        time, memory = f"{kind}: step with noise / without", f"{kind}: more tensors at the peak"
        rows.append(at_most(time, pair.ratio, "x", MAX_RATIO[kind]) if kind in MAX_RATIO else Row(time, pair.ratio, "x"))
        # That of memory is the paper's proxy's; what the others cost is told.
        rows.append(at_most(memory, extra, "bytes", weights) if kind == "zero blocks" else Row(memory, extra, "bytes"))
        rows.append(Row(f"{kind}: step without noise, beside it", 1e3 * pair.second, "ms"))
    rows.append(Row("tensors at the peak without noise", plain_peak, "bytes"))
    sys.exit(finish(TITLE, rows, settings, json_file))


class Words(nn.Module):
    """A language model of 7.3 million parameters, its output layer tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True) for _ in range(LAYERS)
        )
        self.out = nn.Linear(WIDTH, WORDS, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores [N, length, WORDS]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.out(x)
        return scores


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operators made and that are still alive.

    Attributes:
        peak: the most there were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and counts what it made."""
        given = {tensor.untyped_storage().data_ptr() for tensor in torch.utils._pytree.tree_leaves((args, kwargs)) if _is(tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in filter(_is, torch.utils._pytree.tree_leaves(result)):
            storage = tensor.untyped_storage()
            if (address := storage.data_ptr()) not in self._known | given:
                self._known.add(address)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._gone, address, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _gone(self, address: int, count: int) -> None:
        self._known.discard(address)
        self.live -= count


def peak_bytes(step: Callable[[], object]) -> int:
    """Bytes of the tensors that one training step makes, at their peak; parameters, gradients and optimizer state were there before."""
    step()
    with Live() as live:
        step()
    return live.peak


def _step(model: nn.Module, text: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        scores = model(text[:, :-1])
        optimizer.zero_grad(set_to_none=False)  # so that gradients, the same in both, stay out of the count
        nn.functional.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def _is(value: object) -> bool:
    return isinstance(value, Tensor)


if __name__ == "__main__":
    main()
