"""A list becomes shards: in order, in img2dataset's form, the same bytes each time, no row lost."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.errors import InputError, StopError
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.pool import open_pool
from curate.runner import Summary
from curate.shards import read_index
from curate.stages.download import DownloadSettings, download, plan
from curate.uids import derive_uid
from tests import pools
from tests.fetch import servers
from tests.fetch.servers import HostileServer, answer, redirect, running, status

LIMITS = FetchLimits(
    connect_seconds=0.5,
    idle_seconds=0.3,
    total_seconds=0.6,
    max_bytes=300_000,
    backoff_seconds=0.01,
    allow_private=True,
)
SETTINGS = DownloadSettings(ImageSettings(image_size=32), LIMITS, samples_per_shard=10)


jpeg = partial(pools.jpeg, size=(60, 40))


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({f"/{n}.jpg": answer(jpeg(n), Content_Type="image/jpeg") for n in range(30)})) as s:
        yield s


def listed(folder: Path, records: list[dict[str, Any]], name: str = "list.parquet") -> Path:
    pq.write_table(pa.Table.from_pylist(records), folder / name)
    return folder / name


def photos(server: HostileServer, folder: Path, count: int = 25) -> Path:
    records = [{"url": server.url(f"/{n}.jpg"), "text": f"photo {n}", "n": n} for n in range(count)]
    return listed(folder, records)


def run(pool: Path, source: Path, settings: DownloadSettings = SETTINGS, workers: int = 0) -> Summary:
    summary = download(plan(pool, source, settings), workers=workers, connections=8)
    assert not summary.failed
    return summary


def table_of(pool: Path) -> list[dict[str, Any]]:
    files = sorted((pool / "shards").glob("*.parquet"))
    tables = [f for f in files if "_ledger" not in f.name and ".index" not in f.name]
    return [row for f in tables for row in pq.read_table(f).to_pylist()]


def members_of(pool: Path) -> list[tuple[str, bytes]]:
    found = []
    for path in sorted((pool / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                found.append((member.name, stream.read()))
    return found


def stored(pool: Path) -> dict[str, str]:
    """The hash of every file whose bytes promise not to vary."""
    found = {}
    for path in sorted((pool / "shards").iterdir()):
        if path.is_file() and "_ledger" not in path.name and "_stats" not in path.name:
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_shards_have_the_form_of_img2dataset(server: HostileServer, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    summary = run(pool, photos(server, tmp_path))
    assert (summary.counts["samples"], summary.counts["ok"], summary.counts["failed"]) == (25, 25, 0)
    names = [name for name, _ in members_of(pool)]
    keys = [f"{shard:08d}{row}" for shard in range(3) for row in range(10 if shard < 2 else 5)]
    assert names == [f"{key}.{extension}" for key in keys for extension in ("jpg", "txt", "json")]
    rows = table_of(pool)
    assert [r["key"] for r in rows] == keys
    for n, row in enumerate(rows):
        body = jpeg(n)
        url = server.url(f"/{n}.jpg")
        assert row["uid"] == derive_uid(url, f"photo {n}")
        assert (row["url"], row["caption"], row["n"]) == (url, f"photo {n}", n)
        assert (row["status"], row["error_code"], row["error_message"]) == ("success", None, None)
        assert (row["width"], row["height"]) == (32, 21)
        assert (row["original_width"], row["original_height"]) == (60, 40)
        assert (row["sha256"], row["original_bytes"]) == (hashlib.sha256(body).hexdigest(), len(body))
        assert (row["content_type"], row["final_url"]) == ("image/jpeg", url)
    for (name, data), row in zip(members_of(pool)[::3], rows, strict=True):
        assert name == row["key"] + ".jpg"
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["stored_bytes"], row["stored_sha256"])
    described = json.loads(members_of(pool)[2][1])
    for name in ("url", "caption", "n", "key", "status", "width", "original_width", "exif", "sha256", "uid"):
        assert described[name] == rows[0][name]
    assert members_of(pool)[1][1] == b"photo 0"


def test_tables_statistics_index_and_ledger(server: HostileServer, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    server.routes["/1.jpg"] = status(404)
    server.routes["/2.jpg"] = b"<html>"
    run(pool, photos(server, tmp_path, 5))
    shard = pool / "shards" / "00000000"
    schema = pq.read_schema(f"{shard}.parquet")
    for name in ("width", "height", "original_width", "original_height"):
        assert schema.field(name).type == pa.int32()
    assert schema.field("n").type == pa.int64()
    stats = json.loads(Path(f"{shard}_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (5, 3)
    assert (stats["failed_to_download"], stats["failed_to_resize"]) == (1, 1)
    assert stats["status_dict"] == {"success": 3, "http_404": 1, "not_an_image": 1}
    assert stats["duration"] == pytest.approx(stats["end_time"] - stats["start_time"])
    ledger = pq.read_table(f"{shard}_ledger.parquet").to_pylist()
    assert [r["error_code"] for r in ledger] == [None, "http_404", "not_an_image", None, None]
    assert [r["http_status"] for r in ledger] == [200, 404, 200, 200, 200]
    assert {r["address"] for r in ledger} == {"127.0.0.1"}
    assert {r["tries"] for r in ledger} == {1}
    assert json.loads(ledger[0]["headers"])["content-length"] == str(len(jpeg(0)))
    index = pq.read_table(f"{shard}.index.parquet").to_pydict()
    assert (index["key"], index["offset"], index["length"]) == read_index(Path(f"{shard}.tar"))
    assert open_pool(pool).n == 5


def test_two_runs_give_the_same_bytes_whatever_comes_first(server: HostileServer, tmp_path: Path) -> None:
    source = photos(server, tmp_path)
    run(tmp_path / "a", source)
    for n in range(0, 25, 3):
        server.routes[f"/{n}.jpg"] = servers.in_turn(status(503), answer(jpeg(n), Content_Type="image/jpeg"))
    run(tmp_path / "b", source, workers=2)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


def test_the_same_list_again_fetches_nothing(server: HostileServer, tmp_path: Path) -> None:
    source = photos(server, tmp_path)
    run(tmp_path / "pool", source)
    before, hits = stored(tmp_path / "pool"), server.hits.total()
    summary = run(tmp_path / "pool", source)
    assert (summary.skipped, summary.counts["samples"]) == (3, 25)
    assert (stored(tmp_path / "pool"), server.hits.total()) == (before, hits)
    # a part that is gone is made again, alone, and is what it was
    (tmp_path / "pool" / "shards" / "00000001.tar").unlink()
    assert run(tmp_path / "pool", source).skipped == 2
    assert (stored(tmp_path / "pool"), server.hits.total()) == (before, hits + 10)
    # deadlines and retries may change on the way
    patient = DownloadSettings(SETTINGS.images, FetchLimits(max_bytes=300_000, allow_private=True), 10)
    assert run(tmp_path / "pool", source, patient).skipped == 3


def test_another_list_or_other_settings_are_refused(server: HostileServer, tmp_path: Path) -> None:
    pool, source = tmp_path / "pool", photos(server, tmp_path)
    run(pool, source)
    first = plan(pool, source, SETTINGS).works[0].entry.digest
    before = stored(pool)
    other = listed(tmp_path, [{"url": server.url("/1.jpg"), "text": "x"}], "other.parquet")
    with pytest.raises(InputError, match="was downloaded from another list") as caught:
        plan(pool, other, SETTINGS)
    assert first in caught.value.what
    assert hashlib.sha256(other.read_bytes()).hexdigest() in caught.value.what
    with pytest.raises(InputError, match="image-size was 32, is 64"):
        plan(pool, source, DownloadSettings(ImageSettings(image_size=64), LIMITS, 10))
    with pytest.raises(InputError, match="samples-per-shard was 10, is 11"):
        plan(pool, source, DownloadSettings(SETTINGS.images, LIMITS, 11))
    assert str(caught.value.hint).startswith("--add")
    assert stored(pool) == before


def test_a_wrong_list_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("link,text\na,b\n")
    with pytest.raises(InputError):
        plan(tmp_path / "pool", tmp_path / "list.csv", SETTINGS)
    with pytest.raises(InputError, match="has no metadata to download from"):
        plan(tmp_path / "pool", None, SETTINGS)
    assert not (tmp_path / "pool").exists()


def test_shards_of_others_are_not_written_over(server: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "pool" / "shards").mkdir(parents=True)
    (tmp_path / "pool" / "shards" / "00000000.tar").write_bytes(bytes(10240))
    with pytest.raises(InputError, match="holds shards that others made"):
        plan(tmp_path / "pool", photos(server, tmp_path), SETTINGS)


def test_every_misery_costs_one_row(server: HostileServer, tmp_path: Path) -> None:
    wide = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(wide, "PNG")
    miseries: dict[str, Any] = {
        "http_404": status(404),
        "not_an_image": b"<!DOCTYPE html>",
        "empty": b"",
        "bad_image": jpeg(1)[:-200],
        "timeout": servers.drip(),
        "too_large": servers.flood(200 << 20, announce=False),
        "too_many_pixels": wide.getvalue(),
        "opted_out": answer(jpeg(1), X_Robots_Tag="noai"),
        "too_many_redirects": redirect("/too_many_redirects"),
        "bad_scheme": redirect("file:///etc/hostname"),
        "reset": servers.raw(b"", reset=True),
        "bad_response": servers.raw(b"SSH-2.0\r\n"),
    }
    server.routes |= {f"/{code}": reply for code, reply in miseries.items()}
    urls = {code: server.url(f"/{code}") for code in miseries}
    urls |= {"bad_url": "http://[::1", "no_url": "", "refused": "http://127.0.0.1:1/"}
    records = [{"url": url, "text": code} for code, url in urls.items()]
    records.insert(3, {"url": server.url("/3.jpg"), "text": None})
    summary = run(tmp_path / "pool", listed(tmp_path, records))
    rows = table_of(tmp_path / "pool")
    assert [r["error_code"] for r in rows] == [r["text"] for r in records]
    assert all((r["status"] == "success") == (r["error_code"] is None) for r in rows)
    assert all(r["error_message"] and "\n" not in r["error_message"] for r in rows if r["error_code"])
    assert all(r["sha256"] is None and r["width"] is None for r in rows if r["error_code"])
    assert (summary.counts["samples"], summary.counts["ok"]) == (len(records), 1)
    assert summary.counts["code:timeout"] == 1
    assert len(members_of(tmp_path / "pool")) == 3


def test_private_hosts_are_refused_unless_allowed(server: HostileServer, tmp_path: Path) -> None:
    strict = DownloadSettings(SETTINGS.images, FetchLimits(), 10)
    summary = run(tmp_path / "pool", photos(server, tmp_path, 2), strict)
    assert summary.counts["code:private_address"] == 2
    assert server.connections == 0


def test_captions_of_every_kind(server: HostileServer, tmp_path: Path) -> None:
    captions = [None, "", "two\nlines", "n\0ul", "\U0001f600 \u202e", "x" * 1_000_000, '"quoted"\t\\']
    records = [{"url": server.url(f"/{n}.jpg"), "text": text} for n, text in enumerate(captions)]
    run(tmp_path / "pool", listed(tmp_path, records))
    assert [r["caption"] for r in table_of(tmp_path / "pool")] == captions
    found = members_of(tmp_path / "pool")
    assert [data.decode() for _, data in found[1::3]] == [text or "" for text in captions]
    assert [json.loads(data)["caption"] for _, data in found[2::3]] == captions


def test_a_caption_that_is_not_utf8_fails_alone(server: HostileServer, tmp_path: Path) -> None:
    rows = (f"{server.url('/0.jpg')},caf\u00e9".encode("latin-1"), f"{server.url('/1.jpg')},fine".encode())
    (tmp_path / "list.csv").write_bytes(b"url,text\n" + b"\n".join(rows))
    run(tmp_path / "pool", tmp_path / "list.csv")
    assert [r["error_code"] for r in table_of(tmp_path / "pool")] == ["bad_caption", None]


def test_columns_of_any_type_are_kept(server: HostileServer, tmp_path: Path) -> None:
    table = pa.table(
        {
            "url": [server.url("/0.jpg"), server.url("/1.jpg")],
            "text": ["a", "b"],
            "when": pa.array([datetime.datetime(2024, 1, 2), None], pa.timestamp("ns")),
            "odd": pa.array([1, None], pa.timestamp("ns")),
            "raw": pa.array([b"\xff\0", None], pa.binary()),
            "boxes": pa.array([[[0.5, float("nan")]], None], pa.list_(pa.list_(pa.float64()))),
            "number": pa.array([1.5, float("nan")]),
            "price": pa.array([None, 3], pa.decimal128(5, 2)),
            "pair": pa.array([{"a": 1}, None]),
            "sha256": ["0" * 64, "1" * 64],
            "key": ["k1", "k2"],
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    run(tmp_path / "pool", tmp_path / "list.parquet")
    kept = pq.read_table(tmp_path / "pool" / "shards" / "00000000.parquet")
    for name in ("when", "odd", "raw", "price", "pair"):
        assert kept[name].equals(table[name]), name
    assert kept["boxes"].type == table["boxes"].type
    assert kept["list_sha256"].to_pylist() == ["0" * 64, "1" * 64]
    assert kept["list_key"].to_pylist() == ["k1", "k2"]
    said = [json.loads(data) for _, data in members_of(tmp_path / "pool")[2::3]]
    assert said[0]["when"].startswith("2024-01-02")
    assert (said[0]["raw"], said[0]["boxes"], said[0]["pair"]) == ("/wA=", [[0.5, None]], {"a": 1})
    assert (said[0]["number"], said[1]["number"], said[1]["price"]) == (1.5, None, "3.00")
    assert (said[0]["key"], said[0]["list_key"]) == ("000000000", "k1")


def test_a_pool_that_is_taken_away_meanwhile_is_not_called_done(server: HostileServer, tmp_path: Path) -> None:
    source, pool = photos(server, tmp_path), tmp_path / "pool"
    last = server.routes["/24.jpg"]
    assert callable(last)

    async def take_away(writer: asyncio.StreamWriter) -> None:
        shutil.rmtree(pool / "shards", ignore_errors=True)
        (pool / "sources.json").unlink()
        await last(writer)

    server.routes["/24.jpg"] = take_away
    with pytest.raises(StopError, match="was taken away or replaced while it was written"):
        run(pool, source)
    server.routes["/24.jpg"] = last
    assert run(pool, source).counts["ok"] == 25
    assert len(table_of(pool)) == 25


def test_a_table_of_ours_is_a_list_too(server: HostileServer, tmp_path: Path) -> None:
    first = {"url": server.url("/0.jpg"), "text": "a", "original_width": 7, "n": 1}
    pq.write_table(pa.Table.from_pylist([first]), tmp_path / "list.parquet")
    source = tmp_path / "list.parquet"
    for again in range(3):
        run(tmp_path / str(again), source)
        source = tmp_path / str(again) / "shards" / "00000000.parquet"
    (row,) = pq.read_table(source).to_pylist()
    widths = {name: value for name, value in row.items() if name.endswith("original_width")}
    assert widths == {
        "original_width": row["original_width"],
        "list_original_width": row["original_width"],
        "list_list_original_width": row["original_width"],
        "list_list_list_original_width": 7,
    }
    assert (row["n"], row["hash_ok"], row["uid"]) == (1, True, table_of(tmp_path / "0")[0]["uid"])
    ((_, said),) = [m for m in members_of(tmp_path / "2") if m[0].endswith(".json")]
    assert json.loads(said)["list_list_list_original_width"] == 7


def test_hashes_are_verified_against_the_list(server: HostileServer, tmp_path: Path) -> None:
    right = hashlib.md5(jpeg(0), usedforsecurity=False).hexdigest()
    records = [
        {"url": server.url("/0.jpg"), "text": "a", "sum": right},
        {"url": server.url("/1.jpg"), "text": "b", "sum": right},
        {"url": server.url("/2.jpg"), "text": "c", "sum": None},
    ]
    images = ImageSettings(image_size=32, verify_hash="md5", compute_hash="md5", on_mismatch="drop")
    settings = DownloadSettings(images, LIMITS, 10, verify_column="sum")
    source = listed(tmp_path, records)
    run(tmp_path / "pool", source, settings)
    rows = table_of(tmp_path / "pool")
    assert [r["error_code"] for r in rows] == [None, "hash_mismatch", None]
    assert rows[0]["status"] == "success"
    assert rows[1]["status"] == "failed_to_download"
    assert (rows[0]["md5"], rows[0]["sha256"]) == (right, hashlib.sha256(jpeg(0)).hexdigest())
    with pytest.raises(InputError, match=r"the list has no column 'md5' \(found: sum\)"):
        plan(tmp_path / "new", source, DownloadSettings(images, LIMITS, 10, verify_column="md5"))
    with pytest.raises(InputError, match="needs a column and a hash"):
        DownloadSettings(images, LIMITS, 10)


def test_metadata_of_the_pool_is_the_list_where_none_is_given(server: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "pool" / "metadata").mkdir(parents=True)
    given = f"{7:032x}"
    listed(tmp_path / "pool" / "metadata", [{"uid": given, "url": server.url("/0.jpg"), "text": "x"}], "m.parquet")
    summary = download(plan(tmp_path / "pool", None, SETTINGS), workers=0)
    assert summary.counts["ok"] == 1
    assert table_of(tmp_path / "pool")[0]["uid"] == given
    assert open_pool(tmp_path / "pool").kind in ("curate", "datacomp")


def test_a_full_disk_stops_the_run(server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate.stages import download_part

    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    monkeypatch.setattr(download_part, "spool_in", lambda folder: full.open("w+b", buffering=0))
    with pytest.raises(StopError, match="no space left") as caught:
        run(tmp_path / "pool", photos(server, tmp_path, 3))
    assert caught.value.exit_code == 1
    assert not [p for p in (tmp_path / "pool" / "shards").rglob("*") if p.is_file()]
