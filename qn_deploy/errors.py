"""Errors that a user can act on.

Every message says what was found, what was expected and what to do, and names the layer or the file. The command line prints the
message alone and exits with 2; a traceback is only ever a bug of ours.
"""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class QnDeployError(Exception):
    """Base of all errors that are about the user's input or machine, not about our code.

    A message is one line, whatever the names from a file in it hold: control characters, which a terminal may obey, are written as Python
    writes them in a literal.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(_CONTROL.sub(lambda found: repr(found[0])[1:-1], message))


class InputError(QnDeployError):
    """A file, tensor or option that the user gave can't be used."""


class CompressionError(QnDeployError):
    """A weight can't be compressed as the recipe asks."""


class ExportError(QnDeployError):
    """A model can't be lowered or written for the target."""


class ToolchainError(QnDeployError):
    """A compiler or library that a stage needs is missing on this machine."""


def first_line(error: BaseException, silent: str = "") -> str:
    """The first line of what an error says; of one that says nothing it is `silent`, or else the name of its class."""
    return next(iter(str(error).strip().splitlines()), silent or type(error).__name__)
