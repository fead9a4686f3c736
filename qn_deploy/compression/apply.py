"""A recipe applied to a model: which module gets which compressed weight, and which weights take another form than asked, and why."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.utils import parametrize

from qn_deploy.compression.batchnorm import fold_batchnorm
from qn_deploy.compression.distill import Batch
from qn_deploy.compression.feedback import Feedback, integers_with_feedback, table_with_feedback
from qn_deploy.compression.layers import attach_tied, attach_weight, bake, compressed_weights
from qn_deploy.compression.moments import Moments, measured
from qn_deploy.compression.progress import Progress, Tell
from qn_deploy.compression.tables import table_from_weight
from qn_deploy.errors import CompressionError
from qn_deploy.recipe import Float, Int4, Int8, Recipe, Table
from qn_deploy.recipe.parameters import ONE_SCALE, Slot, compressible
from qn_deploy.weights.compressed import CompressedWeight, IntWeight


@dataclass(frozen=True)
class Compressed:
    """A compressed model.

    Attributes:
        model: a copy of the user's model in eval mode, BatchNorm folded, carrying its compressed weights as parametrizations.
        recipe: what it was compressed by.
        reference: a copy of the user's model in eval mode, float.
        left: parameters that took another form than the recipe asked for, with the reason.
    """

    model: nn.Module
    recipe: Recipe
    reference: nn.Module
    left: dict[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, CompressedWeight]:
        """The compressed weights by parameter name."""
        return compressed_weights(self.model)

    def baked(self) -> nn.Module:
        """A copy of the model with plain float32 weights, the dequantized values of `weights`."""
        model = copy.deepcopy(self.model)
        bake(model)
        return model


@dataclass(frozen=True)
class Target:
    """One weight that a recipe compresses: the places where it stands, several if it is tied; `per_tensor` asks for one scale."""

    slots: tuple[Slot, ...]
    method: Table | Int8 | Int4
    per_tensor: bool = False

    @property
    def name(self) -> str:
        """The first name in the model's order; its rule of the recipe decides for all."""
        return self.slots[0].name

    @property
    def weight(self) -> Tensor:
        """The float weight, detached."""
        return self.slots[0].weight.detach()

    @property
    def per_channel(self) -> bool:
        """False if the weight has one scale for all its rows."""
        return not self.per_tensor and not any(isinstance(slot.module, ONE_SCALE) for slot in self.slots)


def compress(
    model: nn.Module,
    recipe: Recipe,
    example_inputs: Batch,
    seed: int = 0,
    calibration: Iterable[Batch] | None = None,
    feedback: Feedback | None = None,
    progress: Tell | None = None,
) -> Compressed:
    """Compresses a trained model without any fine-tuning (paper section 3.2); BatchNorm is folded first.

    With calibration inputs, which need no labels, the same bytes lose far less: layer after layer, in the order of their calls, codes
    are chosen with error feedback, and each layer makes up for some of what those before it have changed.

    Args:
        model: float32; it is not changed.
        recipe: which weight is compressed how.
        example_inputs: one tensor for each input, to trace the model with.
        seed: of the k-means.
        calibration: batches of inputs, a few hundred samples in all, without padding; None for plain k-means.
        feedback: how they are used.
        progress: called after each weight.

    Raises:
        CompressionError: a weight can't be compressed; the message names it.
        InputError: there are no calibration batches, or one is no tuple.
    """
    reference, student = reference_and_student(model, example_inputs)
    found, left = targets(student, recipe)
    slots = [target.slots for target in found]
    stages = [([*range(len(found))], None)] if calibration is None else measured(reference, student, slots, calibration)
    done = 0
    for stage, moments in stages:
        for target in (found[index] for index in stage):
            reason = attach(target, seed, moments=moments, feedback=feedback or Feedback())
            if reason is None and moments is None and calibration is not None:
                reason = "no calibration input reached it: compressed without error feedback"
            if reason:
                left[target.name] = reason
            done += 1
            if progress:
                progress(Progress(0, 1, "compressing", (target.name,), done / len(found)))
    return Compressed(student, recipe, reference, left)


