from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from qn_deploy.verification import ladder
from tests.verification.folders import run_here

# Its program is a word, and it does what the word says.
THIRD = """
    import os, signal, sys, time
    import torch

    class ThirdExporter:
        def run(self, data, batches, optimized=True, parts=None):
            word = data.decode()
            if word == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            if word == "exit":
                sys.exit("the licence has run out")
            if word == "raise":
                raise ValueError("no kernel for\\nMatMul")
            if word == "raise nothing":
                raise KeyError
            if word == "sleep":
                time.sleep(600)
            if word == "talk":
                print("[W] a runtime's chatter"); print("[W] more of it", file=sys.stderr)
            if word == "views":
                return tuple((batch[0], batch[0], batch[0].flatten()[:2].T) for batch in batches)
            if word == "flags":
                return tuple((torch.tensor(optimized), torch.tensor(os.getpid()), torch.empty(0, 3)) for batch in batches)
            return tuple(tuple(tensor + 1 for tensor in batch) for batch in batches)

    EXPORTER = ThirdExporter()
"""


@pytest.fixture
def third_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an exporter that somebody else's package brings: a module and its dist-info, in this process and its children."""
    site = tmp_path / "site"
    info = site / "third-1.dist-info"
    info.mkdir(parents=True)
    (site / "third_exporter.py").write_text(textwrap.dedent(THIRD))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[qn_deploy.exporters]\nthird = third_exporter:EXPORTER\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    return "third"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the runtimes in this process."""
    monkeypatch.setattr(ladder, "run_isolated", run_here)
