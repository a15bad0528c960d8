"""Faces are blurred at least as strongly as by the release that DataComp was made with, whatever the boxes."""

from __future__ import annotations

import math
import os
import time
import warnings
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from curate.fetch.blur import Box, blurred, upright, valid

Pixels = npt.NDArray[Any]
NAN = float("nan")
INF = float("inf")


def scene(width: int, height: int, channels: int = 3) -> Pixels:
    """Detail at every scale, as a face has: squares of 4, 16 and 64 pixels and noise."""
    rng = np.random.default_rng(0)
    total = np.zeros((height, width, channels))
    for side in (4, 16, 64):
        cells = rng.integers(0, 256, (height // side + 1, width // side + 1, channels))
        total += np.kron(cells, np.ones((side, side, 1), int))[:height, :width]
    scaled: Pixels = (total / 3 + rng.normal(0, 10, total.shape)).clip(0, 255)
    return scaled.astype(np.uint8).squeeze()


def formula(pixels: Pixels, boxes: list[Box]) -> Pixels:
    """What img2dataset 1.40 computes, on the whole picture."""
    height, width = pixels.shape[:2]
    picture = pixels.astype(np.float32) / 255
    mask = np.zeros_like(picture)
    longest = 0
    for box in boxes:
        x0, y0, x1, y1 = (int(value * side) for value, side in zip(box, (width, height) * 2, strict=True))
        longest = max(longest, side := max(x1 - x0, y1 - y0))
        x0, y0 = (min(max(int(value - 0.1 * side), 0), most - 1) for value, most in ((x0, width), (y0, height)))
        x1, y1 = (min(max(int(value + 0.1 * side), 0), most - 1) for value, most in ((x1, width), (y1, height)))
        mask[y0:y1, x0:x1] = 1
    sigma = 0.1 * longest
    length = 2 * math.ceil(4 * sigma) + 1
    soft = cv2.GaussianBlur(mask, (length, length), sigma)
    mixed = picture * (1 - soft) + cv2.GaussianBlur(picture, (length, length), sigma) * soft
    return (mixed * 255).astype(np.uint8)


def inside(pixels: Pixels, box: Box) -> Pixels:
    height, width = pixels.shape[:2]
    return pixels[int(box[1] * height) : int(box[3] * height), int(box[0] * width) : int(box[2] * width)]


SETS: list[list[Box]] = [
    [(0.3, 0.3, 0.5, 0.6)],
    [(0.4, 0.4, 0.44, 0.46)],
    [(0.1, 0.1, 0.9, 0.9)],
    [(0.0, 0.0, 0.1, 0.1), (0.8, 0.7, 0.95, 0.99)],
    [(0.45, 0.1, 0.5, 0.2), (0.3, 0.5, 0.4, 0.8), (0.1, 0.1, 0.15, 0.15)],
    [(0.3, 0.3, 0.45, 0.5), (0.45, 0.3, 0.6, 0.5)],
]


@pytest.mark.parametrize("boxes", SETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_detail_falls_at_least_as_far_as_by_the_formula(boxes: list[Box], channels: int) -> None:
    pixels = scene(512, 384, channels)
    ours, theirs = blurred(pixels, valid(boxes)), formula(pixels, boxes)
    for box in boxes:
        assert inside(ours, box).std() <= inside(theirs, box).std() + 0.3
        assert inside(ours, box).std() < 0.6 * inside(pixels, box).std()


def test_small_sigmas_are_the_formula_to_a_rounding() -> None:
    pixels = scene(512, 384)
    for box in ((0.25, 0.25, 0.375, 0.375), (0.5, 0.5, 0.5625, 0.625)):
        difference = blurred(pixels, [box]).astype(int) - formula(pixels, [box])
        # the formula cuts fractions off, and its grown box is a pixel smaller at the right and bottom
        assert np.abs(difference).max() <= 12
        assert np.abs(difference).mean() < 1


def test_stronger_than_the_installed_img2dataset() -> None:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from img2dataset.blurrer import BoundingBoxBlurrer

        for boxes in SETS:
            pixels = scene(512, 384)
            theirs = BoundingBoxBlurrer()(pixels, boxes)
            ours = blurred(pixels, valid(boxes))
            for box in boxes:
                assert inside(ours, box).std() < inside(theirs, box).std(), box


def test_what_is_far_from_the_boxes_is_untouched() -> None:
    pixels = scene(600, 400)
    before = pixels.copy()
    # sides of 30 pixels: grown by 3, and blurred on over 12 more
    boxes = [(0.05, 0.1, 0.1, 0.175), (0.9, 0.9, 0.95, 0.975)]
    ours = blurred(pixels, boxes)
    assert (pixels == before).all()
    touched = np.argwhere((ours != pixels).any(axis=2))
    for y, x in touched:
        assert any(x0 - 16 <= x < x1 + 16 and y0 - 16 <= y < y1 + 16 for x0, y0, x1, y1 in (
            (30, 40, 60, 70), (540, 360, 570, 390)
        ))  # fmt: skip
    assert len(touched) > 1500


def test_two_faces_far_apart_are_each_blurred_as_alone() -> None:
    pixels = scene(1600, 400)
    left, right = (0.02, 0.3, 0.06, 0.5), (0.9, 0.3, 0.94, 0.5)
    both = blurred(pixels, [left, right])
    assert (both[:, :800] == blurred(pixels, [left])[:, :800]).all()
    assert (both[:, 800:] == blurred(pixels, [right])[:, 800:]).all()


def test_invalid_boxes_leave_the_others_blurred() -> None:
    good = (0.25, 0.25, 0.5, 0.5)
    bad: list[Any] = [
        (NAN, 0.1, 0.2, 0.2),
        (0.1, 0.1, 0.2, NAN),
        (0.3, 0.3, 0.3, 0.3),
        (1.5, 0.1, 1.9, 0.2),
        (-0.5, 0, -0.1, 1),
        (0.1, 0.2, 0.3),
        (None, 0.1, 0.2, 0.2),
        (),
    ]
    assert valid(bad) == ()
    assert valid([*bad, good, *bad]) == (good,)
    pixels = scene(256, 256)
    assert (blurred(pixels, valid([*bad, good])) == blurred(pixels, [good])).all()
    assert (blurred(pixels, valid(bad)) == pixels).all()


def test_odd_boxes_are_read_as_what_they_cover() -> None:
    assert valid([(0.5, 0.6, 0.2, 0.1)]) == ((0.2, 0.1, 0.5, 0.6),)
    assert valid([(-INF, 0.1, INF, 0.2)]) == ((-1.0, 0.1, 2.0, 0.2),)
    assert valid([(0.2, 0.1, 0.2, 0.9)]) == ((0.2, 0.1, 0.2, 0.9),)
    assert valid([(-1e300, -5, 1e300, 7)]) == ((-1.0, -1.0, 2.0, 2.0),)
    pixels = scene(256, 256)
    assert blurred(pixels, valid([(-1e300, -5, 1e300, 7)])).std() < 0.25 * pixels.std()
    assert (blurred(pixels, valid([(0.5, 0.6, 0.2, 0.1)])) == blurred(pixels, [(0.2, 0.1, 0.5, 0.6)])).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (3, 5), (2, 2)])
def test_pictures_of_a_few_pixels(shape: tuple[int, int]) -> None:
    pixels = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
    assert blurred(pixels, [(0.0, 0.0, 1.0, 1.0), (0.4, 0.4, 0.6, 0.6)]).shape == shape


def test_many_boxes_and_large_ones_cost_little() -> None:
    pixels = scene(3000, 2000)
    rng = np.random.default_rng(0)
    corners = rng.random((100, 2)) * 0.9
    boxes = [(x, y, x + 0.02 + 0.05 * (x > 0.5), y + 0.04) for x, y in corners.tolist()]
    begin = time.process_time()
    blurred(pixels, [(0.1, 0.1, 0.9, 0.9)])
    blurred(pixels, boxes)
    assert time.process_time() - begin < 5  # the plain formula, with a kernel of 1,921: minutes


def test_boxes_turn_with_the_picture() -> None:
    from curate.fetch.images import _upright

    box = (0.1, 0.2, 0.4, 0.3)
    marked = np.zeros((20, 30), np.uint8)
    marked[4:6, 3:12] = 255
    for orientation in range(1, 9):
        picture = _upright(marked, orientation)
        (turned,) = upright([box], orientation)
        height, width = picture.shape
        ys, xs = np.nonzero(picture)
        corners = xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height
        assert np.allclose(turned, corners), orientation
