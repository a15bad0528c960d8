"""Pictures like photos, for what is measured on images."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def soft(chance: np.random.Generator, width: int, height: int, *, grain: int, quality: int) -> bytes:
    """A JPEG of soft blobs of colour under a little grain, of at most `grain` steps of 256 up or down."""
    blobs = chance.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC))
    noise = chance.integers(-grain, grain + 1, (height, width, 1), dtype=np.int16)
    out = io.BytesIO()
    Image.fromarray((picture + noise).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=quality)
    return out.getvalue()
