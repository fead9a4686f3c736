"""Example inputs by their description: `name=float32[1,3,224,224]`."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.program.pt2 import SEED, made

_FORM = re.compile(r"(\w+)=(\w+)\[([\d,\s]*)\]", re.ASCII)
_DTYPES = {name: getattr(torch, name) for name in ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")}
_MOST = 1 << 28  # elements


def made_examples(texts: Iterable[str]) -> dict[str, Tensor]:
    """A tensor for each description, by its name: normal random numbers, zeros for integers, true for bool; the same ones each time.

    Raises:
        InputError: a description has another form, or a name comes twice.
    """
    draw = torch.Generator().manual_seed(SEED)
    inputs: dict[str, Tensor] = {}
    for text in texts:
        match = _FORM.fullmatch(text.strip())
        if match is None or match[2] not in _DTYPES:
            raise InputError(
                f"{text!r} describes no input; write name=dtype[sizes], image=float32[1,3,224,224]; dtypes: {', '.join(_DTYPES)}"
            )
        name, dtype, sizes = match[1], _DTYPES[match[2]], [int(size) for size in match[3].split(",") if size.strip()]
        count = torch.Size(sizes).numel()
        if not 0 < count <= _MOST:
            raise InputError(f"{text!r} describes {count:,} elements; expected 1 to {_MOST:,}")
        if name in inputs:
            raise InputError(f"the input {name} is described twice")
        inputs[name] = made(sizes, dtype, draw)
    return inputs
