"""A small web on the loopback interface: files of a folder, with dead, slow and lying addresses among them.

Each host is a loopback address with a port of its own, so that a politeness rule a host shows. `serve` runs in this
process, `serve_apart` in one of its own that ends with its parent. Nothing but 127.0.0.0/8 is ever bound.
"""

from __future__ import annotations

import json
import mimetypes
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BEHAVIOURS = "behaviours.json"
"""Where `serve_apart` looks in its folder for `{path: {"status": ..., "delay": ...}}`."""
DEFAULT_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Behaviour:
    """What a path does besides answering with its file."""

    status: int = 200
    delay: float = 0.0
    """Seconds before the answer begins."""
    content_type: str = ""
    """Empty: what the file's name says."""
    location: str = ""
    """Where a redirect leads."""


class _Site(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, folder: Path, behaviours: Mapping[str, Behaviour]) -> None:
        self.folder = folder.resolve()
        self.behaviours = behaviours
        self.stopping = threading.Event()
        super().__init__((host, 0), _Answer)

    def server_bind(self) -> None:
        # the inherited one asks the resolver for the host's name, which can take seconds
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event here."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 30

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        site = self.server
        if not isinstance(site, _Site):
            raise TypeError("this handler belongs to a _Site")
        path = unquote(urlsplit(self.path).path)
        does = site.behaviours.get(path, Behaviour())
        if does.delay:
            site.stopping.wait(does.delay)
        file = (site.folder / path.lstrip("/")).resolve()
        found = file.is_file() and file.is_relative_to(site.folder)
        if does.status == 200 and not found:
            does = Behaviour(status=404)
        body = file.read_bytes() if found else f"<html><body>{does.status}</body></html>".encode()
        kind = does.content_type or (mimetypes.guess_type(path)[0] if found else "text/html")
        self.send_response(does.status)
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        if does.location:
            self.send_header("Location", does.location)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The client keeps the ledger."""


@contextmanager
def serve_hosts(
    folder: Path, hosts: Sequence[str] = (DEFAULT_HOST,), behaviours: Mapping[str, Behaviour] | None = None
) -> Iterator[list[str]]:
    """The base URL of each host, each serving `folder` until the block ends.

    A loopback address that the system does not have (macOS knows 127.0.0.1 alone) is replaced by 127.0.0.1 on a
    port of its own.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_running(host, folder, behaviours or {})) for host in hosts]


@contextmanager
def serve(folder: Path, behaviours: Mapping[str, Behaviour] | None = None) -> Iterator[str]:
    """The base URL (`http://127.0.0.1:PORT`, no slash at the end) of a folder, until the block ends."""
    with serve_hosts(folder, behaviours=behaviours) as bases:
        yield bases[0]


@contextmanager
def _running(host: str, folder: Path, behaviours: Mapping[str, Behaviour]) -> Iterator[str]:
    if not ip_address(host).is_loopback:
        raise ValueError(f"{host} is not a loopback address")
    try:
        site = _Site(host, folder, behaviours)
    except OSError:
        site = _Site(DEFAULT_HOST, folder, behaviours)
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{site.server_name}:{site.server_port}"
    finally:
        site.stopping.set()
        site.shutdown()
        site.server_close()
        thread.join()


@contextmanager
def serve_apart(folder: Path, hosts: Sequence[str] = (DEFAULT_HOST,)) -> Iterator[list[str]]:
    """As `serve_hosts`, by a process of its own: what is measured here is then the client alone.

    Behaviours are those of the folder's `behaviours.json`.
    """
    command = [sys.executable, "-m", "curate.demo.server", str(folder), *hosts]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError("the demo's server did not start")
            yield json.loads(line)
        finally:
            # the process ends when this pipe does, be it here or by the death of this process
            if process.stdin:
                process.stdin.close()
            process.wait(timeout=10)


def write_behaviours(folder: Path, behaviours: Mapping[str, Behaviour]) -> None:
    """Puts behaviours where `serve_apart` looks for them."""
    text = json.dumps({path: asdict(does) for path, does in sorted(behaviours.items())}, indent=0)
    (folder / BEHAVIOURS).write_text(text, encoding="utf-8")


def _read_behaviours(folder: Path) -> dict[str, Behaviour]:
    file = folder / BEHAVIOURS
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {path: Behaviour(**does) for path, does in found.items()}


def main(arguments: Sequence[str]) -> int:
    """Serves FOLDER on the hosts named, tells their base URLs as one line of JSON, ends with its standard input."""
    folder = Path(arguments[0])
    with serve_hosts(folder, arguments[1:] or (DEFAULT_HOST,), _read_behaviours(folder)) as bases:
        sys.stdout.write(json.dumps(bases) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
