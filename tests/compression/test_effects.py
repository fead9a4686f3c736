from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qn_deploy.compression.compress import CompressConfig
from qn_deploy.compression.effects import Effects, effects_of, ladder
from qn_deploy.compression.targets import Target, targets
from qn_deploy.graph.lifted import unlifted, with_constants
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Batch, Program
from qn_deploy.recipe import Float, Int4, Int8, Recipe, Rule, Table

BATCHES = 4


@pytest.fixture(scope="module")
def net() -> tuple[Program, list[Target], list[Batch]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 16), nn.Tanh(), nn.Linear(16, 6))
    batches: list[Batch] = [(torch.randn(16, 2, 6, 6),) for _ in range(BATCHES)]
    program = capture(module, (batches[0][0][:2],))
    return program, targets(program, Recipe((Rule(Int8()),)))[0], batches


@pytest.fixture(scope="module")
def effects(net: tuple[Program, list[Target], list[Batch]]) -> Effects:
    program, found, batches = net
    return effects_of(program, found, batches, CompressConfig(rounds=1), draws=512)


@torch.no_grad()
def run(exported: ExportedProgram, images: Tensor) -> Tensor:
    (output,) = unlifted(exported)(images)
    return output


def test_the_ladder_has_forms_of_many_sizes_and_only_such_as_pay(net: tuple[Program, list[Target], list[Batch]]) -> None:
    conv, linear, small = map(ladder, net[1])
    assert {Float(), Int8(), Int4(), Table(9, 16), Table(2, 16)} <= set(conv)
    assert {Table(8, 256), Table(16, 16), Table(4, 16)} <= set(linear) and not any(
        getattr(method, "block_size", 1) == 9 for method in small
    )
    assert not any(isinstance(method, Table) and 256 * method.block_size > 16 * 6 for method in small if method == Table(4, 256))


def test_measured_effects_are_those_of_the_changes(net: tuple[Program, list[Target], list[Batch]], effects: Effects) -> None:
    program, _, batches = net
    images = torch.cat([batch[0] for batch in batches])
    whole = run(program.exported, images)
    for name, forms in effects.forms.items():
        assert next(form.loss for form in forms if form.weight is None) == 0
        for form in forms:
            if form.weight is None or form.loss > 0.05:
                continue  # large changes are no longer linear
            assert form.bias is not None
            values = {name: form.weight.dequantize(), name.replace("weight", "bias"): form.bias}
            changed = run(with_constants(program.exported, values), images)
            lost = float((changed - whole).square().sum() / whole.square().sum())
            assert form.loss == pytest.approx(lost, rel=0.3), (name, form.method)
            assert form.size == form.weight.nbytes


def test_finer_forms_lose_less(effects: Effects) -> None:
    for forms in effects.forms.values():
        losses = {form.method: form.loss for form in forms}
        assert losses[Int8()] < losses[Int4()]
        if Table(2, 16) in losses and Table(8, 16) in losses:
            assert losses[Table(2, 16)] < losses[Table(8, 16)]


def test_the_same_seed_gives_the_same_and_little_memory_too(net: tuple[Program, list[Target], list[Batch]], effects: Effects) -> None:
    program, found, batches = net
    again = effects_of(program, found, batches, CompressConfig(rounds=1, memory=0), draws=512)
    assert again.ranges == effects.ranges
    for name, forms in effects.forms.items():
        assert [form.method for form in forms] == [form.method for form in again.forms[name]]
        assert [form.loss for form in forms] == pytest.approx([form.loss for form in again.forms[name]], rel=0.5)
