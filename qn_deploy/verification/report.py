"""What verification found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from qn_deploy.exporting.manifest import Manifest
from qn_deploy.report.tables import as_text, report_table
from qn_deploy.verification.judge import Check

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Report:
    """The lines of all rungs. `print(report)` gives them as a table, rich's print the same in colour.

    Attributes:
        folder: of the build.
        manifest: of the build.
        checks: sorted by rung.
    """

    folder: str
    manifest: Manifest
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True if checks passed and none failed."""
        verdicts = [check.passed for check in self.checks]
        return True in verdicts and False not in verdicts

    @property
    def verdict(self) -> str:
        """The last line, in rich's markup."""
        verdicts = [check.passed for check in self.checks]
        if failed := verdicts.count(False):
            return f"[bold red]{failed} check{'s' * (failed != 1)} failed[/]"
        passed = verdicts.count(True)
        return f"[green]all {passed} checks passed[/]" if passed else "[bold red]nothing was checked[/]"

    def to_json(self) -> str:
        """The report for machines."""
        return json.dumps({"folder": self.folder, "passed": self.passed, "checks": [asdict(check) for check in self.checks]}, indent=1)

    def __rich__(self) -> Group:
        """The table, for rich."""
        return report_table(self.folder, self.checks, self.verdict)

    def __str__(self) -> str:
        return as_text(self)
