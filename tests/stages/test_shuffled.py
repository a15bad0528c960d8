from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from curate import runner
from curate.errors import PartError
from curate.pool import Pool, open_pool
from curate.pool.adopt import adopt
from curate.stages import copying, shuffled
from curate.stages.shuffled import deal
from curate.uids import to_hex
from tests.pools import make_img2dataset, make_pool, make_selection, members_of, sample_of, uid_of
from tests.stages.test_subset import content, cut, everything, made, samples, some_fail


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = make_pool(tmp_path / "pool", 4, 6, fails=some_fail)
    make_selection(pool, everything(4, 6))
    return pool


def order(out: Path) -> list[str]:
    return [f"{shard} {key}" for shard, key, _ in samples(out)]


def random_pairs(n: int, seed: int) -> npt.NDArray[np.void]:
    chance = np.random.default_rng(seed)
    found = np.empty(n, dtype="u8,u8")
    for half in ("f0", "f1"):
        found[half] = chance.integers(0, 1 << 63, n, dtype=np.uint64)
    return found


# --- dealing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "shards", "most"), [(1000, 7, 5), (100, 3, 8), (5, 10, 3), (30, 1, 4), (2000, 50, 60)]
)
def test_even_shards_and_copies_apart(n: int, shards: int, most: int) -> None:
    uids = random_pairs(n, n)
    copies = np.random.default_rng(1).integers(1, most + 1, n).astype(np.int32)
    dealt = deal(uids, copies, shards, seed=3)
    sizes = np.bincount(dealt, minlength=shards)
    assert sizes.sum() == copies.sum()
    assert sizes.max() - sizes.min() <= 1
    for count, of_one in zip(copies, np.split(dealt, np.cumsum(copies)[:-1]), strict=True):
        assert len(set(of_one.tolist())) == min(count, shards)


def test_a_sample_is_dealt_by_its_uid_whatever_the_order() -> None:
    uids, copies = random_pairs(500, 0), np.tile(np.array([1, 2, 1, 3, 1], dtype=np.int32), 100)
    there = np.random.default_rng(2).permutation(500)
    first = np.split(deal(uids, copies, 9, 5), np.cumsum(copies)[:-1])
    second = np.split(deal(uids[there], copies[there], 9, 5), np.cumsum(copies[there])[:-1])
    assert [first[i].tolist() for i in there] == [s.tolist() for s in second]
    assert deal(uids, copies, 9, 6).tolist() != deal(uids, copies, 9, 5).tolist()


def test_every_shard_takes_of_every_region_and_shares_copies_with_all() -> None:
    uids = random_pairs(20_000, 4)
    dealt = deal(uids, np.full(20_000, 2, dtype=np.int32), 10, 0).reshape(-1, 2)
    # 10,000 first halves of the list, over 10 shards: 2,000 expected in each, with a deviation of about 32
    early = np.bincount(dealt[:10_000].ravel(), minlength=10)
    assert np.abs(early - 2000).max() < 160
    together = np.zeros((10, 10), dtype=int)
    np.add.at(together, (dealt[:, 0], dealt[:, 1]), 1)
    assert together.diagonal().sum() == 0
    assert together[~np.eye(10, dtype=bool)].min() > 100  # 222 expected


# --- shards -----------------------------------------------------------------------------------------------


def test_bytes_are_unchanged_in_another_order(pool: Pool, tmp_path: Path) -> None:
    result = made(pool, tmp_path / "out", samples_per_shard=6, shuffle=True, seed=1)
    stored = {f"{uid_of(s, r)}-0": (s, r) for s in range(4) for r in range(6) if not some_fail(s, r)}
    found = list(samples(tmp_path / "out"))
    assert {key for _, key, _ in found} == set(stored)
    assert [key for _, key, _ in found] != list(stored)
    for _, key, members in found:
        assert members == dict(members_of(sample_of(*stored[key])))
    sizes = [sum(shard == f"{n:08d}" for shard, *_ in found) for n in range(4)]
    assert sorted(sizes) == [5, 5, 6, 6]
    assert (result.shuffled, result.samples, result.shards) == (True, 22, 4)
    # a shard's samples are from all over the pool
    assert all(len({stored[k][0] for s, k, _ in found if s == shard}) > 1 for shard, *_ in found)
    assert json.loads((tmp_path / "out/subset.json").read_text())["made_of"]["shuffled"] is True
    assert "order by chance" in (tmp_path / "out/README.md").read_text()
    assert not (tmp_path / "out" / shuffled.FOLDER).exists()


def test_tables_go_with_their_samples(pool: Pool, tmp_path: Path) -> None:
    made(pool, tmp_path / "out", samples_per_shard=6, shuffle=True)
    for shard in open_pool(tmp_path / "out").shards:
        table, index = pq.read_table(shard.table), pq.read_table(shard.index)
        assert table["key"].to_pylist() == index["key"].to_pylist()
        assert table["key"].to_pylist() == [f"{u}-0" for u in table["uid"].to_pylist()]
        assert not [name for name in table.column_names if name.startswith("_")]
        assert table.schema == pq.read_schema(pool.shards[0].table)


def test_copies_are_in_different_shards(pool: Pool, tmp_path: Path) -> None:
    make_selection(pool, [*everything(4, 6), *[uid_of(0, 0)] * 2, uid_of(2, 1), uid_of(3, 3)])
    made(pool, tmp_path / "out", samples_per_shard=5, shuffle=True)
    places = defaultdict(list)
    for shard, key, _ in samples(tmp_path / "out"):
        places[key[:32]].append((key[33:], shard))
    assert sorted(n for n, _ in places[uid_of(0, 0)]) == ["0", "1", "2"]
    assert len({s for _, s in places[uid_of(0, 0)]}) == 3
    assert len({s for _, s in places[uid_of(2, 1)]}) == 2
    assert to_hex(np.load(tmp_path / "out/uids.npy")) == sorted(u for u, held in places.items() for _ in held)


