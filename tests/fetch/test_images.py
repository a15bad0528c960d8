"""Images are stored as img2dataset stores them, pixel for pixel, but for the traps that we do not copy."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from curate.errors import InputError, SampleError
from curate.fetch.converted import Converted
from curate.fetch.images import ImageSettings, convert
from curate.fetch.settings import RESIZE_MODES
from curate.fetch.sniff import sniff

SHARED = Path(__file__).resolve().parents[3] / "shared"


def photo(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth noise: survives JPEG, and differs wherever two resizers differ."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, channels), dtype=np.uint8)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return large.reshape(height, width, channels)


def encoded(pixels: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, kind, **options)
    return stream.getvalue()


def pixels_of(data: bytes) -> np.ndarray[Any, Any]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def code_of(body: bytes, settings: ImageSettings | None = None, expected: str | None = None) -> str:
    with pytest.raises(SampleError) as caught:
        convert(body, settings or ImageSettings(), expected)
    assert "\n" not in caught.value.what
    return caught.value.code


@pytest.fixture(scope="module")
def oracle() -> Callable[..., Any]:
    """img2dataset's own Resizer, as a function of the body and our settings."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from img2dataset.resizer import Resizer

    def resize(body: bytes, settings: ImageSettings) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            resizer = Resizer(
                settings.image_size,
                settings.resize_mode,
                settings.resize_only_if_bigger,
                settings.upscale_interpolation,
                settings.downscale_interpolation,
                settings.encode_quality,
                settings.encode_format,
                settings.skip_reencode,
            )
            return resizer(io.BytesIO(body))

    return resize


@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_pixels_are_those_of_img2dataset(oracle: Callable[..., Any], mode: str, only_if_bigger: bool) -> None:
    shapes = [(400, 300), (300, 401), (96, 95), (37, 61), (600, 90), (128, 128), (129, 127), (700, 3), (1, 1)]
    for seed, (width, height) in enumerate(shapes):
        for channels in (1, 3, 4):
            body = encoded(photo(width, height, channels, seed))
            settings = ImageSettings(
                image_size=128,
                resize_mode=mode,
                resize_only_if_bigger=only_if_bigger,
                encode_format="png",
                encode_quality=1,
            )
            theirs, *sizes, error = oracle(body, settings)
            assert error is None
            ours = convert(body, settings)
            assert (pixels_of(ours.data) == pixels_of(theirs)).all(), (width, height, channels)
            assert [ours.width, ours.height, ours.original_width, ours.original_height] == sizes


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic", "area", "lanczos"])
def test_interpolations_are_those_of_img2dataset(oracle: Callable[..., Any], interpolation: str) -> None:
    for side in (80, 220):
        settings = ImageSettings(
            image_size=128,
            resize_only_if_bigger=False,
            upscale_interpolation=interpolation,
            downscale_interpolation=interpolation,
        )
        body = encoded(photo(side, side - 7), "JPEG")
        assert convert(body, settings).data == oracle(body, settings)[0]


@pytest.mark.parametrize(("extension", "quality"), [("jpg", 95), ("jpg", 50), ("webp", 80), ("png", 6)])
def test_stored_bytes_are_those_of_img2dataset(oracle: Callable[..., Any], extension: str, quality: int) -> None:
    settings = ImageSettings(image_size=200, encode_format=extension, encode_quality=quality)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"):
        body = encoded(photo(400, 300), kind)
        ours = convert(body, settings)
        assert ours.data == oracle(body, settings)[0], kind
        assert ours.extension == extension
        assert ours.digest == hashlib.sha256(body).hexdigest()
        assert ours.stored_sha256 == hashlib.sha256(ours.data).hexdigest()


def test_real_photos_are_stored_as_img2dataset_stores_them(oracle: Callable[..., Any]) -> None:
    photos = sorted((SHARED / "data" / "openstax-photos").rglob("*.jpg"))[:40]
    if not photos:
        pytest.skip("no ../shared/data/openstax-photos")
    settings = ImageSettings(image_size=256)
    for path in photos:
        body = path.read_bytes()
        if getattr(sniff(body), "orientation", None) == 1:
            assert convert(body, settings).data == oracle(body, settings)[0], path.name


