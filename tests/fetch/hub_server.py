"""A small hub on 127.0.0.1 with commits, trees, large files behind a redirect, and bad days on demand."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".parquet", ".npz")
"""Files that the hub keeps as large ones, by sha256 and behind a redirect; git keeps the others."""


@dataclass(frozen=True)
class Asked:
    """One request, as it came."""

    method: str
    path: str
    host: str
    range: str | None
    token: str | None


class SmallHub(ThreadingHTTPServer):
    """Data repositories of a hub: `commit` adds a state of one; what goes wrong is set in the attributes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        """Repository, commit, path; the last commit is `main`."""
        self.asked: list[Asked] = []
        self.page = 1000
        """Entries on a page of a tree."""
        self.answers: dict[str, list[tuple[int, dict[str, str]]]] = {}
        """What requests for a file name (or `api`) get first: statuses with headers, one after the other."""
        self.cut: dict[str, list[int]] = {}
        """Bytes after which the bodies of a file end, one after the other."""
        self.drip: set[str] = set()
        """Files whose next body comes by the byte, and never ends."""
        self.wrong: dict[str, list[bytes]] = {}
        """Bodies that come in the place of a file's, one after the other."""
        self.expired: set[str] = set()
        """Files whose next address is no longer good when it is asked."""
        self.portal: bytes | None = None
        """What everything is answered with by what is no hub."""
        self.gone: set[str] = set()
        """Names of files that are listed, and not there."""
        self.token: str | None = None
        """Who has it sees the repositories; None shows them to everybody."""
        self.gated = False
        self.ranges = True
        self.held = threading.Event()
        """Bodies that were cut wait for it, where `holding`, instead of ending."""
        self.holding = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def elsewhere(self) -> str:
        """Where large files are: another host than the hub's, as a browser sees it."""
        return f"http://localhost:{self.server_address[1]}"

    def commit(self, repository: str, files: Mapping[str, bytes]) -> str:
        """A new state of a repository, all of its files; the commit."""
        told = repr([(p, hashlib.sha1(d).hexdigest()) for p, d in files.items()])
        sha = hashlib.sha1(f"{repository} {told}".encode()).hexdigest()
        self.commits.setdefault(repository, {})[sha] = dict(files)
        return sha

    def bodies(self, name: str) -> list[Asked]:
        """The requests for the bytes of a file."""
        return [a for a in self.asked if a.method == "GET" and a.path.startswith("/cdn/") and a.path.endswith(name)]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is nothing to speak of."""


class _Handler(BaseHTTPRequestHandler):
    server: SmallHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, at = self.server, urlsplit(self.path)
        path = unquote(at.path)
        token = self.headers.get("Authorization")
        hub.asked.append(Asked(self.command, path, self.headers["Host"], self.headers.get("Range"), token))
        name = "api" if path.startswith("/api/") else path.rpartition("/")[2]
        if waiting := hub.answers.get(name):
            return self._say(*waiting.pop(0))
        if hub.portal is not None:
            return self._say(200, {}, hub.portal)
        if path.startswith("/cdn/") and name in hub.expired:
            hub.expired.discard(name)
            return self._say(403, {})
        if path.startswith("/cdn/"):
            return self._body(path.removeprefix("/cdn/").partition("/")[0], name)
        words = path.removeprefix("/api").removeprefix("/datasets/").split("/")
        repository, verb, rest = "/".join(words[:2]), words[2:3], words[3:]
        commits = hub.commits.get(repository)
        if commits is None or (hub.token and token != f"Bearer {hub.token}"):
            return self._say(
                403 if hub.gated else 401, {"X-Error-Code": "GatedRepo" if hub.gated else "RepoNotFound"}
            )
        wanted = rest[0] if rest else "main"
        commit = list(commits)[-1] if wanted == "main" else wanted
        if commit not in commits:
            return self._say(404, {"X-Error-Code": "RevisionNotFound"})
        if verb == ["tree"]:
            return self._tree(commits[commit], parse_qs(at.query), at.path)
        if verb == ["resolve"]:
            return self._resolve(commits[commit], commit, "/".join(rest[1:]))
        siblings = [{"rfilename": p} for p in commits[commit]]
        return self._say(200, {}, json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode())

    def _tree(self, files: Mapping[str, bytes], query: Mapping[str, list[str]], path: str) -> None:
        folders = sorted({p.rpartition("/")[0] for p in files if "/" in p})
        entries: list[dict[str, object]] = [
            {"type": "directory", "path": p, "oid": hashlib.sha1(p.encode()).hexdigest(), "size": 0}
            for p in folders
        ]
        for name, data in sorted(files.items()):
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": git_oid(data)}
            if name.endswith(LARGE):
                entry["oid"] = git_oid(b"a pointer to " + data)
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        start = int(query.get("cursor", ["0"])[0])
        until = start + self.server.page
        headers = {}
        if until < len(entries):
            headers["Link"] = f'<{self.server.url}{path}?recursive=true&cursor={until}>; rel="next"'
        self._say(200, headers, json.dumps(entries[start:until]).encode())

    def _resolve(self, files: Mapping[str, bytes], commit: str, path: str) -> None:
        headers = {"X-Repo-Commit": commit}
        data = files.get(path)
        name = path.rpartition("/")[2]
        if data is None or name in self.server.gone:
            return self._say(404, {**headers, "X-Error-Code": "EntryNotFound"})
        if not path.endswith(LARGE):
            return self._say(200, {**headers, "ETag": f'"{git_oid(data)}"'}, data)
        sha256 = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        return self._say(302, {**headers, **linked, "Location": f"{self.server.elsewhere}/cdn/{sha256}/{name}"})

    def _body(self, sha256: str, name: str) -> None:
        hub = self.server
        data = next(
            d
            for commits in hub.commits.values()
            for files in commits.values()
            for p, d in files.items()
            if p.rpartition("/")[2] == name and hashlib.sha256(d).hexdigest() == sha256
        )
        if instead := hub.wrong.get(name):
            data = instead.pop(0)
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and hub.ranges else 0
        if start and start >= len(data):
            self._say(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{sha256}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in hub.drip:
            hub.drip.discard(name)
            with suppress(OSError):
                for byte in data[start:]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.01)
            self.close_connection = True
        elif cuts := hub.cut.get(name):
            self.wfile.write(data[start : start + cuts.pop(0)])
            self.wfile.flush()
            if hub.holding:
                hub.held.wait(20)
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def _say(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def git_oid(data: bytes) -> str:
    """The id that git gives these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving() -> Iterator[SmallHub]:
    """A hub without repositories, until the block ends."""
    hub = SmallHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.held.set()
        hub.shutdown()
        hub.server_close()
        thread.join(5)
