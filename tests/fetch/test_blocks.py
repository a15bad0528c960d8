"""What is on a block list is not asked for, at any hop, and nothing more is said of it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from curate.errors import InputError
from curate.fetch import blocks
from curate.fetch.http import Fetched, Fetcher, FetchLimits
from tests.fetch.servers import HostileServer, redirect, running

URL = "http://a.example/b\u00fccher 1.jpg"
NORMAL = "http://a.example/b%C3%BCcher%201.jpg"
ALGORITHMS = ("md5", "sha1", "sha256")


def digest(data: str | bytes, algorithm: str = "sha256") -> str:
    return hashlib.new(algorithm, data.encode() if isinstance(data, str) else data).hexdigest()


def listed(text: str) -> blocks.BlockList:
    return blocks.read(io.BytesIO(text.encode()), "LIST")


# --- the list ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("form", ["{}", "{}\r", "  {}\t# why", "{name}:{}", "{name}: {}", "\ufeff{}"])
def test_digests_of_images_and_urls(algorithm: str, form: str) -> None:
    lines = [digest(data, algorithm) for data in (b"image", URL)]
    text = "\n".join(["# of ours", "", *(form.format(line, name=algorithm.upper()) for line in lines)])
    found = listed(text)
    assert len(found) == 2
    assert found.has_bytes(b"image")
    assert found.has_url(URL)
    assert not found.has_bytes(b"another")
    assert not found.has_url(NORMAL)  # the digest is of the spelling that the list gave
    assert not found.has_url("http://a.example/")
    assert not found.has_url("not a URL")


def test_a_url_is_found_by_its_normal_form() -> None:
    found = listed(digest(NORMAL, "sha1"))
    assert found.has_url(URL)
    assert found.has_url(f" {URL}#top\n")
    assert found.has_url(NORMAL)


def test_a_digest_of_urls_alone_is_not_of_images() -> None:
    found = listed(f"url:{digest(URL)}\nurl:md5:{digest(b'image', 'md5')}\nURL: {digest('x', 'sha1').upper()}")
    assert found.has_url(URL)
    assert found.has_url("x")
    assert not found.has_bytes(b"image")
    assert not found.has_bytes(URL.encode())


def test_every_digest_is_found_also_one_that_ends_in_zeros() -> None:
    bodies = [str(n).encode() for n in range(3_000)]
    assert any(digest(body).endswith("00") for body in bodies)
    assert any(digest(body, "md5").endswith("00") for body in bodies)
    for text in ("\n".join(map(digest, bodies)), "\n".join(digest(b, "md5") + " #" for b in bodies)):
        found = listed(text)
        assert all(map(found.has_bytes, bodies))
        assert not any(found.has_bytes(b"x" + body) for body in bodies)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (digest("a")[:-1], "found 63 characters, '{}...'".format(digest("a")[:8])),
        (digest("a") + "0", "found 65 characters"),
        ("sha1:" + digest("a"), "found 69 characters, 'sha1:"),
        ("sha512:" + digest("a", "sha256") * 2, "found 135 characters"),
        ("http://a.example/1.jpg", "found 22 characters, 'http://a...'"),
        ("g" * 32, "found 32 characters, 'gggggggg...'"),
        ("abc", "found 3 characters, 'abc'"),
        (f"{digest('a')}, {digest('b')}", "found 130 characters"),
        ("\x1b[31m", "found 5 characters, '\\x1b[31m'"),
    ],
)
def test_anything_else_is_refused_by_its_line(line: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        listed(f"{digest('x')}\n# remark\n\n{line}\n{digest('y')}\n")
    assert str(caught.value).startswith("LIST: line 4 is no digest (")
    assert what in str(caught.value)
    assert digest("a") not in str(caught.value)


def test_lines_are_counted_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 100)
    lines = [digest(str(n), ALGORITHMS[n // 20 % 3]) for n in range(99)]
    found = listed("\n".join(lines))
    assert all(found.has_url(str(n)) for n in range(99))
    with pytest.raises(InputError, match="line 100 is no digest"):
        listed("\n".join([*lines, "nonsense"]))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(InputError, match="no such block list"):
        blocks.load(str(path))
    path.write_text("# nothing yet\n\n")
    with pytest.raises(InputError, match="holds no digest"):
        blocks.load(str(path))
    path.write_text(digest("a"))
    first = blocks.load(str(path))
    assert blocks.load(str(path)) is first
    assert first.sha256 == digest(path.read_bytes())
    path.write_text(digest("b") + "\n" + digest("c"))
    assert blocks.load(str(path)).has_url("b")
    with pytest.raises(InputError, match="cannot be read"):
        blocks.load(str(tmp_path))


def test_a_long_list_is_read_fast_and_small() -> None:
    packed = os.urandom(32 * 400_000)
    text = packed.hex("\n", 32).encode()
    start = time.process_time()
    found = blocks.read(io.BytesIO(text), "LIST")
    assert time.process_time() - start < 2
    assert len(found) == 400_000
    assert sum(d.nbytes for d in found.digests.values()) == len(packed)


# --- fetching ---------------------------------------------------------------------------------------------

LIMITS = FetchLimits(total_seconds=1, allow_private=True)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with running(HostileServer({"/ok": b"body", "/bad": b"body"})) as started:
        yield started


def fetch(server: HostileServer, path: str, blocked: list[str], tmp_path: Path) -> Fetched:
    file = tmp_path / "blocked.txt"
    file.write_text("\n".join(digest(url, "md5") for url in blocked))

    async def one() -> Fetched:
        async with Fetcher(replace(LIMITS, block_list=str(file))) as fetcher:
            return await fetcher.fetch(server.url(path))

    return asyncio.run(one())


def is_blank(got: Fetched) -> bool:
    return (got.body, got.error_message, got.final_url, got.http_status, got.content_type, got.address) == (
        None,
    ) * 6 and got.headers == {}


def test_a_blocked_url_is_not_asked_for(
    server: HostileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    got = fetch(server, "/bad", [server.url("/bad")], tmp_path)
    assert (got.error_code, got.tries, got.seconds) == ("blocked", 0, 0.0)
    assert is_blank(got)
    assert server.connections == 0
    assert fetch(server, "/ok", [server.url("/bad")], tmp_path).body == b"body"
    assert "/bad" not in caplog.text
    assert digest(server.url("/bad"), "md5")[:8] not in caplog.text


def test_a_redirect_to_a_blocked_url_is_not_followed(server: HostileServer, tmp_path: Path) -> None:
    server.routes |= {"/go": redirect("/bad"), "/far": redirect("/go")}
    got = fetch(server, "/far", [server.url("/bad")], tmp_path)
    assert (got.error_code, got.tries) == ("blocked", 1)
    assert is_blank(got)
    assert server.hits == {"/far": 1, "/go": 1}


def test_a_block_list_that_is_wrong_stops_the_fetcher(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("x")
    with pytest.raises(InputError, match="line 1 is no digest"):
        Fetcher(replace(LIMITS, block_list=str(tmp_path / "list")))
