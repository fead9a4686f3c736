"""BatchNorm folded into the layer before it, so that it ends in the scales of the compressed weight and leaves the codes alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from qn_deploy.errors import CompressionError

_aten = torch.ops.aten
_LINEAR, _NORM = _aten.linear.default, _aten.batch_norm.default
_CONVS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv_transpose1d.default, _aten.conv_transpose2d.input)
_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d


def fold_batchnorm(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> list[str]:
    """Folds each BatchNorm that directly follows a convolution or Linear into its weight and bias, in place, and leaves an Identity.

    The pairs are read off the graph that `torch.export` captures, so only a BatchNorm that is the one reader of a layer called once is
    folded. One with batch statistics, with a forward of its own, or after a layer with shared weights stays as it is.

    Args:
        model: in eval mode; it is changed.
        example_inputs: what to trace it with.

    Returns:
        Names of the BatchNorm modules that were folded.

    Raises:
        CompressionError: torch.export can't capture the model.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return []
    folded = []
    for layer_name, norm_name in _pairs(model, example_inputs):
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        if (
            isinstance(layer, _Layer)
            and isinstance(norm, _BatchNorm)
            and type(norm).forward is _BatchNorm.forward  # a subclass may do more than normalise
        ):
            _fold(layer, norm)
            model.set_submodule(norm_name, nn.Identity())
            folded.append(norm_name)
    return folded


def _pairs(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> list[tuple[str, str]]:
    """(layer name, BatchNorm name) of each layer whose only reader is that BatchNorm, neither being called twice."""
    try:
        exported = torch.export.export(model, example_inputs, strict=False)
    except Exception as error:  # torch.export raises many classes; every one of them means that this model can't be captured
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CompressionError(
            f"torch.export can't capture {type(model).__name__}: {reason}. Try torch.export.export(model.eval(), example_inputs) "
            "by itself; what it asks for there must change in the model"
        ) from error
    signature = exported.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def owner(node: object) -> str | None:
        """The module that owns the tensor behind an input of the graph, if this is its only use."""
        name = tensors.get(node.name) if isinstance(node, Node) and len(node.users) == 1 else None
        return None if name is None else name.rpartition(".")[0]

    pairs = []
    for norm in exported.graph.nodes:
        if norm.target is not _NORM or not isinstance(norm.args[0], Node):
            continue
        layer = norm.args[0]
        # After a Linear, features must be dimension 1, where BatchNorm looks for them.
        if layer.target in _CONVS or (layer.target is _LINEAR and layer.meta["val"].ndim == 2):
            names = owner(layer.args[1]), owner(norm.args[3])
            if len(layer.users) == 1 and names[0] is not None and names[1] is not None:
                pairs.append((names[0], names[1]))
    return pairs


@torch.no_grad()
def _fold(layer: _Layer, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None and norm.running_var is not None  # the graph reads them
    factor = torch.rsqrt(norm.running_var + norm.eps) * (1.0 if norm.weight is None else norm.weight)  # [out]
    bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):  # [in, out/groups, ...], the groups one after the other along in
        weight = layer.weight.view(layer.groups, -1, *layer.weight.shape[1:])
        weight.mul_(factor.reshape(layer.groups, 1, -1, *[1] * (weight.ndim - 3)))
    else:
        layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias = nn.Parameter(bias * factor + (0.0 if norm.bias is None else norm.bias))
