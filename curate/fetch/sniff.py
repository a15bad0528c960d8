"""What an image file says of itself in its header: format, size, frames, orientation; nothing is decoded.

Sizes are known before a decoder allocates anything, so that a bomb is refused by a few hundred bytes. Only
formats that OpenCV decodes in all its usual builds are known here; anything else is not an image to us.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MAX_BOXES = 10_000
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Header:
    """Pixels as stored; `orientation` (EXIF's 1 to 8) is what OpenCV leaves to us: it turns TIFFs itself.

    `whole` is false where the file is seen to be cut short without decoding it.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    animated: bool = False
    whole: bool = True


def sniff(body: bytes) -> Header | None:
    """The header of `body`, or None where it is in no known image format or cut before its size is told."""
    for known, read in _READERS:
        if known(body):
            try:
                return read(body)
            except (struct.error, IndexError, _Cut):
                return None
    return None


class _Cut(Exception):
    """The file ends before the header does."""


def _jpeg(body: bytes) -> Header:
    orientation = 1
    position = 2
    while True:
        position = body.find(b"\xff", position)  # decoders skip stray bytes between segments
        if position < 0:
            raise _Cut
        marker = body[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in (0x00, 0x01, *range(0xD0, 0xD9)):
            position += 2
            continue
        (length,) = struct.unpack_from(">H", body, position + 2)
        start = position + 4
        if marker == 0xE1 and body[start : start + 6] == b"Exif\0\0":
            orientation = _exif_orientation(body[start + 6 : position + 2 + length])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", body, start + 1)
            whole = body.rfind(b"\xff\xd9", start) > 0
            return Header("jpeg", width, height, orientation, whole=whole)
        elif marker in (0xD9, 0xDA):
            raise _Cut
        position += 2 + length


def _png(body: bytes) -> Header:
    width, height = struct.unpack_from(">II", body, 16)
    orientation, animated = 1, False
    position = 8
    for _ in range(_MAX_BOXES):
        if position + 8 > len(body):
            break
        length, kind = struct.unpack_from(">I4s", body, position)
        if kind == b"acTL":
            animated = True
        elif kind == b"eXIf":
            orientation = _exif_orientation(body[position + 8 : position + 8 + length])
        elif kind == b"IDAT":
            break
        position += 12 + length
    return Header("png", width, height, orientation, animated)


def _gif(body: bytes) -> Header:
    width, height = struct.unpack_from("<HH", body, 6)
    return Header("gif", width, height)


def _bmp(body: bytes) -> Header:
    (size,) = struct.unpack_from("<I", body, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", body, 18)
    return Header("bmp", abs(width), abs(height))


def _webp(body: bytes) -> Header:
    kind = body[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 21)
        return Header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        raise _Cut
    flags = body[20]
    width = int.from_bytes(body[24:27], "little") + 1
    height = int.from_bytes(body[27:30], "little") + 1
    orientation = 1
    position = 12
    for _ in range(_MAX_BOXES if flags & 0x08 else 0):
        if position + 8 > len(body):
            break
        name, length = struct.unpack_from("<4sI", body, position)
        if name == b"EXIF":
            data = body[position + 8 : position + 8 + length]
            orientation = _exif_orientation(data.removeprefix(b"Exif\0\0"))
            break
        position += 8 + length + (length & 1)
    return Header("webp", width, height, orientation, bool(flags & 0x02))


def _tiff(body: bytes) -> Header:
    tags = _ifd(body)
    if 256 not in tags or 257 not in tags:
        raise _Cut
    return Header("tiff", tags[256], tags[257])


def _avif(body: bytes) -> Header:
    sizes = [
        struct.unpack_from(">II", body, start + 4)
        for kind, start, _ in _boxes(body, 0, len(body), inside=(b"meta", b"iprp", b"ipco"))
        if kind == b"ispe"
    ]
    if not sizes:
        raise _Cut
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header("avif", width, height, animated=body[8:12] == b"avis")


def _jp2(body: bytes) -> Header:
    for kind, start, _ in _boxes(body, 0, len(body), inside=(b"jp2h",)):
        if kind == b"ihdr":
            height, width = struct.unpack_from(">II", body, start)
            return Header("jp2", width, height)
    raise _Cut


def _j2k(body: bytes) -> Header:
    right, bottom, left, top = struct.unpack_from(">IIII", body, 8)
    return Header("jp2", max(0, right - left), max(0, bottom - top))


def _boxes(body: bytes, position: int, end: int, inside: tuple[bytes, ...]) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the content of ISO boxes, and of those in boxes of the types in `inside`."""
    for _ in range(_MAX_BOXES):
        if position + 8 > end:
            return
        length, kind = struct.unpack_from(">I4s", body, position)
        start = position + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", body, start)
            start += 8
        stop = end if length == 0 else min(position + length, end)
        if stop < start:
            return
        yield kind, start, stop
        if kind in inside:
            yield from _boxes(body, start + (4 if kind == b"meta" else 0), stop, inside)
        position = stop


def _ifd(tiff: bytes) -> dict[int, int]:
    """Tag to first value of the whole-number entries of a TIFF's first directory (BigTIFF too)."""
    order = "<" if tiff[:2] == b"II" else ">"
    (magic,) = struct.unpack_from(order + "H", tiff, 2)
    big = magic == 43
    (position,) = struct.unpack_from(order + ("Q" if big else "I"), tiff, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), tiff, position)
    position += 8 if big else 2
    found: dict[int, int] = {}
    for _ in range(min(count, 1000)):
        tag, kind = struct.unpack_from(order + "HH", tiff, position)
        form = {3: "H", 4: "I", 16: "Q"}.get(kind)
        if form:
            (found[tag],) = struct.unpack_from(order + form, tiff, position + (12 if big else 8))
        position += 20 if big else 12
    return found


def _exif_orientation(tiff: bytes) -> int:
    if tiff[:2] not in (b"II", b"MM"):
        return 1
    try:
        orientation = _ifd(tiff).get(_ORIENTATION, 1)
    except (struct.error, IndexError):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], Header]], ...] = (
    (lambda b: b[:3] == b"\xff\xd8\xff", _jpeg),
    (lambda b: b[:8] == b"\x89PNG\r\n\x1a\n" and b[12:16] == b"IHDR", _png),
    (lambda b: b[:4] == b"RIFF" and b[8:12] == b"WEBP", _webp),
    (lambda b: b[:6] in (b"GIF87a", b"GIF89a"), _gif),
    (lambda b: b[:2] == b"BM", _bmp),
    (lambda b: b[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
    (lambda b: b[4:12] in (b"ftypavif", b"ftypavis"), _avif),
    (lambda b: b[:12] == b"\0\0\0\x0cjP  \r\n\x87\n", _jp2),
    (lambda b: b[:4] == b"\xff\x4f\xff\x51", _j2k),
)
