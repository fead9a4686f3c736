from __future__ import annotations

import re
import struct
from hashlib import sha256
from itertools import count

import pytest
import torch
from torch import nn

from qn_deploy.errors import ExportError, InputError
from qn_deploy.exporters.to_executorch import graph_blob
from qn_deploy.exporters.to_executorch.pte import backends, constants, named_data, short_keys, to_stock, to_tables
from qn_deploy.weights.table_blob import MAGIC, is_blob


def starts(pte: bytes) -> list[int]:
    """Offsets of the table blobs in a .pte."""
    return [match.start() for match in re.finditer(re.escape(MAGIC), pte)]


def test_xnnpack_stores_each_weight_under_the_key_of_its_blob(lowered) -> None:
    # Linear, grouped 1x1, 3x3 and depthwise, int8 and float32: stored_layouts has to agree with XNNPACK's serializer on all of them.
    assert len(lowered.tables) == 4


def test_to_tables_stores_blobs_and_renames_the_backend(lowered) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    assert {key: data for key, data in named_data(pte).items() if is_blob(data)} == {key[:8]: blob for key, blob in lowered.tables.items()}
    assert (backends(lowered.stock), backends(pte)) == ({"XnnpackBackend"}, {"QnXnnpackBackend"})
    saved = sum(len(named_data(lowered.stock)[key]) - len(blob) for key, blob in lowered.tables.items())
    assert len(pte) <= len(lowered.stock) - saved - 56 * len(named_data(pte))


def test_to_tables_compresses_each_graph(lowered, payloads) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    graphs = payloads(pte)
    assert all(graph.startswith(graph_blob.MAGIC) for graph in graphs)
    blanked = [re.sub(rb"([0-9a-f]{16})[0-9a-f]{48}", rb"\g<1>" + b"0" * 48, graph) for graph in payloads(lowered.stock)]
    assert [graph_blob.inflate(graph) for graph in graphs] == blanked  # of each key the digits that XNNPACK's cache tells programs apart by


def test_to_tables_shortens_keys_to_eight_digits_of_the_digest(lowered) -> None:
    full, short = named_data(lowered.stock), named_data(to_tables(lowered.stock, lowered.tables))
    assert list(short) == [key.removesuffix(sha256(data).hexdigest()) + sha256(data).hexdigest()[:8] for key, data in full.items()]
    assert {len(key) for key in short} <= {8, len("scale_") + 8}


def test_keys_that_would_become_one_stay_as_they_are() -> None:
    seen: dict[str, bytes] = {}
    for number in count():
        data = struct.pack("<I", number)
        other = seen.setdefault(sha256(data).hexdigest()[:8], data)
        if other != data:
            break
    one, two, third = sha256(data).hexdigest(), sha256(other).hexdigest(), sha256(b"third").hexdigest()
    constants = {one: data, two: other, third: b"third", "scale_" + one: data, "named by hand": b"", "0" * 64: b"not its digest"}
    short = {key: short_keys(constants).get(key, key) for key in constants}
    assert short == {**{key: key for key in constants}, third: third[:8], "scale_" + one: "scale_" + one[:8]}


def test_beside_another_backend_keys_and_alignment_stay(lowered, payloads) -> None:
    first, second = b"XnnpackBackend", b"AnotherBackend"
    if lowered.stock.count(first) < 2:
        pytest.skip("the program has one delegate")
    mixed = lowered.stock.replace(first, second, 1)
    pte = to_tables(mixed, lowered.tables)
    assert named_data(pte).keys() == named_data(mixed).keys()
    assert backends(pte) == {"AnotherBackend", "QnXnnpackBackend"}
    assert sum(graph_blob.is_blob(payload) for payload in payloads(pte)) == len(payloads(mixed)) - 1
    assert to_stock(pte) == mixed
    assert not any(at % 128 for at in starts(pte))


def test_segments_start_where_xnnpack_wants_them(lowered) -> None:
    offsets = starts(to_tables(lowered.stock, lowered.tables))
    assert not any(at % 16 for at in offsets)
    assert any(at % 128 for at in offsets)


def test_to_stock_gives_the_stock_program_back_byte_for_byte(lowered) -> None:
    assert to_stock(to_tables(lowered.stock, lowered.tables)) == lowered.stock == to_stock(lowered.stock)


def test_a_program_without_any_of_the_constants_stays_as_it_is(lowered) -> None:
    assert to_tables(lowered.stock, {sha256(b"another").hexdigest(): b"blob"}) is lowered.stock


def test_constants_come_without_their_padding() -> None:
    from executorch.exir import to_edge

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rows", torch.arange(15, dtype=torch.int8).reshape(15, 1))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.embedding(self.rows, ids)

    pte = bytes(to_edge(torch.export.export(Lookup(), (torch.tensor([3]),))).to_executorch().buffer)
    assert bytes(range(15)) in constants(pte)


def test_a_table_of_another_constant_is_refused(lowered) -> None:
    first, second, *_ = lowered.tables
    with pytest.raises(ExportError, match="does not match its key"):
        to_tables(lowered.stock, {first: lowered.tables[second]})


def test_tables_are_not_put_in_twice(lowered) -> None:
    with pytest.raises(ExportError, match="given tables before"):
        to_tables(to_tables(lowered.stock, lowered.tables), lowered.tables)


def test_a_constant_that_does_not_match_its_short_key_is_refused(lowered) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    bias = next(data for data in named_data(pte).values() if not is_blob(data))
    with pytest.raises(InputError, match="its key does not match"):
        to_stock(pte.replace(bias, bytes([bias[0] ^ 1]) + bias[1:]))


def test_a_damaged_graph_is_refused(lowered) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    version = pte.index(graph_blob.MAGIC) + 16
    with pytest.raises(InputError, match="graph blob of version 9"):
        to_stock(pte[:version] + b"\x09" + pte[version + 1 :])


def test_a_damaged_table_is_refused(lowered) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    version = pte.index(MAGIC) + 16
    with pytest.raises(InputError, match="version 9"):
        to_stock(pte[:version] + b"\x09" + pte[version + 1 :])


@pytest.mark.parametrize("data", [b"", b"hello", bytes(range(256)) * 2], ids=["empty", "text", "noise"])
def test_what_is_no_program_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="no ExecuTorch program"):
        named_data(data)
