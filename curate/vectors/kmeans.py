"""Spherical k-means whose result depends on the vectors and the seed, never on the number of threads.

Work is cut at fixed rows, and each cut is done by one thread: which thread, and how many there are, cannot
change a bit of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from curate import devices

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
T = TypeVar("T")
R = TypeVar("R")

ROWS = 4096
"""Rows in one cut of work."""


class Workers:
    """Threads that each run faiss on one core; `map` gives results in the order of the tasks."""

    def __init__(self, pool: ThreadPoolExecutor, threads: int) -> None:
        self._pool = pool
        self.threads = threads

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """`function` of each task, in order, at most two tasks a thread ahead of the one asked for."""
        waiting: deque[Future[R]] = deque()
        try:
            for task in tasks:
                waiting.append(self._pool.submit(function, task))
                if len(waiting) > 2 * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def workers(threads: int | None = None) -> Iterator[Workers]:
    """A pool of `threads` threads (default: the cores of this process)."""
    import faiss

    count = threads or devices.cores()
    with ThreadPoolExecutor(count, "vectors", initializer=lambda: faiss.omp_set_num_threads(1)) as pool:
        yield Workers(pool, count)


def flat(base: Float32) -> object:
    """A faiss index of inner products over the rows of `base`, exact."""
    import faiss

    index = faiss.IndexFlatIP(base.shape[1])
    index.add(np.ascontiguousarray(base))
    return index


def nearest(index: object, rows: Float32, k: int) -> Int64:
    """The `k` rows of a flat index with the largest inner product with each row, best first: len(rows) x k."""
    found: Int64 = index.search(rows, k)[1]  # type: ignore[attr-defined]
    return found


def train(points: Float32, k: int, *, pool: Workers, seed: int = 0, iterations: int = 6) -> Float32:
    """`k` unit centroids (k x dim) of unit vectors by Lloyd's iterations from a seeded choice of points.

    A cluster that loses all its points is started again at a seeded choice of point. Needs k <= len(points).
    """
    chance = np.random.default_rng(seed)
    centroids = points[np.sort(chance.choice(len(points), k, replace=False))]
    cuts = [points[at : at + ROWS] for at in range(0, len(points), ROWS)]
    for _ in range(iterations):
        index = flat(centroids)
        homes = np.concatenate(list(pool.map(lambda cut, ix=index: nearest(ix, cut, 1)[:, 0], cuts)))  # type: ignore[misc]
        centroids = _means(points, homes, k, chance)
    return centroids


def _means(points: Float32, homes: Int64, k: int, chance: np.random.Generator) -> Float32:
    order = np.argsort(homes, kind="stable")
    counts = np.bincount(homes, minlength=k)
    stops = np.cumsum(counts)
    sums = np.zeros((k, points.shape[1]), np.float32)
    for c in np.flatnonzero(counts):
        sums[c] = points[order[stops[c] - counts[c] : stops[c]]].sum(axis=0)
    length = np.linalg.norm(sums, axis=1)
    lost = np.flatnonzero(length < 1e-6)
    sums[lost] = points[chance.choice(len(points), len(lost), replace=False)]
    length[lost] = 1.0
    sums /= length[:, None]
    return sums
