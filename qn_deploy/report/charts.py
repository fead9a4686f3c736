"""Charts as inline SVG, drawn by matplotlib; their text and lines take the colours of the page, so that they read in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qn_deploy.errors import ToolchainError

if TYPE_CHECKING:
    from qn_deploy.bench.measure import Times

# What is drawn in these colours becomes a colour of the page.
_TEXT, _LINE = "#010203", "#040506"
_PAGE = {_TEXT: "var(--text)", _LINE: "var(--line)"}
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b", "#ec4899")
_WIDTH, _BAR = 5.2, 0.22  # inches; a phone shows them as they are, a desk twice as large


def stacked(rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """A bar for each row, made of parts; the parts have the same colours in all rows.

    Args:
        rows: for each row the length of each of its parts.
        unit: of the lengths.
    """
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    figure, axes = _figure(len(rows) * _BAR + 1.0)
    left = [0.0] * len(rows)
    for part, colour in zip(parts, COLOURS * (1 + len(parts) // len(COLOURS)), strict=False):
        widths = [float(row.get(part, 0.0)) for row in rows.values()]
        axes.barh(list(rows), widths, left=left, color=colour, label=part, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    _legend(axes, len(parts))
    return _svg(figure, f"bars in {unit} for {len(rows)} rows")


def times_chart(times: Sequence[Times]) -> str:
    """A bar for each program and batch, its median time in ms, as an SVG file of its own."""
    rows = {f"{each.name}, batch {each.batch}": {each.name.partition(", ")[2]: each.p50_ms} for each in times}
    svg = stacked(rows, "ms, median").replace("<svg", '<svg style="background: white"', 1)
    for name, colour in (("var(--text)", "#1f2937"), ("var(--line)", "#d1d5db")):  # no page is around it
        svg = svg.replace(name, colour)
    return svg


def spans(rows: Mapping[str, tuple[float, float]], unit: str) -> str:
    """A bar for each row from its low to its high end."""
    figure, axes = _figure(len(rows) * _BAR + 0.8)
    lows, widths = [low for low, _ in rows.values()], [high - low for low, high in rows.values()]
    axes.barh(list(rows), widths, left=lows, color=COLOURS[0], height=0.6)
    axes.axvline(0, color=_LINE, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    return _svg(figure, f"ranges of {len(rows)} values")


def frontier(points: Sequence[tuple[float, float]], chosen: tuple[float, float] | None) -> str:
    """SQNR over size, and the point that was chosen."""
    figure, axes = _figure(3.2)
    axes.plot([x for x, _ in points], [y for _, y in points], color=COLOURS[0], marker="o", markersize=4, label="best found")
    if chosen is not None:
        axes.plot([chosen[0]], [chosen[1]], color=COLOURS[1], marker="D", markersize=9, linestyle="none", label="this model")
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("KB of weights")
    axes.set_ylabel("predicted SQNR in dB")
    _legend(axes, 2)
    return _svg(figure, f"size and loss of {len(points)} choices")


def _figure(height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ToolchainError("the report needs matplotlib: pip install 'qn-deploy[report]'") from None
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_TEXT, labelsize=7)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_TEXT)
        label.set_fontsize(8)
    axes.grid(axis="x", color=_LINE, linewidth=0.4)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_LINE)
    return figure, axes


def _legend(axes: Any, columns: int) -> None:
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=min(columns, 5),
        frameon=False,
        labelcolor=_TEXT,
        fontsize=7,
        handlelength=1,
        columnspacing=1,
    )


def _svg(figure: Any, title: str) -> str:
    """The SVG element alone, as wide as its place, with colours of the page; the same chart gives the same bytes."""
    import matplotlib

    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": ["sans-serif"], "font.sans-serif": ["DejaVu Sans"]}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for colour, name in _PAGE.items():
        svg = svg.replace(colour, name)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
