"""Weights from a checkpoint into a module: `.safetensors`, or what torch.save wrote, of which nothing but tensors is read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from qn_deploy.errors import InputError, first_line
from qn_deploy.files import read_bytes
from qn_deploy.program.members import read_members

State = dict[str, Tensor]
_SHOWN = 3  # names in a message


def load_weights(model: nn.Module, path: Path) -> None:
    """Puts the weights of a file into a module, in place.

    A checkpoint may hold the weights by themselves or beside other things, under one key; names may have a prefix in common that the
    module does not have, as a wrapper leaves it ("module.").

    Args:
        model: whose parameters and buffers are set; each of them must be in the file.
        path: a `.safetensors`, or a file of torch.save, which is read with weights_only: no code in it is run.

    Raises:
        InputError: the file can't be read, holds no weights, or they are not those of the module; the message names what differs.
    """
    put_weights(model, _fitting(list(_inside(read_checkpoint(path))), model, path), path)


def put_weights(model: nn.Module, state: State, path: Path) -> None:
    """Puts tensors into a module, in place; each of its parameters and buffers must be among them, and no other.

    Raises:
        InputError: they are not those of the module; the message names the file and what differs.
    """
    found, wanted = set(state), model.state_dict()
    strange = sorted(found - set(wanted))
    shared = {wanted[name].data_ptr() for name in found & set(wanted)}
    missing = [name for name, tensor in wanted.items() if name not in found and not (tensor.numel() and tensor.data_ptr() in shared)]
    if missing or strange:
        raise InputError(f"{path} does not fit {type(model).__name__}: {_differences(missing, strange)}")
    for name, tensor in state.items():
        if kind := _strange(tensor, wanted[name]):
            raise InputError(f"{path}: {name} is {kind}; {type(model).__name__} has a dense {_dtype(wanted[name])} tensor")
        if tensor.shape != wanted[name].shape:
            expected = list(wanted[name].shape)
            raise InputError(
                f"{path}: {name} has shape {list(tensor.shape)}; {type(model).__name__} has {expected}. Build it as it was trained"
            )
    model.load_state_dict(state, strict=False)


def read_checkpoint(path: Path) -> Any:
    """What a file holds: a map from names to tensors, or whatever of maps, lists, numbers and tensors was given to torch.save.

    Raises:
        InputError: the file can't be read, or holds more than that; no code in it is run.
    """
    data = read_bytes(path)
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        try:
            return safetensors.torch.load(data)
        except Exception as error:
            raise InputError(f"{path} is a damaged safetensors file ({first_line(error)[:200]}); copy it again") from None
    if data.startswith(b"PK"):
        _check_zip(path, data)
    try:
        held = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many classes
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
            raise InputError(
                f"{path} holds more than tensors, which could run code when it is opened. "
                "Save the weights alone: torch.save(model.state_dict(), path)"
            ) from None
        raise InputError(f"{path} is no checkpoint of torch.save and no safetensors file, or a damaged one") from error
    return held.state_dict() if isinstance(held, nn.Module) else held


def _check_zip(path: Path, data: bytes) -> None:
    """Checks what torch.load does not: the checksums of a checkpoint's members, and that none is deflated."""
    try:
        read_members(data)
    except InputError as error:
        raise InputError(f"{path} {error}") from None


def _inside(held: Any) -> Any:
    """The maps of tensors in nested maps, the outermost first."""
    if not isinstance(held, Mapping):
        return
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    if tensors:
        yield tensors
    for value in held.values():
        yield from _inside(value)


def _fitting(states: list[State], model: nn.Module, path: Path) -> State:
    """The map, with or without its prefix, that has the most names in common with the module."""
    if not states:
        raise InputError(f"{path} holds no weights: expected a map from names to tensors, as model.state_dict() gives it")
    wanted = set(model.state_dict())
    forms = [form for state in states for form in (state, without_prefix(state))]
    return max(forms, key=lambda form: len(wanted & set(form)))


def without_prefix(state: State) -> State:
    """The map without the first part of its names, if all have the same, as a wrapper leaves it ("module."); else the map itself."""
    prefixes = {name.partition(".")[0] for name in state}
    if len(prefixes) != 1 or not all("." in name for name in state):
        return state
    return {name.partition(".")[2]: value for name, value in state.items()}


def _strange(found: Tensor, wanted: Tensor) -> str:
    """What a tensor is that can't become another one's values; empty if it can."""
    if found.is_meta:
        return "a meta tensor, a shape without values"
    if found.layout != torch.strided or found.is_quantized or (found.is_complex() and not wanted.is_complex()):
        return f"a tensor of {_dtype(found)} and the layout {str(found.layout).removeprefix('torch.')}"
    return ""


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _differences(missing: list[str], strange: list[str]) -> str:
    parts = []
    for names, what in ((missing, "it lacks"), (strange, "the module has no")):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"{what} {', '.join(names[:_SHOWN])}{more}")
    return "; ".join(parts)
