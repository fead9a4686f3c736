"""Networks of transformers and timm, bare as their library builds them, and a `.pt2` of each: captured, compressed, saved, loaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qn_deploy.compression import compress
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.program.store import load, save
from qn_deploy.recipe import Int8, Recipe, Rule, Table

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
NETWORKS = ["bert", "gpt2", "llama", "t5", "wav2vec2", "mobilenetv3_small"]
RECIPE = Recipe((Rule(Table(4, 64), module="Linear"), Rule(Int8())), title="tables and int8")


@pytest.fixture
def entry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model, args and kwargs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    torch.manual_seed(0)
    return importlib.import_module("zoo_models").MODELS[request.param]()


def survives(program: Program, path: Path) -> None:
    """Most of it is compressed, and what is saved is what is loaded."""
    assert program.golden is not None
    compressed = compress(program, RECIPE, [program.golden.inputs])
    sizes = {name: tensor.numel() for name, tensor in program.exported.state_dict.items()}
    assert sum(sizes[name] for name in compressed.weights) > 0.8 * sum(sizes.values())
    save(compressed, path)
    loaded = load(path)
    assert loaded.weights.keys() == compressed.weights.keys()
    assert loaded.outputs == program.outputs
    inputs = program.golden.inputs
    found, expected = (each.exported.module(check_guards=False)(*inputs) for each in (loaded, compressed))
    assert len(found) == len(program.outputs) and all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("entry", NETWORKS, indirect=True)
def test_a_bare_network(entry: Any, tmp_path: Path) -> None:
    survives(capture(entry.model, entry.args, entry.kwargs), tmp_path / "model.pt")


@pytest.mark.slow
@pytest.mark.parametrize("entry", NETWORKS, indirect=True)
def test_its_pt2(entry: Any, tmp_path: Path) -> None:
    without_caches(entry.model)  # torch.export does not know their classes
    archive = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(entry.model, entry.args, entry.kwargs), archive)
    program = load(archive)
    with torch.no_grad():
        floats = entry.model(*entry.args, **entry.kwargs)
        found = program.exported.module(check_guards=False)(*entry.args, *entry.kwargs.values())
    floats = floats.to_tuple() if hasattr(floats, "to_tuple") else (floats,)
    for one, other in zip(found, floats, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    survives(program, tmp_path / "model.pt")


def without_caches(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False
