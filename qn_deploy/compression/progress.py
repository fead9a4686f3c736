"""How far a long run has come: what it tells its caller, and bars that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich import progress as bars
from rich.console import Console
from rich.table import Column


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        stage: from 0; a group of layers, or the int8 stage at the end of iPQ.
        stages: how many there are.
        task: what is done now, "compressing" or "fine-tuning".
        names: the weights that it is about.
        share: of this task of this stage that is done; it ends with 1.
        loss: the last one, None while weights are compressed.
    """

    stage: int
    stages: int
    task: str
    names: tuple[str, ...]
    share: float
    loss: float | None = None


Tell = Callable[[Progress], None]


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Tell]:
    """Bars in the terminal, one for each task of each stage, with the layers' names and the loss.

        with progress_bar() as bar:
            compressed = ipq(model, recipe, batches, progress=bar)

    Args:
        console: where to draw; stderr if None.
    """
    columns = (
        bars.TextColumn("{task.fields[stage]} {task.description}", markup=False),
        bars.BarColumn(10),
        bars.TaskProgressColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[loss]}"),
        bars.TextColumn("{task.fields[names]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),  # gives way where it is narrow
    )
    with bars.Progress(*columns, console=console or Console(stderr=True), expand=True) as shown:
        tasks: dict[tuple[int, str], bars.TaskID] = {}

        def tell(at: Progress) -> None:
            key = at.stage, at.task
            if key not in tasks:
                stage = f"{at.stage + 1}/{at.stages}"
                tasks[key] = shown.add_task(at.task, total=1.0, stage=stage, loss="", names="")
            loss = "" if at.loss is None else f"loss {at.loss:.4g}"
            shown.update(tasks[key], completed=at.share, loss=loss, names=_short(at.names))

        yield tell


def _short(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]} ({len(names)})"
