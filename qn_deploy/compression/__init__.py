"""From a float program to one whose weights are tables or integers.

`compress` does it after training, `ipq` with fine-tuning between groups of layers; `tune` fine-tunes what either gave from end to end, and
`calibrate` finds the ranges of static int8 activations.
"""

from qn_deploy.compression.calibrate import calibrate
from qn_deploy.compression.compress import CompressConfig, compress
from qn_deploy.compression.iterative import TRANSFORMER, IPQConfig, ipq
from qn_deploy.compression.progress import Progress, progress_bar
from qn_deploy.compression.tune import TuneConfig, tune
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight

__all__ = [
    "TRANSFORMER",
    "CompressConfig",
    "CompressedWeight",
    "IPQConfig",
    "IntWeight",
    "PQWeight",
    "Progress",
    "TuneConfig",
    "calibrate",
    "compress",
    "ipq",
    "progress_bar",
    "tune",
]
