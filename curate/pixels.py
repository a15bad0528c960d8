"""The pass over the pixels of a shard: decode processes at work while the caller computes.

A shard's rows are cut into batches at fixed places and these into chunks; a chunk is what one decode process
does at a time. Chunks come back in any order, batches are handed on in theirs, so that nothing depends on how
many processes there are. At most a few batches are ahead of the caller.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate import decoding
from curate.decoding import Job, Prepare, Span
from curate.engines.local import TRIES, main_module_hidden
from curate.errors import PartError
from curate.shards import read_table

if TYPE_CHECKING:
    from typing_extensions import Self

    from curate.pool import Shard

log = logging.getLogger("curate.pixels")

CHUNK = 16
"""Rows that a decode process does at a time: a few MB of pixels, some 50 ms."""
AHEAD = 3
"""Batches that may be in the making while the caller holds one."""
YIELDING = 10
"""The niceness of decode processes that share their cores with a model."""


@dataclass(frozen=True)
class PixelBatch:
    """Rows [start, start + len(ok)) of a shard's table."""

    start: int
    ok: npt.NDArray[np.bool_]
    """Which rows have an image."""
    images: npt.NDArray[Any]
    """What `prepare` made of the rows that are ok, stacked; of shape (0,) where none is."""
    codes: list[str | None]
    """The error code of each row, None where it is ok, or was not wanted and had not failed before."""
    messages: list[str | None]
    """What went wrong here in words; None also for rows that had failed before."""


@dataclass
class _Chunk:
    """Some readable rows of one batch, and their arrays once they are there."""

    rows: list[int]
    """Within the batch."""
    spans: list[Span]
    tries: int = 0
    failures: list[tuple[str, str] | None] | None = None
    """Set when the chunk is done."""
    form: tuple[tuple[int, ...], np.dtype[Any]] | None = None
    memory: int = -1
    """The descriptor of the file that holds the arrays, or -1 where there are none."""
    arrays: list[npt.NDArray[Any]] = field(default_factory=list)
    """Arrays that were made in this process."""

    @property
    def count(self) -> int:
        return sum(f is None for f in self.failures or ())

    def drop(self) -> None:
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


@dataclass
class _Batch:
    start: int
    codes: list[str | None]
    chunks: range


