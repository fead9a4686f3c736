from __future__ import annotations

import pytest

from qn_deploy.program.archive import program_to_bytes
from qn_deploy.program.program import Program
from tests.program.archives import conv_program, words_program


@pytest.fixture(scope="session")
def program() -> Program:
    return conv_program()


@pytest.fixture(scope="session")
def good(program: Program) -> bytes:
    return program_to_bytes(program)


@pytest.fixture(scope="session")
def small() -> bytes:
    return program_to_bytes(words_program())
