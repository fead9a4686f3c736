"""From a trained float model to one whose weights are tables or int8.

`compress` does it after training, `ipq` with fine-tuning between groups of layers; `tune` fine-tunes what either gave from end to end.
"""

from qn_deploy.compression.apply import Compressed, compress
from qn_deploy.compression.feedback import Feedback
from qn_deploy.compression.iterative import IPQ, TRANSFORMER, ipq
from qn_deploy.compression.layers import bake, compressed_weights
from qn_deploy.compression.progress import Progress, progress_bar
from qn_deploy.compression.tune import Tune, tune
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight

__all__ = [
    "IPQ",
    "TRANSFORMER",
    "Compressed",
    "CompressedWeight",
    "Feedback",
    "IntWeight",
    "PQWeight",
    "Progress",
    "Tune",
    "bake",
    "compress",
    "compressed_weights",
    "ipq",
    "progress_bar",
    "tune",
]
