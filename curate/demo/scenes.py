"""Scenes that we render ourselves: coloured shapes with a caption and the facts behind both.

They stand in for web images wherever the truth must be known: `tiny` is trained on them, the demo plants its
defects among them. A scene follows from its seed alone; its picture is drawn at any size, with the blemishes
of a photo (uneven light, blur, noise).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 38, 38),
    "green": (38, 150, 58),
    "blue": (38, 74, 210),
    "yellow": (242, 214, 32),
    "orange": (245, 134, 22),
    "purple": (128, 44, 170),
    "pink": (246, 138, 186),
    "brown": (122, 74, 36),
    "black": (22, 22, 24),
    "white": (246, 246, 244),
    "grey": (134, 136, 138),
    "turquoise": (52, 198, 198),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
TEXTURES = ("plain", "plain", "shaded", "striped", "dotted")
_SIZES = {"small": 0.09, "": 0.13, "large": 0.17}
SYNONYMS = {
    "grey": ("grey", "gray"),
    "purple": ("purple", "violet"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "ring": ("ring", "hoop"),
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
_PLACES = {
    "top left": (0.0, 0.0),
    "top right": (1.0, 0.0),
    "bottom left": (0.0, 1.0),
    "bottom right": (1.0, 1.0),
}
_NUMBERS = ("no", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Group:
    """Equal objects of a scene."""

    count: int
    size: str
    """`small`, `large` or empty for neither."""
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What is to be seen, and the caption that says it."""

    seed: int
    background: str
    texture: str
    groups: tuple[Group, ...]
    """One, or two of which the first stands `place` the second."""
    place: str
    """`left`, `right`, `above` or `below` of two groups; a corner or nothing for one."""
    caption: str


def compose(seed: int) -> Scene:
    """The scene of a seed."""
    rng = random.Random(seed)
    background = rng.choice(tuple(COLOURS))
    colours = [c for c in COLOURS if _apart(c, background)]
    first = _group(rng, colours)
    if rng.random() < 0.5:
        kinds = (first.colour, first.shape)
        second = _group(rng, colours)
        while (second.colour, second.shape) == kinds:
            second = _group(rng, colours)
        groups: tuple[Group, ...] = (first, second)
        place = rng.choice(("left", "right", "above", "below"))
    else:
        groups = (first,)
        place = rng.choice(tuple(_PLACES)) if first.count == 1 and rng.random() < 0.5 else ""
    texture = rng.choice(TEXTURES)
    scene = Scene(seed, background, texture, groups, place, "")
    return replace(scene, caption=caption(scene, seed))


def render(seed: int, sides: tuple[int, int] = (256, 400)) -> tuple[Image, Scene]:
    """The picture of a seed, its sides drawn from `sides` (pixels, inclusive), and its scene."""
    rng = random.Random(~seed)
    size = rng.randint(*sides), rng.randint(*sides)
    scene = compose(seed)
    return draw(scene, size), scene


def _apart(one: str, other: str) -> bool:
    """Whether two colours can be told apart after blur, noise and JPEG."""
    return sum(abs(a - b) for a, b in zip(COLOURS[one], COLOURS[other], strict=True)) > 150


def _group(rng: random.Random, colours: list[str]) -> Group:
    count = rng.choice((1, 1, 1, 2, 2, 3, 4, 5))
    return Group(count, rng.choice(("small", "", "large")), rng.choice(colours), rng.choice(SHAPES))


# captions


def caption(scene: Scene, seed: int) -> str:
    """One of the many ways to say a scene in English."""
    rng = random.Random(seed)
    groups, place, background = scene.groups, scene.place, scene.background
    names = [_phrase(rng, group) for group in groups]
    if len(names) == 2:
        if rng.random() < 0.75:
            text = f"{names[0]} {rng.choice(SYNONYMS[place])} {names[1]}"
        else:
            text = f"{names[0]} and {names[1]}"
    else:
        text = names[0]
        if place and rng.random() < 0.8:
            text += f" in the {place}" + rng.choice((" corner", ""))
    ground = rng.choice(SYNONYMS.get(background, (background,)))
    if scene.texture in ("striped", "dotted") and rng.random() < 0.5:
        ground = f"{scene.texture} {ground}"
    ways = (
        "{text}",
        "{text} on a {ground} background",
        "{text} on a {ground} background",
        "{text} on {ground}",
        "a {ground} background with {text}",
        "{text} in front of a {ground} wall",
    )
    text = rng.choice(ways).format(text=text, ground=ground)
    openings = (
        "{}",
        "{}",
        "a photo of {}",
        "a picture of {}",
        "an image showing {}",
        "this is {}",
        "here we see {}",
    )
    text = rng.choice(openings).format(text).replace("a orange", "an orange")
    return text[0].upper() + text[1:] + "." if rng.random() < 0.5 else text


