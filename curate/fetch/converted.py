"""What an image became; importable without a decoder."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""A face: x0, y0, x1, y1 as fractions of a picture's width and height."""


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
