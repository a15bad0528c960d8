"""A candidate list with planted defects, and the truth about them.

`plant` writes the pictures into a folder that the demo's server serves, `write_list` the list with real addresses.
The truth stays apart from both, keyed by a candidate's path. Every candidate has one defect or none.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from curate.demo import blemishes, languages, scenes
from curate.demo.blemishes import encoded
from curate.demo.server import Behaviour, write_behaviours
from curate.demo.train import HELD_OUT

SHARES: Mapping[str, float] = {
    "wrong caption": 0.10,
    "recompressed copy": 0.03,
    "resized copy": 0.03,
    "cropped copy": 0.03,
    "exact copy": 0.03,
    "watermark": 0.05,
    "foreign caption": 0.05,
    "short caption": 0.02,
    "small image": 0.02,
    "stretched image": 0.02,
    "dead link": 0.02,
    "HTML for an image": 0.015,
    "silent host": 0.005,
    "slow host": 0.015,
}
"""Each defect's part of the candidates."""
COPIES = ("recompressed copy", "resized copy", "cropped copy", "exact copy")
HARMLESS = ("slow host",)
"""Planted to show that they cost nothing but time: these samples have to arrive."""
HOSTS = tuple(f"127.0.0.{number}" for number in range(1, 7))
SIDES = (230, 340)
"""Pixels of a side, such that a resized or cropped copy has still 200."""
SLOW_S = 0.6
SILENT_S = 60.0
_SEED_STEP = 1 << 22
_SHORT = ("photo", "img 42", "shape", "ok", "a star", "buy now", "picture 7", "untitled")
_HTML = b"<!doctype html><html><head><title>Moved</title></head><body><p>This picture has moved.</p></body></html>"


@dataclass(frozen=True)
class Candidate:
    """One row of the list, and the truth about it."""

    path: str
    """Of its address, and of its file under the served folder."""
    host: int
    caption: str
    defect: str
    """A key of SHARES, or empty."""
    seed: int
    """Of the scene in its picture; a copy has its original's."""


def plant(folder: Path, count: int = 2000, seed: int = 0, workers: int = 2) -> list[Candidate]:
    """Renders the candidates into `folder`, and gives them in the order of the list.

    The same count and seed give the same bytes. Raises ValueError where they are too few for the defects.
    """
    planned = plan(count, seed)
    for name in {str(Path(item.path).parent) for item in planned}:
        (folder / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
    chunk = 100
    chunks = [planned[first : first + chunk] for first in range(0, count, chunk)]
    with ProcessPoolExecutor(max(1, workers), mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(_render, chunks, [folder] * len(chunks)):
            pass
    does = {item.path: behaviour(item.defect) for item in planned}
    write_behaviours(folder, {path: kind for path, kind in does.items() if kind != Behaviour()})
    return planned


def write_list(planned: Sequence[Candidate], bases: Sequence[str], path: Path) -> None:
    """Writes the list as the world sees it: Parquet with `url` and `caption`."""
    import polars as pl

    urls = [bases[item.host % len(bases)] + item.path for item in planned]
    pl.DataFrame({"url": urls, "caption": [item.caption for item in planned]}).write_parquet(path)


def write_truth(planned: Sequence[Candidate], path: Path) -> None:
    """Writes what only we know, as Parquet: `path`, `caption`, `defect`, `seed`."""
    import polars as pl

    pl.DataFrame([asdict(item) for item in planned]).drop("host").write_parquet(path)


def plan(count: int, seed: int = 0) -> list[Candidate]:
    """The candidates without their pictures."""
    rng = random.Random(seed)
    defects = [name for name, share in SHARES.items() for _ in range(max(1, round(share * count)))]
    clean = count - len(defects)
    if clean < len(defects):
        raise ValueError(f"{count} candidates are too few for {len(defects)} defects")
    first = HELD_OUT + seed * _SEED_STEP
    # an original has one copy at most, so that every copy is one sample too many
    originals = iter(rng.sample(range(first, first + clean), len(defects)))
    planned = []
    for number, defect in enumerate([""] * clean + defects):
        scene_seed = next(originals) if defect in COPIES else first + number
        path = f"/images/{rng.getrandbits(40):010x}-{number:05d}.jpg"
        caption = _caption(defect, scene_seed, rng)
        planned.append(Candidate(path, number % len(HOSTS), caption, defect, scene_seed))
    rng.shuffle(planned)
    return planned


def _caption(defect: str, seed: int, rng: random.Random) -> str:
    scene = scenes.compose(seed)
    if defect == "wrong caption":
        return scenes.compose(seed + _SEED_STEP // 2).caption
    if defect == "foreign caption":
        return languages.said_in(rng.choice(sorted(languages.LANGUAGES)), scene, seed)
    if defect == "short caption":
        return rng.choice(_SHORT)
    if defect in COPIES:
        return scenes.caption(scene, rng.getrandbits(40))
    return scene.caption


def behaviour(defect: str) -> Behaviour:
    """What the server does for a candidate with a defect."""
    if defect == "HTML for an image":
        return Behaviour(content_type="text/html; charset=utf-8")
    return Behaviour(delay={"slow host": SLOW_S, "silent host": SILENT_S}.get(defect, 0.0))


def _render(planned: Sequence[Candidate], folder: Path) -> None:
    for item in planned:
        if item.defect != "dead link":
            (folder / item.path.lstrip("/")).write_bytes(_file(item))


def _file(item: Candidate) -> bytes:
    """The bytes behind a candidate's address."""
    rng = random.Random(item.path)
    if item.defect == "HTML for an image":
        return _HTML
    if item.defect == "small image":
        return encoded(scenes.draw(scenes.compose(item.seed), (rng.randint(60, 150), rng.randint(60, 150))), 92)
    if item.defect == "stretched image":
        return encoded(scenes.draw(scenes.compose(item.seed), (rng.randint(900, 1100), rng.randint(220, 260))), 92)
    image, _ = scenes.render(item.seed, SIDES)
    if item.defect == "recompressed copy":
        return encoded(image, rng.randint(45, 75))
    if item.defect == "resized copy":
        return encoded(blemishes.resized(image, rng, (0.88, 0.95)), 90)
    if item.defect == "cropped copy":
        return encoded(blemishes.cropped(image, rng, most=0.04), 90)
    if item.defect == "watermark":
        return encoded(blemishes.watermarked(image, rng), 92)
    return encoded(image, 92)
