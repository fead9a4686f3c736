"""Quant-Noise while training: random parts of the weights are distorted as compression will distort them.

`attach` before training, `remove` after it; `set_rate` in between.
"""

from qn_deploy.noise.attach import QuantNoise, attach, remove, set_rate

__all__ = ["QuantNoise", "attach", "remove", "set_rate"]
