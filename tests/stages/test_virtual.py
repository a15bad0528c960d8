from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate.errors import InputError, PartError
from curate.pool import Pool, open_pool
from curate.pool.layout import file_identity
from curate.sampling import VirtualSubset
from curate.shards import sample_members
from curate.stages import subset as stage
from curate.stages.blurring import faces
from tests.pools import make_img2dataset, make_selection, sample_of, uid_of
from tests.sampling.subsets import KEYS, TWICE, made, make_chosen


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return make_chosen(tmp_path / "pool")


def index(out: Path) -> list[dict[str, Any]]:
    """The rows of the index, in order."""
    return [row for path in sorted((out / "index").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def streamed(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in s.items() if k != "__url__"} for s in VirtualSubset(out, shuffle=False)]


def content(folder: Path) -> dict[str, bytes]:
    """All files but receipts, which hold clock readings."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and "_receipts" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def real(out: Path) -> list[dict[str, Any]]:
    """The samples of a subset with shards of its own, in order."""
    found = []
    for tar in sorted((out / "shards").glob("*.tar")):
        data = tar.read_bytes()
        for row in pq.read_table(tar.with_suffix(".index.parquet")).to_pylist():
            members = sample_members(data, row["offset"], row["length"])
            found.append({"__key__": row["key"], **members})
    return found


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("per_shard", [1, 4, 100])
def test_it_holds_what_a_real_one_holds(pool: Pool, tmp_path: Path, shuffle: bool, per_shard: int) -> None:
    options = {"shuffle": shuffle, "samples_per_shard": per_shard, "seed": 3}
    theirs = made(pool, tmp_path / "real", virtual=False, **options)
    ours = made(pool, tmp_path / "virtual", **options)
    assert streamed(tmp_path / "virtual") == real(tmp_path / "real")
    assert (ours.kept, ours.samples, ours.shards, ours.virtual) == (
        theirs.kept,
        theirs.samples,
        theirs.shards,
        True,
    )
    assert (shuffle or [s["__key__"] for s in streamed(tmp_path / "virtual")] == KEYS) is True
    of_both = ("uids.npy", "missing.parquet")
    assert all((tmp_path / "virtual" / f).read_bytes() == (tmp_path / "real" / f).read_bytes() for f in of_both)
    sizes = {Path(k).stem: v for k, v in json.loads((tmp_path / "real/shards/sizes.json").read_text()).items()}
    listed = json.loads((tmp_path / "virtual/index/sizes.json").read_text())
    assert {Path(k).stem: v for k, v in listed.items()} == sizes


def test_the_index_says_where_everything_lies(pool: Pool, tmp_path: Path) -> None:
    made(pool, tmp_path / "out")
    rows = index(tmp_path / "out")
    assert [row["key"] for row in rows] == KEYS
    assert all(row["key"].rpartition("-")[0] == row["uid"] for row in rows)
    tars = {row["tar"]: row for row in pq.read_table(tmp_path / "out/tars.parquet").to_pylist()}
    assert sorted(tars) == [0, 1, 2, 3]
    for number, tar in tars.items():
        path = Path(tar["root"]) / tar["path"]
        assert tar["path"] == f"shards/{number:08d}.tar"
        assert file_identity(path) == {"bytes": tar["bytes"], "ends": tar["ends"]}
    twice = [row for row in rows if row["uid"] == uid_of(*TWICE)]
    assert len({(row["tar"], row["offset"], row["length"], row["source_key"]) for row in twice}) == 1
    assert twice[0]["source_key"] == "000000010001"
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_only_the_tars_that_are_used_are_listed(pool: Pool, tmp_path: Path) -> None:
    make_selection(pool, [uid_of(1, 0), uid_of(3, 5)])
    made(pool, tmp_path / "out")
    assert pq.read_table(tmp_path / "out/tars.parquet")["tar"].to_pylist() == [1, 3]
    assert [row["tar"] for row in index(tmp_path / "out")] == [1, 3]


def test_training_settings_and_card(pool: Pool, tmp_path: Path) -> None:
    result = made(pool, tmp_path / "out")
    assert result.shards == 4
    training = json.loads((tmp_path / "out/training.json").read_text())
    pattern = "pipe:python -m curate.sampling tar . {00000000..00000003}.tar"
    assert f"--train-data '{pattern}'" in training["command"]
    text = (tmp_path / "out/README.md").read_text()
    assert pattern in text
    assert "path: shards/*.tar" not in text
    assert "the pool's own tars" in text
    mark = json.loads((tmp_path / "out/subset.json").read_text())
    assert mark["done"]
    assert mark["made_of"]["virtual"]
    assert set(mark["files"]) == {
        *("uids.npy", "training.json", "missing.parquet", "README.md", "tars.parquet", "index/sizes.json"),
    }


def test_the_same_command_again_writes_nothing(pool: Pool, tmp_path: Path) -> None:
    made(pool, tmp_path / "out")
    before = content(tmp_path / "out")
    stamp = (tmp_path / "out/index/00000001.parquet").stat().st_mtime_ns
    made(pool, tmp_path / "out", workers=2)
    assert content(tmp_path / "out") == before
    assert (tmp_path / "out/index/00000001.parquet").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "lose",
    [
        lambda out: (out / "index/_receipts/00000001.json").unlink(),
        lambda out: (out / "index/00000002.parquet").unlink(),
        lambda out: (out / "tars.parquet").unlink(),
        lambda out: (out / "index/sizes.json").unlink(),
    ],
    ids=["receipt", "index", "tars", "sizes"],
)
def test_it_goes_on_after_a_break(pool: Pool, tmp_path: Path, lose: Callable[[Path], object]) -> None:
    made(pool, tmp_path / "out")
    whole = content(tmp_path / "out")
    lose(tmp_path / "out")
    made(pool, tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_a_real_one_takes_the_place_of_a_virtual_one_and_back(pool: Pool, tmp_path: Path) -> None:
    for name, virtual in (("virtual", True), ("real", False)):
        made(pool, tmp_path / name, virtual=virtual)
    made(pool, tmp_path / "out")
    made(pool, tmp_path / "out", virtual=False)
    assert content(tmp_path / "out") == content(tmp_path / "real")
    made(pool, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "virtual")


def test_a_pool_that_grew_in_front_has_other_numbers(tmp_path: Path) -> None:
    make_img2dataset(tmp_path / "pool", 3, 2)
    for name in ("00000", "00001"):
        (tmp_path / "pool" / f"{name}.tar").rename(tmp_path / f"{name}.tar")
    options = {"allow_stale": True}
    grown = open_pool(tmp_path / "pool")
    make_selection(grown, [uid_of(2, 0), uid_of(2, 1)])
    made(grown, tmp_path / "out", **options)
    first = streamed(tmp_path / "out")
    assert [row["tar"] for row in index(tmp_path / "out")] == [0, 0]
    for name in ("00000", "00001"):
        (tmp_path / f"{name}.tar").rename(tmp_path / "pool" / f"{name}.tar")
    made(open_pool(tmp_path / "pool"), tmp_path / "out", **options)
    assert [row["tar"] for row in index(tmp_path / "out")] == [2, 2]
    assert streamed(tmp_path / "out") == first


def test_shards_of_others(tmp_path: Path) -> None:
    make_img2dataset(tmp_path / "pool", 2, 3, fails=lambda s, r: "timeout" if r == 1 else None)
    pool = open_pool(tmp_path / "pool")
    make_selection(pool, [uid_of(s, r) for s in range(2) for r in range(3)])
    result = made(pool, tmp_path / "out", allow_stale=True)
    assert result.missing == {"timeout": 2}
    found = streamed(tmp_path / "out")
    assert [s["__key__"][:32] for s in found] == [uid_of(s, r) for s in (0, 1) for r in (2, 0)]
    assert found[0]["jpg"] == sample_of(0, 2)["image"]


def test_a_damaged_tar_costs_its_samples_as_in_a_real_one(pool: Pool, tmp_path: Path) -> None:
    tar = tmp_path / "pool/shards/00000001.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    result = made(pool, tmp_path / "out")
    assert result.failure is not None
    assert "(shards 00000001)" in str(result.failure)
    assert result.missing == {"part_failed": 6}
    assert len(streamed(tmp_path / "out")) == len(KEYS) - 7


def test_a_tar_that_goes_while_it_is_looked_into_is_named(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stage.indexing.tars

    def gone(*args: Any) -> bytes:
        (tmp_path / "pool/shards/00000002.tar").unlink()
        return whole(*args)

    monkeypatch.setattr(stage.indexing, "tars", gone)
    with pytest.raises(PartError, match=r"00000002.tar: cannot be read"):
        made(pool, tmp_path / "out")
    with pytest.raises(InputError, match="is not finished"):
        VirtualSubset(tmp_path / "out")


def test_faces_cannot_be_blurred_where_nothing_is_copied(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--virtual: copies nothing, so faces cannot be blurred") as e:
        made(pool, tmp_path / "out", faces=faces("metadata", None))
    assert e.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_uids_are_what_is_in_it(pool: Pool, tmp_path: Path) -> None:
    made(pool, tmp_path / "out")
    ids = np.load(tmp_path / "out/uids.npy")
    assert len(ids) == len(KEYS)
