from __future__ import annotations

import pytest

from curate.baselines import BASELINES, nearest
from curate.scales import SCALES


def test_every_scale_with_a_pool_has_figures() -> None:
    assert {b.scale for b in BASELINES} == set(SCALES) - {"debug"}
    assert len({(b.scale, b.recipe) for b in BASELINES}) == len({b.model for b in BASELINES}) == len(BASELINES)
    assert all(0 < b.imagenet < 1 and 0 < b.average < 1 for b in BASELINES)


def test_the_best_of_each_scale_is_the_papers() -> None:
    best = {
        s: max((b for b in BASELINES if b.scale == s), key=lambda b: b.imagenet) for s in SCALES if s != "debug"
    }
    assert {s: b.recipe for s, b in best.items()} == {
        "small": "clip_score",
        "medium": "image_based_intersect_clip_score",
        "large": "image_based_intersect_clip_score",
        "xlarge": "image_based_intersect_clip_score",
    }
    assert best["xlarge"].imagenet == 0.7921


def test_a_row_that_repeats_another_is_left_out() -> None:
    assert not [b for b in BASELINES if (b.scale, b.recipe) == ("small", "image_based")]


def test_a_recipe_of_datacomps_is_nearest_to_itself() -> None:
    found = nearest("medium", "datacomp/basic_filter", 0.9)
    assert found is not None
    assert found.baseline.model == "commonpool_m_basic_s128m_b4k"
    assert found.by == "the selection is of the recipe `datacomp/basic_filter`"


@pytest.mark.parametrize(
    ("kept", "recipe"),
    [
        (0.9, "no_filter"),
        (0.4, "clip_score"),
        (0.22, "clip_score"),
        (0.2, "image_based_intersect_clip_score"),
        (0.001, "image_based_intersect_clip_score"),
    ],
)
def test_any_other_is_nearest_by_the_share_that_it_keeps(kept: float, recipe: str) -> None:
    found = nearest("large", "mine", kept)
    assert found is not None
    assert found.baseline.recipe == recipe
    assert f"this subset {kept:.1%}" in found.by


def test_where_nothing_is_published() -> None:
    assert nearest("debug", "datacomp/clip_score", 0.3) is None
    missing = nearest("xlarge", "datacomp/text_based", 0.25)  # not trained at this scale
    assert missing is not None
    assert missing.baseline.recipe == "clip_score"
