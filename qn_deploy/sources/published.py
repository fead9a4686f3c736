"""Checkpoints that hold tables, as kill-the-bits and fairseq write them: docs/formats/published.md says what lies where in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qn_deploy.compression.published import Blocks, Rest, with_tables
from qn_deploy.errors import InputError
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.sources.checkpoint import State, put_weights, read_checkpoint, without_prefix

_CODES, _BOOK, _COUNTS = ".assignments", ".centroids", ".counts"
_FACTS = (".n_blocks", ".k", ".is_conv")  # of a layer, beside its table
_BIAS = "_bias"  # ends the name of an entry that holds the bias of the layer named before it
_WHOLE = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_MOST = 1 << 16  # centroids that a code can choose from


@dataclass(frozen=True)
class Published:
    """What a checkpoint with tables says of a module.

    Attributes:
        tables: by the name of the weight.
        state: all tensors of the module, those of the tables decoded.
        folded: how many norms have no running statistics, which are folded into their weight and bias.
    """

    tables: dict[str, Blocks]
    state: State
    folded: int


def import_checkpoint(
    model: nn.Module, path: str | Path, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, rest: Rest = "int8"
) -> Program:
    """A published model with tables as a compressed Program: it keeps their codes, and rounds their centroids to int8.

    Args:
        model: the network that the checkpoint was made of, float32 on the CPU. Its parameters and buffers are set, to what the checkpoint
            decodes to: the float model that the program is verified against.
        path: a file of torch.save, as kill-the-bits or fairseq write it (docs/formats/published.md); no code in it is run.
        args: example inputs by position, see `capture`.
        kwargs: example inputs by name.
        rest: what all other weights become, "int8" or "float".

    Returns:
        The program; its notes and its provenance tell what rounding the centroids costs.

    Raises:
        InputError: the file can't be read, holds no tables, or they do not fit the module; the message names the layer.
        ExportError: the module can't be captured.
        CompressionError: a weight without a table can't be compressed.
    """
    path = Path(path)
    published = read_published(path, model)
    put_weights(model, published.state, path)
    program = with_tables(capture(model, args, kwargs), published.tables, rest)
    if not published.folded:
        return program
    note = f"{published.folded} norms have no running statistics in {path.name}: these are taken as folded into weight and bias"
    return replace(program, notes=(*program.notes, note))


def read_published(path: Path, model: nn.Module) -> Published:
    """Reads a checkpoint with tables.

    Args:
        path: of the file.
        model: the network that it was made of; it is not changed, and tells the shapes of the weights.

    Raises:
        InputError: as `import_checkpoint`.
    """
    held, by_layer = _found(read_checkpoint(path), path)
    wanted = model.state_dict()
    shorter = without_prefix(held)
    if _known(shorter, wanted) > _known(held, wanted):
        held = shorter
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in held if name.endswith((_CODES, _BOOK))))
    tables = {f"{layer}.weight": _table(held, layer, wanted, f"{path}: {layer}") for layer in layers}
    parts = {f"{layer}{part}" for layer in layers for part in (_CODES, _BOOK, _COUNTS, *_FACTS)}
    state = {name: value.detach() for name, value in held.items() if name not in parts and isinstance(value, Tensor)}
    if strange := sorted(name for name in tables if name in state):
        raise InputError(f"{path}: {strange[0]} stands there both by itself and as a table; which of them counts is not known")
    state |= {name: table.decoded() for name, table in tables.items()}
    fresh = _statistics(state, wanted) if by_layer else {}
    folded = sum(name.endswith(".running_var") for name in fresh)
    return Published(_by_first_name(tables, wanted, path), {**state, **fresh}, folded)


def _found(held: Any, path: Path) -> tuple[dict[str, Any], bool]:
    """The outermost map with tables, its names whole, and whether it has an entry for each layer."""
    waiting, seen = [held], set()
    while waiting:
        entry = waiting.pop(0)
        if not isinstance(entry, Mapping) or id(entry) in seen:
            continue
        seen.add(id(entry))
        names = [name for name in entry if isinstance(name, str)]
        if any(name.endswith((_CODES, _BOOK)) for name in names):
            return {name: entry[name] for name in names}, False
        if any(isinstance(part, Mapping) and {_CODES[1:], _BOOK[1:]} & set(part) for part in entry.values()):
            return _flat(entry), True
        waiting += entry.values()
    raise InputError(
        f"{path} holds no tables: expected LAYER.centroids and LAYER.assignments, or an entry with both for each layer. "
        "A checkpoint of float weights is for qn-deploy compress --weights"
    )


def _flat(entry: Mapping[Any, Any]) -> dict[str, Any]:
    """Entries by layer as names of tensors; `fc_bias` holds the bias of the layer `fc`, which has an entry of its own."""
    flat = {}
    for name, part in entry.items():
        if not isinstance(part, Mapping):
            flat[str(name)] = part
            continue
        owner = str(name).removesuffix(_BIAS)
        layer = owner if owner in entry and set(part) == {"bias"} else name
        flat.update({f"{layer}.{leaf}": value for leaf, value in part.items()})
    return flat


def _known(held: Mapping[str, Any], wanted: State) -> int:
    """How many tensors of a module have a value there."""
    return sum(name in wanted or (name.endswith(_CODES) and f"{name.removesuffix(_CODES)}.weight" in wanted) for name in held)


def _table(held: Mapping[str, Any], layer: str, wanted: State, where: str) -> Blocks:
    codes, book = (held.get(f"{layer}{part}") for part in (_CODES, _BOOK))
    if not isinstance(codes, Tensor) or not isinstance(book, Tensor):
        lacking = _CODES if not isinstance(codes, Tensor) else _BOOK
        raise InputError(f"{where} has no tensor {lacking[1:]}; a table is centroids and assignments")
    for name, tensor in (("centroids", book), ("assignments", codes)):
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            raise InputError(f"{where}.{name} is no plain tensor with values")
    if book.dtype not in _FLOATS or book.ndim != 2 or not book.numel() or len(book) > _MOST:
        raise InputError(f"{where}.centroids is {_said(book)}; expected float16 or float32 [K, d], K from 1 to {_MOST:,}")
    if codes.dtype not in _WHOLE or codes.ndim != 1:
        raise InputError(f"{where}.assignments is {_said(codes)}; expected whole numbers [n], a code for each block")
    weight = wanted.get(f"{layer}.weight")
    if weight is None:
        raise InputError(f"{where} has a table, but the network has no {layer}.weight; give the network that the checkpoint was made of")
    out, row, d = len(weight) if weight.ndim else 0, weight[0].numel() if weight.ndim else 0, book.shape[1]
    if not row or row % d:
        raise InputError(f"{where} has blocks of {d} weights, which do not divide the network's rows of {row} (shape {list(weight.shape)})")
    if len(codes) != out * (row // d):
        raise InputError(
            f"{where} has {len(codes):,} assignments; {out} rows of {row // d} blocks, as the network has, are {out * (row // d):,}"
        )
    if not bool(torch.isfinite(book).all()):
        raise InputError(f"{where}.centroids holds NaN or infinity; copy the file again")
    codes = codes.long()
    if (low := int(codes.min())) < 0 or (high := int(codes.max())) >= len(book):
        raise InputError(f"{where} has the assignment {low if low < 0 else high}; it has {len(book)} centroids, counted from 0")
    _check_facts(held, layer, weight, row // d, where)
    return Blocks(codes.reshape(row // d, out).t().contiguous(), book.detach().float(), tuple(weight.shape))


def _by_first_name(tables: dict[str, Blocks], wanted: State, path: Path) -> dict[str, Blocks]:
    """The tables by the first name of each weight, which a graph calls a tied one by."""
    first: dict[tuple[Any, ...], str] = {}
    names = {name: first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) for name, tensor in wanted.items()}
    found: dict[str, Blocks] = {}
    for name, table in tables.items():
        other = found.setdefault(names[name], table)
        if not torch.equal(other.decoded(), table.decoded()):
            raise InputError(f"{path}: the network ties {names[name]} and {name}, which have different tables there; untie them in it")
    return found


def _check_facts(held: Mapping[str, Any], layer: str, weight: Tensor, columns: int, where: str) -> None:
    """What a layer's entry says of itself has to be so of the network."""
    true = {".n_blocks": columns, ".is_conv": weight.ndim == 4, ".k": weight.shape[-1] if weight.ndim == 4 else 1}
    for name, value in true.items():
        said = held.get(f"{layer}{name}", value)
        if not isinstance(said, int) or said != value:
            raise InputError(f"{where} says {name[1:]} = {str(said)[:50]}; for the network's weight {list(weight.shape)} it is {value}")


def _statistics(state: State, wanted: State) -> State:
    """Mean 0 and variance 1 for norms whose weight and bias stand there and whose statistics do not: they are folded into these."""
    fresh: State = {}
    for name in wanted:
        owner, _, leaf = name.rpartition(".")
        mean, variance, count = (f"{owner}.{part}" for part in ("running_mean", "running_var", "num_batches_tracked"))
        if leaf == "running_var" and f"{owner}.weight" in state and not {mean, variance} & set(state):
            fresh |= {mean: torch.zeros_like(wanted[mean]), variance: torch.ones_like(wanted[variance])}
        if leaf == "num_batches_tracked" and count not in state:
            fresh[count] = torch.zeros_like(wanted[count])
    return fresh


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
