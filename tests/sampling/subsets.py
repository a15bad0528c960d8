"""A virtual subset of a small pool, and what it should give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curate import selection
from curate.pool import Pool
from curate.scales import SCALES
from curate.stages.subset import Result, subset
from tests.pools import make_pool, make_selection, members_of, sample_of, uid_of

SHARDS, ROWS = 4, 6
LEFT_OUT = {(0, 2), (3, 0), (3, 1)}
PLACES = [(s, r) for s in range(SHARDS) for r in range(ROWS) if (s, r) not in LEFT_OUT]
TWICE = (1, 1)
KEYS = [f"{uid_of(*at)}-{copy}" for at in PLACES for copy in range(2 if at == TWICE else 1)]
"""The keys of the samples, in order."""


def make_chosen(folder: Path) -> Pool:
    """A pool with a selection of most of its samples, one of them twice."""
    pool = make_pool(folder, SHARDS, ROWS)
    make_selection(pool, [uid_of(*at) for at in [*PLACES, TWICE]])
    return pool


def made(pool: Pool, out: Path, *, virtual: bool = True, **options: Any) -> Result:
    """A subset of the pool's selection, in shards of at most six samples."""
    options = {"samples_per_shard": 6, **options}
    return subset(pool, selection.load(pool.layout, None), SCALES["debug"], out, virtual=virtual, **options)


def content(shard: int, row: int) -> dict[str, bytes]:
    """Extension to bytes of one sample of the pool."""
    return dict(members_of(sample_of(shard, row)))
