"""A seeded global shuffle in two passes, with neither pixels nor tables of the whole in memory.

The samples are dealt to the new shards by their uids, like cards. The first pass reads each shard's table and index
once and keeps the wanted rows, with where each sample lies, in files of one piece for each new shard; the second
takes a new shard's pieces and copies its samples from all over the pool. The files are gone at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from curate.errors import PartError
from curate.receipts import digest
from curate.runner import Task
from curate.stages import placing, resharding
from curate.stages.columns import ints, numbers
from curate.stages.placing import Pairs, Plan, Rows, Source
from curate.uids import GOLDEN, mixed, sort_order

if TYPE_CHECKING:
    from curate.engines.local import Tick
    from curate.receipts import Output
    from curate.stages.blurring import Faces

Words = npt.NDArray[np.uint64]
WriteRows = Callable[..., Mapping[str, int]]
"""`resharding.write_rows`, or another that is called so."""

STAGE, VERSION = "subset-rows", 1
FOLDER = "subset.rows"
"""Where the rows are between the passes, in the new folder."""
ORDER = "_curate_order"
FILES, LEAST, MOST = 64, 20_000, 200_000
"""As many files between the passes, of no fewer and no more rows than these, about: what a task holds in memory."""


# --- dealing ----------------------------------------------------------------------------------------------


def deal(uids: Pairs, copies: Rows, shards: int, seed: int) -> npt.NDArray[np.int32]:
    """The new shard of each copy of each sample (copies of one after the other), by uid, copy and seed alone.

    Shards differ by one sample at most. The copies of a sample are in different shards as long as there are enough
    of these: all samples with n copies, in an order by chance, are cut into rounds of as many as there are shards;
    in a round, each copy goes round the table by another step, so that every shard gets n of it.
    """
    ordered = sort_order(uids)
    rank = _order(_chance(uids["f0"][ordered], uids["f1"][ordered], seed))
    by_chance = ordered[rank]
    begins = np.cumsum(copies, dtype=np.int64) - copies
    dealt = np.empty(int(copies.sum(dtype=np.int64)), dtype=np.int32)
    next_ = 0
    for n in np.unique(copies).tolist():
        group = by_chance[copies[by_chance] == n]
        rounds = len(group) // shards
        places = np.arange(rounds * shards) % shards
        which = np.arange(rounds * shards) // shards
        full, rest = group[: len(places)], group[len(places) :]
        for copy, step in enumerate(_steps(rounds, shards, min(n, shards), seed + n)):
            for later in range(copy, n, shards):  # more copies than shards: round again
                dealt[begins[full] + later] = (places + step[which]) % shards
        each = next_ + np.arange(len(rest) * n)
        dealt[np.repeat(begins[rest], n) + np.tile(np.arange(n), len(rest))] = each % shards
        next_ = (next_ + len(each)) % shards
    return dealt


def _steps(rounds: int, shards: int, n: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """For each of n copies the step of each round; no two copies have the same in a round."""
    if not rounds:
        return []
    if n == 1:
        return [np.zeros(rounds, dtype=np.int64)]
    number = np.arange(rounds, dtype=np.uint64)
    taken = np.zeros((0, rounds), dtype=np.int64)
    for copy in range(n):
        # the k-th of the places that are still free, counted past those that are taken
        free = _chance(number, np.full(rounds, copy, dtype=np.uint64), seed) % np.uint64(shards - copy)
        step = free.astype(np.int64)
        for other in np.sort(taken, axis=0):
            step += step >= other
        taken = np.vstack([taken, step])
    return list(taken)


def _chance(high: Words, low: Words, seed: int) -> Words:
    return mixed(high, low, seed=seed, word=seed)


def _order(keys: Words) -> npt.NDArray[np.intp]:
    return np.argsort(keys, kind="stable")


# --- the two passes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shuffle:
    """A plan's samples, copies counted, in the order of writing."""

    plan: Plan
    faces: Faces | None
    which: npt.NDArray[np.int64]
    """Sample of the plan, for each copy in the plan's order."""
    copy: Rows
    shard: Rows
    """The new shard of each."""
    order: npt.NDArray[np.int64]
    """What sorts them by new shard, and in it by chance."""
    shards: int

    def gathering(self, out: Path) -> list[Task]:
        """The first pass: some shards of the pool each, their wanted rows to a file in `out`."""
        position = np.empty(len(self.order), dtype=np.int32)
        position[self.order] = np.arange(len(self.order), dtype=np.int32)
        places = self.plan.place[self.which]
        firsts = np.flatnonzero(np.diff(places, prepend=-1))
        ends = np.append(firsts[1:], len(places))
        size = min(max(len(places) // FILES, LEAST), MOST)
        tasks: list[Task] = []
        begin = 0
        for number, end in enumerate(ends.tolist()):
            if end - firsts[begin] < size and number + 1 < len(ends):
                continue
            bounds = [
                (int(a), int(b)) for a, b in zip(firsts[begin : number + 1], ends[begin : number + 1], strict=True)
            ]
            sources = [self.plan.source(self.which[a:b], self.copy[a:b]) for a, b in bounds]
            rows = slice(bounds[0][0], end)
            what = placing.fingerprint(self.plan, sources) | {
                "dealt": hashlib.sha256(self.shard[rows].tobytes() + position[rows].tobytes()).hexdigest(),
                "shards": self.shards,
            }
            args = (sources, self.shard[rows], position[rows], self.shards)
            tasks.append(Task(f"{len(tasks):06d}", out / FOLDER, what, gather, args, end - rows.start))
            begin = number + 1
        return tasks

    def writing(self, folder: Path, gathering: Sequence[Task], write: WriteRows) -> list[Task]:
        """The second pass: the new shards in `folder`, each by `write`."""
        plan = self.plan
        inputs = {plan.shards[n].name: placing.known(plan, n) for n in sorted(plan.held)}
        said = digest([inputs, self.faces.as_json() if self.faces else None])
        if plan.boxes is not None:
            said = digest([said, plan.boxes.digest().hex()])
        files = [task.folder / f"{task.part}.arrow" for task in gathering]
        tars = [shard.tar for shard in plan.shards]
        bounds = np.searchsorted(self.shard[self.order], np.arange(self.shards + 1))
        tasks = []
        for number in range(self.shards):
            chosen = self.order[bounds[number] : bounds[number + 1]]
            which = self.which[chosen]
            rows = np.stack([plan.place[which], plan.row[which], self.copy[chosen]])
            what = {"inputs": said, "shuffled": hashlib.sha256(rows.astype("<i4").tobytes()).hexdigest()}
            args = (files, number, tars, self.faces, write)
            tasks.append(Task(f"{number:08d}", folder, what, write_shuffled, args, len(chosen)))
        return tasks


def shuffle(plan: Plan, samples_per_shard: int, seed: int, faces: Faces | None) -> Shuffle:
    """The plan's samples in an order that is chance by uid, copy and seed, and nothing else."""
    shards = -(-plan.samples // samples_per_shard)
    dealt = deal(plan.uids, plan.copies, shards, seed)
    which = np.repeat(np.arange(len(plan.uids)), plan.copies)
    copy = (np.arange(len(which)) - np.repeat(np.cumsum(plan.copies) - plan.copies, plan.copies)).astype(np.int32)
    with np.errstate(over="ignore"):
        low = plan.uids["f1"][which] + copy.astype(np.uint64) * np.uint64(GOLDEN)
    order = np.lexsort((_chance(plan.uids["f0"][which], low, ~seed), dealt))
    return Shuffle(plan, faces, which, copy, dealt, order, shards)


def gather(
    output: Output, tick: Tick, sources: Sequence[Source], shard: Rows, position: Rows, shards: int
) -> Mapping[str, int]:
    """The wanted rows of some shards of the pool, in an Arrow file of one batch for each new shard."""
    import pyarrow as pa

    tables = []
    for source in sources:
        tables.append(resharding.located(source, source.number))
        tick(len(source.rows), 0)
    rows = resharding.joined(tables)
    for place, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            rows = rows.set_column(place, field.name, rows[field.name].cast(field.type.value_type))
    rows = rows.append_column(ORDER, ints(position))
    order = np.lexsort((position, shard))
    rows = rows.take(ints(order)).combine_chunks()
    ends = np.cumsum(np.bincount(shard, minlength=shards)).tolist()
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_file(output.open(f"{output.part}.arrow"), rows.schema, options=options) as file:
        begin = 0
        for end in ends:
            piece = rows.slice(begin, end - begin).to_batches()
            file.write_batch(piece[0] if piece else pa.RecordBatch.from_pylist([], schema=rows.schema))
            begin = end
    return {"samples": len(rows), "kept": len(rows)}


def write_shuffled(
    output: Output,
    tick: Tick,
    files: Sequence[Path],
    number: int,
    tars: Sequence[Path],
    faces: Faces | None,
    write: WriteRows,
) -> Mapping[str, int]:
    """New shard `number`, of the rows that the first pass left in `files`."""
    import pyarrow as pa

    tables = []
    for path in files:
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
                tables.append(pa.Table.from_batches([file.get_batch(number)]))
        except (pa.ArrowException, OSError) as error:
            raise PartError(str(path), f"cannot be read ({error})", hint="run the same command again") from error
    rows = resharding.joined(tables)
    order = np.argsort(numbers(rows[ORDER], np.int32))
    rows = rows.drop_columns([ORDER]).take(ints(order))
    return write(output, tick, rows, tars, faces)
