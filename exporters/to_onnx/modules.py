"""Long names of modules stand in a file once: a value is named `#a.weight/scale`, and the model's metadata say which module `#a` is.

A name is written for each value and for each reader of it; a dozen of them for each layer were a quarter of a small file of many layers.
The operator that computes a layer keeps its whole name, for Netron and profilers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator

import onnx

from qn_deploy.errors import InputError

from .trim import short_names

MODULES = "qn_deploy.modules"  # key of the metadata: the names of the modules #a, #b, ..., as JSON
_SIGN = "#"  # which begins no name from torch
_SHORT = 12  # letters of a module's name that stay as they are


def shorten(model: onnx.ModelProto) -> None:
    """Writes each module's name once, where that is shorter; changes `model`, whose inputs and outputs keep their names."""
    mentions = Counter(module for name in _names(model) if len(module := _parts(name)[0]) > _SHORT)
    modules = [module for module, count in mentions.most_common() if count > 1]
    if not modules:
        return
    short = {module: f"{_SIGN}{name}" for module, name in zip(modules, short_names(()), strict=False)}
    _rename(model, lambda module: short.get(module, module))
    model.metadata_props.add(key=MODULES, value=json.dumps(modules, separators=(",", ":")))


def load(data: bytes) -> onnx.ModelProto:
    """A written model, its values being named as they were before `shorten`.

    Raises:
        InputError: the names of the modules are damaged.
    """
    return with_whole_names(onnx.load_model_from_string(data))


def with_whole_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, its values being named as they were before `shorten`; InputError if the names of the modules are damaged."""
    modules = _modules(next((entry.value for entry in model.metadata_props if entry.key == MODULES), "[]"))
    whole = {f"{_SIGN}{name}": module for module, name in zip(modules, short_names(()), strict=False)}
    _rename(model, lambda module: whole.get(module, module))
    for index, entry in enumerate(model.metadata_props):
        if entry.key == MODULES:
            del model.metadata_props[index]
            break
    return model


def _modules(text: str) -> list[str]:
    try:
        modules = json.loads(text)
    except (ValueError, RecursionError):
        modules = None
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        raise InputError(f"the .onnx file is damaged: its metadata {MODULES} are no list of names; export the model again")
    return modules


def _parts(name: str) -> tuple[str, str]:
    """The module that a value belongs to, and the rest of its name: ("encoder.fc1", ".weight/scale")."""
    parameter, slash, part = name.partition("/")
    module, dot, leaf = parameter.rpartition(".")
    return module, f"{dot}{leaf}{slash}{part}"


def _names(model: onnx.ModelProto) -> Iterator[str]:
    """The name of each value, as often as it is written."""
    for node in model.graph.node:
        yield from node.input
        yield from node.output
    yield from (entry.name for entry in model.graph.initializer)


def _rename(model: onnx.ModelProto, rename: Callable[[str], str]) -> None:
    graph = model.graph
    fixed = {entry.name for entry in (*graph.input, *graph.output)}

    def renamed(name: str) -> str:
        module, rest = _parts(name)
        return name if name in fixed else rename(module) + rest

    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for entry in graph.initializer:
        entry.name = renamed(entry.name)
