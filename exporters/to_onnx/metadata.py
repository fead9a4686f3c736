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
from qn_deploy.weights.compressed import CompressedWeight, PQWeight

PREFIX = "qn_deploy."
VNNI = {"session.x64quantprecision": "1, on x86 processors without VNNI, or int8 sums saturate"}


def describe(model: onnx.ModelProto, program: Program, lowered: Lowered) -> None:
    """Writes version, recipe, activations and a SHA-256 of the int8 values of all weights, by name, into a model."""
    weights = hashlib.sha256()
    for _, weight in sorted(lowered.weights.items()):
        weights.update(hashlib.sha256(weight.int8().contiguous().numpy().data).digest())
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
    meets = target.saturates and lowered.form.activations is not Activations.NONE
    saturates = meets and any(_widest(weight) > EXACT_IN_PAIRS for weight in lowered.weights.values())
    return {"opset": str(opset), **(VNNI if saturates else {})}


def _widest(weight: CompressedWeight) -> int:
    """The largest absolute value in int8; of a table by its centroids, so that a large one is not expanded."""
    values = weight.centroids if isinstance(weight, PQWeight) and weight.residual is None else weight.int8()
    least, most = values.aminmax()
    return max(-int(least), int(most))
