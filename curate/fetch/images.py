"""From the bytes that a server sent to the image that a shard stores, in img2dataset's modes.

The resize modes give the pixels of img2dataset 1.47, and so does alpha over white. Where theirs loses the
picture or the machine, ours differs, on purpose: sizes, frames and scans are checked in the header before
decoding, the EXIF orientation is applied, 16-bit samples are scaled to 8 and not cut off at 255, an image that is
cut short is refused by every version of OpenCV, and a JPEG far larger than what is asked for is decoded at a
fraction of its size. Of an animation, the first frame is stored. Nothing but the picture is: where the file's own
bytes are kept, they are stripped of EXIF, places and comments.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from curate.errors import SampleError
from curate.fetch.blur import blurred, upright, valid
from curate.fetch.converted import Box, Converted
from curate.fetch.exif import texts
from curate.fetch.settings import ImageSettings, digest_of
from curate.fetch.sniff import Header, sniff
from curate.fetch.strip import to_decode, without_metadata

__all__ = ["Converted", "ImageSettings", "convert", "use_one_thread"]

Pixels = npt.NDArray[Any]

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
_SPARE = 1.5
"""A draft leaves this many times the pixels asked for, a side, to resize from."""
_DRAFTS = {
    8: (cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    4: (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    2: (cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
}

_one_big_image: AbstractContextManager[object] = threading.Lock()
"""Held while an image of more than `_BIG` pixels is decoded: threads share the memory that one may take."""


def take_turns(lock: AbstractContextManager[object]) -> None:
    """Have other processes that hold the same `lock` decode no big image while this one does."""
    global _one_big_image
    _one_big_image = lock


def use_one_thread() -> None:
    """Have OpenCV work on the calling thread only, and keep quiet about broken files; for a whole process."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(0)


def convert(
    body: bytes, settings: ImageSettings, expected: str | None = None, boxes: Sequence[Box] = ()
) -> Converted:
    """The image in `body`, decoded, turned upright, resized, blurred in `boxes` and encoded as `settings` say.

    `expected` is the hash of `settings.verify_hash` that the bytes should have; None has nothing to compare.
    `boxes` are faces: x0, y0, x1, y1 as fractions of the picture as its bytes store it, before EXIF's
    orientation; what blur.valid refuses among them is left out. Raises SampleError with hash_mismatch,
    not_an_image, too_many_pixels, too_many_frames, too_small, bad_aspect, bad_image or encode_failed.
    """
    hash_ok = _hash_ok(body, settings, expected)
    header = sniff(body)
    if header is None:
        raise SampleError("not_an_image", f"no known image format (the bytes begin with {body[:8]!r})")
    _check_size(header.width, header.height, settings)
    if header.frames > settings.max_frames:
        raise SampleError("too_many_frames", f"{header.frames:,} frames are more than {settings.max_frames:,}")
    if header.flaw:
        raise SampleError("bad_image", header.flaw)
    faces = upright(valid(boxes), header.orientation) if boxes else ()
    with _one_big_image if header.width * header.height > _BIG else nullcontext():
        data, width, height, original_width, original_height = _stored(body, header, settings, faces)
    sha256 = hashlib.sha256(body).hexdigest()
    return Converted(
        data,
        settings.encode_format,
        width,
        height,
        original_width,
        original_height,
        texts(body, header.exif) if settings.keep_exif else None,
        sha256,
        sha256 if settings.compute_hash == "sha256" else digest_of(body, settings.compute_hash),
        sha256 if data is body else hashlib.sha256(data).hexdigest(),
        header.format,
        header.mode,
        header.frames,
        header.orientation,
        hash_ok,
        faces,
    )


def _hash_ok(body: bytes, settings: ImageSettings, expected: str | None) -> bool | None:
    if not settings.verify_hash or settings.on_mismatch == "keep" or not (wanted := (expected or "").strip()):
        return None
    same = digest_of(body, settings.verify_hash) == wanted.lower()
    if not same and settings.on_mismatch == "drop":
        raise SampleError("hash_mismatch", f"the {settings.verify_hash} is not the one in the list")
    return same


def _stored(
    body: bytes, header: Header, settings: ImageSettings, faces: Sequence[Box]
) -> tuple[bytes, int, int, int, int]:
    """The bytes to store, the width and height of what they show, and those of the file, upright."""
    reduction = _reduction(header, settings)
    pixels, kept = _decode(body, header, reduction)
    # OpenCV turns TIFFs itself, whatever the flags
    turn = 1 if header.format == "tiff" else header.orientation
    height, width = (header.height, header.width) if reduction > 1 else pixels.shape[:2]
    _check_size(width, height, settings)
    # turned after resizing: less is moved, and what fills up a draft lies at the right and below
    resized = _upright(_resize(pixels, (height, width), settings, reduction), turn)
    original = (width, height) if turn >= 5 else (height, width)
    if faces:
        resized = blurred(resized, faces)
    framed = _frame(resized, original, settings)
    height, width = framed.shape[:2]
    data = None
    if (
        settings.skip_reencode
        and kept
        and framed is pixels
        and header.format == _SAME_FORMAT[settings.encode_format]
    ):
        data = without_metadata(body, header.format)
    return _encode(framed, settings) if data is None else data, width, height, original[1], original[0]


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


