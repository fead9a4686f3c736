from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor, nn
from torch.nn import functional as F

from qn_deploy.errors import ToolchainError
from qn_deploy.exporters.compiler import find_compiler
from qn_deploy.exporters.kernels.build import FOLDER
from qn_deploy.exporters.to_executorch import EXPORTER, build
from qn_deploy.exporters.to_executorch.pte import backends, named_data
from qn_deploy.exporting.exporter import Written
from qn_deploy.program.program import Batch
from qn_deploy.quiet import quiet
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.table_blob import DType, named_blobs

Q = torch.ops.quantized_decomposed
STEP = 0.05  # of the static int8 activations


def random_table(shape: tuple[int, ...], block: int, size: int = 16, books: int = 1, residual: int = 0, seed: int = 0) -> PQWeight:
    torch.manual_seed(seed)
    scale = torch.rand(shape[0]) * 0.01 + 0.001
    second = None
    for books_of, size_of in ((1, residual), (books, size)) if residual else ((books, size),):
        codes = torch.randint(0, size_of, (shape[0], prod(shape[1:]) // block), dtype=torch.uint8)
        centroids = torch.randint(-127, 128, (books_of, size_of, block), dtype=torch.int8)
        second = PQWeight(codes, centroids, scale, shape, residual=second)
    assert second is not None
    return second


TABLES = {
    "conv": random_table((32, 8, 3, 3), block=9, seed=1),
    "grouped": random_table((64, 16, 1, 1), block=4, seed=2),
    "depthwise": random_table((64, 1, 5, 5), block=25, size=8, seed=3),
    "linear": random_table((48, 64), block=8, books=4, residual=32, seed=4),
}


class Net(nn.Module):
    """One layer of each kind. With int8 activations they are static around the convolutions and dynamic before the linear layer."""

    def __init__(self, int8: bool) -> None:
        super().__init__()
        self.int8 = int8
        for name, table in TABLES.items():
            self.register_buffer(name, table.int8() if int8 else table.dequantize())
            self.register_buffer(name + "_scale", table.scale)
            self.register_buffer(name + "_zero", torch.zeros(table.shape[0], dtype=torch.int64))
            self.register_buffer(name + "_bias", torch.linspace(-1, 1, table.shape[0]))

    def weight(self, name: str) -> Tensor:
        values: Tensor = getattr(self, name)
        if not self.int8:
            return values
        scale, zero = getattr(self, name + "_scale"), getattr(self, name + "_zero")
        return Q.dequantize_per_channel(values, scale, zero, 0, -127, 127, torch.int8)

    def static(self, x: Tensor) -> Tensor:
        if not self.int8:
            return x
        return Q.dequantize_per_tensor(Q.quantize_per_tensor(x, STEP, 3, -128, 127, torch.int8), STEP, 3, -128, 127, torch.int8)

    def dynamic(self, x: Tensor) -> Tensor:
        if not self.int8:
            return x
        scale, zero = Q.choose_qparams.tensor(x, -128, 127, 1e-7, torch.int8)
        return Q.dequantize_per_tensor.tensor(
            Q.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8), scale, zero, -128, 127, torch.int8
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.static(x)
        x = self.static(F.conv2d(x, self.weight("conv"), self.conv_bias, padding=1).relu())
        x = self.static(F.conv2d(x, self.weight("grouped"), self.grouped_bias, groups=2))
        x = self.static(F.conv2d(x, self.weight("depthwise"), self.depthwise_bias, groups=64))
        return F.linear(self.dynamic(x.mean((2, 3))), self.weight("linear"), self.linear_bias)


@dataclass(frozen=True)
class Lowered:
    stock: bytes
    tables: dict[str, bytes]
    inputs: tuple[Tensor, ...]
    outputs: Tensor


@pytest.fixture(scope="session", params=list(DType), ids=lambda dtype: dtype.name.lower())
def lowered(request: pytest.FixtureRequest) -> Lowered:
    torch.set_num_threads(1)
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    net = Net(int8=request.param is DType.INT8).eval()
    inputs = (torch.randn(1, 8, 7, 7, generator=torch.Generator().manual_seed(0)),)
    with quiet():
        edge = to_edge_transform_and_lower(
            torch.export.export(net, inputs),
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        stock = bytes(edge.to_executorch().buffer)
    held = named_data(stock)
    tables = {key: blob for table in TABLES.values() for key, blob in named_blobs(table, request.param).items() if key in held}
    return Lowered(stock, tables, inputs, net(*inputs))


@pytest.fixture(scope="session")
def payloads() -> Callable[[bytes], list[bytes]]:
    """Gives the payload of each delegate of a .pte."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    return lambda pte: [bytes(inline.data) for inline in deserialize_pte_binary(pte).program.backend_delegate_data]


@pytest.fixture(scope="session")
def twins() -> Callable[[Written, Batch], Batch]:
    """Runs a written program, which computes bit for bit what the dense one does; and that comes out of the stock form."""

    def run(written: Written, inputs: Batch) -> Batch:
        dense = EXPORTER.dense(written.data)
        assert EXPORTER.rebuild(written.companions) == dense
        assert backends(dense) <= {"XnnpackBackend"}
        (found,), (expected,) = EXPORTER.run(written.data, (inputs,)), EXPORTER.run(dense, (inputs,))
        assert all(map(torch.equal, found, expected))
        return found

    return run


READER = r"""
#include <cstdio>
#include <memory>
#include <sstream>
#include <vector>
#include "graph_blob.h"
#include "layer_blob.h"
#include "table_blob.h"
#include "tile_blob.h"

template <class Blob, class Expand>
void answer(const std::optional<Blob>& blob, uint64_t size, Expand expand) {
  std::unique_ptr<uint8_t[]> out(new uint8_t[size]);
  if (!blob || !expand(out.get())) size = ~uint64_t{0};
  fwrite(&size, sizeof size, 1, stdout);
  if (size != ~uint64_t{0}) fwrite(out.get(), size, 1, stdout);
}

int main() {  // stdin: (u32 length, blob)*; stdout: (u64 length or all ones, what the blob stands for)*
  uint32_t size;
  while (fread(&size, sizeof size, 1, stdin) == 1) {
    std::unique_ptr<uint8_t[]> data(new uint8_t[size]);  // exactly as long as the blob, so that the sanitizer sees every step past it
    if (size && fread(data.get(), size, 1, stdin) != 1) return 1;
    if (qn::GraphBlob::has_magic(data.get(), size)) {
      const auto blob = qn::GraphBlob::parse(data.get(), size);
      answer(blob, blob ? blob->graph_bytes() : 0, [&](void* out) { return blob->inflate(out); });
    } else if (const auto table = qn::TileBlob::parse(data.get(), size)) {
      std::vector<uint8_t> parts(table->centroids, table->centroids + table->centroid_bytes);
      parts.insert(parts.end(), table->codes, table->codes + table->code_bytes);
      answer(table, parts.size(), [&](void* out) { return std::memcpy(out, parts.data(), parts.size()) != nullptr; });
    } else if (const auto layer = qn::LayerBlob::parse(data.get(), size)) {
      std::ostringstream said;
      said << static_cast<int>(layer->kind) << ' ' << layer->x_scale << ' ' << layer->x_zero;
      said << ' ' << layer->y_scale << ' ' << layer->y_zero;
      said << ' ' << layer->low << ' ' << layer->high << ' ' << layer->weight << ' ' << layer->scale << ' ' << layer->bias;
      answer(layer, said.str().size(), [&](void* out) { return std::memcpy(out, said.str().data(), said.str().size()) != nullptr; });
    } else {
      const auto blob = qn::TableBlob::parse(data.get(), size);
      answer(blob, blob ? blob->dense_bytes() : 0, [&](void* out) { return blob->expand(out), true; });
    }
  }
}
"""
Reader = Callable[[list[bytes]], list["bytes | None"]]


@pytest.fixture(scope="session")
def read_natively(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Reads blobs with the headers of native/ under the sanitizers: what each stands for, None where it is refused.

    Of a tile blob centroids and codes, of a layer blob its fields in words.
    """
    try:
        compiler = find_compiler()
    except ToolchainError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader.cpp").write_text(READER)
    command = [*compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    native = Path(build.__file__).parent / "native"
    files = [str(folder / "reader.cpp"), str(FOLDER / "table.cpp"), "-o", str(folder / "reader"), build.find_zlib(compiler)]
    subprocess.run([*command, f"-I{native}", *files], check=True)

    def read(blobs: list[bytes]) -> list[bytes | None]:
        given_bytes = b"".join(struct.pack("<I", len(blob)) + blob for blob in blobs)
        limited = {"ASAN_OPTIONS": "max_allocation_size_mb=1024"}  # a reader that asks for more than a graph may have is stopped
        answer = subprocess.run([folder / "reader"], input=given_bytes, capture_output=True, check=False, env=limited)
        assert answer.returncode == 0, answer.stderr.decode()
        results: list[bytes | None] = []
        at = 0
        for _ in blobs:
            (size,) = struct.unpack_from("<Q", answer.stdout, at)
            at += 8
            results.append(None if size == 2**64 - 1 else answer.stdout[at : at + size])
            at += 0 if size == 2**64 - 1 else size
        assert at == len(answer.stdout)
        return results

    return read
