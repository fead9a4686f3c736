"""A Program: the aten graph of a model and the compressed form of its constants. Everything after training works on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from qn_deploy.recipe import Recipe
from qn_deploy.weights.compressed import CompressedWeight

Batch = tuple[Tensor, ...]
"""One tensor for each input of a program, in the order of its inputs."""

Range = tuple[float, float]
"""The least and greatest value that an int8 activation has to hold."""

SQNR = "sqnr_db"
"""Key of a stage's entry in the provenance: what each layer gave, to the float model, in dB by its weight's name."""


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
    """A model as data; float where `weights` is empty.

    Attributes:
        exported: plain aten graph that takes and returns flat tuples of tensors, as `capture` settled it; each compressed weight is baked
            to its dequantized values.
        golden: example inputs and the float outputs.
        outputs: a name for each output.
        weights: compressed form of each weight that has one, by the name of the parameter that the graph reads.
        ranges: of activations for static int8, by the name of the node in `exported` that makes the value; empty if never calibrated.
        recipe: what the weights were compressed by.
        left: weights that kept another form than the recipe asked for, and large ones that stayed float, with the reason.
        classes: for each parameter the class names of the modules that it stood in, the owner's and its base classes' first; recipes match
            them.
        provenance: for each stage that made this program, in order, its name and its configuration.
        notes: what capture left out or fixed, for the user to know.
    """

    exported: ExportedProgram
    golden: Golden
    outputs: tuple[str, ...]
    weights: dict[str, CompressedWeight] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    recipe: Recipe | None = None
    left: dict[str, str] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    provenance: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """A name for each input."""
        return tuple(str(name) for name in self.exported.graph_signature.user_inputs)
