"""One forward pass of a module whose weights carry noise: one draw however often the module reads a weight, and no copy kept for backward.

Autograd saves the weight that a layer multiplied with until its backward pass. Here it keeps what the draw changed instead, and the noised
copy is made again when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize

from qn_deploy.errors import InputError
from qn_deploy.noise.functions import Change, Noise, distort, redo
from qn_deploy.noise.rate import Noisy


class QuantNoise(Noisy, nn.Module):
    """The parametrization: a noise and its rate. It has no parameters, so the clean weight alone is what trains.

    Attributes:
        noises: what distorts the weight, in order.
        p: the rate, 0 to 1.
        around: the forward pass of the module that owns the weight.
    """

    around: ForwardPass

    def __init__(self, noises: Sequence[Noise]) -> None:
        super().__init__()
        self.noises = nn.ModuleList(noises)
        self._passes = 0  # forward passes of modules that may read the weight, under way
        self._seen: _Seen | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight itself in eval mode or at rate 0; otherwise a noised copy with a straight-through gradient."""
        if not self.training or self.p == 0:
            return weight
        if self._seen is not None:
            return self._seen.noised
        # The gradient of a copy passes straight through (paper section 4.1, eq. 6), to the distorted weights too: a block that was zeroed
        # is still told which way to go. Masking it, as dropout would, is another method than the paper's.
        noised = weight.clone(memory_format=torch.contiguous_format)
        changes = distort(noised.detach(), self.sequence(), self.p)
        if self._passes:
            self._seen = _Seen(noised, weight.detach(), changes)
        return noised

    def sequence(self) -> list[Noise]:
        """What distorts the weight, in order."""
        return [noise for noise in self.noises if isinstance(noise, Noise)]

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"p={self.p}"


class ForwardPass:
    """Hooks around the forward pass of one module, which reads its own noised weights and may read its children's.

    Attributes:
        noises: on the weights that it may read.
        parameters: the names of the module's own parameters, in the order that they had before the noise.
    """

    def __init__(self, module: nn.Module, parameters: list[str]) -> None:
        self.parameters = parameters
        self.noises = [part for part in module.modules() if isinstance(part, QuantNoise)]
        self._handles = [module.register_forward_pre_hook(self._begin), module.register_forward_hook(self._end, always_call=True)]
        self._saving: list[saved_tensors_hooks | None] = []

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():  # which reads a weight once, and decides by itself what to keep
            return
        for noise in self.noises:
            noise._passes += 1
        saving = None
        # A recurrent layer saves its weights at every time step, and would have them made again as often.
        if not isinstance(module, nn.RNNBase) and _may_save():
            saving = saved_tensors_hooks(self._pack, _unpack)
            saving.__enter__()
        self._saving.append(saving)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if (saving := self._saving.pop()) is not None:
            saving.__exit__(None, None, None)
        for noise in self.noises:
            noise._passes -= 1
            noise._seen = None
        if isinstance(module, nn.RNNBase):
            # It holds on to what it read: to the copies, with which it could not be copied itself.
            module._flat_weights = [_clean(module, name) for name in module._flat_weights_names]

    def _pack(self, tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        for noise in self.noises:
            if noise._seen is not None and noise._seen.holds(tensor):
                return noise._seen.recipe(tensor)
        return tensor


class _Seen:
    """The noised weight that a forward pass sees, and how to make it again."""

    def __init__(self, noised: Tensor, clean: Tensor, changes: list[Change]) -> None:
        self.noised, self._clean, self._changes = noised, clean, changes

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() == self.noised.untyped_storage().data_ptr()

    def recipe(self, view: Tensor) -> Callable[[], Tensor]:
        """Makes a view of the noised weight again, without holding it."""
        clean, changes, version = self._clean, self._changes, self._clean._version
        size, stride, offset = view.size(), view.stride(), view.storage_offset()

        def again() -> Tensor:
            if clean._version != version:
                raise InputError("a weight was changed between forward and backward; call optimizer.step() after backward()")
            return redo(clean, changes).as_strided(size, stride, offset)

        return again


def _unpack(saved: Tensor | Callable[[], Tensor]) -> Tensor:
    return saved if isinstance(saved, Tensor) else saved()


def _may_save() -> bool:
    """False where somebody else decides what autograd saves, as checkpointing and offloading do: only the innermost hooks count."""
    enabled = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    return enabled and torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def _clean(module: nn.Module, name: str) -> Tensor:
    return module.get_parameter(f"parametrizations.{name}.original" if parametrize.is_parametrized(module, name) else name)
