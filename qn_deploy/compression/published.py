"""Tables that came with a model: its codes stay as they were published, and its centroids are rounded to int8."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, log10
from typing import Literal

import torch
from torch import Tensor

from qn_deploy.compression.compress import CompressConfig, coded
from qn_deploy.compression.targets import Target, targets
from qn_deploy.errors import CompressionError
from qn_deploy.graph.dynamic_shapes import export_like
from qn_deploy.graph.lifted import unlifted, with_constants
from qn_deploy.graph.signs import has_signs, move_signs
from qn_deploy.program.program import Program
from qn_deploy.recipe import Float, Int8, Recipe, Rule, Table
from qn_deploy.weights.compressed import INT8_MAX, CompressedWeight, PQWeight, codes_dtype, to_int8
from qn_deploy.weights.grid import live_rows

STAGE = "import"  # in the provenance
Rest = Literal["int8", "float"]
"""What a weight becomes that was published without a table."""
_CLIPPINGS = torch.linspace(1.0, 0.5, 51).tolist()  # of the largest centroid, where the grid of int8 may end
_ROUNDING = 1e-5  # of a row's largest weight: what float32 makes of a product
_LEAST = 1e-6  # of the largest factor: one that a dead channel gets, so that its scale is an ordinary number
_CHANGED = "int8: the graph computes with other values than those of its table, and not with its rows times a factor"
_UNREAD = "its table is not kept: the graph reads no weight of this name, but computes another one of it or leaves it out"


@dataclass(frozen=True)
class Blocks:
    """A weight as it was published: weight.reshape(out, -1)[o, j*d:(j+1)*d] == centroids[codes[o, j]].

    Attributes:
        codes: int64 [out, B].
        centroids: float32 [K, d].
        shape: the weight's own shape, [out, ...].
    """

    codes: Tensor
    centroids: Tensor
    shape: tuple[int, ...]

    def decoded(self) -> Tensor:
        """The float32 weight of shape `shape`, to the bit."""
        return self.centroids[self.codes].reshape(self.shape)

    def counts(self, weights: Tensor) -> Tensor:
        """float64 [K]: the sum of a number of each row, [out], over the blocks that read each centroid."""
        each = weights.double()[:, None].expand(self.codes.shape)
        return torch.zeros(len(self.centroids), dtype=torch.float64).index_add_(0, self.codes.flatten(), each.flatten())


def with_tables(program: Program, published: Mapping[str, Blocks], rest: Rest = "int8") -> Program:
    """A float program whose published weights are tables with the published codes.

    A weight whose rows the graph has multiplied, as a folded BatchNorm does, keeps its codes: the factors end in the scales, and where some
    are negative their signs are multiplied to what the layer gives. The centroids are rounded to the int8 grid that loses least over the
    blocks that read them; what that costs stands in the notes, and by weight in the provenance.

    Args:
        program: of the model with the decoded weights; float.
        published: by the name of the parameter.
        rest: what all other weights become.

    Raises:
        CompressionError: a weight holds NaN or infinity; the message names it.
    """
    recipe = _recipe(published, rest)
    found, left = targets(program, recipe)
    tables = {target.name: published[name] for target in found if (name := _published_name(target.name)) in published}
    factors = {target.name: _factors(target, tables[target.name]) for target in found if target.name in tables}
    negative = {name: torch.where(each < 0, -1.0, 1.0) for name, each in factors.items() if each is not None and bool((each < 0).any())}
    if negative:
        program = _signed(program, negative)
    values: dict[str, CompressedWeight] = {}
    rounding: dict[str, float] = {}
    for target in found:
        factor = factors.get(target.name)
        try:
            if factor is None:
                values[target.name], _ = coded(replace(target, method=Int8()), target.weight.value, CompressConfig())
            else:
                values[target.name], rounding[target.name] = rounded(tables[target.name], factor.abs())
        except CompressionError as error:
            raise CompressionError(f"{target.name}: {error}") from None
        if factor is None and target.name in tables:
            left[target.name] = _CHANGED
    unread = {name: _UNREAD for name in published if name not in values and name not in left}
    return replace(
        program,
        exported=with_constants(program.exported, {name: weight.dequantize() for name, weight in values.items()}),
        weights=values,
        recipe=recipe,
        left={**program.left, **left, **unread},
        notes=(*program.notes, *_notes(rounding, negative)),
        provenance=(*program.provenance, {"stage": STAGE, "config": {"rest": rest}, "rounding_db": _lossy(rounding)}),
    )


def rounded(blocks: Blocks, factor: Tensor) -> tuple[PQWeight, float]:
    """A table with the same codes and int8 centroids, and the SQNR in dB of its weights to the published ones.

    Args:
        blocks: as published.
        factor: float32 [out], what each row is multiplied by; positive. Where all are equal there is one scale: rows share the centroids,
            and so their grid, and a scale for each row would gain nothing.
    """
    counts = blocks.counts(factor.square())[:, None]
    centroids = blocks.centroids.double()
    step, lost = _step(centroids, counts)
    signal = float((counts * centroids.square()).sum())
    scale = (step * factor.double()).float()
    weight = PQWeight(
        codes=blocks.codes.to(codes_dtype(len(centroids))),
        centroids=to_int8(centroids / step).to(torch.int8)[None],
        scale=scale[:1].clone() if bool((factor == factor[0]).all()) else scale,
        shape=blocks.shape,
    )
    return weight, 10 * log10(signal / lost) if lost and signal else inf


def _step(centroids: Tensor, counts: Tensor) -> tuple[float, float]:
    """The step of the int8 grid that loses the least squared error over all blocks, and that error."""
    size = centroids.abs().max()
    largest = float(size) if bool(live_rows(size[None])) else 1.0  # zeros, or next to it
    steps = [largest * clipping / INT8_MAX for clipping in _CLIPPINGS]
    errors = [float((counts * (to_int8(centroids / step) * step - centroids).square()).sum()) for step in steps]
    best = min(range(len(steps)), key=errors.__getitem__)
    return steps[best], errors[best]


def _published_name(name: str) -> str:
    """The name without what the graph adds for a second reader that has a factor of its own, as one layer with two norms: `weight_1`."""
    return re.sub(r"_\d+$", "", name)


def _factors(target: Target, blocks: Blocks) -> Tensor | None:
    """float32 [out], what the graph multiplied each row of a published weight by; None if it holds anything else.

    Where an operator takes one scale for all rows, and where signs can't be moved behind it, the factors have to be equal and positive.
    """
    now, then = target.weight.value, blocks.decoded()
    if now.shape != then.shape or not bool(torch.isfinite(now).all()):
        return None
    if torch.equal(now, then):
        return torch.ones(len(now))
    now, then = now.flatten(1).double(), then.flatten(1).double()
    power = then.square().sum(1)
    live = power > 0
    if not bool(live.any()):
        return None
    factor = (now * then).sum(1) / power
    factor = torch.where(live, factor, factor[live][0])  # rows of zeros stay so with any
    if bool(((now - factor[:, None] * then).abs() > _ROUNDING * now.abs().amax(1, keepdim=True)).any()):
        return None
    if float(factor.min()) > 0 and float(factor.max() / factor.min()) < 1 + _ROUNDING:
        return factor.mean().float().expand(len(factor))
    sizes = factor.abs()
    if not target.per_channel or not bool(live_rows(sizes).any()) or not all(has_signs(reader) for reader in target.weight.readers):
        return None
    return torch.where(live_rows(sizes), factor, _LEAST * sizes.max()).float()


def _signed(program: Program, negative: Mapping[str, Tensor]) -> Program:
    graph_module = unlifted(program.exported)
    move_signs(graph_module, negative)
    return replace(program, exported=export_like(graph_module, program.exported, program.golden.inputs))


def _recipe(published: Mapping[str, Blocks], rest: Rest) -> Recipe:
    rules = []
    for name, blocks in published.items():
        method = Table(blocks.centroids.shape[1], max(2, len(blocks.centroids)), codebooks=1)
        rules += [Rule(method, name=name), Rule(method, name=f"{name}_[0-9]*")]
    return Recipe((*rules, Rule(Int8() if rest == "int8" else Float())), title="as published")


def _lossy(rounding: Mapping[str, float]) -> dict[str, float]:
    """Without the weights that lose nothing, for which JSON has no number."""
    return {name: decibels for name, decibels in rounding.items() if decibels < inf}


def _notes(rounding: Mapping[str, float], negative: Mapping[str, Tensor]) -> list[str]:
    notes = []
    if rounding:
        worst = min(rounding, key=rounding.__getitem__)
        least = f"leaves each weight an SQNR of at least {rounding[worst]:.1f} dB ({worst})" if _lossy(rounding) else "loses nothing"
        notes.append(f"{len(rounding)} tables with the codes of the checkpoint; rounding their centroids to int8 {least}")
    if negative:
        turned = sum(int((sign < 0).sum()) for sign in negative.values())
        notes.append(f"{turned} channels behind {len(negative)} tables are multiplied by -1 after their layer, as their BatchNorm does")
    return notes
