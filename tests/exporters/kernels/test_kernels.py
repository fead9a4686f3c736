"""The kernels give the sums of the dense int8 product, on every path, to the last bit."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qn_deploy.exporters.kernels.packing import packed
from qn_deploy.weights.compressed import PQWeight

from .library import HERE, Kernels, Table, compile_library

SIMDE = Path("/usr/include/simde/x86/avx512.h")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return compile_library(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if not SIMDE.exists():
        pytest.skip("SIMDe emulates AVX-512; Debian: apt-get install libsimde-dev")
    return compile_library(tmp_path_factory.mktemp("emulated"), "-DQN_SIMDE", f"-I{HERE}")


def table_of(seed: int, out: int, columns: int, books: int, size: int, d: int, top: int = 127) -> PQWeight:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, size, (out, columns)).astype(np.uint8)
    centroids = rng.integers(-top, top + 1, (books, size, d)).astype(np.int8)
    if seed % 3 == 0:  # the largest sums there are
        centroids = np.where(centroids < 0, -top, top).astype(np.int8)
    return PQWeight(torch.from_numpy(codes), torch.from_numpy(centroids), torch.ones(1), (out, columns * d))


def activations(seed: int, rows: int, columns: int, dtype: type = np.int8) -> np.ndarray:
    rng = np.random.default_rng(seed + 1)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    values = rng.integers(low, high + 1, (rows, columns))
    return (np.where(values > (low + high) / 2, high, low) if seed % 3 == 0 else values).astype(dtype)


def dense(weight: PQWeight, x: np.ndarray) -> np.ndarray:
    values = weight.int8().numpy().reshape(len(weight.codes), -1).astype(np.float64)
    return (x.astype(np.float64) @ values.T).astype(np.int64)


@st.composite
def tables(draw: st.DrawFn) -> PQWeight:
    size = draw(st.one_of(st.integers(1, 16), st.integers(17, 256)))
    d = draw(st.sampled_from((1, 2, 3, 4, 5, 6, 8, 9, 16, 24, 33, 64)))
    columns = draw(st.one_of(st.integers(1, 33), st.sampled_from((63, 64, 65, 128, 255, 257, 300))))
    books = draw(st.integers(1, min(columns, 9)))
    out = draw(st.one_of(st.integers(1, 8), st.sampled_from((63, 64, 65, 127, 200))))
    return table_of(draw(st.integers(0, 1000)), out, columns, books, size, d, draw(st.sampled_from((3, 63, 127))))


def check_sums(kernels: Kernels, weight: PQWeight, rows: int, seed: int, turned: bool) -> None:
    x = activations(seed, rows, weight.shape[1])
    expected = dense(weight, x)
    for path in kernels.paths:
        table = kernels.table(weight, path)
        np.testing.assert_array_equal(table.sums(x, turned=turned), expected, err_msg=path)
        np.testing.assert_array_equal(table.sums((x ^ -128).view(np.uint8), turned=turned), expected, err_msg=path)
        np.testing.assert_array_equal(table.row_sums(), dense(weight, np.ones_like(x[:1]))[0], err_msg=path)


rows_of_x = st.one_of(st.integers(1, 9), st.sampled_from((17, 65, 130)))


@settings(deadline=None, max_examples=40)
@given(weight=tables(), rows=rows_of_x, seed=st.integers(0, 1000), turned=st.booleans())
def test_sums_are_those_of_the_dense_product(kernels: Kernels, weight: PQWeight, rows: int, seed: int, turned: bool) -> None:
    check_sums(kernels, weight, rows, seed, turned)


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(weight=tables(), rows=rows_of_x, seed=st.integers(0, 1000), turned=st.booleans())
def test_sums_of_many_more_tables(kernels: Kernels, weight: PQWeight, rows: int, seed: int, turned: bool) -> None:
    check_sums(kernels, weight, rows, seed, turned)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(weight=tables(), rows=st.integers(1, 9), seed=st.integers(0, 1000), turned=st.booleans())
def test_avx512_gives_the_same_sums(emulated: Kernels, weight: PQWeight, rows: int, seed: int, turned: bool) -> None:
    assert {"avx512vbmi", "avx512"} <= set(emulated.paths)
    check_sums(emulated, weight, rows, seed, turned)


@pytest.mark.parametrize(("columns", "d"), [(17, 32), (9, 64), (29, 18), (21, 24)])
def test_the_last_columns_of_long_blocks_are_not_those_before(kernels: Kernels, columns: int, d: int) -> None:
    check_sums(kernels, table_of(1, 130, columns, 1, 16, d), 40, 1, turned=False)


def test_the_largest_row_does_not_overflow(kernels: Kernels) -> None:
    weight = table_of(0, 1, 65536, 1, 1, 1)
    x = np.full((1, 65536), -128, np.int8)
    for path in kernels.paths:
        np.testing.assert_array_equal(kernels.table(weight, path).sums(x), dense(weight, x), err_msg=path)


def test_some_tiles_are_some_of_the_outputs(kernels: Kernels) -> None:
    weight = table_of(1, 300, 40, 2, 16, 2)
    x = activations(1, 3, 80)
    for path in kernels.paths:
        sums = kernels.table(weight, path).sums(x, tiles=(1, 3))
        np.testing.assert_array_equal(sums[:, 64:192], dense(weight, x)[:, 64:192], err_msg=path)
        assert not sums[:, :64].any() and not sums[:, 192:].any()


def test_codes_past_the_last_centroid_stand_for_zeros(kernels: Kernels) -> None:
    for size in (3, 20):
        codes = np.full(packed(table_of(1, 5, 8, 1, size, 2)).shape, 255, np.uint8)
        centroids = np.full((1, size, 2), 7, np.int8)
        for path in kernels.paths:
            table = Table(kernels, codes, centroids, (5, 8), path)
            np.testing.assert_array_equal(table.sums(activations(1, 2, 16)), np.zeros((2, 5)), err_msg=path)


def test_steps_are_rounded_to_even_and_clamped(kernels: Kernels) -> None:
    weight = table_of(5, 70, 24, 3, 16, 2)
    x = activations(2, 5, 48, np.uint8)
    bias = np.random.default_rng(0).integers(-5000, 5000, 70).astype(np.int32)
    sums = dense(weight, x.astype(np.int64) - 131) + bias
    for factor in (np.full(1, 0.5**9, np.float32), np.linspace(1e-3, 2e-2, 70, dtype=np.float32)):
        expected = np.clip(np.rint(sums.astype(np.float32) * factor) + 120, 0, 255)
        for path in kernels.paths:
            np.testing.assert_array_equal(kernels.table(weight, path).requantize(x, 131, bias, factor, 120), expected, err_msg=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 257}, "1 to 256 centroids"),
        ({"d": 0}, "1 to 64 weights"),
        ({"columns": 70000}, "1 to 65536 weights"),
        ({"books": 5}, "1 codebook to 1 for each column"),
        ({"code_bytes": -1}, "the codes do not fill the weight"),
        ({"centroid_bytes": 1}, "the centroids do not fill"),
        ({"centroid": -128}, "a centroid is -128"),
    ],
)
def test_what_is_no_table_is_refused(kernels: Kernels, change: dict[str, int], message: str) -> None:
    plain = {"out": 3, "columns": 4, "books": 1, "size": 16, "d": 2}
    sizes = {key: change.get(key, value) for key, value in plain.items()}
    codes = np.zeros(128 + change.get("code_bytes", 0), np.uint8)
    centroids = np.full(32 + change.get("centroid_bytes", 0), change.get("centroid", 1), np.int8)

    made = ctypes.c_void_p()
    numbers = map(ctypes.c_int64, sizes.values())
    why = kernels.c.qn_create(
        ctypes.c_void_p(codes.ctypes.data), ctypes.c_size_t(codes.nbytes), ctypes.c_void_p(centroids.ctypes.data),
        ctypes.c_size_t(centroids.nbytes), *numbers, -1, ctypes.byref(made),
    )  # fmt: skip
    assert why is not None and message in why.decode()


def test_packed_codes_lie_in_tiles_of_rows_and_groups_of_columns() -> None:
    weight = table_of(4, 65, 6, 1, 16, 2)
    codes = weight.codes.numpy()
    bytes_ = packed(weight)
    assert bytes_.shape == (2 * 2 * 64 * 2,)
    assert bytes_[0] == codes[0, 0] | codes[0, 1] << 4 and bytes_[1] == codes[0, 2] | codes[0, 3] << 4
    assert bytes_[2] == codes[1, 0] | codes[1, 1] << 4  # the next row of the tile
    assert bytes_[128] == codes[0, 4] | codes[0, 5] << 4 and bytes_[129] == 0  # the next group; columns past the end
    assert bytes_[256] == codes[64, 0] | codes[64, 1] << 4 and not bytes_[258:384].any()  # the next tile; rows past the end