class Decoders:
    """Decode processes that live until `close` and die with this one. They start when first needed.

    With `workers` 0 decoding happens in this process. `yielding` ones leave the cores to whoever else wants
    them: right where a model computes on the same cores, since it would wait for its slowest thread.
    """

    def __init__(self, workers: int, *, yielding: bool = False) -> None:
        self.workers = workers
        self._niceness = YIELDING if yielding else 0
        self._crew: list[_Hand] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for hand in self._crew:
            hand.end()
        self._crew.clear()

    def start(self) -> None:
        """Have the processes start now, while the caller loads what it needs itself."""
        while len(self._crew) < self.workers:
            self._crew.append(_Hand(self._niceness))

    def batches(
        self, shard: Shard, prepare: Prepare, *, rows: int = 256, wanted: npt.NDArray[np.bool_] | None = None
    ) -> Iterator[PixelBatch]:
        """Batch b holds the rows [b * rows, (b + 1) * rows) of the shard's table, in order.

        With `wanted`, a flag a row, the others are not read, and a batch goes on until it holds `rows` images to
        read. Rows that the table says failed are not read and keep their code. `prepare` is pickled; it runs on
        upright RGB images. Raises PartError, naming the tar, where bytes that should be there are not, where
        `prepare` fails on anything but a SampleError, and where a process died `TRIES` times at one place.
        """
        if rows < 1:
            raise ValueError(f"rows must be at least 1, not {rows}")
        batches, chunks = _plan(shard, rows, wanted)
        where = str(shard.tar)
        if self.workers <= 0:
            yield from _here(where, prepare, batches, chunks)
            return
        self.start()
        job = _Pass(
            self._crew, self._niceness, Job(where, pickle.dumps(prepare)), chunks, AHEAD * -(-rows // CHUNK)
        )
        whole = False
        try:
            for batch in batches:
                job.fetch(batch.chunks)
                made = _made(batch, chunks, where)
                job.feed(batch.chunks.stop)
                yield made
            whole = True
        finally:
            for chunk in chunks:
                chunk.drop()
            if not whole:
                self.close()  # they are at work on what nobody wants any more


def _here(where: str, prepare: Prepare, batches: Sequence[_Batch], chunks: list[_Chunk]) -> Iterator[PixelBatch]:
    tar = decoding.open_tar(where) if chunks else -1
    try:
        for batch in batches:
            for chunk in chunks[batch.chunks.start : batch.chunks.stop]:
                done = decoding.decode_spans(tar, where, chunk.spans, prepare)
                chunk.failures, chunk.arrays = done.failures, done.arrays
                chunk.form = (done.arrays[0].shape, done.arrays[0].dtype) if done.arrays else None
            yield _made(batch, chunks, where)
    finally:
        if tar >= 0:
            os.close(tar)


def _plan(shard: Shard, rows: int, wanted: npt.NDArray[np.bool_] | None) -> tuple[list[_Batch], list[_Chunk]]:
    table = _read(shard.table, ["key", "error_code"])
    index = _read(shard.index, ["key", "offset", "length"])
    spans = {span[0]: Span(*span) for span in zip(index["key"], index["offset"], index["length"], strict=True)}
    keys, failed = table["key"], table["error_code"]
    lost = next((key for key, code in zip(keys, failed, strict=True) if code is None and key not in spans), None)
    if lost is not None:
        what = f"does not hold sample {lost}, which its table says was stored"
        raise PartError(str(shard.tar), what, hint=decoding.MEND)
    batches: list[_Batch] = []
    chunks: list[_Chunk] = []
    for start, stop in _cuts(failed, rows, wanted):
        codes: list[str | None] = failed[start:stop]
        read = [i for i, code in enumerate(codes) if code is None and (wanted is None or wanted[start + i])]
        first = len(chunks)
        for at in range(0, len(read), CHUNK):
            group = read[at : at + CHUNK]
            chunks.append(_Chunk(group, [spans[keys[start + i]] for i in group]))
        batches.append(_Batch(start, codes, range(first, len(chunks))))
    return batches, chunks


def _cuts(
    failed: Sequence[str | None], rows: int, wanted: npt.NDArray[np.bool_] | None
) -> Iterator[tuple[int, int]]:
    """Where batches begin and end: every `rows` rows, or every `rows` that are wanted and can be read."""
    if not failed:
        return
    if wanted is None:
        starts = list(range(0, len(failed), rows))
    else:
        read = [row for row, code in enumerate(failed) if code is None and wanted[row]]
        starts = [0, *read[rows::rows]]
    yield from zip(starts, [*starts[1:], len(failed)], strict=True)


def _read(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    table = read_table(path, columns)
    if missing := [c for c in columns if c not in table.column_names]:
        raise PartError(str(path), f"has no column {missing[0]!r} (found: {', '.join(table.column_names[:20])})")
    return {c: table.column(c).to_pylist() for c in columns}


def _made(batch: _Batch, chunks: list[_Chunk], where: str) -> PixelBatch:
    """The batch of chunks that are all done; their memory is given back."""
    group = chunks[batch.chunks.start : batch.chunks.stop]
    codes = list(batch.codes)
    messages: list[str | None] = [None] * len(codes)
    ok = np.zeros(len(codes), dtype=bool)
    for chunk in group:
        for row, failure in zip(chunk.rows, chunk.failures or (), strict=True):
            ok[row] = failure is None
            if failure is not None:
                codes[row], messages[row] = failure
    forms = list(dict.fromkeys(c.form for c in group if c.form is not None))
    if len(forms) > 1:
        raise decoding.different_forms(where, *forms[:2])
    shape, dtype = forms[0] if forms else ((), np.dtype(np.uint8))
    images = np.empty((int(ok.sum()), *shape), dtype)
    at = 0
    for chunk in group:
        _fill(images[at : at + chunk.count], chunk)
        at += chunk.count
        chunk.drop()
        chunk.arrays = []
    return PixelBatch(batch.start, ok, images, codes, messages)


def _fill(target: npt.NDArray[Any], chunk: _Chunk) -> None:
    if chunk.memory < 0:
        for row, array in zip(target, chunk.arrays, strict=True):
            row[...] = array
        return
    view, position = target.reshape(-1).view(np.uint8).data, 0
    while position < len(view):
        got = os.preadv(chunk.memory, [view[position:]], position)
        assert got, "a decode process sent less than it said"
        position += got


# --- processes --------------------------------------------------------------------------------------------


class _Hand:
    """One decode process, and the chunks that it has yet to answer, in order."""

    def __init__(self, niceness: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=decoding.serve, args=(there, os.getpid(), niceness), daemon=True
        )
        with main_module_hidden():
            self.process.start()
        there.close()
        self.owes: list[int] = []

    def send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # its death is noticed by the next wait
            self.pipe.send(message)

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


class _Pass:
    """One shard's chunks on their way through the crew."""

    def __init__(self, crew: list[_Hand], niceness: int, job: Job, chunks: list[_Chunk], ahead: int) -> None:
        self.crew, self.niceness, self.job, self.chunks = crew, niceness, job, chunks
        self.ahead = max(ahead, 4 * len(crew))
        self.given = 0
        """Chunks given out so far: the first ones."""
        for place, hand in enumerate(crew):
            if not hand.process.is_alive():
                hand.end()
                crew[place] = _Hand(niceness)
            crew[place].send(job)
        self.feed(0)

    def feed(self, done: int) -> None:
        """Give out chunks up to `ahead` after number `done`, each to the process that owes least."""
        for number in range(self.given, min(done + self.ahead, len(self.chunks))):
            self._give(number)
            self.given = number + 1

    def _give(self, number: int) -> None:
        hand = min(self.crew, key=lambda h: len(h.owes))
        hand.owes.append(number)
        hand.send((number, self.chunks[number].spans))

    def fetch(self, wanted: range) -> None:
        """Wait until the chunks `wanted` are done."""
        while any(self.chunks[number].failures is None for number in wanted):
            busy = {hand.pipe: hand for hand in self.crew if hand.owes}
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                self._hear(busy[pipe])

    def _hear(self, hand: _Hand) -> None:
        try:
            number, *answer = hand.pipe.recv()
            if len(answer) == 1:
                raise answer[0]
            shape, dtype, failures = answer
            chunk = self.chunks[number]
            if any(f is None for f in failures):
                chunk.memory = reduction.recv_handle(hand.pipe)
                chunk.form = (shape, np.dtype(dtype))
        except (EOFError, ConnectionResetError):
            self._bury(hand)
            return
        chunk.failures = failures
        hand.owes.remove(number)

    def _bury(self, hand: _Hand) -> None:
        """A process died: another takes its place, the chunk it was at is tried again or costs the part."""
        hand.end()
        code = hand.process.exitcode
        cause = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        chunk = self.chunks[hand.owes[0]]
        chunk.tries += 1
        between = f"samples {chunk.spans[0].key} to {chunk.spans[-1].key}"
        if chunk.tries >= TRIES:
            raise PartError(
                self.job.tar,
                f"a decode process died {TRIES} times at {between} ({cause})",
                hint="a process that is killed is often out of memory: try fewer --workers",
            )
        log.warning("%s: a decode process died at %s (%s); trying again", self.job.tar, between, cause)
        fresh = _Hand(self.niceness)
        fresh.send(self.job)
        self.crew[self.crew.index(hand)] = fresh
        for number in hand.owes:
            self._give(number)
