"""What a written file says of itself, in the model's own metadata: onnxruntime gives it to the application, Netron shows it."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

import onnx

from qn_deploy.lowering.lower import Activations, Lowered
from qn_deploy.lowering.narrow import EXACT_IN_PAIRS
from qn_deploy.program.program import Program
from qn_deploy.targets import Target

PREFIX = "qn_deploy."
VNNI = {"session.x64quantprecision": "1, on x86 processors without VNNI, or int8 sums saturate"}


def describe(model: onnx.ModelProto, program: Program, lowered: Lowered) -> None:
    """Writes version, recipe, activations and a SHA-256 of the int8 values of all weights, by name, into a model."""
    weights = hashlib.sha256()
    for _, weight in sorted(lowered.weights.items()):
        weights.update(hashlib.sha256(weight.int8().contiguous().numpy().tobytes()).digest())
    entries = {
        "version": version("qn-deploy"),
        "activations": lowered.form.activations.value,
        "weights": weights.hexdigest(),
    }
    if program.recipe is not None:
        entries["recipe"] = json.dumps(json.loads(program.recipe.to_json()), separators=(",", ":"))
    model.producer_name, model.producer_version = "qn-deploy", version("qn-deploy")
    onnx.helper.set_model_props(model, {f"{PREFIX}{key}": value for key, value in entries.items()})


def facts(model: onnx.ModelProto, lowered: Lowered, target: Target) -> dict[str, str]:
    """What the manifest says of the file: its opset, and the session options that a processor of the target needs."""
    (opset,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    widest = max((int(weight.int8().abs().max()) for weight in lowered.weights.values()), default=0)
    saturates = target.saturates and lowered.form.activations is not Activations.NONE and widest > EXACT_IN_PAIRS
    return {"opset": str(opset), **(VNNI if saturates else {})}
