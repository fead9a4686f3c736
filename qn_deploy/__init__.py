"""qn-deploy: models trained with Quant-Noise become small, verified programs for phones and edge boards.

The names below load torch when they are first used, so that `qn-deploy --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qn_deploy import noise, recipe
    from qn_deploy.compress import IPQ, Compressed, compress, ipq
    from qn_deploy.program.store import load, save
    from qn_deploy.recipe import Float, Int8, Recipe, Rule, Table
    from qn_deploy.verify.ladder import verify

__all__ = [
    "IPQ",
    "Compressed",
    "Float",
    "Int8",
    "Recipe",
    "Rule",
    "Table",
    "compress",
    "ipq",
    "load",
    "noise",
    "recipe",
    "save",
    "verify",
]

_HOME = {
    **dict.fromkeys(("IPQ", "Compressed", "compress", "ipq"), "qn_deploy.compress"),
    **dict.fromkeys(("Float", "Int8", "Recipe", "Rule", "Table"), "qn_deploy.recipe"),
    **dict.fromkeys(("load", "save"), "qn_deploy.program.store"),
    "verify": "qn_deploy.verify.ladder",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in __all__:
        return importlib.import_module(f"qn_deploy.{name}")
    raise AttributeError(f"module 'qn_deploy' has no attribute {name!r}")
