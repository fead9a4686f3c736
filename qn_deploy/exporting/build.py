"""What an export gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Group

from qn_deploy.exporting.manifest import Manifest
from qn_deploy.report.tables import as_text, build_table


@dataclass(frozen=True)
class Build:
    """A build folder. `print(build)` gives a table of its files, rich's print the same in colour.

    Attributes:
        folder: where the files lie.
        manifest: what they are.
    """

    folder: Path
    manifest: Manifest

    def __rich__(self) -> Group:
        """The table of files, for rich."""
        return build_table(str(self.folder), self.manifest)

    def __str__(self) -> str:
        return as_text(self)
