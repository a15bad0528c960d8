"""The header tells size, frames, mode, orientation and flaws, before anything is decoded."""

from __future__ import annotations

import io
import struct
import time
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from curate.fetch.sniff import Header, sniff
from curate.fetch.structure import jpeg_segments, png_chunks, riff_chunks


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def header_of(body: bytes) -> Header:
    header = sniff(body)
    assert header is not None
    return header


def deep(kind: str, channels: int, *options: int) -> bytes:
    done, body = cv2.imencode(kind, np.full((30, 40, channels), 900, np.uint16), options)
    assert done
    return bytes(body)


MODES = [
    ("JPEG", "L", "gray"),
    ("JPEG", "RGB", "rgb"),
    ("JPEG", "CMYK", "cmyk"),
    ("PNG", "1", "gray"),
    ("PNG", "L", "gray"),
    ("PNG", "LA", "la"),
    ("PNG", "P", "palette"),
    ("PNG", "RGB", "rgb"),
    ("PNG", "RGBA", "rgba"),
    ("PNG", "I;16", "gray16"),
    ("GIF", "P", "palette"),
    ("BMP", "P", "palette"),
    ("BMP", "RGB", "rgb"),
    ("WEBP", "RGB", "rgb"),
    ("WEBP", "RGBA", "rgba"),
    ("TIFF", "1", "gray"),
    ("TIFF", "L", "gray"),
    ("TIFF", "LA", "la"),
    ("TIFF", "P", "palette"),
    ("TIFF", "RGB", "rgb"),
    ("TIFF", "RGBA", "rgba"),
    ("TIFF", "CMYK", "cmyk"),
    ("TIFF", "I;16", "gray16"),
    ("AVIF", "RGB", "rgb"),
    ("AVIF", "RGBA", "rgba"),
    ("JPEG2000", "L", "gray"),
    ("JPEG2000", "LA", "la"),
    ("JPEG2000", "RGB", "rgb"),
    ("JPEG2000", "RGBA", "rgba"),
    ("JPEG2000", "I;16", "gray16"),
]


@pytest.mark.parametrize(("kind", "mode", "told"), MODES)
def test_mode_and_size(kind: str, mode: str, told: str) -> None:
    name = {"JPEG2000": "jp2"}.get(kind, kind.lower())
    header = header_of(saved(Image.new(mode, (40, 30)), kind))
    assert (header.format, header.width, header.height, header.mode) == (name, 40, 30, told)
    assert (header.frames, header.orientation, header.flaw) == (1, 1, None)


