"""What a report says, gathered from a build folder, the model that it was made of, and the ladder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, log2, prod
from pathlib import Path
from typing import Any

import torch

from qn_deploy.exporting.golden import read_vectors
from qn_deploy.exporting.manifest import GOLDEN, Manifest, read_manifest
from qn_deploy.graph.lifted import constants
from qn_deploy.program.program import SQNR, Program, Range
from qn_deploy.report.compressed import form_of
from qn_deploy.verification.judge import Check
from qn_deploy.verification.numerics import compare
from qn_deploy.weights.compressed import CompressedWeight, IntWeight

_ROWS = 40  # of a chart; the rest is summed up in one


@dataclass(frozen=True)
class Use:
    """How a table is used.

    Attributes:
        centroids: K of each of the codebooks.
        codebooks: G.
        share: of the centroids that codes point to.
        bits: the entropy of the codes, of log2(K) that they could have.
    """

    centroids: int
    codebooks: int
    share: float
    bits: float


@dataclass(frozen=True)
class Facts:
    """All that a report shows; what needs the model is empty without it.

    Attributes:
        title: of the page.
        manifest: of the build.
        layers: for each weight the bytes of its parts.
        kinds: the bytes of each kind of constants, in all.
        outputs: SQNR in dB of each file's simulated program by output, to the float model; infinite where they are equal.
        checks: of the ladder, None if it was not climbed.
        passed: whether all passed.
        ranges: of activations.
        uses: of the tables.
        frontier: (KB of weights, predicted SQNR in dB) of a budget's best choices.
        chosen: the one that was taken.
        gap: share of the loss that a better choice could save at most.
        losses: SQNR in dB of what each layer gives, to the float model, by its weight; in the graph's order.
        tuned: whether the program was tuned after that was noted.
        hashes: sha256 of each file.
    """

    title: str
    manifest: Manifest
    layers: dict[str, dict[str, int]]
    kinds: dict[str, int]
    outputs: dict[str, dict[str, float]]
    checks: tuple[Check, ...] | None
    passed: bool
    ranges: dict[str, Range] = field(default_factory=dict)
    uses: dict[str, Use] = field(default_factory=dict)
    frontier: tuple[tuple[float, float], ...] = ()
    chosen: tuple[float, float] | None = None
    gap: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    tuned: bool = False
    hashes: dict[str, str] = field(default_factory=dict)


def gather(folder: Path, program: Program | None, checks: tuple[Check, ...] | None) -> Facts:
    """The facts of a build.

    Args:
        folder: of the build.
        program: that was exported, for parts, ranges and tables; None leaves these out.
        checks: what the ladder found; None if it was not climbed.

    Raises:
        InputError: the folder holds no build, or a damaged one.
    """
    manifest = read_manifest(folder)
    vectors = read_vectors(folder, manifest)
    names = [entry.name for entry in manifest.outputs]
    outputs = {
        file: {
            name: compare(ours, theirs).sqnr_db
            for name, ours, theirs in zip(names, vectors.simulated[entry.exporter], vectors.floats, strict=True)
            if theirs.is_floating_point()
        }
        for file, entry in manifest.files.items()
    }
    hashes = {name: entry.sha256 for name, entry in manifest.files.items()} | {GOLDEN: manifest.golden_sha256}
    layers: dict[str, dict[str, int]] = {name: {entry.kind: entry.bytes} for name, entry in manifest.weights.items()}
    found = {} if program is None else program.weights
    layers |= {name: parts_of(weight) for name, weight in found.items()}
    whole = {name: sum(parts.values()) for name, parts in layers.items()}
    kinds: dict[str, int] = {}
    for parts in layers.values():
        for kind, size in parts.items():
            kinds[kind] = kinds.get(kind, 0) + size
    kinds["float"] = manifest.theoretical_bytes - sum(whole.values())
    if program is not None:  # the large float tensors have bars of their own
        left = {name: value.nbytes for name, value in constants(program.exported).values() if name not in found}
        layers |= {name: {"float": size} for name, size in left.items() if size > 0.01 * manifest.theoretical_bytes}
    stages = program.provenance if program else ()
    plan = next((entry for entry in stages if entry.get("stage") == "plan"), {})
    return Facts(
        title=folder.resolve().name if folder.resolve().name != "build" else folder.resolve().parent.name,
        manifest=manifest,
        layers=largest(layers),
        kinds=kinds,
        outputs=outputs,
        checks=checks,
        passed=checks is not None and all(check.passed is not False for check in checks),
        ranges=dict(list(program.ranges.items())[:_ROWS]) if program else {},
        uses={name: use_of(weight) for name, weight in found.items() if not isinstance(weight, IntWeight)},
        frontier=tuple((size / 1024, decibels) for size, decibels in plan.get("frontier", ()) if decibels is not None),
        chosen=(plan["bytes"] / 1024, plan["sqnr_db"]) if plan.get("sqnr_db") is not None else None,
        gap=plan.get("gap"),
        losses=layer_losses(stages),
        tuned=any(entry.get("stage") == "tune" for entry in stages[_noted(stages) + 1 :]),
        hashes=hashes,
    )


def layer_losses(stages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The SQNR in dB of each layer that the last stage noted which noted any; of many the lowest, in their order."""
    noted = stages[_noted(stages)][SQNR] if _noted(stages) >= 0 else {}
    numbers = {str(name): float(value) for name, value in noted.items() if isinstance(value, int | float)}
    lowest = sorted(numbers, key=numbers.__getitem__)[:_ROWS]
    return {name: value for name, value in numbers.items() if name in lowest}


