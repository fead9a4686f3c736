from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from qn_deploy.errors import ExportError, InputError
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.lower import Activations, Form, Lowered, choose_activations, lower
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int4
from qn_deploy.verification.numerics import compare
from qn_deploy.weights.compressed import IntWeight, PQWeight
from qn_deploy.weights.packing import code_rows

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]


def operators(exported: ExportedProgram) -> list[str]:
    return [str(node.target.__name__) for node in exported.graph.nodes if node.op == "call_function"]


@pytest.fixture(scope="module")
def residual(programs: Programs) -> Lowered:
    return lower(programs("residual"), Form(Activations.STATIC))


def test_the_int8_weights_are_the_tables_and_nothing_requantized_them(programs: Programs, residual: Lowered) -> None:
    program = programs("residual")
    assert set(residual.weights) == {f"{name}_int8" for name in program.weights}
    buffers = dict(residual.exported.named_buffers())
    for name, weight in program.weights.items():
        assert torch.equal(buffers[f"{name}_int8"], weight.int8())
        assert torch.equal(buffers[f"{name}_int8_scale"], weight.scale)
        assert not buffers[f"{name}_int8_zero_point"].any()


def test_static_quantizes_every_activation_and_no_weight(residual: Lowered) -> None:
    found = operators(residual.exported)
    # input; stem, first, second, sum, mean, scores
    assert found.count("quantize_per_tensor.default") == 7 + 1  # and the view between the mean and the classifier
    assert found.count("dequantize_per_channel.default") == 4
    assert "quantize_per_channel.default" not in found


def test_lowering_does_not_change_the_program(programs: Programs) -> None:
    program = programs("residual")
    graph = str(program.exported.graph)
    state = {name: value.clone() for name, value in program.exported.state_dict.items()}
    for activations in (Activations.STATIC, Activations.DYNAMIC, Activations.NONE):
        lower(program, Form(activations))
    assert str(program.exported.graph) == graph
    assert program.exported.state_dict.keys() == state.keys()
    assert all(torch.equal(program.exported.state_dict[name], value) for name, value in state.items())


def test_a_layer_whose_weight_has_no_compressed_form_stays_float(make_program: MakeProgram) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    program = make_program(model, (torch.randn(4, 8),), {"1.weight": IntWeight.from_float(model.get_parameter("1.weight"))})
    for activations in (Activations.STATIC, Activations.DYNAMIC):
        found = operators(lower(program, Form(activations)).exported)
        assert found.count("dequantize_per_channel.default") == 1
        assert found.index("linear.default") < next(index for index, name in enumerate(found) if name.startswith("quantize_per_tensor"))


@pytest.mark.parametrize("per_row", [False, True])
def test_dynamic_quantizes_the_input_of_each_int8_linear_by_its_own_range(programs: Programs, per_row: bool) -> None:
    program = programs("words")
    lowered = lower(program, Form(Activations.DYNAMIC, per_row=per_row))
    found = operators(lowered.exported)
    chosen = "choose_qparams_per_token_asymmetric.default" if per_row else "choose_qparams.tensor"
    assert found.count(chosen) == found.count("linear.default") == 3
    assert found.count("quantize_per_token.default" if per_row else "quantize_per_tensor.tensor") == 3


def test_dynamic_ranges_of_rows_do_not_depend_on_the_other_rows(make_program: MakeProgram, random_table: RandomTable) -> None:
    table = random_table((8, 16), block=4)
    program = make_program(nn.Sequential(nn.Linear(16, 8)), (torch.randn(4, 16),), {"0.weight": table})
    rows = program.golden.inputs[0]
    louder = torch.cat([rows[:1], rows[1:] * 100])
    by_row, by_tensor = (lower(program, Form(Activations.DYNAMIC, per_row=per_row)) for per_row in (True, False))
    assert torch.equal(by_row.simulate((rows,))[0][0], by_row.simulate((louder,))[0][0])
    assert not torch.equal(by_tensor.simulate((rows,))[0][0], by_tensor.simulate((louder,))[0][0])


