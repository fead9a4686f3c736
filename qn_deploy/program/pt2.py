"""`.pt2`: an archive of `torch.export.save`, read without torch.export.load, which would run what stands in it.

The archive is a zip of stored members in one folder:

    models/NAME.json                        the graph, as torch's serializer writes it: checked against the allow-list, then read
    data/weights/NAME_weights_config.json   for each parameter and buffer its kind and the member that holds its raw bytes
    data/constants/NAME_constants_config.json
    data/weights/weight_0, ..., data/constants/tensor_0, ...
    data/sample_inputs/NAME.pt              a pickle: never opened

Nothing else of it is read. What a pickle or a library holds (tensors of classes of their own, custom objects, compiled code) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.export import ExportedProgram

from qn_deploy.errors import InputError
from qn_deploy.graph.constants import owner_of
from qn_deploy.program.allow_list import CAPTURED
from qn_deploy.program.batches import as_batch
from qn_deploy.program.graph_json import load_graph
from qn_deploy.program.members import Members, read_json
from qn_deploy.program.program import Batch, Golden, Program
from qn_deploy.program.pt2_graph import Captured, captured_from
from qn_deploy.program.pt2_tensors import read_tensors
from qn_deploy.program.settled import settled
from qn_deploy.program.shapes import check_shapes
from qn_deploy.program.signature import apart

SEED = 0
_MODEL = re.compile(r"([^/]+/)?models/([\w.-]+)\.json", re.ASCII)
_SAVE_AGAIN = "save it with torch.export.save(torch.export.export(model, example_inputs), path)"


def is_pt2(names: Iterable[str]) -> bool:
    """True if the members of a zip are those of an archive of torch.export.save."""
    return any(_MODEL.fullmatch(name) or name.endswith("archive_format") for name in names)


def program_from_pt2(members: Members, example_inputs: Batch | dict[str, Tensor] | None = None) -> Program:
    """The float Program of a `.pt2`.

    Args:
        members: of the zip.
        example_inputs: the golden inputs, a tensor for each input or a dict by its name; None to make them from the sizes and dtypes that
            the file states, float ones of normal random numbers, all others of zeros.

    Raises:
        InputError: the archive holds what is never opened, or its graph what a program can't hold; the message names it.
        ExportError: the graph changes a buffer or an input in place.
    """
    captured, exported = read_exported(members)
    inputs = made_inputs(exported)
    check_shapes(exported, inputs)
    with torch.no_grad():
        program = Program(settled(exported, inputs), Golden(inputs, ()), ())
        golden_inputs = inputs if example_inputs is None else as_batch(program, example_inputs, "example_inputs")
        outputs = exported.module(check_guards=False)(*golden_inputs)
    notes = [f"output {name} is left out: it is no tensor" for name in captured.left_out]
    if example_inputs is None:
        notes.append("the golden inputs are made up (random numbers, zeros for integers), since a .pt2 holds none that may be opened")
    return Program(
        program.exported,
        Golden(golden_inputs, tuple(outputs)),
        apart(captured.outputs, program.inputs),
        classes={name: captured.classes_of(owner_of(name)) for name in program.exported.graph_signature.inputs_to_parameters.values()},
        notes=tuple(notes),
    )


def read_exported(members: Members) -> tuple[Captured, ExportedProgram]:
    """The graph of a `.pt2` with its tensors, taking and returning flat tuples, and what the archive says of it.

    Raises:
        InputError: as `program_from_pt2`.
    """
    folder, name = _model(members)
    for entry, expected in (("archive_format", b"pt2"), ("archive_version", b"0"), ("byteorder", b"little")):
        found = bytes(members.get(folder + entry, b"nothing")[:20])
        if found != expected:
            raise InputError(f"has the {entry} {found!r}; this qn-deploy reads {expected!r} only: {_SAVE_AGAIN}")
    state_dict = read_tensors(members, f"{folder}data/weights/", f"{name}_weights_config.json")
    constants = read_tensors(members, f"{folder}data/constants/", f"{name}_constants_config.json")
    for key, tensor in state_dict.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise InputError(f"{key} is {tensor.dtype}; a program computes in float32: export model.float() instead")
    file = f"{folder}models/{name}.json"
    captured = captured_from(read_json(members[file], file))
    return captured, load_graph(captured.graph, state_dict, constants, None, CAPTURED)


def made_inputs(exported: ExportedProgram) -> Batch:
    """Inputs of the sizes that a graph was captured with, and dtypes as it states; the same ones each time."""
    draw = torch.Generator().manual_seed(SEED)
    names = exported.graph_signature.user_inputs
    values = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder" and node.name in names]
    sizes = [[size if isinstance(size, int) else max(2, size.node.hint or 2) for size in value.shape] for value in values]
    return tuple(made(size, value.dtype, draw) for size, value in zip(sizes, values, strict=True))


def made(sizes: list[int], dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    """An input that stands for any: normal random numbers, zeros for integers, true for bool."""
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=draw).to(dtype)
    return torch.ones(sizes, dtype=dtype) if dtype == torch.bool else torch.zeros(sizes, dtype=dtype)


def _model(members: Members) -> tuple[str, str]:
    """(folder, name) of the one model."""
    if compiled := [name for name in members if "data/aotinductor/" in name]:
        raise InputError(f"holds the compiled library {compiled[0][:100]!r}, which is never opened; {_SAVE_AGAIN}")
    found = [match for match in map(_MODEL.fullmatch, members) if match]
    if len(found) != 1:
        raise InputError(f"holds {len(found)} models; expected one: {_SAVE_AGAIN}")
    return found[0].group(1) or "", found[0].group(2)
