from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curate import assets
from curate.errors import InputError, UnknownName
from curate.filter_api import asset

BODY = b"weights" * 1000


class _Server(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: len(BODY) // 2] if self.path == "/cut" else BODY)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    _Server.asked = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CURATE_ASSETS", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "curate" / "assets"


def publish(
    monkeypatch: pytest.MonkeyPatch, server: ThreadingHTTPServer, path: str = "/file", digest: str = ""
) -> None:
    digest = digest or "sha256:" + hashlib.sha256(BODY).hexdigest()
    url = f"http://127.0.0.1:{server.server_address[1]}{path}"
    entry = assets.Asset("thing", "thing.bin", url, digest, "MIT", "a test")
    monkeypatch.setitem(assets.REGISTRY, "thing", entry)


def left_behind(cache: Path) -> list[Path]:
    return sorted(cache.glob("*")) + sorted(cache.glob(".*"))


def test_fetched_once_then_from_the_cache(
    cache: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, server, "/moved")
    want = cache / "thing.bin", hashlib.sha256(BODY).hexdigest()
    assert assets.find("thing") == want
    assert assets.find("thing") == want
    assert _Server.asked == ["/moved", "/file"]
    assert left_behind(cache) == [cache / "thing.bin"]
    assert asset("thing").read_bytes() == BODY


def test_git_blob_id_is_a_digest_too(
    cache: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `git hash-object` of the seven bytes "content"
    assert hashlib.sha1(b"blob 7\0content").hexdigest() == "6b584e8ece562ebffc15d38808cd6b98fc3d97ea"
    publish(monkeypatch, server, digest="git:" + hashlib.sha1(b"blob 7000\0" + BODY).hexdigest())
    assert assets.find("thing")[1] == hashlib.sha256(BODY).hexdigest()
    publish(monkeypatch, server, digest="git:" + "0" * 40)
    with pytest.raises(InputError, match="git blob id"):
        assets.find("thing")


def test_given_folder_comes_first(
    cache: Path, tmp_path: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, server)
    given = tmp_path / "given"
    given.mkdir()
    (given / "thing.bin").write_bytes(BODY)
    monkeypatch.setenv("CURATE_ASSETS", str(given))
    assert assets.find("thing")[0] == given / "thing.bin"
    assert _Server.asked == []


def test_wrong_bytes_on_disk_are_refused(
    cache: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, server)
    cache.mkdir(parents=True)
    (cache / "thing.bin").write_bytes(BODY + b"!")
    with pytest.raises(InputError, match=r"thing\.bin: is not the published thing \(its sha256 is") as error:
        assets.find("thing")
    assert error.value.exit_code == 2
    assert (cache / "thing.bin").exists()


@pytest.mark.parametrize(
    ("path", "digest", "says"),
    [
        ("/file", "sha256:" + "0" * 64, "is not the published thing"),
        ("/cut", "", "is not the published thing|IncompleteRead"),
        ("/gone", "", "127.0.0.1 did not give it .Not Found"),
    ],
)
def test_a_bad_answer_leaves_nothing(
    cache: Path,
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    digest: str,
    says: str,
) -> None:
    publish(monkeypatch, server, path, digest)
    with pytest.raises(InputError, match=says):
        assets.find("thing")
    assert left_behind(cache) == []


def test_no_network_names_the_host_and_three_ways(
    cache: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, server)
    server.server_close()
    with pytest.raises(InputError, match=r"127\.0\.0\.1 did not give it") as error:
        assets.find("thing")
    hint = error.value.hint or ""
    assert "$CURATE_ASSETS" in hint
    assert str(cache) in hint
    assert "file setting" in hint


def test_too_much_is_refused(cache: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, server)
    monkeypatch.setattr(assets, "_MAX_BYTES", 100)
    with pytest.raises(InputError, match="more than 100 bytes"):
        assets.find("thing")
    assert left_behind(cache) == []


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UnknownName) as error:
        assets.find("watermarks")
    assert error.value.hint == "did you mean 'watermark'?"


def test_every_published_asset_is_pinned_and_fetched_encrypted() -> None:
    for name, entry in assets.REGISTRY.items():
        kind, _, hexdigits = entry.digest.partition(":")
        assert name == entry.name
        assert entry.url.startswith("https://")
        assert len(bytes.fromhex(hexdigits)) == {"sha256": 32, "git": 20}[kind]
        assert entry.licence
        assert entry.source


def test_never_redirected_away_from_encryption() -> None:
    import urllib.error
    import urllib.request

    handler = assets._NoDowngrade()
    request = urllib.request.Request("https://example.org/a")
    with pytest.raises(urllib.error.URLError, match="away from https"):
        handler.redirect_request(request, None, 302, "", {}, "http://example.org/a")
    assert handler.redirect_request(request, None, 302, "", {}, "https://example.net/a") is not None
