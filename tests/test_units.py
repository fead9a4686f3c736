from __future__ import annotations

import pytest

from qn_deploy.errors import InputError
from qn_deploy.units import read_minutes, read_size


@pytest.mark.parametrize(
    ("text", "size"), [("1.5MB", 3 << 19), ("300KB", 300 << 10), ("300 kib", 300 << 10), ("12345", 12345), ("1gb", 1 << 30), (".5KB", 512)]
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize(("text", "minutes"), [("10min", 10), ("90s", 1.5), ("1h", 60), ("0.5 m", 0.5)])
def test_times(text: str, minutes: float) -> None:
    assert read_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1.5TB", "0", "1,5MB", "nan", "1e6"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a size; write 1\.5MB"):
        read_size(text)


@pytest.mark.parametrize("text", ["", "10", "0s", "-1min", "1 day", "inf"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InputError, match="is not a time; write 10min"):
        read_minutes(text)
