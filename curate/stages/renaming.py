"""Samples' blocks under new keys: the headers of a whole buffer of samples made anew at once, whoever wrote them.

That is for plain members of a tar, and for those with pax records of times before them, as webdataset writes them.
A sample with other headers (long names, large files) is left as it is, for whoever takes it member by member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate.shards import BLOCK, header
from curate.stages.columns import characters

if TYPE_CHECKING:
    import pyarrow as pa

Bytes = npt.NDArray[Any]
Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_TEMPLATE = np.frombuffer(header("", 0), dtype=np.uint8).copy()
_TEMPLATE[148:156] = ord(" ")
_SIZE = 8 ** np.arange(10, -1, -1, dtype=np.int64)
_CHECKSUM = np.arange(15, -1, -3, dtype=np.int64)
"""By how many bits each of its digits is shifted."""
_LANES = np.uint64(0x00FF00FF00FF00FF)
_MEMBERS = 64
"""Samples of more members take the slow way."""


def rename(
    buffer: Bytes, starts: Longs, lengths: Longs, old: pa.StringArray, new: pa.StringArray, leave: Flags
) -> tuple[Flags, Flags]:
    """Give the samples in `buffer` their new keys and headers of ours, in place.

    Which of them could not: those in `leave`, and those whose blocks are not plain members of the old key, stay as
    they are. And which blocks of the others nobody needs any more: pax records of times, as webdataset writes them.
    """
    slow = leave.copy()
    if (lengths % BLOCK).any():
        return np.ones_like(slow), np.zeros(0, dtype=np.bool_)
    blocks = buffer.reshape(-1, BLOCK)
    needless = np.zeros(len(blocks), dtype=np.bool_)
    (before, before_ends), (after, after_ends) = characters(old), characters(new)
    wide = np.diff(before_ends) * 1000 + np.diff(after_ends)
    for width in np.unique(wide):
        which = np.flatnonzero((wide == width) & ~slow)
        if len(which):
            keys = _matrix(before, before_ends, which), _matrix(after, after_ends, which)
            first = starts[which] // BLOCK
            slow[which[_rename_alike(blocks, needless, first, lengths[which] // BLOCK, *keys)]] = True
    return slow, needless


def without(buffer: Bytes, starts: Longs, lengths: Longs, needless: Flags) -> tuple[Bytes, Longs]:
    """The buffer without its needless blocks, and the lengths that the samples have then."""
    fewer = np.add.reduceat(needless, starts // BLOCK, dtype=np.int64)
    return buffer.reshape(-1, BLOCK)[~needless].reshape(-1), lengths - fewer * BLOCK


def _matrix(data: Bytes, ends: npt.NDArray[np.int32], which: npt.NDArray[np.intp]) -> Bytes:
    width = int(ends[which[0] + 1] - ends[which[0]])
    return np.asarray(data[ends[which][:, np.newaxis] + np.arange(width)])


def _rename_alike(blocks: Bytes, needless: Flags, first: Longs, count: Longs, old: Bytes, new: Bytes) -> Flags:
    """`rename` for samples whose old keys, and whose new ones, are of one length; positions in blocks."""
    bad = np.zeros(len(first), dtype=np.bool_)
    skipped: list[tuple[npt.NDArray[np.intp], Longs]] = []
    written: list[tuple[npt.NDArray[np.intp], Longs, Bytes]] = []
    at, left = first.copy(), np.arange(len(first))
    before, after = old.shape[1], new.shape[1]
    tail = 100 - max(before, after)
    if tail < 2:
        return np.ones_like(bad)
    end = first + count
    for _ in range(_MEMBERS):
        heads = blocks[at[left]]
        if (pax := heads[:, 156] == ord("x")).any():
            which = left[pax]
            bad[which] = ~_harmless(blocks, heads[pax], at[which], end[which])
            skipped.append((which, at[which]))
            at[which] += 2
            left = left[~bad[left]]
            heads = blocks[at[left]]
        size, good = _sizes(heads)
        extension = heads[:, before : before + tail]
        good &= _each(heads[:, :before] == old[left]) & (heads[:, before] == ord("."))
        good &= _each(heads[:, before + tail : 100] == 0)
        good &= _each((extension < 128) & (extension != ord("/")))
        good &= _each((extension[:, 1:] == 0) | (extension[:, :-1] != 0))  # nothing behind its end
        made = np.empty_like(heads)
        made[:] = _TEMPLATE
        made[:, :after] = new[left]
        capital = (extension >= ord("A")) & (extension <= ord("Z"))
        made[:, after : after + tail] = extension | (capital.view(np.uint8) << 5)
        made[:, 124:135] = heads[:, 124:135]
        made[:, 148:154] = (_totals(made)[:, np.newaxis] >> _CHECKSUM & 7) + ord("0")
        made[:, 154] = 0
        following = at[left] + 1 + -(-size // BLOCK)
        good &= following <= end[left]
        if not good.all():
            bad[left[~good]] = True
            left, following, made = left[good], following[good], made[good]
        written.append((left, at[left], made))
        at[left] = following
        left = left[following < end[left]]
        if not len(left):
            break
    bad[left] = True
    for which, places, made in written:
        fine = ~bad[which] if bad.any() else slice(None)
        blocks[places[fine]] = made[fine]
    for which, places in skipped:
        places = places[~bad[which]]
        needless[places] = needless[places + 1] = True
    return bad


def _harmless(blocks: Bytes, heads: Bytes, at: Longs, end: Longs) -> Flags:
    """Of pax headers: whether their records are one block, followed by another, and say nothing that we need."""
    size, good = _sizes(heads, kinds=b"x")
    good &= (size > 0) & (size <= BLOCK) & (at + 2 < end)
    records = blocks[np.minimum(at + 1, len(blocks) - 1)].tobytes()
    return good & (b"path=" not in records and b"size=" not in records)


def _sizes(heads: Bytes, kinds: bytes = b"0\0") -> tuple[Longs, Flags]:
    """The size that each header says, and whether it is of one of these kinds, with a checksum that is right."""
    digits, said = heads[:, 124:135] - np.uint8(ord("0")), heads[:, 148:154] - np.uint8(ord("0"))
    good = (heads[:, 135] == 0) | (heads[:, 135] == ord(" "))
    good &= (heads[:, 156] == kinds[0]) | (heads[:, 156] == kinds[-1])
    good &= _each(digits < 8)
    good &= _each(said < 8)
    good &= _each(heads[:, 345:500] == 0) | (heads[:, 263] != ord("0"))  # a folder before the name
    total = _totals(heads) - heads[:, 148:156].sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    good &= total == (said.astype(np.int64) << _CHECKSUM).sum(axis=1)
    return np.where(good, digits.astype(np.int64) @ _SIZE, 0), good


def _each(true: Flags) -> Flags | np.bool_:
    """Whether all of each row is true; to ask it of all rows at once is many times as fast."""
    return np.True_ if true.all() else true.all(axis=1)


def _totals(heads: Bytes) -> Longs:
    """The sum of each header's bytes, eight at a time."""
    words = heads.view(np.uint64)
    lanes = (words & _LANES).sum(axis=1) + (words >> np.uint64(8) & _LANES).sum(axis=1)
    return np.asarray(lanes.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64))
