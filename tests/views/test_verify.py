from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import selection
from curate.pool import open_pool
from curate.pool.adopt import adopt
from curate.receipts import write_json
from curate.scales import SCALES
from curate.shards import TarWriter, members
from curate.stages.subset import subset
from curate.views.verify import Verdict, lines, verify
from tests.pools import make_img2dataset, make_metadata, make_pool, make_selection, members_of, sample_of, uid_of


def some_fail(shard: int, row: int) -> str | None:
    return "http_404" if (shard, row) == (0, 1) else None


def looked_at(folder: Path) -> Verdict:
    before = {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}
    verdict = verify(open_pool(folder), workers=0)
    assert {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    json.dumps(verdict.as_json())
    return verdict


def told(verdict: Verdict) -> list[str]:
    return [f"{Path(p.path).name}: {p.what}" for p in verdict.grave]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_pool(tmp_path / "pool", 2, 4, fails=some_fail)
    return tmp_path / "pool"


def test_a_whole_pool_is_clean(folder: Path) -> None:
    verdict = looked_at(folder)
    assert verdict.grave == verdict.checked.problems == []
    assert (verdict.checked.samples, verdict.checked.files, verdict.foreign) == (8, 9, False)
    assert lines(verdict)[-1].startswith("clean: 8 samples, 9 files, ")


def test_workers_find_the_same(folder: Path) -> None:
    flip(folder / "shards/00000000.tar", 700)
    here, there = looked_at(folder), verify(open_pool(folder), workers=2)
    assert here.as_json() == there.as_json()
    assert not here.as_json()["clean"]


def test_a_flipped_byte_of_an_image_names_the_sample(folder: Path) -> None:
    tar = folder / "shards/00000001.tar"
    image = next(m for m in members(tar.read_bytes()) if m.name.endswith("2.jpg"))
    flip(tar, image.offset + 100)
    assert told(looked_at(folder)) == [
        "00000001.tar: bytes changed since it was written",
        "00000001.tar: 1 images are not those that were stored (000000010002)",
    ]


def test_a_flipped_byte_anywhere_is_found(folder: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    for path in sorted((folder / "shards").rglob("*.*")):
        for at in {0, path.stat().st_size - 1, *draw.integers(0, path.stat().st_size, 2).tolist()}:
            other = tmp_path / "copy"
            shutil.copytree(folder, other)
            flip(other / path.relative_to(folder), at)
            # nothing vouches for clock readings; another stage or version has the part made anew
            is_receipt = path.parent.name == "_receipts"
            if not is_receipt or vouched(other / path.relative_to(folder)) != vouched(path):
                assert looked_at(other).grave, (path.name, at)
            shutil.rmtree(other)


def vouched(path: Path) -> dict[str, object] | None:
    try:
        raw = json.loads(path.read_bytes())
        return {k: raw[k] for k in ("format", "fingerprint", "what", "outputs", "counts")}
    except (ValueError, KeyError):
        return None


def test_a_cut_tar(folder: Path) -> None:
    tar = folder / "shards/00000000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    found = told(looked_at(folder))
    assert found[0].startswith("00000000.tar: has 3,000 bytes, ")
    assert found[1].startswith("00000000.tar: is cut short (3,000 bytes")
    assert len(found) == 2


@pytest.mark.parametrize(
    ("change", "rows"), [(lambda t: t.slice(0, 3), 3), (lambda t: pa.concat_tables([t, t.slice(0, 1)]), 5)]
)
def test_a_missing_or_extra_row(folder: Path, change: Callable[[pa.Table], pa.Table], rows: int) -> None:
    path = folder / "shards/00000001.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    found = told(looked_at(folder))
    assert f"and it has {rows} rows where 4 were counted" in found[0]
    assert found[0].startswith("00000001.parquet: ")


def test_a_broken_table_and_a_missing_file(folder: Path) -> None:
    (folder / "shards/00000000.parquet").write_bytes(bytes(300))
    (folder / "shards/00000001.index.parquet").unlink()
    found = told(looked_at(folder))
    assert "and it is not a readable Parquet file" in found[0]
    assert found[1] == "00000001.index.parquet: is missing"
    assert len(found) == 2


def test_changed_receipts(folder: Path) -> None:
    path = folder / "shards/_receipts/00000000.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"what": {"test": "other"}}))
    assert told(looked_at(folder)) == ["00000000.json: was changed: its fingerprint is not that of what it says"]
    path.write_text(json.dumps(raw | {"counts": {"samples": 4, "ok": 4, "failed": 1}}))
    assert told(looked_at(folder)) == [
        "00000000.json: lost track of samples (4 in, 4 ok + 1 failed out)",
        "00000000.parquet: has 4 rows and 3 images, other than its receipt counts",
    ]
    path.write_text("{")
    assert told(looked_at(folder))[0] == "00000000.json: is not a readable receipt"


def test_a_foreign_file_costs_nothing(folder: Path) -> None:
    (folder / "shards/mine.tar").write_bytes(b"x")
    (folder / "photos").mkdir()
    (folder / "shards/00000000.tar.tmp").write_bytes(b"x")
    verdict = looked_at(folder)
    assert verdict.grave == []
    assert sorted(Path(p.path).name for p in verdict.checked.problems) == ["00000000.tar.tmp", "mine.tar", "photos"]
    assert lines(verdict)[-1].startswith("clean: ")


def test_a_subset(folder: Path, tmp_path: Path) -> None:
    pool = open_pool(folder)
    make_selection(pool, [uid_of(s, r) for s in range(2) for r in range(4)])
    out = tmp_path / "out"
    subset(pool, selection.load(pool.layout, None), SCALES["debug"], out, samples_per_shard=4)
    verdict = looked_at(out)
    assert verdict.checked.problems == []
    assert verdict.checked.samples == 7
    flip(out / "uids.npy", 140)
    (out / "missing.parquet").unlink()
    flip(out / "shards/00000001.tar", 600)
    assert told(verify(open_pool(out), workers=0)) == [
        "00000001.tar: bytes changed since it was written",
        f"00000001.tar: 1 images are not those that were stored ({uid_of(1, 0)}-0)",
        "uids.npy: bytes changed since it was written",
        "missing.parquet: is missing",
    ]
    mark = json.loads((out / "subset.json").read_text())
    (out / "subset.json").write_text(json.dumps(mark | {"done": False, "files": {}}))
    assert "the subset is not finished" in told(verify(open_pool(out), workers=0))[-1]


# --- other people's pools ---------------------------------------------------------------------------------


def test_foreign_shards(tmp_path: Path) -> None:
    make_img2dataset(tmp_path, 2, 3, fails=some_fail)
    verdict = looked_at(tmp_path)
    assert verdict.grave == []
    assert (verdict.checked.samples, verdict.checked.images, verdict.foreign) == (6, 5, True)
    assert "no receipts stand for the files of others" in lines(verdict)[-2]
    adopt(open_pool(tmp_path), workers=0)
    assert looked_at(tmp_path).checked.problems == []
    flip(tmp_path / "derived/00000.parquet", 50)
    assert told(looked_at(tmp_path)) == ["00000.parquet: bytes changed since it was written"]


def test_damaged_foreign_shards(tmp_path: Path) -> None:
    make_img2dataset(tmp_path, 4, 3)
    with (tmp_path / "00000.tar").open("wb") as sink:
        tar = TarWriter(sink)
        samples = [sample_of(0, row) for row in range(3)]
        tar.add("000000000", members_of(samples[0]))
        tar.add("000000001", [("jpg", samples[1]["image"][:300])])
        tar.add("0000000077", members_of(samples[2]))
        tar.add("0000000078", [("txt", b"no image")])
        tar.finish()
    cut = tmp_path / "00001.tar"
    cut.write_bytes(cut.read_bytes()[:2048])
    (tmp_path / "00002.parquet").write_bytes(bytes(100))
    found = told(looked_at(tmp_path))
    assert found[0] == "00000.tar: 000000001: its image does not decode (OSError)"
    assert found[1] == "00000.tar: 0000000078: has no image"
    assert found[2] == "00000.tar: lacks 1 samples that its table has (000000002)"
    assert found[3] == "00000.tar: has 2 samples that its table has not as stored (0000000077, 0000000078)"
    assert found[4].startswith("00001.tar: is cut short (2,048 bytes")
    assert found[5].startswith("00002.parquet: is not a readable Parquet file")
    assert len(found) == 6


def test_metadata(tmp_path: Path) -> None:
    rows = [{"uid": uid_of(0, r), "url": "u", "text": "t"} for r in range(3)]
    make_metadata(tmp_path, rows)
    stem = tmp_path / "metadata" / ("0" * 32)
    np.savez(stem.with_suffix(".npz"), l14_img=np.zeros((3, 4), np.float16), l14_txt=np.zeros((2, 4), np.float16))
    make_metadata(tmp_path, [{"uid": "x", "url": "u", "text": "t"}], "bad")
    found = told(looked_at(tmp_path))
    assert found == [
        f"{stem.name}.npz: l14_txt has 2 rows, the metadata 3",
        "bad.parquet: column 'uid': row 0: 'x' is not 32 hex digits",
    ]


def test_a_download_that_has_not_finished_is_not_clean(tmp_path: Path) -> None:
    """A shard without its receipt is not here: the pool's own list says that there is more."""
    make_pool(tmp_path, 2, 2)
    write_json(tmp_path / "sources.json", {"format": 1, "sources": [{"shards": 2}]})
    assert not verify(open_pool(tmp_path), workers=0).grave
    (tmp_path / "shards" / "_receipts" / "00000001.json").unlink()
    problems = verify(open_pool(tmp_path), workers=0).grave
    assert [str(p) for p in problems] == [
        f"{tmp_path / 'sources.json'}: its download is not finished, 1 shard not here: run the same again"
    ]
