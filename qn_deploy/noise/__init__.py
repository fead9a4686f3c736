"""Training that knows what will come: random parts of the model are distorted as compression and integer runtimes will distort them.

| what | put on, taken off | how much |
|---|---|---|
| weights: blocks and roundings (paper section 4) | `attach` with `Options`, `remove`; `refresh` once an epoch | `set_rate(model, p)` |
| activations: rounding (appendix 7.7) | `attach_activations` with `Activations`, `remove_activations` | `set_rate(model, p)` |
| layers: skipped (LayerDrop) | `attach_layer_drop`, `remove_layer_drop` | `set_rate(model, p, LayerDrop)` |
| BatchNorm: statistics without the noise, once after training | `settle(model, batches)` | |
| layers: pruned afterwards, for good | `prune_every_other`, `keep_layers` | |
| layers: shared by neighbours, for good | `share_chunks` | |

`Constant`, `Linear` and `Cosine` are schedules from the training step to the rate.
"""

from qn_deploy.noise.activations import ActivationNoise, Activations, attach_activations, remove_activations
from qn_deploy.noise.attach import Options, attach, refresh, remove
from qn_deploy.noise.layerdrop import LayerDrop, attach_layer_drop, remove_layer_drop
from qn_deploy.noise.passes import QuantNoise
from qn_deploy.noise.prune import keep_layers, prune_every_other
from qn_deploy.noise.rate import set_rate
from qn_deploy.noise.schedule import Constant, Cosine, Linear, Schedule
from qn_deploy.noise.settle import settle
from qn_deploy.noise.sharing import share_chunks

__all__ = [
    "ActivationNoise",
    "Activations",
    "Constant",
    "Cosine",
    "LayerDrop",
    "Linear",
    "Options",
    "QuantNoise",
    "Schedule",
    "attach",
    "attach_activations",
    "attach_layer_drop",
    "keep_layers",
    "prune_every_other",
    "refresh",
    "remove",
    "remove_activations",
    "remove_layer_drop",
    "set_rate",
    "settle",
    "share_chunks",
]
