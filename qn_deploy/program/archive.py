"""model.pt: how a Program is written to a file and comes back. No pickle in it, nothing in it is ever run before it is checked.

The manifest lists every tensor of the graph with the name that it is stored under: tied tensors share one, and the baked values of a
compressed weight aren't stored at all, they are decoded again from its table.

tables.safetensors holds for a weight W, besides float32 W.scale [out] or [1]:
    table   W.centroids int8 [G, K, d]; W.codes uint8 or uint16 [out, B], or uint8 [ceil(out*B/2)] where two codes of 4 bits share a byte;
            W.residual_centroids and W.residual_codes alike, if its entry in the manifest says "residual"
    int8    W.values int8, of the weight's shape
    int4    W.values uint8 [ceil(n/2)], two values in two's complement a byte
Version 1 of the format, which is read as well, knew no int4 and no residual, and gave each code a byte.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qn_deploy.errors import InputError, QnDeployError
from qn_deploy.files import read_bytes, write_atomic
from qn_deploy.program.allow_list import is_path
from qn_deploy.program.container import pack, unpack
from qn_deploy.program.graph_json import dump_graph, first_line, load_graph
from qn_deploy.program.program import Batch, Golden, Program
from qn_deploy.recipe import Recipe
from qn_deploy.recipe.methods import code_bits
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight
from qn_deploy.weights.packing import pack_halves, unpack_halves

Tensors = dict[str, Tensor]
_PREFIXES = ("", "residual_")  # of the names of the first and second table of a weight


def write_program(program: Program, path: str | Path) -> None:
    """Writes a program as model.pt; the same program gives the same bytes.

    Raises:
        InputError: the program holds what the format can't hold (a custom operator, ...), or the file can't be written.
    """
    write_atomic(path, program_to_bytes(program))


def read_program(path: str | Path) -> Program:
    """Reads a model.pt.

    Raises:
        InputError: there is no such file, it is damaged, or it is something else; the message says what and the way out.
    """
    data = read_bytes(path)
    try:
        return program_from_bytes(data)
    except QnDeployError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # hashes hold and nothing foreign is in it: torch or this package has changed since
        message = f"{path}: torch {torch.__version__} can't rebuild the program ({first_line(error)}); save the model again"
        raise InputError(message) from error


def program_to_bytes(program: Program) -> bytes:
    """The bytes of a model.pt.

    Raises:
        InputError: as `write_program`.
    """
    exported, weights = program.exported, program.weights
    tensors = _tensors(exported)
    for name, weight in weights.items():
        if name not in tensors or not torch.equal(tensors[name], weight.dequantize()):
            raise InputError(f"{name} has a compressed form, but the graph has no such tensor with these values; bake the weights first")
    owners: dict[int, str] = {}
    owner = {name: owners.setdefault(id(weight), name) for name, weight in weights.items()}  # tied weights have one table
    stored = _stored_names(tensors, owner)
    manifest: dict[str, Any] = {
        "torch": torch.__version__.partition("+")[0],
        "inputs": [str(name) for name in exported.graph_signature.user_inputs],
        "recipe": None if program.recipe is None else json.loads(program.recipe.to_json()),
        "left": program.left,
        "weights": {name: _weight_entry(name, owner[name], weight) for name, weight in weights.items()},
        "tensors": [_tensor_entry(name, tensor, stored[name], exported) for name, tensor in tensors.items()],
    }
    tables = {key: tensor for name in owners.values() for key, tensor in _table(name, weights[name]).items()}
    plain = {name: tensor for name, tensor in tensors.items() if stored[name] == name and name not in weights}
    members = {
        "graph.json": dump_graph(exported),
        "weights.safetensors": _dump(plain),
        "tables.safetensors": _dump(tables),
        "golden.safetensors": _dump(_named({"inputs": program.golden.inputs, "outputs": program.golden.outputs})),
    }
    if program.calibration:
        members["calibration.safetensors"] = _dump(_named({str(index): batch for index, batch in enumerate(program.calibration)}))
    return pack(manifest, members)


def program_from_bytes(data: bytes) -> Program:
    """The program of a model.pt's bytes.

    Raises:
        InputError: as `read_program`, without the file's name; a damaged graph may raise what torch raises.
    """
    manifest, members = unpack(data)
    tables = _load(members["tables.safetensors"])
    owned = {name: _load_weight(name, entry, tables) for name, entry in manifest["weights"].items() if entry["kind"] != "tied"}
    weights = {name: owned[entry.get("to", name)] for name, entry in manifest["weights"].items()}
    plain = _load(members["weights.safetensors"])
    state_dict, constants = _load_tensors(manifest["tensors"], plain, weights)
    if tables or plain:
        raise InputError(f"holds tensors that the graph doesn't use: {[*tables, *plain][:3]}")
    examples = _load(members["golden.safetensors"])
    golden = Golden(_batch("inputs", examples), _batch("outputs", examples))
    calibration = _load(members["calibration.safetensors"]) if "calibration.safetensors" in members else {}
    return Program(
        exported=load_graph(members["graph.json"], state_dict, constants, golden.inputs),
        weights=weights,
        golden=golden,
        calibration=tuple(_batch(str(index), calibration) for index in range(len({key.split(".")[0] for key in calibration}))),
        recipe=None if manifest["recipe"] is None else Recipe.from_json(json.dumps(manifest["recipe"])),
        left={str(name): str(reason) for name, reason in manifest["left"].items()},
    )


def _tensors(exported: ExportedProgram) -> Tensors:
    tensors = {**exported.state_dict, **exported.constants}
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
            raise InputError(f"{name} is a {type(tensor).__name__} of another kind than a dense tensor; a program holds dense tensors only")
        if tensor.device.type != "cpu":
            raise InputError(f"{name} is on {tensor.device}; move the model to cpu and save it again")
        if not is_path(name):
            raise InputError(f"the name {name!r} of a tensor holds other characters than letters, digits, _ and -; rename the module")
    return tensors


def _stored_names(tensors: Tensors, owner: dict[str, str]) -> dict[str, str]:
    """For each tensor the name that its values are stored under: tied tensors have one, a compressed one if there is."""
    first: dict[object, str] = {}
    stored = {}
    for name in sorted(tensors, key=lambda name: name not in owner):
        tensor = tensors[name]
        view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        stored[name] = owner[name] if name in owner else first.get(view, name)
        first.setdefault(view, name)
    return stored


def _tensor_entry(name: str, tensor: Tensor, stored: str, exported: ExportedProgram) -> dict[str, Any]:
    kind = "constant" if name in exported.constants else "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    dtype = str(tensor.dtype).removeprefix("torch.")
    entry: dict[str, Any] = {"name": name, "kind": kind, "dtype": dtype, "shape": list(tensor.shape), "stored": stored}
    if tensor.requires_grad:
        entry["requires_grad"] = True
    if not tensor.is_contiguous():
        entry["order"] = _order(tensor)
    return entry


def _load_tensors(entries: list[dict[str, Any]], plain: Tensors, weights: dict[str, CompressedWeight]) -> tuple[Tensors, Tensors]:
    """Parameters and buffers, and constants, by name; takes what it uses out of `plain`."""
    state_dict: Tensors = {}
    constants: Tensors = {}
    loaded: dict[tuple[str, bool], Tensor] = {}
    values: Tensors = {}
    for entry in entries:
        name, stored, is_parameter = entry["name"], entry["stored"], entry["kind"] == "parameter"
        if not is_path(name):
            raise InputError(f"the manifest names a tensor {name!r}; expected letters, digits, _ and -")
        if stored not in values:
            source = weights[stored].dequantize() if stored in weights else plain.pop(stored)
            values[stored] = _in_order(source, entry["order"]) if "order" in entry else source
        tensor = values[stored]
        if list(tensor.shape) != entry["shape"] or str(tensor.dtype) != f"torch.{entry['dtype']}":
            raise InputError(f"{name} is {tensor.dtype} {list(tensor.shape)}; the manifest says {entry['dtype']} {entry['shape']}")
        if is_parameter:
            tensor = loaded.setdefault((stored, is_parameter), nn.Parameter(tensor, bool(entry.get("requires_grad"))))
        (constants if entry["kind"] == "constant" else state_dict)[name] = tensor
    return state_dict, constants


def _weight_entry(name: str, owner: str, weight: CompressedWeight) -> dict[str, Any]:
    if name != owner:
        return {"kind": "tied", "to": owner}
    if isinstance(weight, IntWeight):
        return {"kind": f"int{weight.bits}", "shape": list(weight.shape)}
    return {"kind": "table", "shape": list(weight.shape), **({"residual": True} if weight.residual else {})}


def _table(name: str, weight: CompressedWeight) -> Tensors:
    if isinstance(weight, IntWeight):
        return {f"{name}.values": pack_halves(weight.values) if weight.bits == 4 else weight.values, f"{name}.scale": weight.scale}
    parts = {f"{name}.scale": weight.scale}
    for prefix, table in zip(_PREFIXES, weight.tables, strict=False):
        packed = code_bits(table.centroids.shape[1]) == 4
        parts[f"{name}.{prefix}codes"] = pack_halves(table.codes) if packed else table.codes
        parts[f"{name}.{prefix}centroids"] = table.centroids
    return parts


def _load_weight(name: str, entry: dict[str, Any], tables: Tensors) -> CompressedWeight:
    scale, shape = tables.pop(f"{name}.scale"), tuple(entry["shape"])
    if entry["kind"] == "table":
        weight: PQWeight | None = None
        for prefix in reversed(_PREFIXES[: 2 if entry.get("residual") else 1]):
            codes, centroids = tables.pop(f"{name}.{prefix}codes"), tables.pop(f"{name}.{prefix}centroids")
            if codes.ndim == 1:
                codes = unpack_halves(codes, prod(shape) // centroids.shape[2]).reshape(shape[0], -1)
            weight = PQWeight(codes, centroids, scale, shape, residual=weight)
        assert weight is not None
        return weight
    if entry["kind"] == "int8":
        return IntWeight(tables.pop(f"{name}.values"), scale)
    if entry["kind"] == "int4":
        halves = unpack_halves(tables.pop(f"{name}.values"), prod(shape)).to(torch.int8)
        return IntWeight(((halves ^ 8) - 8).reshape(shape), scale, bits=4)
    raise InputError(f"{name} has a compressed form of kind {entry['kind']!r}; expected table, int8 or int4")


def _order(tensor: Tensor) -> list[int]:
    """Dimensions from the outermost in memory to the innermost: [0, 2, 3, 1] for channels_last."""
    return sorted(range(tensor.ndim), key=lambda axis: tensor.stride()[axis], reverse=True)


def _in_order(tensor: Tensor, order: list[int]) -> Tensor:
    return torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype).copy_(tensor)


def _named(batches: dict[str, Batch]) -> Tensors:
    return {f"{name}.{index}": tensor for name, batch in batches.items() for index, tensor in enumerate(batch)}


def _batch(name: str, tensors: Tensors) -> Batch:
    return tuple(tensors[f"{name}.{index}"] for index in range(sum(key.startswith(f"{name}.") for key in tensors)))


def _dump(tensors: Tensors) -> bytes:
    # clone: safetensors refuses tensors that share memory, and an input may stand twice in a batch
    return safetensors.torch.save({name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()})


def _load(data: bytes) -> Tensors:
    # clone: memory of torch's own alignment, since kernels may sum in another order without; and no views, which can't be detached in place
    return {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
