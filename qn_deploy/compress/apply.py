"""A recipe applied to a model: which module gets which compressed weight, and which weights take another form than asked, and why."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.utils import parametrize

from qn_deploy.compress.batchnorm import fold_batchnorm
from qn_deploy.compress.layers import attach_int8, attach_table, attach_tied, bake, compressed_weights
from qn_deploy.compress.tables import table_from_weight
from qn_deploy.compress.weights import CompressedWeight, IntWeight, PQWeight
from qn_deploy.errors import CompressionError
from qn_deploy.recipe import COMPRESSIBLE, Float, Int8, Recipe, Table, compressible


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
    """One weight that a recipe compresses: its names and owners, several if it is tied."""

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    method: Table | Int8

    @property
    def name(self) -> str:
        """The first name in the model's order; its rule of the recipe decides for all."""
        return self.names[0]

    @property
    def weight(self) -> Tensor:
        """The float weight, detached."""
        weight = self.modules[0].weight
        assert isinstance(weight, Tensor)
        return weight.detach()


def compress(model: nn.Module, recipe: Recipe, example_inputs: tuple[Tensor, ...], seed: int = 0) -> Compressed:
    """Compresses a trained model without any fine-tuning (paper section 3.2); BatchNorm is folded first.

    Args:
        model: float32; it is not changed.
        recipe: which weight is compressed how.
        example_inputs: one tensor for each input, to trace the model with.
        seed: of the k-means.

    Raises:
        CompressionError: a weight can't be compressed; the message names it.
    """
    reference, student = reference_and_student(model, example_inputs)
    found, left = targets(student, recipe)
    left.update({target.name: reason for target in found if (reason := attach(target, seed))})
    return Compressed(student, recipe, reference, left)


def reference_and_student(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[nn.Module, nn.Module]:
    """Two copies of the model in eval mode: the float reference, and the one to compress, with its BatchNorm folded.

    Raises:
        CompressionError: a weight still carries noise, or a compressed weight from before.
    """
    for name, module, _ in compressible(model):
        if parametrize.is_parametrized(module):
            raise CompressionError(
                f"{name} still carries a parametrization, noise perhaps; call qn_deploy.noise.remove(model), "
                "or torch.nn.utils.parametrize.remove_parametrizations for any other, before compressing"
            )
    student = copy.deepcopy(model).eval()
    fold_batchnorm(student, example_inputs)
    return copy.deepcopy(model).eval(), student


def targets(model: nn.Module, recipe: Recipe) -> tuple[list[Target], dict[str, str]]:
    """What the recipe compresses, in the model's order, and the weights that it has to leave float, with the reason."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((f"{path}.{name}" if path else name, module))
    found, left, seen = [], {}, set()
    for name, module, weight in compressible(model):
        method = recipe.method_for(name, module)
        if id(weight) in seen or isinstance(method, Float):
            continue
        seen.add(id(weight))
        names, modules = zip(*owners[id(weight)], strict=True)
        stranger = next((n for n, m in owners[id(weight)] if not isinstance(m, COMPRESSIBLE)), None)
        if stranger is None:
            found.append(Target(names, modules, method))
        else:
            left[name] = f"float: tied with {stranger}, which is none of {', '.join(kind.__name__ for kind in COMPRESSIBLE)}"
    return found, left


def attach(target: Target, seed: int = 0, int8_in_loop: bool = True) -> str | None:
    """Compresses one weight as it is now and attaches it to its modules.

    Returns:
        None, or the reason why it became int8 where a table was asked for.

    Raises:
        CompressionError: the weight holds NaN or infinity, or is not float32; the message names it.
    """
    try:
        compressed, reason = _compress_weight(target, seed)
        first, *rest = target.modules
        if isinstance(compressed, PQWeight):
            attach_table(first, compressed, int8_in_loop)
        else:
            attach_int8(first, compressed)
        for module in rest:
            attach_tied(module, first)
    except CompressionError as error:
        raise CompressionError(f"{target.name}: {error}") from None
    return reason


def _compress_weight(target: Target, seed: int) -> tuple[CompressedWeight, str | None]:
    weight, method = target.weight.cpu(), target.method
    # One scale for an embedding: four bytes for each of its many short rows would cost as much as the codes.
    per_channel = not any(isinstance(module, nn.Embedding) for module in target.modules)
    plain = IntWeight.from_float(weight, per_channel)
    row = weight[0].numel()
    if isinstance(method, Int8):
        return plain, None
    if row % method.block_size:
        return plain, f"int8: blocks of {method.block_size} weights do not divide a row of {row}"
    table = table_from_weight(weight, method, seed, per_channel)
    if table.nbytes >= plain.nbytes:
        return plain, f"int8: a table takes {table.nbytes} bytes, int8 {plain.nbytes}"
    return table, None
