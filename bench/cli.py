"""How long `curate --help` takes, beside a Python that does nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from bench import CURATE, Figure, median, seconds

REPEATS = 5
TARGET = 0.3


def measure(folder: Path) -> list[Figure]:
    """Seconds of both commands, taken in turn; the first of each only warms the caches."""
    help_ = (*CURATE, "--help")
    bare = (sys.executable, "-c", "pass")
    taken = [(seconds(help_, cwd=folder), seconds(bare, cwd=folder)) for _ in range(REPEATS + 1)][1:]
    return [
        median("curate --help", [t for t, _ in taken], "s", TARGET, "curate --help"),
        median("python, doing nothing", [t for _, t in taken], "s", None, "python -c pass"),
    ]
