"""The real program for tests: `python -m curate` as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Seconds that a command may take on a busy machine."""


def command(*words: str | Path) -> list[str]:
    """The words that run `curate WORDS`."""
    return [sys.executable, "-m", "curate", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """What the program finds around it: no settings of whoever runs the tests."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith("CURATE_")}, **more}


def run(*words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`curate WORDS` in the folder `cwd`, to its end."""
    return subprocess.run(
        command(*words),
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
        check=False,
    )


def told(*words: str | Path, cwd: Path) -> dict[str, Any]:
    """What `curate WORDS --json` prints; it must end with 0."""
    done = run(*words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def start(*words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """`curate WORDS` begun, in a process group of its own whose number is its process id; stderr is a pipe."""
    return subprocess.Popen(
        command(*words),
        cwd=cwd,
        env=environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def living(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found
