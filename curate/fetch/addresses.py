"""Which addresses may be connected to, and a resolver that hands on no others and asks once for a host.

A list of URLs comes from strangers, so a name may point into the network that the download runs in. The
check is made on what a name resolved to, and the connection goes to the address that was checked: a second
look-up with another answer is not possible in between.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from aiohttp.abc import AbstractResolver, ResolveResult

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""From a host name to its addresses, in the order to try them; raises OSError where there are none."""

ANSWER_SECONDS = 300.0
"""A look-up's answer is believed for so long; that there is no such host, for as long as the resolver lives."""
MOST_ANSWERS = 1 << 16
"""So many hosts' answers are remembered; the oldest is forgotten first."""

NO_SUCH_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE = ipaddress.IPv6Network("::/96")


class PrivateAddress(OSError):
    """A host has only addresses that must not be connected to."""


@lru_cache(1 << 12)
def is_public(address: str) -> bool:
    """Whether `address` (a literal) is a unicast address of the public internet.

    Not public: private, loopback, link-local, shared (carrier-grade NAT), multicast, reserved, unspecified,
    and IPv6 forms that carry such an IPv4 address (mapped, compatible, 6to4, Teredo, NAT64).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        # the well-known NAT64 prefix lies in a reserved block, yet stands for the IPv4 address inside
        return ip in _NAT64 and is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    if isinstance(ip, ipaddress.IPv4Address):
        return True
    return not ip.is_site_local and all(is_public(str(inner)) for inner in _carried(ip))


def _carried(ip: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address stands for or tunnels to."""
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _V4_COMPATIBLE or ip in _NAT64:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


@lru_cache(1 << 12)
def literal(host: str) -> str | None:
    """The address that `host` is written as, in its usual form; None for a name.

    The old forms count too: decimal, octal, hexadecimal and shortened (2130706433, 0177.0.0.1, 127.1).
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return None
    return host


class _Answer(NamedTuple):
    """What a look-up came to, believed until `until` on the loop's clock."""

    addresses: tuple[str, ...]
    error: OSError | None
    until: float


class CheckedResolver(AbstractResolver):
    """Resolves names, each once, also for aiohttp's connector; raises PrivateAddress where none is `permitted`.

    `lookup` stands in for the system's resolver. At most `threads` look-ups run at once, each in a thread of
    its own, so that a name server that stays silent holds up nothing else; all who ask for a host while it is
    looked up share the answer. A failure that may pass is believed for `failed_seconds`.
    """

    def __init__(
        self,
        permitted: Callable[[str], bool],
        *,
        lookup: Lookup | None = None,
        timeout_seconds: float = 5.0,
        failed_seconds: float = 2.0,
        threads: int = 64,
    ) -> None:
        self._permitted = permitted
        self._lookup = lookup or self._system
        self._timeout = timeout_seconds
        self._failed_seconds = failed_seconds
        self._free = asyncio.Semaphore(threads)
        self._answers: dict[str, _Answer] = {}
        self._asking: dict[str, asyncio.Task[_Answer]] = {}
        self._late: set[asyncio.Future[Sequence[str]]] = set()

    def known(self, host: str) -> bool:
        """Whether `addresses` has an answer at hand, good or bad."""
        answer = self._answers.get(host)
        return answer is not None and answer.until > asyncio.get_running_loop().time()

    def believed_for(self, host: str) -> float:
        """Seconds for which the answer for `host` will not be asked for again."""
        answer = self._answers.get(host)
        return 0.0 if answer is None else max(0.0, answer.until - asyncio.get_running_loop().time())

    async def addresses(self, host: str) -> tuple[str, ...]:
        """The permitted addresses of `host`, in the resolver's order; raises OSError where there are none."""
        if self.known(host):
            answer = self._answers[host]
        else:
            task = self._asking.get(host)
            if task is None:
                task = self._asking[host] = asyncio.ensure_future(self._ask(host))
            answer = await asyncio.shield(task)
        if answer.error is not None:
            # a new one: an exception that is raised again and again gathers tracebacks
            raise type(answer.error)(*answer.error.args)
        return answer.addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """`addresses`, in the form that aiohttp's connector takes."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self.addresses(host)
        ]

    async def close(self) -> None:
        """Let go of the look-up threads; one that still waits for a name server ends by itself."""
        rest: list[asyncio.Future[Any]] = [*self._asking.values(), *self._late]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _ask(self, host: str) -> _Answer:
        try:
            answer = self._checked(host, await self._in_time(host))
        except OSError as error:
            final = isinstance(error, PrivateAddress) or error.errno in NO_SUCH_HOST
            lasting = ANSWER_SECONDS if isinstance(error, PrivateAddress) else math.inf
            # a copy: a traceback would keep all that was at work when it was raised
            answer = _Answer((), type(error)(*error.args), self._until(lasting if final else self._failed_seconds))
        finally:
            del self._asking[host]
        self._answers.pop(host, None)
        self._answers[host] = answer
        if len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
        return answer

    def _checked(self, host: str, addresses: Sequence[str]) -> _Answer:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        allowed = tuple(address for address in addresses if self._permitted(address))
        if not allowed:
            raise PrivateAddress(f"{host} resolves to {', '.join(addresses)}")
        return _Answer(allowed, None, self._until(ANSWER_SECONDS))

    def _until(self, seconds: float) -> float:
        return asyncio.get_running_loop().time() + seconds

    async def _in_time(self, host: str) -> Sequence[str]:
        """The look-up's result; its deadline begins when a thread is free, which it keeps to its end."""
        await self._free.acquire()
        look = asyncio.ensure_future(self._lookup(host))
        self._late.add(look)
        look.add_done_callback(self._done)
        done, _ = await asyncio.wait({look}, timeout=self._timeout)
        if not done:
            raise socket.gaierror(socket.EAI_AGAIN, "the name server did not answer in time")
        return look.result()

    def _done(self, look: asyncio.Future[Sequence[str]]) -> None:
        self._free.release()
        self._late.discard(look)
        if not look.cancelled():
            look.exception()  # seen, so that nobody is told that one was missed

    async def _system(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def tell(addresses: list[str], error: BaseException | None) -> None:
            if not found.done():
                found.set_exception(error) if error else found.set_result(addresses)

        def look() -> None:
            addresses, error = [], None
            try:
                addresses = _addresses(host)
            except Exception as raised:
                error = raised
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, addresses, error)

        # a daemon: a pool's threads would hold up the end of the process until the name server answers
        threading.Thread(target=look, name="dns", daemon=True).start()
        return await found


def _addresses(host: str) -> list[str]:
    # as bytes: the name is ASCII already, and str goes through a codec that refuses what DNS allows
    answers = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    found = []
    for _family, _type, _proto, _name, sockaddr in answers:
        address = str(sockaddr[0])
        scope = sockaddr[3] if len(sockaddr) == 4 else 0
        found.append(f"{address}%{scope}" if scope and "%" not in address else address)
    return list(dict.fromkeys(found))
