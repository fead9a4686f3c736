"""What a file is, told from its contents, and the way out if it is no program."""

from __future__ import annotations

from collections.abc import Iterable

from qn_deploy.errors import InputError
from qn_deploy.program.container import FROM_SOURCE, SAVE

LOAD_AND_SAVE = f"load it into your model and {SAVE}"


def check_zip(data: bytes) -> None:
    """Checks that a file is a zip, as model.pt and .pt2 are.

    Raises:
        InputError: it is something else, which the message names.
    """
    if not data:
        raise InputError("is empty; save the model again")
    if not data.startswith(b"PK\3\4"):
        raise InputError(_other(data))


def other_zip(names: Iterable[str]) -> InputError:
    """What to say of a zip with these members, which are not those of a program."""
    names = list(names)
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return InputError(f"is a TorchScript program, which is never opened; {FROM_SOURCE}")
    if any(name.endswith("data.pkl") for name in names):
        return InputError(f"is a torch.save checkpoint, weights without a graph; {LOAD_AND_SAVE}")
    return InputError(f"is a zip of something else ({', '.join(names[:3])[:200] or 'no members'}); for a model in memory, {SAVE}")


def _other(data: bytes) -> str:
    if data.startswith(b"\x80"):
        return f"is a pickle or an old torch.save file, which is never opened; {LOAD_AND_SAVE}"
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return f"is a safetensors file, weights without a graph; {LOAD_AND_SAVE}"
    if data[4:6] == b"ET":
        return "is an ExecuTorch program, a result of the export; give the model.pt that it was exported from"
    return f"is no program of qn-deploy; for a model in memory, {SAVE}"
