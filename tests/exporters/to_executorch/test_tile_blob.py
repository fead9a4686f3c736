from __future__ import annotations

import random

import pytest
import torch

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch.tile_blob import HEADER, MAGIC, is_blob, pack, read, unpack
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.table_blob import DType, Layout, dense

SMALL = PQWeight(torch.tensor([[1, 2]], dtype=torch.uint8), torch.tensor([[[5], [-6], [7]]], dtype=torch.int8), torch.ones(1), (1, 2))
SMALL_BLOB = bytes.fromhex(
    "89 51 4e 54 49 4c 45 53 b4 a1 36 7f ef 59 43 85"  # magic
    "01 00 00 00  01 00 00 00  02 00 00 00"  # version, rows, columns
    "01 00 00 00  03 00 00 00  01 00 00 00"  # codebooks, centroids, block size
    "05 fa 07  21 00"  # centroids; the codes of row 0
) + bytes(126)  # of the tile's other rows


def table(out: int, columns: int, size: int, block: int, books: int, seed: int = 0) -> PQWeight:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(size, (out, columns), generator=draw).to(torch.uint8)
    centroids = torch.randint(-127, 128, (books, size, block), generator=draw, dtype=torch.int8)
    return PQWeight(codes, centroids, torch.ones(1), (out, columns * block))


TABLES = [
    table(*sizes, seed=index) for index, sizes in enumerate([(65, 6, 16, 2, 3), (3, 5, 200, 4, 1), (64, 4, 1, 8, 4), (1, 1, 256, 1, 1)])
]


def test_pack_writes_the_bytes_of_the_specification() -> None:
    assert pack(SMALL) == SMALL_BLOB and is_blob(SMALL_BLOB) and SMALL_BLOB.startswith(MAGIC)
    assert unpack(SMALL_BLOB) == bytes([0xFA, 7])


@pytest.mark.parametrize("weight", TABLES, ids=lambda weight: f"K={weight.centroids.shape[1]}")
def test_read_undoes_pack(weight: PQWeight) -> None:
    found = read(pack(weight))
    assert torch.equal(found.codes, weight.codes) and torch.equal(found.centroids, weight.centroids)
    assert unpack(pack(weight)) == dense(weight, Layout.OIS, DType.INT8)


def test_native_reader_reads_what_python_writes(read_natively) -> None:
    found = read_natively([pack(weight) for weight in TABLES])
    assert found == [pack(weight)[HEADER.size :] for weight in TABLES]


def test_native_reader_refuses_what_is_no_table(read_natively) -> None:
    rng = random.Random(0)
    blobs = [pack(TABLES[0])[:size] for size in range(16, 80)]
    for _ in range(2000):
        blob = bytearray(pack(rng.choice(TABLES)))
        blob[rng.randrange(16, HEADER.size)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        blobs.append(bytes(blob))
    accepted = [found is not None for found in read_natively(blobs)]
    for blob, taken in zip(blobs, accepted, strict=True):
        try:
            read(blob)
        except InputError:
            continue  # Python also refuses codes past the end of the weight, which a kernel does not read
        assert taken
    assert not any(accepted[:64]) and sum(accepted) < 500


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda blob: blob[:20], "no tile blob: 20 bytes"),
        (lambda blob: b"hello" * 20, "no tile blob: 100 bytes that start with 68 65"),
        (lambda blob: blob[:16] + b"\2" + blob[17:], "version 2"),
        (lambda blob: blob[:28] + b"\3" + blob[29:], "3 codebooks|no more codebooks than columns"),
        (lambda blob: blob[:41], "promises centroids up to byte 43"),
        (lambda blob: blob[:-1], "127 bytes of codes; expected 128"),
        (lambda blob: blob + b"\0", "129 bytes of codes; expected 128"),
        (lambda blob: blob[:-1] + b"\1", "past the end of the weight are not zero"),
        (lambda blob: blob[:40] + b"\x80" + blob[41:], "-128"),
        (lambda blob: blob[:43] + b"\x23" + blob[44:], "tile blob: "),
    ],
)
def test_a_broken_rule_is_named(change, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read(change(SMALL_BLOB))
