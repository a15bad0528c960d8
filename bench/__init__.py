"""What `curate` promises to be fast, measured: `python -m bench`, the figures of docs/benchmarks.md.

Every module here has `measure(folder) -> list[Figure]`; `folder` is an empty one on the disk that is measured.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CURATE = (sys.executable, "-m", "curate")
"""How the command is started: by this Python, whatever stands in PATH."""


@dataclass(frozen=True)
class Figure:
    """One measured number, and the promise that it is held against."""

    name: str
    value: float
    unit: str
    target: float | None
    """None: measured for comparison only."""
    command: str
    """What was run, for people."""
    at_least: bool = False
    """Whether the target is the least that will do; else it is the most."""
    runs: tuple[float, ...] = ()
    """The single measurements that `value` is the median of."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the promise is kept; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def as_json(self) -> dict[str, Any]:
        """All of it, and `met`."""
        return {**vars(self), "runs": list(self.runs), "met": self.met}


def seconds(command: Sequence[str | Path], *, cwd: Path | None = None) -> float:
    """Wall clock of one command from its start to its end. Raises RuntimeError with its output if it fails."""
    words = [str(w) for w in command]
    began = time.perf_counter()
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return took


def median(name: str, runs: Sequence[float], unit: str, target: float | None, command: str, **more: Any) -> Figure:
    """The figure that several measurements make."""
    return Figure(name, statistics.median(runs), unit, target, command, runs=tuple(runs), **more)
