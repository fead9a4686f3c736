"""The ranges of a program's activations, found by one walk of a few batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

from qn_deploy.compression.ranges import Ranges
from qn_deploy.configs import to_dict
from qn_deploy.graph.walk import Walk
from qn_deploy.program.batches import as_batches
from qn_deploy.program.program import Program


def calibrate(program: Program, batches: Iterable[Any]) -> Program:
    """The same program with the ranges that its activations have over these inputs, for static int8.

    Args:
        program: float or compressed; not changed.
        batches: a few hundred samples in all, as those that it will see. Each is a tuple with one tensor for each input, or a dict by the
            inputs' names. They are not kept.

    Raises:
        InputError: there are no batches, or one does not fit; the message says which.
    """
    given = as_batches(program, batches)
    ranges = Ranges(len(given))
    walk = Walk(program.exported, given, see=ranges.see)
    [last] = program.exported.graph.find_nodes(op="output")
    walk.until(last)
    return replace(program, ranges=ranges.found(), provenance=(*program.provenance, {"stage": "calibrate", "config": {}}))


def recalibrated(program: Program, batches: Iterable[Any], count: int, stage: str, config: Any) -> Program:
    """A program that has learnt, with new ranges from the first `count` batches (none if 0), and its stage in its provenance.

    Args:
        program: whose ranges are out of date.
        batches: gone through once more.
        count: how many of them.
        stage: the stage's name.
        config: the stage's configuration, a dataclass.
    """
    few = list(islice(batches, count))
    ranges = calibrate(program, few).ranges if few else {}
    return replace(program, ranges=ranges, provenance=(*program.provenance, {"stage": stage, "config": to_dict(config)}))
