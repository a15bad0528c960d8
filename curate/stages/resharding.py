"""From a list of uids to new shards: where each sample's bytes lie, and the copying of them.

The plan is made from tables alone. Each new shard is one part: its samples' blocks are read by range, given
their new names, and written in the order in which the pool's shards hold them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate.errors import PartError
from curate.pool import Part, Pool, Shard
from curate.shards import TarWriter, header, members, split_name, write_table

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.engines.local import Tick
    from curate.receipts import Output

Pairs = npt.NDArray[np.void]
Rows = npt.NDArray[np.int32]

NOT_DOWNLOADED, PART_FAILED = "not_downloaded", "part_failed"
BROKEN = frozenset({PART_FAILED, "lost"})
"""Causes that say that bytes which should be there are not."""

READ = 8 << 20
"""At most this many bytes are read at once, unless one sample has more."""


# --- the plan ---------------------------------------------------------------------------------------------


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


def find(ordered: Pairs, wanted: Pairs) -> npt.NDArray[np.int64]:
    """The position of each wanted pair in a sorted list of distinct pairs, -1 where it is not in it."""
    found = np.full(len(wanted), -1, dtype=np.int64)
    at = np.searchsorted(ordered["f0"], wanted["f0"], side="left")
    left = np.arange(len(wanted))
    while True:  # walk over the few that share their high half
        inside = at < len(ordered)
        left, at = left[inside], at[inside]
        same = ordered["f0"][at] == wanted["f0"][left]
        hit = same & (ordered["f1"][at] == wanted["f1"][left])
        found[left[hit]] = at[hit]
        on = same & ~hit
        if not on.any():
            return found
        left, at = left[on], at[on] + 1


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
    found = find(wanted, pool.uids(part))
    rows = np.flatnonzero(found >= 0).astype(np.int32)
    return found[rows], rows, pool.failed(part).gather(rows).to_list() if len(rows) else []


def damage(pool: Pool, shard: Shard) -> PartError | None:
    """What is seen to be wrong with a shard's files without reading them, or None."""
    receipt = pool.shard_receipt(shard)
    for path in (shard.tar, shard.index):
        hint = f"curate verify --pool {pool.layout.root} says what else is"
        if not path.is_file():
            return PartError(str(path), "is missing", hint=hint)
        written = receipt.outputs.get(path.name) if receipt else None
        size = path.stat().st_size
        if written and size != written.bytes:
            return PartError(str(path), f"has {size:,} of the {written.bytes:,} bytes that were written", hint=hint)
    return None


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


# --- one new shard ----------------------------------------------------------------------------------------


def write_shard(output: Output, tick: Tick, sources: Sequence[Source]) -> Mapping[str, int]:
    """One new shard: tar, table, index and stats, named as the part. Raises PartError naming a broken source."""
    import pyarrow as pa

    name = output.part
    tar = TarWriter(output.open(f"{name}.tar"))
    tables = []
    for source in sources:
        table = _rows(source)
        old, offsets, lengths = _runs(source, table)
        new = [f"{uid}-{copy}" for uid, copy in zip(table["uid"].to_pylist(), source.copies.tolist(), strict=True)]
        _copy(tar, source.shard.tar, zip(old, new, offsets, lengths, strict=True))
        tables.append(table.set_column(table.column_names.index("key"), "key", pa.array(new)))
        tick(len(new), 0)
    tar.finish()
    write_table(output, f"{name}.parquet", joined(tables))
    write_table(output, f"{name}.index.parquet", tar.index())
    output.write(f"{name}_stats.json", json.dumps({"successes": len(tar.keys)}).encode())
    return {"samples": len(tar.keys), "kept": len(tar.keys), "bytes": tar.position}


def _rows(source: Source) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = source.shard.table
    try:
        return pq.read_table(path, use_threads=False).take(source.rows)
    except (pa.ArrowException, OSError) as error:
        raise PartError(str(path), f"is not a readable Parquet file ({error})") from error


def _runs(source: Source, table: pa.Table) -> tuple[list[str], list[int], list[int]]:
    """Key, offset and length in the tar of each row of `table`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = source.shard.index
    try:
        index = pq.read_table(path, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise PartError(str(path), f"is not a readable Parquet file ({error})") from error
    keys = table["key"].cast(pa.string())
    at = pc.index_in(keys, value_set=index["key"])
    if at.null_count:
        lost = keys.filter(pc.is_null(at))[0].as_py()
        raise PartError(str(path), f"does not say where the key {lost!r} lies")
    taken = index.take(at)
    return keys.to_pylist(), taken["offset"].to_pylist(), taken["length"].to_pylist()


def _copy(tar: TarWriter, path: Path, wanted: Iterator[tuple[str, str, int, int]]) -> None:
    """Append the samples (old key, new key, offset, length) of the tar at `path` under their new keys."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PartError(str(path), f"cannot be read ({error.strerror})") from error
    try:
        buffer = bytearray(READ)
        for begin, length, runs in _adjacent(wanted):
            if length > len(buffer):
                buffer = bytearray(length)
            view = memoryview(buffer)[:length]
            _read(fd, view, begin, path)
            for old, new, offset, size in runs:
                tar.add_raw(new, _renamed(view[offset - begin : offset - begin + size], old, new, path))
    finally:
        os.close(fd)


def _adjacent(
    wanted: Iterator[tuple[str, str, int, int]],
) -> Iterator[tuple[int, int, list[tuple[str, str, int, int]]]]:
    """Runs that follow each other, gathered: (offset, length, runs) of at most `READ` bytes, or one run."""
    begin = end = 0
    gathered: list[tuple[str, str, int, int]] = []
    for run in wanted:
        offset, length = run[2:]
        again = bool(gathered) and (offset, length) == gathered[-1][2:]  # a further copy
        if gathered and not again and (offset != end or end + length - begin > READ):
            yield begin, end - begin, gathered
            gathered = []
        if not gathered:
            begin = offset
        end = offset + length
        gathered.append(run)
    if gathered:
        yield begin, end - begin, gathered


def _read(fd: int, view: memoryview, offset: int, path: Path) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            raise PartError(
                str(path),
                f"is cut short (it ends at {offset + done:,}, a sample at {offset + len(view):,})",
                hint="curate verify says what else is wrong; without the tar, its samples are listed as missing",
            )
        done += got


def _renamed(run: memoryview, old: str, new: str, path: Path) -> bytes:
    """A sample's blocks with its members under the new key, contents and extensions as they are."""
    pieces: list[bytes | memoryview] = []
    for member in members(run, str(path)):
        key, extension = split_name(member.name)
        if key != old:
            raise PartError(str(path), f"holds {key!r} where its index says {old!r}")
        pieces += (header(f"{new}.{extension}", member.size), run[member.offset : member.end])
    return b"".join(pieces)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables below each other; a column of several kinds becomes the wider one, or text where none is wider."""
    import pyarrow as pa

    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        kinds: dict[str, set[pa.DataType]] = {}
        for table in tables:
            for column in table.schema:
                kinds.setdefault(column.name, set()).add(column.type)
        mixed = {n for n, k in kinds.items() if len(k - {pa.null()}) > 1}
        return pa.concat_tables([_as_text(t, mixed) for t in tables], promote_options="permissive")


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    import pyarrow as pa

    for position, name in enumerate(table.column_names):
        if name in names:
            texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in table[name].to_pylist()]
            table = table.set_column(position, name, pa.array(texts, pa.string()))
    return table
