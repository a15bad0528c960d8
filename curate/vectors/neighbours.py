"""All pairs of vectors above a cosine, exactly or through an inverted file of stated recall.

Candidates come from faiss (flat indexes over the rows that should meet, see `buckets`) with a slack wider
than float32's error; whether a pair counts is then decided by `Units.cosines`. So the result depends on the
vectors alone: not on threads, tiles, or the BLAS beneath.

Rows with equal values are one vector here. The second, third, ... of them is paired with the first of them
only (cosine 1), and only that first one is paired with other rows: a star where a clique would be quadratic.
Components are those of the clique.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from curate.errors import InputError
from curate.vectors.buckets import EXACT_ROWS, Plan, Task, choose, exact_tasks, list_tasks
from curate.vectors.components import components, forest
from curate.vectors.kmeans import ROWS, Workers, flat, workers
from curate.vectors.units import Units

if TYPE_CHECKING:
    from curate.vectors.blocks import Blocks

__all__ = ["EXACT_ROWS", "Plan", "components", "links", "pairs", "plan"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Pairs = tuple[Int64, Int64, Float32]

MEMORY = 1 << 30
PAIR_BYTES = 64
"""What one pair takes at the worst moment: as candidate, as sort key, as result."""
QUERIES = 1024
"""Rows of a tile; with ROWS columns the densest tile gives 4 million candidates."""


def pairs(
    blocks: Blocks,
    threshold: float,
    *,
    ok: npt.NDArray[np.bool_] | None = None,
    memory: int = MEMORY,
    threads: int | None = None,
    exact_rows: int = EXACT_ROWS,
    seed: int = 0,
) -> Pairs:
    """Rows i < j (int64) with cosine >= threshold, sorted by (i, j), and their cosines (float32).

    All of them up to `exact_rows` distinct vectors, beyond that at least .999 of those at the threshold and
    more of nearer ones (`plan` says what was measured). Rows that are not `ok`, zero or not finite pair with
    none; of rows with equal values see above. `memory` (bytes) bounds the pairs held: InputError where there
    are more. Raises ValueError for a threshold outside -1..1.
    """
    units = _units(blocks, threshold, ok)
    limit = max(1, memory // PAIR_BYTES)
    with workers(threads) as pool:
        tasks = _tasks(units, threshold, pool, memory, exact_rows, seed)
        found = []
        held = 0
        for a, b in pool.map(lambda task: _candidates(units, task, threshold, limit), tasks):
            held += len(a)
            if held > limit:
                raise _too_many(threshold, limit)
            found.append(a * units.n + b)
    keys = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    i, j = np.divmod(keys, max(units.n, 1))
    return _finish(units, i, j, threshold)


def links(
    blocks: Blocks,
    threshold: float,
    *,
    ok: npt.NDArray[np.bool_] | None = None,
    memory: int = MEMORY,
    threads: int | None = None,
    exact_rows: int = EXACT_ROWS,
    seed: int = 0,
) -> Pairs:
    """So many of `pairs` as connect the same rows: fewer than there are rows, however dense a group is.

    Same order, types and arguments. What a group of near copies needs, where all its pairs would be a square.
    """
    units = _units(blocks, threshold, ok)
    i = j = np.empty(0, np.int64)
    labels = np.arange(units.n, dtype=np.int64)
    with workers(threads) as pool:
        tasks = _tasks(units, threshold, pool, memory, exact_rows, seed)
        found = []
        held = 0
        for a, b in pool.map(lambda task: _forest(units, task, threshold), tasks):
            found.append((a, b))
            held += len(a)
            if held > units.n:
                i, j = _join(labels, i, j, found)
                found, held = [], 0
        i, j = _join(labels, i, j, found)
    order = np.lexsort((j, i))
    return _finish(units, i[order], j[order], threshold)


def plan(
    blocks: Blocks,
    threshold: float,
    *,
    ok: npt.NDArray[np.bool_] | None = None,
    memory: int = MEMORY,
    threads: int | None = None,
    exact_rows: int = EXACT_ROWS,
    seed: int = 0,
) -> Plan:
    """How `pairs` and `links` search with these arguments, and the recall that was measured for it."""
    with workers(threads) as pool:
        units = _units(blocks, threshold, ok)
        return choose(units, threshold, pool=pool, memory=memory, exact_rows=exact_rows, seed=seed)[0]


def _units(blocks: Blocks, threshold: float, ok: npt.NDArray[np.bool_] | None) -> Units:
    if not -1 <= threshold <= 1:
        raise ValueError(f"a cosine threshold lies in -1..1, not at {threshold}")
    return Units(blocks, ok)


def _tasks(
    units: Units, threshold: float, pool: Workers, memory: int, exact_rows: int, seed: int
) -> Iterable[Task]:
    how, centroids = choose(units, threshold, pool=pool, memory=memory, exact_rows=exact_rows, seed=seed)
    return exact_tasks(units.n) if centroids is None else list_tasks(units, how, centroids, pool)


def _candidates(units: Units, task: Task, threshold: float, limit: int) -> tuple[Int64, Int64]:
    """Pairs of units (a < b) of one task that may reach the threshold, each at least once."""
    low, high = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    held = 0
    for base in _cuts(task.base, ROWS):
        index = flat(units.gather(base))
        for queries, own in _queries(task, base):
            a, b, _ = _tile(index, base, queries, units.gather(queries), own, threshold - _slack(units))
            held += len(a)
            if held > limit:
                raise _too_many(threshold, limit)
            low.append(np.minimum(a, b))
            high.append(np.maximum(a, b))
    return np.concatenate(low), np.concatenate(high)


def _forest(units: Units, task: Task, threshold: float) -> tuple[Int64, Int64]:
    """Pairs of units that reach the threshold, so many as connect the units of one task.

    Pairs beyond the slack need no second look, so that a dense group costs its tiles and no more; units
    that are joined already with a whole base block are not asked again.
    """
    nodes = np.union1d(task.base, np.union1d(task.own, task.visitors))
    labels = np.arange(len(nodes), dtype=np.int64)
    slack = _slack(units)
    kept: list[tuple[Int64, Int64]] = [(nodes[:0], nodes[:0])]
    for base in _cuts(task.base, ROWS):
        index = flat(units.gather(base))
        at_base = np.searchsorted(nodes, base)
        for asked, own in _queries(task, base):
            joined = np.unique(labels[at_base])
            queries = asked
            if len(joined) == 1:
                queries = asked[labels[np.searchsorted(nodes, asked)] != joined[0]]
            if not len(queries):
                continue
            a, b, cosine = _tile(index, base, queries, units.gather(queries), own, threshold - slack)
            sure = cosine >= threshold + slack
            for a_, b_ in ((a[sure], b[sure]), _verified(units, a[~sure], b[~sure], nodes, labels, threshold)):
                used = forest(labels, np.searchsorted(nodes, a_), np.searchsorted(nodes, b_))
                kept.append((a_[used], b_[used]))
    a, b = (np.concatenate(side) for side in zip(*kept, strict=True))
    return np.minimum(a, b), np.maximum(a, b)


def _verified(
    units: Units, a: Int64, b: Int64, nodes: Int64, labels: Int64, threshold: float
) -> tuple[Int64, Int64]:
    """Of the pairs within the slack, those not yet connected that do reach the threshold."""
    apart = labels[np.searchsorted(nodes, a)] != labels[np.searchsorted(nodes, b)]
    a, b = a[apart], b[apart]
    reach = units.cosines(a, b) >= np.float32(threshold)
    return a[reach], b[reach]


def _queries(task: Task, base: Int64) -> Iterable[tuple[Int64, bool]]:
    """The rows to ask of a base block, and whether only lower ones count (they are asked of it too)."""
    for cut in _cuts(task.own[: np.searchsorted(task.own, base[-1], side="right")], QUERIES):
        yield cut, True
    for cut in _cuts(task.visitors, QUERIES):
        yield cut, False


def _tile(
    index: object, base: Int64, queries: Int64, vectors: Float32, own: bool, radius: float
) -> tuple[Int64, Int64, Float32]:
    """The (query, base) units whose inner product is above `radius`, and that product."""
    stops, cosine, place = index.range_search(vectors, radius)  # type: ignore[attr-defined]
    a = np.repeat(queries, np.diff(stops.astype(np.int64)))
    b = base[place]
    if own:
        lower = a < b
        return a[lower], b[lower], cosine[lower]
    return a, b, cosine


def _cuts(rows: Int64, size: int) -> Iterable[Int64]:
    return (rows[at : at + size] for at in range(0, len(rows), size))


def _slack(units: Units) -> float:
    """More than float32 is wrong about the cosine of two unit vectors: eps * sqrt(dim) is 4e-6 at 4096."""
    return max(1e-5, 2.0**-23 * math.sqrt(units.dim))


def _join(labels: Int64, i: Int64, j: Int64, found: list[tuple[Int64, Int64]]) -> tuple[Int64, Int64]:
    """The forest (i, j) of `labels` with what was found joined to it."""
    a, b = (np.concatenate(side) for side in zip(*found, strict=True)) if found else (i[:0], j[:0])
    used = forest(labels, a, b)
    return np.concatenate((i, a[used])), np.concatenate((j, b[used]))


def _finish(units: Units, i: Int64, j: Int64, threshold: float) -> Pairs:
    """Decide candidates by their cosines, add the twins, number by rows of the view, sort by (i, j)."""
    cosine = units.cosines(i, j)
    reach = cosine >= np.float32(threshold)
    first, other = units.twins
    i = np.concatenate((units.rows[i[reach]], first))
    j = np.concatenate((units.rows[j[reach]], other))
    cosine = np.concatenate((cosine[reach], np.ones(len(first), np.float32)))
    order = np.lexsort((j, i))
    return i[order], j[order], cosine[order]


def _too_many(threshold: float, limit: int) -> InputError:
    return InputError(
        "neighbours",
        f"more than {limit:,} pairs have a cosine of at least {threshold:g}",
        hint="raise the threshold, or the memory; dedup needs only links between groups, which always fit",
    )
