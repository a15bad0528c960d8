"""How an image becomes what a model reads, in processes that have no torch.

The last step, from bytes to normalised floats, is left to the device: it is as exact there, and a quarter of
the bytes travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from curate.model_names import ModelSpec, configs

if TYPE_CHECKING:
    from PIL.Image import Image

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Gives, called with an image, the uint8 array (H, W, 3) whose normalised form a model reads.

    Followed by `x / 255`, minus mean, by std, this is open_clip's `preprocess_val` bit for bit, and needs PIL
    and numpy only. Raises what PIL raises for an image that does not decode.
    """

    size: tuple[int, int]
    """Height, width."""
    resize_mode: str = "shortest"
    """`shortest` crops what is over, `longest` pads what is missing, `squash` ignores the aspect ratio."""
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = _CLIP_MEAN
    std: tuple[float, float, float] = _CLIP_STD
    fill: int = 0

    def __call__(self, image: Image) -> npt.NDArray[np.uint8]:
        # as open_clip has it: resize and crop come before the conversion to RGB, and the interpolation asked
        # for is ignored where the shortest side is fitted to an oblong target
        oblong = self.resize_mode == "shortest" and self.size[0] != self.size[1]
        how = "bicubic" if oblong else self.interpolation
        image = _resize(image, self._target(image.size), how)
        if self.resize_mode != "squash":
            image = _centre(image, self.size, self.fill)
        return np.asarray(image.convert("RGB"))

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        """The width and height to resize to, before the crop."""
        width, height = size
        if self.resize_mode == "squash":
            return self.size[1], self.size[0]
        if self.resize_mode == "shortest" and self.size[0] == self.size[1]:
            side = self.size[0]
            if width <= height:
                return side, int(side * height / width)
            return int(side * width / height), side
        ratios = height / self.size[0], width / self.size[1]
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        # a line keeps one pixel, where open_clip would fail
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def _resize(image: Image, size: tuple[int, int], interpolation: str) -> Image:
    from PIL import Image

    how = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    return image.resize(size, how)


def _centre(image: Image, size: tuple[int, int], fill: int) -> Image:
    """The middle of an image, padded where it is smaller; size is height, width."""
    from PIL import ImageOps

    over = max(0, size[1] - image.width), max(0, size[0] - image.height)
    if any(over):
        border = (over[0] // 2, over[1] // 2, (over[0] + 1) // 2, (over[1] + 1) // 2)
        bands = len(image.getbands())
        padded = ImageOps.expand(image, border, fill if bands == 1 else (fill,) * bands)
        if image.mode == "P":
            padded.putpalette(image.getpalette() or [])
        image = padded
    top, left = round((image.height - size[0]) / 2.0), round((image.width - size[1]) / 2.0)
    return image.crop((left, top, left + size[1], top + size[0]))


def preprocess_of(spec: ModelSpec) -> Preprocess:
    """How images are prepared for a model, without its weights."""
    model, settings = configs(spec)
    given = {k: v for k, v in settings.items() if v is not None}
    size = model["vision_cfg"].get("image_size", 224)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return Preprocess(
        size=(int(height), int(width)),
        resize_mode=given.get("resize_mode", "shortest"),
        interpolation=given.get("interpolation", "bicubic"),
        mean=_triple(given.get("mean", _CLIP_MEAN)),
        std=_triple(given.get("std", _CLIP_STD)),
        fill=int(given.get("fill_color", 0)),
    )


def _triple(value: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = value if isinstance(value, Sequence) else (value,) * 3
    return float(red), float(green), float(blue)
