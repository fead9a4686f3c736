"""The options by which `compress`, `export` and `import` are told of a model and its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qn_deploy.cli.options import PATH

if TYPE_CHECKING:
    from qn_deploy.compression.published import Rest
    from qn_deploy.program.program import Batch, Program
    from qn_deploy.sources.data import Data
    from qn_deploy.sources.source import Source

_OPTIONS = (
    click.argument("source", metavar="SOURCE"),
    click.option(
        "--weights", type=PATH, metavar="FILE", help="Weights for the module that SOURCE makes: .safetensors or .pt, read safely."
    ),
    click.option(
        "--example", "examples", multiple=True, metavar="NAME=DTYPE[SIZES]", help="An example input, image=float32[1,3,224,224]; repeat it."
    ),
    click.option(
        "--calibrate", "calibration", metavar="DATA", help="A few hundred samples: an .npz, a folder of images, or package.module:function."
    ),
    click.option(
        "--preprocess", metavar="TEXT", help="For a folder of images: 'resize=256 crop=224 mean=0.485,0.456,0.406 std=0.229,0.224,0.225'."
    ),
)


@dataclass(frozen=True)
class Given:
    """What these options say."""

    source: str
    weights: Path | None
    examples: tuple[str, ...]
    calibration: str | None
    preprocess: str | None

    def open(self) -> tuple[Program, tuple[Batch, ...] | None]:
        """The program, and batches for calibration if data was given."""
        return self._with_batches(lambda source, data: source.open(data))

    def imported(self, rest: Rest) -> tuple[Program, tuple[Batch, ...] | None]:
        """The program of a checkpoint with tables, and batches as of `open`; `rest` is what its other weights become."""
        return self._with_batches(lambda source, data: source.published(rest, data))

    def _with_batches(self, opened: Callable[[Source, Data | None], Program]) -> tuple[Program, tuple[Batch, ...] | None]:
        from qn_deploy.sources.data import CALIBRATION, read_data
        from qn_deploy.sources.source import Source

        data = read_data(self.calibration, self.preprocess) if self.calibration is not None else None
        program = opened(Source(self.source, self.weights, self.examples), data)
        return program, data.for_program(program, CALIBRATION) if data is not None else None

    def more(self, text: str, program: Program) -> tuple[Batch, ...]:
        """All of other data of any kind that --calibrate takes, images preprocessed alike."""
        from qn_deploy.sources.data import read_data

        return read_data(text, self.preprocess if Path(text).is_dir() else None).for_program(program)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command, which gets a `Given` as `given`."""

    @wraps(command)
    def with_given(
        *args: Any,
        source: str,
        weights: Path | None,
        examples: tuple[str, ...],
        calibration: str | None,
        preprocess: str | None,
        **rest: Any,
    ) -> Any:
        return command(*args, given=Given(source, weights, examples, calibration, preprocess), **rest)

    return reduce(lambda wrapped, option: option(wrapped), reversed(_OPTIONS), with_given)
