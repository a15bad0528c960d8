"""A rule in one file, as a stranger would write it: drops pictures with lettering over them.

The demo takes it with `--rule .../lettering.py` in the place of `watermark`, whose weights are LAION's and
not ours to ship. It knows no letters, only their strokes, and takes any thin line for one: right for our
scenes, wrong for photos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curate.filter_api import Batch, Figures, Images, Judge, Need, Score, Scorer, setting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    from PIL.Image import Image

_SIDE = 256
_STROKE = 5
"""Pixels: what is thinner than this, lighter or darker than all around, is a stroke."""
_CONTRAST = 18
"""Grey levels by which a stroke stands out: above a photo's noise, below faint lettering."""


@dataclass(frozen=True)
class StrokeScore(Scorer):
    """The part of the picture, 0..1, that is thin strokes: the larger of light and dark ones."""

    name: ClassVar[str] = "strokes"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"strokes": "Float32"}

    def needs(self) -> Sequence[Need]:
        return [Images()]

    def prepare(self, image: Image) -> npt.NDArray[np.uint8]:
        """The picture in grey, 256 x 256."""
        import numpy as np

        return np.asarray(image.convert("L").resize((_SIDE, _SIDE)))

    def open(self, device: str) -> Any:
        import cv2
        import numpy as np

        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_STROKE, _STROKE))

        def strokes(grey: npt.NDArray[np.uint8]) -> float:
            calm = cv2.GaussianBlur(grey, (0, 0), 0.8)
            ways = (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT)
            return max(float((cv2.morphologyEx(calm, way, kernel) > _CONTRAST).mean()) for way in ways)

        def compute(batch: Batch) -> dict[str, Any]:
            return {"strokes": np.array([strokes(image) for image in batch.images], dtype=np.float32)}

        return compute


@dataclass(frozen=True)
class Lettering(Judge):
    """Keep pictures of which at most `max` is thin strokes."""

    reasons: ClassVar[Mapping[str, str]] = {
        "lettering": "the part of the picture that is thin strokes is {value:.4f}, over {max}",
    }

    max: float = setting(0.011, "greatest part of the picture that may be strokes, 0..1")

    def needs(self) -> Sequence[Need]:
        return [Score(StrokeScore())]

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        import polars as pl

        return {"lettering": pl.col("strokes") <= pl.lit(self.max, pl.Float32)}

    def values(self) -> dict[str, pl.Expr]:
        import polars as pl

        return {"lettering": pl.col("strokes")}
