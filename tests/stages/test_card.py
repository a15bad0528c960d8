from __future__ import annotations

from dataclasses import replace

import pytest

from curate import recipe
from curate.baselines import BASELINES, RECIPES
from curate.scales import scale
from curate.stages.card import Facts, card

FACTS = Facts(
    scale("small"),
    0,
    "datacomp",
    12_800_000,
    "0" * 64,
    "mine",
    {"steps": [{"rule": "other", "settings": {}}]},
    ("other",),
    ({"text": "other", "in": 12_800_000, "dropped": {"x": 8_800_000}, "unjudged": {}, "left": 4_000_000},),
    4_000_000,
    0,
    3_600_000,
    3_600_000,
    360,
    {"http_404": 400_000},
    "shards/{00000000..00000359}.tar",
)


def test_the_nearest_baseline_is_told_with_its_source_and_why() -> None:
    text = card(FACTS)
    assert "`datacomp/clip_score` keeps 30% of the pool, this subset 31.2%" in text
    assert "| ImageNet-1k, accuracy | 0.0505 |" in text
    assert "| average over DataComp's 38 data sets | 0.1731 |" in text
    assert "docs/openclip_results.csv" in text
    assert "no forecast for this one." in text
    assert "sees 12,800,000 samples, so each of these about 3.6 times" in text


def test_a_smaller_pool_than_the_baselines_is_said() -> None:
    text = card(replace(FACTS, pool_samples=5_000_000))
    assert "its pool had 12,800,000 samples, this one has 5,000,000." in text
    assert "this subset 80.0%" in text


def test_of_a_larger_pool_the_scales_part_counts() -> None:
    facts = replace(FACTS, pool_samples=128_000_000, selected=40_000_000, outside=36_160_000)
    assert facts.share == 0.3


def test_debug_has_no_published_scores() -> None:
    assert "Published scores" not in card(replace(FACTS, scale=scale("debug")))


@pytest.mark.parametrize("asked", ["datacomp/clip_score", "datacomp/text_based:language_model=lid.bin"])
def test_a_recipe_of_datacomps_is_held_against_its_own_scores(asked: str) -> None:
    name = asked.partition(":")[0]
    assert name in recipe.shipped()
    assert f"is of the recipe `{name}`" in card(replace(FACTS, recipe_name=asked))


@pytest.mark.parametrize("asked", ["datacomp/clip_score:top=0.1", "datacomp/random_subset", "mine.toml", ""])
def test_any_other_recipe_is_held_against_the_nearest_share(asked: str) -> None:
    assert "`datacomp/clip_score` keeps 30% of the pool" in card(replace(FACTS, recipe_name=asked))


def test_every_published_baseline_is_a_shipped_recipe() -> None:
    assert {RECIPES + b.recipe for b in BASELINES} <= set(recipe.shipped())


def test_both_trainers_are_told() -> None:
    text = card(replace(FACTS, scale=scale("xlarge")))
    assert "--train-data 'shards/{00000000..00000359}.tar'" in text
    assert "train.py --scale xlarge --data_dir . " in text
    assert text.count("--precision amp_bfloat16") == 2


def test_a_virtual_subset_is_trained_on_through_a_pipe() -> None:
    pattern = "pipe:python -m curate.sampling tar . {00000000..00000359}.tar"
    text = card(replace(FACTS, virtual=True, pattern=pattern))
    assert f"--data_dir '{pattern}'" in text
    assert f"--train-data '{pattern}'" in text
