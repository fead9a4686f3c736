from __future__ import annotations

from pathlib import Path

import pytest

from qn_deploy.errors import InputError
from qn_deploy.verification.devices.qemu import CPUS, Qemu


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """A qemu that knows two processors and says how it was called."""
    script = tmp_path / "qemu"
    script.write_text('#!/bin/sh\n[ "$2" = help ] && echo "Available CPUs:\n  cortex-a53\n  cortex-a76\n  max" || { pwd; echo "$@"; }\n')
    script.chmod(0o755)
    return script


def test_max_is_refused_for_its_wrong_results(qemu: Path) -> None:
    for cpu in ("max", "max,sme=off"):
        with pytest.raises(InputError, match=f"no device qemu:{cpu}; expected one of qemu:cortex-a53, .*max computes wrong int8 results"):
            Qemu(cpu, qemu)


def test_a_processor_that_qemu_does_not_know(qemu: Path) -> None:
    with pytest.raises(InputError, match="knows no cortex-a72, a newer qemu does; it knows cortex-a53, cortex-a76"):
        Qemu("cortex-a72", qemu)
    with pytest.raises(InputError, match="no device qemu:8086; expected one of"):
        Qemu("8086", qemu)


def test_a_program_runs_in_the_working_folder_as_its_processor(qemu: Path, tmp_path: Path) -> None:
    device = Qemu("cortex-a53", qemu)
    (tmp_path / "b").mkdir()
    device.put(tmp_path / "b", "b")
    folder, command = device.run("b", "runner", ("x",), 60).out.splitlines()
    assert command == "-cpu cortex-a53 -L b/cpu/cortex-a53 b/lib/ld-linux-aarch64.so.1 --library-path b/lib b/bin/runner x"
    assert (Path(folder) / "b").resolve() == tmp_path / "b"
    assert device.has("b")
    device.remove("b")
    assert not device.has("b")
    assert (tmp_path / "b").is_dir()  # only the link went
    del device
    assert not Path(folder).exists()


def test_cpuinfo_is_what_the_kernel_writes() -> None:
    lines = CPUS["cortex-a76"].cpuinfo().split("\n")
    assert lines[0] == "processor\t: 0"
    assert lines[3:5] == ["CPU implementer\t: 0x41", "CPU architecture: 8"]
    assert lines[6] == "CPU part\t: 0xd0b"
    assert "asimddp" in lines[2]
    assert "asimddp" not in CPUS["cortex-a72"].cpuinfo()


def test_all_files_tell_of_one_processor() -> None:
    files = CPUS["cortex-a53"].files()
    assert files.pop("proc/cpuinfo").count("processor") == 1
    assert files == {"sys/devices/system/cpu/possible": "0\n", "sys/devices/system/cpu/present": "0\n"}
