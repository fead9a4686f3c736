from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qn_deploy import noise
from qn_deploy.compression import calibrate, compress
from qn_deploy.errors import ExportError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Recipe, Rule, Table
from qn_deploy.weights.compressed import PQWeight

INPUT = (torch.linspace(-1, 1, 32).reshape(4, 8),)


class Returns(nn.Module):
    """A linear layer whose output leaves the model in any form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.layer(x))


class Counts(nn.Module):
    """Keeps something from one run for the next, as a cache or a running mean does."""

    def __init__(self, through_a_view: bool) -> None:
        super().__init__()
        self.through_a_view = through_a_view
        self.runs: Tensor
        self.register_buffer("runs", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.view(2, 2)[:1].add_(1) if self.through_a_view else self.runs.add_(1)
        return x[:, :4] + self.runs


class Overwrites(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


def agrees(program: Program) -> None:
    """The graph gives the golden outputs, which are the float model's."""
    for one, other in zip(unlifted(program.exported)(*program.golden.inputs), program.golden.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_graph_holds_the_dequantized_weights_and_the_golden_outputs_are_the_float_models() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = Recipe((Rule(Table(4, 8), name="0.weight"),))
    program = compress(capture(model, INPUT), recipe)
    assert list(program.weights) == ["0.weight"]
    weight = program.weights["0.weight"]
    assert isinstance(weight, PQWeight)
    assert torch.equal(program.exported.state_dict["0.weight"], weight.dequantize())
    assert torch.equal(program.golden.outputs[0], model(*INPUT))
    assert program.recipe == recipe
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_users_model_is_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(), nn.ReLU(inplace=True)))
    model[2].eval()
    model.requires_grad_(False)[0].weight.requires_grad_(True)
    before, image = copy.deepcopy(model), torch.randn(2, 2, 5, 5)
    kept = image.clone()
    program = capture(model, (image,))
    assert [module.training for module in model.modules()] == [True, True, True, False, False, False]
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False, False, False]
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(image, kept) and program.golden.inputs[0] is not image
    torch.testing.assert_close(program.golden.outputs[0], before.eval()(image).detach())


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


torch.export.register_dataclass(Answer, serialized_type_name="tests.program.test_capture.Answer")


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
    serialized_type_name="tests.program.test_capture.Cache",
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


def sizes(program: Program) -> list[list[int | None]]:
    """Of each input; None where any is taken."""
    values = [node.meta["val"] for node in program.exported.graph.nodes if node.name in program.inputs]
    return [[size if isinstance(size, int) else None for size in value.shape] for value in values]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_batch_is_dynamic_by_default(size: int) -> None:
    x = torch.randn(size, 8)
    program = capture(nn.Linear(8, 4), (x,))
    assert sizes(program) == [[None, 8]] and program.notes == () and len(program.golden.inputs[0]) == size
    [bounds] = program.exported.range_constraints.values()
    assert (int(bounds.lower), int(bounds.upper)) == (1, max(64, size))
    agrees(program)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 2, 4) + 1


def test_a_batch_that_the_model_fixes_is_fixed_with_a_note() -> None:
    program = capture(Fixed(), INPUT)
    assert sizes(program) == [[4, 8]]
    assert len(program.notes) == 1 and program.notes[0].startswith("the batch is fixed at that of the example inputs, since the model does")
    agrees(program)


def test_sizes_are_the_users_where_they_are_given() -> None:
    assert sizes(capture(nn.Linear(8, 4), INPUT, dynamic_shapes=())) == [[4, 8]]
    length = torch.export.Dim("length", min=2, max=9)
    assert sizes(capture(nn.ReLU(), INPUT, dynamic_shapes=({1: length},))) == [[4, None]]


class Scaled(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


def test_only_inputs_of_the_batchs_size_are_a_batch() -> None:
    assert sizes(capture(nn.Bilinear(8, 3, 4), (INPUT[0], torch.randn(4, 3)))) == [[None, 8], [None, 3]]
    assert sizes(capture(Scaled(), (INPUT[0], torch.randn(8)))) == [[None, 8], [8]]


def test_one_tensor_given_twice_is_two_inputs() -> None:
    program = capture(Scaled(), INPUT * 2)
    assert program.inputs == ("x", "scale") and sizes(program) == [[None, 8]] * 2
    agrees(program)


def test_a_tied_parameter_has_its_first_name() -> None:
    embedding, output = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
    output.weight = embedding.weight
    program = capture(nn.Sequential(embedding, output), (torch.arange(6),))
    assert list(program.exported.state_dict) == ["0.weight"] and program.classes["0.weight"][0] == "Embedding"
    agrees(program)


def test_names_of_constants_are_those_of_the_model_even_if_it_has_a_module_called_model() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(4, 8))
            self.register_buffer("kept", torch.randn(4), persistent=False)
            self.plain = torch.randn(4)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.model(x), self.weight) + self.get_buffer("kept") + self.plain

    program = capture(Outer(), INPUT)
    assert set(program.exported.state_dict) == {"weight", "model.weight", "model.bias", "kept", "plain"}
    assert program.classes["model.weight"] == ("Linear", "Outer") and program.classes["weight"] == ("Outer",)
    agrees(program)


