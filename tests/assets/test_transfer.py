from __future__ import annotations

import hashlib
import http.client
import re
import resource
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate import assets, disk
from curate.assets import transfer
from curate.errors import InputError, StopError
from tests.assets.conftest import BODY, Publish, Publisher

SHA256 = hashlib.sha256(BODY).hexdigest()
PART = ".thing.bin.part"
HALF = len(BODY) // 2


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def leave_part(cache: Path, publisher: Publisher, size: int) -> None:
    """What a fetch leaves that was killed after `size` bytes."""
    publisher.cuts = [size, 0]
    with pytest.raises(InputError):
        assets.find("thing")
    assert (cache / PART).stat().st_size == size
    publisher.asked.clear()


def test_once_then_from_the_cache(cache: Path, publisher: Publisher, publish: Publish) -> None:
    publish("/moved")
    assert assets.find("thing") == (cache / "thing.bin", SHA256)
    assert assets.find("thing") == (cache / "thing.bin", SHA256)
    assert [path for path, *_ in publisher.asked] == ["/moved", "/file"]
    assert names(cache) == [".thing.bin.checked", "thing.bin"]
    assert (cache / "thing.bin").read_bytes() == BODY


def test_a_break_is_gone_on_with_at_once(cache: Path, publisher: Publisher, publish: Publish) -> None:
    publish()
    publisher.cuts = [1000, 500]
    assert assets.find("thing")[1] == SHA256
    assert publisher.asked == [
        ("/file", None, None),
        ("/file", "bytes=1000-", '"one"'),
        ("/file", "bytes=1500-", '"one"'),
    ]
    assert names(cache) == [".thing.bin.checked", "thing.bin"]


def test_what_a_broken_fetch_brought_is_kept_for_the_next(
    cache: Path, publisher: Publisher, publish: Publish
) -> None:
    publish()
    publisher.cuts = [HALF, 0]
    with pytest.raises(InputError, match=rf"127\.0\.0\.1 did not give it .it broke off at byte {HALF:,} of"):
        assets.find("thing")
    assert names(cache) == [PART, f"{PART}.json"]
    assert assets.find("thing")[1] == SHA256
    assert publisher.asked[-1] == ("/file", f"bytes={HALF}-", '"one"')
    assert names(cache) == [".thing.bin.checked", "thing.bin"]


def test_another_version_on_the_server_starts_again(cache: Path, publisher: Publisher, publish: Publish) -> None:
    publish()
    publisher.body = b"older" * 1000
    leave_part(cache, publisher, 100)
    publisher.body, publisher.etag = BODY, '"two"'
    assert assets.find("thing")[1] == SHA256
    assert publisher.asked == [("/file", "bytes=100-", '"one"')]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_validator_the_digest_decides(
    cache: Path, publisher: Publisher, publish: Publish, etag: str | None
) -> None:
    publish()
    publisher.etag, publisher.body = etag, b"older" * 1000
    leave_part(cache, publisher, 100)
    publisher.body = BODY
    assert assets.find("thing")[1] == SHA256
    assert publisher.asked == [("/file", "bytes=100-", None), ("/file", None, None)]


def test_a_server_without_ranges_starts_again(cache: Path, publisher: Publisher, publish: Publish) -> None:
    publish()
    leave_part(cache, publisher, HALF)
    publisher.ranges = False
    assert assets.find("thing")[1] == SHA256
    assert publisher.asked == [("/file", f"bytes={HALF}-", '"one"')]


def test_killed_between_the_last_byte_and_the_rename(cache: Path, publisher: Publisher, publish: Publish) -> None:
    publish()
    leave_part(cache, publisher, HALF)
    (cache / PART).write_bytes(BODY)
    assert assets.find("thing")[1] == SHA256
    assert publisher.asked == [("/file", f"bytes={len(BODY)}-", '"one"')]


def test_a_part_longer_than_the_file_is_thrown_away(cache: Path, publisher: Publisher, publish: Publish) -> None:
    publish()
    leave_part(cache, publisher, HALF)
    (cache / PART).write_bytes(BODY + b"!")
    assert assets.find("thing")[1] == SHA256
    assert [wanted for _, wanted, _ in publisher.asked] == [f"bytes={len(BODY) + 1}-", None]


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"digest": "sha256:00", "validator": "x"}'])
def test_a_part_of_another_publication_is_thrown_away(
    cache: Path, publisher: Publisher, publish: Publish, note: str
) -> None:
    publish()
    leave_part(cache, publisher, HALF)
    (cache / f"{PART}.json").write_text(note)
    assert assets.find("thing")[1] == SHA256
    assert publisher.asked == [("/file", None, None)]


@pytest.mark.parametrize(
    ("path", "digest", "says"),
    [
        (
            "/file",
            "sha256:" + "0" * 64,
            rf"/file sent is not the published file .its sha256 is {SHA256}, not 0{{64}}",
        ),
        ("/gone", "", r"thing\.bin is not on this machine, and 127\.0\.0\.1 did not give it .404 Not Found"),
    ],
)
def test_a_bad_answer_leaves_nothing(cache: Path, publish: Publish, path: str, digest: str, says: str) -> None:
    publish(path, digest)
    with pytest.raises(InputError, match=says) as error:
        assets.find("thing")
    assert error.value.exit_code == 2
    assert names(cache) == []


