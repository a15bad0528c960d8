"""A server on 127.0.0.1 that costs little: `python -m bench.server FOLDER`, answers made before they are asked for.

It runs in a process of its own, so that its work can be told from that of those who are measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Server:
    """A running server: `/KIND/NUMBER` is one of the files of FOLDER/KIND, in turn and without end."""

    base: str

    def url(self, kind: str, number: int) -> str:
        """The URL of a picture; every number has one of its own."""
        return f"{self.base}/{kind}/{number}"

    def cpu_seconds(self) -> float:
        """What the server's process has used since it began."""
        with urllib.request.urlopen(f"{self.base}/cpu", timeout=10) as answer:
            return float(json.load(answer))


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The files of the folders in `folder`, from memory, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.server", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.communicate()


# --- the server's process ---------------------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """Answers requests in the order they come; their bodies, if any, are not expected."""

    def __init__(self, answers: Mapping[bytes, Sequence[bytes]]) -> None:
        self.answers = answers
        self.waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self.waiting = (self.waiting + data).split(b"\r\n\r\n")
        for request in requests:
            self.transport.write(self._answer(request.split(b" ", 2)[1]))
            if b"connection: close" in request.lower():
                self.transport.close()

    def _answer(self, path: bytes) -> bytes:
        _, kind, *number = path.split(b"/")
        if kind == b"cpu":
            spent = os.times()
            return _whole(json.dumps(spent.user + spent.system).encode(), b"application/json")
        known = self.answers.get(kind)
        return known[int(number[0]) % len(known)] if known else _NOT_FOUND


def _whole(body: bytes, kind: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(body), body)


async def _serve(folder: Path) -> None:
    answers = {
        os.fsencode(kind.name): [_whole(p.read_bytes(), b"image/jpeg") for p in sorted(kind.iterdir())]
        for kind in sorted(folder.iterdir())
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answers), "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    parent = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
    await parent.read()  # its end is the parent's


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
