"""The codes of a table as the kernels read them: the layout of `table_linear.h`."""

from __future__ import annotations

import numpy as np

from qn_deploy.weights.compressed import PQWeight

TILE_ROWS = 64  # rows of the weight whose codes lie together
GROUP_COLUMNS = 4  # columns whose codes share two bytes
SMALL = 16  # codebooks up to this size fill one vector register, and their codes take 4 bits


def tiled(table: PQWeight) -> np.ndarray:
    """uint8 [tiles, groups, 64, 4] in 0..15: the codes of a table of at most 16 centroids; rows and columns past the end are zeros."""
    out, columns = table.codes.shape
    tiles, groups = -(-out // TILE_ROWS), -(-columns // GROUP_COLUMNS)
    padded = np.zeros((tiles * TILE_ROWS, groups * GROUP_COLUMNS), np.uint8)
    padded[:out, :columns] = table.codes.numpy()
    return padded.reshape(tiles, TILE_ROWS, groups, GROUP_COLUMNS).transpose(0, 2, 1, 3).copy()


def packed(table: PQWeight) -> np.ndarray:
    """uint8 [bytes]: the codes as a kernel reads them; two of 4 bits share a byte, the first in the low half."""
    if table.centroids.shape[1] > SMALL:
        return table.codes.numpy().reshape(-1)
    halves = tiled(table).reshape(-1)
    pairs: np.ndarray = halves[0::2] | halves[1::2] << 4
    return pairs


def unpacked(data: np.ndarray, out: int, columns: int, size: int) -> np.ndarray:
    """uint8 [out, columns]: the codes from what `packed` makes of them.

    Raises:
        ValueError: the bytes do not fill the table, or what is past its end is not zero.
    """
    if size > SMALL:
        if data.size != out * columns:
            raise ValueError(f"{data.size} bytes of codes; expected {out * columns}")
        return data.reshape(out, columns).copy()
    tiles, groups = -(-out // TILE_ROWS), -(-columns // GROUP_COLUMNS)
    if data.size != tiles * groups * TILE_ROWS * GROUP_COLUMNS // 2:
        raise ValueError(f"{data.size} bytes of codes; expected {tiles * groups * TILE_ROWS * GROUP_COLUMNS // 2}")
    halves = np.stack((data & 15, data >> 4), 1).reshape(tiles, groups, TILE_ROWS, GROUP_COLUMNS)
    padded = halves.transpose(0, 2, 1, 3).reshape(tiles * TILE_ROWS, groups * GROUP_COLUMNS)
    if padded[out:].any() or padded[:, columns:].any():
        raise ValueError("codes past the end of the weight are not zero")
    return padded[:out, :columns].copy()
