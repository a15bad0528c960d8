"""What is told beside a picture is left out of its file, and the picture stays the same to the last bit."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from curate.fetch.exif import texts
from curate.fetch.images import convert
from curate.fetch.settings import ImageSettings
from curate.fetch.sniff import sniff
from curate.fetch.strip import to_decode, without_metadata

SHARED = Path(__file__).resolve().parents[3] / "shared"
SECRET = b"52.5163N-13.3777E"
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def told() -> bytes:
    """EXIF with a camera, a place, a maker note, a thumbnail's directory and an upright orientation."""
    exif = Image.Exif()
    exif[0x010F] = "Camera & Sons "
    exif[0x010E] = "a harbour"
    exif[0x0112] = 1
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 58.0), 29: SECRET.decode()})
    exif.get_ifd(0x8769).update({0x9003: "2020:01:02 03:04:05", 0x927C: SECRET})
    return exif.tobytes()


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((80, 60))


def saved(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture().save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def telling(kind: str, **options: Any) -> bytes:
    """A file of that kind that tells the secret in every way its format has."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + SECRET + b"</x:xmpmeta>"
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", SECRET.decode())
        info.add_itxt("Place", SECRET.decode())
        body = saved("PNG", exif=told(), pnginfo=info, icc_profile=profile, **options)
        return body[:-12] + chunk(b"prVt", SECRET) + body[-12:] + SECRET
    if kind == "WEBP":
        return saved("WEBP", exif=told(), xmp=xmp, icc_profile=profile, **options) + SECRET
    body = saved("JPEG", exif=told(), xmp=xmp, icc_profile=profile, comment=SECRET, **options)
    photoshop = b"\xff\xed" + struct.pack(">H", 2 + len(SECRET)) + SECRET
    end = body.rindex(b"\xff\xd9")
    return body[:20] + photoshop + body[20:end] + photoshop + body[end:] + SECRET


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"lossless": True}])
@pytest.mark.parametrize("kind", FORMATS)
def test_kept_bytes_tell_nothing(kind: str, options: dict[str, Any]) -> None:
    body = telling(kind, **options)
    assert SECRET in body
    assert without_metadata(saved(kind, **options), kind.lower()) is not None
    quality = 1 if kind == "PNG" else 95
    settings = ImageSettings(image_size=80, skip_reencode=True, encode_format=FORMATS[kind], encode_quality=quality)
    stored = convert(body, settings)
    for secret in (SECRET, b"Camera", b"harbour", b"adobe:ns"):
        assert secret not in stored.data
    ours, theirs = Image.open(io.BytesIO(stored.data)), Image.open(io.BytesIO(body))
    assert (np.asarray(ours) == np.asarray(theirs)).all()
    assert ours.info["icc_profile"] == theirs.info["icc_profile"]
    assert not ours.getexif()
    assert stored.exif is None
    # it is the file that came, not a new one: a new one would not give the same bytes without the extras
    plain = without_metadata(body, kind.lower())
    assert stored.data == plain
    assert without_metadata(stored.data, kind.lower()) is stored.data


@pytest.mark.parametrize("kind", FORMATS)
def test_what_tells_nothing_is_kept_byte_for_byte(kind: str) -> None:
    body = saved(kind)
    assert without_metadata(body, kind.lower()) is body


def test_an_embedded_thumbnail_goes() -> None:
    body = saved("JPEG")
    assert body[2:4] == b"\xff\xe0"
    thumbnail = bytes(range(48))
    header = body[6:18] + bytes((4, 4)) + thumbnail
    fat = body[:2] + b"\xff\xe0" + struct.pack(">H", 2 + len(header)) + header + body[20:]
    assert Image.open(io.BytesIO(fat)).size == (80, 60)
    assert without_metadata(fat, "jpeg") == body


def test_restarts_and_colour_marks_stay() -> None:
    body = saved("JPEG", restart_marker_rows=1, keep_rgb=True)
    assert b"\xff\xd0" in body
    assert without_metadata(body, "jpeg") == body
    stream = io.BytesIO()
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(stream, "JPEG")
    stripped = without_metadata(stream.getvalue(), "jpeg")
    assert stripped is not None
    assert b"Adobe" in stripped
    assert np.asarray(Image.open(io.BytesIO(stripped)))[0, 0].tolist() == [0, 255, 255, 0]


def test_what_cannot_be_stripped_is_encoded_again() -> None:
    body = telling("PNG")
    strange = body[:33] + chunk(b"CrIt", SECRET) + body[33:]
    assert without_metadata(strange, "png") is None
    assert without_metadata(body, "tiff") is None
    assert without_metadata(body[:-40], "png") is None
    jpeg = saved("JPEG")
    assert without_metadata(jpeg[:-2], "jpeg") is None
    webp = telling("WEBP")
    assert without_metadata(webp[: len(webp) // 2], "webp") is None


def test_what_no_decoder_needs_goes_before_decoding() -> None:
    body = telling("PNG")
    bare = to_decode(body)
    assert SECRET not in bare
    assert b"iCCP" in bare
    assert to_decode(bare) is bare
    assert to_decode(body[:-45]) == body[:-45]
    strange = body[:33] + chunk(b"CrIt", b"?") + body[33:]
    assert chunk(b"CrIt", b"?") in to_decode(strange)
    stream = io.BytesIO()
    picture().save(stream, "PNG", save_all=True, append_images=[picture().rotate(90)])
    assert to_decode(stream.getvalue()) == stream.getvalue()


def test_stripping_real_photos_changes_no_pixel() -> None:
    photos = sorted((SHARED / "data" / "openstax-photos" / "originals").glob("*.jpg"))[:30]
    if not photos:
        pytest.skip("no ../shared/data/openstax-photos")
    for path in photos:
        body = path.read_bytes()
        stripped = without_metadata(body, "jpeg")
        assert stripped is not None, path.name
        assert len(stripped) <= len(body)
        header = sniff(stripped)
        assert header is not None
        assert header.exif is None
        ours, theirs = Image.open(io.BytesIO(stripped)), Image.open(io.BytesIO(body))
        assert (np.asarray(ours) == np.asarray(theirs)).all()


def test_exif_only_where_asked_for_and_without_places() -> None:
    for kind in FORMATS:
        body = saved(kind, exif=told())
        assert convert(body, ImageSettings()).exif is None
        said = convert(body, ImageSettings(keep_exif=True)).exif
        assert said is not None
        tags = json.loads(said)
        assert tags["Image Make"] == "Camera & Sons"
        assert tags["Image ImageDescription"] == "a harbour"
        assert tags["EXIF DateTimeOriginal"] == "2020:01:02 03:04:05"
        assert "GPS" not in said
        assert "MakerNote" not in said
        assert SECRET.decode() not in said
        assert "Camera" not in convert(body, ImageSettings(keep_exif=True)).data.decode("latin-1")
    assert convert(saved("PNG"), ImageSettings(keep_exif=True)).exif == "{}"
    assert convert(saved("BMP"), ImageSettings(keep_exif=True)).exif == "{}"


def test_broken_exif_costs_the_exif_only() -> None:
    body = bytearray(saved("JPEG", exif=told()))
    header = sniff(bytes(body))
    assert header is not None
    assert header.exif
    rng = np.random.default_rng(0)
    for _ in range(50):
        broken = bytearray(body)
        for at in rng.integers(*header.exif, 20):
            broken[at] = rng.integers(0, 256)
        said = convert(bytes(broken), ImageSettings(keep_exif=True)).exif
        assert said is not None
        assert isinstance(json.loads(said), dict)
    assert texts(bytes(2_000_000), (0, 2_000_000)) == "{}"
