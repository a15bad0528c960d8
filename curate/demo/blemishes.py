"""What the web does to pictures: copies at another size or quality, crops, watermarks.

Each takes a picture and a source of chance and gives a new picture. The demo plants them as defects, and `tiny`
sees them in training, so that a copy stays near its original.
"""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_MARKS = ("SAMPLE", "PREVIEW", "© photobank", "stock image", "shutterpix", "do not copy", "www.pictures.example")


def encoded(image: Image, quality: int) -> bytes:
    """The JPEG file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def recompressed(image: Image, rng: random.Random, quality: tuple[int, int] = (35, 80)) -> Image:
    """The picture after another turn of JPEG."""
    from PIL import Image

    return Image.open(io.BytesIO(encoded(image, rng.randint(*quality)))).convert("RGB")


def resized(image: Image, rng: random.Random, factor: tuple[float, float] = (0.6, 0.9)) -> Image:
    """The picture at a fraction of its size, its shape kept."""
    from PIL import Image

    scale = rng.uniform(*factor)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def cropped(image: Image, rng: random.Random, most: float = 0.05) -> Image:
    """The picture without up to `most` of its width or height at each side."""
    left, top, right, bottom = (rng.uniform(0, most) for _ in range(4))
    width, height = image.size
    box = (left * width, top * height, width - right * width, height - bottom * height)
    return image.crop(tuple(round(edge) for edge in box))  # type: ignore[arg-type]


def watermarked(image: Image, rng: random.Random) -> Image:
    """The picture under half-transparent lettering: one band, or rows of it all over."""
    from PIL import Image, ImageDraw, ImageFont, ImageStat

    width, height = image.size
    text = rng.choice(_MARKS)
    tiled = rng.random() < 0.5
    font = ImageFont.load_default(max(7.0, min(width, height) * (0.09 if tiled else 0.15)))
    # what is planted as visible has to be: light lettering on a dark picture, dark on a light one
    dark = ImageStat.Stat(image.convert("L")).mean[0] < 140
    ink = (255, 255, 255) if dark else (20, 20, 20)
    mask = Image.new("L", (2 * width, 2 * height))
    pen = ImageDraw.Draw(mask)
    opacity = rng.randint(110, 170)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    across, down = right - left, bottom - top
    if tiled:
        for row, y in enumerate(range(0, 2 * height, max(1, int(down * 3.2)))):
            for x in range(-int(across * 0.5 * (row % 2)), 2 * width, max(1, int(across * 1.35))):
                pen.text((x, y), text, font=font, fill=opacity)
    else:
        pen.text((width - across / 2, height - down / 2), text, font=font, fill=opacity)
    mask = mask.rotate(rng.choice((0, 20, 30, -25)))
    mask = mask.crop((width // 2, height // 2, width // 2 + width, height // 2 + height))
    return Image.composite(Image.new("RGB", image.size, ink), image, mask)
