"""A Program: the aten graph of a model and the compressed form of its constants. Everything after training works on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.export import ExportedProgram

from qn_deploy.recipe import Recipe
from qn_deploy.weights.compressed import CompressedWeight

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Golden:
    """Example inputs, and what the *unquantized* model makes of them.

    Attributes:
        inputs: one tensor for each input of the model.
        outputs: float outputs of the model before compression.
    """

    inputs: Batch
    outputs: Batch


@dataclass(frozen=True)
class Program:
    """A compressed model as data.

    Attributes:
        exported: plain aten graph; each compressed weight is baked to its dequantized values.
        weights: compressed form of each weight that has one, by the parameter's name in `exported`.
        golden: example inputs and the float outputs.
        calibration: batches of inputs for the ranges of static int8 activations; empty if none were kept.
        recipe: what the weights were compressed by.
        left: weights that kept another form than the recipe asked for, with the reason.
    """

    exported: ExportedProgram
    weights: dict[str, CompressedWeight]
    golden: Golden
    calibration: tuple[Batch, ...] = ()
    recipe: Recipe | None = None
    left: dict[str, str] = field(default_factory=dict)
