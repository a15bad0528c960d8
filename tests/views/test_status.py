from __future__ import annotations

import json
import os
import shlex
import socket
from pathlib import Path

import pytest

from curate.disk import lock
from curate.pool import open_pool
from curate.pool.adopt import adopt
from curate.receipts import write_json
from curate.views.status import lines, status
from tests.commands.cli import curate
from tests.fetch.servers import HostileServer, answer, raw, running
from tests.pools import (
    jpeg,
    make_img2dataset,
    make_metadata,
    make_pool,
    make_selection,
    uid_of,
    url_of,
)


def some_fail(shard: int, row: int) -> str | None:
    return {(0, 1): "http_404", (1, 0): "http_404", (1, 2): "timeout"}.get((shard, row))


def snapshot(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_our_pool(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, 2, 4, fails=some_fail)
    make_selection(pool, [uid_of(0, 0)])
    before = snapshot(tmp_path)
    told = status(open_pool(tmp_path))
    assert snapshot(tmp_path) == before
    assert json.loads(json.dumps(told)) == told
    assert (told["kind"], told["samples"], told["parts"], told["shards"]) == ("curate", 8, 2, 2)
    assert (told["stored"], told["failed"]) == (5, {"http_404": 2, "timeout": 1})
    assert told["selections"] == [
        {
            "selection": "chosen",
            "samples": 8,
            "kept": 1,
            "dropped": 7,
            "unjudged": 0,
            "latest": True,
            "stale": False,
        }
    ]
    for empty in ("missing", "foreign", "unfinished", "running", "models", "scores"):
        assert not told[empty]
    assert not told["unreadable"]
    text = "\n".join(lines(told))
    assert "samples   8 in 2 parts" in text
    assert "2: 5 images stored, 3 failed (62.5% success)" in text
    assert "selection chosen: 1 of 8 kept (latest)" in text


def test_an_older_selection_is_stale(tmp_path: Path) -> None:
    make_selection(make_pool(tmp_path, 1, 2), [uid_of(0, 0)])
    told = status(make_pool(tmp_path, 2, 2))
    assert told["selections"][0]["stale"]
    assert "(latest, stale)" in "\n".join(lines(told))


def test_broken_and_missing_files(tmp_path: Path) -> None:
    make_pool(tmp_path, 3, 4)
    folder = tmp_path / "shards"
    (folder / "00000000.tar").unlink()
    tar = folder / "00000001.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    (folder / "00000002.parquet").write_bytes(bytes(4000))
    told = status(open_pool(tmp_path))
    found = {Path(m["path"]).name: m["found"] for m in told["missing"]}
    assert found["00000000.tar"] == "is missing"
    assert found["00000001.tar"].startswith("has 1,000 of ")
    assert list(told["unreadable"]) == ["00000002"]
    assert "00000002.parquet: is not a readable Parquet file" in told["unreadable"]["00000002"]
    assert told["samples"] == 8


def test_a_download_that_has_not_finished(tmp_path: Path) -> None:
    make_pool(tmp_path, 2, 2)
    write_json(tmp_path / "sources.json", {"format": 1, "sources": [{"shards": 3}]})
    told = status(open_pool(tmp_path))
    assert told["awaited"] == 1
    assert "awaited   1 shard of the list not here yet" in "\n".join(lines(told))
    write_json(tmp_path / "sources.json", {"format": 1, "sources": [{"shards": 2}]})
    assert status(open_pool(tmp_path))["awaited"] == 0


def test_a_download_that_has_not_finished_a_shard(tmp_path: Path) -> None:
    """Nothing of what it began is called foreign."""
    write_json(tmp_path / "sources.json", {"format": 1, "sources": [{"shards": 3}]})
    (tmp_path / "shards" / "_receipts").mkdir(parents=True)
    told = status(open_pool(tmp_path))
    assert (told["samples"], told["awaited"], told["foreign"]) == (0, 3, [])


def test_what_is_not_ours_is_named(tmp_path: Path) -> None:
    make_pool(tmp_path, 1, 2)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "backup" / "deep").mkdir(parents=True)
    (tmp_path / "backup" / "deep" / "x").write_text("mine")
    (tmp_path / "shards" / "00000007.tar").write_text("no receipt")
    (tmp_path / "shards" / "00000000.parquet.tmp").write_text("half")
    told = status(open_pool(tmp_path))
    assert sorted(told["foreign"]) == [str(tmp_path / n) for n in ("backup", "notes.txt", "shards/00000007.tar")]
    assert told["unfinished"] == [str(tmp_path / "shards/00000000.parquet.tmp")]
    assert told["shards"] == 1
    text = "\n".join(lines(told))
    assert f"foreign   {tmp_path / 'notes.txt'} (ignored)" in text
    assert "left over" in text


