"""An image file without what it says beside its picture: EXIF, places, XMP, comments, thumbnails, appended bytes.

The coded picture is copied as it is, so the pixels are the same. What is kept is what a decoder needs to show the
right colours; anything unknown goes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise

from curate.fetch.structure import MOST, jpeg_segments, png_chunks, riff_chunks

_PNG_SHOWN = frozenset(
    (
        *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"bKGD", b"pHYs"),
        *(b"cHRM", b"gAMA", b"iCCP", b"sRGB", b"sBIT", b"cICP", b"mDCV", b"cLLI"),
    )
)
_PNG_MOVING = frozenset((b"acTL", b"fcTL", b"fdAT"))
_WEBP_SHOWN = frozenset((b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP"))
_WEBP_TELLS = 0x08 | 0x04
"""VP8X flags: an EXIF chunk, an XMP chunk."""


def without_metadata(body: bytes, kind: str) -> bytes | None:
    """`body`, a still of format `kind`, with the same picture and nothing told beside it.

    None where that cannot be done without encoding it again. `body` itself where there is nothing to leave out.
    """
    strip = {"jpeg": _jpeg, "png": _png, "webp": _webp}.get(kind)
    if strip is None:
        return None
    try:
        return strip(body)
    except struct.error:
        return None


def to_decode(png: bytes) -> bytes:
    """A PNG without texts and strangers' chunks: a decoder would inflate the ones and refuse large others.

    `png` itself where there are none.
    """
    moving_too = _PNG_SHOWN | _PNG_MOVING
    return _png_of(png, lambda kind: kind in moving_too or _is_critical(kind)) or png


def _jpeg(body: bytes) -> bytes | None:
    parts = [body[:2]]
    segments = list(jpeg_segments(body))
    if not segments or segments[-1].kind != b"\xd9":
        return None
    for (kind, at, start, end), following in pairwise(segments):
        marker = kind[0]
        if marker == 0xE0 and body[start : start + 5] == b"JFIF\0" and end - start >= 14:
            parts.append(b"\xff\xe0\0\x10" + body[start : start + 12] + b"\0\0")  # no thumbnail
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or _is_colour(marker, body[start : start + 12]):
            parts.append(body[at:end])
        if marker == 0xDA:
            parts.append(body[end : following.at])
    parts.append(b"\xff\xd9")
    return _joined(parts, body)


def _is_colour(marker: int, content: bytes) -> bool:
    return (marker == 0xE2 and content == b"ICC_PROFILE\0") or (marker == 0xEE and content[:5] == b"Adobe")


def _png(body: bytes) -> bytes | None:
    if any(_is_critical(chunk.kind) and chunk.kind not in _PNG_SHOWN for chunk in png_chunks(body)):
        return None
    return _png_of(body, lambda kind: kind in _PNG_SHOWN)


def _is_critical(kind: bytes) -> bool:
    return not kind[0] & 0x20


def _png_of(body: bytes, wanted: Callable[[bytes], bool]) -> bytes | None:
    """The PNG of the chunks that are `wanted`, neighbours in one piece; None where it has no end."""
    parts = [body[:8]]
    begin = 8
    for count, (kind, at, _, end) in enumerate(png_chunks(body), 1):
        if end + 4 > len(body) or count == MOST:
            return None
        if not wanted(kind):
            parts.append(body[begin:at])
            begin = end + 4
        if kind == b"IEND":
            parts.append(body[begin : end + 4])
            return _joined(parts, body)
    return None


def _webp(body: bytes) -> bytes | None:
    parts = []
    for kind, _, start, end in riff_chunks(body):
        if end > len(body):
            return None
        content = body[start:end]
        if kind == b"VP8X" and content:
            content = bytes([content[0] & ~_WEBP_TELLS]) + content[1:]
        if kind in _WEBP_SHOWN:
            parts.append(struct.pack("<4sI", kind, len(content)) + content + bytes(len(content) & 1))
    length = 4 + sum(map(len, parts))
    return _joined([b"RIFF", struct.pack("<I", length), b"WEBP", *parts], body)


def _joined(parts: list[bytes], body: bytes) -> bytes:
    joined = b"".join(parts)
    return body if joined == body else joined