def test_the_order_is_the_seeds(pool: Pool, tmp_path: Path) -> None:
    for seed, name in ((1, "one"), (1, "again"), (2, "two")):
        made(pool, tmp_path / name, samples_per_shard=6, shuffle=True, seed=seed)
    assert content(tmp_path / "one") == content(tmp_path / "again")
    assert order(tmp_path / "one") != order(tmp_path / "two")


def test_the_order_does_not_depend_on_how_the_pool_is_cut(tmp_path: Path) -> None:
    make_img2dataset(tmp_path / "a", 2, 6, columns=["uid"])
    make_img2dataset(tmp_path / "b", 2, 6, columns=["uid"], digits=3)
    for tar in (tmp_path / "b").glob("*"):  # the same samples, in the other order of shards
        tar.rename(
            tar.with_name(tar.name.replace("000", "x1", 1) if tar.name[:3] == "000" else f"x0{tar.name[3:]}")
        )
    orders = []
    for name in ("a", "b"):
        pool = adopt(open_pool(tmp_path / name), workers=0)
        make_selection(pool, everything(2, 6))
        made(open_pool(tmp_path / name), tmp_path / f"out-{name}", samples_per_shard=4, shuffle=True)
        orders.append(order(tmp_path / f"out-{name}"))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_same_bytes_for_any_workers(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    made(pool, tmp_path / "one", samples_per_shard=4, shuffle=True)
    monkeypatch.setattr("curate.stages.subset.PROCESSES_FROM", 0)
    monkeypatch.setattr(shuffled, "LEAST", 1)  # a file for each shard of the pool
    monkeypatch.setattr(copying, "READ", 2000)
    monkeypatch.setattr(copying, "OPEN", 1)
    monkeypatch.setattr(copying, "ANNOUNCED", 3000)
    made(pool, tmp_path / "two", samples_per_shard=4, shuffle=True, workers=workers)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_goes_on_after_a_break(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(pool, tmp_path / "whole", samples_per_shard=4, shuffle=True)
    out = tmp_path / "out"
    made(pool, out, samples_per_shard=4, shuffle=True)
    stamp = (out / "shards/00000000.tar").stat().st_mtime_ns
    (out / "shards/_receipts/00000002.json").unlink()
    made(pool, out, samples_per_shard=4, shuffle=True)
    assert content(out) == content(tmp_path / "whole")
    assert (out / "shards/00000000.tar").stat().st_mtime_ns == stamp

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    made(pool, out, samples_per_shard=4, shuffle=True, seed=8)
    with monkeypatch.context() as patch:
        patch.setattr(shuffled, "write_shuffled", stopped)
        with pytest.raises(KeyboardInterrupt):
            made(pool, out, samples_per_shard=4, shuffle=True)
    assert (out / shuffled.FOLDER).is_dir()
    assert not json.loads((out / "subset.json").read_text())["done"]
    made(pool, out, samples_per_shard=4, shuffle=True)
    assert content(out) == content(tmp_path / "whole")
    made(pool, out, samples_per_shard=4)
    made(pool, tmp_path / "plain", samples_per_shard=4)
    assert content(out) == content(tmp_path / "plain")


def test_nothing_is_read_again_where_all_is_done(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(pool, tmp_path / "out", samples_per_shard=4, shuffle=True)
    ran: list[str] = []
    run = runner.run

    def noted(stage: str, *arguments: object, **options: object) -> object:
        ran.append(stage)
        return run(stage, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run", noted)
    made(pool, tmp_path / "out", samples_per_shard=4, shuffle=True)
    assert ran == ["subset"]


def test_damage_is_named_as_without_a_shuffle(pool: Pool, tmp_path: Path) -> None:
    cut(tmp_path / "pool/shards/00000001.tar")
    result = made(pool, tmp_path / "out", samples_per_shard=4, shuffle=True)
    assert result.missing == {"http_404": 1, "part_failed": 5, "timeout": 1}
    assert result.failure is not None
    assert "(shards 00000001)" in str(result.failure)
    assert result.kept == 17


def test_a_broken_index_stops_before_anything_is_written(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "pool/shards/00000001.index.parquet"
    data = bytearray(path.read_bytes())
    data[10 : len(data) - 10] = bytes(len(data) - 20)
    path.write_bytes(data)
    with pytest.raises(PartError, match=r"subset-rows: 1 of 1 parts failed"):
        made(pool, tmp_path / "out", shuffle=True)
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_read_in_the_order_of_the_disk(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a batch tars are read from front to back, and no byte twice."""
    read: dict[bool, list[tuple[int, int, int]]] = {False: [], True: []}
    ranges = copying._ranges

    def noted(runs: copying.Runs, which: slice, starts: npt.NDArray[np.int64] | None = None) -> object:
        found = list(ranges(runs, which, starts))
        read[starts is not None].extend(found_[:3] for found_ in found)
        return iter(found)

    monkeypatch.setattr(copying, "_ranges", noted)
    result = made(pool, tmp_path / "out", shuffle=True)
    for found in read.values():
        assert found == sorted(found)
        assert all(a[0] != b[0] or a[1] + a[2] <= b[1] for a, b in pairwise(found))
        assert sum(length for *_, length in found) == result.bytes
    assert len(read[False]) == 4  # announced: every tar as one piece
