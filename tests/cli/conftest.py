"""A folder of files that are wrong in every way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qn_deploy.exporters.to_executorch.stock import MAGIC

NET = """
import torch
three = 3
def number(): return 3
def fails(): raise ValueError("no luck")
def takes(size): return size
def no_batches(): return []
def words(): return [("a", "b")]
def stops():
    yield torch.zeros(2, 1, 8, 8)
    raise ValueError("half way")
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
    def forward(self, x):
        return self.layer(x)
def build(): return Net()
"""
RECIPES = {
    "syntax": "rules = [",
    "method": '[[rules]]\nmethod = "tabel"\n',
    "field": '[[rules]]\nmethod = "int8"\n[[rules]]\nmethod = "table"\nblock = 4\n',
    "type": '[[rules]]\nmethod = "table"\nblock_size = "nine"\n',
    "rules": 'title = "nothing else"\n',
}
BOOK, CODES = torch.zeros(16, 2), torch.zeros(8, dtype=torch.int64)  # a table for the layer of that net
TABLES = {
    "few": {"layer.centroids": BOOK, "layer.assignments": CODES[1:]},
    "code": {"layer.centroids": BOOK, "layer.assignments": CODES + 16},
    "lone": {"layer.assignments": CODES},
    "block": {"layer.centroids": torch.zeros(16, 3), "layer.assignments": CODES},
    "no_bias": {"layer.centroids": BOOK, "layer.assignments": CODES},
    "other_net": {"encoder": {"centroids": BOOK, "assignments": CODES, "n_blocks": 2, "is_conv": False, "k": 1}},
    "facts": {"layer": {"centroids": BOOK, "assignments": CODES, "n_blocks": 3, "is_conv": False, "k": 1}},
}
MANIFESTS = {"cut": "{", "other": '{"format": "something"}', "old": '{"format": "qn-deploy build", "version": 1}'}


@pytest.fixture(scope="module")
def place(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that command lines are typed in."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("wrong")
    for name, text in {
        "wrong_net.py": NET,
        "broken_net.py": "def build(:\n",
        **{f"{key}.toml": text for key, text in RECIPES.items()},
    }.items():
        (folder / name).write_text(text)
    for name in ("text.pt", "text.onnx", "text.pte", "text.qnz", "text.safetensors"):
        (folder / name).write_text("hello\n" * 50)
    (folder / "empty.pt").write_bytes(b"")
    (folder / "zip.pt").write_bytes(b"PK\3\4" + bytes(100))
    (folder / "cut.qnz").write_bytes(MAGIC + bytes(10))
    torch.save({"weight": torch.zeros(2)}, folder / "pickle.pt")
    for name, tables in TABLES.items():
        torch.save(tables, folder / f"{name}.pth")
    (folder / "cut.pth").write_bytes((folder / "few.pth").read_bytes()[:-100])
    torch.save({"layer.centroids": BOOK, "layer.assignments": CODES, "net": Path("x")}, folder / "objects.pth")
    save_file({"other": torch.zeros(2)}, folder / "other.safetensors")
    shutil.copy(model.path, folder / "model.pt")
    shutil.copy(model.uncalibrated, folder / "uncalibrated.pt")
    good = np.zeros((4, 1, 8, 8), np.float32)
    np.save(folder / "single.npy", good)
    arrays = {"data": {"image": good}, "none": {}, "names": {"picture": good}, "shape": {"image": np.zeros((4, 3, 8, 8), np.float32)},
              "dtype": {"image": good.astype(np.float64)}, "nan": {"image": good * np.nan}, "scalar": {"image": np.float32(1)}}  # fmt: skip
    for name, held in arrays.items():
        np.savez(folder / f"{name}.npz", **held)
    for name in ("folder", "images", "broken_images", *(f"{name}_build" for name in MANIFESTS)):
        (folder / name).mkdir()
    Image.new("RGB", (12, 12)).save(folder / "images/a.png")
    (folder / "broken_images/broken.png").write_bytes(b"\x89PNG")
    for name, text in MANIFESTS.items():
        (folder / f"{name}_build/manifest.json").write_text(text)
    return folder
