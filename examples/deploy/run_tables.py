"""Runs model.pte with its tables: python run_tables.py build/model.pte INPUT.npy...; writes output0.npy and so on.

`load_program` compiles the backend that expands tables at first use, and registers it.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from qn_deploy.exporters.to_executorch.runtime import load_program

program = load_program(Path(sys.argv[1]))

inputs = tuple(torch.from_numpy(np.load(path)) for path in sys.argv[2:])
for index, value in enumerate(program.run(inputs)):
    print(index, value.dtype, tuple(value.shape))
    np.save(f"output{index}.npy", value.numpy())
