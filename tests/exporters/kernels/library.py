"""The kernels by ctypes, each path of this processor by itself."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from qn_deploy.exporters.compiler import find_compiler
from qn_deploy.exporters.kernels.build import FLAGS, SOURCES
from qn_deploy.exporters.kernels.packing import packed
from qn_deploy.weights.compressed import PQWeight

HERE = Path(__file__).parent
_int64, _pointer = ctypes.c_int64, ctypes.c_void_p


def compile_library(folder: Path, *options: str) -> Kernels:
    """Compiles the kernels and their C interface into `folder`."""
    library = folder / "kernels.so"
    command = [
        *find_compiler(),
        *FLAGS,
        *options,
        "-shared",
        "-Wall",
        "-Wextra",
        "-Werror",
        *map(str, SOURCES),
        str(HERE / "kernels_c.cpp"),
    ]
    subprocess.run([*command, "-o", str(library)], check=True)
    return Kernels(library)


class Kernels:
    """The library and the paths that it has here."""

    def __init__(self, library: Path) -> None:
        self.c = ctypes.CDLL(str(library))
        self.c.qn_path.restype = ctypes.c_char_p
        self.c.qn_create.restype = ctypes.c_char_p
        self.c.qn_row_sums.restype = ctypes.POINTER(ctypes.c_int32)
        self.paths = tuple(self.c.qn_path(index).decode() for index in range(self.c.qn_paths()))

    def table(self, weight: PQWeight, path: str | None = None) -> Table:
        """A weight made ready for a path, the fastest if None."""
        return Table(self, packed(weight), weight.centroids.numpy(), weight.codes.shape, path)


class Table:
    """A table of the library."""

    def __init__(self, kernels: Kernels, codes: np.ndarray, centroids: np.ndarray, shape: tuple[int, int], path: str | None) -> None:
        self.c, self.codes, self.centroids = kernels.c, np.ascontiguousarray(codes), np.ascontiguousarray(centroids)
        self.out, columns = shape
        self._made = ctypes.c_void_p()
        books, size, d = centroids.shape
        sizes = (_int64(self.out), _int64(columns), _int64(books), _int64(size), _int64(d))
        why = self.c.qn_create(
            _pointer(self.codes.ctypes.data),
            ctypes.c_size_t(self.codes.nbytes),
            _pointer(self.centroids.ctypes.data),
            ctypes.c_size_t(self.centroids.nbytes),
            *sizes,
            -1 if path is None else kernels.paths.index(path),
            ctypes.byref(self._made),
        )
        if why:
            raise ValueError(why.decode())

    def __del__(self) -> None:
        self.c.qn_destroy(self._made)

    def sums(self, x: np.ndarray, *, tiles: tuple[int, int] | None = None, turned: bool = False) -> np.ndarray:
        """int32 [rows, out] of int8 or uint8 (less 128) [rows, in]; `turned` lays the columns of x apart, as a 1x1 convolution does."""
        result = np.zeros((len(x), self.out), np.int32)
        laid = np.ascontiguousarray(x.T if turned else x)
        strides = (1, len(x)) if turned else (x.shape[1], 1)
        first, last = tiles or (0, -(-self.out // 64))
        flip = 0x80 if x.dtype == np.uint8 else 0
        self.c.qn_sums(
            self._made, _pointer(laid.ctypes.data), _int64(len(x)), *map(_int64, strides), flip, _int64(first), _int64(last),
            _pointer(result.ctypes.data),
        )  # fmt: skip
        return result

    def row_sums(self) -> np.ndarray:
        """int32 [out]."""
        return np.ctypeslib.as_array(self.c.qn_row_sums(self._made), (self.out,)).copy()

    def requantize(self, x: np.ndarray, x_zero: int, bias: np.ndarray, factor: np.ndarray, zero: int) -> np.ndarray:
        """uint8 [rows, out] of uint8 [rows, in], bias int32 [out], factor float32 [out] or [1]."""
        result = np.zeros((len(x), self.out), np.uint8)
        self.c.qn_requantize(
            self._made, _pointer(x.ctypes.data), _int64(len(x)), x_zero, _pointer(bias.ctypes.data), _pointer(factor.ctypes.data),
            int(factor.size > 1), zero, _pointer(result.ctypes.data),
        )  # fmt: skip
        return result
