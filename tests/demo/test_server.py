"""The small web on the loopback interface."""

from __future__ import annotations

import http.client
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from curate.demo import server
from curate.demo.server import Behaviour


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "images").mkdir(parents=True)
    (site / "images" / "ä b.jpg").write_bytes(b"JPEG")
    (site / "a.jpg").write_bytes(b"bytes of a")
    (tmp_path / "secret").write_text("outside")
    return site


def get(url: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def test_files_are_served_and_what_is_missing_is_404(folder: Path) -> None:
    with server.serve(folder) as base:
        assert get(f"{base}/a.jpg") == (200, "image/jpeg", b"bytes of a")
        assert get(f"{base}/images/%C3%A4%20b.jpg?size=1")[2] == b"JPEG"
        assert get(f"{base}/nothing.jpg")[0] == 404
        assert get(f"{base}/images")[0] == 404
    with pytest.raises(urllib.error.URLError):
        get(f"{base}/a.jpg")


def test_nothing_outside_the_folder_is_served(folder: Path) -> None:
    with server.serve(folder) as base:
        link = http.client.HTTPConnection(urlsplit(base).netloc, timeout=5)
        for path in ("/../secret", "/%2e%2e/secret", "//etc/passwd", str(folder.parent / "secret")):
            link.request("GET", path)
            answer = link.getresponse()
            answer.read()
            assert answer.status == 404, path
        link.close()


def test_a_connection_is_kept(folder: Path) -> None:
    with server.serve(folder) as base:
        link = http.client.HTTPConnection(urlsplit(base).netloc, timeout=5)
        sockets: set[socket.socket | None] = set()
        for _ in range(3):
            link.request("GET", "/a.jpg")
            assert link.getresponse().read() == b"bytes of a"
            sockets.add(link.sock)
        assert len(sockets) == 1
        link.request("HEAD", "/a.jpg")
        assert link.getresponse().read() == b""
        link.close()


def test_paths_behave_as_told(folder: Path) -> None:
    behaviours = {
        "/a.jpg": Behaviour(content_type="text/html"),
        "/images/ä b.jpg": Behaviour(delay=0.2),
        "/gone.jpg": Behaviour(status=410),
        "/moved.jpg": Behaviour(status=302, location="/a.jpg"),
    }
    with server.serve(folder, behaviours) as base:
        assert get(f"{base}/a.jpg") == (200, "text/html", b"bytes of a")
        assert get(f"{base}/gone.jpg")[0] == 410
        assert get(f"{base}/moved.jpg")[2] == b"bytes of a"
        start = time.monotonic()
        assert get(f"{base}/images/%C3%A4%20b.jpg")[0] == 200
        assert time.monotonic() - start >= 0.2


def test_a_silent_path_does_not_hold_up_the_end(folder: Path) -> None:
    with server.serve(folder, {"/a.jpg": Behaviour(delay=60)}) as base:
        with pytest.raises(TimeoutError), urllib.request.urlopen(f"{base}/a.jpg", timeout=0.2):
            pass
        start = time.monotonic()
    assert time.monotonic() - start < 2


def test_hosts_have_addresses_of_their_own(folder: Path) -> None:
    with server.serve_hosts(folder, ["127.0.0.1", "127.0.0.2"]) as bases:
        assert len(set(bases)) == 2
        for base in bases:
            assert (urlsplit(base).hostname or "").startswith("127.")
            assert get(f"{base}/a.jpg")[0] == 200


def test_nothing_but_loopback_is_bound(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0 is not a loopback address"):
        server.serve_hosts(folder, ["0.0.0.0"]).__enter__()


def test_a_server_apart_reads_its_behaviours_and_ends_with_the_block(folder: Path) -> None:
    server.write_behaviours(folder, {"/b.jpg": Behaviour(status=503)})
    with server.serve_apart(folder, ["127.0.0.1", "127.0.0.3"]) as bases:
        assert len(bases) == 2
        assert get(f"{bases[1]}/a.jpg")[2] == b"bytes of a"
        assert get(f"{bases[0]}/b.jpg")[0] == 503
    with pytest.raises(urllib.error.URLError):
        get(f"{bases[0]}/a.jpg")
