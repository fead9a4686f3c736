"""The user's own code, by its name: `package.module:function`."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qn_deploy.errors import InputError, QnDeployError, first_line


def is_name(text: str) -> bool:
    """True if a text has the form `package.module:function`."""
    module, colon, function = text.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def function_of(text: str) -> Callable[..., Any]:
    """The function or class that `package.module:function` names; modules in the current folder are found too.

    Args:
        text: the name.

    Returns:
        a function that calls it, and raises an InputError that says where, if it fails.

    Raises:
        InputError: it has another form, there is no such module or function, or importing the module fails.
    """
    if not is_name(text):
        raise InputError(f"{text!r} does not name a function; write package.module:function, my_net:build for example")
    module, _, name = text.partition(":")
    with _current_folder(), told(f"importing {module}"):
        try:
            held = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(f"{error.name}.")):
                raise InputError(f"there is no module {error.name!r} here; run from the folder that holds it, or install it") from None
            raise
    found = getattr(held, name, None)
    if not callable(found):
        names = [each for each in dir(held) if not each.startswith("_") and callable(getattr(held, each, None))]
        raise InputError(f"{module} has no function {name!r}; it has {', '.join(names[:8]) or 'none'}")

    def called(*args: Any) -> Any:
        with _current_folder(), told(f"calling {text}"):
            return found(*args)

    return called


def call(text: str) -> Any:
    """What the function gives that `package.module:function` names, called without arguments.

    Raises:
        InputError: as `function_of`, or the function fails; the message says where.
    """
    return function_of(text)()


class told:
    """Turns what goes wrong in the user's code into one line that says where it went wrong."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, QnDeployError):
            return
        last = traceback.extract_tb(trace)[-1]
        reason = first_line(error, "no message")
        where = f"{Path(last.filename).name}, line {last.lineno}"
        raise InputError(f"{self._doing} failed with {type(error).__name__}: {reason} ({where})") from error


@contextmanager
def _current_folder() -> Any:
    """Modules of the current folder can be imported, as with `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
