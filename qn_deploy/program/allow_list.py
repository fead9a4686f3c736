"""What may stand in the graph of a model.pt: stated here once, checked when it is written and before torch reads it.

torch's deserializer and the code it leads to run what they read: an operator name is looked up among all functions of torch, an
expression goes through sympy's eval, a guard through exec, a tree spec imports the module of an enum, and the names of nodes become
Python source. So every key must be listed here, and every string must satisfy the rule of its key; all that remains are numbers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from qn_deploy.errors import InputError
from qn_deploy.program.arguments import check_arguments
from qn_deploy.program.forward_operators import is_captured, is_forward
from qn_deploy.program.graph_types import check_types


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)  # becomes a variable in generated source
PATH = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)  # becomes an attribute path there: "layers.0.conv-1.weight"
TEXT = re.compile(r"[ -~]{0,1000}")  # becomes a quoted literal there: padding="same"
FUNCTIONS = _words(
    "Symbol Integer Rational Add Mul Pow PowByNatural Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing IntTrueDiv ToFloat "
    "FloatTrueDiv TruncToInt FloorToInt CeilToInt Where Identity Equality Unequality LessThan StrictLessThan GreaterThan "
    "StrictGreaterThan And Or Not"
)
ASSUMPTIONS = ("integer", "positive", "nonnegative")
POWERS = ("Pow", "PowByNatural")
EXPONENTS = tuple(f"Integer({exponent})" for exponent in range(-8, 9))
GUARD_NODES = (
    *(ast.Expression, ast.BoolOp, ast.boolop, ast.Compare, ast.cmpop, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.expr_context),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Subscript, ast.Call, ast.Attribute, ast.Name, ast.Constant),
)
GUARD_NAMES = ("L", "math", "max", "min", "size", "ndim", "trunc", "floor", "ceil")
MAX_EXPRESSION = 4000
OPERATORS = "a forward operator of torch.ops.aten on the list of those that models need, or arithmetic on sizes"
LEAF = '{"type": null, "context": null, "children_spec": []}'
TUPLE = '{"type": "builtins.tuple", "context": "null", "children_spec": [%s]}'
NO_KEYWORDS = '{"type": "builtins.dict", "context": "[]", "children_spec": []}'

MAX_NODES = 20_000
MAX_DIMENSION = 2**31 - 1
MAX_ELEMENTS = 2**31  # of one value, as far as its size is known

KEYS = _words(
    # the program
    "graph_module opset_version range_constraints schema_version verifiers torch_version guards_code major minor min_val max_val "
    # graph module
    "graph signature module_call_graph metadata fqn in_spec out_spec forward_arg_names input_specs output_specs inputs outputs "
    "user_input parameter buffer tensor_constant user_output arg parameter_name buffer_name persistent tensor_constant_name "
    # graph
    "nodes tensor_values sym_int_values sym_bool_values sym_float_values is_single_tensor_return target is_hop_single_tensor_return "
    "name kind dtype sizes requires_grad device strides storage_offset layout type index expr_str hint "
    # arguments
    "as_none as_tensor as_tensors as_int as_ints as_float as_floats as_string as_sym_int as_sym_ints as_scalar_type as_memory_format "
    "as_layout as_device as_bool as_bools as_sym_bool as_sym_bools as_sym_float as_sym_floats as_optional_tensors as_optional_tensor "
    "as_expr as_name as_nested_tensors as_int_lists as_float_lists"
)
NAME_MAPS = ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "opset_version", "range_constraints")
REGION_KEYS = ("as_graph",)
REASONS = {
    "as_graph": "a branch or loop of torch.cond, while_loop or no_grad inside forward",
    "buffer_mutation": "a buffer that the model changes while it runs",
    "user_input_mutation": "an input that the model changes in place",
    "constant_input": "an input that is no tensor",
    "as_custom_obj": "a custom object",
    "custom_obj": "a custom object",
    "custom_obj_values": "a custom object",
}


@dataclass(frozen=True)
class Allowed:
    """What differs between the graphs of a program and those that torch.export captured.

    Attributes:
        operator: True for the name of an operator that may stand there.
        regions: without gradients, or of autocast, may stand there; their arguments have no names.
    """

    operator: Callable[[str], bool]
    regions: bool

    def has(self, key: str) -> bool:
        """True for a key that may stand in the JSON."""
        return key in KEYS or (self.regions and key in REGION_KEYS)


PROGRAM = Allowed(is_forward, regions=False)
CAPTURED = Allowed(is_captured, regions=True)


def check_graph(data: Any, allowed: Allowed = PROGRAM) -> None:
    """Checks an exported graph, as torch's serializer puts it into JSON.

    Args:
        data: the JSON.
        allowed: what may stand in it.

    Raises:
        InputError: it holds something that isn't on the list, named in the message.
    """
    _check(data, "", allowed)
    check_types(data)
    graph = data["graph_module"]["graph"]
    specs = data["graph_module"]["signature"]
    ends = [*graph["inputs"], *graph["outputs"], *_arguments(specs["input_specs"], "user_input"), *_arguments(specs["output_specs"])]
    for end in ends:  # the value of any other input would go into the source of a guard
        if list(end) != ["as_tensor"]:
            raise InputError(f"the graph has the input or output {end}; inputs and outputs of a program are tensors")
    _check_values(graph)


def _check_values(graph: dict[str, Any]) -> None:
    """Checks the number of nodes, the sizes of values, and what kinds of arguments operators take, also inside regions."""
    if len(graph["nodes"]) > MAX_NODES:
        raise InputError(f"the graph has {len(graph['nodes']):,} nodes; a program has at most {MAX_NODES:,}")
    for name, meta in graph["tensor_values"].items():
        sizes = [size["as_int"] for size in meta["sizes"] if "as_int" in size]
        if not all(0 <= size <= MAX_DIMENSION for size in sizes) or prod(sizes) > MAX_ELEMENTS:
            raise InputError(f"{name} has the sizes {sizes}; a program's values have at most {MAX_ELEMENTS:,} elements")
    for node in graph["nodes"]:
        check_arguments(node)
        for argument in node["inputs"]:
            if "as_graph" in argument["arg"]:
                _check_values(argument["arg"]["as_graph"]["graph"])


def is_path(name: str) -> bool:
    """True for the name of a parameter, buffer or constant."""
    return PATH.fullmatch(name) is not None


def known(key: str) -> bool:
    """True for a key that a graph may hold."""
    return key in KEYS


def _arguments(specs: list[dict[str, Any]], only: str | None = None) -> list[dict[str, Any]]:
    return [value["arg"] for spec in specs for kind, value in spec.items() if only in (None, kind)]


def _check(value: Any, key: str, allowed: Allowed) -> None:
    """Checks a JSON value that stands under `key`; the elements of a list stand under the list's key."""
    if isinstance(value, dict):
        for name, child in value.items():
            if key in NAME_MAPS:
                _check_string(name, key)
            elif not allowed.has(name):
                raise InputError(f"the graph holds {name[:100]!r}: {REASONS.get(name, 'nothing that a program may hold')}")
            _check(child, "" if key in NAME_MAPS else name, allowed)
    elif isinstance(value, list):
        for child in value:
            _check(child, key, allowed)
    elif isinstance(value, str):
        if key == "target":
            if not allowed.operator(value):
                raise InputError(f"the graph's target {value[:100]!r} is refused; expected {OPERATORS}")
        elif value or key != "name" or not allowed.regions:
            _check_string(value, key)
    elif type(value) is int and not -(2**63) <= value < 2**63:
        raise InputError(f"the graph's {key or 'value'} {str(value)[:30]} is refused; expected a number of 64 bits")


