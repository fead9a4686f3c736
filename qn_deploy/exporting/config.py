"""What an export may choose: of its own, and for each exporter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qn_deploy.errors import InputError
from qn_deploy.exporting.exporter import Exporter
from qn_deploy.targets import DEFAULT_TARGET, TARGETS

Scheme = Literal["static", "static-qnnpack", "dynamic", "none"]


@dataclass(frozen=True)
class ExportConfig:
    """How a program is exported; plain values, so that it goes into the manifest and comes back.

    Attributes:
        target: where the files are to run: arm or x86, see `targets.py`.
        activations: how activations are quantized: static, static-qnnpack (wants one scale for each weight), dynamic or none. None takes
            static for a calibrated program, else dynamic; and none where an exporter takes neither.
        centroid_range: N keeps int8 weights within -N..N: 64 makes int8 sums exact on x86 processors without VNNI, at a small loss.
        only: names of the exporters to use; all that are installed if empty.
        options: for an exporter's name what it may choose, {"onnx": {"shell": True}}.
        allow_constant: export a program of which an output, or a channel of one, became constant (`collapse.py`).

    Raises:
        InputError: a value that is none of these.
    """

    target: str = DEFAULT_TARGET
    activations: Scheme | None = None
    centroid_range: int | None = None
    only: tuple[str, ...] = ()
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    allow_constant: bool = False

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"there is no target {self.target!r}; expected {' or '.join(TARGETS)}")
        if self.activations is not None and self.activations not in get_args(Scheme):
            raise InputError(f"there are no {self.activations!r} activations; expected {', '.join(get_args(Scheme))}")
        if self.centroid_range is not None and not 1 <= self.centroid_range <= 127:
            raise InputError(f"centroid_range is {self.centroid_range}; expected 1 to 127")


def options_for(name: str, exporter: Exporter, given: Mapping[str, Any]) -> Any:
    """The options of an exporter, an instance of its own dataclass.

    Args:
        name: of the exporter.
        exporter: the exporter itself.
        given: a value for each field that is not to have its default.

    Raises:
        InputError: a field that the dataclass does not have, or a value of another type.
    """
    hints = get_type_hints(exporter.options)
    known = [entry.name for entry in fields(exporter.options)]
    for key, value in given.items():
        if key not in known:
            raise InputError(f"the exporter {name} has no option {key!r}; it has {', '.join(known) or 'none'}")
        kind = hints[key]
        fits = value in get_args(kind) if get_origin(kind) is Literal else type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            expected = " or ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else kind.__name__
            raise InputError(f"the option {key!r} of the exporter {name} is {value!r}; expected {expected}")
    return exporter.options(**given)
