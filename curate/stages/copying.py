"""A tar of samples copied from other tars: read by range, given new keys, written in order; contents are untouched.

Samples are read a few megabytes at a time into one buffer, which stays in a core's cache, and written from it.
What is read next is announced to the kernel, and nothing beside it is read: the tars are told not to be read ahead.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from curate.errors import PartError, SampleError
from curate.shards import BLOCK, RECORD, Member, header, members, split_name
from curate.stages.columns import longs
from curate.stages.renaming import Flags, Longs, rename, without

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.engines.local import Tick

Change = Callable[[int, memoryview], bytes]
"""The blocks to write for the sample of this place in `Runs`, given those that were read.

Raises SampleError where there can be none: the sample is left out, and told.
"""

READ = 4 << 20
"""At most this many bytes are read at once, unless one sample has more."""
ANNOUNCED = 64 << 20
"""So many bytes before they are read the kernel is told of them, in the order in which they lie."""
PROBES = 16
"""Of so many samples it is asked whether they are in memory, before all that are read next are announced."""
OPEN = 200
"""Tars held open at once."""


@dataclass(frozen=True)
class Runs:
    """Samples to copy, in the order of writing; a sample is a run of blocks in one of `tars`."""

    tars: Sequence[Path]
    tar: npt.NDArray[np.int32]
    offset: Longs
    length: Longs
    old: pa.StringArray
    """The key that each has there."""
    new: pa.StringArray
    """The key that it gets."""

    def __len__(self) -> int:
        return len(self.offset)


class Copies:
    """A tar in the making; `offsets` and `lengths` say where the samples lie that were written."""

    def __init__(self, sink: BinaryIO) -> None:
        self.sink = sink
        self.position = 0
        self.lengths: list[Longs] = []
        self.refused: dict[int, SampleError] = {}
        """By place in what was copied: why a sample was left out."""
        self._buffer = np.empty(READ, dtype=np.uint8)

    def copy(self, runs: Runs, *, tick: Tick, changed: Sequence[int] = (), change: Change | None = None) -> None:
        """Append samples; those at the places in `changed` become what `change` makes of them.

        Raises PartError naming a tar that cannot be read, is cut short or does not hold them.
        """
        if not len(runs):
            return
        altered = np.zeros(len(runs), dtype=np.bool_)
        altered[list(changed)] = True
        with _Tars(runs.tars) as tars:
            ahead = _announced(runs, tars)
            for first, last in _batches(runs.length):
                next(ahead)
                refused = len(self.refused)
                self._batch(runs, slice(first, last), tars, altered[first:last], change)
                tick(last - first, len(self.refused) - refused)

    def finish(self) -> None:
        """The end of the archive, padded to a record as tar does."""
        end = 2 * BLOCK
        self.sink.write(bytes(end + -(self.position + end) % RECORD))

    def index(self, keys: pa.StringArray) -> pa.Table:
        """The index of the tar, given the keys of what was written."""
        import pyarrow as pa

        lengths = np.concatenate(self.lengths) if self.lengths else np.empty(0, dtype=np.int64)
        offsets = np.cumsum(lengths) - lengths
        return pa.table({"key": keys, "offset": longs(offsets), "length": longs(lengths)})

    def _batch(self, runs: Runs, which: slice, tars: _Tars, altered: Flags, change: Change | None) -> None:
        lengths = runs.length[which]
        ends = np.cumsum(lengths)
        starts = ends - lengths
        size = int(ends[-1])
        if size > len(self._buffer):
            self._buffer = np.empty(size, dtype=np.uint8)
        buffer = self._buffer[:size]
        _fill(buffer.data, runs, which, starts, tars)
        mine = slice(which.start, which.stop)
        slow, needless = rename(buffer, starts, lengths, runs.old[mine], runs.new[mine], altered)
        if needless.any():
            buffer, lengths = without(buffer, starts, lengths, needless)
            ends = np.cumsum(lengths)
            starts = ends - lengths
        places = np.flatnonzero(slow)
        if not len(places):
            self._write(buffer.data, lengths)
            return
        whole = buffer.data
        before = 0
        for place in places.tolist():
            self._write(whole[starts[before] : starts[place]], lengths[before:place])
            at = which.start + place
            run = whole[starts[place] : ends[place]]
            try:
                blocks = change(at, run) if altered[place] and change else rewritten(run, runs, at)
            except SampleError as error:
                self.refused[at] = error
            else:
                self._write(blocks, np.array([len(blocks)]))
            before = place + 1
        self._write(whole[ends[before - 1] :], lengths[before:])

    def _write(self, blocks: memoryview | bytes, lengths: Longs) -> None:
        self.sink.write(blocks)
        self.position += len(blocks)
        self.lengths.append(lengths)


# --- reading ----------------------------------------------------------------------------------------------


class _Tars:
    """Open tars by their place in a list, the last used `OPEN` of them, none read ahead."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.open: OrderedDict[int, int] = OrderedDict()

    def __enter__(self) -> _Tars:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.open.values():
            os.close(fd)

    def __getitem__(self, place: int) -> int:
        if (fd := self.open.get(place)) is not None:
            self.open.move_to_end(place)
            return fd
        try:
            fd = os.open(self.paths[place], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PartError(str(self.paths[place]), f"cannot be read ({error.strerror})") from error
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        self.open[place] = fd
        if len(self.open) > OPEN:
            os.close(self.open.popitem(last=False)[1])
        return fd


def _batches(lengths: Longs) -> Iterator[tuple[int, int]]:
    """Cuts of the samples into batches of at most `READ` bytes, or one sample."""
    ends = np.cumsum(lengths)
    first = done = 0
    while first < len(ends):
        last = max(int(np.searchsorted(ends, done + READ, side="right")), first + 1)
        yield first, last
        first, done = last, int(ends[last - 1])


def _announced(runs: Runs, tars: _Tars) -> Iterator[None]:
    """Before each batch: tell the kernel what is read in the batches up to `ANNOUNCED` bytes ahead."""
    batches = list(_batches(runs.length))
    sizes = [int(runs.length[first:last].sum()) for first, last in batches]
    told = ahead = 0
    for number in range(len(batches)):
        if ahead < ANNOUNCED // 2 and told < len(batches):
            first = told
            while told < len(batches) and (ahead < ANNOUNCED or told <= number):
                ahead += sizes[told]
                told += 1
            ranges = list(_ranges(runs, slice(batches[first][0], batches[told - 1][1])))
            if not all(_cached(tars[place], offset) for place, offset, *_ in ranges[:: len(ranges) // PROBES + 1]):
                for place, offset, length, _ in ranges:
                    os.posix_fadvise(tars[place], offset, length, os.POSIX_FADV_WILLNEED)
        ahead -= sizes[number]
        yield


def _cached(fd: int, offset: int) -> bool:
    """Whether the byte at `offset` is in memory, as far as the file system tells."""
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _ranges(runs: Runs, which: slice, starts: Longs | None = None) -> Iterator[tuple[int, int, int, int]]:
    """What to read: (tar, offset, length, start in the buffer), in the order in which it lies on the disk.

    Samples that lie one after the other, and in the buffer if there is one, are one range.
    """
    tar, offset, length = runs.tar[which], runs.offset[which], runs.length[which]
    order = np.lexsort((offset, tar))
    tar, offset, length = tar[order], offset[order], length[order]
    follows = (tar[1:] == tar[:-1]) & (offset[1:] == offset[:-1] + length[:-1])
    begins = np.zeros_like(offset) if starts is None else starts[order]
    if starts is not None:
        follows &= begins[1:] == begins[:-1] + length[:-1]
    firsts = np.flatnonzero(np.concatenate([[True], ~follows]))
    sizes = np.add.reduceat(length, firsts)
    yield from zip(
        tar[firsts].tolist(), offset[firsts].tolist(), sizes.tolist(), begins[firsts].tolist(), strict=True
    )


def _fill(view: memoryview, runs: Runs, which: slice, starts: Longs, tars: _Tars) -> None:
    for place, offset, length, start in _ranges(runs, which, starts):
        fd, path = tars[place], str(runs.tars[place])
        done = 0
        while done < length:
            try:
                got = os.preadv(fd, [view[start + done : start + length]], offset + done)
            except OSError as error:
                raise PartError(path, f"cannot be read ({error.strerror})", hint=DAMAGED) from error
            if not got:
                what = f"is cut short (it ends at {offset + done:,}, a sample at {offset + length:,})"
                raise PartError(path, what, hint=DAMAGED)
            done += got


DAMAGED = "curate verify says what else is; without the tar, its samples are listed as missing"


def rewritten(run: memoryview, runs: Runs, at: int) -> bytes:
    """A sample's blocks under its new key, written by whomever; contents and extensions as they are.

    Raises PartError where they are damaged or not those of the old key.
    """
    path, old, new = runs.tars[runs.tar[at]], runs.old[at].as_py(), runs.new[at].as_py()
    pieces: list[bytes | memoryview] = []
    for member, extension in members_of(run, old, path):
        pieces += (header(f"{new}.{extension}", member.size), run[member.offset : member.end])
    return b"".join(pieces)


def members_of(run: memoryview, old: str, path: Path) -> Iterator[tuple[Member, str]]:
    """The members of a sample's blocks, each with its extension.

    Raises PartError where they are damaged or not those of the key `old`.
    """
    end, what = 0, f"does not hold the whole of {old!r} where its index says"
    try:
        for member in members(run, str(path)):
            key, extension = split_name(member.name)
            if key != old:
                raise PartError(str(path), f"holds {key!r} where its index says {old!r}", hint=DAMAGED)
            yield member, extension
            end = member.end
    except PartError as error:
        if error.hint:
            raise
        # the places that the reader names are counted from where the sample begins
        raise PartError(str(path), what, hint=DAMAGED) from error
    if end != len(run):  # blocks of zeros are where a tar ends, so its reader does not complain
        raise PartError(str(path), what, hint=DAMAGED)
