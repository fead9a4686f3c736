"""The sizes that a graph really computes with, found without computing: what a file states of them may be forged.

torch's kernels check their arguments, with two exceptions that are checked here; and a graph of a few bytes could ask for all memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from qn_deploy.errors import InputError
from qn_deploy.program.allow_list import MAX_ELEMENTS
from qn_deploy.program.program import Batch

_aten = torch.ops.aten


def check_shapes(exported: ExportedProgram, inputs: Batch) -> None:
    """Runs a graph on the shapes of these inputs alone.

    Raises:
        InputError: an input has another size than the graph states, a value is larger than a program's may be, or an operator's arguments
            don't fit each other.
    """
    placeholders = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    for name, value in zip(exported.graph_signature.user_inputs, inputs, strict=False):
        stated = placeholders[str(name)].meta["val"].shape
        if len(stated) != value.ndim or any(isinstance(size, int) and size != own for size, own in zip(stated, value.shape, strict=True)):
            raise InputError(f"the graph states the sizes {list(stated)} for its input {name}, whose example has {list(value.shape)}")
    given = iter(inputs)
    tensors = {**exported.state_dict, **exported.constants}
    specs = exported.graph_signature.input_specs
    values = [next(given) if spec.kind == InputKind.USER_INPUT else tensors[str(spec.target)].detach() for spec in specs]
    mode = FakeTensorMode()
    try:
        with mode, torch.no_grad():
            _Shapes(exported.graph_module).run(*(mode.from_tensor(value) for value in values))
    except (DataDependentOutputException, DynamicOutputShapeException):
        pass  # the rest has sizes that depend on values
    except InputError:
        raise
    except Exception as error:  # of the kinds that torch's operators raise for arguments that don't fit
        found = str(error.__cause__ or error).strip().splitlines()[:1]
        raise InputError(
            f"the graph can't be run on inputs of the sizes that it states: {found[0] if found else type(error).__name__}"
        ) from None


class _Shapes(Interpreter):
    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False  # or torch writes lines of its own into our messages

    def run_node(self, node: Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, GraphModule):  # a region: what it computes is looked at, too
            return _Shapes(value).run
        for tensor in pytree.tree_leaves(value):
            if isinstance(tensor, Tensor) and tensor.numel() > MAX_ELEMENTS:
                raise InputError(
                    f"{node.name} has the sizes {list(tensor.shape)}; a program's values have at most {MAX_ELEMENTS:,} elements"
                )
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _CHECKS:
            names = [argument.name for argument in target._schema.arguments]
            if not _CHECKS[target](**dict(zip(names, args, strict=False)), **kwargs):
                shapes = [list(tensor.shape) for tensor in pytree.tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
                raise InputError(f"{target} has tensors of the sizes {shapes}, which don't fit each other")
        return super().call_function(target, args, kwargs)


def _bags_fit(weight: Tensor, indices: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None, **_: Any) -> bool:
    weights = () if per_sample_weights is None else (per_sample_weights,)
    return (weight.ndim, indices.ndim, offsets.ndim) == (2, 1, 1) and all(each.shape == indices.shape for each in weights)


def _norms_fit(v: Tensor, g: Tensor, dim: int = 0) -> bool:
    kept = [size if axis == dim % v.ndim else 1 for axis, size in enumerate(v.shape)]
    return list(g.shape) == kept


_CHECKS: dict[Any, Callable[..., bool]] = {
    _aten.embedding_bag.default: _bags_fit,
    _aten.embedding_bag.padding_idx: _bags_fit,
    _aten._weight_norm.default: _norms_fit,
}