def reference_and_student(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
    """Two copies of the model in eval mode: the float reference, and the one to compress, with its BatchNorm folded.

    Raises:
        CompressionError: a weight still carries noise, or a compressed weight from before.
    """
    for slot in compressible(model):
        if parametrize.is_parametrized(slot.module, slot.leaf):
            raise CompressionError(
                f"{slot.name} still carries a parametrization, noise perhaps; call qn_deploy.noise.remove(model), "
                "or torch.nn.utils.parametrize.remove_parametrizations for any other, before compressing"
            )
    student = copy.deepcopy(model).eval()
    fold_batchnorm(student, example_inputs)
    return copy.deepcopy(model).eval(), student


def targets(model: nn.Module, recipe: Recipe) -> tuple[list[Target], dict[str, str]]:
    """What the recipe compresses, in the model's order, and the weights that it has to leave float, with the reason."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{path}.{name}" if path else name)
    slots: dict[int, list[Slot]] = {}
    for slot in compressible(model):
        slots.setdefault(id(slot.weight), []).append(slot)
    found, left = [], {}
    for key, places in slots.items():
        first = places[0]
        method = recipe.method_for(first.site)
        if isinstance(method, Float):
            continue
        known = {slot.name for slot in places}
        stranger = next((name for name in owners[key] if name not in known), None)
        if stranger is None:
            found.append(Target(tuple(places), method, recipe.per_tensor))
        else:
            left[first.name] = f"float: tied with {stranger}, which is no weight of a module that can be compressed"
    return found, left


def attach(
    target: Target, seed: int = 0, int8_in_loop: bool = True, moments: Moments | None = None, feedback: Feedback | None = None
) -> str | None:
    """Compresses one weight as it is now and attaches it to its modules, with what is known of its inputs, if anything is.

    Returns:
        None, or the reason why it became int8 where a table was asked for.

    Raises:
        CompressionError: the weight holds NaN or infinity, or is not float32; the message names it.
    """
    try:
        weight, reason = _compress_weight(target, seed, moments or Moments(), feedback or Feedback())
        put(target, weight, int8_in_loop)
    except CompressionError as error:
        raise CompressionError(f"{target.name}: {error}") from None
    return reason


def put(target: Target, weight: CompressedWeight, int8_in_loop: bool = True) -> None:
    """Makes all places of a target read one compressed weight."""
    first, *rest = target.slots
    attach_weight(first, weight, int8_in_loop)
    for slot in rest:
        attach_tied(slot, first)


def no_table(target: Target) -> str | None:
    """Why a weight can't have the table that the recipe asks for, as far as its shape tells; None if it can."""
    method, weight = target.method, target.weight
    row = weight[0].numel()
    if isinstance(method, Table) and row % method.block_size:
        return f"int8: blocks of {method.block_size} weights do not divide a row of {row}"
    return None


def _compress_weight(target: Target, seed: int, moments: Moments, feedback: Feedback) -> tuple[CompressedWeight, str | None]:
    weight, method, per_channel = target.weight.cpu(), target.method, target.per_channel
    if not isinstance(method, Table):
        return _integers(weight, method, per_channel, moments, feedback), None
    if reason := no_table(target):
        return _integers(weight, Int8(), per_channel, moments, feedback), reason
    if moments.gram is None or method.residual:
        table = table_from_weight(weight, method, seed, per_channel, moments.lookups)
    else:
        table = table_with_feedback(weight, method, moments, feedback, seed, per_channel)
    plain = weight.numel() + table.scale.nbytes
    if table.nbytes >= plain:
        reason = f"int8: a table takes {table.nbytes} bytes, int8 {plain}"
        return _integers(weight, Int8(), per_channel, moments, feedback), reason
    return table, None


def _integers(weight: Tensor, method: Int8 | Int4, per_channel: bool, moments: Moments, feedback: Feedback) -> IntWeight:
    if moments.gram is None:
        return IntWeight.from_float(weight, per_channel, method)
    return integers_with_feedback(weight, method, moments, feedback, per_channel)
