"""From a float program to one whose weights are tables or integers.

`compress` does it after training, `plan` within a budget of bytes or loss, `ipq` with fine-tuning between groups of layers; `tune`
fine-tunes what they gave from end to end, `blockwise` block by block, and `calibrate` finds the ranges of static int8 activations.
"""

from qn_deploy.compression.blockwise import BlockConfig, blockwise
from qn_deploy.compression.calibrate import calibrate
from qn_deploy.compression.code_moves import CodeConfig
from qn_deploy.compression.compress import CompressConfig, compress
from qn_deploy.compression.iterative import TRANSFORMER, IPQConfig, ipq
from qn_deploy.compression.plan import PlanConfig, plan
from qn_deploy.compression.progress import Progress, progress_bar
from qn_deploy.compression.tune import TuneConfig, tune
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight

__all__ = [
    "TRANSFORMER",
    "BlockConfig",
    "CodeConfig",
    "CompressConfig",
    "CompressedWeight",
    "IPQConfig",
    "IntWeight",
    "PQWeight",
    "PlanConfig",
    "Progress",
    "TuneConfig",
    "blockwise",
    "calibrate",
    "compress",
    "ipq",
    "plan",
    "progress_bar",
    "tune",
]