def test_disabled_autocast_is_inlined() -> None:
    class Careful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return x.float() @ x.float().transpose(0, 1)

    program = capture(Careful(), INPUT, dynamic_shapes=())
    assert all(node.op in ("placeholder", "output") or str(node.target).startswith("aten.") for node in program.exported.graph.nodes)
    agrees(program)


@pytest.mark.parametrize("through_a_view", [False, True])
def test_a_model_that_keeps_something_from_run_to_run_is_refused(through_a_view: bool) -> None:
    with pytest.raises(ExportError, match=r"the model's forward changes runs in place; .*Compute a new tensor instead"):
        capture(Counts(through_a_view), INPUT)


def test_a_model_that_writes_into_its_input_is_refused() -> None:
    with pytest.raises(ExportError, match=r"the model's forward changes input x in place"):
        capture(Overwrites(), (torch.ones(2, 2),))


def test_an_inplace_relu_is_no_change_of_state() -> None:
    program = capture(nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True)), INPUT)
    assert [str(node.target) for node in program.exported.graph.nodes if node.op == "call_function"][-1] == "aten.relu.default"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.half(), r"0\.weight is torch\.float16; a program computes in float32: call model\.float\(\) first"),
        (lambda model: model.double(), r"0\.weight is torch\.float64; a program computes in float32"),
        (lambda model: model.bfloat16(), r"0\.weight is torch\.bfloat16"),
        (lambda model: model.to("meta"), r"0\.weight is on meta; a program is captured on the CPU: load its values first"),
        (lambda model: noise.attach(model, Recipe((Rule(Table(4, 8)),))), r"0\.weight still carries noise; call qn_deploy\.noise\.remove"),
    ],
    ids=["float16", "float64", "bfloat16", "meta", "noise"],
)
def test_a_model_that_is_not_ready_is_told_what_to_do(change: Callable[[nn.Module], Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
    change(model)
    with pytest.raises(ExportError, match=message) as caught:
        capture(model, INPUT)
    assert "\n" not in str(caught.value)


def test_an_input_without_values_is_refused() -> None:
    with pytest.raises(ExportError, match="an example input is on meta; a program is captured on the CPU"):
        capture(nn.Linear(8, 4), (torch.randn(2, 8, device="meta"),))


def test_a_length_that_a_recurrent_layer_fixes_is_named() -> None:
    shapes = ({0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=16)},)
    with pytest.raises(ExportError, match=r"fixes at the example's size, length = 3; .*GRU.* takes sequences of the example's length only"):
        capture(nn.GRU(4, 4, batch_first=True), (torch.randn(2, 3, 4),), dynamic_shapes=shapes)


def test_what_torch_export_cannot_take_is_said_in_one_line() -> None:
    with pytest.raises(ExportError, match=r"torch\.export can't capture Returns: .*Try torch\.export\.export") as caught:
        capture(Returns(lambda y: torch.from_numpy(y.detach().numpy())), INPUT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("work", [lambda y: y if y.sum() > 0 else -y, lambda y: y[: int((y > 0).sum())].sum() + (y[y > 0][:3] * 2)[:2]])
def test_what_depends_on_values_is_said_with_the_way_out(work: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ExportError, match=r"Returns: what it runs depends on the values of its tensors: .* capture that, and"):
        capture(Returns(work), INPUT)


def test_an_image_in_another_order_of_memory_is_taken_in_the_order_of_runtimes() -> None:
    image = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    program = capture(nn.Conv2d(3, 4, 3), (image,))
    assert program.golden.inputs[0].is_contiguous() and torch.equal(program.golden.inputs[0], image)
    assert next(node.meta["val"] for node in program.exported.graph.nodes if node.name == program.inputs[0]).is_contiguous()


def test_a_slice_of_everything_leaves_nothing_behind_but_an_output_of_its_own() -> None:
    class Slices(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.relu(x[:, :8]) + 1, x[:, :9]

    program = capture(Slices(), INPUT)
    reader = next(node for node in program.exported.graph.nodes if node.target is torch.ops.aten.relu.default)
    assert reader.args[0].op == "placeholder"
    agrees(program)
