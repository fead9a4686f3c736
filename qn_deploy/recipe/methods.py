"""What a recipe can ask for: a table, int8, int4, or float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from qn_deploy.errors import InputError

MAX_CENTROIDS = 1 << 16  # what one 16-bit code can address
_TABLE_SHARE = 0.05  # of the codes' bytes that the codebooks may take, unless the recipe gives their number

Range = Literal["minmax", "least_squares"]
"""How an integer range is chosen: the largest magnitude at its end, or the clipping that loses the least squared error."""


def code_bits(centroids: int) -> int:
    """Bits of a code into a table of so many centroids: 4, 8 or 16. Two codes of 4 bits share a byte."""
    return 4 if centroids <= 16 else 8 if centroids <= 256 else 16


@dataclass(frozen=True)
class Table:
    """Product quantization: one code for each block of `block_size` weights (paper section 3.2).

    Attributes:
        block_size: d, the weights that one code stands for.
        centroids: K, the size of a codebook, 2 to 65,536. Up to 16, two codes share a byte; over 256, a code takes two.
        codebooks: G, each for its share of a row's block columns; None for as many as keep the tables under 5 % of the codes.
        residual: size of a second codebook, 2 to 65,536, that codes what the first leaves of each block; 0 for none.

    Raises:
        InputError: sizes out of these ranges.
    """

    block_size: int
    centroids: int = 256
    codebooks: int | None = None
    residual: int = 0

    def __post_init__(self) -> None:
        sizes = (self.centroids, self.residual or 2)
        books = 1 if self.codebooks is None else self.codebooks
        if min(self.block_size, books) < 1 or not all(2 <= size <= MAX_CENTROIDS for size in sizes):
            raise InputError(
                f"a table of {self.codebooks} codebooks of {self.centroids} centroids (residual {self.residual}) for blocks of "
                f"{self.block_size}; expected 2 to {MAX_CENTROIDS:,} centroids, blocks and codebooks of 1 or more"
            )

    def books(self, out: int, columns: int) -> int:
        """G for a weight of `out` rows of `columns` blocks."""
        if self.codebooks is not None:
            return min(self.codebooks, columns)
        return max(1, min(columns, int(_TABLE_SHARE * self._code_bytes(out * columns) / self._book_bytes())))

    def pays(self, out: int, row: int) -> bool:
        """True if a table with all its centroids in use is smaller than one byte for each weight of `out` rows of `row` weights."""
        columns = row // self.block_size
        books = self.books(out, columns)
        distinct = out * -(-columns // books)  # no codebook can have more centroids than blocks
        used = min(self.centroids, distinct) + min(self.residual, distinct)
        return self._code_bytes(out * columns) + books * used * self.block_size < out * row

    def _code_bytes(self, blocks: int) -> int:
        bits = code_bits(self.centroids) + (code_bits(self.residual) if self.residual else 0)
        return -(-blocks * bits // 8)

    def _book_bytes(self) -> int:
        return (self.centroids + self.residual) * self.block_size


@dataclass(frozen=True)
class _Integer:
    bits: ClassVar[int]
    default: ClassVar[Range]
    range: Range | None = None

    def __post_init__(self) -> None:
        if self.range is not None and self.range not in get_args(Range):
            raise InputError(f"range {self.range!r} is none of {', '.join(get_args(Range))}")

    @property
    def searched(self) -> bool:
        """True if the range is searched for, by least squares."""
        return (self.range or self.default) == "least_squares"


@dataclass(frozen=True)
class Int8(_Integer):
    """Symmetric int8 weights, one scale per output channel (paper section 3.1).

    Attributes:
        range: "minmax", which is the default, or "least_squares".
    """

    bits: ClassVar[int] = 8
    default: ClassVar[Range] = "minmax"


@dataclass(frozen=True)
class Int4(_Integer):
    """Symmetric int4 weights, one scale per output channel (paper section 3.1); two weights share a byte.

    Attributes:
        range: "minmax" or "least_squares", which is the default: fifteen steps are too few to reach for the largest weight.
    """

    bits: ClassVar[int] = 4
    default: ClassVar[Range] = "least_squares"


@dataclass(frozen=True)
class Float:
    """The weight stays float32."""


Method = Table | Int8 | Int4 | Float
METHODS: dict[str, type[Method]] = {"table": Table, "int8": Int8, "int4": Int4, "float": Float}
