"""Hostile and broken image files cost one row, little time and little memory."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate.errors import SampleError
from curate.fetch.images import convert
from curate.fetch.settings import ImageSettings

ALONE = """
import resource, sys
from curate.errors import SampleError
from curate.fetch.images import convert, use_one_thread
from curate.fetch.settings import ImageSettings
use_one_thread()
body = sys.stdin.buffer.read()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    found = convert(body, ImageSettings(**eval(sys.argv[1])))
    word = f"{found.original_width}x{found.original_height}"
except SampleError as error:
    word = error.code
print(word, (peak() - before) // 1024)
"""


def alone(body: bytes, **settings: Any) -> tuple[str, int]:
    """The error code or the size of what was in `body`, and the megabytes that it took at most to find out."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, repr(settings)], input=body, stdout=subprocess.PIPE, check=True, timeout=60
    )
    word, peak = done.stdout.split()
    return word.decode(), int(peak)


def outcome(body: bytes, **settings: Any) -> str:
    try:
        found = convert(body, ImageSettings(**settings))
    except SampleError as error:
        failure = error
    else:
        return f"{found.original_width}x{found.original_height}"
    assert not {"\n", "/"} & set(failure.what)  # no text and no path of a decoder's source
    return failure.code


def saved(kind: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 0).save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, *more: bytes, data: bytes | None = None) -> bytes:
    """A PNG with every byte of its picture zero, and with `more` chunks before it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    if data is None:
        row = 1 + (width * depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour] + 7) // 8
        data = zlib.compress(bytes(row * height), 1)
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def relabelled(body: bytes, mark: bytes, skip: int, form: str, *sizes: int) -> bytes:
    """`body` with other numbers `skip` bytes after the first `mark`."""
    at = body.index(mark) + skip
    return body[:at] + struct.pack(form, *sizes) + body[at + struct.calcsize(form) :]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(png(20_000, 20_000, 1, 0), id="1 bit 20000"),
        pytest.param(png(12_000, 12_000, 8, 6, data=b""), id="RGBA 12000"),
        pytest.param(png(40_000, 40_000, 8, 2, data=b""), id="40000"),
        pytest.param(png(2**31 - 1, 2**31 - 1, 8, 2, data=b""), id="2^31"),
        pytest.param(png(2**32 - 1, 2**32 - 1, 8, 2, data=b""), id="2^32"),
        pytest.param(relabelled(saved("GIF"), b"GIF8", 6, "<HH", 65_535, 65_535), id="GIF"),
        pytest.param(relabelled(saved("JPEG"), b"\xff\xc0", 5, ">HH", 65_500, 65_500), id="JPEG"),
        pytest.param(relabelled(saved("BMP"), b"BM", 18, "<ii", 50_000, -50_000), id="BMP"),
        pytest.param(relabelled(saved("AVIF"), b"ispe", 8, ">II", 50_000, 50_000), id="AVIF"),
        pytest.param(relabelled(saved("JPEG2000"), b"\xff\x4f\xff\x51", 8, ">II", 50_000, 50_000), id="JP2"),
        pytest.param(relabelled(saved("TIFF"), b"\x00\x01\x04\x00\x01\0\0\0", 8, "<I", 10_000_000), id="TIFF"),
        pytest.param(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0", id="WEBP"),
    ],
)
def test_bombs_are_refused_by_their_header(body: bytes) -> None:
    begin = time.process_time()
    assert outcome(body) == "too_many_pixels"
    assert time.process_time() - begin < 0.2


def test_a_refused_bomb_takes_no_memory() -> None:
    word, peak = alone(png(20_000, 20_000, 1, 0))
    assert word == "too_many_pixels"
    assert peak < 10


@pytest.mark.parametrize(
    ("depth", "colour", "most"),
    # the frame as decoded, and what of it becomes the picture: 4 + 3, 8 + 4 + 3, 1 and 3 bytes a pixel
    [(8, 6, 80), (16, 6, 160), (1, 0, 20), (8, 2, 40)],
)
def test_just_under_the_limit_memory_is_bounded(depth: int, colour: int, most: int) -> None:
    body = png(3_000, 3_000, depth, colour)
    word, peak = alone(body, max_pixels=9_000_000)
    assert word == "3000x3000"
    assert peak < most
    assert outcome(body, max_pixels=8_999_999) == "too_many_pixels"


LARGE = zlib.compress(bytes(100_000_000), 9)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(chunk(b"zTXt", b"a\0\0" + LARGE), id="zTXt"),
        pytest.param(chunk(b"iTXt", b"a\0\1\0\0\0" + LARGE), id="iTXt"),
        pytest.param(chunk(b"iCCP", b"a\0\0" + LARGE), id="iCCP"),
        pytest.param(chunk(b"tEXt", b"a\0" + bytes(20_000_000)), id="tEXt"),
        pytest.param(chunk(b"prVt", bytes(20_000_000)), id="a stranger's"),
        pytest.param(chunk(b"zTXt", b"a\0\0" + LARGE) * 200, id="200 of zTXt"),
        pytest.param(chunk(b"tEXt", b"a\0b") * 50_000, id="50,000 of tEXt"),
    ],
)
def test_chunks_beside_the_picture_are_not_inflated(more: bytes) -> None:
    body = png(64, 48, 8, 2, more)
    begin = time.process_time()
    assert outcome(body) == "64x48"
    assert time.process_time() - begin < 1


def test_a_text_chunk_takes_no_memory() -> None:
    word, peak = alone(png(64, 48, 8, 2, chunk(b"zTXt", b"a\0\0" + LARGE)))
    assert word == "64x48"
    assert peak < 10


def test_a_png_of_more_data_than_picture_takes_no_memory() -> None:
    word, peak = alone(png(64, 48, 8, 2, data=zlib.compress(bytes(100_000_000), 9)))
    assert word in ("64x48", "bad_image")
    assert peak < 20


def _two_headers() -> bytes:
    return saved("PNG")[:33] + saved("PNG", (3000, 3000))[8:]


def _second_frame_header() -> bytes:
    small, large = saved("JPEG"), saved("JPEG", (3000, 3000))
    frame = small.index(b"\xff\xc0")
    length = 2 + struct.unpack_from(">H", small, frame + 2)[0]
    at = large.index(b"\xff\xc0")
    return large[:at] + small[frame : frame + length] + large[at:]


LIES = [
    ("two IHDR", _two_headers),
    ("two SOF", _second_frame_header),
    ("JPEG large, data small", lambda: relabelled(saved("JPEG"), b"\xff\xc0", 5, ">HH", 9000, 9000)),
    ("JPEG of no height", lambda: relabelled(saved("JPEG"), b"\xff\xc0", 5, ">HH", 0, 64)),
    ("PNG of no width", lambda: png(0, 48, 8, 2, data=b"")),
    ("PNG of no data", lambda: png(64, 48, 8, 2, data=b"")),
    ("BMP of no height", lambda: relabelled(saved("BMP"), b"BM", 18, "<ii", 64, 0)),
    ("GIF of no width", lambda: relabelled(saved("GIF"), b"GIF8", 6, "<HH", 0, 48)),
    ("GIF frame beyond its screen", lambda: relabelled(saved("GIF"), b",", 5, "<HH", 60_000, 60_000)),
    ("WebP canvas small, picture large", lambda: relabelled(
        saved("WEBP", (3000, 3000), exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0"), b"VP8X", 12, "<HBHB", 63, 0, 47, 0
    )),
    ("TIFF of floats", lambda: saved("TIFF", mode="F")),
    ("TIFF of 32 bits", lambda: saved("TIFF", mode="I")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make"), LIES)
def test_headers_that_lie_store_nothing(name: str, make: Callable[[], bytes]) -> None:
    word, peak = alone(make())
    assert word == "bad_image", name
    assert peak < 60, name


def test_an_avif_larger_than_it_says_is_bounded() -> None:
    """The decoder goes by what the file says; the coded picture may be larger, as far as libavif lets it."""
    word, peak = alone(relabelled(saved("AVIF", (3000, 3000)), b"ispe", 8, ">II", 64, 48))
    assert word in ("64x48", "bad_image")
    assert peak < 120


def test_bytes_appended_to_an_image_are_not_stored() -> None:
    secret = b"<script>alert('zip, script or second picture')</script>"
    for kind, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        quality = 1 if kind == "PNG" else 95
        for skip in (False, True):
            settings = ImageSettings(skip_reencode=skip, encode_format=extension, encode_quality=quality)
            stored = convert(saved(kind) + secret, settings)
            assert secret not in stored.data
            assert np.asarray(Image.open(io.BytesIO(stored.data))).max() == 0
