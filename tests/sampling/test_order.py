from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from curate.sampling.order import Order, Slice, Window, batches_of, share


def places(window: Window) -> list[tuple[int, int]]:
    """(shard, row) of what a window gives, in order."""
    held = [(s.shard, row) for s in window.slices for row in range(s.first, s.stop)]
    return [held[at] for at in window.rows]


def given(order: Order, epoch: int, start: int, stop: int) -> list[tuple[int, int]]:
    return [place for window in order.epoch(epoch, start, stop) for place in places(window)]


def everything(sizes: list[int]) -> list[tuple[int, int]]:
    return [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]


SIZES = [7, 8, 8, 7, 1]


@pytest.mark.parametrize("window", [1, 5, 10, 31, 1000])
@pytest.mark.parametrize("consumers", [1, 2, 3, 7, 40])
def test_any_number_of_consumers_gives_each_sample_once_in_one_order(window: int, consumers: int) -> None:
    order = Order(SIZES, seed=3, shuffle=True, window=window)
    whole = given(order, 2, 0, 31)
    assert sorted(whole) == everything(SIZES)
    shares = [share(31, consumer, consumers) for consumer in range(consumers)]
    assert [place for start, stop in shares for place in given(order, 2, start, stop)] == whole
    lengths = {stop - start for start, stop in shares}
    assert max(lengths) - min(lengths) <= 1


def test_equal_shares_leave_out_the_rest() -> None:
    assert [share(31, c, 4, equal=True) for c in range(4)] == [(0, 7), (7, 14), (14, 21), (21, 28)]


def test_without_shuffle_it_is_the_order_of_the_shards() -> None:
    order = Order(SIZES, seed=3, shuffle=False, window=4)
    assert given(order, 5, 0, 31) == everything(SIZES)
    assert given(order, 5, 6, 9) == everything(SIZES)[6:9]


def test_seed_and_epoch_alone_make_the_order() -> None:
    orders = {
        (seed, epoch): given(Order(SIZES, seed, True, 10), epoch, 0, 31) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len({tuple(o) for o in orders.values()}) == 4
    assert orders[1, 1] == given(Order(SIZES, 1, True, 10), 1, 0, 31)


def test_draws_are_the_same_on_every_machine() -> None:
    """Raw words of PCG64 from a SeedSequence: a change here changes every resumed training."""
    shards, rows = [0, 0, 1, 1, 1, 0, 0, 1], [3, 1, 3, 0, 1, 0, 2, 2]
    assert given(Order([4, 4], seed=1, shuffle=True, window=8), 0, 0, 8) == list(zip(shards, rows, strict=True))


def test_samples_are_mixed_within_windows_of_drawn_shards() -> None:
    order = Order([10] * 20, seed=0, shuffle=True, window=20)
    whole = given(order, 0, 0, 200)
    for first in range(0, 200, 20):
        window = whole[first : first + 20]
        assert len({shard for shard, _ in window}) == 2
        assert window != sorted(window)
    assert [shard for shard, _ in whole] != sorted(shard for shard, _ in whole)


def test_only_the_tables_that_are_needed_are_named() -> None:
    order = Order([10] * 6, seed=0, shuffle=True, window=60)
    (window,) = order.epoch(0, 58, 60)
    assert 1 <= len(window.slices) <= 2
    assert places(window) == given(order, 0, 0, 60)[58:]
    assert given(Order(SIZES, 0, True, 5), 0, 31, 31) == []


def test_resampled_shards_never_end_and_may_come_twice() -> None:
    order = Order([10] * 8, seed=0, shuffle=True, window=40)
    first, second, later = (
        [places(w) for w in islice(order.resampled(epoch, stream, 0), 25)]
        for epoch, stream in ((0, 0), (0, 1), (1, 0))
    )
    assert [len(p) for p in first] == [40] * 25
    assert first != second != later != first
    drawn = [shard for window in first for shard, _ in window]
    counts = np.bincount(drawn, minlength=8)
    assert counts.min() > 0.5 * counts.mean()
    assert any(len(set(window)) < 40 for window in first)


@pytest.mark.parametrize("skip", [0, 1, 39, 40, 41, 123])
def test_resampling_goes_on_where_it_stopped(skip: int) -> None:
    order = Order([9, 10, 10, 11], seed=4, shuffle=True, window=40)
    whole = [p for w in islice(order.resampled(0, 2, 0), 8) for p in places(w)]
    after = [p for w in islice(order.resampled(0, 2, skip), 4) for p in places(w)]
    assert after == whole[skip : skip + len(after)]


def test_slices_lie_in_the_shards() -> None:
    order = Order([3, 3], seed=0, shuffle=False, window=4)
    assert [w.slices for w in order.epoch(0, 0, 6)] == [[Slice(0, 0, 3), Slice(1, 0, 1)], [Slice(1, 1, 3)]]


@pytest.mark.parametrize(
    ("sizes", "batches", "expected"),
    [([3, 3], 0, [0, 0]), ([3, 3], 3, [2, 1]), ([2, 3], 5, [2, 3]), ([1, 4, 2], 5, [1, 2, 2]), ([2, 2], 9, [2, 2])],
)
def test_batches_come_from_workers_in_turn(sizes: list[int], batches: int, expected: list[int]) -> None:
    assert batches_of(sizes, batches) == expected
