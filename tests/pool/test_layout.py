"""What kind of pool a folder is, and where everything lies in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from curate.errors import InputError, PartError
from curate.pool import layout, open_pool
from curate.shards import TarWriter
from tests.pools import make_img2dataset, make_metadata, make_pool

ROW = {"uid": "0" * 32, "url": "u", "text": "t"}


def tar(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as sink:
        writer = TarWriter(sink)
        writer.add("a", [("jpg", b"1")])
        writer.finish()


def test_ours(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    assert pool.kind == "curate"
    assert [s.name for s in pool.shards] == ["00000000", "00000001"]
    assert all(s.ours for s in pool.shards)
    make_metadata(tmp_path, [ROW])
    assert open_pool(tmp_path).kind == "curate"
    assert open_pool(tmp_path).joined


def test_a_receipt_stands_for_a_shard_that_is_gone(tmp_path: Path) -> None:
    make_pool(tmp_path)
    (tmp_path / "shards" / "00000001.tar").unlink()
    assert [s.name for s in open_pool(tmp_path).shards] == ["00000000", "00000001"]


@pytest.mark.parametrize("where", ["", "shards"])
def test_img2datasets(tmp_path: Path, where: str) -> None:
    make_img2dataset(tmp_path / where, digits=5)
    pool = open_pool(tmp_path)
    assert pool.kind == "img2dataset"
    assert not pool.joined
    assert pool.shards[0].foreign_table == tmp_path / where / "00000.parquet"
    assert pool.shards[0].table == tmp_path / "derived" / "00000.parquet"


def test_datacomps(tmp_path: Path) -> None:
    make_img2dataset(tmp_path / "shards", digits=8, columns=["uid"])
    make_metadata(tmp_path, [ROW])
    pool = open_pool(tmp_path)
    assert (pool.kind, pool.joined) == ("datacomp", True)


def test_tars_alone(tmp_path: Path) -> None:
    tar(tmp_path / "b.tar")
    tar(tmp_path / "a.tar")
    pool = open_pool(tmp_path)
    assert pool.kind == "tars"
    assert [s.name for s in pool.shards] == ["a", "b"]


def test_metadata_alone(tmp_path: Path) -> None:
    make_metadata(tmp_path / "one", [ROW])
    assert open_pool(tmp_path / "one").kind == "metadata"
    make_metadata(tmp_path / "two", [ROW], "part")
    pool = open_pool(tmp_path / "two" / "metadata")  # a folder of Parquet
    assert (pool.kind, [p.name for p in pool.parts]) == ("metadata", ["part"])


def test_a_download_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "sources.json").write_text('{"format": 1, "sources": []}')
    pool = open_pool(tmp_path)
    assert (pool.kind, pool.n) == ("curate", 0)


def test_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a pool") as error:
        open_pool(tmp_path)
    assert error.value.hint
    with pytest.raises(InputError, match="no such pool"):
        open_pool(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        open_pool(tmp_path / "file")


def test_all_that_is_written_goes_to_work(tmp_path: Path) -> None:
    found = layout.Layout(tmp_path / "pool", tmp_path / "work")
    for path in (found.derived, found.selections, found.logs, found.embeddings("m"), found.score("s-v1")):
        assert path.is_relative_to(tmp_path / "work")
    assert found.shards == tmp_path / "pool" / "shards"
    assert found.selection("mine") == tmp_path / "work" / "selections" / "mine"


def test_a_foreign_file_is_known_by_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    known = layout.file_identity(path, ends=10)
    assert known == {"bytes": 100, "ends": hashlib.sha256(bytes([*range(10), *range(90, 100)])).hexdigest()}
    path.write_bytes(bytes(range(12)))
    assert layout.file_identity(path, ends=10)["ends"] == hashlib.sha256(bytes(range(12))).hexdigest()
    with pytest.raises(PartError, match="nowhere: cannot be read"):
        layout.file_identity(tmp_path / "nowhere")