def test_the_dynamic_rule_in_numbers(make_program: MakeProgram) -> None:
    weight = IntWeight(torch.tensor([[2, -3]], dtype=torch.int8), torch.tensor([0.5]))
    x = torch.tensor([[204.0, -51.0], [0.4, 1.6]])  # the range [-51, 204] makes a step of 1: 0.4 becomes 0, 1.6 becomes 2
    lowered = lower(make_program(nn.Sequential(nn.Linear(2, 1, bias=False)), (x,), {"0.weight": weight}), Form(Activations.DYNAMIC))
    assert torch.equal(lowered.simulate((x,))[0], torch.tensor([[0.5 * (2 * 204 - 3 * -51)], [0.5 * (2 * 0 - 3 * 2)]]))


def test_the_forms_of_a_program_share_their_int8_weights(programs: Programs) -> None:
    dense: dict[str, Tensor] = {}
    forms = [lower(programs("residual"), Form(activations), dense) for activations in (Activations.STATIC, Activations.NONE)]
    held = [{name: value for name, value in each.exported.named_buffers() if name in dense} for each in forms]
    assert held[0].keys() == held[1].keys() == dense.keys() and dense
    assert all(one.data_ptr() == other.data_ptr() for one, other in zip(held[0].values(), held[1].values(), strict=True))


def test_none_keeps_activations_float(programs: Programs) -> None:
    program = programs("residual")
    lowered = lower(program, Form(Activations.NONE))
    assert not any(name.startswith("quantize") for name in operators(lowered.exported))
    expected = program.exported.module()(*program.golden.inputs)[0]
    assert torch.equal(lowered.simulate(program.golden.inputs)[0], expected)


def test_baked_leaves_float_constants_of_the_dequantized_values(programs: Programs) -> None:
    program = programs("residual")
    lowered = lower(program, Form(Activations.NONE, baked=True))
    assert lowered.weights.keys() == program.weights.keys()
    assert "dequantize_per_channel.default" not in operators(lowered.exported)
    assert all(torch.equal(lowered.exported.state_dict[name], weight.dequantize()) for name, weight in program.weights.items())


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(
    ("size", "books", "block", "residual"),
    [(4, 1, 4, 0), (16, 2, 4, 0), (16, 3, 8, 0), (17, 2, 4, 0), (300, 1, 4, 0), (40_000, 1, 4, 0), (16, 2, 4, 300)],
)
def test_an_embedding_is_looked_up_in_its_table(
    make_program: MakeProgram, random_table: RandomTable, size: int, books: int, block: int, residual: int, per_row: bool
) -> None:
    table = random_table((20, 24), block, size, books, per_row)
    if residual:
        table = replace(table, residual=replace(random_table((20, 24), block, residual, seed=1), scale=table.scale))
    tokens = torch.tensor([[0, 19], [7, 7]])
    program = make_program(nn.Sequential(nn.Embedding(20, 24)), (tokens,), {"0.weight": table})
    lowered = lower(program, Form(Activations.NONE))
    assert torch.equal(lowered.simulate((tokens,))[0], table.dequantize()[tokens])
    assert not lowered.weights  # nothing holds the whole weight
    kept = {name: value for name, value in lowered.exported.named_buffers() if name.endswith("_codes")}
    assert [value.nbytes for value in kept.values()] == [code_rows(part).nbytes for part in table.tables]


def test_an_int4_embedding_takes_half_a_byte_a_value(make_program: MakeProgram) -> None:
    module = nn.Sequential(nn.Embedding(20, 8))
    weight = IntWeight.from_float(module.get_parameter("0.weight"), per_channel=False, method=Int4())
    tokens = torch.tensor([[0, 19], [7, 7]])
    lowered = lower(make_program(module, (tokens,), {"0.weight": weight}), Form(Activations.NONE))
    assert torch.equal(lowered.simulate((tokens,))[0], weight.dequantize()[tokens])
    assert dict(lowered.exported.named_buffers())["0.weight_codes"].nbytes == 20 * 8 // 2


