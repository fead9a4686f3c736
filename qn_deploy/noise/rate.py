"""The rate of a noise, and how a schedule reaches it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from qn_deploy.errors import InputError


class Rated:
    """Mixin of what is drawn at random with a rate: a module of the model, such as a parametrization, or a plain attribute of one.

    It starts at rate 0 and has no constructor. The rate is in no state dict: a schedule sets it again after a checkpoint.
    """

    _p: float = 0.0

    @property
    def p(self) -> float:
        """The rate, 0 to 1."""
        return self._p

    @p.setter
    def p(self, p: float) -> None:
        check_rate(p)
        self._p = p


class Noisy(Rated):
    """Mixin of the noises that imitate quantization, of weights or of activations; LayerDrop, which prunes, is none of them."""


def check_rate(p: float) -> None:
    """Refuses what is no rate.

    Raises:
        InputError: the rate is not in 0..1.
    """
    if not 0.0 <= p <= 1.0:
        raise InputError(f"noise rate {p} is not in 0..1; the paper's authors advise 0.05 to 0.2")


def rated(model: nn.Module, kind: type[Rated] = Noisy) -> Iterator[Rated]:
    """What a model carries of this kind; what several modules share comes once for each."""
    for module in model.modules():
        yield from (part for part in (module, *vars(module).values()) if isinstance(part, kind))


def set_rate(model: nn.Module, p: float, kind: type[Rated] = Noisy) -> None:
    """Sets the rate of all noise attached to a model, to follow a schedule or to pause it.

    Args:
        model: a model after `attach`.
        p: the rate, 0 to 1.
        kind: whose rate. Noisy is all noise that imitates quantization; QuantNoise that of weights alone, ActivationNoise that of
            activations. LayerDrop, whose rate is seldom the same, is only reached by its name.

    Raises:
        InputError: the rate is not in 0..1, or the model has nothing of this kind.
    """
    check_rate(p)
    found = list(rated(model, kind))
    if not found:
        what = "noise" if kind is Noisy else kind.__name__
        raise InputError(
            f"{type(model).__name__} has no {what} whose rate could be set; call qn_deploy.noise.attach(model, recipe) "
            "or another attach function of qn_deploy.noise first"
        )
    for part in found:
        part.p = p