def _noted(stages: Sequence[Mapping[str, Any]]) -> int:
    """The last stage that noted what each layer loses; -1 for none."""
    return max((index for index, entry in enumerate(stages) if isinstance(entry.get(SQNR), dict)), default=-1)


def parts_of(weight: CompressedWeight) -> dict[str, int]:
    """Bytes of the codes, centroids, integers and scales of a weight, as a file needs them."""
    scales = weight.scale.nbytes
    if isinstance(weight, IntWeight):
        return {f"int{weight.bits}": weight.nbytes - scales, "scales": scales}
    centroids = sum(table.centroids.numel() for table in weight.tables)
    return {"codes": weight.nbytes - centroids - scales, "centroids": centroids, "scales": scales}


def use_of(weight: CompressedWeight) -> Use:
    """How the codes of a table use its centroids."""
    assert not isinstance(weight, IntWeight)
    books, size, _ = weight.centroids.shape
    counts = torch.bincount(weight.rows.flatten().long(), minlength=books * size).reshape(books, size).double()
    shares = counts / counts.sum(1, keepdim=True)
    entropy = -(shares * shares.clamp_min(1e-300).log2()).sum(1).mean()
    return Use(size, books, float((counts > 0).double().mean()), float(entropy))


def largest(layers: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The largest layers in their order, and the sum of all others."""
    order = sorted(layers, key=lambda name: sum(layers[name].values()), reverse=True)
    shown, rest = set(order[:_ROWS]), order[_ROWS:]
    kept = {name: dict(parts) for name, parts in layers.items() if name in shown}
    if rest:
        total: dict[str, int] = {}
        for name in rest:
            for kind, size in layers[name].items():
                total[kind] = total.get(kind, 0) + size
        kept[f"{len(rest)} smaller ones"] = total
    return kept


def forms(manifest: Manifest) -> dict[str, tuple[int, int, int]]:
    """For each form the number of layers, weights and bytes."""
    found: dict[str, tuple[int, int, int]] = {}
    for entry in manifest.weights.values():
        layers, weights, size = found.get(form_of(entry), (0, 0, 0))
        found[form_of(entry)] = (layers + 1, weights + prod(entry.shape), size + entry.bytes)
    return dict(sorted(found.items()))


def decibels(value: float) -> str:
    """An SQNR for people."""
    return f"{value:.1f} dB" if isfinite(value) else "equal" if value > 0 else "no finite ratio"


def full_bits(use: Use) -> float:
    """Bits that codes would have if all centroids were used alike."""
    return log2(use.centroids) if use.centroids > 1 else 0.0
