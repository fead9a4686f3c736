"""The graph of a `.pt2` as JSON, made flat and plain: inputs and outputs in tuples, no metadata, no guards.

What the archive says in the user's own terms (how inputs and outputs nest, which modules a value came from) is read here as data: names are
taken from it, and no class is looked up or imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from qn_deploy.errors import InputError
from qn_deploy.program.allow_list import flat_spec
from qn_deploy.program.graph_json import without_unused
from qn_deploy.program.signature import names_of

_ROWS = ("builtins.tuple", "builtins.list", "collections.deque")
_MAX_DEPTH = 50
_CLASS = re.compile(r"[\w.<>]{1,500}", re.ASCII)


@dataclass(frozen=True)
class Captured:
    """A captured graph.

    Attributes:
        graph: its JSON, flat and plain, not yet checked.
        outputs: names of the outputs that are tensors.
        left_out: names of the others, but for None.
        modules: for each module that made a value its class, "torch.nn.modules.conv.Conv2d", by its path.
    """

    graph: dict[str, Any]
    outputs: tuple[str, ...]
    left_out: tuple[str, ...]
    modules: dict[str, str]

    def classes_of(self, path: str) -> tuple[str, ...]:
        """The class of a module, the bases of that if it is torch's own, and the classes of the modules around it."""
        while path and path not in self.modules:
            path = path.rpartition(".")[0]
        around = [path]
        while around[-1]:
            around.append(around[-1].rpartition(".")[0])
        found = [self.modules[module] for module in around if module in self.modules]
        return tuple(dict.fromkeys((*(_bases(found[0]) if found else ()), *(kind.rpartition(".")[2] for kind in found))))


def captured_from(data: Any) -> Captured:
    """Takes a graph of torch.export apart.

    Raises:
        InputError: the JSON is no such graph.
    """
    try:
        data = without_unused(data)
        module = data["graph_module"]
        graph, signature = module["graph"], module["signature"]
        modules: dict[str, str] = {}
        _take_metadata(graph, modules)
        call = next(entry for entry in module["module_call_graph"] if entry["fqn"] == "")
        fields = module.pop("treespec_namedtuple_fields", {})
        leaves = list(_leaves(json.loads(call["signature"]["out_spec"])[1], fields))
        tensors = _keep_tensors(graph, signature)
        names = dict(zip(tensors.outputs, names_of([leaves[index] for index in tensors.outputs]), strict=True))
        others = names_of([leaves[index] for index in tensors.others])
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, StopIteration, RecursionError):
        raise InputError("holds a graph that this torch doesn't know; save it with torch 2.13 or later") from None
    call["signature"] = {
        "inputs": [],
        "outputs": [],
        "in_spec": flat_spec(len(tensors.inputs), inputs=True),
        "out_spec": flat_spec(len(tensors.outputs)),
        "forward_arg_names": tensors.inputs,
    }
    module["module_call_graph"], module["metadata"], data["guards_code"] = [call], {}, []
    return Captured(data, tuple(names.values()), others, modules)


@dataclass(frozen=True)
class _Tensors:
    inputs: list[str]  # names of the user's inputs that are tensors
    outputs: list[int]  # indices among all outputs of those that are tensors
    others: list[int]  # indices of those that are neither tensors nor None


def _keep_tensors(graph: dict[str, Any], signature: dict[str, Any]) -> _Tensors:
    """Takes constants out of the inputs, and out of the outputs what is no tensor."""
    specs = signature["input_specs"]
    kept = [index for index, spec in enumerate(specs) if "constant_input" not in spec]
    graph["inputs"] = [graph["inputs"][index] for index in kept]
    signature["input_specs"] = [specs[index] for index in kept]
    inputs = [spec["user_input"]["arg"]["as_tensor"]["name"] for spec in signature["input_specs"] if "as_tensor" in _user_input(spec)]
    specs = signature["output_specs"]
    users = [spec for spec in specs if "user_output" in spec]
    first = len(specs) - len(users)  # what changes buffers stands before
    kinds = [next(iter(spec["user_output"]["arg"])) for spec in users]
    outputs = [index for index, kind in enumerate(kinds) if kind == "as_tensor"]
    others = [index for index, kind in enumerate(kinds) if kind not in ("as_tensor", "as_none")]
    kept = [*range(first), *(first + index for index in outputs)]
    signature["output_specs"] = [specs[index] for index in kept]
    graph["outputs"] = [graph["outputs"][index] for index in kept]
    return _Tensors(inputs, outputs, others)


def _user_input(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["user_input"]["arg"] if "user_input" in spec else {}


def _take_metadata(graph: dict[str, Any], modules: dict[str, str]) -> None:
    """Takes the metadata out of each node, also inside regions, and the classes of modules out of that."""
    for node in graph["nodes"]:
        stack = node["metadata"].get("nn_module_stack", "")
        node["metadata"] = {}
        for entry in stack.split(";") if stack else ():
            _, _, rest = entry.partition(",")  # key,path,class
            path, _, kind = rest.rpartition(",")
            if _CLASS.fullmatch(kind):
                modules.setdefault(path.partition("@")[0], kind)
        for argument in node["inputs"]:
            if "as_graph" in argument["arg"]:
                _take_metadata(argument["arg"]["as_graph"]["graph"], modules)


def _leaves(spec: Any, fields: dict[str, Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each leaf of a spec of torch.utils._pytree."""
    if len(path) > _MAX_DEPTH:
        raise ValueError
    kind, context, children = spec["type"], spec["context"], spec["children_spec"]
    if kind is None:
        yield path
        return
    words = None if kind in _ROWS else _words(kind, context, fields)
    for index, child in enumerate(children):
        named = words is not None and len(words) == len(children)
        key: Any = pytree.MappingKey(words[index]) if words and named else pytree.SequenceKey(index)
        yield from _leaves(child, fields, (*path, key))


def _words(kind: str, context: str, fields: dict[str, Any]) -> list[str] | None:
    """The keys or fields of a dict, a named tuple, or a dataclass, whose context is a list of them; None if it isn't."""
    if context in fields:
        words = fields[context]["field_names"]
    else:
        try:
            words = json.loads(context)
        except (ValueError, TypeError):
            return None
        if isinstance(words, list) and len(words) == 2 and isinstance(words[-2], list):
            words = words[0]  # of a dataclass: the fields that are set, and those that are None
        elif isinstance(words, list) and len(words) == 2 and isinstance(words[-1], list):
            words = words[1]  # of a defaultdict: what makes its values, and the keys
    return [str(word) for word in words] if isinstance(words, list) else None


def _bases(kind: str) -> tuple[str, ...]:
    """Names of the base classes of a class of torch.nn; there is nothing to know of others."""
    found = getattr(nn, kind.rpartition(".")[2], None) if kind.startswith("torch.nn.modules.") else None
    return tuple(base.__name__ for base in found.__mro__ if base not in (nn.Module, object)) if isinstance(found, type) else ()
