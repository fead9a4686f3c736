"""LayerDrop: whole layers are skipped at random while training, so that some can be pruned afterwards (Fan et al. 2020; paper table 2).

The layers keep their places, classes and parameter names: only `forward` is overridden, on each object. So a loop over the list,
an index into it, `enumerate` and `zip` all work, and a layer that is skipped is still called: its hooks run, among them those by
which FSDP gathers parameters on all processes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qn_deploy.errors import InputError
from qn_deploy.noise.chunks import chunks
from qn_deploy.noise.rate import Rated, check_rate

Skip = Callable[..., Any]
"""The arguments of a layer -> what it returns when it is skipped."""


def first_argument(x: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
    """What a residual layer returns when its branches add nothing: its input."""
    return x


class LayerDrop(Rated):
    """Stands in for the `forward` of one layer, as an attribute of the object.

    Attributes:
        name: the layer's path in the model.
        layer: whose forward it is.
        leader: the LayerDrop of the chunk's first layer, which draws for all of them.
        skip: gives the output of a skipped layer.
        p: the rate; within a chunk, the leader's.
    """

    def __init__(self, name: str, layer: nn.Module, leader: LayerDrop | None, skip: Skip) -> None:
        self.name, self.layer, self.skip = name, layer, skip
        self.leader = leader or self
        self._drawn = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output, or, in training mode and at the rate, what `skip` makes of the arguments.

        Raises:
            InputError: the arguments or the output are not as `attach_layer_drop` describes them.
        """
        forward = type(self.layer).forward
        if not self.layer.training:
            return forward(self.layer, *args, **kwargs)
        if not args or not isinstance(args[0], Tensor):
            raise InputError(f"{self.name} was called without a tensor as its first positional argument; LayerDrop wants layer(x, ...)")
        if self._draw():
            return self.skip(_ZeroGradients.apply(args[0], *self.layer.parameters()), *args[1:], **kwargs)
        output = forward(self.layer, *args, **kwargs)
        if self.skip is first_argument and not (isinstance(output, Tensor) and output.shape == args[0].shape):
            raise InputError(
                f"{self.name} turned a tensor of {list(args[0].shape)} into {_described(output)}; a skipped layer returns its first "
                "argument, so give attach_layer_drop a `skip` that makes such an output of the layer's arguments, "
                "lambda x, *args, **kwargs: (x, None) for a pair, or keep this layer out of the list"
            )
        return output

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled training shall draw the same numbers
    def _draw(self) -> bool:
        """True if the chunk is skipped; drawn anew when its first layer is called."""
        leader = self.leader
        if leader is self:
            self._drawn = self.p > 0 and torch.rand(()).item() < self.p
        return leader.layer.training and leader._drawn


def attach_layer_drop(model: nn.Module, layers: str, p: float = 0.2, chunk: int = 1, skip: Skip = first_argument) -> list[str]:
    """Skips layers at random while training, each time they are called (Fan et al. 2020), so that the network bears their pruning.

    A layer must be called with a tensor as its first positional argument. When it is skipped, it returns that tensor; one that
    returns anything else than a tensor of the same shape needs a `skip` of its own. Parameters of a skipped layer get a
    gradient of zero rather than none, as in the reference implementation: DDP needs no `find_unused_parameters`, and the processes of
    DDP and FSDP may draw differently. Weight decay and momentum go on meanwhile.

    Draws come from torch's default generator of the CPU, one for each chunk and pass, and none at rate 0 or in eval mode, where all
    layers run. The state dict does not change. torch.compile breaks its graph at each draw, and torch.export wants eval mode.

    Args:
        model: changed in place.
        layers: path of an nn.ModuleList or nn.Sequential, "encoder.layers"; "" is the model itself.
        p: the rate, 0 to 1; the authors advise 0.1 to 0.2. `set_rate(model, p, LayerDrop)` changes it.
        chunk: how many layers in a row share one draw, 2 for layers that share parameters two by two (`share_chunks`).
        skip: makes the output of a skipped layer of its arguments.

    Returns:
        The layers' paths.

    Raises:
        InputError: the rate is not in 0..1, the chunk is less than 1, the path leads to no list of layers or to an empty one, or a layer's
            forward is already overridden, perhaps because the list holds it twice. The model is then unchanged.
    """
    check_rate(p)
    found = chunks(model, layers, chunk)
    names = [name for group in found for name, _ in group]
    if not names:
        raise InputError(f"{layers!r} is empty; LayerDrop needs layers")
    unique: set[int] = set()
    for name, layer in (pair for group in found for pair in group):
        if "forward" in vars(layer) or id(layer) in unique:
            raise InputError(
                f"{name} already has a forward of its own, or stands twice in {layers!r}; call remove_layer_drop(model) "
                "before attaching LayerDrop again"
            )
        unique.add(id(layer))
    for group in found:
        leader = None
        for name, layer in group:
            vars(layer)["forward"] = drop = LayerDrop(name, layer, leader, skip)
            drop.p = p
            leader = leader or drop
    return names


def remove_layer_drop(model: nn.Module) -> None:
    """Takes LayerDrop off all layers of a model; all of them run again, and none is pruned. A model without it stays as it is."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), LayerDrop):
            del vars(module)["forward"]


class _ZeroGradients(torch.autograd.Function):
    """The identity, by which parameters get a gradient of zero."""

    @staticmethod
    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        return x.clone()  # no view: what comes next may write into it, which torch forbids on a view that a Function made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def _described(output: Any) -> str:
    return f"one of {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
