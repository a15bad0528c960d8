"""uid lists: which samples are wanted, and how often; and what two of them have in common.

A uid that stands n times is wanted n times. In memory a list is in uid order, 16 bytes a uid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from curate import uid_files, uids
from curate.progress import plural
from curate.uid_files import Pairs

log = logging.getLogger("curate.uids")

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UidList:
    """A uid list: the name of its file or selection, and its uids."""

    name: str
    form: str
    pairs: Pairs
    """In uid order; a uid that stands n times is wanted n times."""
    ordered: bool = True
    """Whether its file was in uid order."""

    @cached_property
    def _distinct(self) -> tuple[Pairs, Counts]:
        return distinct(self.pairs)

    @property
    def uids(self) -> Pairs:
        """Each uid once, in order."""
        return self._distinct[0]

    @property
    def copies(self) -> Counts:
        """How often each of `uids` is wanted."""
        return self._distinct[1]

    @property
    def samples(self) -> int:
        """How many samples are wanted, copies counted."""
        return len(self.pairs)

    def said(self, *, copies: bool = True) -> UidList:
        """Itself, after its user was told that it was not in order and, with `copies`, of these."""
        if not self.ordered:
            why = "DataComp's resharder.py would write other samples than it names"
            log.warning("%s: is not in uid order; it was sorted here (%s)", self.name, why)
        further = self.samples - len(self.uids) if copies else 0
        if further:
            more, several = plural(further, "further copy", "further copies"), int((self.copies > 1).sum())
            log.info("%s: %s of %s: a uid counts as often as it stands", self.name, more, plural(several, "uid"))
        return self

    def share(self, rows: Pairs) -> tuple[Counts, int]:
        """How often each of `rows` (in uid order) is taken, and how many listed uids are not among them.

        Rows that have one uid share its copies evenly, the first ones the rest.
        """
        uids_, several = distinct(rows)
        at = uids.find(self.uids, uids_)
        there = at >= 0
        wanted = np.where(there, self.copies[np.maximum(at, 0)], 0)
        absent = len(self.uids) - int(there.sum())
        if len(uids_) == len(rows):
            return wanted, absent
        first = np.repeat(np.cumsum(several) - several, several)
        each, among = np.repeat(wanted, several), np.repeat(several, several)
        return each // among + (np.arange(len(rows)) - first < each % among), absent

    def outside(self, parts: Iterable[Pairs]) -> npt.NDArray[np.bool_]:
        """Which of `uids` are in none of these parts of a pool (in any order)."""
        found = np.zeros(len(self.uids), bool)
        for pairs in parts:
            at = uids.find(self.uids, pairs[uids.sort_order(pairs)])
            found[at[at >= 0]] = True
        return ~found


def distinct(ordered: Pairs) -> tuple[Pairs, Counts]:
    """The distinct pairs of a list in uid order, and how often each stands in it."""
    new = np.ones(len(ordered), dtype=np.bool_)
    new[1:] = (ordered["f0"][1:] != ordered["f0"][:-1]) | (ordered["f1"][1:] != ordered["f1"][:-1])
    if new.all():
        return ordered, np.ones(len(ordered), dtype=np.int64)
    starts = np.flatnonzero(new)
    return ordered[starts], np.diff(np.append(starts, len(ordered)))


def is_file_name(text: str) -> bool:
    """Whether `text`, where a selection may be named, means a file: by its suffix, or as a path that is there."""
    path = Path(text).expanduser()
    return path.suffix.lower() in uid_files.FORMS or ("/" in text and path.is_file())


def read(path: str | Path) -> UidList:
    """The uid list in a file. Raises InputError where it is none, is cut short, or is empty."""
    path = Path(path).expanduser()
    form, pairs = uid_files.read(path)
    ordered = uid_files.is_ordered(pairs)
    return UidList(str(path), form, pairs if ordered else pairs[uids.sort_order(pairs)], ordered)


# --- two lists --------------------------------------------------------------------------------------------


def combine(how: str, lists: Sequence[UidList]) -> Pairs:
    """What `and`, `or` or `minus` makes of lists, from the left, in uid order with its copies.

    `and` takes the smaller number of copies, `or` the larger, `minus` all copies of what is in none of the others.
    """
    held, copies = lists[0].uids, lists[0].copies
    for other in lists[1:]:
        held, copies = _COMBINED[how](held, copies, other)
    return np.repeat(held, copies)


def _and(held: Pairs, copies: Counts, other: UidList) -> tuple[Pairs, Counts]:
    at = uids.find(other.uids, held)
    both = at >= 0
    return held[both], np.minimum(copies[both], other.copies[at[both]])


def _or(held: Pairs, copies: Counts, other: UidList) -> tuple[Pairs, Counts]:
    at = uids.find(held, other.uids)
    both = at >= 0
    copies = copies.copy()
    copies[at[both]] = np.maximum(copies[at[both]], other.copies[both])
    whole = np.concatenate([held, other.uids[~both]])
    order = uids.sort_order(whole)
    return whole[order], np.concatenate([copies, other.copies[~both]])[order]


def _minus(held: Pairs, copies: Counts, other: UidList) -> tuple[Pairs, Counts]:
    only = uids.find(other.uids, held) < 0
    return held[only], copies[only]


_COMBINED = {"and": _and, "or": _or, "minus": _minus}
OPERATIONS = tuple(_COMBINED)


@dataclass(frozen=True)
class Overlap:
    """What two lists have in common, in distinct uids."""

    a: str
    b: str
    both: int
    only_a: int
    only_b: int

    @property
    def jaccard(self) -> float:
        """The share of both in all, 0..1."""
        return self.both / max(self.both + self.only_a + self.only_b, 1)


def overlap(a: UidList, b: UidList) -> Overlap:
    """What two lists have in common."""
    short, long = sorted((a, b), key=lambda each: len(each.uids))
    both = int((uids.find(long.uids, short.uids) >= 0).sum())
    return Overlap(a.name, b.name, both, len(a.uids) - both, len(b.uids) - both)
