"""Which addresses may be connected to, and a resolver that hands on no others.

A list of URLs comes from strangers, so a name may point into the network that the download runs in. The
check is made on what a name resolved to, and the connection goes to the address that was checked: a second
look-up with another answer is not possible in between.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""From a host name to its addresses, in the order to try them; raises OSError where there are none."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE = ipaddress.IPv6Network("::/96")


class PrivateAddress(OSError):
    """A host has only addresses that must not be connected to."""


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


class CheckedResolver(AbstractResolver):
    """Resolves names for aiohttp's connector; raises PrivateAddress where no address passes `permitted`.

    `lookup` stands in for the system's resolver. Look-ups have threads of their own, so that a name server
    that stays silent holds up nothing else.
    """

    def __init__(
        self,
        permitted: Callable[[str], bool],
        *,
        lookup: Lookup | None = None,
        timeout_seconds: float = 5.0,
        threads: int = 32,
    ) -> None:
        self._permitted = permitted
        self._lookup = lookup or self._system
        self._timeout = timeout_seconds
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The permitted addresses of `host`, in the resolver's order."""
        try:
            addresses = await asyncio.wait_for(self._lookup(host), self._timeout)
        except asyncio.TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "the name server did not answer in time") from None
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        allowed = [a for a in addresses if self._permitted(a)]
        if not allowed:
            raise PrivateAddress(f"{host} resolves to {', '.join(addresses)}")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in allowed
        ]

    async def close(self) -> None:
        """Let go of the look-up threads; one that still waits for a name server ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _system(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _addresses, host)
        return list(dict.fromkeys(found))


def _addresses(host: str) -> list[str]:
    answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    found = []
    for _family, _type, _proto, _name, sockaddr in answers:
        address = str(sockaddr[0])
        scope = sockaddr[3] if len(sockaddr) == 4 else 0
        found.append(f"{address}%{scope}" if scope and "%" not in address else address)
    return found
