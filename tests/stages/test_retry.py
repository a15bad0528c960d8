"""A second attempt mends what it can, keeps all that was stored, and ends as one download would have."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from curate import receipts
from curate.errors import InputError
from curate.fetch import outage
from curate.fetch.addresses import CheckedResolver
from curate.fetch.settings import ImageSettings
from curate.pool import open_pool
from curate.runner import Summary
from curate.stages import retry as retrying
from curate.stages.download import DownloadSettings, download, plan
from tests.fetch import servers
from tests.fetch.servers import HostileServer, answer, running, status
from tests.stages.test_download import LIMITS, SETTINGS, jpeg, listed, members_of, photos, run, stored, table_of

BROKEN = {
    "/3.jpg": (status(404), "http_404"),
    "/7.jpg": (status(503), "http_503"),
    "/12.jpg": (servers.raw(b"HTTP/1.1 200 x\r\nContent-Length: 99\r\n\r\nxx", reset=True), "reset"),
    "/14.jpg": (b"<html>", "not_an_image"),
    "/24.jpg": (servers.silent(), "timeout"),
}


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({f"/{n}.jpg": answer(jpeg(n), Content_Type="image/jpeg") for n in range(30)})) as s:
        yield s


def spoil(server: HostileServer) -> None:
    server.routes |= {path: reply for path, (reply, _) in BROKEN.items()}


def mend(server: HostileServer) -> None:
    server.routes |= {path: answer(jpeg(int(path[1:-4])), Content_Type="image/jpeg") for path in BROKEN}


def again(pool: Path, *codes: str, workers: int = 0, images: ImageSettings | None = None) -> Summary:
    planned = retrying.plan(pool, codes, DownloadSettings(images or ImageSettings(), LIMITS))
    summary = retrying.retry(planned, workers=workers, connections=8)
    assert not summary.failed
    return summary


def codes_of(pool: Path) -> dict[int, str]:
    return {row["n"]: row["error_code"] for row in table_of(pool) if row["error_code"]}


@pytest.mark.parametrize("workers", [0, 2])
def test_what_may_pass_is_asked_for_again_and_the_rest_is_left(
    server: HostileServer, tmp_path: Path, workers: int
) -> None:
    spoil(server)
    pool, source = tmp_path / "pool", photos(server, tmp_path)
    run(pool, source)
    assert codes_of(pool) == {int(path[1:-4]): code for path, (_, code) in BROKEN.items()}
    before = dict(members_of(pool))
    mend(server)
    server.hits.clear()
    summary = again(pool, workers=workers)
    assert (summary.counts["asked_again"], summary.counts["mended"]) == (3, 3)
    assert server.hits == {"/7.jpg": 1, "/12.jpg": 1, "/24.jpg": 1}
    assert codes_of(pool) == {3: "http_404", 14: "not_an_image"}
    after = dict(members_of(pool))
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 3 * 3


def test_after_all_is_mended_the_pool_is_as_if_nothing_had_failed(server: HostileServer, tmp_path: Path) -> None:
    source = photos(server, tmp_path)
    run(tmp_path / "whole", source)
    spoil(server)
    pool = tmp_path / "pool"
    run(pool, source)
    mend(server)
    again(pool)
    summary = again(pool, "http_404", "not_an_image")
    assert summary.counts["mended"] == 2
    assert stored(pool) == stored(tmp_path / "whole")
    assert open_pool(pool).identity() == open_pool(tmp_path / "whole").identity()


def test_an_attempt_at_silent_hosts_alone_comes_to_its_end(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(self: CheckedResolver, host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(CheckedResolver, "_system", nobody)
    monkeypatch.setattr(outage, "ROWS", 8)
    rows = [{"url": f"http://host{n}.test/{n}.jpg", "text": "x", "n": n} for n in range(12)]
    pool, source = tmp_path / "pool", listed(tmp_path, rows)
    limits = replace(LIMITS, retries=0, outage_seconds=0.0)
    download(plan(pool, source, replace(SETTINGS, limits=limits)), workers=0)
    planned = retrying.plan(pool, ("dns",), DownloadSettings(ImageSettings(), replace(limits, outage_seconds=1.0)))
    summary = retrying.retry(planned, workers=0)
    assert (summary.counts["asked_again"], summary.counts["code:dns"]) == (12, 12)


def test_ledger_statistics_and_receipt_are_those_of_the_new_files(server: HostileServer, tmp_path: Path) -> None:
    spoil(server)
    pool = tmp_path / "pool"
    run(pool, photos(server, tmp_path, 10))
    mend(server)
    again(pool)
    shards = pool / "shards"
    ledger = pq.read_table(shards / "00000000_ledger.parquet").to_pylist()
    assert [row["attempt"] for row in ledger] == [0] * 7 + [1] + [0] * 2
    assert (ledger[7]["error_code"], ledger[7]["http_status"], ledger[7]["tries"]) == (None, 200, 1)
    assert ledger[3]["http_status"] == 404
    stats = json.loads((shards / "00000000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["status_dict"]) == (10, 9, {"success": 9, "http_404": 1})
    receipt = receipts.read_receipt(shards, "00000000")
    assert receipt is not None
    assert receipt.what["attempt"] == 1
    assert (receipt.counts["ok"], receipt.counts["code:http_404"], receipt.counts.get("code:http_503")) == (
        9,
        1,
        None,
    )
    for name, written in receipt.outputs.items():
        assert hashlib.sha256((shards / name).read_bytes()).hexdigest() == written.sha256


def test_parts_without_such_failures_are_not_touched(server: HostileServer, tmp_path: Path) -> None:
    spoil(server)
    pool = tmp_path / "pool"
    run(pool, photos(server, tmp_path))
    before = {path.name: path.stat().st_ino for path in (pool / "shards").glob("*.tar")}
    mend(server)
    again(pool, "timeout")
    after = {path.name: path.stat().st_ino for path in (pool / "shards").glob("*.tar")}
    assert {name for name in before if before[name] != after[name]} == {"00000002.tar"}


def test_what_fails_again_says_what_it_failed_of_now(server: HostileServer, tmp_path: Path) -> None:
    spoil(server)
    pool = tmp_path / "pool"
    run(pool, photos(server, tmp_path, 10))
    server.routes["/7.jpg"] = status(410)
    summary = again(pool)
    assert (summary.counts["asked_again"], summary.counts["mended"]) == (1, 0)
    assert codes_of(pool)[7] == "http_410"
    summary = again(pool)
    assert summary.counts["asked_again"] == 0


def test_each_attempt_has_a_number_and_one_that_was_broken_off_goes_on(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(server)
    pool = tmp_path / "pool"
    run(pool, photos(server, tmp_path))
    mend(server)
    part, seen = retrying.retry_part, []

    def broken(output: object, tick: object, folder: object, name: str, *rest: object) -> object:
        seen.append(name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return part(output, tick, folder, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(retrying, "retry_part", broken)
    with pytest.raises(KeyboardInterrupt):
        again(pool)
    monkeypatch.setattr(retrying, "retry_part", part)
    told = json.loads((pool / "attempts.json").read_text())
    assert told["attempts"] == [{"number": 1, "codes": [], "done": False}]
    server.hits.clear()
    summary = again(pool)
    # the totals are those of the whole attempt
    assert (summary.counts["asked_again"], summary.counts["mended"]) == (3, 3)
    assert sum(server.hits.values()) == 2
    again(pool, "http_404")
    told = json.loads((pool / "attempts.json").read_text())
    assert told["attempts"] == [
        {"number": 1, "codes": [], "done": True},
        {"number": 2, "codes": ["http_404"], "done": True},
    ]


def test_the_download_goes_on_beside_attempts(server: HostileServer, tmp_path: Path) -> None:
    spoil(server)
    pool, source = tmp_path / "pool", photos(server, tmp_path)
    run(pool, source)
    mend(server)
    again(pool)
    server.hits.clear()
    summary = run(pool, source)
    assert not server.hits
    assert (summary.skipped, summary.counts["ok"]) == (3, 23)


def test_hashes_boxes_and_columns_of_the_list_are_known_again(server: HostileServer, tmp_path: Path) -> None:
    server.routes["/0.jpg"] = server.routes["/1.jpg"] = status(503)
    records = [
        {
            "url": server.url(f"/{n}.jpg"),
            "text": f"photo {n}",
            "n": n,
            "sha256": "an older one",
            "list_sha256": hashlib.sha256(jpeg(n if n != 1 else 99)).hexdigest(),
            "face_bboxes": [[0.1, 0.1, 0.6, 0.6]] if n != 2 else [],
        }
        for n in range(4)
    ]
    source = listed(tmp_path, records)
    images = replace(SETTINGS.images, on_mismatch="drop", verify_hash="sha256")
    settings = replace(SETTINGS, images=images, verify_column="list_sha256")
    pool = tmp_path / "pool"
    download(plan(pool, source, settings), workers=0).raise_failed()
    for n in (0, 1):
        server.routes[f"/{n}.jpg"] = answer(jpeg(n), Content_Type="image/jpeg")
    download(plan(tmp_path / "whole", source, settings), workers=0).raise_failed()
    again(pool)
    assert codes_of(pool) == {1: "hash_mismatch"}
    assert stored(pool) == stored(tmp_path / "whole")
    assert table_of(pool)[0]["hash_ok"] is True


def test_images_that_are_no_longer_what_was_stored_are_not_copied(server: HostileServer, tmp_path: Path) -> None:
    spoil(server)
    pool = tmp_path / "pool"
    run(pool, photos(server, tmp_path, 10))
    mend(server)
    tar = pool / "shards" / "00000000.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(b"\xff\xd8\xff", 4096)
    data[at + 200] ^= 0xFF
    tar.write_bytes(data)
    planned = retrying.plan(pool, (), DownloadSettings(ImageSettings(), LIMITS))
    summary = retrying.retry(planned, workers=0)
    assert "does not hold the image of 00000000" in str(summary.failed["00000000"])
    assert tar.read_bytes() == bytes(data)
    assert receipts.read_receipt(pool / "shards", "00000000") is not None
    # the attempt has ended, so that one rotten part does not keep all others from the next
    assert json.loads((pool / "attempts.json").read_text())["attempts"][0]["done"] is True
    assert retrying.plan(pool, (), DownloadSettings(ImageSettings(), LIMITS)).number == 2


def test_files_of_this_machine_are_not_asked_for_again(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(0))
    (folder / "b.jpg").write_bytes(b"<html>")
    pool = tmp_path / "pool"
    download(plan(pool, folder, SETTINGS), workers=0).raise_failed()
    assert [row["error_code"] for row in table_of(pool)] == [None, "not_an_image"]
    assert retrying.plan(pool, ("not_an_image",), DownloadSettings(ImageSettings(), LIMITS)).rows == 0


@pytest.mark.parametrize(
    ("codes", "message", "hint"),
    [
        (("tiemout",), "--codes: no error code 'tiemout'", "did you mean 'timeout'?"),
        (("blocked",), "--codes: blocked is never tried again", "leave it out"),
        (("http_40",), "--codes: no error code 'http_40'", None),
    ],
)
def test_codes_that_mean_nothing_are_refused(
    server: HostileServer, tmp_path: Path, codes: tuple[str, ...], message: str, hint: str | None
) -> None:
    pool = tmp_path / "pool"
    run(pool, photos(server, tmp_path, 3))
    with pytest.raises(InputError, match=message) as caught:
        retrying.plan(pool, codes, DownloadSettings(ImageSettings(), LIMITS))
    assert caught.value.exit_code == 2
    if hint:
        assert caught.value.hint == hint
    assert not (pool / "attempts.json").exists()


def test_a_pool_without_a_download_has_nothing_to_go_over(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    with pytest.raises(InputError, match="has no download of curate's to go over again"):
        retrying.plan(tmp_path / "pool", (), DownloadSettings(ImageSettings(), LIMITS))


def test_other_settings_than_the_download_s_are_refused(server: HostileServer, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    run(pool, photos(server, tmp_path, 3))
    with pytest.raises(InputError, match=r"other settings \(image-size was 32, is 64; \w{12} then, \w{12} now\)"):
        retrying.plan(pool, (), DownloadSettings(ImageSettings(image_size=64), LIMITS))
    with pytest.raises(InputError, match=r"\(max-bytes was 300000, is 99; \w{12} then, \w{12} now\)"):
        retrying.plan(pool, (), DownloadSettings(ImageSettings(), replace(LIMITS, max_bytes=99)))
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("0" * 64 + "\n")
    with pytest.raises(InputError, match="is not that of the download"):
        retrying.plan(pool, (), DownloadSettings(ImageSettings(), replace(LIMITS, block_list=str(blocked))))


def test_blocked_samples_leave_no_trace_and_are_never_asked_for(
    server: HostileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.routes["/2.jpg"] = status(503)
    blocked = tmp_path / "blocked.txt"
    url = server.url("/0.jpg")
    blocked.write_text(f"{hashlib.sha256(url.encode()).hexdigest()}\n{hashlib.md5(jpeg(1)).hexdigest()}\n")
    limits = replace(LIMITS, block_list=str(blocked))
    pool = tmp_path / "pool"
    with caplog.at_level(logging.DEBUG):
        run(pool, photos(server, tmp_path, 4), DownloadSettings(SETTINGS.images, limits, samples_per_shard=10))
        server.routes["/2.jpg"] = answer(jpeg(2), Content_Type="image/jpeg")
        server.hits.clear()
        planned = retrying.plan(pool, (), DownloadSettings(ImageSettings(), limits))
        retrying.retry(planned, workers=0)
    assert server.hits == {"/2.jpg": 1}
    rows = table_of(pool)
    assert [row["error_code"] for row in rows] == ["blocked", "blocked", None, None]
    for row in rows[:2]:
        told = {name for name, value in row.items() if value is not None}
        assert told == {"uid", "key", "status", "error_code"}
    written = b"".join(
        path.read_bytes() for path in pool.rglob("*") if path.is_file() and path.suffix != ".parquet"
    )
    for trace in (url, server.url("/1.jpg"), hashlib.sha256(jpeg(1)).hexdigest()):
        assert trace.encode() not in written
        assert trace not in caplog.text


def test_a_disk_that_is_too_small_is_refused(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(server)
    pool = tmp_path / "pool"
    run(pool, photos(server, tmp_path))
    planned = retrying.plan(pool, (), DownloadSettings(ImageSettings(), LIMITS))
    assert len(planned.parts) == 3
    sizes = sorted(sum(w.bytes for w in receipt.outputs.values()) for receipt in planned.parts.values())
    needed = 2 * sum(sizes[-2:])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    retrying.check_space(planned, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(InputError, match=f"writing 2 shards anew takes .*{needed:,} and {needed - 1:,} bytes"):
        retrying.check_space(planned, 1)
