"""A transformers encoder becomes an .onnx and a .pte: python examples/transformers_encoder.py FOLDER.

The weights are random. With your own, only the line that makes `encoder` changes:

    encoder = AutoModel.from_pretrained("my-encoder", attn_implementation="eager").eval()
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.export import Dim
from transformers import BertConfig, BertModel

import qn_deploy
from qn_deploy import recipe

WORDS, LENGTH = 1_000, 16


def texts(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Batches of token ids and their masks, int64 [8, LENGTH], as a tokenizer gives them: some hundred unlabelled texts."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=draw)
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids.split(8)]


def main() -> None:
    """The whole road."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    encoder = BertModel(config, add_pooling_layer=False).eval()

    # Batch and length stay open. Each needs an upper bound: ExecuTorch reserves memory for the largest input.
    sizes = {0: Dim("batch", min=1, max=32), 1: Dim("length", min=2, max=64)}
    shapes = {"input_ids": sizes, "attention_mask": sizes}
    program = qn_deploy.capture(encoder, kwargs=texts(2, seed=1)[0], dynamic_shapes=shapes)

    batches = texts(64, seed=0)
    small = qn_deploy.compress(program, recipe.transformer(), batches)
    small = qn_deploy.tune(small, program, batches, qn_deploy.TuneConfig(steps=20))  # an hour, for a real encoder
    qn_deploy.save(small, folder / "model.pt")

    # dynamic: a linear layer finds the range of its input as it runs, which suits the wide ranges of Transformers.
    print(qn_deploy.export(small, folder / "build", qn_deploy.ExportConfig("arm", activations="dynamic")))
    report = qn_deploy.verify(folder / "build")
    print(report)
    sys.exit(not report.passed)


if __name__ == "__main__":
    main()
