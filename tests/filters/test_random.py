"""random: exact counts, nested draws, luck that depends on the sample alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from curate.filters.random import Random

from .fakes import FakeLeft, uids


def left(n: int = 1000, pool_n: int = 0) -> FakeLeft:
    return FakeLeft(pl.DataFrame({"uid": uids(n)}), pool_n=pool_n)


def kept(pool: FakeLeft, **settings: object) -> set[str]:
    draw = Random(**settings).draw(pool)
    assert draw.copies.dtype == np.uint16
    assert draw.copies.max(initial=0) <= 1
    assert draw.unjudged is None
    return set(pool.table["uid"].to_numpy()[draw.copies == 1])


@pytest.mark.parametrize(
    ("fraction", "n", "wanted"),
    [(0.29, 100, 29), (0.1, 999, 99), (1.0, 7, 7), (0.001, 999, 0), (1e-9, 10, 0), (0.7, 10, 7), (0.5, 0, 0)],
)
def test_a_fraction_keeps_the_floor_of_its_decimal(fraction: float, n: int, wanted: int) -> None:
    assert len(kept(left(n), fraction=fraction)) == wanted


def test_of_pool_counts_what_was_dropped_before() -> None:
    assert len(kept(left(1000, 4000), fraction=0.1)) == 100
    assert len(kept(left(1000, 4000), fraction=0.1, of="pool")) == 400
    assert len(kept(left(1000, 4000), fraction=0.5, of="pool")) == 1000


def test_a_number_keeps_so_many_or_all() -> None:
    assert len(kept(left(), n=17)) == 17
    assert len(kept(left(5), n=17)) == 5


def test_draws_nest_under_one_seed_and_differ_between_seeds() -> None:
    pool = left()
    assert kept(pool, n=100) < kept(pool, fraction=0.3) < kept(pool, n=301)
    overlap = len(kept(pool, n=300) & kept(pool, n=300, seed=1))
    assert 50 < overlap < 130  # 90 expected of independent draws, 4.6 the deviation


def test_luck_is_the_samples_own() -> None:
    table = pl.DataFrame({"uid": uids(1000)})
    some = FakeLeft(table.head(400))
    other_order = FakeLeft(table.reverse())
    whole = kept(FakeLeft(table), n=500)
    assert kept(other_order, n=500) == whole
    in_some = kept(some, n=len(whole & set(some.table["uid"])))
    assert in_some == whole & set(some.table["uid"])


def test_equal_chance_goes_to_the_lower_row() -> None:
    table = pl.DataFrame({"uid": ["0" * 32] * 5})
    assert Random(n=2).draw(FakeLeft(table)).copies.tolist() == [1, 1, 0, 0, 0]


def test_all_are_kept_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = left(5, 4)
    monkeypatch.setattr(FakeLeft, "chance", None)
    assert kept(pool, fraction=1.0) == kept(pool, n=5) == set(pool.table["uid"])


def test_every_draw_is_even() -> None:
    hits = np.zeros(50)
    pool = left(50)
    for seed in range(400):
        hits += Random(n=10, seed=seed).draw(pool).copies
    # 80 expected of each, deviation 8
    assert hits.min() > 40
    assert hits.max() < 120


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "wants either fraction or n .found neither."),
        ({"fraction": 0.5, "n": 3}, "wants either fraction or n .found fraction=0.5 and n=3."),
        ({"fraction": 0.0}, "fraction is over 0 and at most 1 .found 0.0."),
        ({"fraction": 1.5}, "fraction is over 0 and at most 1"),
        ({"fraction": float("nan")}, "fraction is over 0 and at most 1 .found nan."),
        ({"n": 0}, "n is 1 or more .found 0."),
        ({"n": -4}, "n is 1 or more .found -4."),
        ({"fraction": 0.5, "of": "all"}, "of is left or pool .found 'all'."),
        ({"n": 5, "of": "pool"}, "of=pool goes with fraction"),
    ],
)
def test_settings_that_say_nothing_or_too_much(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Random(**settings)


def test_the_reason_names_the_seed() -> None:
    draw = Random(n=1, seed=7).draw(left(3))
    assert draw.reason == "not_drawn"
    assert Random.reasons["not_drawn"].format(seed=7) == "not drawn under seed 7"
    assert Random(n=1).needs() == []
