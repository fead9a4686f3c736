"""How the kernels are compiled, by themselves and into the libraries of the runtimes."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(FOLDER.glob("*.cpp")))
HEADERS = tuple(sorted(FOLDER.glob("*.h")))
# Each source chooses its instructions itself. A multiplication and an addition stay two: fused, they would round once instead of twice.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off")