def _phrase(rng: random.Random, group: Group) -> str:
    size = rng.choice(SYNONYMS[group.size]) if group.size and rng.random() < 0.7 else ""
    colour = rng.choice(SYNONYMS.get(group.colour, (group.colour,)))
    noun = rng.choice(SYNONYMS.get(group.shape, (group.shape,)))
    if group.count == 1:
        words = [rng.choice(("a", "a", "one", "a single")), size, colour, noun]
    else:
        plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
        number = _NUMBERS[group.count] if rng.random() < 0.8 else str(group.count)
        words = [number, size, colour, plural]
    return " ".join(word for word in words if word)


# pictures


def draw(scene: Scene, size: tuple[int, int]) -> Image:
    """The picture of a scene, (width, height) pixels, RGB."""
    from PIL import Image, ImageDraw, ImageFilter

    rng = random.Random(scene.seed ^ 0x5EED)
    width, height = size
    image = Image.new("RGB", size, _tint(rng, COLOURS[scene.background]))
    pen = ImageDraw.Draw(image)
    _texture(pen, rng, scene, size)
    unit = min(width, height)
    for group, spots in zip(scene.groups, _spots(rng, scene), strict=True):
        radius = _SIZES[group.size] * rng.uniform(0.92, 1.08) * (1.0 if len(scene.groups) == 1 else 0.75)
        ink = _tint(rng, COLOURS[group.colour])
        paper = COLOURS[scene.background]
        for x, y in spots:
            turn = rng.uniform(-0.2, 0.2)
            _SHAPES[group.shape](pen, x * width, y * height, radius * unit, turn, ink, paper)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 1.0) * unit / 160))
    return _photographed(image, scene.seed, rng.uniform(0, 0.25), rng.uniform(0, 9))


def _tint(rng: random.Random, colour: RGB) -> RGB:
    """A colour as it may look in some light."""
    red, green, blue = (min(255, max(0, c + rng.randint(-12, 12))) for c in colour)
    return red, green, blue


