"""The command line, one file a command. Torch and the runtimes are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

from typing import Any

import click

from qn_deploy.cli import android, bench, compress, demo, devices, export, importing, inspect, report, targets, unpack, verify
from qn_deploy.errors import QnDeployError


class UserError(click.ClickException):
    """Shown as one line, `Error: ...`."""

    exit_code = 2


class Commands(click.Group):
    """Errors that a user can act on are one line and exit code 2; a traceback is a bug of ours."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Reads the options before the command's name."""
        try:
            return super().parse_args(context, args)
        except click.UsageError as error:
            raise _in_one_line(error, context) from None

    def invoke(self, context: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(context)
        except click.UsageError as error:
            raise _in_one_line(error, context) from None
        except QnDeployError as error:
            raise UserError(str(error)) from None
        except BrokenPipeError:  # the reader of our output has seen enough: click ends quietly
            raise
        except OSError as error:  # a full disk, a folder that is not ours: in the cache or among the temporary files
            place = error.filename or "a file"
            raise UserError(f"{place}: {error.strerror or error}; TMPDIR and XDG_CACHE_HOME choose other folders") from None


def _in_one_line(error: click.UsageError, context: click.Context) -> click.ClickException:
    """A wrong command line as one line that names the command whose help tells more; a call for help stays as it is."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    path = error.ctx.command_path if error.ctx else f"{context.command_path} {context.invoked_subcommand or ''}".strip()
    message = " ".join(error.format_message().split()).rstrip(".")
    return UserError(f"{message}{'' if message.endswith('?') else '.'} See {path} --help")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="qn-deploy")
def main() -> None:
    """Turns models trained with Quant-Noise into small, verified programs for phones and edge boards.

    Start with: qn-deploy demo

    \b
    Examples:
      qn-deploy compress net.pt2 --calibrate data.npz --max-size 1.5MB
      qn-deploy export model.pt --target arm --out build
      qn-deploy verify build
    """  # noqa: D301  # click wants the character


for _module in (android, bench, compress, demo, devices, export, importing, inspect, report, targets, unpack, verify):
    main.add_command(_module.command)