def _check_string(value: str, key: str) -> None:
    rule, expected = RULES.get(key, (None, "a number"))
    try:
        if rule is not None and rule(value):
            return
    except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError, MemoryError):
        pass  # no valid JSON or expression
    raise InputError(f"the graph's {key or 'value'} {value[:100]!r} is refused; expected {expected}")


def _is_expression(text: str) -> bool:
    """A sympy expression over sizes as srepr writes it: Mul(Integer(2), Symbol('s0', positive=True, integer=True))."""
    return len(text) <= MAX_EXPRESSION and _is_term(ast.parse(text, mode="eval").body)


def _is_term(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in ("true", "false")
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
        return False
    if any(word.arg not in ASSUMPTIONS or ast.unparse(word.value) != "True" for word in node.keywords):
        return False
    kind, arguments = node.func.id, node.args
    if kind == "Symbol":
        return len(arguments) == 1 and NAME.fullmatch(ast.literal_eval(arguments[0])) is not None
    if kind in ("Integer", "Rational"):
        return all(-(2**63) <= _integer(argument) < 2**63 for argument in arguments)
    if kind in POWERS:  # a tower of powers would compute forever
        return ast.unparse(arguments[0]).startswith("Symbol(") and _is_term(arguments[0]) and ast.unparse(arguments[1]) in EXPONENTS
    return all(_is_term(argument) for argument in arguments)


def _integer(node: ast.expr) -> int:
    value = ast.literal_eval(node)
    if type(value) is not int:
        raise ValueError
    return value


def _is_guard(text: str) -> bool:
    """A condition on input sizes, which becomes source as it stands: L['x'].size()[0] % 2 == 0."""
    if len(text) > MAX_EXPRESSION or not text.isprintable():
        return False
    for node in ast.walk(ast.parse(text, mode="eval")):
        if (
            not isinstance(node, GUARD_NODES)
            or getattr(node, "id", "L") not in GUARD_NAMES
            or getattr(node, "attr", "L") not in GUARD_NAMES
        ):
            return False
        if isinstance(node, ast.Constant) and type(node.value) is not int and NAME.fullmatch(node.value) is None:  # type: ignore[arg-type]
            return False
    return True


def _is_flat(text: str) -> bool:
    """The spec of a flat tuple of tensors, as torch.utils._pytree writes it: alone for outputs, before an empty dict for inputs."""
    leaves = text.count(LEAF)
    return text in (flat_spec(leaves), flat_spec(leaves, inputs=True))


def flat_spec(leaves: int, inputs: bool = False) -> str:
    """The spec of so many tensors in a flat tuple; as the positional arguments of a call if they are inputs."""
    row = TUPLE % ", ".join([LEAF] * leaves)
    return f"[1, {TUPLE % f'{row}, {NO_KEYWORDS}' if inputs else row}]"


def _matches(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: pattern.fullmatch(text) is not None


RULES: dict[str, tuple[Callable[[str], bool], str]] = {
    "expr_str": (_is_expression, "arithmetic on sizes"),
    "guards_code": (_is_guard, "a condition on the sizes of inputs"),
    "in_spec": (_is_flat, "a flat tuple of tensors"),
    "out_spec": (_is_flat, "a flat tuple of tensors"),
    "as_string": (_matches(TEXT), "printable text"),
    "as_float": (("Infinity", "-Infinity", "NaN").__contains__, "a number"),
    "as_floats": (("Infinity", "-Infinity", "NaN").__contains__, "a number"),
    "type": ("cpu".__eq__, "cpu; move the model and its inputs there"),
    "verifiers": (("TRAINING", "ATEN").__contains__, "TRAINING or ATEN"),
    "torch_version": (_matches(re.compile(r"[\w.+-]{1,60}", re.ASCII)), "a version"),
    "fqn": ("".__eq__, "the root module alone"),
    "range_constraints": (_matches(re.compile(r"[\w+*/(), -]{1,1000}", re.ASCII)), "a size, as s0 or 2*s0"),  # only ever compared
    **dict.fromkeys(("name", "as_name", "forward_arg_names", *NAME_MAPS[:-1]), (_matches(NAME), "a name of letters, digits and _")),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name"), (is_path, "a dotted name of letters, digits, _ and -")),
}