def _reduction(header: Header, settings: ImageSettings) -> int:
    """By how much a JPEG's sides may be divided while decoding: 8, 4, 2, or 1 where it is decoded in full."""
    if (
        not settings.draft
        or settings.downscale_interpolation != "area"
        or settings.resize_mode == "no"
        or header.format != "jpeg"
        or header.mode not in ("gray", "rgb")
    ):
        return 1
    side = _deciding((header.height, header.width), settings)
    return next((by for by in _DRAFTS if side / by >= _SPARE * settings.image_size), 1)


def _decode(body: bytes, header: Header, reduction: int = 1) -> tuple[Pixels, bool]:
    """8-bit pixels, gray or BGR, as the file stores them; and whether it shows exactly these."""
    if header.format == "png":
        body = to_decode(body)
    flags = cv2.IMREAD_UNCHANGED
    if reduction > 1:
        flags = _DRAFTS[reduction][header.mode == "gray"] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(body, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise SampleError("bad_image", f"a {header.format} that does not decode")
    kept = header.frames == 1 and header.orientation == 1
    premultiplied = header.format == "tiff" and pixels.dtype == np.uint8  # by libtiff, where the file is not
    if pixels.dtype == np.uint16:
        # AVIF and JPEG 2000 come in as many bits as they were coded in, the others in all 16
        bits = header.bits if header.format in ("avif", "jp2") else 16
        pixels, kept = cv2.convertScaleAbs(pixels, alpha=255 / ((1 << bits) - 1)), False
    elif pixels.dtype != np.uint8:
        raise SampleError("bad_image", f"samples of type {pixels.dtype} have no known range")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels, kept = _over_white(pixels, _white_table(premultiplied)), False
    elif pixels.ndim == 3 and pixels.shape[2] != 3:
        raise SampleError("bad_image", f"{pixels.shape[2]} channels")
    return pixels, kept


def _over_white(pixels: Pixels, table: Pixels) -> Pixels:
    """BGRA composited on white, in bands of rows: whole frames of floats would take 24 times their bytes."""
    height, width = pixels.shape[:2]
    colours = np.ascontiguousarray(pixels[..., :3])
    if pixels[..., 3].min() == 255:
        return colours
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        row = pixels[band, :, 3].astype(np.uint16) << 8
        for channel in range(3):
            colours[band, :, channel] = table[row | pixels[band, :, channel]]
    return colours


@cache
def _white_table(premultiplied: bool) -> Pixels:
    """What is seen on white of every alpha (high byte) and colour (low byte), to img2dataset's rounding.

    Colours that are `premultiplied` with their alpha are not multiplied again, as img2dataset does with TIFFs.
    """
    alpha, colour = np.arange(256, dtype=np.uint8).reshape(-1, 1), np.arange(256, dtype=np.uint8)
    share = 1.0 if premultiplied else alpha / 255
    mixed: Pixels = np.rint((share * colour + 255 - alpha).clip(min=0, max=255))
    return mixed.astype(np.uint8).reshape(-1)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """`pixels` as EXIF's orientation (1 to 8) says that they are to be seen."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    # what is left after the transposition of 5 to 8: flips left-right (1), up-down (0), both (-1)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)


def _deciding(shape: tuple[int, ...], settings: ImageSettings) -> int:
    """The side that `image_size` is compared with."""
    return min(shape[:2]) if settings.resize_mode in ("keep_ratio", "center_crop") else max(shape[:2])


def _as_it_is(shape: tuple[int, int], settings: ImageSettings) -> bool:
    """Whether a picture of this (height, width) keeps its size."""
    if settings.resize_mode == "no":
        return True
    return settings.resize_only_if_bigger and _deciding(shape, settings) <= settings.image_size


def _resize(pixels: Pixels, original: tuple[int, int], settings: ImageSettings, reduction: int = 1) -> Pixels:
    """The picture at the size that one of `original` (height, width) gets; `pixels` itself where it has it.

    `pixels` are those of the original, each side divided by `reduction`, the last row and column filled up.
    """
    if _as_it_is(original, settings):
        return pixels
    side = _deciding(original, settings)
    height, width = (max(1, round(length * (settings.image_size / side))) for length in original)
    if (height, width) == pixels.shape[:2]:
        return pixels
    shrink = side > settings.image_size
    name = settings.downscale_interpolation if shrink else settings.upscale_interpolation
    if reduction == 1:
        return cv2.resize(pixels, (width, height), interpolation=_INTERPOLATION[name])
    # by factors and not to a size: else what was filled up would be squeezed in, and all pixels shifted
    by_x, by_y = width * reduction / original[1], height * reduction / original[0]
    return cv2.resize(pixels, None, fx=by_x, fy=by_y, interpolation=_INTERPOLATION[name])[:height, :width]


def _frame(pixels: Pixels, original: tuple[int, int], settings: ImageSettings) -> Pixels:
    """The resized picture cropped or padded to a square, in the modes that do."""
    if settings.resize_mode not in ("center_crop", "border") or _as_it_is(original, settings):
        return pixels
    size = settings.image_size
    height, width = pixels.shape[:2]
    if settings.resize_mode == "center_crop":
        top, left = (height - size) // 2, (width - size) // 2
        return pixels if height == width == size else pixels[top : top + size, left : left + size]
    top, left = (size - height) // 2, (size - width) // 2
    edges = (top, size - height - top, left, size - width - left)
    return cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_CONSTANT, value=_WHITE) if any(edges) else pixels


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
