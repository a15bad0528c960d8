"""The 2,360 photos once more: each stage is killed at a random moment and run again, to the same bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
import pytest

from curate.demo.server import serve
from tests.faults.test_kills import Stage, Unbroken, kill_and_run_again, run_unbroken
from tests.real.test_photos import PHOTOS, RULES, pytestmark

pytestmark = [pytestmark, pytest.mark.slow, pytest.mark.timeout(900)]

CHANCE = random.Random(6)
STAGES: Mapping[str, Stage] = {
    "download": Stage(
        (
            *("download", "--source", "list.parquet", "--caption-col", "text", "--allow-private-hosts"),
            *("--samples-per-shard", "600", "--workers", "2"),
        ),
        "pool/shards",
    ),
    "embed": Stage(("embed", "--model", "tiny"), "pool/embeddings", frozenset({"model.json"})),
    "filter": Stage(("filter", *(word for rule in RULES for word in ("--rule", rule))), "pool/scores"),
    "subset": Stage(
        ("subset", "--scale", "small", "--samples-per-shard", "100", "--workers", "2"),
        "subset",
        frozenset({"subset.json"}),
    ),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Unbroken]]:
    """Every stage run once, each on what the one before it left; the photos are served all the while."""
    base = tmp_path_factory.mktemp("killed-photos")
    folder = base / "run"
    folder.mkdir()
    with serve(PHOTOS) as host:
        listed = pl.read_ndjson(PHOTOS / "metadata.jsonl")
        listed.select(pl.format(host + "/{}", "file").alias("url"), "text").write_parquet(folder / "list.parquet")
        yield run_unbroken(STAGES, folder)
    shutil.rmtree(base)


@pytest.mark.parametrize("fraction", [round(CHANCE.uniform(0.05, 0.95), 2) for _ in range(2)])
@pytest.mark.parametrize("name", STAGES)
def test_killed_and_run_again(unbroken: dict[str, Unbroken], tmp_path: Path, name: str, fraction: float) -> None:
    kill_and_run_again(unbroken[name], tmp_path, fraction)
