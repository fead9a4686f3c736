"""Pruning of whole layers after training with LayerDrop (Fan et al. 2020; paper table 2)."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from qn_deploy.errors import InputError
from qn_deploy.noise.chunks import chunks, layer_list
from qn_deploy.noise.layerdrop import remove_layer_drop


def prune_every_other(model: nn.Module, layers: str, chunk: int = 1) -> list[int]:
    """Removes every other layer, or every other chunk of layers, for good; the first stays.

    Args:
        model: changed in place, as by `keep_layers`.
        layers: path of an nn.ModuleList or nn.Sequential, "encoder.layers"; "" is the model itself.
        chunk: how many layers in a row stay or go together, as LayerDrop dropped them.

    Returns:
        The indices that the remaining layers had.

    Raises:
        InputError: the chunk is less than 1, or the path leads to no list of layers.
    """
    sizes = [len(group) for group in chunks(model, layers, chunk)]
    kept = [index for index in range(sum(sizes)) if index // chunk % 2 == 0]
    keep_layers(model, layers, kept)
    return kept


def keep_layers(model: nn.Module, layers: str, keep: Collection[int]) -> None:
    """Removes all layers but some, for good.

    The layers that stay are numbered anew, in the state dict too, and LayerDrop is taken off them. An attribute of the model that counts
    its layers stays as it is, and an optimizer goes on holding what was removed: make a new one.

    Args:
        model: changed in place.
        layers: path of an nn.ModuleList or nn.Sequential, "encoder.layers"; "" is the model itself.
        keep: indices of the layers that stay, in any order; the layers keep theirs.

    Raises:
        InputError: no index is given, an index is out of range, or the path leads to no list of layers. The model is then unchanged.
    """
    found = layer_list(model, layers)
    if not keep or not set(keep) <= set(range(len(found))):
        raise InputError(f"can't keep layers {sorted(keep)} of {layers!r}; expected one or more of 0 to {len(found) - 1}")
    remove_layer_drop(found)
    for index in reversed(range(len(found))):
        if index not in keep:
            del found[index]
