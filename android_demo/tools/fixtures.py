"""The folder that the JUnit tests read: models as the app's assets hold them, other files, and what Python makes of each."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from qn_deploy import android
from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch import stock
from qn_deploy.exporters.to_onnx import shell
from qn_deploy.verification import judge
from qn_deploy.verification.report import Report
from qn_deploy.weights import table_blob

SEED = 7
NO_LOSS_DB = 1e9  # JSON has no infinity
RULES = [
    ("IDENTICAL", NO_LOSS_DB, judge.identical),
    ("WITHIN_A_STEP", NO_LOSS_DB, judge.within(judge.MAX_STEPS_TWINS)),
    *(("SIMILAR", loss_db, judge.similar(loss_db)) for loss_db in (NO_LOSS_DB, 23.0, 8.75, -NO_LOSS_DB)),
    ("CLOSE", NO_LOSS_DB, judge.close),
]


class Fixtures:
    """A folder of fixtures; `folder` is what the tests get."""

    def __init__(self, app: Path) -> None:
        self._app, self.folder = app, app / android.MODELS.parent
        manifest = app / android.APP_MANIFEST
        manifest.parent.mkdir(parents=True)
        manifest.touch()
        self._expected: dict[str, object] = {}

    def add_model(self, name: str, build: Path, report: Report, pte: bool = False) -> list[str]:
        """Bundles a build as `qn-deploy android` does, with the verdict of Python for each of its programs; their names."""
        files = android.bundle(build, self._app, name, pte).files
        verdicts = {check.what.split(" to ")[0]: check for check in report.checks if check.rung == 3 and check.passed is not None}
        of_program = {"model.onnx": "model.onnx", shell.SHELL: "model.onnx", "model.stock.qnz": "model.pte", "model.pte": "model.pte"}
        programs = {f"{name}/{file}": verdicts[of_program[file]] for file in files if file in of_program}
        self._expected |= {program: _verdict(check) for program, check in programs.items()}
        (self.folder / "expected.json").write_text(json.dumps(self._expected))
        return list(programs)

    def add_forms(self, blobs: list[bytes], containers: list[bytes]) -> None:
        """Table blobs and .qnz files with what they decode to, and damaged ones that Python refuses."""
        draw = np.random.default_rng(SEED)
        forms = [(f"{i}.blob", blob, table_blob.unpack) for i, blob in enumerate(blobs)]
        forms += [(f"{i}.qnz", container, stock.rebuild) for i, container in enumerate(containers)]
        for name, data, decode in forms:
            _write(self.folder / "good" / name, data)
            _write(self.folder / "good" / f"{name}.dense", decode(data))
            wrong = _wrong_streams(data) if decode is stock.rebuild else ()
            for number, bad in enumerate([*_damaged(data, draw), *wrong]):
                try:
                    decode(bad)
                except InputError:
                    _write(self.folder / "bad" / f"{number}-{name}", bad)

    def add_sidecar(self, sidecar: bytes) -> None:
        """A shell's constants, and what Python decodes them to."""
        _write(self.folder / "shell" / shell.SIDECAR, sidecar)
        dense = {name: torch.from_numpy(array.copy()) for name, array in shell.constants(sidecar)}
        save_file(dense, self.folder / "shell/dense.safetensors")

    def add_agreements(self) -> None:
        """Pairs of tensors, and what the ladder says of them."""
        pairs, cases = list(_pairs()), []
        for pair, (found, expected, step) in enumerate(pairs):
            for rule, loss_db, criterion in RULES:
                check = judge.judge_output(3, "", found, expected, step, criterion)
                cases.append({"pair": pair, "rule": rule, "loss": loss_db, "step": step, **_verdict(check)})
        (self.folder / "agreement.json").write_text(json.dumps({"cases": cases}))
        tensors = {f"{side}/{i}": pair[at].clone() for i, pair in enumerate(pairs) for at, side in enumerate(("found", "expected"))}
        save_file(tensors, self.folder / "agreement.safetensors")


def _verdict(check: judge.Check) -> dict[str, object]:
    return {"passed": check.passed, "found": check.found, "limit": check.limit}


def _pairs() -> Iterator[tuple[Tensor, Tensor, float | None]]:
    draw = torch.Generator().manual_seed(SEED)
    for step in (None, 0.05):
        for shape in ((4, 10), (3,), (), (2, 3, 5), (0, 4)):
            expected = torch.randn(shape, generator=draw)
            yield expected.clone(), expected, step
            yield -expected, expected, step
            yield expected + 0.05 * torch.randint(-1, 2, shape, generator=draw), expected, step
            yield expected + 1e-3 * torch.randn(shape, generator=draw), expected, step
            yield expected + 3e-3 * torch.randn(shape, generator=draw), expected, step  # between the limits in dB
            yield expected + 3e-2 * torch.randn(shape, generator=draw), expected, step
            yield torch.zeros(shape), torch.zeros(shape), step
    for value in (float("nan"), float("inf"), -float("inf")):
        expected = torch.randn(2, 4, generator=draw)
        other = expected.clone()
        other[1, 2] = value
        yield from ((other, expected, step) for step in (None, 0.05))
        yield from ((expected, other, step) for step in (None, 0.05))
        yield from ((other.clone(), other, step) for step in (None, 0.05))
        yield from ((other + torch.tensor([0.0, 0.02, 0.0, 0.0]), other, step) for step in (None, 0.05))  # the same and noise beside it
    tied = torch.tensor([[1.0, 2.0, 2.0], [3.0, 3.0, 1.0]])
    yield tied + torch.tensor([0.0, 0.01, 0.0]), tied, None
    yield tied, tied + torch.tensor([0.0, 0.0, 0.01]), None
    whole = torch.randint(-100, 100, (3, 4), generator=draw)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.float64):
        yield whole.to(dtype), whole.to(dtype), None
        yield (whole + 1).to(dtype), whole.to(dtype), None
    yield torch.tensor([2**53]), torch.tensor([2**53 + 1]), None  # one number as doubles
    yield torch.tensor([True, False]), torch.tensor([True, True]), None
    yield torch.tensor([0.0]), torch.tensor([-0.0]), 0.05


def _damaged(data: bytes, draw: np.random.Generator) -> Iterator[bytes]:
    yield data[:-1]
    yield data + b"\0"
    yield b""
    for at in {*range(min(80, len(data))), len(data) - 1}:  # headers, and that of the first piece; the last code
        for value in (0, 1, 2, 3, 4, 127, 255):
            yield data[:at] + bytes([value]) + data[at + 1 :]
    for at in draw.integers(0, len(data), 50):
        yield data[:at] + bytes([data[at] ^ int(1 << draw.integers(8))]) + data[at + 1 :]


def _wrong_streams(container: bytes) -> Iterator[bytes]:
    """The first compressed piece has the right CRC-32, but its stream is followed by a byte, cut off, or ends with another checksum."""
    kind, at, end = None, 0, stock.HEADER.size
    while kind != stock.Kind.ZLIB:
        at = end
        _, kind, stored, rebuilt = stock.PIECE.unpack_from(container, at)
        end = at + stock.PIECE.size + stored
    stream = container[at + stock.PIECE.size : end]
    for wrong in (stream + b"\0", stream[:-1], stream[:-4] + bytes(4)):
        checked = stock.PIECE.pack(0, kind, len(wrong), rebuilt)[4:] + wrong
        yield container[:at] + struct.pack("<I", zlib.crc32(checked)) + checked + container[end:]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
