"""Running programs on a device: a folder and scripts stand in for device and runner. The real ones: runtime_tests/test_devices.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from qn_deploy.errors import ToolchainError
from qn_deploy.exporting.isolated import Run, RuntimeFailure
from qn_deploy.exporting.runner import Runner
from qn_deploy.verification.devices import run as module
from qn_deploy.verification.devices.device import Ended, call
from qn_deploy.verification.devices.run import Timed, run_on

# Its program is a word, and it does what the word says. $1 program, $2 inputs, $3 outputs.
RUNNER = """#!/bin/sh
case "$(cat "$1")" in
    copy) cp "$2" "$3"; echo chatter; echo '{"load_ms": 1.5, "first_ms": 0.5}' ;;
    words) printf 'uint8 %s\\n%s' "$(printf '%s' "$*" | wc -c)" "$*" > "$3"; echo '{}' ;;
    part) cp "$(dirname "$1")/weights" "$3"; echo '{}' ;;
    refuse) echo noise >&2; echo 'runner: no kernel for MatMul' >&2; exit 1 ;;
    segfault) cp "$2" "$3"; kill -SEGV $$ ;;
    illegal) kill -ILL $$ ;;
    sleep) sleep 9 ;;
    nothing) echo '{}' ;;
    half) printf 'float32 9\\n' > "$3"; echo '{}' ;;
    mute) cp "$2" "$3" ;;
esac
"""


class Folder:
    """A folder of this machine as a device."""

    name, emulated = "folder", True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def has(self, path: str) -> bool:
        return (self.folder / path).exists()

    def put(self, source: Path, path: str) -> None:
        assert not self.has(path)
        shutil.copytree(source, self.folder / path)

    def run(self, bundle: str, program: str, arguments: tuple[str, ...], timeout_s: float) -> Ended:
        return call((str(self.folder / bundle / "bin" / program), *arguments), timeout_s, self.folder)

    def get(self, path: str, target: Path) -> None:
        shutil.copytree(self.folder / path, target)

    def remove(self, path: str) -> None:
        shutil.rmtree(self.folder / path)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    bundle = tmp_path / "bundle-1"
    (bundle / "bin").mkdir(parents=True)
    (bundle / "bin/runner").write_text(RUNNER)
    (bundle / "bin/runner").chmod(0o755)
    runner = Runner("runner", "torch", {}, tmp_path, lambda *_: None, options=("--always",), plain=("--plain",))
    monkeypatch.setattr(module, "find_bundle", lambda: bundle)
    monkeypatch.setattr(module, "find_runners", lambda: {"words": runner})
    return Folder(tmp_path / "device")


INPUTS = (torch.tensor([1.0, 2.0]), torch.tensor([[3]], dtype=torch.int8))


def test_outputs_and_times(device: Folder) -> None:
    (result,) = run_on(device, "words", (Run(b"copy"),), INPUTS)
    assert isinstance(result, Timed)
    assert [tensor.tolist() for tensor in result.outputs] == [[1.0, 2.0], [[3]]]
    assert result.times == {"load_ms": 1.5, "first_ms": 0.5}
    assert [path.name for path in device.folder.iterdir()] == ["bundle-1"]  # it stays for the next time, and nothing else does


def test_what_the_runner_is_told(device: Folder) -> None:
    results = run_on(device, "words", (Run(b"words"), Run(b"words", optimized=False)), INPUTS, repeats=3, options=("--more",))
    said = [bytes(result.outputs[0].tolist()).decode().split(" ")[3:] for result in results if isinstance(result, Timed)]
    assert said == [["--always", "--more", "--runs", "3"], ["--always", "--more", "--runs", "3", "--plain"]]


def test_the_files_beside_a_program_go_with_it(device: Folder) -> None:
    (result,) = run_on(device, "words", (Run(b"part", parts={"weights": b"int8 1\n\x07"}),), INPUTS)
    assert isinstance(result, Timed)
    assert result.outputs[0].tolist() == [7]


def test_a_failure_is_a_result_and_the_other_programs_still_run(device: Folder) -> None:
    words = ("segfault", "refuse", "illegal", "sleep", "nothing", "half", "mute", "copy")
    results = run_on(device, "words", tuple(Run(word.encode()) for word in words), INPUTS, timeout_s=1)
    failures = {word: str(result) for word, result in zip(words, results, strict=True) if isinstance(result, RuntimeFailure)}
    odd = {word: failures.pop(word) for word in ("nothing", "half", "mute")}
    assert failures == {
        "segfault": "the runtime crashed with SIGSEGV",
        "refuse": "the runtime ended with exit code 1: no kernel for MatMul",
        "illegal": "the runtime crashed with SIGILL",
        "sleep": "the runtime did not end in time",
    }
    assert all(message.startswith("runner ended well, without what it should give (") for message in odd.values())
    assert isinstance(results[-1], Timed)
    assert [path.name for path in device.folder.iterdir()] == ["bundle-1"]


def test_an_exporter_without_a_runner(device: Folder) -> None:
    with pytest.raises(ToolchainError, match="the exporter 'third' brings no runner for devices: its files run on this machine only"):
        run_on(device, "third", (), INPUTS)
