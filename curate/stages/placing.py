"""Where the samples of a uid list lie: which shard holds each one's bytes, and which are not here, and why.

The plan is made from tables alone; no tar is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate import uids
from curate.errors import PartError
from curate.pool import FAILED, Pool, Shard
from curate.shards import read_table
from curate.stages.columns import ints

if TYPE_CHECKING:
    from curate.receipts import Receipt
    from curate.stages.blurring import Boxes, Lists

Pairs = npt.NDArray[np.void]
Rows = npt.NDArray[np.int32]

NOT_DOWNLOADED, NOT_IN_POOL, PART_FAILED = "not_downloaded", "not_in_pool", "part_failed"
READERS = 4
"""Tables looked into at once."""
BROKEN = frozenset({PART_FAILED, "lost"})
"""Causes that say that bytes which should be there are not."""


@dataclass(frozen=True)
class Source:
    """What one new shard takes of one shard of the pool: rows of its table, and which copy of each."""

    shard: Shard
    number: int
    """Of the shard in the pool."""
    rows: Rows
    copies: Rows
    """The number of the copy, from 0, for each row."""
    boxes: Lists | None = None
    """The faces of each row; None where they do not matter."""
    turned: bool = False
    """Whether the boxes already lie as the stored pictures do, and not as the files that were downloaded."""


@dataclass
class Plan:
    """The wanted samples whose images are here, in the order of the pool's shards, and the others."""

    shards: Sequence[Shard]
    place: Rows
    """For each sample to write the index of its shard; 4 bytes each, as `row` and `copies`."""
    row: Rows
    copies: Rows
    """How often each sample is wanted."""
    uids: Pairs
    missing: Pairs
    """The wanted uids whose image is not here, sorted."""
    causes: npt.NDArray[np.uint16]
    codes: list[str]
    """What the numbers in `causes` stand for."""
    damaged: dict[str, PartError] = field(default_factory=dict)
    """Shards that hold wanted samples and cannot be read."""
    held: dict[int, Receipt] = field(default_factory=dict)
    """The receipts of the shards that are read from."""
    boxes: Boxes | None = None
    """The faces of each sample, where something is to be done with them."""

    @property
    def samples(self) -> int:
        """Samples to write, copies counted."""
        return int(self.copies.sum(dtype=np.int64))

    def missing_by_cause(self) -> dict[str, int]:
        """Wanted uids without an image, by cause."""
        counts = np.bincount(self.causes, minlength=len(self.codes))
        return {code: int(n) for code, n in sorted(zip(self.codes, counts, strict=True)) if n}

    def pieces(self, samples_per_shard: int) -> list[list[Source]]:
        """The new shards, each as the sources of its samples; their sizes differ by one at most."""
        total = self.samples
        number = -(-total // samples_per_shard)
        ends = np.cumsum(self.copies, dtype=np.int64)
        cuts = [i * total // number for i in range(number + 1)] if number else []
        return [self._piece(ends, a, b) for a, b in pairwise(cuts)]

    def without(self, lost: Pairs, causes: Sequence[str]) -> Plan:
        """The plan without some of its samples (sorted uids), which are missing for these causes.

        Of its boxes nothing more can be asked.
        """
        at = uids.find(lost, self.uids)
        gone = at >= 0
        codes = [*self.codes, *sorted(set(causes) - set(self.codes))]
        numbers = np.array([codes.index(cause) for cause in causes], dtype=np.uint16)
        missing = np.concatenate([self.missing, self.uids[gone]])
        order = uids.sort_order(missing)
        return replace(
            self,
            place=self.place[~gone],
            row=self.row[~gone],
            copies=self.copies[~gone],
            uids=self.uids[~gone],
            missing=missing[order],
            causes=np.concatenate([self.causes, numbers[at[gone]]])[order],
            codes=codes,
        )

    def source(self, which: npt.NDArray[np.intp], copies: Rows) -> Source:
        """The `which`-th samples, all of one shard, as what a new shard takes of it."""
        number = int(self.place[which[0]])
        boxes, turned = None, False
        if self.boxes is not None:
            boxes = self.boxes.of(which)
            turned = self.boxes.of_tables and bool(self.held[number].what.get("bbox_column"))
        return Source(self.shards[number], number, self.row[which], copies, boxes, turned)

    def _piece(self, ends: npt.NDArray[np.int64], start: int, stop: int) -> list[Source]:
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        chosen = np.arange(first, last + 1)
        begins = ends[chosen] - self.copies[chosen]
        low = np.maximum(start - begins, 0)
        each = np.minimum(stop - begins, self.copies[chosen]) - low
        repeated = np.repeat(chosen, each)
        runs = np.repeat(np.cumsum(each) - each, each)
        copies = (np.arange(len(repeated)) - runs + np.repeat(low, each)).astype(np.int32)
        places = self.place[repeated]
        breaks = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(repeated)]
        return [self.source(repeated[a:b], copies[a:b]) for a, b in pairwise(breaks)]


def make_plan(pool: Pool, wanted: Pairs, copies: npt.NDArray[np.integer[Any]], *, foreign: bool = False) -> Plan:
    """Where the images of `wanted` (sorted, distinct) lie. Of several rows with one uid the first stored counts.

    A shard whose tar is missing or has not the size that was written is not read from: the samples that only
    it holds are missing with the cause `part_failed`. With `foreign` some uids may be of no sample of the pool:
    these are missing with the cause `not_in_pool`.
    """
    place = np.full(len(wanted), -1, dtype=np.int32)
    row = np.zeros(len(wanted), dtype=np.int32)
    causes = np.zeros(len(wanted), dtype=np.uint16)
    codes = {NOT_DOWNLOADED: 0, PART_FAILED: 1}
    blind: dict[str, PartError] = {}
    damaged: dict[str, PartError] = {}
    held: dict[int, Receipt] = {}
    seen = np.zeros(len(wanted), dtype=np.bool_)
    with ThreadPoolExecutor(READERS) as readers:
        for number, found in enumerate(readers.map(lambda shard: _look(pool, shard, wanted), pool.shards)):
            name = pool.shards[number].name
            if isinstance(found, PartError):
                blind[name] = found
                continue
            seen[found.hits] = True
            stored, failed = found.stored, found.failed
            if found.damage is not None and stored.any():
                damaged[name] = found.damage
                failed, stored = [code or PART_FAILED for code in failed], np.zeros_like(stored)
            elif found.receipt is not None:
                held[number] = found.receipt
            if not stored.all():
                causes[found.hits[~stored]] = [codes.setdefault(c, len(codes)) for c in failed if c is not None]
            fresh, firsts = np.unique(found.hits[stored], return_index=True)
            open_ = place[fresh] < 0
            place[fresh[open_]] = number
            row[fresh[open_]] = found.rows[stored][firsts[open_]]
    here = place >= 0
    if blind and not here.all():
        damaged |= blind
        causes[~here & (causes == 0)] = codes[PART_FAILED]
    elif foreign and not seen.all():
        gone = np.flatnonzero(~seen)[_not_in_metadata(pool, wanted[~seen])]
        causes[gone] = codes.setdefault(NOT_IN_POOL, len(codes))
    order = np.flatnonzero(here)
    order = order[np.lexsort((row[order], place[order]))]
    return Plan(
        pool.shards,
        place[order],
        row[order],
        copies[order].astype(np.int32),
        wanted[order],
        wanted[~here],
        causes[~here],
        list(codes),
        damaged,
        held,
    )


def _not_in_metadata(pool: Pool, wanted: Pairs) -> npt.NDArray[np.bool_]:
    """Which of `wanted` (sorted), none of which a shard has, are no sample of the pool."""
    gone = np.ones(len(wanted), dtype=np.bool_)
    for part in pool.parts if pool.joined else ():
        if part.name in pool.rows:
            at = uids.find(wanted, pool.uids(part))
            gone[at[at >= 0]] = False
    return gone


@dataclass(frozen=True)
class _Found:
    """The rows of one shard that are wanted."""

    hits: npt.NDArray[np.int64]
    """Their places in the wanted list."""
    rows: Rows
    failed: list[str | None]
    """Error codes, None where the image is stored."""
    stored: npt.NDArray[np.bool_]
    receipt: Receipt | None
    damage: PartError | None


def _look(pool: Pool, shard: Shard, wanted: Pairs) -> _Found | PartError:
    """What a shard holds of the wanted samples; the error where its table cannot be read."""
    import pyarrow as pa

    path = shard.table
    if not shard.ours and not path.is_file():
        hint = "what is wrong with it is said above; curate verify says it, too"
        return PartError(str(shard.tar), "its index could not be made", hint=hint)
    try:
        table = read_table(path, ["uid", FAILED])  # those of them that it has
        if "uid" not in table.column_names:
            return PartError(str(path), "has no column 'uid'")
        found = uids.find(wanted, uids.to_pairs(table["uid"]))
    except PartError as error:
        return error
    except ValueError as error:
        return PartError(str(path), f"column 'uid': {error}")
    rows = np.flatnonzero(found >= 0).astype(np.int32)
    failed: list[str | None] = [None] * len(rows)
    if FAILED in table.column_names and table[FAILED].null_count < len(table):
        failed = table[FAILED].cast(pa.string()).take(ints(rows)).to_pylist()
    stored = np.array([code is None for code in failed], dtype=np.bool_)
    receipt = pool.shard_receipt(shard) if len(rows) else None
    hurt = damage(pool, shard, receipt) if len(rows) else None
    return _Found(found[rows], rows, failed, stored, receipt, hurt)


def damage(pool: Pool, shard: Shard, receipt: Receipt | None) -> PartError | None:
    """What is seen to be wrong with a shard's files, for which `receipt` stands, without reading them, or None."""
    hint = f"curate verify --pool {pool.layout.root} says what else is"
    if receipt is None:
        return PartError(str(shard.tar), "has no receipt that can be read", hint=hint)
    if not shard.tar.is_file():
        return PartError(str(shard.tar), "is missing", hint=hint)
    hurt = receipt.damage(shard.index.parent)
    found = ((path, hurt.get(path.name)) for path in (shard.tar, shard.index))
    return next((PartError(str(path), what, hint=hint) for path, what in found if what), None)


def bytes_about(plan: Plan) -> int:
    """About how many bytes the plan copies: each shard's tar by the share of its images that is wanted."""
    total = 0.0
    counts = np.bincount(plan.place, weights=plan.copies, minlength=len(plan.shards))
    for number, receipt in plan.held.items():
        stored = receipt.counts.get("ok", receipt.counts.get("kept", 0))
        total += plan.shards[number].tar.stat().st_size * counts[number] / max(stored, 1)
    return int(total)


def known(plan: Plan, number: int) -> str | list[str]:
    """What a shard of the pool is known by: its receipt's identity and, of a foreign one, what it was made of."""
    receipt = plan.held[number]
    return receipt.identity if plan.shards[number].ours else [receipt.identity, receipt.fingerprint]


def fingerprint(plan: Plan, sources: Sequence[Source]) -> dict[str, Any]:
    """What a new shard depends on: the shards that it takes from, the rows of them, and the boxes of these."""
    rows = hashlib.sha256()
    for source in sources:
        for numbers in (source.rows, source.copies):
            rows.update(len(numbers).to_bytes(8, "little") + numbers.astype("<i4").tobytes())
        if source.boxes is not None:
            rows.update(bytes([source.turned]) + source.boxes.digest())
    return {"inputs": {s.shard.name: known(plan, s.number) for s in sources}, "rows": rows.hexdigest()}


def holes(shards: Sequence[Shard], most: int = 1000) -> list[str]:
    """The first numbers that are missing between two shards, where shards are called by numbers: at most `most`."""
    names = [s.name for s in shards]
    if not all(name.isdecimal() for name in names):
        return []
    width = max(map(len, names), default=0)
    between = (range(a + 1, b) for a, b in pairwise(sorted(map(int, names))))
    return [f"{n:0{width}d}" for n in islice(chain.from_iterable(between), most)]


def unfinished(shards: Sequence[Shard]) -> list[str]:
    """Foreign shards without the statistics that their tool writes last, where others have them."""
    without = [s.name for s in shards if not s.ours and not s.tar.with_name(f"{s.name}_stats.json").is_file()]
    return without if len(without) < len(shards) else []
