from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import compress
from qn_deploy.program.capture import capture
from qn_deploy.recipe import Recipe, Rule, Table
from qn_deploy.weights.compressed import PQWeight
from tests.program.captured import INPUT, agrees, sizes


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


def test_an_inplace_relu_is_no_change_of_state() -> None:
    program = capture(nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True)), INPUT)
    assert [str(node.target) for node in program.exported.graph.nodes if node.op == "call_function"][-1] == "aten.relu.default"


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
