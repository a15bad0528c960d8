"""In which order the samples of an epoch come, and who of many workers gives which.

The order is a function of the seed and the epoch alone: shards in a drawn order, then samples mixed within windows
of a fixed number of them. Workers cut it into runs of equal length, so that their number changes nothing in it.
Draws are a bit generator's raw words, which numpy promises never to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

SHARDS, WINDOW, DRAWN, MIXED = range(4)
"""What is drawn: the order of shards, of a window's samples, shards with replacement, and samples of these."""


@dataclass(frozen=True)
class Slice:
    """Rows `first` to `stop` of a shard."""

    shard: int
    first: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Samples that are mixed: slices, one behind the other, and the rows of these to give, in order."""

    slices: Sequence[Slice]
    rows: Rows


@dataclass(frozen=True)
class Order:
    """The order of the samples of shards with these sizes."""

    sizes: Sequence[int]
    seed: int
    shuffle: bool
    window: int
    """How many samples are mixed at once."""

    @property
    def total(self) -> int:
        """Samples of an epoch."""
        return sum(self.sizes)

    def epoch(self, epoch: int, start: int, stop: int) -> Iterator[Window]:
        """The samples from place `start` to `stop` of an epoch."""
        shards = np.arange(len(self.sizes))
        if self.shuffle:
            shards = _permuted(len(self.sizes), self.seed, epoch, SHARDS)
        ends = np.cumsum(np.asarray(self.sizes, dtype=np.int64)[shards])
        for number in range(start // self.window, -(-stop // self.window)):
            begin, end = number * self.window, min((number + 1) * self.window, self.total)
            mixed = np.arange(end - begin)
            if self.shuffle:
                mixed = _permuted(end - begin, self.seed, epoch, WINDOW, number)
            yield _needed(_slices(shards, ends, begin, end), mixed[max(start - begin, 0) : stop - begin])

    def resampled(self, epoch: int, stream: int, skip: int) -> Iterator[Window]:
        """Samples without end, of shards drawn with replacement; the first `skip` are passed over.

        Every epoch and every `stream` has draws of its own.
        """
        each = max(1, self.window * len(self.sizes) // self.total)
        for number in count():
            drawn = (
                (_words(each, self.seed, epoch, stream, DRAWN, number) % len(self.sizes)).astype(np.int64).tolist()
            )
            size = sum(self.sizes[shard] for shard in drawn)
            if skip < size:
                rows = np.arange(size)
                if self.shuffle:
                    rows = _permuted(size, self.seed, epoch, stream, MIXED, number)
                yield _needed([Slice(shard, 0, self.sizes[shard]) for shard in drawn], rows[skip:])
            skip = max(0, skip - size)


def share(total: int, consumer: int, consumers: int, *, equal: bool = False) -> tuple[int, int]:
    """Where the run of one of `consumers` begins and ends in an epoch of `total`.

    Runs lie behind each other and differ by one at most; with `equal` they are of one length, and the last
    `total % consumers` places are nobody's.
    """
    if equal:
        each = total // consumers
        return consumer * each, (consumer + 1) * each
    return consumer * total // consumers, (consumer + 1) * total // consumers


def batches_of(sizes: Sequence[int], batches: int) -> list[int]:
    """How many batches came from each worker, of `batches` that a DataLoader gave.

    It takes one from each in turn and passes over those that have no more; `sizes` are the workers' batches.
    """
    rounds = min(batches // len(sizes), min(sizes))
    given = [rounds] * len(sizes)
    left = batches - rounds * len(sizes)
    while left > 0 and given != list(sizes):
        for worker, size in enumerate(sizes):
            if left and given[worker] < size:
                given[worker] += 1
                left -= 1
    return given


def _slices(shards: Rows, ends: Rows, begin: int, end: int) -> list[Slice]:
    """The places `begin` to `end` of shards that lie behind each other and end at `ends`."""
    found = []
    for at in range(int(np.searchsorted(ends, begin, side="right")), len(shards)):
        low = int(ends[at - 1]) if at else 0
        if low >= end:
            break
        found.append(Slice(int(shards[at]), max(begin - low, 0), min(end, int(ends[at])) - low))
    return found


def _needed(slices: Sequence[Slice], rows: Rows) -> Window:
    """The window without the slices of which nothing is given."""
    kept: list[Slice] = []
    moved = rows.copy()
    begin = 0
    for part in slices:
        end = begin + part.stop - part.first
        if ((rows >= begin) & (rows < end)).any():
            kept.append(part)
        else:
            moved[rows >= end] -= end - begin
        begin = end
    return Window(kept, moved)


def _words(n: int, *entropy: int) -> npt.NDArray[np.uint64]:
    return np.atleast_1d(np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(n))


def _permuted(n: int, *entropy: int) -> Rows:
    return np.argsort(_words(n, *entropy), kind="stable").astype(np.int64)
