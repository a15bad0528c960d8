from __future__ import annotations

import hashlib
import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import shards, uids
from curate.fetch.messages import code_of
from curate.pool import Part, Pool, open_pool
from curate.pool.adopt import adopt
from curate.shards import TarWriter
from tests.pools import caption_of, jpeg, make_img2dataset, make_metadata, make_pool, uid_of, url_of


def rows_of(pool: Pool, shard: int = 0) -> list[dict[str, object]]:
    return pq.read_table(pool.shards[shard].table).to_pylist()


def test_our_own_pool_needs_nothing(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    assert adopt(pool, workers=0) is pool
    assert not pool.layout.derived.exists()


@pytest.mark.parametrize("digits", [5, 8])
def test_img2dataset_rows_keep_order_and_columns(tmp_path: Path, digits: int) -> None:
    def fails(shard: int, row: int) -> str | None:
        return {(0, 1): "http_404", (1, 0): "timeout"}.get((shard, row))

    make_img2dataset(tmp_path, fails=fails, digits=digits)
    before = pq.read_table(tmp_path / f"{1:0{digits}d}.parquet")
    pool = adopt(open_pool(tmp_path), workers=0)
    assert pool.kind == "img2dataset"
    after = pq.read_table(pool.shards[1].table)
    assert after.select(before.column_names) == before
    assert [r["uid"] for r in rows_of(pool, 1)] == [uid_of(1, 2), uid_of(1, 1), uid_of(1, 0)]
    assert [r["error_code"] for r in rows_of(pool, 0)] == [None, "http_404", None]
    assert [r["error_code"] for r in rows_of(pool, 1)] == [None, None, "timeout"]
    assert pool.failed(pool.parts[1]).to_list() == [None, None, "timeout"]
    assert pool.n == 6
    assert pool.scan(pool.parts[0], ["uid", "caption"]).collect()["caption"].to_list()[0] == caption_of(0, 2)


def test_index_gives_each_sample(tmp_path: Path) -> None:
    make_img2dataset(tmp_path)
    pool = adopt(open_pool(tmp_path), workers=0)
    shard = pool.shards[0]
    index = pq.read_table(shard.index).to_pylist()
    assert [r["key"] for r in index] == ["000000002", "000000001", "000000000"]
    data = shard.tar.read_bytes()
    found = shards.sample_members(data, index[1]["offset"], index[1]["length"])
    assert found["jpg"] == jpeg(1)


def test_adopted_once_and_again_when_the_tar_changes(tmp_path: Path) -> None:
    make_img2dataset(tmp_path)
    first = adopt(open_pool(tmp_path), workers=0)
    table = first.shards[0].table
    identity, made = first.identity(), table.stat().st_mtime_ns
    assert adopt(open_pool(tmp_path), workers=0).identity() == identity
    assert table.stat().st_mtime_ns == made
    make_img2dataset(tmp_path, rows=4)
    again = adopt(open_pool(tmp_path), workers=0)
    assert again.n == 8
    assert again.identity() != identity


def test_datacomps_uids_are_kept(tmp_path: Path) -> None:
    make_img2dataset(tmp_path / "shards", digits=8, columns=["uid"])
    make_metadata(tmp_path, [{"uid": uid_of(0, r), "url": url_of(0, r), "text": "x"} for r in range(3)])
    pool = adopt(open_pool(tmp_path), workers=0)
    assert pool.kind == "datacomp"
    assert [r["uid"] for r in rows_of(pool)] == [uid_of(0, 2), uid_of(0, 1), uid_of(0, 0)]
    assert not list(pool.layout.derived.glob("*.uids.parquet"))


def test_a_success_that_the_tar_lacks_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_img2dataset(tmp_path, n_shards=1)
    table = pq.read_table(tmp_path / "00000.parquet")
    with (tmp_path / "00000.tar").open("wb") as sink:
        tar = TarWriter(sink)
        for key in ("000000000", "000000002", "999999999"):
            tar.add(key, [("jpg", jpeg(1))])
        tar.finish()
    pool = adopt(open_pool(tmp_path), workers=0)
    assert [r["error_code"] for r in rows_of(pool)] == [None, "lost", None]
    assert len(rows_of(pool)) == len(table)
    assert "1 rows are not in the tar, and 1 of its samples in no row" in caplog.text


def test_metadata_without_uids(tmp_path: Path) -> None:
    rows = [{"URL": url_of(0, r), "TEXT": caption_of(0, r)} for r in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "part-0.parquet")
    pool = adopt(open_pool(tmp_path), workers=0)
    assert pool.kind == "metadata"
    assert uids.to_hex(pool.uids(pool.parts[0])) == [uid_of(0, r) for r in range(4)]
    assert pool.scan(pool.parts[0], ["uid", "url"]).collect()["uid"].to_list() == [uid_of(0, r) for r in range(4)]


def test_work_folder_takes_all_that_is_written(tmp_path: Path) -> None:
    make_img2dataset(tmp_path / "pool")
    before = sorted((tmp_path / "pool").rglob("*"))
    pool = adopt(open_pool(tmp_path / "pool", tmp_path / "work"), workers=0)
    assert sorted((tmp_path / "pool").rglob("*")) == before
    assert pool.n == 6


def test_tars_alone(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as sink:
        tar = TarWriter(sink)
        said = {"uid": "AB" * 16, "url": url_of(0, 0), "caption": "json", "similarity": 0.25, "sha256": "f" * 64}
        tar.add(
            "one", [("jpg", jpeg(1, (30, 20))), ("txt", "wörter".encode()), ("json", json.dumps(said).encode())]
        )
        tar.add("two", [("json", b'{"caption": "from json", "similarity": "high"}'), ("png", jpeg(2))])
        tar.add("three", [("txt", b"no image")])
        tar.add("four", [("jpg", b"<html>"), ("txt", b"\xff\xfe")])
        tar.finish()
    pool = adopt(open_pool(tmp_path), workers=0)
    assert pool.kind == "tars"
    one, two, three, four = rows_of(pool)
    assert (one["uid"], one["caption"], one["url"]) == ("ab" * 16, "wörter", url_of(0, 0))
    assert (one["width"], one["height"], one["sha256"]) == (30, 20, "f" * 64)
    assert one["stored_sha256"] == hashlib.sha256(jpeg(1, (30, 20))).hexdigest()
    digest = hashlib.sha256(jpeg(2)).hexdigest()
    assert (two["caption"], two["sha256"], two["uid"]) == (
        "from json",
        digest,
        uids.derive_uid(digest, "from json"),
    )
    assert (one["similarity"], two["similarity"]) == ("0.25", '"high"')
    assert (three["error_code"], three["caption"]) == ("not_an_image", "no image")
    assert (four["error_code"], four["caption"]) == ("not_an_image", None)
    assert len({r["uid"] for r in rows_of(pool)}) == 4


def test_a_cut_tar_costs_its_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_img2dataset(tmp_path)
    adopt(open_pool(tmp_path), workers=0)
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[:2000])
    pool = adopt(open_pool(tmp_path), workers=0)
    assert pool.rows == {"00000": 3}
    assert list(pool.unreadable) == ["00001"]
    said = [r.message for r in caplog.records if "left out" in r.message]
    assert len(said) == 1
    assert "00001.tar: is cut short (2,000 bytes" in said[0]


def test_broken_tables_cost_their_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_img2dataset(tmp_path, n_shards=4, columns=["uid"])
    (tmp_path / "00000.parquet").write_bytes(bytes(500))
    table = pq.read_table(tmp_path / "00001.parquet")
    pq.write_table(table.drop(["key"]), tmp_path / "00001.parquet")
    bad = table.set_column(table.column_names.index("uid"), "uid", pa.array(["x"] * 3))
    pq.write_table(bad, tmp_path / "00002.parquet")
    pool = adopt(open_pool(tmp_path), workers=0)
    assert list(pool.rows) == ["00003"]
    assert "00000.parquet: is not a readable Parquet file" in caplog.text
    assert "00001.parquet: has no column 'key' (found: caption, url, status" in caplog.text
    assert "00002.parquet: column 'uid': row 0: 'x' is not 32 hex digits" in caplog.text


def test_metadata_without_identity(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pl.DataFrame({"words": ["a"]}).write_parquet(tmp_path / "m.parquet")
    pool = adopt(open_pool(tmp_path), workers=0)
    assert "has neither 'uid' nor 'url', so its samples have no identity (found: words)" in caplog.text
    assert pool.parts == [Part("m", tmp_path / "m.parquet")]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("HTTP Error 404: Not Found", "http_404"),
        ("HTTP Error 302: ... would lead to an infinite loop.\nFound", "too_many_redirects"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error [Errno -2] Name or service not known>", "no_such_host"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
        ("<urlopen error [Errno 111] Connection refused>", "refused"),
        ("[Errno 104] Connection reset by peer", "reset"),
        ("IncompleteRead(10 bytes read, 90 more expected)", "reset"),
        ("Remote end closed connection without response", "reset"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("Use of image disallowed by X-Robots-Tag directive", "opted_out"),
        ("hash mismatch", "hash_mismatch"),
        ("<urlopen error private address: 10.0.0.1>", "private_address"),
        ("HTTP Error 302: Found - Redirection to url 'file:///a.jpg' is not allowed", "bad_scheme"),
        ("unknown url type: ''", "bad_url"),
        ("<urlopen error unknown url type: foo>", "bad_scheme"),
        ("URL can't contain control characters. '/a b' (found at least ' ')", "bad_url"),
        ("strange", "download_failed"),
        (None, "download_failed"),
    ],
)
def test_messages_of_failed_downloads(message: str | None, code: str) -> None:
    assert code_of("failed_to_download", message) == code


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("Image decoding error", "bad_image"),
        ("image too small", "too_small"),
        ("aspect ratio too large", "bad_aspect"),
        ("image area too large", "too_many_pixels"),
        (
            "OpenCV(4.14) loadsave.cpp:1084: error: (-215:Assertion failed) !buf.empty() in function 'imdecode_'",
            "empty",
        ),
        ("strange", "bad_image"),
    ],
)
def test_messages_of_failed_conversions(message: str, code: str) -> None:
    assert code_of("failed_to_resize", message) == code


def test_codes_are_known() -> None:
    from curate.errors import ERROR_CODES
    from curate.fetch import messages

    assert {code for _, code in messages._MESSAGES} | set(messages._STAGES.values()) <= set(ERROR_CODES)
