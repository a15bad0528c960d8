"""What went wrong with a request, said in error codes, and whether asking again could mend it."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import zlib

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from curate.errors import SampleError
from curate.fetch.addresses import NO_SUCH_HOST, PrivateAddress

TROUBLE = (aiohttp.ClientError, HttpProcessingError, asyncio.TimeoutError, OSError, ValueError, zlib.error)
"""What aiohttp, the resolver, TLS and zlib raise for what a host does; anything else is a bug of ours."""

ALWAYS = 1 << 30
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
_NO_WAY_OUT = {errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EHOSTDOWN}


class Failed(SampleError):
    """One try came to nothing; another makes sense in `after` seconds, if fewer than `again` were made.

    `silent` where the host gave no sign of life: no address, no connection, no answer in time. `offline` where
    nobody else did either, name servers and routers included, so that it may be for this machine's line.
    """

    def __init__(
        self,
        code: str,
        what: str,
        *,
        again: int = 1,
        after: float | None = None,
        silent: bool = False,
        offline: bool = False,
    ) -> None:
        super().__init__(code, what)
        self.again = again
        self.after = after
        self.silent = silent
        self.offline = offline


class NotAsked(Failed):
    """Refused on what is known of the host already; no connection was made."""


def named(error: Exception) -> Failed:
    """The error code for one of TROUBLE."""
    cause = getattr(error, "os_error", None) or error.__cause__ or error
    if isinstance(cause, PrivateAddress):
        return Failed("private_address", str(cause))
    if isinstance(cause, socket.gaierror):
        return unresolved(cause)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)) or isinstance(cause, ssl.SSLError):
        what = getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or cause
        return Failed("tls", str(what), silent=True)
    if isinstance(error, aiohttp.ServerTimeoutError):
        idle = isinstance(error, aiohttp.SocketTimeoutError)
        what = "nothing came before the idle deadline" if idle else "no connection before the connect deadline"
        return Failed("timeout", what, again=2, silent=True, offline=True)
    if isinstance(error, asyncio.TimeoutError):
        return Failed("timeout", "no connection before the deadline", again=2, silent=True, offline=True)
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(cause, ConnectionResetError):
        number = getattr(cause, "errno", None)
        what = f"no connection: {getattr(cause, 'strerror', None) or type(cause).__name__}"
        # a machine out of descriptors or ports says nothing about the host
        ours = number in _OURS
        return Failed("refused", what, again=ALWAYS if ours else 1, silent=not ours, offline=number in _NO_WAY_OUT)
    if isinstance(error, (aiohttp.InvalidURL, UnicodeError)):
        return Failed("bad_url", f"the URL cannot be asked for: {error}")
    if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError, ValueError, zlib.error)):
        return Failed("bad_response", f"not valid HTTP: {type(error).__name__}")
    return Failed("reset", f"the connection broke: {type(error).__name__}", again=ALWAYS)


def unresolved(error: socket.gaierror, after: float | None = None) -> Failed:
    """The error code for a failed look-up; one that no name server answered may be repeated in `after` seconds."""
    if error.errno in NO_SUCH_HOST:
        return Failed("no_such_host", error.strerror or "no address")
    return Failed("dns", error.strerror or "no address", again=ALWAYS, after=after, silent=True, offline=True)
