"""Large JPEGs are decoded at a fraction of their size, and look as if they had not been; so do blurred faces."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from curate.fetch.blur import Box, blurred, upright
from curate.fetch.images import _reduction, convert
from curate.fetch.settings import RESIZE_MODES, ImageSettings
from curate.fetch.sniff import sniff

SHARED = Path(__file__).resolve().parents[3] / "shared"
Pixels = npt.NDArray[Any]
LOSSLESS: dict[str, Any] = {"encode_format": "png", "encode_quality": 1}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Detail that falls with its frequency, as in photos, and the grain of a sensor."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for step in (2, 4, 8, 16, 32, 64, 128):
        small = rng.normal(0, step**0.5, (height // step + 2, width // step + 2, 3)).astype(np.float32)
        total += cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 2, total.shape)
    return Image.fromarray((128 + 4 * total + grain).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def both(body: bytes, boxes: tuple[Box, ...] = (), **settings: Any) -> tuple[Pixels, Pixels]:
    """The pixels stored with a draft and without."""
    pixels = []
    for draft in (True, False):
        found = convert(body, ImageSettings(draft=draft, **LOSSLESS, **settings), boxes=boxes)
        data = cv2.imdecode(np.frombuffer(found.data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert data is not None
        assert data.shape[1::-1] == (found.width, found.height)
        pixels.append(data)
    assert pixels[0].shape == pixels[1].shape
    return pixels[0], pixels[1]


def reduction(width: int, height: int, mode: str = "RGB", **settings: Any) -> int:
    header = sniff(saved(Image.new(mode, (width, height))))
    assert header is not None
    return _reduction(header, ImageSettings(**settings))


def test_when_a_draft_is_taken() -> None:
    assert reduction(4000, 3000) == 4
    assert [reduction(side, 100, image_size=128) for side in (383, 384, 767, 768, 1535, 1536, 9000)] == [
        *(1, 2, 2, 4, 4, 8, 8)
    ]
    assert reduction(4000, 300) == 4
    for mode in ("keep_ratio", "center_crop"):
        assert reduction(4000, 300, resize_mode=mode, image_size=128) == 1
        assert reduction(4000, 400, resize_mode=mode, image_size=128) == 2
    assert reduction(4000, 3000, "L") == 4
    assert reduction(4000, 3000, "CMYK") == 1
    assert reduction(4000, 3000, draft=False) == 1
    assert reduction(4000, 3000, resize_mode="no") == 1
    assert reduction(4000, 3000, downscale_interpolation="lanczos") == 1
    png = sniff(saved(Image.new("L", (4000, 3000)), "PNG"))
    assert png is not None
    assert _reduction(png, ImageSettings()) == 1


@pytest.mark.parametrize("mode", [mode for mode in RESIZE_MODES if mode != "no"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_draft_looks_the_same(mode: str, options: dict[str, Any]) -> None:
    for width, height in ((1600, 1200), (1603, 1201), (1201, 1997)):
        body = saved(photo(width, height), quality=90, **options)
        ours, full = both(body, resize_mode=mode, image_size=128)
        assert cv2.PSNR(ours, full) >= 38, (width, height)


def test_sides_that_do_not_divide_shift_nothing() -> None:
    """A draft of 1,601 pixels has 201 of 8, the last mostly made up: it must not squeeze the others."""
    stripes = np.zeros((1601, 1601, 3), np.uint8)
    stripes[:, 1580:] = stripes[1580:, :] = 255
    ours, full = both(saved(Image.fromarray(stripes), quality=100, subsampling=0), image_size=100)
    assert np.abs(ours.astype(int) - full).max() <= 8


def test_gray_stays_gray_and_sizes_are_the_files() -> None:
    body = saved(photo(1601, 1201).convert("L"), exif=turned(6))
    ours, full = both(body, image_size=128)
    assert ours.ndim == full.ndim == 2
    found = convert(body, ImageSettings(image_size=128))
    assert (found.original_width, found.original_height, found.original_mode) == (1201, 1601, "gray")
    assert (found.width, found.height) == (96, 128)
    assert cv2.PSNR(ours, full) >= 38


@pytest.mark.parametrize("value", range(1, 9))
def test_drafts_are_turned_upright(value: int) -> None:
    ours, full = both(saved(photo(1601, 1203), exif=turned(value)), image_size=128)
    assert cv2.PSNR(ours, full) >= 38


def test_real_photos_look_the_same() -> None:
    large = sorted((SHARED / "data" / "exif-orientation").glob("*.jpg"))[:2]
    photos = sorted((SHARED / "data" / "openstax-photos" / "originals").glob("*.jpg"))
    if not photos:
        pytest.skip("no ../shared/data/openstax-photos")
    found = []
    for path in (*photos, *large):
        body, size = path.read_bytes(), 256 if path in photos else 512
        header = sniff(body)
        assert header is not None
        if _reduction(header, ImageSettings(image_size=size)) > 1:
            found.append(cv2.PSNR(*both(body, image_size=size)))
    assert len(found) > 40
    assert np.median(found) >= 42
    assert min(found) >= 32  # drawings of one-pixel lines; a shift by half a pixel would give 20


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("only_if_bigger", [True, False])
@pytest.mark.parametrize("size", [(200, 150), (800, 601)])
def test_boxes_are_blurred_where_they_lie(mode: str, only_if_bigger: bool, size: tuple[int, int]) -> None:
    box = (0.4, 0.3, 0.6, 0.6)
    settings: dict[str, Any] = {
        "resize_mode": mode,
        "image_size": 256,
        "resize_only_if_bigger": only_if_bigger,
        "draft": False,
    }
    body = saved(photo(*size), "PNG")
    plain, blur = (convert(body, ImageSettings(**LOSSLESS, **settings), boxes=boxes) for boxes in ((), (box,)))
    assert blur.boxes == (box,)
    sharp, soft = (cv2.imdecode(np.frombuffer(found.data, np.uint8), cv2.IMREAD_COLOR) for found in (plain, blur))
    assert sharp is not None
    assert soft is not None
    # the resized picture, blurred as a whole, then cut or framed as the plain one was
    unframed = "keep_ratio" if mode == "center_crop" else "keep_ratio_largest" if mode == "border" else mode
    whole = convert(body, ImageSettings(**LOSSLESS, **{**settings, "resize_mode": unframed}))
    picture = cv2.imdecode(np.frombuffer(whole.data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    expected = blurred(picture, [box])
    more = [outer - inner for outer, inner in zip(expected.shape[:2], soft.shape[:2], strict=True)]
    top, left = (max(0, extra) // 2 for extra in more)
    expected = expected[top : top + soft.shape[0], left : left + soft.shape[1]]
    top, left = (max(0, -extra) // 2 for extra in more)
    assert (soft[top : top + expected.shape[0], left : left + expected.shape[1]] == expected).all()
    assert (soft != sharp).any()


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_boxes_turn_with_the_picture(value: int, kind: str) -> None:
    box = (0.1, 0.2, 0.3, 0.6)
    body = saved(photo(320, 200), kind, exif=turned(value))
    settings = ImageSettings(image_size=160, **LOSSLESS)
    found, plain = convert(body, settings, boxes=[box]), convert(body, settings)
    assert found.boxes == upright([box], value)
    soft, sharp = (cv2.imdecode(np.frombuffer(one.data, np.uint8), cv2.IMREAD_COLOR) for one in (found, plain))
    assert soft is not None
    assert sharp is not None
    assert (soft == blurred(sharp, found.boxes)).all()
    # and it is the stored picture's box that was meant: turned back, the blur lies there
    ((x0, y0, x1, y1),) = found.boxes
    height, width = sharp.shape[:2]
    changed = np.abs(soft.astype(int) - sharp).sum(axis=2)
    assert changed[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)].mean() > 10 * (
        changed[
            int((1 - y1) * height) : int((1 - y0) * height), int((1 - x1) * width) : int((1 - x0) * width)
        ].mean()
    )


def test_a_blur_forces_a_new_file_and_bad_boxes_do_not() -> None:
    body = saved(photo(100, 80))
    settings = ImageSettings(skip_reencode=True)
    assert convert(body, settings).data == body
    assert convert(body, settings, boxes=[(0.1, 0.1, 0.5, 0.5)]).data != body
    bad = convert(body, settings, boxes=[(float("nan"), 0.1, 0.5, 0.5)])
    assert (bad.data, bad.boxes) == (body, ())


def test_drafts_are_blurred_too() -> None:
    ours, full = both(saved(photo(1600, 1200)), boxes=((0.2, 0.2, 0.5, 0.7),), image_size=128)
    assert cv2.PSNR(ours, full) >= 38
