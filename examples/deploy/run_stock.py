"""Runs a stock .pte on stock ExecuTorch: python run_stock.py stock.pte INPUT.npy...; writes output0.npy and so on.

The .pte comes from the container, once: qn-deploy unpack build/model.stock.qnz --out stock.pte
"""

import sys

import executorch.kernels.quantized  # noqa: F401  registers operators that quantize
import numpy as np
import torch
from executorch.runtime import Runtime, Verification

program = Runtime.get().load_program(sys.argv[1], verification=Verification.InternalConsistency)
method = program.load_method("forward")  # `program` has to live as long as it

inputs = [torch.from_numpy(np.load(path)) for path in sys.argv[2:]]
for index, value in enumerate(method.execute(inputs)):
    print(index, value.dtype, tuple(value.shape))
    np.save(f"output{index}.npy", value.numpy())
