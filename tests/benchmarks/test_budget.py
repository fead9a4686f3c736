from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from qn_deploy.program.capture import capture
from tests.test_benchmarks import cifar_folder, load


@pytest.mark.slow
def test_a_budget_is_measured(tmp_path: Path) -> None:
    cifar = cifar_folder(tmp_path)
    options = ["--sizes", "1", "--max-drop", "40", "--threads", str(torch.get_num_threads()), "--json", str(cifar / "rows.json")]
    result = CliRunner().invoke(load("budget").main, ["--data", str(cifar), *options])
    assert result.exit_code in (0, 1), result.output  # of such a network nothing is sure but the bytes
    measured = {row["name"]: row for row in json.loads((cifar / "rows.json").read_text())["rows"]}
    assert measured["tables of 9, K=16: bytes of the plan's model.pt"]["met"] is True
    assert measured["max_drop 40: accuracy lost on 10 samples that plan saw"]["met"] is True
    assert measured["max_drop 40: accuracy lost on 10 held-out samples"]["bar"] == "<= 40.3"


@pytest.mark.parametrize("name", [*load("budget_networks").NETWORKS])
def test_a_budget_of_each_network_tells_what_is_missing(tmp_path: Path, name: str) -> None:
    result = CliRunner().invoke(load("budget").main, ["--network", name, "--data", str(tmp_path)])
    assert result.exit_code == 0 and result.output.startswith("skipped: A budget for ")


def test_judges_of_a_classifier_tell_points_of_each_sample_and_agreement() -> None:
    networks = load("budget_networks")
    program = capture(torch.nn.ReLU(), (torch.zeros(2, 3),))
    inputs, labels = torch.eye(3).repeat(4, 1), torch.tensor([0, 1, 1] * 4)
    judge = networks._by_labels(program, inputs, labels, 5)
    whole, half = (judge(part)(lambda x: (x,)) for part in (slice(None), slice(1, None, 2)))
    assert whole.points.tolist() == [100.0, 100.0, 0.0] * 4 and whole.beside == 100
    assert half.points.tolist() == whole.points[1::2].tolist()
    assert judge(slice(None))(lambda x: (x.roll(1, 1),)).beside == 0


def test_minilm_is_judged_by_cosine_and_correlation(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    minilm = load("minilm")
    (tmp_path / "pairs.csv").write_text("".join(f"{'a' * i},{'b' * (9 - i)},{i}\n" for i in range(1, 9)))

    class Encoder(torch.nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(ids.float() * mask, dim=1)

    def tokenize(texts: list[str], longest: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([[text.count("a"), text.count("b"), 1] for text in texts])
        return ids, torch.ones_like(ids)

    program = capture(Encoder(), tokenize(["a", "b"]))
    whole, half = (minilm.Judge(tmp_path / "pairs.csv", program, tokenize, part) for part in (slice(None), slice(0, None, 2)))
    assert (len(whole.scores), half.scores) == (4, [1.0, 5.0])
    assert whole.evaluate(program)[0] == pytest.approx(1)
    expected = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 1], [5.0, 0, 1], [0, 8.0, 1], [0, 4.0, 1]]), dim=1)
    assert torch.allclose(half.float, expected, atol=1e-6)
    assert half.cosines(expected.roll(1, 1)).tolist() == pytest.approx((expected * expected.roll(1, 1)).sum(1).tolist())
