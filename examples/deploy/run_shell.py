"""Runs the shell form, decoded one weight at a time: python run_shell.py build INPUT.npy...; writes OUTPUT.npy for each output."""

import sys
from pathlib import Path

import numpy as np

from qn_deploy.exporters.to_onnx.shell import load_shell

session = load_shell(Path(sys.argv[1]))

inputs = {entry.name: np.load(path) for entry, path in zip(session.get_inputs(), sys.argv[2:], strict=True)}
for entry, value in zip(session.get_outputs(), session.run(None, inputs), strict=True):
    print(entry.name, value.dtype, value.shape)
    np.save(f"{entry.name}.npy", value)
