"""The number of fetches at once follows what it brings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from curate.fetch.tuner import LEAST, MOST, START, Look, Tuner


def settle(rate: Callable[[int], float], looks: int = 60) -> list[int]:
    """The limits that a tuner takes where so many fetches at once give so many answers a second."""
    tuner = Tuner()
    return [tuner.look(Look(rate(tuner.limit), 0.0, True, False)) for _ in range(looks)]


def test_it_rises_while_that_brings_more_answers() -> None:
    assert settle(lambda limit: limit * 10.0)[-1] == MOST


@pytest.mark.parametrize("best", [100, 300])
def test_it_stays_near_where_more_brings_nothing(best: int) -> None:
    limits = settle(lambda limit: min(limit, best) * 10.0)
    assert all(best <= limit <= 3 * best for limit in limits[20:])


def test_it_stays_where_more_makes_it_worse() -> None:
    limits = settle(lambda limit: 1000.0 if limit <= START else 700.0)
    assert limits.count(START) > len(limits) / 2


def test_it_falls_when_timeouts_rise_with_it() -> None:
    tuner = Tuner()
    for _ in range(5):
        tuner.look(Look(tuner.limit * 10.0, 0.01, True, False))
    before = tuner.limit
    assert tuner.look(Look(before * 5.0, 0.4, True, False)) == before // 2


def test_failures_that_were_always_there_do_not_count() -> None:
    tuner = Tuner()
    limits = [tuner.look(Look(tuner.limit * 10.0, 0.6, True, False)) for _ in range(40)]
    assert limits[-1] == MOST


def test_it_never_falls_below_the_least() -> None:
    tuner = Tuner()
    for number in range(200):
        tuner.look(Look(10.0, 0.9 if number % 2 else 0.0, True, False))
    assert tuner.limit == LEAST


@pytest.mark.parametrize(("saturated", "held_up"), [(False, False), (True, True)])
def test_it_stays_where_something_else_is_the_limit(saturated: bool, held_up: bool) -> None:
    tuner = Tuner()
    for _ in range(20):
        tuner.look(Look(500.0, 0.0, saturated, held_up))
    assert tuner.limit == START


def test_a_number_that_was_asked_for_is_kept() -> None:
    tuner = Tuner(7)
    for trouble in (0.0, 0.9, 0.0):
        assert tuner.look(Look(1e6, trouble, True, False)) == 7
