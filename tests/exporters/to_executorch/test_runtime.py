from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch import graph_blob
from qn_deploy.exporters.to_executorch.pte import named_data, to_stock, to_tables
from qn_deploy.exporters.to_executorch.runtime import load_program
from qn_deploy.weights.table_blob import MAGIC, DType


def test_tables_compute_bit_for_bit_what_dense_weights_do(lowered) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    (stock,) = load_program(lowered.stock).run(lowered.inputs)
    (tables,) = load_program(pte).run(lowered.inputs)
    (expanded,) = load_program(to_stock(pte)).run(lowered.inputs)
    assert torch.equal(stock, tables)
    assert torch.equal(stock, expanded)
    torch.testing.assert_close(tables, lowered.outputs, rtol=1e-5, atol=1e-4)


def test_outputs_stay_valid_after_the_next_run(lowered) -> None:
    program = load_program(to_tables(lowered.stock, lowered.tables))
    (first,) = program.run(lowered.inputs)
    kept = first.clone()
    (second,) = program.run((lowered.inputs[0] + 1,))
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_inputs_may_have_any_strides(lowered) -> None:
    program = load_program(lowered.stock)
    (strided,) = program.run((lowered.inputs[0].to(memory_format=torch.channels_last),))
    assert torch.equal(strided, program.run(lowered.inputs)[0])


@pytest.mark.parametrize("where", [16, 18, 19, 20, 24, 28, 32, 36])
def test_a_damaged_table_is_an_error_not_a_crash(lowered, where: int, capfd: pytest.CaptureFixture[str]) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    for start in [at for at in range(len(pte)) if pte.startswith(MAGIC, at)]:
        at = start + where
        damaged = pte[:at] + bytes([pte[at] ^ 0xFF]) + pte[at + 1 :]
        with pytest.raises(InputError, match="is a damaged table blob"):
            load_program(damaged).run(lowered.inputs)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("where", [16, 20, 23, 24, 40, -1])
def test_a_damaged_graph_is_an_error_not_a_crash(lowered, payloads, where: int, capfd: pytest.CaptureFixture[str]) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    for graph in {data for data in payloads(pte) if graph_blob.is_blob(data)}:
        damaged = bytearray(graph)
        damaged[where] ^= 0xFF
        with pytest.raises(InputError, match="a delegate of the program is a damaged graph blob"):
            load_program(pte.replace(graph, damaged)).run(lowered.inputs)
    assert capfd.readouterr().err == ""


def test_a_missing_constant_is_an_error_not_a_crash(lowered) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    for key in named_data(pte):
        with pytest.raises(InputError, match="can't load 'forward'"):
            load_program(pte.replace(key.encode(), b"x" * len(key))).run(lowered.inputs)


def test_full_keys_and_plain_graphs_are_taken_as_they_are(lowered) -> None:
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    file = deserialize_pte_binary(lowered.stock)
    for delegate in file.program.execution_plan[0].delegates:
        delegate.id = "QnXnnpackBackend"
    renamed = bytes(serialize_pte_binary(file, extract_delegate_segments=True))
    assert torch.equal(load_program(renamed).run(lowered.inputs)[0], load_program(lowered.stock).run(lowered.inputs)[0])


def test_a_program_from_a_path_names_it(lowered, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(lowered.stock)
    program = load_program(path)
    path.unlink()
    assert torch.equal(program.run(lowered.inputs)[0], load_program(lowered.stock).run(lowered.inputs)[0])
    with pytest.raises(InputError, match=r"model\.pte has no method 'backward'; it has \['forward'\]"):
        program.run(lowered.inputs, method="backward")
    with pytest.raises(InputError, match=r"can't read .*model\.pte: No such file"):
        load_program(path)


def test_inputs_of_the_wrong_shape_are_refused(lowered) -> None:
    with pytest.raises(InputError, match=r"Expected shape \(1, 8, 7, 7\), but received \(1, 8, 9, 9\)"):
        load_program(lowered.stock).run((torch.zeros(1, 8, 9, 9),))


@pytest.mark.parametrize("data", [b"", b"hello " * 20])
def test_what_is_no_program_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"can't load the program \(expected a .pte\)"):
        load_program(data)


@pytest.mark.slow
@pytest.mark.parametrize("lowered", [DType.INT8], indirect=True, ids=["int8"])
def test_the_user_sees_nothing_but_the_result(lowered, tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(to_tables(lowered.stock, lowered.tables))
    script = """if True:
        import sys, torch
        from qn_deploy.exporters.to_executorch.runtime import load_program
        print(load_program(sys.argv[1]).run((torch.zeros(1, 8, 7, 7),))[0].shape)
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model.pte")], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("torch.Size([1, 48])\n", "")
