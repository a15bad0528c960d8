"""A selection of several pools made real: a subset for each, their weights, and what is of all of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curate import uids
from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import Ran, curate
from tests.fetch.servers import HostileServer, answer, running
from tests.pool.test_datacomp import images
from tests.pools import jpeg, make_metadata, make_pool, uid_of, url_of

HERE = ("--workers", "0")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pools() -> tuple[str, ...]:
    """`a` has shards 0 and 1; `b` the shards 0 to 2, so all that `a` has too; the arguments that name them."""
    make_pool(Path("a"), 2, 4, fails=lambda shard, row: "http_404" if row == 3 else None)
    make_pool(Path("b"), 3, 4)
    return "--pool", "a", "--pool", "b"


def chosen(*named: str, rule: str = "random:fraction=1.0") -> None:
    succeeded(curate("filter", *named, "--rule", rule, *HERE))


def made(*words: object) -> Ran:
    ran = curate("subset", *words, "--scale", "debug", *HERE, "--json")
    succeeded(ran)
    return ran


def test_each_pool_gets_a_subset_of_its_own() -> None:
    named = pools()
    chosen(*named)
    ran = made(*named, "--weight", "b=2", "--samples-per-shard", "2")
    told = {s["source"]: s for s in ran.json["sources"]}
    assert [(s["selected"], s["kept"], s["shards"], s["weight"]) for s in told.values()] == [
        (8, 6, 3, 1),
        (4, 4, 2, 2),
    ]
    assert told["a"]["missing"] == {"http_404": 2}  # b has these two, but the first pool's sample stays
    assert (ran.json["selected"], ran.json["kept"]) == (12, 10)
    expected = {s: {uid_of(s, r): jpeg(s * 10_000 + r) for r in range(4)} for s in range(3)}
    of_a = {u: i for s in (0, 1) for u, i in expected[s].items() if u not in (uid_of(0, 3), uid_of(1, 3))}
    assert images(Path("subset/a/shards")) == of_a
    assert images(Path("subset/b/shards")) == expected[2]
    for source, n in (("a", 6), ("b", 4)):
        meta = json.loads(Path(f"subset/{source}/shards/meta.json").read_text())
        assert (meta["output_count"], meta["output_shard_format"]) == (n, "{:08d}.tar")
        assert len(np.load(f"subset/{source}/shards/sample_ids.npy")) == n
    # a shard of b is drawn twice as often as one of a: 3 to 4 of 7 shards, 6 and 4 samples
    seen = 128_000
    assert told["a"]["repeats"] == pytest.approx(seen * 3 / 7 / 6, abs=1e-3)
    assert told["b"]["repeats"] == pytest.approx(seen * 4 / 7 / 4, abs=1e-3)
    commands = ran.json["commands"]
    out = Path("subset").resolve()
    assert f"--data_dir {out}/a::{out}/b --data_weights 1::2" in commands["datacomp"]
    both = f"'{out}/a/shards/{{00000000..00000002}}.tar::{out}/b/shards/{{00000000..00000001}}.tar'"
    assert f"--train-data {both}" in commands["open_clip"]
    assert "--train-data-upsampling-factors 1::2" in commands["open_clip"]
    told_there = json.loads(Path("subset/training.json").read_text())["command"]
    assert told_there == commands["open_clip"].replace(f"{out}/", "")
    assert "| [b](b) | 12 | 4 | 4 | 4 | 2 |" in Path("subset/README.md").read_text()
    # of the pool that comes second the samples that the first has too are gone
    card = Path("subset/b/README.md").read_text()
    assert "| samples of the pool | 12 |" in card
    assert "| `same_uid` | 12 | 8 | 0 | 4 |" in card
    lost = pl.read_parquet("subset/missing.parquet")
    assert lost.rows() == [("a", u, "http_404") for u in sorted([uid_of(0, 3), uid_of(1, 3)])]


def test_the_same_again_does_nothing_and_other_weights_only_the_small_files() -> None:
    named = pools()
    chosen(*named)
    made(*named)
    before = {name: Path("subset", name).stat().st_mtime_ns for name in contents(Path("subset")) if ".tar" in name}
    assert made(*named).json["sources"][0]["weight"] == 1
    assert made(*named, "--weight", "a=0.5").json["sources"][0]["weight"] == 0.5
    assert {name: Path("subset", name).stat().st_mtime_ns for name in before} == before
    assert json.loads(Path("subset/subsets.json").read_text())["done"] is True


def test_a_pool_that_is_not_downloaded_is_missing() -> None:
    make_pool(Path("a"), 1, 3)
    listed = [{"uid": uid_of(5, r), "url": url_of(5, r), "text": "x"} for r in range(2)]
    make_metadata(Path("bare"), listed)
    named = ("--pool", "a", "--pool", "bare")
    chosen(*named)
    ran = made(*named)
    assert ran.json["sources"][1]["missing"] == {"not_downloaded": 2}
    assert not Path("subset/bare").exists()
    assert "subset/a --output_dir" in ran.json["commands"]["datacomp"]
    assert pl.read_parquet("subset/missing.parquet")["source"].to_list() == ["bare", "bare"]
    ran = curate("subset", "--pool", "bare", "--pool", "a", "--scale", "debug", *HERE)
    refused(ran, "has no selection yet", "curate filter")


def test_the_choice_may_come_before_the_images() -> None:
    with running(HostileServer({f"/{n}.jpg": answer(jpeg(n)) for n in range(20)})) as server:
        for name, numbers in (("a", range(12)), ("b", range(8, 20))):
            rows = [{"uid": f"{n:032x}", "url": server.url(f"/{n}.jpg"), "text": f"thing {n}"} for n in numbers]
            make_metadata(Path(name), rows)
        named = ("--pool", "a", "--pool", "b")
        succeeded(curate("filter", *named, "--rule", "random:fraction=0.6", "--name", "x", *HERE))
        for name in "ab":
            words = ("--selection", "a/selections/x/uids.npy", "--allow-private-hosts", *HERE)
            succeeded(curate("download", "--pool", name, *words))
    ran = made(*named)
    kept = uids.to_hex(np.load("a/selections/x/uids.npy"))
    assert ran.json["kept"] == len(kept) == 12
    assert {u for s in "ab" for u in images(Path(f"subset/{s}/shards"))} == set(kept)


def test_virtual_subsets_have_weights_too() -> None:
    named = pools()
    chosen(*named)
    ran = made(*named, "--virtual", "--weight", "a=3")
    assert [s["samples"] for s in ran.json["sources"]] == [6, 4]
    assert not list(Path("subset").rglob("*.tar"))
    command = ran.json["commands"]["open_clip"]
    assert command.count("pipe:python -m curate.sampling tar") == 2
    assert "--train-data-upsampling-factors 3::1" in command


def test_copies_of_a_uid_stay_with_their_pool() -> None:
    """Recipes that keep samples with one uid keep one of each pool: that is a copy in each subset."""
    make_pool(Path("a"), 1, 2)
    make_pool(Path("b"), 1, 3)
    named = ("--pool", "a", "--pool", "b")
    succeeded(curate("filter", *named, "--recipe", "datacomp/no_filter", *HERE))
    assert [s["samples"] for s in made(*named).json["sources"]] == [2, 3]


def test_a_uid_list_is_split_by_who_has_a_uid_first() -> None:
    named = pools()
    listed = [uid_of(0, 0), uid_of(0, 0), uid_of(2, 1), "f" * 32]
    Path("list.txt").write_text("\n".join(sorted(listed)) + "\n")
    ran = made(*named, "--selection", "./list.txt")
    assert [(s["selected"], s["samples"]) for s in ran.json["sources"]] == [(2, 2), (1, 1)]
    assert uids.to_hex(np.load("subset/a/uids.npy")) == [uid_of(0, 0)] * 2
    assert ran.json["sources"][0]["missing"] == {"not_in_pool": 1}


def test_the_scale_s_pool_is_of_all_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from curate import scales

    named = pools()
    chosen(*named)
    monkeypatch.setitem(scales.SCALES, "debug", replace(scales.scale("debug"), pool_size=6))
    ran = made(*named, "--seed", "3")
    assert sum(s["selected"] - s["outside"] for s in ran.json["sources"]) <= 6
    ranks = {u: int(scales.scale_ranks(uids.to_pairs(_column(u)), 3)[0]) for s in range(3) for u in _uids(s)}
    # 20 samples, of which 8 stand in both pools: each of their uids takes two places
    ordered = sorted([*ranks, *_uids(0), *_uids(1)], key=ranks.__getitem__)
    inside = {u for u in ranks if ranks[u] <= ranks[ordered[5]]}
    got = {u for s in "ab" for u in images(Path(f"subset/{s}/shards"))}
    missing = set(pl.read_parquet("subset/missing.parquet")["uid"])
    assert got | missing == inside


def _uids(shard: int) -> list[str]:
    return [uid_of(shard, row) for row in range(4)]


def _column(uid: str) -> object:
    import pyarrow as pa

    return pa.array([uid])


@pytest.mark.parametrize(
    ("weight", "says", "hint"),
    [
        ("c=2", "no source 'c' (found: a, b)", ""),
        ("a", "must be a source and its weight (found 'a')", "--weight a=2"),
        ("=2", "must be a source and its weight (found '=2')", "--weight a=2"),
        ("a=0", "must be a number above 0 (found 'a=0')", "--weight a=2"),
        ("a=-1", "must be a number above 0", "--weight a=2"),
        ("a=nan", "must be a number above 0", "--weight a=2"),
        ("a=much", "must be a number above 0", "--weight a=2"),
    ],
)
def test_weights_that_are_none(weight: str, says: str, hint: str) -> None:
    named = pools()
    ran = curate("subset", *named, "--scale", "debug", "--weight", weight, *HERE)
    refused(ran, says, hint)
    assert not Path("subset").exists()


def test_a_source_is_weighed_once() -> None:
    named = pools()
    ran = curate("subset", *named, "--scale", "debug", "--weight", "a=2", "--weight", "a=3", *HERE)
    refused(ran, "--weight: weighs 'a' twice", "give each source once")
    assert not Path("subset").exists()


def test_one_pool_is_not_weighed() -> None:
    make_pool(Path("a"), 1, 2)
    ran = curate("subset", "--pool", "a", "--scale", "debug", "--weight", "a=2", *HERE)
    refused(ran, "--weight: weighs several pools against each other, and there is one", "--pool several times")


def test_lost_samples_leave_a_whole_that_is_done_and_damaged_bytes_one_that_is_not() -> None:
    named = pools()
    chosen(*named)
    tar = Path("b/shards/00000002.tar")
    tar.write_bytes(bytes(tar.stat().st_size))
    ran = curate("subset", *named, "--scale", "debug", *HERE)
    assert ran.code == 3
    assert "shards not made: 1" in ran.out
    assert "train with" not in ran.out
    assert json.loads(Path("subset/subsets.json").read_text())["done"] is False
    tar.unlink()
    ran = curate("subset", *named, "--scale", "debug", *HERE)
    assert ran.code == 3
    assert "4 selected samples should be in the pool and are not (shards 00000002)" in ran.err
    assert "train with" in ran.out
    assert json.loads(Path("subset/subsets.json").read_text())["done"] is True
    missing = pl.read_parquet("subset/missing.parquet").filter(source="b")
    assert missing["cause"].to_list() == ["part_failed"] * 4


def test_all_samples_of_all_pools_may_be_required() -> None:
    make_pool(Path("a"), 1, 2)
    make_pool(Path("b"), 2, 2, fails=lambda shard, row: "http_404")
    named = ("--pool", "a", "--pool", "b")
    chosen(*named)
    assert curate("subset", *named, "--scale", "debug", *HERE).code == 0
    ran = curate("subset", *named, "--scale", "debug", "--require-all", *HERE)
    assert ran.code == 3
    assert "subset/b: 2 selected samples have no image here (http_404 2)" in ran.err
    missing = pl.read_parquet("subset/missing.parquet")
    assert missing["cause"].to_list() == ["http_404"] * 2


def test_what_is_refused_leaves_all_as_it_was() -> None:
    named = pools()
    chosen(*named)
    before = contents(Path())

    def unchanged() -> None:
        logs = {name for name in contents(Path()) if "/logs" in name}
        assert {name: data for name, data in contents(Path()).items() if name not in logs} == before

    words = ("--scale", "debug", *HERE)
    refused(curate("subset", "--pool", "a", *words), "is a selection of several pools (a, b)", "--pool a=")
    refused(curate("subset", *named, *words, "--out", "a"), "is a pool itself", "--out")
    refused(curate("subset", *named, *words, "--out", "b/metadata"), "is among a pool's own folders", "--out")
    unchanged()
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("x")
    refused(curate("subset", *named, *words, "--out", "taken"), "holds something else (found: mine.txt)", "--out")
    made(*named)
    # neither takes the other's folder
    chosen("--pool", "a")
    refused(curate("subset", "--pool", "a", *words), "holds something else", "--out")
    succeeded(curate("subset", "--pool", "a", *words, "--out", "single"))
    chosen(*named)
    refused(curate("subset", *named, *words, "--out", "single"), "holds something else", "--out")
