from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import calibrate
from qn_deploy.graph.lifted import unlifted
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.program.capture import capture
from tests.program.captured import INPUT, Returns, agrees

FORMS: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...]]] = {
    "tensor": (lambda y: y, ("output",)),
    "tuple": (lambda y: (y, y + 1), ("output_0", "output_1")),
    "list": (lambda y: [y, y + 1], ("output_0", "output_1")),
    "dict": (lambda y: {"scores": y, "more": y + 1}, ("scores", "more")),
    "nested": (lambda y: {"scores": (y, [y + 1]), "more": y * 2}, ("scores_0", "scores_1_0", "more")),
}


@pytest.mark.parametrize(
    ("form", "activations"), [*((form, Activations.NONE) for form in FORMS), ("nested", Activations.STATIC), ("dict", Activations.STATIC)]
)
def test_outputs_in_any_form_are_flattened_in_the_graphs_order(form: str, activations: Activations) -> None:
    program = calibrate(capture(Returns(FORMS[form][0]), INPUT), [INPUT])
    assert program.outputs == FORMS[form][1]
    simulated = lower(program, Form(activations)).simulate(INPUT)
    assert len(program.golden.outputs) == len(simulated) == len(program.outputs)
    for found, expected in zip(simulated, program.golden.outputs, strict=True):
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


@dataclass
class Answer:
    """As transformers' ModelOutput: named fields, some of them None."""

    logits: Tensor
    loss: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None


torch.export.register_dataclass(Answer, serialized_type_name="tests.program.test_capture_forms.Answer")


def test_a_class_of_outputs_is_named_by_field() -> None:
    program = capture(Returns(lambda y: Answer(y, hidden=(y + 1, y + 2))), INPUT)
    assert program.outputs == ("logits", "hidden_0", "hidden_1") and program.notes == ()
    agrees(program)


class Cache:
    """Keys and values, in a class of a library's own."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values


torch.utils._pytree.register_pytree_node(
    Cache,
    lambda cache: ([cache.keys, cache.values], None),
    lambda leaves, _: Cache(*leaves),
    serialized_type_name="tests.program.test_capture_forms.Cache",
    flatten_with_keys_fn=lambda cache: ([(torch.utils._pytree.GetAttrKey(key), getattr(cache, key)) for key in ("keys", "values")], None),
)


def test_a_cache_is_left_out_with_a_note_and_so_is_what_only_it_reads() -> None:
    program = capture(Returns(lambda y: {"logits": y, "past": Cache(y.tanh(), y)}), INPUT)
    assert program.outputs == ("logits",)
    assert program.notes == (
        "output past is left out: a Cache is no tensor, tuple, list, dict or dataclass. A cache is switched off by the model's own option, "
        "use_cache=False for example",
    )
    assert not any("tanh" in str(node.target) for node in program.exported.graph.nodes)


@pytest.mark.parametrize("form", [lambda y: (y, 3), lambda y: {"scores": y, "name": "x"}], ids=["int", "str"])
def test_an_output_that_is_no_tensor_is_left_out_with_a_note(form: Callable[[Tensor], Any]) -> None:
    program = capture(Returns(form), INPUT)
    assert len(program.golden.outputs) == 1 and "and a program returns tensors" in program.notes[0]
    agrees(program)


class Many(nn.Module):
    """Inputs in every form."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(
        self,
        x: Tensor,
        pair: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        scale: float = 1.0,
        extra: dict[str, Tensor] | None = None,
        *,
        bias: Tensor | None = None,
        upper: bool = False,
    ) -> Tensor:
        y = self.layer(x + pair[0] * scale) + pair[1]
        for term in (mask, bias, *(extra or {}).values()):
            y = y if term is None else y + term
        return y.exp() if upper else y


Y = torch.linspace(0, 1, 16).reshape(4, 4)


@pytest.mark.parametrize(
    ("args", "kwargs", "names"),
    [
        ((*INPUT, (*INPUT, Y)), {}, ("x", "pair_0", "pair_1")),
        ((*INPUT, [*INPUT, Y], None, 2.0, {"a": Y, "b": 2 * Y}), {"bias": Y}, ("x", "pair_0", "pair_1", "extra_a", "extra_b", "bias")),
        ((*INPUT,), {"pair": (*INPUT, Y), "upper": True, "mask": Y}, ("x", "pair_0", "pair_1", "mask")),
        ((), {"x": INPUT[0], "pair": (*INPUT, Y), "scale": 3.0}, ("x", "pair_0", "pair_1")),
    ],
    ids=["positions", "everything", "mixed", "names"],
)
def test_inputs_by_position_and_name_in_tuples_and_dicts(args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = Many()
    program = capture(model, args, kwargs)
    assert program.inputs == names and len(program.golden.inputs) == len(names)
    assert torch.equal(program.golden.outputs[0], model(*args, **kwargs))
    agrees(program)
    for size in (1, 5, 100):
        assert unlifted(program.exported)(*(tensor[:1].repeat(size, 1) for tensor in program.golden.inputs))[0].shape == (size, 4)


class Named(nn.Module):
    def forward(self, output: Tensor) -> dict[str, Tensor]:
        return {"output": output + 1}


def test_an_output_that_is_named_like_an_input_gets_another_name() -> None:
    program = capture(Named(), INPUT)
    assert program.inputs == ("output",) and program.outputs == ("output_",)