def test_skip_reencode_keeps_the_bytes_of_what_needs_no_change() -> None:
    settings = ImageSettings(image_size=256, skip_reencode=True)
    same = encoded(photo(200, 100), "JPEG")
    assert convert(same, settings).data == same
    assert convert(encoded(photo(300, 100), "JPEG"), settings).width == 256
    assert convert(encoded(photo(200, 100), "PNG"), settings).data[:2] == b"\xff\xd8"
    turned = encoded(photo(200, 100), "JPEG", exif=orientation(6))
    assert convert(turned, settings).data != turned
    settings = ImageSettings(image_size=256, skip_reencode=True, encode_format="webp")
    frames = [Image.fromarray(photo(40, 30, seed=n)) for n in range(2)]
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    assert convert(stream.getvalue(), settings).data != stream.getvalue()


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation_is_applied(kind: str, value: int) -> None:
    from PIL import ImageOps

    options = {"exif": orientation(value)} | ({"lossless": True} if kind == "WEBP" else {})
    body = encoded(photo(60, 40), kind, **options)
    ours = convert(body, ImageSettings(resize_mode="no", encode_format="png", encode_quality=1))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(body))))
    assert (ours.original_width, ours.original_height) == ((60, 40) if value < 5 else (40, 60))
    difference = pixels_of(ours.data)[..., ::-1].astype(int) - upright
    assert np.abs(difference).max() <= {"JPEG": 4, "AVIF": 6}.get(kind, 0)  # two JPEG decoders differ a little
    assert sniff(ours.data).orientation == 1  # type: ignore[union-attr]


def test_orientations_of_real_files_agree() -> None:
    folder = SHARED / "data" / "exif-orientation"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/exif-orientation")
    settings = ImageSettings(image_size=64, encode_format="png", encode_quality=1)
    first = pixels_of(convert((folder / "Landscape_1.jpg").read_bytes(), settings).data).astype(int)
    for value in range(2, 9):
        other = pixels_of(convert((folder / f"Landscape_{value}.jpg").read_bytes(), settings).data)
        assert other.shape == first.shape
        assert np.abs(other - first).mean() < 8


def test_sixteen_bits_are_scaled_and_not_saturated() -> None:
    settings = ImageSettings(resize_mode="no", encode_format="png", encode_quality=1)
    for channels in (1, 3, 4):
        pixels = np.full((20, 30, channels), 20_000, np.uint16)
        if channels == 4:
            pixels[..., 3] = 65_535
        done, body = cv2.imencode(".png", pixels)
        assert done
        assert np.unique(pixels_of(convert(bytes(body), settings).data)).tolist() == [round(20_000 / 257)]


def test_alpha_is_composited_on_white() -> None:
    settings = ImageSettings(resize_mode="no", encode_format="png", encode_quality=1)
    pixels = np.zeros((10, 10, 4), np.uint8)
    pixels[:5, :, 3] = 128
    stored = pixels_of(convert(encoded(pixels), settings).data)
    assert np.unique(stored[:5]).tolist() == [127]
    assert np.unique(stored[5:]).tolist() == [255]
    half_red = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    for kind in ("PNG", "TIFF", "WEBP"):
        stream = io.BytesIO()
        half_red.save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
        assert pixels_of(convert(stream.getvalue(), settings).data)[0, 0].tolist() == [127, 127, 255], kind
    gray_alpha = Image.new("LA", (4, 4), (0, 0))
    palette = Image.new("P", (4, 4), 0)
    for image, options in ((gray_alpha, {}), (palette, {"transparency": 0})):
        stream = io.BytesIO()
        image.save(stream, "PNG", **options)
        assert np.unique(pixels_of(convert(stream.getvalue(), settings).data)).tolist() == [255]


def test_what_the_table_says_of_the_file() -> None:
    turned = convert(encoded(photo(64, 48), "JPEG", exif=orientation(6)), ImageSettings())
    assert (turned.original_format, turned.original_mode) == ("jpeg", "rgb")
    assert (turned.original_frames, turned.original_orientation) == (1, 6)
    assert (turned.hash_ok, turned.exif, turned.boxes) == (None, None, ())
    done, deep = cv2.imencode(".png", np.zeros((8, 8, 4), np.uint16))
    assert done
    assert convert(bytes(deep), ImageSettings()).original_mode == "rgba16"
    assert convert(encoded(photo(8, 8), "TIFF", exif=orientation(3)), ImageSettings()).original_orientation == 3


