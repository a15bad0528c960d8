"""Faces blurred beyond recognition, at least as strongly as the release that DataComp was made with.

img2dataset 1.40's formula: each box, of longer side d in pixels of the resized image, grows by 0.1 d a side; one
sigma, 0.1 times the largest d, serves all; the picture and the 0/1 mask of the boxes go through the same Gaussian
(a kernel of 2 ceil(4 sigma) + 1), and the blurred mask mixes the two pictures. (1.47 cuts that kernel to about
one sigma a side, which leaves faces to be recognised.) Where roundings leave a choice, ours is the larger box;
and a small face beside a large one gets the whole blur, which the formula's mask would spare it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from curate.fetch.converted import Box

Pixels = npt.NDArray[Any]

_GROWTH = 0.1
_SIGMA = 0.1
_REACH = 4
_EXACT_SIGMA = 8.0
"""Up to here the kernel is the formula's; a wider one is laid on a smaller copy, at half of it or more."""
_BAND = 1 << 20


class _Area(NamedTuple):
    """What is blurred for a box: pixels, the right and bottom ones beyond it; and what its size asks for."""

    left: int
    top: int
    right: int
    bottom: int
    sigma: float


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
    areas = []
    for x0, y0, x1, y1 in boxes:
        left, top = math.floor(x0 * width), math.floor(y0 * height)
        right, bottom = math.ceil(x1 * width), math.ceil(y1 * height)
        side = max(right - left, bottom - top)
        grow = math.ceil(_GROWTH * side)
        area = (max(left - grow, 0), max(top - grow, 0), min(right + grow, width), min(bottom + grow, height))
        areas.append(_Area(*area, _SIGMA * side))
    result = pixels.copy()
    sigma = max((area.sigma for area in areas), default=0.0)
    for group in _apart(areas, math.ceil(_REACH * sigma)):
        _blur_group(result, group, sigma)
    return result


def _apart(areas: list[_Area], reach: int) -> list[list[_Area]]:
    """`areas` in groups, none of which reads what is blurred for another."""
    groups: list[list[_Area]] = []
    for area in areas:
        near = [group for group in groups if any(_near(area, other, 3 * reach) for other in group)]
        groups = [group for group in groups if group not in near]
        groups.append([area, *(other for group in near for other in group)])
    return groups


def _near(a: _Area, b: _Area, gap: int) -> bool:
    return a.left - gap < b.right and b.left - gap < a.right and a.top - gap < b.bottom and b.top - gap < a.bottom


def _blur_group(pixels: Pixels, areas: list[_Area], sigma: float) -> None:
    """Mix the blur of `areas` into `pixels`, reading and writing only what the kernel can touch."""
    height, width = pixels.shape[:2]
    reach = 2 * math.ceil(_REACH * sigma)
    left, top = max(0, min(a.left for a in areas) - reach), max(0, min(a.top for a in areas) - reach)
    right = min(width, max(area.right for area in areas) + reach)
    bottom = min(height, max(area.bottom for area in areas) + reach)
    part = pixels[top:bottom, left:right]
    height, width = part.shape[:2]

    by = max(1, int(sigma / (_EXACT_SIGMA / 2))) if sigma > _EXACT_SIGMA else 1
    size = (-(-width // by), -(-height // by))
    small = part if by == 1 else cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    blur = _gaussian(small.astype(np.float32), sigma / by)
    # a cell of the smaller copy that an area touches at all is a part of it
    cells = [
        _Area(
            (a.left - left) // by,
            (a.top - top) // by,
            -(-(a.right - left) // by),
            -(-(a.bottom - top) // by),
            a.sigma / by,
        )
        for a in areas
    ]
    weight = _weights(cells, (size[1], size[0]), sigma / by)
    rows = max(1, _BAND // width)
    for begin in range(0, height, rows):
        shape = (begin, min(begin + rows, height), height, width)
        part[begin : begin + rows] = _mixed(
            part[begin : begin + rows], _larger(blur, *shape), _larger(weight, *shape)
        )


def _weights(areas: list[_Area], shape: tuple[int, int], sigma: float) -> Pixels:
    """How much of the blur each cell gets: the formula's, or what an area's own sigma would give if that is more.

    A small face beside a large one would else be left half as it was: its mask is blurred away.
    """
    mask = np.zeros(shape, np.float32)
    for area in areas:
        mask[area.top : area.bottom, area.left : area.right] = 1
    weight = _gaussian(mask, sigma)
    for area in areas:
        if area.sigma < sigma:
            reach = math.ceil(_REACH * area.sigma)
            top, left = max(area.top - reach, 0), max(area.left - reach, 0)
            around = np.s_[top : area.bottom + reach, left : area.right + reach]
            own = np.zeros_like(weight[around])
            own[area.top - top : area.bottom - top, area.left - left : area.right - left] = 1
            np.maximum(weight[around], _gaussian(own, area.sigma), out=weight[around])
    return weight


def _gaussian(image: Pixels, sigma: float) -> Pixels:
    length = 2 * math.ceil(_REACH * sigma) + 1
    return cv2.GaussianBlur(image, (length, length), sigma)


def _mixed(part: Pixels, blur: Pixels, weight: Pixels) -> Pixels:
    if part.ndim == 3:
        weight = weight[..., np.newaxis]
    exact = part.astype(np.float32)
    mixed: Pixels = np.rint(exact + (blur - exact) * weight).clip(0, 255)
    return mixed.astype(np.uint8)


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
