"""A model as a user has it becomes a Program: a `.pt2`, a model.pt, or the user's own code with a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from qn_deploy.compression.published import Rest
from qn_deploy.errors import InputError
from qn_deploy.program.batches import has_dynamic_batch
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.program.store import load
from qn_deploy.sources.checkpoint import load_weights
from qn_deploy.sources.code import call, is_name
from qn_deploy.sources.data import EXAMPLES, Data
from qn_deploy.sources.example import made_examples
from qn_deploy.sources.published import import_checkpoint

Examples = tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        model: the path of a `.pt2` or model.pt, or `package.module:function`, which gives the module when it is called.
        weights: a checkpoint for that module; None if it has its weights already.
        examples: descriptions of the inputs, see `made_examples`; if there are none, the data's first samples are taken.
    """

    model: str
    weights: Path | None = None
    examples: tuple[str, ...] = ()

    @property
    def is_code(self) -> bool:
        """True if the model is made by the user's code."""
        return is_name(self.model) and not Path(self.model).exists()

    def open(self, data: Data | None = None) -> Program:
        """The program.

        Args:
            data: for calibration; its first samples are the example inputs where none are described.

        Raises:
            InputError: the source can't be read, the weights do not fit, or there are no example inputs; the message says what to do.
            ExportError: torch.export can't capture the module.
        """
        described: Examples | None = made_examples(self.examples) if self.examples else None
        if self.is_code:
            return self._captured(described or (data.examples() if data else None))
        if self.weights is not None:
            raise InputError(
                f"--weights is for a model that your code makes, package.module:function; {self.model} holds its weights itself"
            )
        given = Path(self.model)
        if not given.exists():
            expected = "a source is a .pt2, a model.pt, or package.module:function"
            raise InputError(f"cannot read {given}: No such file or directory; {expected}")
        program = load(given, described)
        if described is None and data is not None and given.suffix == ".pt2":  # which holds none that may be opened
            first = data.for_program(program)[0]
            return load(given, tuple(tensor[:EXAMPLES] for tensor in first) if has_dynamic_batch(program) else first)
        return program

    def published(self, rest: Rest, data: Data | None = None) -> Program:
        """The program of a checkpoint with tables, `weights`, for the module that the user's code makes.

        Args:
            rest: what the weights without tables become.
            data: as for `open`.

        Raises:
            InputError: as `open`, or as `import_checkpoint`.
            ExportError: torch.export can't capture the module.
        """
        if not self.is_code:
            raise InputError(f"a checkpoint is imported into a network that your code makes, package.module:function; {self.model} is none")
        if self.weights is None:
            raise InputError("the checkpoint to import is missing: --weights FILE")
        model, args, kwargs = self._built(made_examples(self.examples) if self.examples else (data.examples() if data else None))
        return import_checkpoint(model, self.weights, args, kwargs, rest)

    def _captured(self, examples: Examples | None) -> Program:
        model, args, kwargs = self._built(examples)
        if self.weights is not None:
            load_weights(model, self.weights)
        return capture(model, args, kwargs)

    def _built(self, examples: Examples | None) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
        """The module that the user's code makes, and its example inputs by position and by name."""
        if examples is None:
            raise InputError(
                f"{self.model} needs example inputs to be captured with: --calibrate data.npz, or --example 'image=float32[1,3,224,224]'"
            )
        model = call(self.model)
        if not isinstance(model, nn.Module):
            raise InputError(f"{self.model} gives a {type(model).__name__}; expected a torch.nn.Module")
        model = model.eval().cpu()
        return (model, (), examples) if isinstance(examples, dict) else (model, tuple(examples), {})
