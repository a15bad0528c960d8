"""What stands in the way of a subset: each is named, ends with the right code, and nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.uids import to_hex
from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import Ran, curate
from tests.pools import make_img2dataset, make_metadata, make_pool, make_selection, uid_of
from tests.stages.test_subset import everything, samples

HERE = ("--workers", "0")
SUBSET = ("subset", "--scale", "debug", *HERE)


@pytest.fixture
def crawl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as DataComp's download leaves it, 12 shards of 3, and a selection of all."""
    monkeypatch.chdir(tmp_path)
    make_metadata(
        Path("pool"),
        [
            {"uid": uid_of(s, r), "url": f"u{s}{r}", "text": "t", "face_bboxes": []}
            for s in range(12)
            for r in range(3)
        ],
    )
    make_img2dataset(Path("pool/shards"), 12, 3, columns=["uid"], digits=8)
    succeeded(curate("filter", "--rule", "random:fraction=1.0", "--name", "all", *HERE))
    return Path("pool")


def warned(ran: Ran, *says: str) -> None:
    """It ended well, with a warning that has all of this."""
    succeeded(ran)
    warnings = [line for line in ran.err.splitlines() if line.startswith("warning: ")]
    for text in says:
        assert any(text in line for line in warnings), (text, warnings)


def test_a_hole_in_the_numbering_is_named_and_costs_its_samples(crawl: Path) -> None:
    for path in (crawl / "shards").glob("00000007*"):
        path.unlink()
    ran = curate(*SUBSET, "--json")
    warned(ran, "the pool's numbering has a hole: no shard 00000007")
    assert (ran.json["kept"], ran.json["missing"]) == (33, {"not_downloaded": 3})
    missing = pq.read_table("subset/missing.parquet")["uid"].to_pylist()
    assert missing == sorted(uid_of(7, r) for r in range(3))
    ran = curate(*SUBSET, "--require-all")
    assert ran.code == 3
    assert "3 selected samples have no image here (not_downloaded 3)" in ran.err


def test_shards_without_stats_are_used_and_named(crawl: Path) -> None:
    for number in (4, 11):
        (crawl / f"shards/{number:08d}_stats.json").unlink()
    ran = curate(*SUBSET, "--json")
    warned(ran, "shards without _stats.json, so perhaps not finished by their tool: 00000004, 00000011")
    assert (ran.json["kept"], ran.json["missing"]) == (36, {})
    for path in (crawl / "shards").glob("*_stats.json"):
        path.unlink()
    ran = curate(*SUBSET, "--out", "again", "--json")
    succeeded(ran)  # nobody's pool of tars has any
    assert "_stats.json" not in ran.err
    assert ran.json["kept"] == 36


@pytest.mark.parametrize("shuffle", [(), ("--shuffle",)])
@pytest.mark.parametrize("size", [0, 700, 8000])
def test_a_tar_that_is_cut_short_costs_its_samples(crawl: Path, size: int, shuffle: tuple[str, ...]) -> None:
    path = crawl / "shards/00000003.tar"
    path.write_bytes(path.read_bytes()[:size])
    ran = curate(*SUBSET, *shuffle, "--json")
    assert ran.code == 3
    assert f"{path}: is cut short" in ran.err
    assert "3 selected samples should be in the pool and are not (shards 00000003)" in ran.err
    assert (ran.json["kept"], ran.json["missing"]) == (33, {"part_failed": 3})
    kept = to_hex(np.load("subset/uids.npy"))
    assert kept == sorted(set(everything(12, 3)) - {uid_of(3, r) for r in range(3)})
    assert len(list(samples(Path("subset")))) == 33


def test_a_key_that_stands_twice_in_a_tar_costs_its_shard(crawl: Path) -> None:
    path = crawl / "shards/00000003.tar"
    whole = path.read_bytes().rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    path.write_bytes(whole + whole[: len(whole) // 2 // 512 * 512] + bytes(1024))
    ran = curate(*SUBSET, "--json")
    assert ran.code == 3
    assert f"{path}: " in ran.err
    assert (ran.json["kept"], ran.json["missing"]) == (33, {"part_failed": 3})


def test_a_uid_in_two_shards_is_taken_once(crawl: Path) -> None:
    """DataComp's resharder would write it twice, and count it as one that made up for a missing one."""
    for name in (".tar", ".parquet", "_stats.json"):
        shutil.copy(crawl / f"shards/00000002{name}", crawl / f"shards/00000012{name}")
    ran = curate(*SUBSET, "--json")
    succeeded(ran)
    assert (ran.json["kept"], ran.json["samples"]) == (36, 36)
    assert len({key for _, key, _ in samples(Path("subset"))}) == 36


@pytest.mark.parametrize("name", ["notes.txt", "shards/00000000.tar", "shards"])
def test_an_output_folder_that_is_not_empty(crawl: Path, name: str) -> None:
    path = Path("out") / name
    if name == "shards":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")
    before = contents(Path("out"))
    for more in ((), ("--shuffle",)):
        refused(curate(*SUBSET, "--out", "out", *more), "out: holds something else (found:", "--out")
    assert contents(Path("out")) == before
    Path("file").write_text("mine")
    refused(curate(*SUBSET, "--out", "file"), "is not a folder", "--out")
    refused(curate(*SUBSET, "--out", "pool"), "is the pool itself", "--out")


def test_a_selection_of_an_older_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_selection(make_pool(Path("pool"), 2, 3), everything(2, 3))
    make_pool(Path("pool"), 3, 3)
    before = contents(Path("pool"))
    refused(curate(*SUBSET), "was made of an older state of this pool", "--allow-stale")
    assert contents(Path("pool")) == before
    assert not Path("subset").exists()
    ran = curate(*SUBSET, "--allow-stale", "--json")
    succeeded(ran)
    assert ran.json["kept"] == 6


def test_faces(crawl: Path) -> None:
    refused(curate(*SUBSET, "--blur-faces", "boxs.parquet"), "no such file of boxes", "metadata takes")
    refused(curate(*SUBSET, "--blur-faces", "pool"), "--blur-faces: is a folder (pool)", "metadata takes")
    Path("boxes.parquet").write_bytes(b"x")
    refused(
        curate(*SUBSET, "--inject-boxes", "boxes.parquet"), "boxes.parquet: is not a readable Parquet file", None
    )
    pq.write_table(pa.table({"id": ["a"], "face_bboxes": [[]]}), "boxes.parquet")
    refused(curate(*SUBSET, "--blur-faces", "boxes.parquet"), "has no column 'uid' (found: id, face_bboxes)", None)
    words = ("--blur-faces", "boxes.parquet", "--inject-boxes", "metadata")
    refused(curate(*SUBSET, *words), "must name the boxes of --blur-faces", None)
    assert not Path("subset").exists()
    succeeded(curate(*SUBSET, "--blur-faces", "metadata"))
