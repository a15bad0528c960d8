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
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import aiohttp
from aiohttp.connector import Connection
from multidict import istr
from yarl import URL

from curate.errors import SampleError
from curate.fetch import blocks, robots
from curate.fetch.addresses import CheckedResolver, Lookup, is_public, literal
from curate.fetch.bodies import Grow, receive
from curate.fetch.clock import Clock
from curate.fetch.faults import ALWAYS, TROUBLE, Failed, named, unresolved
from curate.fetch.hosts import FULL_SECONDS, MOST_HOSTS, Host, Hosts
from curate.fetch.settings import FetchLimits
from curate.fetch.urls import host_key, host_of, opted_out, parse_url, redirect, retry_after

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

_LEDGER = [(name, istr(name)) for name in LEDGER_HEADERS]
_CONTENT_TYPE = istr("Content-Type")
_LOCATION, _RETRY_AFTER, _ROBOTS_TAG = istr("Location"), istr("Retry-After"), istr("X-Robots-Tag")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BODY_STATUSES = frozenset({200, 203})
_HOST_PAUSES = frozenset({429, 503})
_DNS_FAILED_BACKOFFS = 2.0
_PATIENCE_TOTALS = 4


@dataclass(frozen=True)
class Fetched:
    """What came of a URL: a body, or an error code of curate.errors.ERROR_CODES and a sentence.

    `http_status`, `final_url`, `content_type`, `address` and `headers` are of the last answer seen, also when
    it was an error; a blocked URL has none of them and no sentence. `tries` counts those that asked somebody.
    `seconds` counts from the first byte asked for, waits between tries included.
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
    offline: bool = False
    """Whether nothing came from beyond this machine."""


class _Job:
    """One URL while it is being fetched, and what is known of its last answer.

    A `rules` job fetches a robots.txt: it asks nobody's leave, and takes as much of the body as it may.
    """

    def __init__(self, seconds: float, most: int, grow: Grow | None = None, *, rules: bool = False) -> None:
        self.clock = Clock(seconds)
        self.most = most
        self.grow = grow
        self.rules = rules
        self.began: float | None = None
        self.tries = 0
        self.answered = False
        self.forget()

    def forget(self) -> None:
        self.url: URL | None = None
        self.status: int | None = None
        self.content_type: str | None = None
        self.address: str | None = None
        self.headers: dict[str, str] = {}

    def fetched(
        self,
        url: str,
        body: bytes | None,
        code: str | None = None,
        what: str | None = None,
        *,
        offline: bool = False,
    ) -> Fetched:
        seconds = 0.0 if self.began is None else asyncio.get_running_loop().time() - self.began
        if code == "blocked":
            return Fetched(url, error_code=code, tries=self.tries, seconds=seconds)
        final = None if self.url is None else str(self.url)
        return Fetched(
            url,
            body,
            code,
            what and _utf8(what),
            final,
            self.status,
            self.content_type and _utf8(self.content_type),
            self.address,
            self.tries,
            seconds,
            self.headers,
            offline and not self.answered,
        )


def _utf8(text: str) -> str:
    """What a server said, with question marks for what no UTF-8 file can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


class _Response(aiohttp.ClientResponse):
    """Remembers which address it came from; a short answer has let go of its connection before it is seen."""

    address: str | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        if connection.transport is not None:
            peer = connection.transport.get_extra_info("peername")
            self.address = str(peer[0]) if peer else None
        return await super().start(connection)


