from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qn_deploy.compression import IPQConfig, ipq
from qn_deploy.exporting.export import export
from qn_deploy.recipe import Recipe, Rule, Table
from qn_deploy.report.facts import gather
from qn_deploy.report.page import page

LARGEST = 1 << 20  # bytes of a page


def test_export_draws_the_page_into_the_build(build: Any) -> None:
    text = (build.folder / "report.html").read_text()
    assert len(text.encode()) < LARGEST
    assert "Ranges of activations" in text and "Not run." in text  # of the model; the ladder is verify's
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)


@pytest.mark.slow
def test_a_model_trained_by_ipq_shows_the_loss_of_its_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    small = ipq(net, Recipe((Rule(Table(4, 16)),)), [(torch.randn(32, 16),)], IPQConfig(steps=2, final_steps=2))
    export(small, tmp_path / "build")
    facts = gather(tmp_path / "build", small, None)
    for text, tuned in ((page(facts), False), (page(replace(facts, tuned=True)), True)):
        section = text.split("<h2>Loss by layer</h2>")[1].split("</section>")[0]
        assert "<svg" in section and all(name in section for name in ("0.weight", "2.weight"))
        assert ("before it was tuned" in section) is tuned
