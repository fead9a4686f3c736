"""Whether the arguments of a node are of the kinds that its operator takes.

torch's kernels trust that: a number where a memory format is expected ends the process.
"""

from __future__ import annotations

from functools import cache, reduce
from typing import Any

import torch

from qn_deploy.errors import InputError
from qn_deploy.program.forward_operators import REGIONS, SIZES

_NUMBER = ("as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float", "as_sym_bool")
_LISTS = {
    "Tensor": ("as_tensors",),
    "Optional[Tensor]": ("as_tensors", "as_optional_tensors"),
    "int": ("as_ints", "as_sym_ints", "as_int", "as_sym_int"),  # one number for all dimensions, as kernel_size=3
    "SymInt": ("as_ints", "as_sym_ints", "as_int", "as_sym_int"),
    "float": ("as_floats", "as_ints", "as_sym_floats", "as_float"),
    "number": ("as_floats", "as_ints", "as_sym_floats", "as_sym_ints"),
    "bool": ("as_bools", "as_sym_bools", "as_bool"),
}
_KINDS = {
    "Tensor": ("as_tensor", *_NUMBER),  # torch makes a tensor of a number
    "int": ("as_int", "as_sym_int"),
    "SymInt": ("as_int", "as_sym_int"),
    "float": ("as_float", "as_int", "as_sym_float", "as_sym_int"),
    "bool": ("as_bool", "as_sym_bool"),
    "number": _NUMBER,
    "str": ("as_string",),
    "ScalarType": ("as_scalar_type",),
    "MemoryFormat": ("as_memory_format",),
    "Layout": ("as_layout",),
    "Device": ("as_device",),
    **{f"List[{element}]": kinds for element, kinds in _LISTS.items()},
}


def check_arguments(node: dict[str, Any]) -> None:
    """Checks the arguments of a node in a graph's JSON; its operator is known to be on the list.

    Raises:
        InputError: an argument that the operator doesn't have, of another kind than it takes, or one that is missing.
    """
    target, given = node["target"], node["inputs"]
    if target in REGIONS:
        return
    if target in SIZES:
        if wrong := [entry for entry in given if not set(entry["arg"]) <= set(_NUMBER)]:
            raise InputError(f"the argument {str(wrong[0]['arg'])[:100]} of {target} is refused; expected a size or a number")
        return
    expected = _expected(target)
    for entry in given:
        kinds = expected.get(entry["name"], ((), False))[0]
        if len(entry["arg"]) != 1 or next(iter(entry["arg"])) not in kinds:
            found = f"{entry['name'][:30]!r} = {str(entry['arg'])[:100]}"
            raise InputError(f"the argument {found} of {target} is refused; expected {' or '.join(kinds) or 'none of that name'}")
    names = [entry["name"] for entry in given]
    if len(set(names)) < len(names) or any(required and name not in names for name, (_, required) in expected.items()):
        raise InputError(f"{target} has the arguments {names[:20]}; expected each of {list(expected)} once")


@cache
def _expected(target: str) -> dict[str, tuple[tuple[str, ...], bool]]:
    """For each argument of an operator the kinds that it may be of, and whether it must be given."""
    found: Any = reduce(getattr, target.removeprefix("torch.").split("."), torch)
    return {argument.name: (_kinds(str(argument.real_type)), not argument.has_default_value()) for argument in found._schema.arguments}


def _kinds(kind: str) -> tuple[str, ...]:
    if kind.startswith("Optional["):
        inner = kind[len("Optional[") : -1]
        return (*_kinds(inner), "as_none", *(("as_optional_tensor",) if inner == "Tensor" else ()))
    return _KINDS.get(kind, ())
