"""What `qn-deploy compress` says of its result."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Group
from rich.text import Text

from qn_deploy.exporting.describe import describe_weights, float_bytes, theoretical_bytes
from qn_deploy.exporting.manifest import WeightEntry
from qn_deploy.program.program import Program
from qn_deploy.report.tables import as_text, new_table, size
from qn_deploy.verification.numerics import compare


@dataclass(frozen=True)
class Compressed:
    """A compressed program and the file that it was written to.

    Attributes:
        out: the file.
        bytes: its size.
        float_bytes: of all constants before compression.
        constant_bytes: of all constants now.
        recipe: its title.
        weights: each compressed weight.
        left: weights that have another form than the recipe asked for, with the reason.
        notes: of the capture.
        sqnr_db: of each output on the example inputs, against the float model; None where both are equal.
    """

    out: str
    bytes: int
    float_bytes: int
    constant_bytes: int
    recipe: str
    weights: dict[str, WeightEntry]
    left: dict[str, str]
    notes: tuple[str, ...]
    sqnr_db: dict[str, float | None]

    @classmethod
    def of(cls, program: Program, out: Path) -> Compressed:
        """From a program that was saved."""
        return cls(
            out=str(out),
            bytes=out.stat().st_size,
            float_bytes=float_bytes(program),
            constant_bytes=theoretical_bytes(program),
            recipe=program.recipe.title if program.recipe else "none",
            weights=describe_weights(program),
            left=program.left,
            notes=program.notes,
            sqnr_db=output_sqnr(program),
        )

    def to_json(self) -> str:
        """For machines."""
        weights = {
            name: {
                "form": form_of(entry),
                "shape": entry.shape,
                "bytes": entry.bytes,
                "block_size": entry.block_size,
                "codebooks": entry.codebooks,
                "centroids": entry.centroids,
            }
            for name, entry in self.weights.items()
        }
        return json.dumps({**vars(self), "weights": weights}, indent=1)

    def __rich__(self) -> Group:
        table = new_table("form", "layers", "weights", "bytes", "bits a weight", title=f"{self.out}: recipe {self.recipe}")
        forms: dict[str, list[WeightEntry]] = defaultdict(list)
        for entry in self.weights.values():
            forms[form_of(entry)].append(entry)
        for form, entries in sorted(forms.items()):
            numbers, held = sum(count_of(entry) for entry in entries), sum(entry.bytes for entry in entries)
            table.add_row(form, str(len(entries)), f"{numbers:,}", size(held), f"{8 * held / numbers:.2f}")
        times = self.float_bytes / self.constant_bytes
        lines = [
            f"constants {size(self.constant_bytes)}, float {size(self.float_bytes)}: {times:.1f} x smaller",
            f"the file {size(self.bytes)}, with the graph and the example inputs",
            *(f"output {name}: {_said(value)}" for name, value in self.sqnr_db.items()),
            *(f"{name}: {reason}" for name, reason in self.left.items()),
            *(f"note: {note}" for note in self.notes),
        ]
        return Group(table, *map(Text, lines))

    def __str__(self) -> str:
        return as_text(self)


def output_sqnr(program: Program) -> dict[str, float | None]:
    """SQNR in dB of each output on the golden inputs, against the float model; None where they are equal or not numbers."""
    with torch.no_grad():
        outputs = program.exported.module(check_guards=False)(*program.golden.inputs)
    pairs = zip(program.outputs, outputs, program.golden.outputs, strict=True)
    return {
        name: compare(ours, theirs).sqnr_db if ours.is_floating_point() and not torch.equal(ours, theirs) else None
        for name, ours, theirs in pairs
    }


def form_of(entry: WeightEntry) -> str:
    """A form in words: "table d=9 K=256", "int8"."""
    if entry.kind != "table":
        return entry.kind
    return f"table d={entry.block_size} K={entry.centroids}" + (f"+{entry.residual}" if entry.residual else "")


def count_of(entry: WeightEntry) -> int:
    """How many weights it stands for."""
    return int(torch.Size(entry.shape).numel())


def _said(value: float | None) -> str:
    return "equal to the float model's on the examples" if value is None else f"SQNR {value:.1f} dB to the float model on the examples"
