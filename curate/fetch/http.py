"""Fetching one URL at a time, many at once, from hosts that cannot be trusted.

`Fetcher.fetch` never raises for what a URL, a host or a server does: it returns a `Fetched` with an error
code. Redirects are followed by hand, so that every hop is held to the rules of the first; bodies are read and
decompressed piece by piece under the byte cap; one deadline covers all hops, tries and waits of a URL.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from curate.errors import SampleError
from curate.fetch.addresses import CheckedResolver, Lookup, PrivateAddress, is_public, literal
from curate.fetch.settings import FetchLimits
from curate.fetch.urls import opted_out, parse_url, redirect, retry_after

__all__ = ["FetchLimits", "Fetched", "Fetcher"]

LEDGER_HEADERS = (
    "content-length",
    "content-encoding",
    "last-modified",
    "etag",
    "cache-control",
    "server",
    "x-robots-tag",
)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BODY_STATUSES = frozenset({200, 203})
_CHUNK = 1 << 16
_ALWAYS = 1 << 30
_TROUBLE = (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, zlib.error)

Grow = Callable[[int], Awaitable[None]]
"""Called with the size of each piece of a body before it is kept; may wait until there is memory for it."""


@dataclass(frozen=True)
class Fetched:
    """What came of a URL: a body, or an error code of curate.errors.ERROR_CODES and a sentence.

    `http_status`, `final_url`, `content_type`, `address` and `headers` are of the last answer seen, also when
    it was an error. `seconds` counts from the first byte asked for, waits between tries included.
    """

    url: str
    body: bytes | None = None
    error_code: str | None = None
    error_message: str | None = None
    final_url: str | None = None
    http_status: int | None = None
    content_type: str | None = None
    address: str | None = None
    tries: int = 0
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


class _Failed(SampleError):
    """One try came to nothing; another makes sense in `after` seconds, if fewer than `again` were made."""

    def __init__(self, code: str, what: str, *, again: int = 1, after: float | None = None) -> None:
        super().__init__(code, what)
        self.again = again
        self.after = after


@dataclass
class _Job:
    """One URL while it is being fetched; `deadline` is on the monotonic clock."""

    deadline: float
    answer: Fetched
    grow: Grow | None

    def left(self) -> float:
        return max(0.001, self.deadline - time.monotonic())


@dataclass
class _HostSlot:
    gate: asyncio.Semaphore
    users: int = 0


class _Response(aiohttp.ClientResponse):
    """Remembers which address it came from; a short answer has let go of its connection before it is seen."""

    address: str | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        if connection.transport is not None:
            peer = connection.transport.get_extra_info("peername")
            self.address = str(peer[0]) if peer else None
        return await super().start(connection)


class Fetcher:
    """Fetches URLs over pooled keep-alive connections, as an async context manager.

    The caller bounds how many `fetch` calls run at once; the fetcher bounds how many talk to one host.
    `lookup` replaces the system's resolver, and `permitted` the rule of which addresses may be connected to
    (default: public ones, or all with `allow_private`).
    """

    def __init__(
        self,
        limits: FetchLimits | None = None,
        *,
        lookup: Lookup | None = None,
        permitted: Callable[[str], bool] | None = None,
    ) -> None:
        self.limits = limits or FetchLimits()
        self._lookup = lookup
        self._permitted = permitted or ((lambda _: True) if self.limits.allow_private else is_public)
        self._hosts: dict[str, _HostSlot] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Fetcher:
        limits = self.limits
        resolver = CheckedResolver(self._permitted, lookup=self._lookup, timeout_seconds=limits.connect_seconds)
        self._resolver = resolver
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, limit=0, ttl_dns_cache=300, keepalive_timeout=5),
            response_class=_Response,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=limits.connect_seconds, sock_read=limits.idle_seconds
            ),
            headers={
                "User-Agent": limits.user_agent,
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()

    async def fetch(self, url: str, grow: Grow | None = None) -> Fetched:
        """The body at `url`, or why there is none; raises nothing but cancellation.

        Time spent in `grow`, or waiting for a turn with the host, is not counted against the URL.
        """
        try:
            parsed = parse_url(url)
        except SampleError as failed:
            return Fetched(url, error_code=failed.code, error_message=failed.what)
        async with self._host_slot(parsed.raw_host or ""):
            start = time.monotonic()
            job = _Job(start + self.limits.total_seconds, Fetched(url), grow)
            answer = await self._tries(parsed, job)
            return replace(answer, seconds=time.monotonic() - start)

    async def _tries(self, url: URL, job: _Job) -> Fetched:
        tries = 0
        while True:
            tries += 1
            job.answer = Fetched(job.answer.url, tries=tries)
            try:
                body = await self._hops(url, job)
            except SampleError as failed:
                again, wait = (failed.again, failed.after) if isinstance(failed, _Failed) else (1, None)
                if wait is None:
                    wait = self.limits.backoff_seconds * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
                out_of_time = time.monotonic() + wait >= job.deadline
                if tries >= min(again, self.limits.retries + 1) or out_of_time:
                    return replace(job.answer, error_code=failed.code, error_message=failed.what)
                await asyncio.sleep(wait)
            else:
                return replace(job.answer, body=body)

    async def _hops(self, url: URL, job: _Job) -> bytes:
        for _ in range(self.limits.max_redirects + 1):
            try:
                found = await self._hop(url, job)
            except _TROUBLE as error:
                raise _named(error, job) from error
            if isinstance(found, bytes):
                return found
            url = found
        raise _Failed("too_many_redirects", f"more than {self.limits.max_redirects} redirects")

    async def _hop(self, url: URL, job: _Job) -> bytes | URL:
        """The body at `url`, or the URL that it redirects to."""
        assert self._session is not None, "a Fetcher is used as a context manager"
        address = literal(url.raw_host or "")
        # aiohttp asks no resolver about a host that is written as an address
        if address is not None and not self._permitted(address):
            raise _Failed("private_address", f"{address} is not a public address")
        job.answer = replace(job.answer, final_url=str(url))
        response = await asyncio.wait_for(self._session.get(url, allow_redirects=False), job.left())
        async with response:
            headers = response.headers
            job.answer = replace(
                job.answer,
                http_status=response.status,
                content_type=headers.get("Content-Type"),
                address=getattr(response, "address", None),
                headers={name: headers[name] for name in LEDGER_HEADERS if name in headers},
            )
            if response.status in _REDIRECTS and "Location" in headers:
                return redirect(url, headers["Location"])
            self._check(response)
            return await self._body(response, job)

    def _check(self, response: aiohttp.ClientResponse) -> None:
        """Refuse what status and headers alone condemn, before a byte of the body is read."""
        status = response.status
        if status not in _BODY_STATUSES:
            transient = status == 429 or status >= 500
            raise _Failed(
                f"http_{status}",
                f"the server answered {status}",
                again=_ALWAYS if transient else 1,
                after=retry_after(response.headers.get("Retry-After")) if transient else None,
            )
        tags = response.headers.getall("X-Robots-Tag", [])
        if self.limits.obey_opt_out and opted_out(tags):
            raise _Failed("opted_out", f"X-Robots-Tag: {', '.join(tags)[:200]}")
        length = response.content_length
        if length is not None and length > self.limits.max_bytes:
            raise _Failed("too_large", f"{length} bytes announced, the limit is {self.limits.max_bytes}")

    async def _body(self, response: aiohttp.ClientResponse, job: _Job) -> bytes:
        limit = self.limits.max_bytes
        encoding = response.headers.get("Content-Encoding", "")
        inflate = None
        body = bytearray()
        received = 0
        while chunk := await asyncio.wait_for(response.content.read(_CHUNK), job.left()):
            if not received:
                inflate = _inflater(encoding, chunk)
            received += len(chunk)
            piece = inflate.decompress(chunk, limit + 1 - len(body)) if inflate else chunk
            if max(received, len(body) + len(piece)) > limit:
                raise _Failed("too_large", f"more than {limit} bytes")
            if job.grow is not None:
                before = time.monotonic()
                await job.grow(len(piece))
                job.deadline += time.monotonic() - before
            body += piece
        if inflate and not inflate.eof:
            raise _Failed("reset", "the compressed body ended early", again=_ALWAYS)
        if not body:
            raise _Failed("empty", "a body of zero bytes")
        return bytes(body)

    @asynccontextmanager
    async def _host_slot(self, host: str) -> AsyncIterator[None]:
        """A turn with `host`, of which `per_host` exist; hosts that nobody waits for are forgotten."""
        slot = self._hosts.get(host)
        if slot is None:
            slot = self._hosts[host] = _HostSlot(asyncio.Semaphore(self.limits.per_host))
        slot.users += 1
        try:
            async with slot.gate:
                yield
        finally:
            slot.users -= 1
            if not slot.users:
                del self._hosts[host]


def _inflater(encoding: str, first: bytes) -> zlib._Decompress | None:
    """A decompressor for a body that begins with `first`; None where it came as it is.

    "deflate" is sent both with zlib's header, as the standard says, and without.
    """
    name = encoding.strip().lower()
    if name in ("gzip", "x-gzip"):
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    if name == "deflate":
        wrapped = first[0] & 0x0F == zlib.DEFLATED and int.from_bytes(first[:2], "big") % 31 == 0
        return zlib.decompressobj(wbits=zlib.MAX_WBITS if wrapped or len(first) < 2 else -zlib.MAX_WBITS)
    return None


def _named(error: Exception, job: _Job) -> _Failed:
    """The error code for what aiohttp, the resolver, TLS or zlib raised."""
    cause = getattr(error, "os_error", None) or error.__cause__ or error
    if isinstance(cause, PrivateAddress):
        return _Failed("private_address", str(cause))
    if isinstance(cause, socket.gaierror):
        final = cause.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
        return _Failed("dns", cause.strerror or "no address", again=1 if final else _ALWAYS)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)) or isinstance(cause, ssl.SSLError):
        return _Failed("tls", str(getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or cause))
    if isinstance(error, asyncio.TimeoutError):
        what = "total" if time.monotonic() >= job.deadline else "connect or idle"
        return _Failed("timeout", f"the {what} deadline passed", again=2)
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(cause, ConnectionResetError):
        return _Failed("refused", f"no connection: {getattr(cause, 'strerror', None) or type(cause).__name__}")
    if isinstance(error, (aiohttp.InvalidURL, UnicodeError)):
        return _Failed("bad_url", f"the URL cannot be asked for: {error}")
    if isinstance(error, (aiohttp.ClientResponseError, ValueError, zlib.error)):
        return _Failed("bad_response", f"not valid HTTP: {type(error).__name__}")
    return _Failed("reset", f"the connection broke: {type(error).__name__}", again=_ALWAYS)
