"""Which rows to compare with which, so that near pairs meet and far ones mostly do not.

An inverted file: k-means lists, each row at home in its nearest list and a visitor in the next few. Two rows
meet where one of them is at home and the other at home or visiting. How many lists a row must visit is
measured on the pool's own vectors: rows are turned by exactly the threshold's angle toward other rows, which
is harder than the pairs to be found (all of those are as near or nearer), and the fewest visits are taken
that bring the wanted share of these together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curate.vectors.kmeans import ROWS, Workers, flat, nearest, train
from curate.vectors.units import Units

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

EXACT_ROWS = 1 << 15
"""Up to so many distinct vectors every pair is computed."""
RECALL = 0.9995
"""The share of planted pairs that must meet; above the .999 that is promised, for the sample's error."""
PROBES = 64
"""The most lists that a row visits; where more are needed, every pair is computed."""
TRIALS = 4096


@dataclass(frozen=True)
class Plan:
    """How pairs are searched: `lists` 0 means that every pair is computed (recall 1)."""

    rows: int
    lists: int = 0
    probes: int = 0
    recall: float = 1.0
    """The share of planted pairs at the threshold that meet."""


@dataclass(frozen=True)
class Task:
    """Units to compare: each `base` unit with each `own` unit of lower number and with each visitor."""

    base: Int64
    own: Int64
    visitors: Int64


def exact_tasks(n: int) -> Iterator[Task]:
    """Tasks in which every pair of `n` units meets once."""
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        yield Task(np.arange(start, stop), np.arange(stop), np.empty(0, np.int64))


def choose(
    units: Units, threshold: float, *, pool: Workers, memory: int, exact_rows: int, seed: int
) -> tuple[Plan, Float32 | None]:
    """The plan for these units and this threshold, and its centroids where it has lists."""
    n = units.n
    exact = Plan(n)
    if n <= exact_rows or n < 1024:
        return exact, None
    lists = min(1 << round(math.log2(4 * math.sqrt(n))), 1 << 16)
    chance = np.random.default_rng(seed)
    points = min(n // 2, max(lists, min(16 * lists, memory // (16 * units.dim))))
    drawn = chance.choice(n, min(points + TRIALS, n), replace=False)
    centroids = train(units.gather(np.sort(drawn[:points])), lists, pool=pool, seed=seed, iterations=5)
    # trained on, a row would be drawn to its own list, and too few visits would seem enough
    unseen = units.gather(drawn[points:])
    probes, recall = _measure(unseen, centroids, threshold, pool, chance)
    if recall < RECALL or lists + probes * n / lists > n / 2:
        return exact, None
    return Plan(n, lists, probes, recall), centroids


def _measure(
    unseen: Float32, centroids: Float32, threshold: float, pool: Workers, chance: np.random.Generator
) -> tuple[int, float]:
    """The fewest visits that bring RECALL of the planted pairs together, and the share that they bring."""
    x, toward = unseen[chance.integers(0, len(unseen), (2, TRIALS))]
    side = toward - (toward * x).sum(axis=1, keepdims=True) * x
    length = np.linalg.norm(side, axis=1)
    x, side = x[length > 1e-3], side[length > 1e-3] / length[length > 1e-3, None]
    if not len(x):
        return 0, 0.0
    y = (threshold * x + math.sqrt(max(0.0, 1 - threshold**2)) * side).astype(np.float32)
    index = flat(centroids)
    near_x, near_y = pool.map(lambda v: nearest(index, v, min(PROBES, len(centroids))), (x, y))
    visits = np.minimum(_rank(near_x, near_y[:, 0]), _rank(near_y, near_x[:, 0]))
    meet = np.cumsum(np.bincount(visits, minlength=PROBES + 1))[:PROBES] / len(x)
    probes = int(np.argmax(meet >= RECALL)) + 1 if meet[-1] >= RECALL else PROBES
    return probes, float(meet[probes - 1])


def _rank(near: Int64, home: Int64) -> Int64:
    """At which place of each row's lists `home` stands; PROBES where it is not among them."""
    hit = near == home[:, None]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), PROBES)


def list_tasks(units: Units, plan: Plan, centroids: Float32, pool: Workers) -> Iterator[Task]:
    """A task a list: its rows among themselves, and with its visitors."""
    index = flat(centroids)

    def visits(start: int) -> npt.NDArray[np.uint16]:
        rows = units.gather(np.arange(start, min(start + ROWS, units.n)))
        return nearest(index, rows, plan.probes).astype(np.uint16)

    near = np.concatenate(list(pool.map(visits, range(0, units.n, ROWS))))
    orders = [np.argsort(place, kind="stable").astype(np.uint32) for place in near.T]
    stops = [np.cumsum(np.bincount(place, minlength=plan.lists)) for place in near.T]
    del near
    for k in range(plan.lists):
        home, *others = [
            order[stop[k - 1] if k else 0 : stop[k]].astype(np.int64)
            for order, stop in zip(orders, stops, strict=True)
        ]
        if len(home):
            visitors = np.sort(np.concatenate(others)) if others else np.empty(0, np.int64)
            yield Task(home, home, visitors)
