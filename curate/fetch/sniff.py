"""What an image file says of itself in its header: format, size, frames, mode, orientation; nothing is decoded.

Sizes are known before a decoder allocates anything, so that a bomb is refused by a few hundred bytes. Only
formats that OpenCV decodes in all its usual builds are known here; anything else is not an image to us.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from curate.fetch.structure import Cut, boxes, gif_frames, jpeg_segments, png_chunks, riff_chunks, tiff_tags

_ORIENTATION = 0x0112
_MOST_SCANS = 100
"""Encoders make some ten scans of a progressive JPEG; each costs a pass over the whole picture."""
_PNG_MODES = {0: "gray", 2: "rgb", 3: "palette", 4: "la", 6: "rgba"}
_TIFF_MODES = {0: "gray", 1: "gray", 3: "palette", 5: "cmyk"}
_BY_CHANNELS = {1: "gray", 2: "la", 3: "rgb", 4: "rgba"}


@dataclass(frozen=True)
class Header:
    """Pixels as stored, before EXIF's `orientation` (1 to 8) is applied.

    `mode` is gray, rgb, rgba, la, palette or cmyk, with "16" appended where a sample has more than 8 `bits`.
    `frames` counts frames or pages. `exif` is where the EXIF directory begins and ends in the file. `flaw` says
    why the file cannot or shall not be decoded, so far as that is seen without decoding.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    frames: int = 1
    mode: str = "rgb"
    bits: int = 8
    exif: tuple[int, int] | None = None
    flaw: str | None = None


def sniff(body: bytes) -> Header | None:
    """The header of `body`, or None where it is in no known image format or cut before its size is told."""
    for known, read in _READERS:
        if known(body):
            try:
                return read(body)
            except (struct.error, IndexError, Cut):
                return None
    return None


def _deep(mode: str, bits: int) -> str:
    return f"{mode}16" if bits > 8 else mode


def _jpeg(body: bytes) -> Header:
    exif = None
    for kind, _, start, end in jpeg_segments(body):
        marker = kind[0]
        if marker == 0xE1 and exif is None and body[start : start + 6] == b"Exif\0\0":
            exif = start + 6, end
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack_from(">BHHB", body, start)
            flaw = None
            if body.rfind(b"\xff\xd9", start) < 0:
                flaw = "the file is cut short"
            elif marker <= 0xC2 and 8 * (len(body) - end) < _jpeg_blocks(body[start:end], width, height):
                flaw = f"too few bytes for {width} x {height} pixels"
            elif marker not in (0xC0, 0xC1) and body.count(b"\xff\xda", start) > _MOST_SCANS:
                flaw = f"a progressive JPEG of more than {_MOST_SCANS} scans"
            mode = _deep({1: "gray", 4: "cmyk"}.get(channels, "rgb"), bits)
            return Header("jpeg", width, height, _orientation(body, exif), 1, mode, bits, exif, flaw)
        elif marker in (0xD9, 0xDA):
            break
    raise Cut


