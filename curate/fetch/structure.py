"""Walks over what image files are made of: JPEG segments, PNG and RIFF chunks, GIF blocks, TIFF tags, ISO boxes.

Nothing is decoded or copied: a walk yields where things lie. `sniff` reads headers with these, `strip` leaves
parts out. Every walk ends on any bytes; a field that lies beyond the file raises Cut or struct.error.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

MOST = 1_000_000
"""So many pieces of a file are walked; the rest of it is as if it were not there."""

_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd9-\xfe])")
_EOI = 0xD9
_MOST_PAGES = 100_000


class Cut(Exception):
    """The file ends before what is asked for."""


class Piece(NamedTuple):
    """A segment, chunk or box: `at` is where it begins, its content lies from `start` to `end`."""

    kind: bytes
    at: int
    start: int
    end: int


def jpeg_segments(body: bytes) -> Iterator[Piece]:
    """The segments of a JPEG, kind one byte, up to the end marker, that one too.

    Between two segments lies what decoders skip or, after a start of scan (DA), the coded picture.
    """
    position = 2
    for _ in range(MOST):
        found = _MARKER.search(body, position)
        if found is None:
            return
        start = found.end()
        if found[1][0] == _EOI:
            yield Piece(found[1], found.start(), start, start)
            return
        (length,) = struct.unpack_from(">H", body, start)
        position = start + max(length, 2)
        yield Piece(found[1], found.start(), start + 2, position)


def png_chunks(body: bytes) -> Iterator[Piece]:
    """The chunks of a PNG; four bytes of checksum lie after each."""
    position = 8
    for _ in range(MOST):
        if position + 8 > len(body):
            return
        length, kind = struct.unpack_from(">I4s", body, position)
        yield Piece(kind, position, position + 8, position + 8 + length)
        position += 12 + length


def riff_chunks(body: bytes) -> Iterator[Piece]:
    """The chunks of a WebP, as far as it says to reach; one byte fills up those of odd length."""
    (length,) = struct.unpack_from("<I", body, 4)
    position, stop = 12, min(8 + length, len(body))
    for _ in range(MOST):
        if position + 8 > stop:
            return
        kind, length = struct.unpack_from("<4sI", body, position)
        yield Piece(kind, position, position + 8, position + 8 + length)
        position += 8 + length + (length & 1)


def gif_frames(body: bytes) -> int:
    """How many frames a GIF holds. Raises Cut where the file ends within a block."""

    def after_colours(at: int) -> int:
        return at + 1 + (3 << (body[at] & 7) + 1 if body[at] & 0x80 else 0)

    frames = 0
    try:
        position = after_colours(10) + 2
        for _ in range(MOST):
            kind = body[position : position + 1]
            if kind == b",":
                frames += 1
                position = after_colours(position + 9) + 1
            elif kind == b"!":
                position += 2
            else:  # the end, or bytes after it
                return frames
            while length := body[position]:
                position += 1 + length
            position += 1
    except IndexError:
        raise Cut from None
    return frames


def boxes(body: bytes, inside: tuple[bytes, ...], position: int = 0, end: int | None = None) -> Iterator[Piece]:
    """ISO boxes, and those in the boxes whose types are in `inside`."""
    end = len(body) if end is None else end
    for _ in range(MOST):
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
        yield Piece(kind, position, start, stop)
        if kind in inside:
            deeper = tuple(name for name in inside if name != kind)  # a box in its own kind is a trap
            yield from boxes(body, deeper, start + (4 if kind == b"meta" else 0), stop)
        position = stop


def tiff_tags(tiff: bytes) -> tuple[dict[int, int], int]:
    """Tag to first value of the whole-number entries of a TIFF's first directory, and the number of directories.

    BigTIFF too.
    """
    order = "<" if tiff[:2] == b"II" else ">"
    (magic,) = struct.unpack_from(order + "H", tiff, 2)
    big = magic == 43
    offset, entry, inline = ("Q", 20, 8) if big else ("I", 12, 4)

    def directory(position: int) -> tuple[int, int]:
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), tiff, position)
        return count, position + (8 if big else 2)

    (position,) = struct.unpack_from(order + offset, tiff, 8 if big else 4)
    count, at = directory(position)
    found: dict[int, int] = {}
    for here in range(at, at + entry * min(count, 1000), entry):
        tag, kind = struct.unpack_from(order + "HH", tiff, here)
        (values,) = struct.unpack_from(order + offset, tiff, here + 4)
        form = {3: "H", 4: "I", 16: "Q"}.get(kind)
        if form:
            place = here + (12 if big else 8)
            if values * struct.calcsize("=" + form) > inline:
                (place,) = struct.unpack_from(order + offset, tiff, place)
            try:
                (found[tag],) = struct.unpack_from(order + form, tiff, place)
            except struct.error:
                continue
    pages: set[int] = set()
    try:
        while position and position not in pages and len(pages) < _MOST_PAGES:
            pages.add(position)
            count, at = directory(position)
            (position,) = struct.unpack_from(order + offset, tiff, at + entry * count)
    except struct.error:
        pass
    return found, max(1, len(pages))
