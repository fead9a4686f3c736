"""Runs model.onnx on stock onnxruntime: python run_onnx.py build/model.onnx INPUT.npy...; writes OUTPUT.npy for each output."""

import sys

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # exact int8 sums on x86 without VNNI; other processors ignore it
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

inputs = {entry.name: np.load(path) for entry, path in zip(session.get_inputs(), sys.argv[2:], strict=True)}
for entry, value in zip(session.get_outputs(), session.run(None, inputs), strict=True):
    print(entry.name, value.dtype, value.shape)
    np.save(f"{entry.name}.npy", value)
