"""Attaches noise to a model, and takes it off again.

Noise is a parametrization of `module.weight` (torch.nn.utils.parametrize): the forward pass in training mode sees a noised copy, while
the module keeps its clean weight as the parameter that the optimizer updates. In eval mode the clean weight itself is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from qn_deploy.compress.apply import Target, no_table, targets
from qn_deploy.errors import InputError
from qn_deploy.noise.functions import Noise, int8, straight_through, zero_blocks
from qn_deploy.recipe import Int8, Recipe, Table
from qn_deploy.recipe.parameters import Slot, compressible


class QuantNoise(nn.Module):
    """The parametrization: a noise and its rate. It has no parameters and no buffers, so the state dict holds the clean weight alone.

    Attributes:
        noise: what distorts the weight.
        p: the rate, 0 to 1.
    """

    def __init__(self, noise: Noise, p: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.p = p

    def forward(self, weight: Tensor) -> Tensor:
        """The weight itself in eval mode or at rate 0; otherwise a noised copy with a straight-through gradient."""
        if not self.training or self.p == 0:
            return weight
        return straight_through(weight, self.noise(weight.detach(), self.p))

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"p={self.p}, {self.noise}"


def attach(model: nn.Module, recipe: Recipe, p: float = 0.1) -> list[str]:
    """Trains a model against the error of its later compression (paper section 4): noises the weights that `recipe` compresses.

    A weight that becomes a Table gets proxy noise, random blocks of `block_size` weights set to zero; one that becomes Int8 gets
    int8 noise; so does one whose rows the block size doesn't divide, or whose table would not pay, because compression will store it
    as int8. Tied weights stay tied, and each of their modules draws its own noise; a weight tied with another kind of module stays
    float, as in compression.

    In training mode only `module.weight` shows noise, drawn anew each time it is read (`torch.nn.utils.parametrize.cached()` draws
    once). The parameter, called `parametrizations.weight.original` in the state dict, is the same object as before and never written
    to: an optimizer made before goes on working. Its place in `model.parameters()` changes, by which optimizers save their
    state: to resume training, make the optimizer on the same side of `attach` as at first. Call `remove` before saving or compressing.

    Args:
        model: changed in place; its Linear, Embedding and Conv2d weights of any float dtype may be noised.
        recipe: the recipe that the model will be compressed by.
        p: the rate, 0 to 1. The paper's authors advise 0.05 to 0.2.

    Returns:
        The names that the noised parameters had, in the model's order, tied ones once.

    Raises:
        InputError: the rate is not in 0..1, the recipe compresses nothing in this model, or a weight already has a parametrization
            (noise, perhaps) or no shape yet. The model is then unchanged.
    """
    _check_rate(p)
    for slot in compressible(model):
        _check_plain(slot)
    found, left = targets(model, recipe)
    if not found:
        kinds = sorted({type(slot.module).__name__ for slot in compressible(model)})
        raise InputError(
            f"recipe {recipe.title!r} compresses nothing in {type(model).__name__}, which has "
            f"{'weights in ' + ', '.join(kinds) if kinds else 'no Linear, Embedding or Conv2d'}; "
            f"{left or 'give it a rule that matches one, such as Rule(Int8())'}"
        )
    noises = [_BUILDERS[type(target.method)](target) for target in found]
    for target, noise in zip(found, noises, strict=True):
        for slot in target.slots:
            # Registered at rate 0: torch reads the weight to check it, and no random number should be spent on that.
            parametrize.register_parametrization(slot.module, slot.leaf, QuantNoise(noise).train(slot.module.training))
    set_rate(model, p)
    return [target.name for target in found]


def remove(model: nn.Module) -> None:
    """Takes all noise off: plain modules of their own class, with the very parameters that trained. A model without noise stays as it is.

    Args:
        model: changed in place. A parametrization that was put on top of the noise goes with it.
    """
    for module in list(model.modules()):
        if _noise_of(module) is None:
            continue
        # torch deletes the property `weight` from the module's class, which deep copies of the module share: give this one its own.
        kind = type(module)
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        # torch puts the weight last, but optimizer state goes by position: let the weight lead again, as the class defines it.
        for name, parameter in list(module.named_parameters(recurse=False)):
            if name != "weight":
                delattr(module, name)
                module.register_parameter(name, parameter)


def set_rate(model: nn.Module, p: float) -> None:
    """Sets the rate of all noise attached to a model, to follow a schedule or to pause it.

    Args:
        model: a model after `attach`.
        p: the rate, 0 to 1.

    Raises:
        InputError: the rate is not in 0..1, or the model has no noise.
    """
    _check_rate(p)
    attached = [noise for noise in map(_noise_of, model.modules()) if noise is not None]
    if not attached:
        raise InputError(f"{type(model).__name__} has no noise whose rate could be set; call qn_deploy.noise.attach(model, recipe) first")
    for noise in attached:
        noise.p = p


def _table_noise(target: Target) -> Noise:
    assert isinstance(target.method, Table)
    weight, d = target.weight, target.method.block_size
    if no_table(target) or not target.method.pays(weight.shape[0], weight[0].numel()):  # compression will store it as int8
        return _int8_noise(target)
    return partial(zero_blocks, block_size=d)


def _int8_noise(target: Target) -> Noise:
    return partial(int8, per_channel=target.per_channel)


_BUILDERS: dict[type[Any], Callable[[Target], Noise]] = {Table: _table_noise, Int8: _int8_noise}


def _noise_of(module: nn.Module) -> QuantNoise | None:
    """The noise on this module's weight, or None."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    first = module.get_submodule("parametrizations.weight.0")
    return first if isinstance(first, QuantNoise) else None


def _check_plain(slot: Slot) -> None:
    if _noise_of(slot.module) is not None:
        raise InputError(f"{slot.name} already has noise; call set_rate(model, p) for another rate, or remove(model) for another recipe")
    if parametrize.is_parametrized(slot.module, slot.leaf):
        kind = type(slot.module.get_submodule(f"parametrizations.{slot.leaf}.0")).__name__
        raise InputError(
            f"{slot.name} already has a parametrization, {kind}; "
            "take it off with torch.nn.utils.parametrize.remove_parametrizations before attaching noise"
        )
    if isinstance(slot.weight, UninitializedParameter):
        raise InputError(f"{slot.name} has no shape yet; run one batch through the model before attaching noise")


def _check_rate(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise InputError(f"noise rate {p} is not in 0..1; the paper's authors advise 0.05 to 0.2")
