from __future__ import annotations

import io

import pytest
from rich.console import Console

from qn_deploy.compression.progress import Progress, progress_bar


def test_bars_show_stage_task_share_loss_and_layers() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    with progress_bar(console) as bar:
        bar(Progress(0, 3, "compressing", ("encoder.[0].weight",), 1.0))
        bar(Progress(1, 3, "fine-tuning", ("a.weight", "b.weight", "c.weight"), 0.5, loss=0.12345))
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    first, second = (next(line for line in reversed(shown) if task in line) for task in ("compressing", "fine-tuning"))
    assert "1/3 compressing" in first and "100%" in first and "encoder.[0].weight" in first
    assert "2/3 fine-tuning" in second and "50%" in second and "loss 0.1235" in second and "a.weight ... c.weight (3)" in second


def test_a_narrow_terminal_cuts_the_layers_names_only() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with progress_bar(console) as bar:
        bar(Progress(1, 4, "fine-tuning", ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.5.weight"), 0.5, loss=0.12345))
    line = next(line for line in reversed(console.file.getvalue().splitlines()) if "fine-tuning" in line)  # type: ignore[attr-defined]
    assert "2/4 fine-tuning" in line and "50%" in line and "loss 0.1235" in line and "bert.emb" in line


def test_without_a_terminal_it_writes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        bar(Progress(0, 1, "fine-tuning", ("a.weight",), 1.0, loss=1.0))
    captured = capsys.readouterr()
    assert captured.out == "" and "fine-tuning" in captured.err
