"""Attacks: the hashes are made right again, so that only the allow-list stands between the file and torch."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from qn_deploy.errors import InputError
from qn_deploy.program import graph_json
from qn_deploy.program.allow_list import check_graph
from qn_deploy.program.archive import program_from_bytes
from tests.program.archives import PLANTED, Graph, forge, opened, refusal, saved


def replace_member(name: str, data: bytes) -> Callable[[Graph, dict[str, bytes]], None]:
    return lambda _, members: members.update({name: data})


def forge_graph(good: bytes, edit: Callable[[Graph], Any]) -> bytes:
    def edit_member(manifest: Graph, members: dict[str, bytes]) -> None:
        graph = json.loads(members["graph.json"])
        edit(graph)
        members["graph.json"] = json.dumps(graph).encode()

    return forge(good, edit_member)


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (PLANT,)


PLANT = f"import os; os.environ[{PLANTED!r}] = '1'"
CALL = f"__import__('os').environ.__setitem__('{PLANTED}', '1')"


def plant_expression(graph: Graph) -> None:
    graph["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][0]["as_expr"]["expr_str"] = f"[{CALL}, Integer(4)][1]"


def plant_guard(graph: Graph) -> None:
    graph["guards_code"] = [f"{CALL} is None"]


def plant_tree(graph: Graph) -> None:
    signature = graph["graph_module"]["module_call_graph"][0]["signature"]
    version, tree = json.loads(signature["out_spec"])
    tree["context"] = json.dumps({"__enum__": True, "fqn": "planted_module:Enum", "name": "A"})
    signature["out_spec"] = json.dumps([version, tree])


def plant_input_name(graph: Graph) -> None:
    spec = graph["graph_module"]["module_call_graph"][0]["signature"]
    spec["forward_arg_names"] = ["image", f"gain=({CALL}, None)[1]"]


def plant_operator(graph: Graph) -> None:
    node = graph["graph_module"]["graph"]["nodes"][-1]
    node["target"] = "torch.serialization.os.putenv"
    node["inputs"] = [{"name": "x", "arg": {"as_string": text}, "kind": 1} for text in (PLANTED, "1")]


def plant_torch_load(graph: Graph) -> None:
    node = graph["graph_module"]["graph"]["nodes"][-1]
    node["target"] = "torch.load"
    node["inputs"] = [{"name": "x", "arg": {"as_string": "/tmp/planted.pt"}, "kind": 1}]


def check_refused(tmp_path: Path, data: bytes, *words: str) -> None:
    os.environ.pop(PLANTED, None)
    message = refusal(tmp_path / "model.pt", data)
    assert PLANTED not in os.environ
    for word in words:
        assert word in message, message


@pytest.fixture
def planted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_module.py").write_text(PLANT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_module", raising=False)


@pytest.mark.usefixtures("planted_module")
@pytest.mark.parametrize("plant", [plant_expression, plant_guard, plant_tree])
def test_planted_code_runs_without_the_allow_list(good: bytes, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Graph], None]) -> None:
    """The attacks below are real ones: torch alone runs them."""
    monkeypatch.setattr(graph_json, "check_graph", lambda graph, allowed: None)
    os.environ.pop(PLANTED, None)
    with suppress(Exception):  # whatever torch says, it says it too late
        loaded = program_from_bytes(forge_graph(good, plant))
        loaded.exported.module()(*loaded.golden.inputs)
    assert os.environ.pop(PLANTED, None) == "1"


def test_expression_with_code_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_expression), "expr_str", "__import__", "expected arithmetic on sizes")


def test_guard_with_code_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_guard), "guards_code", "expected a condition on the sizes")


@pytest.mark.usefixtures("planted_module")
def test_tree_spec_that_imports_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_tree), "out_spec", "expected a flat tuple of tensors")
    assert "planted_module" not in sys.modules


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].size()[0] % 2 == 0",
        "8*(L['i'].size()[0] // 2)*(L['i'].size()[0] // 3) >= -2",
        "max(1, L['x'].size()[1]) != 3 and not L['x'].size()[0] == L['y'][0].size()[0]",
    ],
)
def test_guards_on_the_list(small: bytes, guard: str) -> None:
    check_graph({**json.loads(opened(small)[1]["graph.json"]), "guards_code": [guard]})


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].__class__",
        "L['x'].numpy().tofile('x')",
        "open('x')",
        "L['x\\'] or 1']",
        "(lambda: 1)()",
        "[i for i in L]",
        "L['x'] if 1 else 2",
        "max(*L)",
        "f'{L}'",
        "(x := 1)",
        "1), print(1), (1",
        "1 # \n",
        "(1\n)",
        "9 ** 9",
    ],
)
def test_guards_outside_the_list(small: bytes, guard: str) -> None:
    with pytest.raises(InputError, match="guards_code"):
        check_graph({**json.loads(opened(small)[1]["graph.json"]), "guards_code": [guard]})


def test_name_that_becomes_source_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_input_name), "forward_arg_names")
    for key, place in {"name": ("graph", "nodes", 0), "parameter_name": ("signature", "input_specs", 0, "parameter")}.items():

        def rename(graph: Graph, key: str = key, place: tuple[Any, ...] = place) -> None:
            target = graph["graph_module"]
            for step in place:
                target = target[step]
            target[key] = f'x"); {CALL}; ("'

        check_refused(tmp_path, forge_graph(good, rename), key, "letters, digits")


def test_foreign_operator_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_operator), "target 'torch.serialization.os.putenv' is refused")
    check_refused(tmp_path, forge_graph(good, plant_torch_load), "target 'torch.load' is refused")


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.save.default",  # writes a file
        "torch.ops.aten.from_file.default",  # reads or makes one
        "torch.ops.aten.max_pool2d_with_indices_backward.default",  # these end the process, given sizes or indices that don't fit
        "torch.ops.aten.adaptive_max_pool2d_backward.default",
        "torch.ops.aten.segment_reduce.default",
        "torch.ops.aten._native_batch_norm_legit_no_training.default",
        "torch.ops.aten._fft_c2r.default",
        "torch.ops.aten._unsafe_index.Tensor",
        "torch.ops.aten.relu_.default",  # settled graphs have none in place
        "torch.ops.aten.add.out",
        "torch.ops.aten.rand.default",
        "torch.ops.aten.dropout.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "torch.ops.quantized_decomposed.dequantize_per_tensor.default",
        "torch.ops.aten.linear.__class__",
        "torch.ops.aten.__dict__.clear",
        "torch.ops.aten.linear.default.__init__",
        "torch.ops.aten.format.default",  # the TorchScript interpreter alone knows it
        "torch.ops.aten._print.default",
        "torch.ops.aten.no_such_operator.default",
        "torch.ops.higher_order.cond",
        "torch.ops.mylib.op.default",
        "torch.ops.load_library",
        "torch.hub.load",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "math.trunc",
        "#extension:op",
        "os.system",
        "",
    ],
)
def test_operators_outside_the_list_are_refused(small: bytes, target: str) -> None:
    graph = json.loads(opened(small)[1]["graph.json"])
    graph["graph_module"]["graph"]["nodes"][0]["target"] = target
    with pytest.raises(InputError, match=r"target .* is refused; expected a forward operator of torch\.ops\.aten"):
        check_graph(graph)


@pytest.mark.parametrize("change", ["as_operator", "as_graph", "as_custom_obj", "as_string_to_argument", "as_complex"])
def test_arguments_outside_the_list_are_refused(small: bytes, change: str) -> None:
    graph = json.loads(opened(small)[1]["graph.json"])
    graph["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {change: "torch.load"}
    with pytest.raises(InputError, match=f"the graph holds '{change}'"):
        check_graph(graph)


@pytest.mark.parametrize(
    ("name", "argument", "words"),
    [
        ("weight", {"as_int": 4}, None),  # torch makes a tensor of it
        ("weight", {"as_string": "x"}, "expected as_tensor or "),
        ("weight", {"as_tensors": []}, "expected as_tensor or "),
        ("padding_idx", {"as_float": 1.0}, "expected as_int or as_sym_int"),
        ("scale_grad_by_freq", {"as_int": 1}, "expected as_bool or as_sym_bool"),
        ("memory_format", {"as_int": 4}, "expected none of that name"),
        ("indices", {"as_int": 4, "as_bool": True}, "is refused"),
        ("indices", {"as_int": 2**63}, "expected a number of 64 bits"),
    ],
)
def test_arguments_are_of_the_kinds_that_operators_take(small: bytes, name: str, argument: dict[str, Any], words: str | None) -> None:
    graph = json.loads(opened(small)[1]["graph.json"])
    (node,) = (node for node in graph["graph_module"]["graph"]["nodes"] if "embedding" in node["target"])
    node["inputs"] = [entry for entry in node["inputs"] if entry["name"] != name] + [{"name": name, "arg": argument, "kind": 1}]
    with pytest.raises(InputError, match=words) if words else nullcontext():
        check_graph(graph)


def test_an_argument_that_is_missing_or_stands_twice_is_refused(small: bytes) -> None:
    for change in (lambda inputs: inputs[:1], lambda inputs: [*inputs, inputs[0]]):
        graph = json.loads(opened(small)[1]["graph.json"])
        node = graph["graph_module"]["graph"]["nodes"][0]
        node["inputs"] = change(node["inputs"])
        with pytest.raises(InputError, match="expected each of"):
            check_graph(graph)


def test_giants_are_refused(small: bytes, tmp_path: Path) -> None:
    graph = json.loads(opened(small)[1]["graph.json"])
    graph["graph_module"]["graph"]["tensor_values"]["tokens"]["sizes"] = [{"as_int": 1 << 20}, {"as_int": 1 << 20}]
    with pytest.raises(InputError, match="tokens has the sizes"):
        check_graph(graph)
    graph = json.loads(opened(small)[1]["graph.json"])
    graph["graph_module"]["graph"]["nodes"] *= 15_000
    with pytest.raises(InputError, match=r"the graph has .* nodes; a program has at most 20,000"):
        check_graph(graph)

    def ask_for_more(graph: Graph) -> None:
        node = graph["graph_module"]["graph"]["nodes"][0]
        node["target"], node["inputs"] = "torch.ops.aten.arange.default", [{"name": "end", "arg": {"as_int": 10**13}, "kind": 1}]

    check_refused(tmp_path, forge_graph(small, ask_for_more), "has the sizes [10000000000000]; a program's values have at most")


def test_an_input_that_is_no_tensor_is_refused(small: bytes) -> None:
    graph = json.loads(opened(small)[1]["graph.json"])
    graph["graph_module"]["graph"]["inputs"][-1] = {"as_string": "' or " + CALL}  # would stand in the source of a guard
    with pytest.raises(InputError, match="inputs and outputs of a program are tensors"):
        check_graph(graph)


def test_an_example_of_another_size_than_stated_is_refused(small: bytes, tmp_path: Path) -> None:
    def shrink(graph: Graph) -> None:
        inner = graph["graph_module"]["graph"]
        name = inner["inputs"][-1]["as_tensor"]["name"]
        inner["tensor_values"][name]["sizes"][-1] = {"as_int": 0}

    check_refused(tmp_path, forge_graph(small, shrink), "the graph states the sizes", "for its input tokens, whose example has")


def test_a_graph_without_its_call_is_refused(small: bytes, tmp_path: Path) -> None:
    forged = forge_graph(small, lambda graph: graph["graph_module"]["module_call_graph"].clear())
    check_refused(tmp_path, forged, "does not say once how the whole graph is called")


def test_pickled_weight_is_refused(good: bytes, tmp_path: Path) -> None:
    attack = pickle.dumps({"norm.bias": Planted()})
    assert pickle.loads(attack) and os.environ.pop(PLANTED) == "1"  # it does run when somebody unpickles it
    checkpoint = saved(lambda file: torch.save({"norm.bias": Planted()}, file))
    for member in ("weights.safetensors", "tables.safetensors", "golden.safetensors"):
        for data in (attack, checkpoint):
            check_refused(tmp_path, forge(good, replace_member(member, data)))


@pytest.mark.parametrize("name", ["data/weights/weight_0", "data/sample_inputs/model.pt", "data/aotinductor/model/a.so", "../../evil.py"])
def test_foreign_members_are_refused(good: bytes, tmp_path: Path, name: str) -> None:
    data = forge(good, replace_member(name, pickle.dumps(Planted())))
    check_refused(tmp_path, data, "holds the members", name)
    assert not (tmp_path.parent.parent / "evil.py").exists()


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), FloorDiv(Symbol('s0', integer=True), Integer(-3)))",
        "Pow(Symbol('s0', positive=True, integer=True), Integer(2))",
        "Max(Integer(1), Mod(Symbol('u0', integer=True), Integer(4)))",
    ],
)
def test_expressions_on_the_list(small: bytes, text: str) -> None:
    check_graph(with_expression(small, text))


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "open('x')",
        "Symbol.__class__",
        "Symbol('a b')",
        "Add('__import__(1)')",
        "Symbol('s0', commutative=True)",
        "(lambda: Integer(1))()",
        "Add(*[Integer(1)])",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Symbol('s0'), Integer(999))",
        "Integer(10**9)",
        f"Integer({2**70})",
        "Integer(1) if 1 else Integer(2)",
        "Integer(1)\nInteger(2)",
        "(" * 3000,
        "Integer(1)" * 1000,
    ],
)
def test_expressions_outside_the_list(small: bytes, text: str) -> None:
    with pytest.raises(InputError, match="expr_str"):
        check_graph(with_expression(small, text))


def with_expression(small: bytes, text: str) -> Graph:
    graph: Graph = copy.deepcopy(json.loads(opened(small)[1]["graph.json"]))
    graph["graph_module"]["graph"]["tensor_values"]["tokens"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}
    return graph