def _texture(pen: ImageDraw, rng: random.Random, scene: Scene, size: tuple[int, int]) -> None:
    if scene.texture not in ("striped", "dotted"):
        return
    base = COLOURS[scene.background]
    step = 0.8 if sum(base) > 380 else 1.0
    ink = tuple(int(c * 0.82) for c in base) if step < 1 else tuple(min(255, c + 40) for c in base)
    gap = max(6, min(size) // rng.randint(7, 11))
    if scene.texture == "striped":
        for x in range(0, size[0] + size[1], gap):
            pen.line((x, 0, x - size[1], size[1]), fill=ink, width=max(1, gap // 3))
    else:
        dot = gap / 5
        for x in range(gap // 2, size[0], gap):
            for y in range(gap // 2, size[1], gap):
                pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=ink)


def _spots(rng: random.Random, scene: Scene) -> list[list[tuple[float, float]]]:
    """Places for each group's objects, as fractions of width and height, no two overlapping."""
    if len(scene.groups) == 1:
        if scene.place:
            x, y = _PLACES[scene.place]
            return [[(0.22 + 0.56 * x + rng.uniform(-0.03, 0.03), 0.22 + 0.56 * y + rng.uniform(-0.03, 0.03))]]
        cells = [(c / 3 + 1 / 6, r / 3 + 1 / 6) for c in range(3) for r in range(3)]
        # one object without a place stands near the middle, so that a corner in a caption means something
        chosen = [(0.5, 0.5)] if scene.groups[0].count == 1 else rng.sample(cells, scene.groups[0].count)
        return [[(x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02)) for x, y in chosen]]
    halves = []
    for number, group in enumerate(scene.groups):
        far = (number == 0) == (scene.place in ("right", "below"))
        along = [0.5 * far + 0.14, 0.5 * far + 0.37]
        across = [1 / 6, 0.5, 5 / 6]
        if group.count == 1:
            cells = [(0.5 * far + 0.25, 0.5 + rng.uniform(-0.2, 0.2))]
        else:
            cells = rng.sample([(a, b) for a in along for b in across], group.count)
        if scene.place in ("above", "below"):
            cells = [(b, a) for a, b in cells]
        halves.append([(x + rng.uniform(-0.01, 0.01), y + rng.uniform(-0.01, 0.01)) for x, y in cells])
    return halves


def _photographed(image: Image, seed: int, shade: float, noise: float) -> Image:
    """The picture under light that falls off to one side, with the grain of a sensor."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    pixels = np.asarray(image, dtype=np.float32)
    height, width, _ = pixels.shape
    angle = rng.uniform(0, 2 * math.pi)
    across = np.linspace(-0.5, 0.5, width, dtype=np.float32) * math.cos(angle)
    down = np.linspace(-0.5, 0.5, height, dtype=np.float32) * math.sin(angle)
    light = 1 - shade * (0.5 + down[:, None, None] + across[None, :, None])
    grain: npt.NDArray[Any] = rng.standard_normal((height, width, 1), dtype=np.float32) * noise
    return Image.fromarray((pixels * light + grain).clip(0, 255).astype(np.uint8))


# shapes: pen, centre, radius, turn (radians), ink, and the paper that shows through a ring

_Shape = Callable[["ImageDraw", float, float, float, float, RGB, RGB], None]


def _polygon(pen: ImageDraw, x: float, y: float, r: float, turn: float, ink: RGB, points: list[Any]) -> None:
    sin, cos = math.sin(turn), math.cos(turn)
    pen.polygon([(x + r * (a * cos - b * sin), y + r * (a * sin + b * cos)) for a, b in points], fill=ink)


def _circle(pen: ImageDraw, x: float, y: float, r: float, turn: float, ink: RGB, paper: RGB) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)


def _ring(pen: ImageDraw, x: float, y: float, r: float, turn: float, ink: RGB, paper: RGB) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    pen.ellipse((x - r * 0.58, y - r * 0.58, x + r * 0.58, y + r * 0.58), fill=paper)


def _angular(points: list[tuple[float, float]]) -> _Shape:
    def shape(pen: ImageDraw, x: float, y: float, r: float, turn: float, ink: RGB, paper: RGB) -> None:
        _polygon(pen, x, y, r, turn, ink, points)

    return shape


def _star_points() -> list[tuple[float, float]]:
    corners = [(1.1 if k % 2 == 0 else 0.45, math.pi * k / 5 - math.pi / 2) for k in range(10)]
    return [(length * math.cos(angle), length * math.sin(angle)) for length, angle in corners]


def _heart_points() -> list[tuple[float, float]]:
    turns = [2 * math.pi * k / 24 for k in range(24)]
    return [
        (
            math.sin(t) ** 3 * 1.05,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15,
        )
        for t in turns
    ]


def _cross_points(t: float) -> list[tuple[float, float]]:
    arm = [(-t, -t), (-t, -1.0), (t, -1.0)]
    turned = [arm]
    for _ in range(3):
        turned.append([(-b, a) for a, b in turned[-1]])
    return [point for points in turned for point in points]


_SHAPES: dict[str, _Shape] = {
    "circle": _circle,
    "ring": _ring,
    "square": _angular([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "triangle": _angular([(0.0, -1.05), (1.0, 0.8), (-1.0, 0.8)]),
    "diamond": _angular([(0.0, -1.15), (0.7, 0.0), (0.0, 1.15), (-0.7, 0.0)]),
    "star": _angular(_star_points()),
    "heart": _angular(_heart_points()),
    "cross": _angular(_cross_points(0.32)),
}