def test_no_network_names_the_host_and_three_ways(
    cache: Path, publish: Publish, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.port = 9  # discard: nobody listens
    publish()
    with pytest.raises(InputError, match=r"127\.0\.0\.1 did not give it .*refused") as error:
        assets.find("thing")
    hint = error.value.hint or ""
    assert publisher.url() in hint
    assert "$CURATE_ASSETS" in hint
    assert str(cache) in hint
    assert "--asset thing=FILE" in hint


@pytest.mark.parametrize("said", [True, False])
def test_too_much_is_refused(cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, said: bool) -> None:
    publish(most=100)
    if not said:
        monkeypatch.setattr(http.client.HTTPMessage, "get", lambda self, name, default=None: default)
    with pytest.raises(InputError, match="more than 100 bytes"):
        assets.find("thing")
    assert names(cache) == []


def test_what_is_said_meanwhile(
    cache: Path,
    publisher: Publisher,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish()
    publisher.body = BODY * 100  # of the wrong digest
    monkeypatch.setattr("curate.progress.INTERVAL", 0.0)
    leave_part(cache, publisher, 100_000)
    with caplog.at_level("INFO", "curate"), pytest.raises(InputError, match="is not the published file"):
        assets.find("thing")
    assert "fetching thing.bin (licence: MIT) from 127.0.0.1, from byte 100,000 on" in caplog.text
    assert re.search(r"^fetching thing\.bin: 1\.0 of 1\.0 MB, [\d.]+ MB/s", capsys.readouterr().err, re.MULTILINE)


def test_two_at_once_fetch_once(cache: Path, publisher: Publisher, publish: Publish) -> None:
    publish()
    arrived, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        assert go_on.wait(5)

    publisher.before = hold
    found: list[tuple[Path, str]] = []
    first = threading.Thread(target=lambda: found.append(assets.find("thing")))
    first.start()
    assert arrived.wait(5)
    second = threading.Thread(target=lambda: found.append(assets.find("thing")))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "it waits for the first"
    go_on.set()
    first.join(5)
    second.join(5)
    assert found == [(cache / "thing.bin", SHA256)] * 2
    assert len(publisher.asked) == 1


CHILD = """
import sys
from curate import assets
from curate.assets import Asset, PublishedFile
url, digest = sys.argv[1:]
assets.REGISTRY["thing"] = Asset("thing", (PublishedFile("thing.bin", url, digest, 1 << 20),), "MIT", "a test")
assets.find("thing")
"""


def test_killed_in_the_middle_it_is_gone_on_with(cache: Path, publisher: Publisher, publish: Publish) -> None:
    publisher.body = BODY * 20
    asset = publish(digest="sha256:" + hashlib.sha256(publisher.body).hexdigest())
    killed = threading.Event()
    publisher.cuts, publisher.after = [3 * HALF], lambda: None if killed.wait(20) else pytest.fail("not killed")
    words = [sys.executable, "-c", CHILD, asset.files[0].url, asset.files[0].digest]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as child:
        part, give_up = cache / PART, time.monotonic() + 20
        while not (part.exists() and part.stat().st_size) and time.monotonic() < give_up:
            time.sleep(0.01)
        child.kill()
    killed.set()
    publisher.after = lambda: None
    have = part.stat().st_size
    assert have
    assert ".thing.bin.lock" in names(cache), "the file stays, the lock does not"
    assert assets.find("thing")[0].read_bytes() == publisher.body
    assert publisher.asked[1:] == [("/file", f"bytes={have}-", '"one"')]
    assert names(cache) == [".thing.bin.checked", "thing.bin"]


@pytest.fixture
def small_files() -> Iterator[int]:
    """The bytes that a file may have, no more than 1000 over half of the body."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF + 1000, before[1]))
    yield HALF + 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_and_keeps_what_came(cache: Path, publish: Publish, small_files: int) -> None:
    publish()
    with pytest.raises(StopError, match="may not grow as large") as error:
        assets.find("thing")
    assert error.value.exit_code == 1
    assert (cache / PART).stat().st_size == small_files


def test_a_cache_that_is_no_folder_is_named(cache: Path, publish: Publish) -> None:
    publish()
    disk.make_folder(cache.parent)
    cache.write_text("")
    with pytest.raises(InputError, match="cannot be written") as error:
        assets.find("thing")
    assert error.value.where == str(cache)


def test_never_redirected_away_from_encryption() -> None:
    handler = transfer._NoDowngrade()
    request = urllib.request.Request("https://example.org/a")
    with pytest.raises(urllib.error.URLError, match="away from https"):
        handler.redirect_request(request, None, 302, "", {}, "http://example.org/a")
    assert handler.redirect_request(request, None, 302, "", {}, "https://example.net/a") is not None
