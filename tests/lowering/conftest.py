from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.integer import IntegerReference, inexact_operators
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Batch, Program


@pytest.fixture(scope="session")
def assert_exact() -> Callable[[Program, Batch], None]:
    """Asserts that each operator of a static program has an exact rule, and each runtime meets the reference bit for bit."""

    def check(program: Program, inputs: Batch) -> None:
        for exporter in find_exporters().values():
            written = write_file(exporter, program, Activations.STATIC)
            assert inexact_operators(written.lowered.exported) == []
            (found,) = exporter.run(written.data, (inputs,))
            for one, other in zip(found, IntegerReference(written.lowered.exported, exporter.rules)(inputs), strict=True):
                assert torch.equal(one, other)

    return check
