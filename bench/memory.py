"""How much memory a command and all the processes that it starts hold."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 0.1


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def pss(pid: int) -> int:
    """Bytes of memory that a process holds, what it shares divided among those who do."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def rss(pid: int) -> int:
    """Bytes of memory that a process holds, what it shares counted whole."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:")


def _kilobytes(table: Path, name: str) -> int:
    with suppress(OSError):
        for line in table.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return 0


def most(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> int:
    """The most bytes (RSS) that a command and its processes held together, looked at ten times a second.

    Raises RuntimeError if it fails.
    """
    words = [str(w) for w in command]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(rss, tree(process.pid))))
            time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}")
    return peak
