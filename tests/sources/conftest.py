from __future__ import annotations

from pathlib import Path

import pytest

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, image):
        return self.head(self.conv(image).relu().mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()

def batches():
    for index in range(3):
        yield torch.full((4, 3, 8, 8), float(index))

def endless():
    while True:
        yield {"image": torch.zeros(1, 3, 8, 8)}

def number():
    return 5

def nothing():
    return []

def broken():
    raise ValueError("no such layer")

def texts():
    yield ("hello",)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder with the user's code in it, the current one; the module has a name of its own in each test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{module_name(request)}.py").write_text(NET)
    return tmp_path


@pytest.fixture
def net(here: Path, request: pytest.FixtureRequest) -> str:
    """The name of that module."""
    return module_name(request)


def module_name(request: pytest.FixtureRequest) -> str:
    return f"net_{abs(hash(request.node.nodeid))}"
