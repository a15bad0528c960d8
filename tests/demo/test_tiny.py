"""The shipped model and its training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from curate import models
from curate.demo import scenes, train


@pytest.fixture(scope="module")
def tiny() -> models.Model:
    return models.load(models.parse("tiny"), device="cpu")


def test_tiny_is_small_and_says_what_it_is(tiny: models.Model) -> None:
    assert 7_000_000 < models.TINY_WEIGHTS.stat().st_size < 9_000_000
    assert 3_500_000 < sum(p.numel() for p in tiny._network.parameters()) < 4_500_000
    assert tiny.image_size == (64, 64)
    assert tiny.describe()["architecture"] == train.CONFIG["model_cfg"]


def test_tiny_tells_matched_from_shuffled_captions(tiny: models.Model) -> None:
    assert train.held_out_auc(tiny, 500, first=train.HELD_OUT + (1 << 35)) >= 0.99


def test_auc_counts_ties_as_half() -> None:
    assert train.auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert train.auc(np.array([0.0]), np.array([1.0, 2.0])) == 0
    assert train.auc(np.array([1.0]), np.array([1.0, 1.0])) == 0.5
    assert train.auc(np.array([1.0]), np.array([0.0, 2.0, 1.0, 1.0])) == 0.5


def test_training_follows_its_seed(tmp_path: Path) -> None:
    """A few steps: the same bytes twice, other bytes by another seed."""
    written = []
    for seed in (3, 3, 4):
        path = tmp_path / "w.safetensors"
        train.save(train.train(128, 1, seed=seed, workers=1, threads=1, batch=32), path)
        written.append(path.read_bytes())
    assert written[0] == written[1] != written[2]


def test_weights_carry_their_configuration(tmp_path: Path) -> None:
    from open_clip.model import CLIP

    path = tmp_path / "w.safetensors"
    train.save(CLIP(**train.CONFIG["model_cfg"]), path)
    spec = models.parse(str(path))
    assert models.preprocess_of(spec).resize_mode == "squash"
    assert models.load(spec, device="cpu").context_length == 28
    assert json.loads(json.dumps(train.CONFIG)) == train.CONFIG
    assert list(tmp_path.iterdir()) == [path]


def test_training_and_held_out_seeds_do_not_meet() -> None:
    assert train.HELD_OUT > 10_000_000
    assert scenes.compose(train.HELD_OUT) != scenes.compose(0)
