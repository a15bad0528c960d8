"""Taking in a body piece by piece: decompressed under the byte cap, no slower than the least rate."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable

import aiohttp
from multidict import istr

from curate.fetch.clock import Clock
from curate.fetch.faults import ALWAYS, Failed
from curate.fetch.settings import FetchLimits

Grow = Callable[[int], Awaitable[None]]
"""Called with the size of each piece of a body before it is kept; may wait until there is memory for it."""

_CONTENT_ENCODING = istr("Content-Encoding")


async def receive(
    response: aiohttp.ClientResponse, most: int, limits: FetchLimits, clock: Clock, grow: Grow | None, *, cut: bool
) -> bytes:
    """The body of `response`, of at most `most` bytes; with `cut`, what comes after those is left.

    The running `clock` stands still during `grow`. Raises Failed, and what aiohttp and zlib raise.
    """
    content = response.content
    encoding = response.headers.get(_CONTENT_ENCODING)
    inflate = None
    pieces: list[bytes] = []
    piece = b""
    received = size = 0
    begin = clock.left_now()
    try:
        while chunk := await content.readany():
            if encoding and not received:
                inflate = _inflater(encoding, chunk)
            received += len(chunk)
            piece = chunk
            if inflate is not None:
                # what follows its end is nothing, and zlib would copy all of it anew with every piece
                piece = b"" if inflate.eof else inflate.decompress(chunk, most + 1 - size)
            size += len(piece)
            if max(received, size) > most:
                if cut:
                    return b"".join([*pieces, piece])[:most]
                raise Failed("too_large", f"more than {most} bytes")
            if grow is not None:
                clock.hold()
                await grow(len(piece))
                clock.go_on()
            pieces.append(piece)
            seconds = begin - clock.left_now()
            if seconds > limits.idle_seconds and received < limits.min_rate * seconds:
                raise Failed("timeout", f"slower than {limits.min_rate} bytes/s")
        if inflate and not inflate.eof:
            raise Failed("reset", "the compressed body ended early", again=ALWAYS)
        if not size:
            raise Failed("empty", "a body of zero bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    finally:
        # an error holds this frame and is held by `content`: the body would wait for the garbage collector
        pieces.clear()
        piece = chunk = b""


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
