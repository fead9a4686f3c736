"""The exported graph as JSON and back: torch's own serializer, without its pickles and without what belongs to one machine."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor
from torch._export.serde import schema
from torch._export.serde import serialize as serde
from torch.export import ExportedProgram

from qn_deploy.errors import InputError, first_line
from qn_deploy.program.allow_list import PROGRAM, Allowed, check_graph, known
from qn_deploy.program.program import Batch


def dump_graph(exported: ExportedProgram) -> bytes:
    """The graph as JSON: no tensors, no stack traces, no class names; the same graph always gives the same bytes.

    Raises:
        InputError: the graph holds what a program may not hold, named in the message.
    """
    try:
        artifact = serde.serialize(exported, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False)
    except Exception as error:  # torch raises its SerializeError, assertions and more
        raise InputError(f"torch can't serialize the graph: {first_line(error)}") from error
    data = without_unused(json.loads(artifact.exported_program))
    data["torch_version"] = data["torch_version"].partition("+")[0]  # the same for builds with and without CUDA
    module = data["graph_module"]
    module["metadata"] = {}
    module["module_call_graph"] = [entry for entry in module["module_call_graph"] if entry["fqn"] == ""]
    for meta in module["graph"]["tensor_values"].values():
        meta["storage_offset"] = {"as_int": 0}  # of a parameter that was a part of a larger tensor; here it gets memory of its own
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}  # stack traces, files and class names of the user's machine
    check_graph(data)
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def load_graph(
    graph: Any, state_dict: dict[str, Tensor], constants: dict[str, Tensor], inputs: Batch | None, allowed: Allowed = PROGRAM
) -> ExportedProgram:
    """The graph that `dump_graph` wrote, or torch.export.save, with its tensors.

    Args:
        graph: the JSON.
        state_dict: parameters and persistent buffers by name.
        constants: the other buffers and lifted constants by name.
        inputs: example inputs; without them torch leaves the guards on sizes out.
        allowed: what may stand in the JSON.

    Raises:
        InputError: the JSON holds something that isn't on the allow-list; nothing of it was run.
    """
    check_graph(graph, allowed)
    checked = serde._dict_to_dataclass(schema.ExportedProgram, graph)  # type: ignore[no-untyped-call]
    return serde.ExportedProgramDeserializer().deserialize(checked, state_dict, constants, None if inputs is None else (inputs, {}))


def without_unused(value: Any) -> Any:
    """Drops fields that are new in some version of torch, as long as the graph makes no use of them."""
    if isinstance(value, dict):
        return {key: without_unused(child) for key, child in value.items() if child or known(key)}
    return [without_unused(child) for child in value] if isinstance(value, list) else value
