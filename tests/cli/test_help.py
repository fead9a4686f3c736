from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.cli.runs import COMMAND, run


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the processor: other tests may run beside this one
        subprocess.run([COMMAND, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["export", "--help"], ["verify", "-h"], ["export", "m.pt", "--target", "vax"]]
)
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    script = f"""if True:
        import sys
        from qn_deploy.cli import main
        try:
            main({arguments!r})
        except SystemExit:
            pass
        heavy = {{"torch", "numpy", "onnx", "onnxruntime", "executorch", "rich", "safetensors", "sklearn"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_version() -> None:
    assert run("--version").output.startswith("qn-deploy, version ")


def test_targets_say_what_they_decide() -> None:
    result = run("targets")
    assert result.exit_code == 0
    assert {"arm", "x86", "VNNI:", "qemu"} <= set(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "m.pt", "--target", "vax"], "Error: Invalid value for '--target': 'vax' is not one of 'arm', 'x86'."),
        (["export", "m.pt", "--activations", "int4"], "Error: Invalid value for '--activations': 'int4' is not one of"),
        (["export"], "Error: Missing argument 'SOURCE'. See qn-deploy export --help"),
        (["verify", "build", "--min-sqnr", "high"], "Error: Invalid value for '--min-sqnr': 'high' is not a valid float."),
        (["deploy"], "Error: No such command 'deploy'"),
    ],
)
def test_wrong_usage_is_told_in_the_last_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in result.output
