"""Where the samples of a uid list lie: which shard holds each one's bytes, and which are not here, and why.

The plan is made from tables alone; no tar is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from curate import uids
from curate.errors import PartError
from curate.pool import Part, Pool, Shard

Pairs = npt.NDArray[np.void]
Rows = npt.NDArray[np.int32]

NOT_DOWNLOADED, PART_FAILED = "not_downloaded", "part_failed"
BROKEN = frozenset({PART_FAILED, "lost"})
"""Causes that say that bytes which should be there are not."""


@dataclass(frozen=True)
class Source:
    """What one new shard takes of one shard of the pool: rows of its table, and which copy of each."""

    shard: Shard
    rows: Rows
    copies: Rows
    """The number of the copy, from 0, for each row."""


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
        return [
            Source(self.shards[int(places[a])], self.row[repeated[a:b]], copies[a:b]) for a, b in pairwise(breaks)
        ]


def distinct(ordered: Pairs) -> tuple[Pairs, Rows]:
    """The distinct pairs of a sorted uid list, and how often each stands in it."""
    new = np.ones(len(ordered), dtype=np.bool_)
    new[1:] = (ordered["f0"][1:] != ordered["f0"][:-1]) | (ordered["f1"][1:] != ordered["f1"][:-1])
    starts = np.flatnonzero(new)
    return ordered[starts], np.diff(np.append(starts, len(ordered))).astype(np.int32)


def make_plan(pool: Pool, wanted: Pairs, copies: Rows) -> Plan:
    """Where the images of `wanted` (sorted, distinct) lie. Of several rows with one uid the first stored counts.

    A shard whose tar is missing or has not the size that was written is not read from: the samples that only
    it holds are missing with the cause `part_failed`.
    """
    place = np.full(len(wanted), -1, dtype=np.int32)
    row = np.zeros(len(wanted), dtype=np.int32)
    causes = np.zeros(len(wanted), dtype=np.uint16)
    codes = {NOT_DOWNLOADED: 0, PART_FAILED: 1}
    blind: dict[str, PartError] = {}
    damaged: dict[str, PartError] = {}
    for number, shard in enumerate(pool.shards):
        try:
            hits, rows, failed = _wanted_rows(pool, shard, wanted)
        except PartError as error:
            blind[shard.name] = error
            continue
        hurt = damage(pool, shard)
        stored = np.array([code is None for code in failed], dtype=np.bool_)
        if hurt and stored.any():
            damaged[shard.name] = hurt
            failed, stored = [code or PART_FAILED for code in failed], np.zeros_like(stored)
        causes[hits[~stored]] = [codes.setdefault(c, len(codes)) for c in failed if c is not None]
        fresh, firsts = np.unique(hits[stored], return_index=True)
        open_ = place[fresh] < 0
        place[fresh[open_]] = number
        row[fresh[open_]] = rows[stored][firsts[open_]]
    here = place >= 0
    if blind and not here.all():
        damaged |= blind
        causes[~here & (causes == 0)] = codes[PART_FAILED]
    order = np.flatnonzero(here)
    order = order[np.lexsort((row[order], place[order]))]
    return Plan(
        pool.shards,
        place[order],
        row[order],
        copies[order],
        wanted[order],
        wanted[~here],
        causes[~here],
        list(codes),
        damaged,
    )


def _wanted_rows(pool: Pool, shard: Shard, wanted: Pairs) -> tuple[npt.NDArray[np.int64], Rows, list[str | None]]:
    """Of the shard's rows that are wanted: place in `wanted`, row, error code or None."""
    part = Part(shard.name, shard.table, shard=shard)
    found = uids.find(wanted, pool.uids(part))
    rows = np.flatnonzero(found >= 0).astype(np.int32)
    return found[rows], rows, pool.failed(part).gather(rows).to_list() if len(rows) else []


def damage(pool: Pool, shard: Shard) -> PartError | None:
    """What is seen to be wrong with a shard's files without reading them, or None."""
    hint = f"curate verify --pool {pool.layout.root} says what else is"
    receipt = pool.shard_receipt(shard)
    if receipt is None:
        return PartError(str(shard.tar), "has no receipt that can be read", hint=hint)
    if not shard.tar.is_file():
        return PartError(str(shard.tar), "is missing", hint=hint)
    hurt = receipt.damage(shard.index.parent)
    found = ((path, hurt.get(path.name)) for path in (shard.tar, shard.index))
    return next((PartError(str(path), what, hint=hint) for path, what in found if what), None)


def bytes_about(pool: Pool, plan: Plan) -> int:
    """About how many bytes the plan copies: each shard's tar by the share of its images that is wanted."""
    total = 0.0
    counts = np.bincount(plan.place, weights=plan.copies, minlength=len(plan.shards))
    for shard, wanted in zip(plan.shards, counts, strict=True):
        if wanted:
            receipt = pool.shard_receipt(shard)
            counted = receipt.counts if receipt else {}
            total += shard.tar.stat().st_size * wanted / max(counted.get("ok", counted.get("kept", 0)), 1)
    return int(total)


def fingerprint(pool: Pool, sources: Sequence[Source]) -> dict[str, Any]:
    """What a new shard depends on: the shards that it takes from, and the rows of them."""
    rows = hashlib.sha256()
    inputs = {}
    for source in sources:
        receipt = pool.shard_receipt(source.shard)
        if receipt is None:
            raise PartError(str(source.shard.tar), "has no receipt", hint="run the same command again")
        own = source.shard.ours
        inputs[source.shard.name] = receipt.identity if own else [receipt.identity, receipt.fingerprint]
        for numbers in (source.rows, source.copies):
            rows.update(len(numbers).to_bytes(8, "little") + numbers.astype("<i4").tobytes())
    return {"inputs": inputs, "rows": rows.hexdigest()}
