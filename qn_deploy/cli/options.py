"""What several commands share: paths, and options that exporters bring."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from qn_deploy.errors import QnDeployError
from qn_deploy.units import read_minutes, read_size

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, for machines.")


class _Unit(click.ParamType):  # type: ignore[type-arg]
    """A value with a unit."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name, self._read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value) if isinstance(value, str) else value
        except QnDeployError as error:
            self.fail(str(error), param, ctx)


class WholeNumber(click.IntRange):
    """A whole number within bounds, which messages call so."""

    name = "whole number"


SIZE, MINUTES = _Unit("size", read_size), _Unit("time", read_minutes)


class _Path(click.Path):
    """A path; one with a NUL byte, which no file can have, is an error of usage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as pathlib has it."""
        if "\0" in os.fspath(value):
            self.fail("there is a NUL byte in the name", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
_CHOSEN = "qn_deploy.exporters"  # key of the context's notes


class ExportCommand(click.Command):
    """A command that also takes the options of all installed exporters, which are looked for when its own are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own options, then those of the exporters, then --help."""
        *own, last = super().get_params(ctx)
        return [*own, *_exporter_options(), last]


def chosen_options(context: click.Context) -> dict[str, dict[str, Any]]:
    """The options of exporters that differ from their defaults, by the exporter's name."""
    chosen: dict[str, dict[str, Any]] = context.meta.get(_CHOSEN, {})
    return chosen


def _exporter_options() -> Iterator[click.Option]:
    """An option for each flag; one that several exporters bring is chosen for all of them."""
    from qn_deploy.exporting.exporter import find_exporters

    brought: dict[str, list[tuple[str, Field[Any], Any]]] = {}
    for name, exporter in find_exporters().items():
        hints = get_type_hints(exporter.options)
        for entry in fields(exporter.options):
            flag = entry.metadata.get("flag", f"--{name}-{entry.name}".replace("_", "-"))
            brought.setdefault(flag, []).append((name, entry, hints[entry.name]))
    for flag, owners in brought.items():
        yield _option(flag, owners)


def _option(flag: str, owners: list[tuple[str, Field[Any], Any]]) -> click.Option:
    def keep(context: click.Context, _: click.Parameter, value: Any) -> None:
        for exporter, entry, _kind in owners:
            if value != entry.default:
                context.meta.setdefault(_CHOSEN, {}).setdefault(exporter, {})[entry.name] = value

    _, first, kind = owners[0]
    is_flag = kind is bool
    said: dict[str, list[str]] = {}
    for exporter, entry, _ in owners:
        said.setdefault(entry.metadata["help"], []).append(exporter)
    return click.Option(
        [flag],
        type=click.Choice(get_args(kind)) if get_origin(kind) is Literal else None if is_flag else kind,
        is_flag=is_flag,
        default=first.default,
        show_default=not is_flag,
        help=" ".join(f"{', '.join(names)}: {words}" for words, names in said.items()),
        expose_value=False,
        callback=keep,
    )