def test_deep_modes_and_lossless_webp() -> None:
    assert header_of(deep(".png", 3)).mode == "rgb16"
    assert header_of(deep(".png", 4)).mode == "rgba16"
    assert header_of(deep(".tiff", 3)).mode == "rgb16"
    assert header_of(saved(Image.new("RGBA", (9, 9)), "WEBP", lossless=True)).mode == "rgba"
    assert header_of(saved(Image.new("RGB", (9, 9)), "WEBP", lossless=True)).mode == "rgb"
    for bits in (10, 12):
        header = header_of(deep(".avif", 3, cv2.IMWRITE_AVIF_DEPTH, bits))
        assert (header.mode, header.bits) == ("rgb16", bits)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_frames_and_pages_are_counted(kind: str, count: int) -> None:
    frames = [Image.effect_noise((24, 16), 50 + n).convert("RGB") for n in range(count)]
    more = {"duration": 40} if kind != "TIFF" else {}
    body = saved(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    assert header_of(body).frames == count


def test_a_count_that_the_header_only_claims_is_believed() -> None:
    frames = [Image.effect_noise((24, 16), 50 + n) for n in range(3)]
    body = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    at = body.index(b"acTL") + 4
    assert header_of(body[:at] + struct.pack(">I", 2**31) + body[at + 4 :]).frames == 2**31


def test_a_gif_ends_where_it_may_and_nowhere_else() -> None:
    frames = [Image.effect_noise((24, 16), 50 + n) for n in range(3)]
    body = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert header_of(body[:-1]).frames == 3
    assert header_of(body[:-1]).flaw is None
    assert header_of(body + b"appended").frames == 3
    for length in range(20, len(body) - 2, 37):
        header = sniff(body[:length])
        assert header is None or header.flaw or header.frames < 3, length


def test_orientation_and_place_of_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    for kind in ("JPEG", "PNG", "WEBP"):
        body = saved(Image.new("RGB", (40, 30)), kind, exif=exif.tobytes())
        header = header_of(body)
        assert (header.orientation, header.width, header.height) == (6, 40, 30)
        assert header.exif
        assert body[slice(*header.exif)][:4] in (b"II*\0", b"MM\0*")
        assert b"Maker" in body[slice(*header.exif)]
    assert header_of(saved(Image.new("RGB", (40, 30)), "TIFF", exif=exif.tobytes())).orientation == 6


@pytest.mark.parametrize("value", range(1, 9))
def test_avif_turns_are_orientations(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert header_of(saved(Image.new("RGB", (40, 30)), "AVIF", exif=exif.tobytes())).orientation == value


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_an_orientation_beyond_eight_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert header_of(saved(Image.new("RGB", (4, 3)), "JPEG", exif=exif.tobytes())).orientation == 1


def test_many_scans_are_a_flaw() -> None:
    body = saved(Image.effect_noise((64, 64), 50), "JPEG", progressive=True)
    assert header_of(body).flaw is None
    scan = next(piece for piece in jpeg_segments(body) if piece.kind == b"\xda")
    again = body[scan.at : scan.end] + b"\0"
    assert "100 scans" in (header_of(body[: scan.at] + again * 200 + body[scan.at :]).flaw or "")


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_of_fewer_bits_than_blocks_is_a_flaw(mode: str, options: dict[str, Any]) -> None:
    for size in ((1, 1), (7, 900), (64, 48), (2000, 2000)):
        flat = saved(Image.new(mode, size), "JPEG", quality=1, **options)
        assert header_of(flat).flaw is None, size
    body = saved(Image.new(mode, (64, 48)), "JPEG", **options)
    at = next(piece.start for piece in jpeg_segments(body) if piece.kind in (b"\xc0", b"\xc2"))
    lie = body[: at + 1] + struct.pack(">HH", 9000, 9000) + body[at + 5 :]
    assert header_of(lie).flaw == "too few bytes for 9000 x 9000 pixels"


def test_a_jp2_is_as_large_as_its_code_says() -> None:
    body = saved(Image.new("RGB", (40, 30)), "JPEG2000")
    at = body.index(b"\xff\x4f\xff\x51") + 8
    lie = body[:at] + struct.pack(">II", 50_000, 50_000) + body[at + 8 :]
    assert (header_of(lie).width, header_of(lie).height) == (50_000, 50_000)


def test_tiff_tiles_larger_than_the_picture_are_a_flaw() -> None:
    tags = [(256, 40), (257, 30), (258, 8), (262, 1), (277, 1), (322, 16_384), (323, 16_384), (324, 8), (325, 1)]
    body = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, value in tags:
        body += struct.pack("<HHII", tag, 4, 1, value)
    assert "tiles" in (header_of(body + bytes(4)).flaw or "")


def test_every_walk_ends() -> None:
    begin = time.process_time()
    traps = [
        b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"!\xfe" + b"\x01x" * 3_000_000,
        b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"!\xfe\0" * 3_000_000,
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 9, 9, 8, 2, 0, 0, 0) + bytes(9_000_000),
        b"RIFF\0\0\0\0WEBPVP8X" + struct.pack("<I", 10) + bytes(9_000_000),
        b"\xff\xd8\xff" + b"\xfe\0\0\xff" * 3_000_000,
        b"\0\0\0\x1cftypavif" + bytes(16) + b"\0\0\0\x08moov" * 1_000_000,
        b"\0\0\0\x1cftypavif" + bytes(16) + b"\0\0\0\0moov\0\0\0\0trak" * 500_000,
        b"II*\0\x08\0\0\0" + b"\0\0\x08\0\0\0" + bytes(100),
    ]
    for body in traps:
        header = sniff(body)
        assert header is None or header.frames == 1, body[:12]
        for walk in (jpeg_segments, png_chunks, riff_chunks):
            try:
                assert sum(1 for _ in walk(body)) <= 1_000_000
            except struct.error:
                continue
    assert time.process_time() - begin < 20


def test_broken_bytes_give_a_header_or_none() -> None:
    rng = np.random.default_rng(3)
    for kind, mode, _ in MODES:
        body = saved(Image.new(mode, (40, 30)), kind)
        for _ in range(60):
            broken = bytearray(body[: int(rng.integers(1, len(body) + 1))])
            for at in rng.integers(0, len(broken), 6):
                broken[at] = rng.integers(0, 256)
            header = sniff(bytes(broken))
            assert header is None or 1 <= header.orientation <= 8
