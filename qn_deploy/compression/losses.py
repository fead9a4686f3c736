"""What each layer of a compressed program gives, beside the float model's: where along the network the loss grows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import isfinite, log10
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qn_deploy.configs import to_dict
from qn_deploy.graph.sites import Weight
from qn_deploy.memory import as_laid_out
from qn_deploy.program.program import SQNR

_PART = 1 << 20  # values at once: few enough for sums in float32, and for memory that is used again


class Losses:
    """Sees both values of layers while they pass by.

    Args:
        found: weights, each of which stands for the layer that reads it first.
    """

    def __init__(self, found: Iterable[Weight]) -> None:
        self._names = {weight.readers[0]: weight.name for weight in found}
        self._noise: defaultdict[str, float] = defaultdict(float)
        self._power: defaultdict[str, float] = defaultdict(float)

    def see(self, node: Node, ours: Any, theirs: Any) -> None:
        """Takes the compressed model's and the float model's value of one batch in."""
        name = self._names.get(node)
        if name is None or not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
            return
        for a, b in zip(*(torch.split(values, _PART) for values in as_laid_out(ours, theirs)), strict=True):
            noise, whole = (a - b).float(), b.float()
            self._noise[name] += float(noise.dot(noise))
            self._power[name] += float(whole.dot(whole))

    def found(self) -> dict[str, float]:
        """SQNR in dB by the weight's name; none for a layer that lost nothing, or gives no finite numbers."""
        pairs = ((name, self._power[name], self._noise[name]) for name in self._names.values())
        return {name: round(10 * log10(power / noise), 1) for name, power, noise in pairs if power and noise and isfinite(power / noise)}


def entry_of(stage: str, config: Any, losses: dict[str, float]) -> dict[str, Any]:
    """What stands in the provenance: the stage, its configuration, and the SQNR of each layer where batches told it."""
    return {"stage": stage, "config": to_dict(config), **({SQNR: losses} if losses else {})}
