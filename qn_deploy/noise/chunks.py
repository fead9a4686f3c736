"""The layers of a list in a model, in chunks: what LayerDrop drops together and what shares its parameters."""

from __future__ import annotations

from torch import nn

from qn_deploy.errors import InputError

Layer = tuple[str, nn.Module]
"""A layer's path in the model, "encoder.layers.0", and the layer."""


def layer_list(model: nn.Module, path: str) -> nn.ModuleList | nn.Sequential:
    """The list of layers at a path such as "encoder.layers"; "" is the model itself.

    Raises:
        InputError: there is no such module, or it is no nn.ModuleList or nn.Sequential.
    """
    try:
        layers = model.get_submodule(path)
    except AttributeError:
        raise InputError(f"{type(model).__name__} has no module {path!r}; it has lists of layers at {_paths(model)}") from None
    if not isinstance(layers, nn.ModuleList | nn.Sequential):
        raise InputError(
            f"{path!r} is a {type(layers).__name__}; expected an nn.ModuleList or nn.Sequential, which {type(model).__name__} has at "
            f"{_paths(model)}"
        )
    return layers


def chunks(model: nn.Module, path: str, size: int) -> list[list[Layer]]:
    """The layers at a path, `size` by `size`; the last chunk may be smaller.

    Raises:
        InputError: the size is less than 1, or there is no list of layers at the path.
    """
    if size < 1:
        raise InputError(f"chunks of {size} layers; expected 1 or more")
    found = layer_list(model, path)._modules.items()  # and not named_children(), which leaves out a layer that comes again
    layers = [(f"{path}.{name}" if path else name, layer) for name, layer in found if layer is not None]
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _paths(model: nn.Module) -> str:
    found = [repr(path) for path, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    return ", ".join(found) or "no path at all"