def _jpeg_blocks(frame: bytes, width: int, height: int) -> int:
    """How many blocks a frame has at least; Huffman codes take a bit or more for each."""
    sampling = [(frame[at] >> 4, frame[at] & 15) for at in range(7, 6 + 3 * frame[5], 3)]
    if len(sampling) == 1:
        return (width // 8) * (height // 8)
    across, down = max(x for x, _ in sampling) or 1, max(y for _, y in sampling) or 1
    return (width // (8 * across)) * (height // (8 * down)) * sum(x * y for x, y in sampling)


def _png(body: bytes) -> Header:
    width, height, bits, colour = struct.unpack_from(">IIBB", body, 16)
    frames, exif = 1, None
    for kind, _, start, end in png_chunks(body):
        if kind == b"acTL":
            frames = max(1, *struct.unpack_from(">I", body, start))
        elif kind == b"eXIf":
            exif = start, end
        elif kind == b"IDAT":
            break
    mode = _deep(_PNG_MODES.get(colour, "rgb"), bits)
    return Header("png", width, height, _orientation(body, exif), frames, mode, bits, exif)


def _gif(body: bytes) -> Header:
    width, height = struct.unpack_from("<HH", body, 6)
    try:
        return Header("gif", width, height, frames=max(1, gif_frames(body)), mode="palette")
    except Cut:
        return Header("gif", width, height, mode="palette", flaw="the file is cut short")


def _bmp(body: bytes) -> Header:
    (size,) = struct.unpack_from("<I", body, 14)
    width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", body, 18)
    return Header("bmp", abs(width), abs(height), mode="palette" if bits <= 8 else "rgb")


def _webp(body: bytes) -> Header:
    kind = body[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 21)
        mode = "rgba" if bits >> 28 & 1 else "rgb"
        return Header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, mode=mode)
    if kind != b"VP8X":
        raise Cut
    flags = body[20]
    width = int.from_bytes(body[24:27], "little") + 1
    height = int.from_bytes(body[27:30], "little") + 1
    frames, exif = 0, None
    for name, _, start, end in riff_chunks(body):
        if name == b"ANMF":
            frames += 1
        elif name == b"EXIF" and exif is None:
            exif = start + (6 if body[start : start + 6] == b"Exif\0\0" else 0), end
    mode = "rgba" if flags & 0x10 else "rgb"
    return Header("webp", width, height, _orientation(body, exif), max(1, frames), mode, exif=exif)


def _tiff(body: bytes) -> Header:
    tags, pages = tiff_tags(body)
    if 256 not in tags or 257 not in tags:
        raise Cut
    width, height, bits, channels = tags[256], tags[257], tags.get(258, 1), tags.get(277, 1)
    mode = _TIFF_MODES.get(tags.get(262, 2), "rgb")
    if (mode, channels) in (("gray", 2), ("rgb", 4)):
        mode = _BY_CHANNELS[channels]
    turn = tags.get(_ORIENTATION, 1)
    tile = tags.get(322, 0) * tags.get(323, 0)
    flaw = "tiles far larger than the picture" if tile > max(1 << 22, 4 * width * height) else None
    orientation = turn if 1 <= turn <= 8 else 1
    return Header("tiff", width, height, orientation, pages, _deep(mode, bits), bits, (0, len(body)), flaw)


_IN_AVIF = (b"meta", b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"stbl")
_TURNED = {(0, None): 1, (0, 0): 4, (0, 1): 2, (2, None): 3, (2, 0): 2, (2, 1): 4} | {
    (1, None): 8, (1, 0): 5, (1, 1): 7, (3, None): 6, (3, 0): 7, (3, 1): 5
}  # fmt: skip
"""AVIF's quarter turns against the clock and its mirror (0 up-down, 1 left-right), as EXIF's orientation."""


def _avif(body: bytes) -> Header:
    sizes, samples, frames, alpha, turn, mirror = [], [], 1, False, 0, None
    for kind, _, start, end in boxes(body, _IN_AVIF):
        if kind == b"ispe":
            sizes.append(struct.unpack_from(">II", body, start + 4))
        elif kind == b"pixi":  # one for the picture, one for its alpha
            samples.append((body[start + 4], body[start + 5]))
        elif kind == b"auxC":
            alpha = alpha or b":alpha" in body[start:end] or b":auxid:1" in body[start:end]
        elif kind == b"irot":
            turn = body[start] & 3
        elif kind == b"imir":
            mirror = body[start] & 1
        elif kind == b"stsz":
            frames = max(frames, struct.unpack_from(">I", body, start + 8)[0])
    if not sizes:
        raise Cut
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    channels, bits = max(samples, default=(3, 8))
    mode = _deep(_BY_CHANNELS[(1 if channels == 1 else 3) + alpha], bits)
    return Header("avif", width, height, _TURNED[turn, mirror], frames, mode, bits)


def _jp2(body: bytes) -> Header:
    for kind, _, start, _ in boxes(body, ()):
        if kind == b"jp2c":  # what the decoder goes by; the ihdr box may say anything
            return _j2k(body[start : start + 64])
    raise Cut


def _j2k(body: bytes) -> Header:
    right, bottom, left, top = struct.unpack_from(">IIII", body, 8)
    channels, bits = struct.unpack_from(">HB", body, 40)
    bits = (bits & 0x7F) + 1
    mode = _deep(_BY_CHANNELS.get(channels, "rgb"), bits)
    return Header("jp2", max(0, right - left), max(0, bottom - top), mode=mode, bits=bits)


def _orientation(body: bytes, exif: tuple[int, int] | None) -> int:
    """EXIF's orientation, 1 where there is none or a broken one."""
    if exif is None:
        return 1
    directory = body[slice(*exif)]
    if directory[:2] not in (b"II", b"MM"):
        return 1
    try:
        orientation = tiff_tags(directory)[0].get(_ORIENTATION, 1)
    except struct.error:
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