def test_a_transposed_convolution_has_one_scale_for_the_whole_weight(make_program: MakeProgram, random_table: RandomTable) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2))
    program = make_program(model, (torch.randn(2, 4, 5, 5),), {"0.weight": random_table((4, 6, 2, 2), 4, per_row=False)})
    found = operators(lower(program, Form(Activations.STATIC)).exported)
    assert found.count("dequantize_per_tensor.default") == 3 and "dequantize_per_channel.default" not in found
    (output,) = lower(program, Form(Activations.NONE)).simulate(program.golden.inputs)
    assert torch.equal(output, program.exported.module()(*program.golden.inputs)[0])


class Recurrent(nn.Module):
    """A layer that no runtime computes in int8, before one that all of them do."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0])  # type: ignore[no-any-return]


def test_baked_weights_stay_float_where_their_activations_do(make_program: MakeProgram, random_table: RandomTable) -> None:
    weights = {"gru.weight_hh_l0": random_table((36, 12), 4), "head.weight": random_table((4, 12), 4)}
    program = make_program(Recurrent(), (torch.randn(2, 3, 8),), weights)
    for activations in (Activations.STATIC, Activations.DYNAMIC):
        assert lower(program, Form(activations, baked=True)).weights.keys() == {"gru.weight_hh_l0", "head.weight_int8"}
        assert lower(program, Form(activations)).weights.keys() == {"gru.weight_hh_l0_int8", "head.weight_int8"}


def test_an_int8_embedding_is_looked_up_too(make_program: MakeProgram) -> None:
    module = nn.Sequential(nn.Embedding(20, 8))
    weight = IntWeight.from_float(module.get_parameter("0.weight"), per_channel=False)
    tokens = torch.tensor([[0, 19], [7, 7]])
    lowered = lower(make_program(module, (tokens,), {"0.weight": weight}), Form(Activations.NONE))
    assert torch.equal(lowered.simulate((tokens,))[0], weight.dequantize()[tokens])
    assert "dequantize_per_channel.default" not in operators(lowered.exported)


def test_a_tied_weight_is_one_table_with_two_readers(programs: Programs) -> None:
    program = programs("tied")
    lowered = lower(program, Form(Activations.NONE))
    assert list(lowered.weights) == ["embed.weight_int8"]
    found = operators(lowered.exported)
    assert found.count("embedding.default") == 3  # rows of codes, the two codes of each byte, centroids
    assert found.count("dequantize_per_channel.default") == 1
    torch.testing.assert_close(lowered.simulate(program.golden.inputs), program.golden.outputs)


def test_each_call_of_a_shared_layer_has_a_zero_point_and_a_bias_of_its_own(programs: Programs) -> None:
    exported = lower(programs("shared"), Form(Activations.STATIC)).exported
    nodes = [node for node in exported.graph.nodes if node.op == "call_function"]
    dequantizes = [node for node in nodes if node.target is torch.ops.quantized_decomposed.dequantize_per_channel.default]
    linears = [node for node in nodes if node.target is torch.ops.aten.linear.default]
    assert len(linears) == len(dequantizes) == 3
    assert len({node.args[0] for node in dequantizes}) == 1
    assert len({node.args[2] for node in dequantizes}) == 3
    assert len({node.args[2] for node in linears}) == 3


@pytest.mark.slow
def test_what_is_returned_and_read_on_has_a_dequantize_for_each(make_program: MakeProgram) -> None:
    """XNNPACK refused to run it: a detector that returns its features, for one."""

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            x = self.stem(image)
            return x, self.body(nn.functional.hardswish(x))

    model, image = Features(), torch.randn(2, 3, 8, 8)
    weights = {name: IntWeight.from_float(model.get_parameter(name)) for name in ("stem.weight", "body.weight")}
    program = make_program(model, (image,), weights)
    lowered = lower(program, Form(Activations.STATIC)).exported
    assert all(
        len(node.users) == 1 for node in lowered.graph.nodes if node.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default
    )
    for exporter in find_exporters().values():
        written = write_file(exporter, program, Activations.STATIC)
        (found,) = exporter.run(written.data, ((image,),))
        for one, other in zip(found, written.lowered.simulate((image,)), strict=True):
            assert compare(one, other).sqnr_db > 40


def test_dynamic_shapes_are_kept(programs: Programs) -> None:
    program = programs("words")
    assert program.inputs == ("tokens",)
    for activations in (Activations.DYNAMIC, Activations.NONE):
        lowered = lower(program, Form(activations))
        for shape in ((1, 2), (7, 30), (64, 128)):
            assert lowered.simulate((torch.zeros(shape, dtype=torch.int64),))[0].shape == (shape[0], 5)
        bounds = sorted((int(b.lower), int(b.upper)) for b in lowered.exported.range_constraints.values())
        assert bounds == [(1, 64), (2, 128)]


def test_one_example_leaves_the_batch_dynamic(make_program: MakeProgram) -> None:
    program = make_program(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (torch.randn(1, 3, 6, 6),), {}, dynamic_shapes=None)
    lowered = lower(program, Form(Activations.STATIC))
    assert lowered.simulate((torch.zeros(5, 3, 6, 6),))[0].shape == (5, 4, 4, 4)


class Joined(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, x, y])


def test_a_dimension_that_follows_from_others_is_kept(make_program: MakeProgram) -> None:
    inputs = (torch.randn(2, 3), torch.randn(4, 3))
    batch = Dim("batch", max=16)
    program = make_program(Joined(), inputs, {}, dynamic_shapes=({0: batch}, {0: 2 * batch}))
    lowered = lower(program, Form(Activations.NONE))
    assert lowered.simulate((torch.randn(3, 3), torch.randn(6, 3)))[0].shape == (12, 3)


def test_activations_are_static_with_calibration_data_else_dynamic(programs: Programs) -> None:
    assert choose_activations(programs("residual"), None) is Activations.STATIC
    assert choose_activations(programs("words"), None) is Activations.DYNAMIC
    for asked in (Activations.STATIC, Activations.NONE):
        assert choose_activations(programs("residual"), asked) is asked
    assert choose_activations(programs("shared"), Activations.DYNAMIC) is Activations.DYNAMIC


def test_convolutions_without_calibration_data_are_told_both_ways_out(programs: Programs) -> None:
    program = replace(programs("residual"), ranges={})
    with pytest.raises(InputError, match=r"3 convolutions \(conv2d, ...\).*model.pt holds none.*--calibrate data.npz.*--activations none"):
        choose_activations(program, None)
    assert choose_activations(program, Activations.NONE) is Activations.NONE


def test_dynamic_convolutions_are_refused(programs: Programs) -> None:
    with pytest.raises(InputError, match=r"3 convolutions.*there are no dynamic ones"):
        choose_activations(programs("residual"), Activations.DYNAMIC)


def test_static_without_calibration_data_is_refused(programs: Programs) -> None:
    with pytest.raises(InputError, match=r"static int8 activations need calibration data: give --calibrate"):
        choose_activations(programs("words"), Activations.STATIC)


def test_inputs_that_the_program_can_not_run_on_are_told(programs: Callable[[str], Program]) -> None:
    lowered = lower(programs("words"), Form(Activations.DYNAMIC))
    with pytest.raises(
        ExportError, match=r"torch can't run the program on these inputs \(index out of range.*\); give inputs that the model"
    ):
        lowered.simulate((torch.full((2, 10), 1_000),))
