"""A publisher on 127.0.0.1, and a cache of its own for each test."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curate import assets
from curate.assets import Asset, PublishedFile

BODY = bytes(range(256)) * 40


@dataclass
class Publisher:
    """What is served, how, and what was asked for."""

    port: int = 0
    body: bytes = BODY
    etag: str | None = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """After so many bytes of its body the next answer breaks off; answers without an entry are whole."""
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, Range and If-Range of each request."""
    before: Callable[[], None] = lambda: None
    """Run when a request has come, before it is answered."""
    after: Callable[[], None] = lambda: None
    """Run when the body has been sent, before the connection is closed."""

    def url(self, path: str = "/file") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        wanted, version = to.headers["Range"], to.headers["If-Range"]
        self.asked.append((to.path, wanted, version))
        self.before()
        if to.path == "/gone":
            return to.send_error(404)
        if to.path == "/moved":
            to.send_response(302)
            to.send_header("Location", "/file")
            to.send_header("Content-Length", "0")
            return to.end_headers()
        begin = 0
        if wanted and self.ranges and version in (None, self.etag):
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if begin and begin >= len(self.body):
            to.send_response(416)
            to.send_header("Content-Range", f"bytes */{len(self.body)}")
            to.send_header("Content-Length", "0")
            return to.end_headers()
        to.send_response(206 if begin else 200)
        if begin:
            to.send_header("Content-Range", f"bytes {begin}-{len(self.body) - 1}/{len(self.body)}")
        if self.etag:
            to.send_header("ETag", self.etag)
        to.send_header("Content-Length", str(len(self.body) - begin))
        to.end_headers()
        rest = self.body[begin:]
        to.wfile.write(rest[: self.cuts.pop(0)] if self.cuts else rest)
        to.wfile.flush()
        self.after()
        return None


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    serving = Publisher()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            serving.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.port = httpd.server_address[1]
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield serving
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CURATE_ASSETS", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield tmp_path / "cache" / "curate" / "assets"
    assets.give({})


Publish = Callable[..., Asset]


@pytest.fixture
def publish(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Registers asset `thing`: one file, or one for each of `variants`, or one for each of `names`."""

    def published(
        path: str = "/file",
        digest: str = "",
        *,
        most: int = 1 << 20,
        variants: tuple[str, ...] = (),
        names: tuple[str, ...] = ("thing.bin",),
    ) -> Asset:
        digest = digest or "sha256:" + hashlib.sha256(BODY).hexdigest()
        files = [(f"{v}.bin", v) for v in variants] or [(name, "") for name in names]
        made = tuple(PublishedFile(file, publisher.url(path), digest, most, v) for file, v in files)
        monkeypatch.setitem(assets.REGISTRY, "thing", Asset("thing", made, "MIT", "a test"))
        return assets.REGISTRY["thing"]

    return published
