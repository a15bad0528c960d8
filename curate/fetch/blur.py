"""Faces blurred beyond recognition, at least as strongly as the release that DataComp was made with.

img2dataset 1.40's formula: each box, of longer side d in pixels of the resized image, grows by 0.1 d a side; one
sigma, 0.1 times the largest d, serves all; the picture and the 0/1 mask of the boxes go through the same Gaussian
(a kernel of 2 ceil(4 sigma) + 1), and the blurred mask mixes the two pictures. (1.47 cuts that kernel to about
one sigma a side, which leaves faces to be recognised.) Where roundings leave a choice, ours is the larger box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
Box = tuple[float, float, float, float]

_GROWTH = 0.1
_SIGMA = 0.1
_REACH = 4
_EXACT_SIGMA = 16.0
"""Up to here the kernel is the formula's; a wider one is laid on a smaller copy, at half of it or more."""
_BAND = 1 << 20


def valid(boxes: Iterable[Sequence[float]]) -> tuple[Box, ...]:
    """The boxes (x0, y0, x1, y1, fractions of the picture) that cover a part of it, in order, corners sorted.

    One that is not four numbers, or is NaN somewhere, covers nothing that could be known. Corners outside are
    kept up to a picture's length away: the part that is seen is blurred by the size of the whole.
    """
    kept = []
    for box in boxes:
        if len(box) != 4 or any(value is None or math.isnan(value) for value in box):
            continue
        x0, y0, x1, y1 = (min(max(float(value), -1.0), 2.0) for value in box)
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        if x0 < 1 and y0 < 1 and x1 > 0 and y1 > 0 and (x1 > x0 or y1 > y0):
            kept.append((x0, y0, x1, y1))
    return tuple(kept)


def upright(boxes: Iterable[Box], orientation: int) -> tuple[Box, ...]:
    """`boxes` of a picture as its bytes store it, where they lie once EXIF's `orientation` is applied."""
    turned = []
    for x0, y0, x1, y1 in boxes:
        if orientation >= 5:
            x0, y0, x1, y1 = y0, x0, y1, x1
        if orientation in (2, 3, 6, 7):
            x0, x1 = 1 - x1, 1 - x0
        if orientation in (3, 4, 7, 8):
            y0, y1 = 1 - y1, 1 - y0
        turned.append((x0, y0, x1, y1))
    return tuple(turned)


def blurred(pixels: Pixels, boxes: Sequence[Box]) -> Pixels:
    """A copy of 8-bit `pixels` in which what lies in `boxes` (as `valid` gives them) is blurred."""
    height, width = pixels.shape[:2]
    areas, longest = [], 0
    for x0, y0, x1, y1 in boxes:
        left, top, right, bottom = (
            math.floor(x0 * width),
            math.floor(y0 * height),
            math.ceil(x1 * width),
            math.ceil(y1 * height),
        )
        side = max(right - left, bottom - top)
        grow = math.ceil(_GROWTH * side)
        longest = max(longest, side)
        areas.append(
            (max(left - grow, 0), max(top - grow, 0), min(right + grow, width), min(bottom + grow, height))
        )
    result = pixels.copy()
    sigma = _SIGMA * longest
    for group in _apart(areas, math.ceil(_REACH * sigma)):
        _blur_group(result, group, sigma)
    return result


def _apart(areas: list[tuple[int, int, int, int]], reach: int) -> list[list[tuple[int, int, int, int]]]:
    """`areas` in groups, none of which reads what is blurred for another."""
    groups: list[list[tuple[int, int, int, int]]] = []
    for area in areas:
        near = [group for group in groups if any(_near(area, other, 3 * reach) for other in group)]
        groups = [group for group in groups if group not in near]
        groups.append([area, *(other for group in near for other in group)])
    return groups


def _near(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int) -> bool:
    return a[0] - gap < b[2] and b[0] - gap < a[2] and a[1] - gap < b[3] and b[1] - gap < a[3]


def _blur_group(pixels: Pixels, areas: list[tuple[int, int, int, int]], sigma: float) -> None:
    """Mix the blur of `areas` into `pixels`, reading and writing only what the kernel can touch."""
    height, width = pixels.shape[:2]
    reach = math.ceil(_REACH * sigma)
    left, top = (max(0, min(area[axis] for area in areas) - 2 * reach) for axis in (0, 1))
    right = min(width, max(area[2] for area in areas) + 2 * reach)
    bottom = min(height, max(area[3] for area in areas) + 2 * reach)
    part = pixels[top:bottom, left:right]
    mask = np.zeros(part.shape[:2], np.uint8)
    for area in areas:
        mask[area[1] - top : area[3] - top, area[0] - left : area[2] - left] = 255

    by = max(1, int(sigma / (_EXACT_SIGMA / 2))) if sigma > _EXACT_SIGMA else 1
    size = (-(-part.shape[1] // by), -(-part.shape[0] // by))
    # the mask must not shrink with the copy: a cell that a box touches at all is a part of it
    small_mask = (_smaller(mask, size) > 0).astype(np.float32)
    length = 2 * math.ceil(_REACH * sigma / by) + 1
    blur, weight = (
        cv2.GaussianBlur(image, (length, length), sigma / by)
        for image in (_smaller(part, size).astype(np.float32), small_mask)
    )
    rows = max(1, _BAND // part.shape[1])
    for begin in range(0, part.shape[0], rows):
        end = min(begin + rows, part.shape[0])
        shape = (begin, end, part.shape[0], part.shape[1])
        part[begin:end] = _mixed(part[begin:end], _larger(blur, *shape), _larger(weight, *shape))


def _mixed(part: Pixels, blur: Pixels, weight: Pixels) -> Pixels:
    if part.ndim == 3:
        weight = weight[..., np.newaxis]
    exact = part.astype(np.float32)
    mixed: Pixels = np.rint(exact + (blur - exact) * weight).clip(0, 255)
    return mixed.astype(np.uint8)


def _smaller(image: Pixels, size: tuple[int, int]) -> Pixels:
    return image if size == image.shape[1::-1] else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _larger(small: Pixels, begin: int, end: int, height: int, width: int) -> Pixels:
    """Rows `begin` to `end` of `small` scaled linearly to `height` x `width`: never more than these in memory."""
    if small.shape[:2] == (height, width):
        return small[begin:end]
    at = (np.arange(begin, end, dtype=np.float32) + 0.5) * np.float32(small.shape[0] / height) - 0.5
    at = at.clip(0, small.shape[0] - 1)
    above = at.astype(np.intp)
    below = np.minimum(above + 1, small.shape[0] - 1)
    share = (at - above).astype(np.float32).reshape(-1, *(1,) * (small.ndim - 1))
    rows: Pixels = small[above] * (1 - share) + small[below] * share
    return cv2.resize(rows, (width, end - begin), interpolation=cv2.INTER_LINEAR)
