"""How a module carries a compressed weight while it is fine-tuned: as a torch parametrization of `module.weight`.

The parameters behind the weight are then the centroids and the scale of a table (`parametrizations.weight.original0` and `original1`),
or the latent float values of an int8 weight (`original`). With int8 in the loop, the weight that the forward pass sees is bit for bit
the one that `bake` leaves behind.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from qn_deploy.compress.parametrizations import Int8Weight, TableWeight, on_grid
from qn_deploy.compress.weights import INT8_MAX, CompressedWeight, IntWeight, PQWeight
from qn_deploy.errors import CompressionError

_SMALLEST_SCALE = 1e-20  # a fine-tuned scale never falls below: runtimes take positive scales only


def attach_table(module: nn.Module, weight: PQWeight, int8_in_loop: bool = True) -> None:
    """Makes `module.weight` the decoded table; centroids and scale become the parameters.

    Raises:
        CompressionError: the module already has a parametrization, or a weight of another shape or dtype.
    """
    old = _check(module, weight)
    parametrize.register_parametrization(module, "weight", TableWeight(weight, int8_in_loop).to(old.device))


def attach_int8(module: nn.Module, weight: IntWeight) -> None:
    """Makes `module.weight` an int8 weight that is trained through its rounding.

    Raises:
        CompressionError: the module already has a parametrization, or a weight of another shape or dtype.
    """
    old = _check(module, weight)
    with torch.no_grad():
        old.copy_(weight.dequantize())
    parametrize.register_parametrization(module, "weight", Int8Weight(weight).to(old.device))


def attach_tied(module: nn.Module, owner: nn.Module) -> None:
    """Makes `module` read the compressed weight of `owner`: one table, two readers, as an embedding tied with the output layer wants.

    Raises:
        CompressionError: the module already has a parametrization, or a weight of another shape or dtype.
    """
    shared = owner.get_submodule("parametrizations.weight")
    assert isinstance(shared, ParametrizationList)
    _check(module, _compressed(shared))
    parametrize.register_parametrization(module, "weight", nn.Identity())
    module.set_submodule("parametrizations.weight", shared)


def compressed_weights(model: nn.Module) -> dict[str, CompressedWeight]:
    """The compressed weights that a model carries, by parameter name; the names of a tied weight have the same object.

    Raises:
        CompressionError: a weight is no longer finite; the message names it.
    """
    found: dict[str, CompressedWeight] = {}
    shared: dict[int, CompressedWeight] = {}
    for name, _, carried in _carried(model):
        try:
            if id(carried) not in shared:
                shared[id(carried)] = _compressed(carried)
        except CompressionError as error:
            raise CompressionError(f"{name}: {error}") from None
        found[name] = shared[id(carried)]
    return found


def bake(model: nn.Module) -> None:
    """Turns each compressed weight into a plain float32 parameter of its dequantized values, in place; modules get their classes back.

    Raises:
        CompressionError: a weight is no longer finite; the message names it.
    """
    weights = compressed_weights(model)
    plain: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for name, module, carried in list(_carried(model)):
        if id(carried) not in plain:
            plain[id(carried)] = nn.Parameter(weights[name].dequantize().to(next(carried.parameters()).device))
        # Not parametrize.remove_parametrizations: it deletes the property from a class that deep copies of the module share.
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        module.register_parameter("weight", plain[id(carried)])


@torch.no_grad()
def round_centroids(model: nn.Module) -> None:
    """Puts int8 into the loop: from here on the forward pass sees every table's centroids on their int8 grid, whose step is now fixed."""
    for table, (centroids, scale) in _tables(model):
        if not table.int8_in_loop:
            for old, new in zip((centroids, scale), on_grid(centroids, scale), strict=True):
                old.copy_(new)
            table.int8_in_loop = True


@torch.no_grad()
def clamp_tables(model: nn.Module) -> None:
    """Puts scales, and centroids with int8 in the loop, back into their range; call it after each step of an optimizer."""
    for table, (centroids, scale) in _tables(model):
        scale.clamp_(min=_SMALLEST_SCALE)
        if table.int8_in_loop:
            centroids.clamp_(-INT8_MAX, INT8_MAX)


def _check(module: nn.Module, weight: CompressedWeight) -> nn.Parameter:
    kind = type(module).__name__.removeprefix("Parametrized")
    if parametrize.is_parametrized(module):
        raise CompressionError(
            f"this {kind} still carries a parametrization; call qn_deploy.noise.remove(model), "
            "or torch.nn.utils.parametrize.remove_parametrizations for any other, first"
        )
    old = module.get_parameter("weight")
    if tuple(old.shape) != weight.shape or old.dtype != torch.float32:
        raise CompressionError(
            f"a {kind} weight of {old.dtype} {list(old.shape)} can't hold float32 {list(weight.shape)}; "
            "call model.float() if only the dtype differs"
        )
    return old


def _carried(model: nn.Module) -> Iterator[tuple[str, nn.Module, ParametrizationList]]:
    """(parameter name, module, parametrization) of each compressed weight."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            carried = module.get_submodule("parametrizations.weight")
            if isinstance(carried, ParametrizationList) and isinstance(carried[0], TableWeight | Int8Weight):
                yield (f"{path}.weight" if path else "weight"), module, carried


def _compressed(carried: ParametrizationList) -> CompressedWeight:
    kind = carried[0]
    assert isinstance(kind, TableWeight | Int8Weight)
    return kind.compressed(*carried.parameters(recurse=False))


def _tables(model: nn.Module) -> list[tuple[TableWeight, list[nn.Parameter]]]:
    """Each table once, with its centroids and scale."""
    unique = {id(carried): carried for _, _, carried in _carried(model)}
    return [(kind, list(carried.parameters(recurse=False))) for carried in unique.values() if isinstance(kind := carried[0], TableWeight)]
