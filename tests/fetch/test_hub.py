"""DataComp's metadata from a small hub on 127.0.0.1: whole or not at all, and never twice."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curate.errors import StopError, UnknownName
from curate.fetch import hub

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """The two calls of the hub's API that a download of a data set makes."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.broken: set[str] = set()
        self.hits: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        name = self.path.rpartition("/")[2]
        headers = {"X-Repo-Commit": COMMIT}
        if self.path.startswith("/api/datasets/mlfoundations/datacomp_small"):
            siblings = [{"rfilename": n} for n in self.server.files]
            data = json.dumps({"id": "mlfoundations/datacomp_small", "sha": COMMIT, "siblings": siblings}).encode()
            if "/tree/" in self.path:
                data = json.dumps(
                    [{"type": "file", "path": n, "size": 1, "oid": "0"} for n in self.server.files]
                ).encode()
        elif name in self.server.files and name not in self.server.broken:
            data = self.server.files[name]
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            self.server.hits[name] += body
        else:
            data = b"{}"
            self.send_response(404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def small_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    files = {"a.parquet": b"PAR1a", "b.parquet": b"PAR1bb", "README.md": b"#", "a.npz": b"PK"}
    server = Hub(files)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_metadata_appears_when_it_is_complete(small_hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "pool" / "metadata"
    small_hub.broken = {"b.parquet"}
    with pytest.raises(StopError) as caught:
        hub.fetch_metadata(hub.hub_pool("small"), folder)
    assert caught.value.where == small_hub.url.removeprefix("http://")
    assert "mlfoundations/datacomp_small" in caught.value.what
    assert not folder.exists()
    small_hub.broken = set()
    assert hub.fetch_metadata(hub.hub_pool("small"), folder) == 2
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"a.parquet": b"PAR1a", "b.parquet": b"PAR1bb"}
    assert small_hub.hits == {"a.parquet": 1, "b.parquet": 1}
    assert [p.name for p in (tmp_path / "pool").iterdir()] == ["metadata"]


def test_no_hub_is_said_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StopError) as caught:
        hub.fetch_metadata(hub.hub_pool("small"), tmp_path / "metadata")
    assert caught.value.where == "127.0.0.1:1"
    assert "--source FILE_OR_FOLDER" in (caught.value.hint or "")
    assert not (tmp_path / "metadata").exists()


def test_scales_are_known() -> None:
    assert hub.hub_pool("small").rows == 12_800_000
    with pytest.raises(UnknownName, match="found: large, medium, small, xlarge"):
        hub.hub_pool("smal")
