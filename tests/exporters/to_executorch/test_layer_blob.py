from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch.layer_blob import Kind, Layer, graph_of, is_blob, pack

STATIC = Layer("a_int8", Kind.STATIC, "abc", "scale_de", "f", (0.5, -3), (0.25, 4), (-128, 100))
DYNAMIC = Layer("b_int8", Kind.DYNAMIC, "weight", "scale", "")
STATIC_BLOB = bytes.fromhex(
    "89 51 4e 4c 41 59 45 52 5f 06 ce 5c 31 72 f9 a3"  # magic
    "01 00 00 00  00 00 00 00"  # version, kind
    "00 00 00 3f  fd ff ff ff  00 00 80 3e  04 00 00 00"  # scale and zero point of the input, of the output
    "80 ff ff ff  64 00 00 00"  # least and most step
    "03 00 00 00  08 00 00 00  01 00 00 00"  # lengths of the keys
)


def test_pack_writes_the_bytes_of_the_specification() -> None:
    assert pack(STATIC, b"graph") == STATIC_BLOB + b"abcscale_defgraph"
    assert graph_of(pack(STATIC, b"graph")) == b"graph"
    assert is_blob(STATIC_BLOB) and not is_blob(b"graph")


def test_native_reader_reads_what_python_writes(read_natively) -> None:
    convolution = replace(STATIC, kind=Kind.CONVOLUTION)
    static, dynamic, found = read_natively([pack(STATIC, b"graph"), pack(DYNAMIC, b""), pack(convolution, b"")])
    assert static == b"0 0.5 -3 0.25 4 -128 100 abc scale_de f"
    assert dynamic is not None and dynamic.startswith(b"1 1 ") and dynamic.endswith(b"weight scale ")
    assert found == b"2" + static[1:]


def test_native_reader_refuses_broken_blobs(read_natively) -> None:
    whole = pack(STATIC, b"")
    wrong = [{"x": (value, 0)} for value in (0.0, -1.0, inf, nan)] + [{"y": (value, 0)} for value in (0.0, -1.0, inf, nan)]
    wrong += [{"x": (1.0, 128)}, {"y": (1.0, -129)}, {"bounds": (-129, 0)}, {"bounds": (0, 128)}, {"bounds": (1, 0)}]
    blobs = [pack(replace(STATIC, **change), b"") for change in wrong]
    blobs += [whole[:size] for size in range(16, len(whole))]
    blobs += [whole[:at] + value + whole[at + 1 :] for at, value in ((16, b"\2"), (20, b"\3"))]  # version, kind
    blobs += [whole[:at] + b"\x7f" + whole[at + 1 :] for at in (48, 51, 52, 55, 56, 59)]  # lengths
    assert read_natively(blobs) == [None] * len(blobs)


@pytest.mark.parametrize("blob", [b"", STATIC_BLOB[:40], b"hello" * 30, STATIC_BLOB + b"abcscale_def"])
def test_a_blob_without_a_graph_is_refused(blob: bytes) -> None:
    with pytest.raises(InputError, match="layer blob"):
        graph_of(blob)
