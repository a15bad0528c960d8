"""A loopback HTTP server that misbehaves on demand: a function that owns the socket answers each path."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]
Result = TypeVar("Result")


class HostileServer:
    """Answers each path by its `routes` entry: bytes are a 200 with that body, a function does as it likes.

    `hits` counts requests by path, `connections` the sockets opened, `together` the most requests that were
    answered at one time, `seen` holds the last request's headers.
    """

    def __init__(self, routes: dict[str, bytes | Reply] | None = None) -> None:
        self.routes: dict[str, bytes | Reply] = routes or {}
        self.hits: Counter[str] = Counter()
        self.connections = 0
        self.together = 0
        self.seen: dict[str, str] = {}
        self.port = 0
        self._busy = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await reader.readline():
                path = request.decode("latin-1").split(" ")[1]
                headers = {}
                while (line := await reader.readline()).strip():
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                self.seen = headers
                self.hits[path] += 1
                reply = self.routes.get(path, self.routes.get(path.partition("?")[0], status(404)))
                self._busy += 1
                self.together = max(self.together, self._busy)
                try:
                    await (answer(reply) if isinstance(reply, bytes) else reply)(writer)
                finally:
                    self._busy -= 1
                if writer.is_closing():
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, IndexError):
            pass
        finally:
            writer.close()


@contextmanager
def running(
    server: HostileServer, sock: socket.socket | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[HostileServer]:
    """The server on a free port of 127.0.0.1 or on `sock`, in a thread of its own, until the block ends."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        place: dict[str, Any] = {"host": "127.0.0.1", "port": 0} if sock is None else {"sock": sock}
        listening = await asyncio.start_server(server._serve, ssl=tls, **place)
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        listening.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    ready.wait(5)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()


def head(code: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {code} x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer(body: bytes, *, code: int = 200, **headers: str) -> Reply:
    """A well-formed answer; header names are written with underscores for dashes."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        sent = {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
        writer.write(head(code, sent) + body)
        await writer.drain()

    return reply


def status(code: int, **headers: str) -> Reply:
    return answer(b"no", code=code, **headers)


def redirect(location: str, code: int = 302) -> Reply:
    return answer(b"", code=code, Location=location)


def raw(data: bytes, *, reset: bool = False) -> Reply:
    """Exactly these bytes, then the end of the connection: a close, or a reset."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if reset:
            writer.transport.abort()
        else:
            writer.close()

    return reply


def silent() -> Reply:
    """Accepts the request and says nothing for a long time."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    return reply


def drip(interval: float = 0.02, *, in_headers: bool = False) -> Reply:
    """One byte every now and then, without end: in the body, or in a header."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 x\r\nX-Slow: " if in_headers else head(200, {"Connection": "close"}))
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(interval)

    return reply


def in_pieces(piece: bytes, *, count: int, interval: float) -> Reply:
    """A body of `count` equal pieces, with a wait before each but the first."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, {"Content-Length": str(count * len(piece))}))
        for n in range(count):
            await asyncio.sleep(interval if n else 0)
            writer.write(piece)
            await writer.drain()

    return reply


def flood(total: int, *, announce: bool, fill: bytes = b"\0") -> Reply:
    """A body of `total` bytes, with its length announced or chunk by chunk until the end."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        headers = {"Content-Length": str(total)} if announce else {"Connection": "close"}
        writer.write(head(200, headers))
        block = fill * (1 << 16)
        for _ in range(total >> 16):
            writer.write(block)
            await writer.drain()
        writer.close()

    return reply


def chunked_flood(total: int, *, end: bytes = b"0\r\n\r\n") -> Reply:
    """A chunked body of `total` bytes, closed by `end`."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, {"Transfer-Encoding": "chunked"}))
        block = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        for _ in range(total >> 16):
            writer.write(block)
            await writer.drain()
        writer.write(end)
        await writer.drain()

    return reply


def bomb(size: int, encoding: str = "gzip") -> Reply:
    """A compressed body of zeros that is `size` bytes when decompressed."""
    zeros = bytes(size)
    body = gzip.compress(zeros) if encoding == "gzip" else zlib.compress(zeros)
    return answer(body, Content_Encoding=encoding)


def slow(seconds: float, body: bytes) -> Reply:
    """The body, after a wait."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        await answer(body)(writer)

    return reply


def in_turn(*replies: bytes | Reply) -> Reply:
    """The first reply to the first request, and so on; the last one again for all further requests."""
    left = list(replies)

    async def reply(writer: asyncio.StreamWriter) -> None:
        now = left.pop(0) if len(left) > 1 else left[0]
        await (answer(now) if isinstance(now, bytes) else now)(writer)

    return reply


def timed(task: Callable[[], Result]) -> tuple[Result, float]:
    """The result of `task` and its seconds."""
    start = time.monotonic()
    return task(), time.monotonic() - start
