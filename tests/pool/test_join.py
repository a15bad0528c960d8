"""Results per shard, joined to the samples of the metadata by uid."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest

from curate.errors import PartError
from curate.pool import Pool, open_pool
from curate.pool.join import Join, Results
from tests.pools import make_img2dataset, make_metadata, make_pool, uid_of


def stored(folder: Path, shard: str, values: list[float], codes: list[str | None] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    table = {"score": values, "error_code": pl.Series(codes or [None] * len(values), dtype=pl.String)}
    pl.DataFrame(table).write_parquet(folder / f"{shard}.parquet")


def joined(folder: Path, uids: list[str]) -> Pool:
    make_img2dataset(folder / "shards", n_shards=2, rows=3, digits=8, columns=["uid"])
    make_metadata(folder, [{"uid": u, "url": u, "text": u} for u in uids])
    from curate.pool.adopt import adopt

    return adopt(open_pool(folder), workers=0)


def test_rows_are_found_wherever_they_lie(tmp_path: Path) -> None:
    uids = [uid_of(1, 1), "f" * 32, uid_of(0, 0), uid_of(1, 1), "0" * 32]
    pool = joined(tmp_path, uids)
    # img2dataset's rows are in arrival order here: the last of a shard comes first
    assert Join(pool).rows(pool.parts[0]).tolist() == [4, -1, 2, 4, -1]


def test_columns_come_in_the_order_of_the_metadata(tmp_path: Path) -> None:
    pool = joined(tmp_path, [uid_of(1, 1), "f" * 32, uid_of(0, 0), uid_of(0, 2)])
    results = Results(tmp_path / "scores", "shard")
    stored(results.folder, "00000000", [0.0, 1.0, float("nan")], [None, None, "bad_image"])
    stored(results.folder, "00000001", [3.0, 4.0, 5.0])
    frame = Join(pool).columns(results, pool.parts[0], ["score"])
    assert frame["score"].to_list() == [4.0, None, None, 0.0]
    assert frame["error_code"].to_list() == [None, "not_downloaded", "bad_image", None]


def test_a_shard_without_results_has_failed(tmp_path: Path) -> None:
    pool = joined(tmp_path, [uid_of(1, 1), uid_of(0, 0)])
    results = Results(tmp_path / "scores", "shard")
    stored(results.folder, "00000000", [0.0, 1.0, 2.0])
    frame = Join(pool).columns(results, pool.parts[0], ["score"])
    assert frame["score"].to_list() == [None, 2.0]
    assert frame["error_code"].to_list() == ["part_failed", None]


def test_without_metadata_rows_are_the_shards_own(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    results = Results(tmp_path / "scores", "part")
    stored(results.folder, "00000001", [3.0, 4.0, 5.0])
    join = Join(pool)
    assert join.columns(results, pool.parts[1], ["score"])["score"].to_list() == [3.0, 4.0, 5.0]
    assert join.columns(results, pool.parts[0], ["score"])["error_code"].to_list() == ["part_failed"] * 3


def test_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    results = Results(tmp_path / "scores", "part")
    stored(results.folder, "00000000", [3.0])
    with pytest.raises(PartError, match="has 1 rows where the part has 3"):
        Join(pool).columns(results, pool.parts[0], ["score"])
    (results.folder / "00000000.parquet").write_bytes(bytes(100))
    with pytest.raises(PartError, match="cannot be read"):
        Join(pool).columns(results, pool.parts[0], ["score"])


def test_uids_that_share_their_high_half_are_told_apart(tmp_path: Path) -> None:
    """Against a dictionary, with halves from a few values only."""
    chance = random.Random(5)
    halves = [f"{n:016x}" for n in (0, 1, 2**63, 2**64 - 1)]
    shard_uids = chance.sample([a + b for a in halves for b in halves], 12)
    make_img2dataset(tmp_path / "shards", n_shards=2, rows=6, digits=8, columns=["uid"])
    for number, name in enumerate(("00000000", "00000001")):
        path = tmp_path / "shards" / f"{name}.parquet"
        mine = pl.Series("uid", shard_uids[6 * number : 6 * number + 6])
        pl.read_parquet(path).with_columns(mine).write_parquet(path)
    wanted = [a + b for a in halves for b in halves]
    chance.shuffle(wanted)
    make_metadata(tmp_path, [{"uid": u, "url": u, "text": u} for u in wanted])
    from curate.pool.adopt import adopt

    pool = adopt(open_pool(tmp_path), workers=0)
    place = {u: n for n, u in enumerate(shard_uids)}
    assert Join(pool).rows(pool.parts[0]).tolist() == [place.get(u, -1) for u in wanted]
