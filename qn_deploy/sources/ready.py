"""A program as `export` takes it: one that comes straight from training is compressed on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from qn_deploy.compression.calibrate import calibrate
from qn_deploy.compression.progress import Tell
from qn_deploy.compression.request import Request, fulfil
from qn_deploy.program.program import Batch, Program


def ready(
    source: str,
    program: Program,
    batches: Sequence[Batch] | None,
    stage: Callable[[str], None] = lambda name: None,
    progress: Tell | None = None,
) -> tuple[Program, str]:
    """A program to export, and a note of what was done to it on the way.

    A model.pt is exported as it is, float ones too, with the ranges of the batches; anything else is compressed by the recipe that its
    operators ask for.

    Args:
        source: where it comes from, as the user wrote it.
        program: as it was opened.
        batches: for calibration, None if there are none.
        stage: called with the name of each stage.
        progress: called after each weight.
    """
    if program.weights or program.recipe or (Path(source).exists() and Path(source).suffix != ".pt2"):
        if batches is None:
            return program, ""
        stage("calibrating")
        return calibrate(program, batches), ""
    small = fulfil(program, Request(), batches, stage=stage, progress=progress)
    how = "with error feedback" if batches else "without data; --calibrate loses far less"
    title = small.recipe.title if small.recipe else ""
    note = f"{source} was compressed on the way, by the recipe {title}, {how}. To choose: qn-deploy compress {source}"
    return replace(small, notes=(*small.notes, note)), note