def test_who_is_writing(tmp_path: Path) -> None:
    make_pool(tmp_path, 1, 2)
    receipts = tmp_path / "shards/_receipts"
    (receipts / "00000001.lock").write_text(f"process 999999999 on {socket.gethostname()} (curate download)")
    with lock(receipts / "00000002.lock"):
        told = status(open_pool(tmp_path))
    assert len(told["running"]) == 1
    assert told["running"][0].startswith(f"process {os.getpid()} on ")
    assert not told["foreign"]


@pytest.mark.parametrize("adopted", [False, True])
def test_img2datasets_pool(tmp_path: Path, adopted: bool) -> None:
    make_img2dataset(tmp_path, 2, 4, fails=some_fail)
    (tmp_path / "_tmp").mkdir()
    if adopted:
        adopt(open_pool(tmp_path), workers=0)
    before = snapshot(tmp_path)
    told = status(open_pool(tmp_path))
    assert snapshot(tmp_path) == before
    assert (told["kind"], told["samples"], told["stored"]) == ("img2dataset", 8, 5)
    assert told["failed"] == {"http_404": 2, "timeout": 1}
    assert told["foreign"] == [str(tmp_path / "_tmp")]
    assert not told["unreadable"]


def test_tars_not_read_yet(tmp_path: Path) -> None:
    make_img2dataset(tmp_path, 2, 3)
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    told = status(open_pool(tmp_path))
    assert (told["kind"], told["stored"], told["failed"]) == ("tars", None, None)
    assert "2, not read yet" in "\n".join(lines(told))


def test_metadata_alone(tmp_path: Path) -> None:
    rows = [
        {"uid": uid_of(0, r), "url": url_of(0, r), "text": "x", "clip_l14_similarity_score": 0.3} for r in range(5)
    ]
    make_metadata(tmp_path, rows)
    (tmp_path / "metadata/.cache").mkdir()
    told = status(open_pool(tmp_path))
    assert (told["kind"], told["samples"], told["shards"]) == ("metadata", 5, 0)
    assert told["models"] == [{"model": "ViT-L-14/openai", "published": True}]
    assert told["foreign"] == [str(tmp_path / "metadata/.cache")]
    assert "model     ViT-L-14/openai: published" in "\n".join(lines(told))


def test_work_folder(tmp_path: Path) -> None:
    make_img2dataset(tmp_path / "pool", 1, 3)
    adopt(open_pool(tmp_path / "pool", tmp_path / "work"), workers=0)
    told = status(open_pool(tmp_path / "pool", tmp_path / "work"))
    assert (told["samples"], told["foreign"], told["missing"]) == (3, [], [])
    (tmp_path / "work/derived/00000.parquet").unlink()
    told = status(open_pool(tmp_path / "pool", tmp_path / "work"))
    assert [m["path"] for m in told["missing"]] == [str(tmp_path / "work/derived/00000.parquet")]


def test_a_real_download_and_an_attempt(tmp_path: Path) -> None:
    """What the commands write is what status reads, and the command that it names is one."""
    pool, source = tmp_path / "pool", tmp_path / "list.txt"
    gone = {f"/gone{n}": answer(b"no", code=404) for n in range(3)}
    broken = {f"/broken{n}": raw(b"", reset=True) for n in range(5)}
    images = {f"/{n}.jpg": jpeg(n) for n in range(3)} | {f"/same{n}.jpg": jpeg(9) for n in range(12)}
    flags = ("--allow-private-hosts", "--retries", "0", "--workers", "0")
    with running(HostileServer({**gone, **broken, **images})) as server:
        source.write_text("\n".join(server.url(path) for path in server.routes))
        curate("download", "--source", source, "--pool", pool, *flags)
        told = status(open_pool(pool))["download"]
        host = f"127.0.0.1:{server.port}"
        assert told["hosts"] == [{"host": host, "failed": 8, "requests": 23, "code": "reset"}]
        assert (told["placeholders"], told["hash_mismatches"]) == (12, 0)
        assert [(p["samples"], p["host"]) for p in told["pictures"]] == [(12, host)]
        assert told["received_bytes"] >= sum(map(len, images.values()))
        server.routes |= dict.fromkeys(broken, jpeg(5))
        again = shlex.split(told["again"]["command"])
        assert curate(*again[1:], *flags).code == 0
        told = status(open_pool(pool))["download"]
        assert (told["stored"], told["again"]["transient"], told["received_bytes"]) == (20, 0, None)
        assert [a["done"] for a in told["attempts"]] == [True]
