"""The zoo: public networks, bare and with random weights, through the whole road in both formats. Prints the matrix that README.md quotes.

Each network has a process of its own. It goes through capture, compress (tables, static activations), export and verify; a row tells how
far it came: the smallest SQNR to the float model over its outputs, bytes of both files, seconds, or the reason why it was refused.

    python benchmarks/zoo.py                    all of them
    python benchmarks/zoo.py --only bert --only vit
    python benchmarks/zoo.py --smallest         ten that are quick
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rows import Row, at_least, chosen, finish, json_option, seed_option, skip
from zoo_models import MODELS

TITLE = "zoo: public networks, bare, both formats"
PASSED, REFUSED, FAILED = "passed", "refused", "failed"
SMALLEST = ("tcn", "lstm", "unet", "gru", "transformer_encoder", "distilbert", "gpt2", "bert", "squeezenet", "vit")


@dataclass(frozen=True)
class Outcome:
    """How far a network came.

    Attributes:
        name: of the network.
        verdict: passed, refused (one sentence before a file was written) or failed.
        seconds: for the whole road, torch's import included.
        onnx, pte: bytes of the files.
        theory: bytes of codes, centroids, scales and uncompressed constants.
        sqnr_db: the smallest over the outputs, simulated program to float model.
        reason: why it did not pass; the checks that failed.
    """

    name: str
    verdict: str
    seconds: float = 0.0
    onnx: int = 0
    pte: int = 0
    theory: int = 0
    sqnr_db: float = 0.0
    reason: str = ""


def travel(name: str, folder: Path, seed: int) -> Outcome:
    """Takes one network through the whole road, in this process."""
    import torch

    from qn_deploy import capture, compress, export, verify
    from qn_deploy.errors import QnDeployError
    from qn_deploy.exporting.golden import read_vectors
    from qn_deploy.recipe import Int8, Recipe, Rule, Table
    from qn_deploy.verification.numerics import compare

    recipe = Recipe(
        (
            Rule(Table(9, 64), kernel=(3, 3)),
            Rule(Table(4, 64), module="Conv*"),
            Rule(Table(4, 64), module="Linear"),
            Rule(Table(4, 64), module="Embedding"),
            Rule(Int8()),
        ),
        title="zoo",
    )
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    entry, began = MODELS[name](), time.perf_counter()
    try:
        program = capture(entry.model, entry.args, entry.kwargs)
        program = compress(program, recipe, [program.golden.inputs])
        build = export(program, folder)
        report = verify(folder)
    except QnDeployError as error:
        return Outcome(name, REFUSED, time.perf_counter() - began, reason=str(error))
    except Exception as error:  # whatever else is raised is a bug: the matrix shows it
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(name, FAILED, time.perf_counter() - began, reason=f"{type(error).__name__} in {where.name}: {error}".splitlines()[0])
    files = {file: item.bytes for file, item in build.manifest.files.items()}
    vectors = read_vectors(folder, build.manifest)
    pairs = zip(vectors.simulated["onnx"], vectors.floats, strict=True)
    sqnr = min(compare(ours, theirs).sqnr_db for ours, theirs in pairs)
    wrong = "; ".join(f"rung {check.rung}, {check.what}: {check.found}" for check in report.checks if check.passed is False)
    sizes = (files.get("model.onnx", 0), files.get("model.pte", 0), build.manifest.theoretical_bytes)
    return Outcome(name, PASSED if report.passed else FAILED, time.perf_counter() - began, *sizes, min(sqnr, 999.0), wrong)


def travel_apart(name: str, timeout_s: float, seed: int) -> Outcome:
    """The same in a process of its own: what crashes or takes too long is a row."""
    with tempfile.TemporaryDirectory(prefix="qn-zoo-") as folder:
        result, began = Path(folder) / "outcome.json", time.perf_counter()
        command = [sys.executable, __file__, "--travel", name, "--folder", folder, "--seed", str(seed)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return Outcome(name, FAILED, timeout_s, reason=f"did not end within {timeout_s:g} s")
        if not result.exists():
            last = (done.stderr.strip().splitlines() or [""])[-1]
            return Outcome(name, FAILED, time.perf_counter() - began, reason=f"exit code {done.returncode}: {last}")
        return Outcome(**json.loads(result.read_text()))


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(MODELS)), help="This network; may be repeated.")
@click.option("--smallest", is_flag=True, help="Ten that are quick.")
@click.option("--jobs", default=1, show_default=True, help="Networks at once; each takes one core.")
@click.option("--timeout", default=900.0, show_default=True, help="Seconds for each network.")
@click.option("--travel", "alone", hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
@seed_option
@json_option
def main(
    only: tuple[str, ...],
    smallest: bool,
    jobs: int,
    timeout: float,
    alone: str | None,
    folder: Path | None,
    seed: int,
    json_file: Path | None,
) -> None:
    """Take public networks through the whole road."""
    if alone is not None:
        assert folder is not None
        (folder / "outcome.json").write_text(json.dumps(asdict(travel(alone, folder / "build", seed))))
        return
    if missing := [package for package in ("transformers", "timm", "torchvision") if find_spec(package) is None]:
        sys.exit(skip(TITLE, f"{', '.join(missing)} not installed; pip install {' '.join(missing)}", json_file))
    names = only or (SMALLEST if smallest else tuple(MODELS))
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(lambda name: travel_apart(name, timeout, seed), names):
            outcomes.append(outcome)
            click.echo(f"  {outcome.name}: {outcome.verdict} ({outcome.seconds:.0f} s) {outcome.reason}", err=True)
    show(outcomes)
    passed = [outcome for outcome in outcomes if outcome.verdict == PASSED]
    rows = [
        at_least("networks that pass in both formats", len(passed), f"of {len(outcomes)}", 50 if names == tuple(MODELS) else len(outcomes)),
        *(Row(f"{outcome.name}: SQNR", outcome.sqnr_db, "dB") for outcome in passed),
        *(Row(f"{outcome.name}: seconds", outcome.seconds, "s") for outcome in outcomes),
    ]
    settings = {**chosen(), "outcomes": [asdict(outcome) for outcome in outcomes]}
    sys.exit(finish(TITLE, rows, settings, json_file))


def show(outcomes: list[Outcome]) -> None:
    """The matrix."""
    table = Table("network", "verdict", "SQNR dB", ".onnx", ".pte", "theory", "s", "why", title=TITLE)
    for each in outcomes:
        sizes = [f"{size:,}" if size else "" for size in (each.onnx, each.pte, each.theory)]
        sqnr = f"{each.sqnr_db:.1f}" if each.verdict == PASSED else ""
        table.add_row(each.name, each.verdict, sqnr, *sizes, f"{each.seconds:.0f}", each.reason)
    Console().print(table)


if __name__ == "__main__":
    main()
