"""From the bytes that a server sent to the image that a shard stores, in img2dataset's modes.

The resize modes give the pixels of img2dataset 1.47, and so does alpha over white. Where theirs loses the
picture or the machine, ours differs, on purpose: sizes are checked in the header before decoding, the EXIF
orientation is applied, 16-bit samples are scaled to 8 and not cut off at 255, an image that is cut short is
refused by every version of OpenCV. Of an animation, the first frame is stored.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from curate.errors import SampleError
from curate.fetch.settings import ImageSettings, digest_of
from curate.fetch.sniff import Header, sniff

__all__ = ["Converted", "ImageSettings", "convert", "use_one_thread"]

Pixels = npt.NDArray[Any]
Box = tuple[float, float, float, float]

_INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "bilinear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
    "lanczos4": cv2.INTER_LANCZOS4,
}
_QUALITY = {
    "jpg": cv2.IMWRITE_JPEG_QUALITY,
    "png": cv2.IMWRITE_PNG_COMPRESSION,
    "webp": cv2.IMWRITE_WEBP_QUALITY,
}
_SAME_FORMAT = {"jpg": "jpeg", "png": "png", "webp": "webp"}
_WHITE = (255, 255, 255)
_BAND = 1 << 20
_BIG = 25_000_000

_one_big_image = threading.Lock()
"""Held while an image of more than `_BIG` pixels is decoded: threads share the memory that one may take."""


@dataclass(frozen=True)
class Converted:
    """An image as it will be stored, and what the table says of it.

    Sizes are in pixels, upright (EXIF orientation applied). `original_*` is the file that came: its format
    ("jpeg", "png", ...), its mode (gray, rgb, rgba, la, palette or cmyk, "16" appended where a sample has more
    than 8 bits), its frames, its EXIF orientation (1 to 8). `sha256`, and `digest` by the hash that the settings
    name, are of the downloaded bytes, `stored_sha256` is of `data`. `hash_ok` is None where nothing was compared.
    `boxes` are the blurred ones, turned upright with the picture. `exif` is a JSON object of texts, None unless
    the settings keep it.
    """

    data: bytes
    extension: str
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str | None
    sha256: str
    digest: str
    stored_sha256: str
    original_format: str
    original_mode: str
    original_frames: int
    original_orientation: int
    hash_ok: bool | None
    boxes: tuple[Box, ...]


def use_one_thread() -> None:
    """Have OpenCV work on the calling thread only, and keep quiet about broken files; for a whole process."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(0)


def convert(
    body: bytes, settings: ImageSettings, expected: str | None = None, boxes: Sequence[Box] = ()
) -> Converted:
    """The image in `body`, decoded, turned upright, resized and encoded as `settings` say.

    `expected` is the hash of `settings.verify_hash` that the bytes must have. Raises SampleError with
    hash_mismatch, not_an_image, too_many_pixels, too_small, bad_aspect, bad_image or encode_failed.
    """
    if settings.verify_hash and digest_of(body, settings.verify_hash) != (expected or "").strip().lower():
        raise SampleError("hash_mismatch", f"the {settings.verify_hash} is not the one in the list")
    header = sniff(body)
    if header is None:
        raise SampleError("not_an_image", f"no known image format (the bytes begin with {body[:8]!r})")
    _check_size(header.width, header.height, settings)
    if header.width * header.height > _BIG:
        with _one_big_image:
            return _convert(body, header, settings)
    return _convert(body, header, settings)


def _convert(body: bytes, header: Header, settings: ImageSettings) -> Converted:
    pixels, kept = _decode(body, header)
    original_height, original_width = pixels.shape[:2]
    _check_size(original_width, original_height, settings)
    resized = _resize(pixels, settings)
    height, width = resized.shape[:2]
    unchanged = kept and resized is pixels and header.format == _SAME_FORMAT[settings.encode_format]
    data = body if settings.skip_reencode and unchanged else _encode(resized, settings)
    return Converted(
        data,
        settings.encode_format,
        width,
        height,
        original_width,
        original_height,
        _exif(body),
        hashlib.sha256(body).hexdigest(),
        digest_of(body, settings.compute_hash),
        hashlib.sha256(data).hexdigest(),
        header.format,
        "rgb",
        1,
        header.orientation,
        None,
        (),
    )


