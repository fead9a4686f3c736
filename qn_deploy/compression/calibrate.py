"""The ranges of a program's activations, and what its layers lose, found by one walk of a few batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from qn_deploy.compression.losses import Losses, entry_of
from qn_deploy.compression.ranges import Ranges
from qn_deploy.graph.lifted import constants, with_constants
from qn_deploy.graph.sites import weights
from qn_deploy.graph.walk import Walk
from qn_deploy.program.batches import as_batches
from qn_deploy.program.program import SQNR, Program, Range


def calibrate(program: Program, batches: Iterable[Any]) -> Program:
    """The same program with the ranges that its activations have over these inputs, for static int8.

    Args:
        program: float or compressed; not changed.
        batches: a few hundred samples in all, as those that it will see. Each is a tuple with one tensor for each input, or a dict by the
            inputs' names. They are not kept.

    Raises:
        InputError: there are no batches, or one does not fit; the message says which.
    """
    ranges, _ = _walked(program, program, list(batches))
    return replace(program, ranges=ranges, provenance=(*program.provenance, {"stage": "calibrate", "config": {}}))


def recalibrated(program: Program, whole: Program, batches: Iterable[Any], count: int, stage: str, config: Any) -> Program:
    """A program that has learnt, with new ranges from the first `count` batches (none if 0), and its stage in its provenance.

    The stage notes what each layer loses, in place of what an earlier one has noted.

    Args:
        program: whose ranges are out of date.
        whole: the float program that it was made of.
        batches: gone through once more.
        count: how many of them.
        stage: the stage's name.
        config: the stage's configuration, a dataclass.
    """
    few = list(islice(batches, count))
    ranges, losses = _walked(program, whole, few) if few else ({}, {})
    before = [{key: value for key, value in entry.items() if not losses or not _is_of_layers(key, value)} for entry in program.provenance]
    return replace(program, ranges=ranges, provenance=(*before, entry_of(stage, config, losses)))


def _walked(program: Program, whole: Program, batches: Sequence[Any]) -> tuple[dict[str, Range], dict[str, float]]:
    """The ranges of a program's activations, and what its layers lose beside those of a float program of the same graph."""
    given = as_batches(program, batches)
    ranges, losses = Ranges(len(given)), Losses(weight for weight in weights(program.exported) if weight.name in program.weights)
    ours, theirs = (dict(constants(each.exported).values()) for each in (program, whole))
    if not alike(program, whole):
        theirs = ours
    walk = Walk(with_constants(program.exported, theirs), given, see=ranges.see, differ=losses.see)
    for node, (name, value) in constants(program.exported).items():
        if value is not theirs[name] and not torch.equal(value, theirs[name]):
            walk.replace(node, value)
    [last] = program.exported.graph.find_nodes(op="output")
    walk.until(last)
    return ranges.found(), losses.found()


def alike(program: Program, whole: Program) -> bool:
    """True if both have one graph, and differ in the values of its constants at most; a teacher may be another network."""
    graphs = [[(node.op, node.target) for node in each.exported.graph.nodes] for each in (program, whole)]
    held = [{name: (value.shape, value.dtype) for name, value in constants(each.exported).values()} for each in (program, whole)]
    return graphs[0] == graphs[1] and held[0] == held[1]


def _is_of_layers(key: str, value: Any) -> bool:
    return key == SQNR and isinstance(value, dict)
