"""How a module carries a compressed weight while it is fine-tuned: as a torch parametrization of `module.weight`.

The parameters behind the weight are then the centroids and the scale of a table (`parametrizations.weight.original0` and `original1`,
and `original2` for the centroids of a residual table), or the latent float values of an integer weight (`original`).
With int8 in the loop, the weight that the forward pass sees is bit for bit the one that `bake` leaves behind.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from qn_deploy.compression.parametrizations import IntegerWeight, TableWeight, on_grid
from qn_deploy.errors import CompressionError
from qn_deploy.recipe.parameters import Slot, compressible
from qn_deploy.weights.compressed import INT8_MAX, CompressedWeight, IntWeight, PQWeight

_SMALLEST_SCALE = 1e-20  # a fine-tuned scale never falls below: runtimes take positive scales only


def attach_weight(slot: Slot, weight: CompressedWeight, int8_in_loop: bool = True) -> None:
    """Makes the weight in `slot` a compressed one, to be fine-tuned: a table by its centroids and scale, integers through their rounding.

    Raises:
        CompressionError: the weight already has a parametrization, or another shape or dtype.
    """
    old = _check(slot, weight)
    if isinstance(weight, IntWeight):
        with torch.no_grad():
            old.copy_(weight.dequantize())
    kind = TableWeight(weight, int8_in_loop) if isinstance(weight, PQWeight) else IntegerWeight(weight)
    parametrize.register_parametrization(slot.module, slot.leaf, kind.to(old.device))


def attach_tied(slot: Slot, owner: Slot) -> None:
    """Makes `slot` read the compressed weight of `owner`: one table, two readers, as an embedding tied with the output layer wants.

    Raises:
        CompressionError: the weight already has a parametrization, or another shape or dtype.
    """
    shared = owner.module.get_submodule(f"parametrizations.{owner.leaf}")
    assert isinstance(shared, ParametrizationList)
    _check(slot, _compressed(shared))
    parametrize.register_parametrization(slot.module, slot.leaf, nn.Identity())
    slot.module.set_submodule(f"parametrizations.{slot.leaf}", shared)


def compressed_weights(model: nn.Module) -> dict[str, CompressedWeight]:
    """The compressed weights that a model carries, by parameter name; the names of a tied weight have the same object.

    Raises:
        CompressionError: a weight is no longer finite; the message names it.
    """
    found: dict[str, CompressedWeight] = {}
    shared: dict[int, CompressedWeight] = {}
    for slot, carried in _carried(model):
        try:
            if id(carried) not in shared:
                shared[id(carried)] = _compressed(carried)
        except CompressionError as error:
            raise CompressionError(f"{slot.name}: {error}") from None
        found[slot.name] = shared[id(carried)]
    return found


def bake(model: nn.Module) -> None:
    """Turns each compressed weight into a plain float32 parameter of its dequantized values, in place; modules get their classes back.

    Raises:
        CompressionError: a weight is no longer finite; the message names it.
    """
    weights = compressed_weights(model)
    plain: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for slot, carried in list(_carried(model)):
        if id(carried) not in plain:
            plain[id(carried)] = nn.Parameter(weights[slot.name].dequantize().to(next(carried.parameters()).device))
        # Not parametrize.remove_parametrizations: it deletes the property from a class that deep copies of the module share.
        module = slot.module
        if parametrize.is_parametrized(module):
            module.__class__ = type(module).__bases__[0]
            del module._modules["parametrizations"]
        module.register_parameter(slot.leaf, plain[id(carried)])


@torch.no_grad()
def round_centroids(model: nn.Module) -> None:
    """Puts int8 into the loop: from here on the forward pass sees every table's centroids on their int8 grid, whose step is now fixed."""
    for table, (centroids, scale, *residual) in tables(model):
        if not table.int8_in_loop:
            books, step = on_grid([centroids, *residual], scale)
            for old, new in zip((centroids, *residual, scale), (*books, step), strict=True):
                old.copy_(new)
            table.int8_in_loop = True


@torch.no_grad()
def clamp_tables(model: nn.Module) -> None:
    """Puts scales, and centroids with int8 in the loop, back into their range; call it after each step of an optimizer."""
    for table, (centroids, scale, *residual) in tables(model):
        scale.clamp_(min=_SMALLEST_SCALE)
        if table.int8_in_loop:
            for book in (centroids, *residual):
                book.clamp_(-INT8_MAX, INT8_MAX)


def _check(slot: Slot, weight: CompressedWeight) -> nn.Parameter:
    kind = type(slot.module).__name__.removeprefix("Parametrized")
    if parametrize.is_parametrized(slot.module, slot.leaf):
        raise CompressionError(
            f"this {kind} still carries a parametrization; call qn_deploy.noise.remove(model), "
            "or torch.nn.utils.parametrize.remove_parametrizations for any other, first"
        )
    old = slot.module.get_parameter(slot.leaf)
    if tuple(old.shape) != weight.shape or old.dtype != torch.float32:
        raise CompressionError(
            f"a {kind} weight of {old.dtype} {list(old.shape)} can't hold float32 {list(weight.shape)}; "
            "call model.float() if only the dtype differs"
        )
    return old


def _carried(model: nn.Module) -> Iterator[tuple[Slot, ParametrizationList]]:
    """Each compressed weight: where it stands, and its parametrization."""
    for slot in compressible(model):
        if parametrize.is_parametrized(slot.module, slot.leaf):
            carried = slot.module.get_submodule(f"parametrizations.{slot.leaf}")
            if isinstance(carried, ParametrizationList) and isinstance(carried[0], TableWeight | IntegerWeight):
                yield slot, carried


def _compressed(carried: ParametrizationList) -> CompressedWeight:
    kind = carried[0]
    assert isinstance(kind, TableWeight | IntegerWeight)
    return kind.compressed(*carried.parameters(recurse=False))


def tables(model: nn.Module) -> list[tuple[TableWeight, list[nn.Parameter]]]:
    """Each table once, with its centroids, its scale and its residual centroids."""
    unique = {id(carried): carried for _, carried in _carried(model)}
    return [(kind, list(carried.parameters(recurse=False))) for carried in unique.values() if isinstance(kind := carried[0], TableWeight)]
