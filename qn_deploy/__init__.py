"""qn-deploy: models trained with Quant-Noise become small, verified programs for phones and edge boards.

    noise       noise.attach(model, recipe), noise.remove(model), while training
    capture     a trained module becomes a float Program; load takes a .pt2 as well
    compress    a float Program becomes a compressed one; ipq does it with fine-tuning, tune fine-tunes the result
    plan        a float Program becomes one that loses the least within a size, or is the smallest within a loss
    import_checkpoint  a published checkpoint with tables (fairseq, kill-the-bits) becomes a compressed Program
    calibrate   the ranges of static int8 activations
    save, load  model.pt
    export      export(program, folder, ExportConfig(...)): a folder of .onnx and .pte files
    verify      verify(folder, ...): the files on the real runtimes
    recipe      recipe.conv_net(), recipe.transformer(), Recipe, Rule, Table, Int8, Float

All of them are loaded when they are first used, so that `qn-deploy --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qn_deploy import noise, recipe
    from qn_deploy.compression import (
        BlockConfig,
        CodeConfig,
        CompressConfig,
        IPQConfig,
        PlanConfig,
        TuneConfig,
        calibrate,
        compress,
        ipq,
        plan,
        tune,
    )
    from qn_deploy.exporting.config import ExportConfig
    from qn_deploy.exporting.export import export
    from qn_deploy.program.capture import capture
    from qn_deploy.program.store import load, save
    from qn_deploy.sources.published import import_checkpoint
    from qn_deploy.verification.ladder import verify

__all__ = [
    "BlockConfig",
    "CodeConfig",
    "CompressConfig",
    "ExportConfig",
    "IPQConfig",
    "PlanConfig",
    "TuneConfig",
    "calibrate",
    "capture",
    "compress",
    "export",
    "import_checkpoint",
    "ipq",
    "load",
    "noise",
    "plan",
    "recipe",
    "save",
    "tune",
    "verify",
]

_PLACES = {
    **dict.fromkeys(
        (
            "BlockConfig",
            "CodeConfig",
            "CompressConfig",
            "IPQConfig",
            "PlanConfig",
            "TuneConfig",
            "calibrate",
            "compress",
            "ipq",
            "plan",
            "tune",
        ),
        "compression",
    ),
    "ExportConfig": "exporting.config",
    "capture": "program.capture",
    "export": "exporting.export",
    **dict.fromkeys(("load", "save"), "program.store"),
    "import_checkpoint": "sources.published",
    "verify": "verification.ladder",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"qn_deploy.{_PLACES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"qn_deploy.{name}")
    raise AttributeError(f"module 'qn_deploy' has no attribute {name!r}")
