"""report.html: one file that opens without a network, in light and dark, on a phone and on a desk."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from qn_deploy.errors import ToolchainError
from qn_deploy.files import write_atomic
from qn_deploy.report.charts import frontier, spans, stacked
from qn_deploy.report.facts import Facts, decibels, forms, full_bits
from qn_deploy.report.tables import size

_TEMPLATE = "report.html.jinja"


def page(facts: Facts) -> str:
    """The text of report.html.

    Raises:
        ToolchainError: matplotlib or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise ToolchainError("the report needs jinja2: pip install 'qn-deploy[report]'") from None
    text = (files("qn_deploy.report") / "templates" / _TEMPLATE).read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"size": size, "decibels": decibels}
    kilobytes = {name: {kind: count / 1024 for kind, count in parts.items()} for name, parts in facts.layers.items()}
    charts = {
        "kinds": stacked({"all": {kind: count / 1024 for kind, count in facts.kinds.items()}}, "KB"),
        "layers": stacked(kilobytes, "KB") if kilobytes else "",
        "ranges": spans(facts.ranges, "range; logarithmic beyond -1 and 1") if facts.ranges else "",
        "losses": stacked({name: {"SQNR of the layer's output": value} for name, value in facts.losses.items()}, "dB")
        if facts.losses
        else "",
        "frontier": frontier(facts.frontier, facts.chosen) if facts.frontier else "",
    }
    rendered: str = environment.from_string(text).render(facts=facts, charts=charts, forms=forms(facts.manifest), full_bits=full_bits)
    return rendered


def write_page(facts: Facts, path: Path) -> int:
    """Writes the page; its bytes.

    Raises:
        ToolchainError: matplotlib or jinja2 is not installed.
        InputError: the file can't be written.
    """
    data = page(facts).encode()
    write_atomic(path, data)
    return len(data)