@pytest.mark.parametrize("bits", [10, 12])
def test_deep_avif_is_as_bright_as_it_was(bits: int) -> None:
    pixels = np.full((32, 32, 3), (1 << bits) // 2, np.uint16)
    done, body = cv2.imencode(".avif", pixels, [cv2.IMWRITE_AVIF_DEPTH, bits])
    assert done
    assert np.abs(pixels_of(convert(bytes(body), ImageSettings()).data).astype(int) - 128).max() <= 2


def test_cmyk_is_red_where_it_was_red() -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(stream, "JPEG")
    stored = pixels_of(convert(stream.getvalue(), ImageSettings()).data)
    blue, green, red = stored[16, 16].tolist()
    assert red > 200 > 60 > max(blue, green)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    settings = ImageSettings(encode_format="png", encode_quality=1)
    for kind in ("GIF", "WEBP", "PNG"):
        stream = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=50, **options)
        stored = pixels_of(convert(stream.getvalue(), settings).data)
        assert stored.shape == (24, 32, 3)
        assert np.abs(stored[12, 16].astype(int) - [0, 0, 255]).max() <= 2, kind


def test_limits() -> None:
    body = encoded(photo(100, 50))
    convert(body, ImageSettings(min_image_size=50, max_aspect_ratio=2, max_image_area=5000))
    assert code_of(body, ImageSettings(min_image_size=51)) == "too_small"
    assert code_of(body, ImageSettings(max_aspect_ratio=1.9)) == "bad_aspect"
    assert code_of(body, ImageSettings(max_image_area=4999)) == "too_many_pixels"
    assert code_of(body, ImageSettings(max_pixels=4999)) == "too_many_pixels"
    frames = [Image.fromarray(photo(40, 30, seed=n)) for n in range(4)]
    for kind in ("GIF", "PNG", "WEBP", "AVIF"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=40)
        assert convert(stream.getvalue(), ImageSettings(max_frames=4)).original_frames == 4
        assert code_of(stream.getvalue(), ImageSettings(max_frames=3)) == "too_many_frames"


def test_hashes() -> None:
    body = encoded(photo(20, 20))
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    drop, record, keep = (
        ImageSettings(verify_hash="md5", compute_hash="sha1", on_mismatch=what)
        for what in ("drop", "record", "keep")
    )
    for settings, same, other in ((drop, True, None), (record, True, False), (keep, None, None)):
        found = convert(body, settings, f" {md5.upper()}")
        assert (found.hash_ok, found.digest) == (same, hashlib.sha1(body).hexdigest())
        if settings is drop:
            assert code_of(body, settings, "0" * 32) == "hash_mismatch"
        else:
            assert convert(body, settings, "0" * 32).hash_ok is other
        assert convert(body, settings, None).hash_ok is convert(body, settings, " ").hash_ok is None
    assert convert(body, ImageSettings(), md5).hash_ok is None
    assert code_of(b"<html>", drop, "0" * 32) == "hash_mismatch"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_half_an_image_is_refused(kind: str) -> None:
    body = encoded(photo(200, 150), kind)
    assert convert(body, ImageSettings()).original_width == 200
    for length in (len(body) // 2, len(body) * 9 // 10, 64, 20, 12, 3):
        assert code_of(body[:length]) in ("bad_image", "not_an_image"), length


def test_a_progressive_jpeg_cut_in_a_late_scan_is_refused() -> None:
    body = encoded(photo(200, 150), "JPEG", progressive=True)
    assert code_of(body[: len(body) - 40]) == "bad_image"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!DOCTYPE html><html></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff" + bytes(5000),
        b"\x89PNG\r\n\x1a\n" + bytes(60),
        b"RIFF\0\0\0\0WEBPVP8X" + bytes(8),
        b"II*\0" + b"\xff" * 30,
        b"\0\0\0\x1cftypavif" + bytes(40),
        b"GIF89a",
        b"GIF89a" + bytes(20),
        b"BM" + bytes(60),
    ],
)
def test_what_is_no_image(body: bytes) -> None:
    assert code_of(body) in ("not_an_image", "bad_image")


def test_broken_bytes_anywhere_cost_one_row() -> None:
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        body = encoded(photo(60, 40), kind)
        for _ in range(40):
            broken = bytearray(body)
            for at in rng.integers(0, len(body), 8):
                broken[at] = rng.integers(0, 256)
            with suppress(SampleError):
                assert isinstance(convert(bytes(broken), ImageSettings()), Converted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize_mode": "keep_ration"}, "no resize mode 'keep_ration'"),
        ({"encode_format": "gif"}, "no encode format 'gif'"),
        ({"encode_quality": 101}, "quality of 0 to 100 (found 101)"),
        ({"encode_format": "png"}, "compression of 0 to 9 (found 95)"),
        ({"image_size": 0}, "must be above 0 (found 0)"),
        ({"min_image_size": -1}, "must not be negative (found -1)"),
        ({"max_aspect_ratio": 0.5}, "must be at least 1"),
        ({"compute_hash": "crc"}, "no compute hash 'crc'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ImageSettings(**settings)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