def _check_size(width: int, height: int, settings: ImageSettings) -> None:
    if not width or not height:
        raise SampleError("bad_image", f"a size of {width} x {height}")
    most = min(settings.max_pixels, settings.max_image_area)
    if width * height > most:
        raise SampleError("too_many_pixels", f"{width} x {height} is more than {most:,.0f} pixels")
    if min(width, height) < settings.min_image_size:
        raise SampleError("too_small", f"{width} x {height}, at least {settings.min_image_size} is asked for")
    if max(width, height) / min(width, height) > settings.max_aspect_ratio:
        raise SampleError("bad_aspect", f"{width} x {height} is beyond 1:{settings.max_aspect_ratio:g}")


def _decode(body: bytes, header: Header) -> tuple[Pixels, bool]:
    """8-bit pixels, gray or BGR, upright; and whether the file shows exactly these."""
    if not header.whole:
        raise SampleError("bad_image", "the file is cut short")
    try:
        pixels = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise SampleError("bad_image", f"a {header.format} that does not decode")
    kept = not header.animated and header.orientation == 1
    if pixels.dtype == np.uint16:
        pixels, kept = cv2.convertScaleAbs(pixels, alpha=1 / 257), False
    elif pixels.dtype != np.uint8:
        raise SampleError("bad_image", f"samples of type {pixels.dtype} have no known range")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels, kept = _over_white(pixels), False
    elif pixels.ndim == 3 and pixels.shape[2] != 3:
        raise SampleError("bad_image", f"{pixels.shape[2]} channels")
    return _upright(pixels, header.orientation), kept


def _over_white(pixels: Pixels) -> Pixels:
    """BGRA composited on white, in bands of rows: whole frames of floats would take 24 times their bytes."""
    height, width = pixels.shape[:2]
    colours = np.ascontiguousarray(pixels[..., :3])
    if pixels[..., 3].min() == 255:
        return colours
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        alpha = pixels[band, :, 3, np.newaxis]
        mixed = alpha / 255 * pixels[band, :, :3] + 255 - alpha
        colours[band] = np.rint(mixed.clip(min=0, max=255)).astype(np.uint8)
    return colours


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """`pixels` as EXIF's orientation (1 to 8) says that they are to be seen."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    # what is left after the transposition of 5 to 8: flips left-right (1), up-down (0), both (-1)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)


def _resize(pixels: Pixels, settings: ImageSettings) -> Pixels:
    """The resized image; `pixels` itself where nothing is to be done."""
    if settings.resize_mode == "no":
        return pixels
    size = settings.image_size
    by_shorter = settings.resize_mode in ("keep_ratio", "center_crop")
    side = min(pixels.shape[:2]) if by_shorter else max(pixels.shape[:2])
    shrink = side > size
    if settings.resize_only_if_bigger and not shrink:
        return pixels
    height, width = (max(1, round(length * (size / side))) for length in pixels.shape[:2])
    if (height, width) != pixels.shape[:2]:
        name = settings.downscale_interpolation if shrink else settings.upscale_interpolation
        pixels = cv2.resize(pixels, (width, height), interpolation=_INTERPOLATION[name])
    if settings.resize_mode == "center_crop":
        top, left = (height - size) // 2, (width - size) // 2
        return pixels[top : top + size, left : left + size]
    if settings.resize_mode == "border":
        top, left = (size - height) // 2, (size - width) // 2
        edges = (top, size - height - top, left, size - width - left)
        return cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_CONSTANT, value=_WHITE)
    return pixels


def _encode(pixels: Pixels, settings: ImageSettings) -> bytes:
    parameters = [int(_QUALITY[settings.encode_format]), settings.encode_quality]
    try:
        done, data = cv2.imencode(f".{settings.encode_format}", pixels, parameters)
    except cv2.error:
        done = False
    if not done:
        height, width = pixels.shape[:2]
        raise SampleError("encode_failed", f"{width} x {height} as {settings.encode_format}")
    return bytes(data)


def _exif(body: bytes) -> str | None:
    """The EXIF tags as img2dataset gives them: a JSON object of texts, empty where there are none."""
    import exifread  # type: ignore[import-untyped]

    logging.getLogger("exifread").setLevel(logging.CRITICAL)
    try:
        tags = exifread.process_file(io.BytesIO(body), details=False)
        return json.dumps({name: str(value).strip() for name, value in tags.items() if value is not None})
    except Exception:  # the parser has no error of its own: broken tags make it fail in any way
        return None