class Fetcher:
    """Fetches URLs over pooled keep-alive connections, as an async context manager that may live for days.

    The caller bounds how many `fetch` calls run at once and asks `ready` which URL is best fetched next; the
    fetcher bounds how many talk to one host, and pauses or gives up hosts (fetch/hosts.py). `lookup` replaces
    the system's resolver, `permitted` the rule of which addresses may be connected to (default: public ones, or
    all with `allow_private`), `tls` what certificates are checked against. Raises InputError for a bad block
    list.
    """

    def __init__(
        self,
        limits: FetchLimits | None = None,
        *,
        lookup: Lookup | None = None,
        permitted: Callable[[str], bool] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits or FetchLimits()
        self._lookup = lookup
        self._permitted = permitted or ((lambda _: True) if self.limits.allow_private else is_public)
        self._tls = tls
        self._blocks = blocks.load(self.limits.block_list) if self.limits.block_list else None

    async def __aenter__(self) -> Fetcher:
        limits = self.limits
        self._loop = asyncio.get_running_loop()
        self._lively: dict[str, None] = {}
        """Hosts that have answered, the latest of them last: their silence may be this machine's."""
        self._hosts = Hosts(
            per_host=limits.per_host,
            backoff_seconds=limits.backoff_seconds,
            patience_seconds=_PATIENCE_TOTALS * limits.total_seconds,
            probe_seconds=limits.total_seconds,
        )
        self._robots = robots.Robots(self._ask_robots) if limits.obey_robots else None
        self._resolver = CheckedResolver(
            self._permitted,
            lookup=self._lookup,
            timeout_seconds=limits.connect_seconds,
            failed_seconds=_DNS_FAILED_BACKOFFS * limits.backoff_seconds,
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=self._resolver,
                use_dns_cache=False,
                limit=0,
                keepalive_timeout=5,
                ssl=self._tls if self._tls is not None else True,
            ),
            response_class=_Response,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=limits.connect_seconds, sock_read=limits.idle_seconds
            ),
            headers={"User-Agent": limits.agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._robots is not None:
            await self._robots.close()
        await self._session.close()
        await self._resolver.close()

    def ready(self, url: str) -> float:
        """Seconds until a request to the host of `url` would begin: 0 now, a little when its turns are all taken.

        While the host pauses, what is left of that; 0 also where `fetch` would fail at once. Who is told 0 should
        call `fetch` within this round of the loop: until then the turn counts as taken.
        """
        host = host_of(url)
        if self._robots is not None and self._robots.busy(host):
            return FULL_SECONDS
        return self._hosts.ready(host)

    async def fetch(self, url: str, grow: Grow | None = None) -> Fetched:
        """The body at `url`, or why there is none; raises nothing but cancellation.

        Time spent in `grow`, in looking a host up, or in waiting for a first turn with it, is not counted
        against the URL. It waits for a host that pauses if the pause ends within what is left of the URL's
        deadline; if not, it fails with the host's own 429 or 503.
        """
        job = _Job(self.limits.total_seconds, self.limits.max_bytes, grow)
        try:
            if self._blocks is not None and self._blocks.has_url(url):
                raise SampleError("blocked", "")
            body = await self._tries(parse_url(url), job)
        except SampleError as failed:
            offline = isinstance(failed, Failed) and failed.offline
            return job.fetched(url, None, failed.code, failed.what, offline=offline)
        return job.fetched(url, body)

    def forgive(self) -> None:
        """Ask hosts again that gave no sign of life: it was this machine's line."""
        self._hosts.forgive()

    async def _ask_robots(self, url: URL) -> robots.Answer:
        job = _Job(self.limits.total_seconds, robots.MOST_BYTES, rules=True)
        try:
            return robots.Answer(await self._tries(url, job))
        except SampleError as failed:
            return robots.Answer(None, failed.code, failed.what)

    async def _tries(self, url: URL, job: _Job) -> bytes:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._hops(url, job)
            except Failed as failed:
                wait = failed.after
                if wait is None:
                    wait = self.limits.backoff_seconds * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
                if tries >= min(failed.again, self.limits.retries + 1) or not job.clock.spend(wait):
                    raise
            await asyncio.sleep(wait)

    async def _hops(self, url: URL, job: _Job) -> bytes:
        asked = False
        for _ in range(self.limits.max_redirects + 1):
            address = literal(url.raw_host or "")
            if address is not None:
                # aiohttp asks no resolver about a host that is written as an address
                if not self._permitted(address):
                    raise Failed("private_address", f"{address} is not a public address")
                if address != url.raw_host:
                    url = url.with_host(address)
            if asked and self._blocks is not None and self._blocks.has_url(str(url)):
                raise SampleError("blocked", "")
            if self._robots is not None and not job.rules:
                await self._robots.check(url)
            host = await self._hosts.enter(host_key(url), job.clock.left)
            try:
                if not asked:
                    asked = True
                    job.tries += 1
                    job.forget()
                found = await self._turn(url, host, job, named_host=address is None)
            finally:
                self._hosts.leave(host)
            if isinstance(found, bytes):
                return found
            url = found
        raise Failed("too_many_redirects", f"more than {self.limits.max_redirects} redirects")

    async def _turn(self, url: URL, host: Host, job: _Job, *, named_host: bool) -> bytes | URL:
        """`_hop` under the URL's clock; what it says of the host is noted."""
        began = self._loop.time()
        if job.began is None:
            job.began = began
        job.url, job.answered = url, False
        try:
            if named_host:
                await self._look_up(url.raw_host or "")
            job.clock.start()
            try:
                return await self._hop(url, host, job, began)
            except BaseException as error:
                if job.clock.rang(error):
                    what = f"not done within {self.limits.total_seconds:g} seconds"
                    raise Failed("timeout", what, silent=True, offline=not job.answered) from error
                if isinstance(error, TROUBLE):
                    raise named(error) from error
                raise
            finally:
                job.clock.stop()
        except Failed as failed:
            if failed.code != "dns" and host.key not in self._lively:
                failed.offline = False  # its name was found, and nobody has ever seen more of it
            if failed.silent and not job.answered:
                self._hosts.silent(host, failed, began)
            raise

    async def _look_up(self, name: str) -> None:
        """See that the resolver has permitted addresses for the connector; failures cost no connection."""
        try:
            await self._resolver.addresses(name)
        except socket.gaierror as error:
            raise unresolved(error, self._resolver.believed_for(name) * random.uniform(1, 1.5)) from error
        except (OSError, UnicodeError) as error:
            raise named(error) from error

    async def _hop(self, url: URL, host: Host, job: _Job, began: float) -> bytes | URL:
        """The body at `url`, or the URL that it redirects to."""
        response = await self._session.get(url, allow_redirects=False)
        async with response:
            limits, headers, status = self.limits, response.headers, response.status
            job.status, job.answered = status, True
            job.content_type = headers.get(_CONTENT_TYPE)
            job.address = getattr(response, "address", None)
            job.headers = {name: _utf8(headers[key]) for name, key in _LEDGER if key in headers}
            after = retry_after(headers.get(_RETRY_AFTER)) if status in _HOST_PAUSES or status >= 500 else None
            self._hosts.answered(host, status, after, began)
            self._lively.pop(host.key, None)
            self._lively[host.key] = None
            if len(self._lively) > MOST_HOSTS:
                del self._lively[next(iter(self._lively))]
            if status in _REDIRECTS and _LOCATION in headers:
                return redirect(url, headers[_LOCATION])
            if status not in _BODY_STATUSES:
                if status in _HOST_PAUSES:
                    after = max(after or 0.0, self._hosts.pause_left(host))
                again = ALWAYS if status == 429 or status >= 500 else 1
                raise Failed(f"http_{status}", f"the server answered {status}", again=again, after=after)
            tags = headers.getall(_ROBOTS_TAG) if _ROBOTS_TAG in headers else ()
            if tags and limits.obey_opt_out and not job.rules and opted_out(tags):
                raise Failed("opted_out", f"X-Robots-Tag: {', '.join(tags)[:200]}")
            length = response.content_length
            if length is not None and length > job.most and not job.rules:
                raise Failed("too_large", f"{length} bytes announced, the limit is {job.most}")
            return await receive(response, job.most, limits, job.clock, job.grow, cut=job.rules)
