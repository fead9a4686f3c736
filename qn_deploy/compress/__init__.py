"""From a trained float model to one whose weights are tables or int8.

`compress` does it after training, `ipq` with fine-tuning between groups of layers.
"""

from qn_deploy.compress.apply import Compressed, compress
from qn_deploy.compress.iterative import IPQ, ipq
from qn_deploy.compress.layers import bake, compressed_weights
from qn_deploy.compress.weights import CompressedWeight, IntWeight, PQWeight

__all__ = ["IPQ", "Compressed", "CompressedWeight", "IntWeight", "PQWeight", "bake", "compress", "compressed_weights", "ipq"]
