"""qn-deploy: models trained with Quant-Noise become small, verified programs for phones and edge boards.

    noise       noise.attach(model, recipe), noise.remove(model)
    compress    compress.compress(model, ...), compress.ipq(model, ...)
    recipe      recipe.conv_net(), recipe.transformer(), Recipe, Rule, Table, Int8, Float
    save, load  model.pt
    export      export(program, folder, ExportConfig(...)): a folder of .onnx and .pte files
    verify      verify(folder, ...): the files on the real runtimes

All of them are loaded when they are first used, so that `qn-deploy --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qn_deploy import compression as compress
    from qn_deploy import noise, recipe
    from qn_deploy.exporting.config import ExportConfig
    from qn_deploy.exporting.export import export
    from qn_deploy.program.store import load, save
    from qn_deploy.verification.ladder import verify

__all__ = ["ExportConfig", "compress", "export", "load", "noise", "recipe", "save", "verify"]

_PLACES = {
    "ExportConfig": "qn_deploy.exporting.config",
    "export": "qn_deploy.exporting.export",
    "load": "qn_deploy.program.store",
    "save": "qn_deploy.program.store",
    "verify": "qn_deploy.verification.ladder",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name == "compress":
        return importlib.import_module("qn_deploy.compression")
    if name in __all__:
        return importlib.import_module(f"qn_deploy.{name}")
    raise AttributeError(f"module 'qn_deploy' has no attribute {name!r}")
