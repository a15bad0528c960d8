"""The demo's own rule, given by its file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

import curate.demo
from curate import plugins
from curate.demo import blemishes, plant, scenes
from curate.filter_api import Batch, Judge, Score

FILE = Path(curate.demo.__file__).with_name("lettering.py")


def test_it_loads_from_its_file() -> None:
    rule = plugins.build(str(FILE), {"max": 0.01})
    assert isinstance(rule, Judge)
    assert list(rule.needs())


def test_it_tells_watermarked_scenes_from_clean_ones() -> None:
    rule = plugins.build(str(FILE), {})
    need = next(iter(rule.needs()))
    assert isinstance(need, Score)
    clean = [scenes.render(plant.HELD_OUT + k, plant.SIDES)[0] for k in range(100)]
    marked = [blemishes.watermarked(image, random.Random(k)) for k, image in enumerate(clean)]
    scorer = need.scorer
    images = np.stack([scorer.prepare(image) for image in clean + marked])
    batch = Batch(uid=["0" * 32] * len(images), columns={}, vectors={}, images=images)
    scores = scorer.open("cpu")(batch)["strokes"]
    dropped = scores > rule.max  # type: ignore[attr-defined]
    assert dropped[:100].sum() <= 3
    assert dropped[100:].sum() >= 97
