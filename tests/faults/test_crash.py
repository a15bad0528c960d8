"""A process that is killed at any call to the disk leaves nothing half-made, and runs again to the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def drive(stage: str, folder: Path) -> dict[str, Any]:
    """What the driver found."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.driver", stage, str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# a pool of 2 parts of 3 samples; how many files each stage writes there, receipts and pointers included
@pytest.mark.parametrize(
    ("stage", "files"),
    [
        ("plain", 2 * 3),
        ("changed", 2 * 4),
        ("download", 1 + 2 * 6),
        ("retry", 2 + 2 * 7),
        pytest.param("adopt", 2 * 3, marks=pytest.mark.slow),
        ("score", 1 + 2 * 2),
        ("filter", 2 * 2 + 3 + 1),
        pytest.param("refilter", 2 * 3 + 3 + 1, marks=pytest.mark.slow),
        pytest.param("subset", 1 + 2 * 5 + 7 + 1, marks=pytest.mark.slow),
        ("embed", 1 + 2 * 4),
        ("re-embed", 3 + 2),
        pytest.param("tiny", 1 + 2 * 4, marks=pytest.mark.slow),
    ],
)
def test_stopped_at_every_call(tmp_path: Path, stage: str, files: int) -> None:
    found = drive(stage, tmp_path)
    made = Counter(name for name, _ in found["calls"])
    assert made["_create"] == made["_fsync"] == made["_rename"] == files
    assert made["_write"] >= files
    stops = len(found["calls"]) + made["_write"]
    assert len(found["problems"]) == stops
    assert {point: said for point, said in found["problems"].items() if said} == {}
    check_order([tuple(call) for call in found["calls"]])


def check_order(calls: list[tuple[str, str]]) -> None:
    """A file is renamed after it was written and fsynced, its folder is fsynced after that, its receipt is last."""
    synced: set[str] = set()
    unsettled: set[str] = set()
    for name, where in calls:
        if name in ("_create", "_write"):
            synced.discard(where)
        elif name == "_fsync":
            synced.add(where)
        elif name == "_rename":
            assert where in synced, where
            assert "_receipts" not in where or not unsettled, (where, unsettled)
            unsettled.add(str(Path(where).parent))
        else:
            unsettled.discard(where)
    assert not unsettled
