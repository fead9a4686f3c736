"""Values that wait for their readers: in memory up to a limit, beyond it in temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor


class _Place(NamedTuple):
    """Where a tensor lies in a file, and what it looks like."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Spool:
    """Keeps values by key. Plain reads and writes, no mapped memory: what lies in a file does not count as this process's memory.

    Args:
        limit: bytes of tensors that are held in memory; the ones after that go to files, one for each `group`, in the folder for temporary
            files.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._values: dict[Hashable, Any] = {}
        self._files: dict[Hashable, tuple[IO[bytes], set[Hashable]]] = {}

    def put(self, group: Hashable, part: Hashable, value: Any) -> None:
        """Keeps a value as part of a group. What is no tensor stays in memory."""
        if isinstance(value, Tensor):
            value = _own(value)
            if self.held + value.nbytes > self.limit and value.nbytes:
                value = self._written(group, part, value)
            else:
                self.held += value.nbytes
        self._values[group, part] = value

    def get(self, group: Hashable, part: Hashable, last: bool = False) -> Any:
        """The value; if it is the last time, it is forgotten."""
        value = self._values.pop((group, part)) if last else self._values[group, part]
        if isinstance(value, _Place):
            return self._read(group, part, value, last)
        if last and isinstance(value, Tensor):
            self.held -= value.nbytes
        return value

    def _written(self, group: Hashable, part: Hashable, value: Tensor) -> _Place:
        if group not in self._files:
            self._files[group] = tempfile.TemporaryFile(), set()  # noqa: SIM115, it lives until its last part was read
        file, parts = self._files[group]
        parts.add(part)
        place = _Place(file.seek(0, 2), value.dtype, tuple(value.shape), value.stride())
        file.write(value.as_strided((value.numel(),), (1,)).view(torch.uint8).numpy().data)
        return place

    def _read(self, group: Hashable, part: Hashable, place: _Place, last: bool) -> Tensor:
        file, parts = self._files[group]
        value = torch.empty_strided(place.shape, place.stride, dtype=place.dtype)
        file.seek(place.offset)
        file.readinto(value.as_strided((value.numel(),), (1,)).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
        if last:
            parts.remove(part)
            if not parts:
                file.close()
                del self._files[group]
        return value


def _own(value: Tensor) -> Tensor:
    """The tensor in memory of just its size, in the order of its strides: a view of a larger one would keep all of that."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
