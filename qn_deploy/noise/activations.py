"""Activation noise: while training, random activations are rounded as an integer runtime will round them (paper appendix 7.7).

The ranges come from torch's observers and the rounding from torch's FakeQuantize, so rate 1 is plain quantization-aware training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

from qn_deploy.errors import InputError
from qn_deploy.noise.rate import Noisy, check_rate
from qn_deploy.recipe.parameters import COMPRESSIBLE

Observer = Literal["histogram", "minmax", "moving_average"]
"""How a range is found: the clipping that loses the least squared error of all values so far, by a running histogram; the smallest
and the largest value so far; or a moving average of each batch's."""

_OBSERVERS = {"histogram": HistogramObserver, "minmax": MinMaxObserver, "moving_average": MovingAverageMinMaxObserver}
_CHILD = "activation_noise"


@dataclass(frozen=True)
class Activations:
    """Which activations get noise, and what their grid is.

    Attributes:
        observer: how their range is found.
        bits: 2 to 8; the grid has one scale and one zero point for each module.
        every: in how many forward passes the range is looked at once. A histogram costs about a millisecond a module; the reference
            implementation waits 1,000 passes.
        names: globs over the modules' paths, ("encoder.*",).
        kinds: types of modules whose output is meant, (nn.Linear, nn.ReLU); all that carry weights a recipe may speak of.

    Raises:
        InputError: an unknown observer, or bits or passes out of range.
    """

    observer: Observer = "histogram"
    bits: int = 8
    every: int = 1
    names: tuple[str, ...] = ("*",)
    kinds: tuple[type[nn.Module], ...] = tuple(COMPRESSIBLE)

    def __post_init__(self) -> None:
        if self.observer not in get_args(Observer):
            raise InputError(f"observer {self.observer!r} is none of {', '.join(get_args(Observer))}")
        if not 2 <= self.bits <= 8:
            raise InputError(f"activations of {self.bits} bits; expected 2 to 8")
        if self.every < 1:
            raise InputError(f"a range looked at every {self.every} passes; expected 1 or more")


class ActivationNoise(Noisy, nn.Module):
    """A noise on the output of one module: an observer, a rounding and a rate.

    Attributes:
        quantize: watches what it is given in training mode and rounds it; its buffers hold the range, scale and zero point.
        passes: int64 [], forward passes in training mode so far.
        p: the rate, 0 to 1: the share of single activations that are rounded.
        hook: by which the output comes here.
    """

    hook: RemovableHandle
    passes: Tensor

    def __init__(self, activations: Activations) -> None:
        super().__init__()
        observer, levels, self.every = _OBSERVERS[activations.observer], 2**activations.bits, activations.every
        self.quantize = FakeQuantize(observer, quant_min=0, quant_max=levels - 1, dtype=torch.quint8)  # type: ignore[no-untyped-call]
        if observer is HistogramObserver:
            self.quantize.activation_post_process.dst_nbins = levels  # torch seeks the clipping for 256 levels, whatever quant_max is
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """The activations themselves in eval mode; otherwise some of them rounded, of the same shape and dtype.

        The gradient passes straight through what is inside the range, and stops at rounded activations outside of it.
        """
        return self._noised(x) if self.training else x

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the observers branch on values: a dozen graphs for each layer
    def _noised(self, x: Tensor) -> Tensor:
        # An overflow, which fp16 training lives with, would spoil the range for good; and rounding would hide a NaN from the loss.
        if not x.isfinite().all():
            return x
        self.quantize.enable_observer(int(self.passes) % self.every == 0)
        self.passes += 1
        rounded: Tensor = self.quantize(x.float()).to(x.dtype)  # also at rate 0: a schedule that starts there finds a range
        if self.p in (0, 1):  # no random number is spent
            return rounded if self.p else x
        return torch.where(torch.empty_like(x, dtype=torch.bool).bernoulli_(self.p), rounded, x)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"p={self.p}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ActivationNoise:
        # Follows the model to another device, but the statistics stay float32: in half precision a count ends at 65,504.
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]
        return self


def attach_activations(model: nn.Module, activations: Activations | None = None, p: float = 0.1) -> list[str]:
    """Trains a model against the error of integer activations (paper appendix 7.7): rounds the outputs of its modules at random.

    Single activations are drawn, anew in each forward pass; rate 1 rounds all, which is quantization-aware training. Of a tuple, as
    recurrent and attention modules return, the first tensor is meant. The ranges are watched in training mode at every rate, 0
    included, and stay as they are in eval mode, where the activations are exact.

    The noise is a child `activation_noise` of its module. Its buffers are in the state dict, so that training resumes with the same
    ranges: attach before loading such a checkpoint. `remove_activations` takes them off, and the model's own names never change.

    Args:
        model: changed in place; float32, bfloat16, float16 or autocast.
        activations: which, and how.
        p: the rate, 0 to 1.

    Returns:
        Paths of the modules.

    Raises:
        InputError: the rate is not in 0..1, no module matches, or one is a list of modules or has this noise already. The model is
            then unchanged.
    """
    check_rate(p)
    activations = activations or Activations()
    found = _matching(model, activations)
    for name, module in found:
        if hasattr(module, _CHILD):
            raise InputError(f"{name!r} already has activation noise; call remove_activations(model) before attaching it anew")
        if isinstance(module, nn.Sequential | nn.ModuleList):
            raise InputError(
                f"{name!r} is a {type(module).__name__}, which would take the noise for one of its layers; name its last layer"
            )
    if not found:
        kinds, names = ", ".join(kind.__name__ for kind in activations.kinds), ", ".join(activations.names)
        raise InputError(f"{type(model).__name__} has no module at {names} among {kinds}; give Activations other names or kinds")
    for _, module in found:
        noise = ActivationNoise(activations).train(module.training)
        module.add_module(_CHILD, noise.to(_device(module)))
        noise.hook = module.register_forward_hook(_through_noise)
        noise.p = p
    return [name for name, _ in found]


def remove_activations(model: nn.Module) -> None:
    """Takes all activation noise off, buffers and hooks. A model without it stays as it is."""
    for module in list(model.modules()):
        noise = getattr(module, _CHILD, None)
        if isinstance(noise, ActivationNoise):
            noise.hook.remove()
            delattr(module, _CHILD)


def _matching(model: nn.Module, activations: Activations) -> list[tuple[str, nn.Module]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, activations.kinds)
        and any(fnmatchcase(name, glob) for glob in activations.names)
        and not isinstance(module, NonDynamicallyQuantizableLinear)  # MultiheadAttention reads its weight and never calls it
    ]


def _through_noise(module: nn.Module, _: Any, output: Any) -> Any:
    noise = module.get_submodule(_CHILD)
    if isinstance(output, tuple):
        return (noise(output[0]), *output[1:])
    return noise(output)


def _device(module: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in module.parameters()), None)
