"""From a module in memory to a Program: the graph is captured once, and everything after it works on the graph."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from qn_deploy.errors import ExportError, first_line
from qn_deploy.graph.constants import owner_of
from qn_deploy.program.program import Golden, Program
from qn_deploy.program.settled import settled
from qn_deploy.program.signature import apart, outputs_of

MAX_BATCH = 64  # ExecuTorch plans memory for the largest batch


def capture(model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, dynamic_shapes: Any = None) -> Program:
    """Captures a trained model as a float Program, in eval mode.

    Args:
        model: float32, on the CPU; it is not changed, and the program shares its parameters where it can.
        args: example inputs by position: tensors, also in tuples, lists and dicts, None and Python constants. They become the golden
            inputs that every runtime is checked with, and are stored in model.pt: give a batch of real ones.
        kwargs: example inputs by name.
        dynamic_shapes: as `torch.export.export` takes it, e.g. ({0: torch.export.Dim("batch", max=64)},). ExecuTorch plans its memory at
            export, so each dimension needs a `max`. If None, the first dimension of each input that is as long as that of the first is
            the batch, from 1 to 64, where the model allows it; () fixes all sizes.

    Raises:
        ExportError: the model fails on these inputs, torch.export can't capture it, a parameter is not float32 on the CPU, or the model
            changes its inputs or buffers.
    """
    # In the order of memory that runtimes take: torch.export keeps another one, as of an image that was permuted, in the graph.
    args, named = pytree.tree_map_only(Tensor, Tensor.contiguous, (tuple(args), dict(kwargs or {})))
    _check_parameters(model)
    inputs = tuple(leaf.detach().clone() for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, Tensor))
    if strange := [value for value in inputs if value.device.type != "cpu"]:
        raise ExportError(f"an example input is on {strange[0].device}; a program is captured on the CPU: give tensors with values there")
    with _evaluating(model), torch.no_grad():
        found = outputs_of(_called(model, args, named))
        outputs = tuple(tensor.detach().clone() for tensor in found.tensors)
        captured, fixed = _exported(_Flat(model, found.kept), args, named, dynamic_shapes)
    exported = settled(captured, inputs, rename=lambda name: name.removeprefix("model."))
    outside = apart(found.names, exported.graph_signature.user_inputs)
    notes = (*found.notes, *([fixed] if fixed else []))
    return Program(exported, Golden(inputs, outputs), outside, classes=_classes(model, exported), notes=notes)


def _called(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return model(*args, **kwargs)
    except Exception as error:  # of the model's own code
        shapes = ", ".join(str(list(leaf.shape)) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        raise ExportError(
            f"{type(model).__name__} fails on the example inputs {shapes} with {type(error).__name__}: {first_line(error, 'no message')}"
        ) from error


class _Flat(nn.Module):
    """The model, returning the tensors that its program returns, and nothing that torch.export does not know."""

    def __init__(self, model: nn.Module, kept: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model

        @functools.wraps(model.forward)  # torch.export names the inputs by its signature
        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            leaves = pytree.tree_leaves(model(*args, **kwargs))
            return tuple(leaves[index] for index in kept)

        self.forward = forward


def _exported(model: _Flat, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> tuple[ExportedProgram, str]:
    """The graph as torch gives it, and a note if the batch had to be fixed."""
    if dynamic_shapes is not None:
        return _export(model, args, kwargs, dynamic_shapes or None), ""
    doubled_args, doubled_kwargs, shapes = _dynamic_batch(model, args, kwargs)
    if shapes is None:
        return _export(model, args, kwargs, None), ""
    try:
        return _export(model, doubled_args, doubled_kwargs, shapes), ""
    except ExportError as error:
        fixed = _export(model, args, kwargs, None)
        return fixed, f"the batch is fixed at that of the example inputs, since the model does not take any other: {error}"


def _export(model: _Flat, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*_flat_weights")  # an LSTM's list of its own parameters, not a state
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # torch.export raises many classes; every one of them means that this model can't be captured
        message = _reason(str(error).strip() or type(error).__name__)
        raise ExportError(f"torch.export can't capture {type(model.model).__name__}: {message}") from error


def _dynamic_batch(model: _Flat, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """The example inputs and the shapes that make their batch dynamic; a batch of one is doubled, since torch.export takes 1 as fixed."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors or not tensors[0].ndim or not len(tensors[0]):
        return args, kwargs, None
    size, shapes, dim = len(tensors[0]), ShapesCollection(), Dim("batch", min=1, max=MAX_BATCH)  # type: ignore[no-untyped-call]
    if size > MAX_BATCH:
        dim = Dim("batch", min=1, max=size)

    def marked(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != size:
            return leaf
        leaf = torch.cat([leaf, leaf]) if size == 1 else leaf.clone()  # a tensor that stands twice has two entries
        shapes[leaf] = {0: dim}
        return leaf

    args, kwargs = pytree.tree_map(marked, (args, kwargs))
    return args, kwargs, shapes.dynamic_shapes(model, args, kwargs)  # type: ignore[no-untyped-call]


def _classes(model: nn.Module, program: ExportedProgram) -> dict[str, tuple[str, ...]]:
    """For each parameter that the program reads the classes of its module, the bases of that, and the modules around it."""
    found = {}
    modules = dict(model.named_modules())
    for name in program.graph_signature.inputs_to_parameters.values():
        path = owner_of(name)
        while path not in modules:
            path = path.rpartition(".")[0]
        around = [modules[path[:end]] for end in reversed([0, *(match.start() for match in re.finditer(r"\.", path))])]
        bases = [kind.__name__ for kind in type(modules[path]).__mro__ if kind not in (nn.Module, object)]
        found[name] = tuple(dict.fromkeys((*bases, *(type(module).__name__ for module in around))))
    return found


def _check_parameters(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            what = "load its values" if tensor.is_meta else "move the model there with model.cpu()"
            raise ExportError(f"{name} is on {tensor.device}; a program is captured on the CPU: {what} first")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(f"{name} is {tensor.dtype}; a program computes in float32: call model.float() first, and give float32 inputs")
    for name, module in model.named_modules():
        if type(module).__module__.startswith("qn_deploy.noise"):
            weight = name.replace(".parametrizations", "").rpartition(".")[0]
            raise ExportError(f"{weight} still carries noise; call qn_deploy.noise.remove(model) first")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; each module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _reason(message: str) -> str:
    """What torch.export found, and what to do."""
    if fixed := re.findall(r"You marked (.+) as dynamic but your code specialized it to be a constant \((\d+)\)", message):
        sizes = " and ".join(f"{name} = {size}" for name, size in fixed)
        return (
            f"dynamic_shapes has a dimension that the model fixes at the example's size, {sizes}; leave it out there, or change the model. "
            "(An LSTM, GRU or RNN takes sequences of the example's length only: pad them to it.)"
        )
    if "data-dependent" in message:
        place = re.search(r"Caused by: \((\S+) in ([a-z]\w*)\)", message)  # not torch's own __torch_function__
        where = f", in {place[2]} ({place[1]})" if place else ""
        return (
            f"what it runs depends on the values of its tensors{where}: an if on a value, or boxes that pass a detector's threshold. "
            "A file has one graph for all values; put what comes before into a module of its own (a detector's backbone and heads), "
            "capture that, and compute the rest in the app"
        )
    return (
        f"{message.splitlines()[0]}. Try torch.export.export(model.eval(), example_inputs) by itself; what it asks for there must change "
        "in the model"
    )
