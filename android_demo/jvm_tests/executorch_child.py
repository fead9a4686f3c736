"""Runs a .pte for the stand-in Module.java: tensors come on standard input and go to standard output, as Java's DataStreams write them."""

from __future__ import annotations

import os
import struct
import sys
from typing import BinaryIO

import numpy as np
import torch

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch.runtime import load_program

DTYPES = {"FLOAT": "<f4", "DOUBLE": "<f8", "INT64": "<i8", "INT32": "<i4", "INT8": "<i1", "UINT8": "<u1"}
NAMES = {np.dtype(code): name for name, code in DTYPES.items()}


def text(stream: BinaryIO) -> str:
    """One string; empty at the end of the stream."""
    length = stream.read(2)
    return stream.read(struct.unpack(">H", length)[0]).decode() if length else ""


def read(stream: BinaryIO) -> torch.Tensor:
    """One tensor."""
    dtype = np.dtype(DTYPES[text(stream)])
    (rank,) = struct.unpack(">i", stream.read(4))
    shape = struct.unpack(f">{rank}q", stream.read(8 * rank))
    data = stream.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return torch.from_numpy(np.frombuffer(data, dtype).reshape(shape).copy())


def write(stream: BinaryIO, tensor: torch.Tensor) -> None:
    """One tensor."""
    array = np.ascontiguousarray(tensor.numpy())
    name, data = NAMES[array.dtype].encode(), array.tobytes()
    stream.write(struct.pack(f">H{len(name)}si{array.ndim}qi", len(name), name, array.ndim, *array.shape, len(data)) + data)


def main() -> None:
    """Answers until standard input ends: a path, the number of inputs, the inputs; then the number of outputs, the outputs."""
    questions = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the runtime prints must not get between the answers
    torch.set_num_threads(1)
    loaded, program = "", None
    while path := text(questions):
        if path != loaded:
            loaded, program = path, load_program(path)
        assert program is not None
        inputs = tuple(read(questions) for _ in range(struct.unpack(">i", questions.read(4))[0]))
        try:
            outputs = program.run(inputs)
        except InputError as error:
            message = str(error).encode()
            answers.write(struct.pack(f">iH{len(message)}s", -1, len(message), message))
        else:
            answers.write(struct.pack(">i", len(outputs)))
            for output in outputs:
                write(answers, output)
        answers.flush()


if __name__ == "__main__":
    main()
