"""Weight sharing: neighbouring layers use the same parameters, so that one table serves them all (paper table 2, "Share")."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from qn_deploy.errors import InputError
from qn_deploy.noise.chunks import Layer, chunks


def share_chunks(model: nn.Module, layers: str, size: int = 2) -> list[str]:
    """Makes each chunk of layers share the parameters of its first layer, before training; the paper shares two by two.

    Shared parameters are tied: training sees each of them once, and compression stores one table for them. Noise is drawn
    for each layer by itself. Buffers are not shared: the running statistics of a BatchNorm describe what one layer is fed, and the next
    layer is fed something else.

    Args:
        model: changed in place. Make the optimizer afterwards.
        layers: path of an nn.ModuleList or nn.Sequential, "encoder.layers"; "" is the model itself.
        size: how many layers in a row share, 2 or more; the last chunk may be smaller.

    Returns:
        Names of the parameters that gave way to those of the first layer of their chunk.

    Raises:
        InputError: the size is less than 2, the path leads to no list of layers, the parameters of a chunk's layers differ in name, shape
            or dtype, or one of them carries noise or a compressed weight. The model is then unchanged.
    """
    if size < 2:
        raise InputError(f"layers can't share parameters {size} by {size}; expected chunks of 2 or more")
    found = chunks(model, layers, size)
    for first, *rest in found:
        _check_plain(first)
        for layer in rest:
            _check_plain(layer)
            _check_alike(first, layer)
    replaced = []
    for (_, owner), *rest in found:
        for name, module in rest:
            for leaf, parameter in owner.named_parameters(remove_duplicate=False):
                path, _, attribute = leaf.rpartition(".")
                module.get_submodule(path).register_parameter(attribute, parameter)
                replaced.append(f"{name}.{leaf}")
    return replaced


def _check_plain(layer: Layer) -> None:
    name, module = layer
    for path, part in module.named_modules():
        if parametrize.is_parametrized(part):
            raise InputError(
                f"{name}{'.' if path else ''}{path} already carries a parametrization, noise or a compressed weight perhaps; "
                "share first, then attach noise"
            )


def _check_alike(first: Layer, other: Layer) -> None:
    ours, theirs = (
        {name: (tuple(parameter.shape), parameter.dtype) for name, parameter in layer.named_parameters(remove_duplicate=False)}
        for _, layer in (first, other)
    )
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        name = different[0]
        raise InputError(
            f"{other[0]} can't share the parameters of {first[0]}: {name} is {_described(theirs.get(name))} there and "
            f"{_described(ours.get(name))} here; layers of one chunk must be built alike"
        )


def _described(kind: tuple[tuple[int, ...], object] | None) -> str:
    return "missing" if kind is None else f"{kind[1]} {list(kind[0])}"
