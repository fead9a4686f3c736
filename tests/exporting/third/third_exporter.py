"""An exporter as somebody else would write one: the lowered graph as JSON and its constants in one .npz, run by torch.

It quantizes no activations, whatever is asked for.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qn_deploy.errors import ExportError, InputError
from qn_deploy.exporting.exporter import NO_PARTS, Written


@dataclass(frozen=True)
class ThirdOptions:
    """Options of `qn-deploy export`."""

    label: str = field(default="", metadata={"help": "a word that the manifest repeats."})


class ThirdExporter:
    """As `qn_deploy.exporting.exporter.Exporter` describes."""

    filename = "model.third.npz"
    runtime = "a torch interpreter"
    optimizes = False
    options = ThirdOptions

    @property
    def rules(self) -> Any:
        from qn_deploy.lowering.rules import XNNPACK

        return XNNPACK

    def forms(self, activations: Any, options: ThirdOptions) -> tuple[Any, ...]:
        from qn_deploy.lowering.lower import Activations, Form

        return (Form(Activations.NONE),)

    def write(self, program: Any, lowered: tuple[Any, ...], options: ThirdOptions, target: Any) -> Written:
        import numpy as np

        exported = lowered[0].exported
        signature = exported.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
        stored = {**exported.constants, **exported.state_dict}
        steps = [_step(node, names) for node in exported.graph.nodes]
        constants = {name: stored[name].detach().numpy() for name in names.values()}
        file = io.BytesIO()
        np.savez(file, **{"/graph": np.frombuffer(json.dumps(steps).encode(), np.uint8), **constants})
        return Written(file.getvalue(), lowered[0], facts={"label": options.label})

    def run(self, data: bytes, batches: Any, optimized: bool = True, parts: Mapping[str, bytes] = NO_PARTS) -> Any:
        import torch

        steps, constants = _read(data)
        tensors = {name: torch.from_numpy(array) for name, array in constants.items()}
        with torch.no_grad():
            return tuple(_run(steps, tensors, batch) for batch in batches)

    def weight_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        return {hashlib.sha256(array.tobytes()).hexdigest() for array in _read(data)[1].values()}

    def table_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        return set()  # weights are floats

    def dense(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> bytes:
        return data

    def rebuild(self, companions: Mapping[str, bytes]) -> bytes:
        raise InputError("there are no companions")

    def is_container(self, data: bytes) -> bool:
        return False


def _step(node: Any, names: Mapping[str, str]) -> dict[str, Any]:
    if node.op == "placeholder":
        return {"name": node.name, "constant": names.get(node.name)}
    if node.op == "output":
        return {"outputs": [each.name for each in node.args[0]]}
    if not str(node.target).startswith(("aten.", "quantized_decomposed.")) or node.kwargs.keys() - {"dtype"}:
        raise ExportError(f"{node.name}: {node.target} has no form here")
    return {"name": node.name, "operator": str(node.target), "args": _encoded(node.args), "kwargs": _encoded(node.kwargs)}


def _encoded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_encoded(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _encoded(each) for key, each in value.items()}
    if value is None or isinstance(value, bool | int | float):
        return value
    return {"value": value.name} if hasattr(value, "name") else {"dtype": str(value).removeprefix("torch.")}


def _read(data: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import numpy as np

    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(arrays.pop("/graph").tobytes()), arrays


def _run(steps: list[dict[str, Any]], constants: Mapping[str, Any], batch: Any) -> tuple[Any, ...]:
    import torch
    import torch.ao.quantization.fx._decomposed

    values: dict[str, Any] = {}
    inputs = iter(batch)

    def decoded(value: Any) -> Any:
        if isinstance(value, list):
            return [decoded(each) for each in value]
        if isinstance(value, dict):
            return values[value["value"]] if "value" in value else getattr(torch, value["dtype"])
        return value

    for step in steps:
        if "outputs" in step:
            return tuple(values[name] for name in step["outputs"])
        if "operator" not in step:
            values[step["name"]] = next(inputs) if step["constant"] is None else constants[step["constant"]]
            continue
        operator = torch.ops
        for part in step["operator"].split("."):
            operator = getattr(operator, part)
        kwargs = {key: decoded(value) for key, value in step["kwargs"].items()}
        values[step["name"]] = operator(*decoded(step["args"]), **kwargs)
    raise InputError("the graph has no outputs")


EXPORTER = ThirdExporter()
