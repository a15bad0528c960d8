"""`VirtualSubset`: the samples of a virtual subset in a drawn order, shared out among ranks and workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.errors import InputError
from curate.sampling.folder import Reader, Row, check_tars, open_folder, rows_of
from curate.sampling.order import Order, Window, batches_of, share

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.sampling.for_torch import TorchSubset

Sample = dict[str, Any]
"""`__key__`, `__url__` (the tar that it lies in), and the bytes of each member under its extension."""

WINDOW = 20_000
"""Samples that are mixed at once unless told."""
AHEAD = 128
"""So many samples ahead the disk is told what is read next."""
TABLES = 4
"""Tables of shards that are kept: windows that follow each other share some."""


@dataclass(frozen=True)
class Settings:
    """What, with the subset, the order depends on."""

    seed: int
    shuffle: bool
    window: int
    resampled: bool
    equal: bool

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError("seed", f"must be 0 or more (found {self.seed})")
        if self.window < 1:
            raise InputError("window", f"must be 1 or more (found {self.window})")
        if self.resampled and self.equal:
            raise InputError("equal", "has no meaning where samples are drawn with replacement: they never end")


class VirtualSubset:
    """The samples of a virtual subset, epoch after epoch.

    Iterating gives one epoch, each sample once, and the next time the next epoch; over all ranks and workers
    every sample comes exactly once an epoch, and their shares differ by one at most. The order is a function of
    `seed` and the epoch: shards in a drawn order, then samples mixed within windows of `window` of them (an index
    is what is mixed, so that a window costs some megabytes).

    With `resampled` the samples never end: shards are drawn with replacement, as open_clip's --dataset-resampled
    does, and every worker and epoch has draws of its own. With `equal` all workers give the same number of
    samples, and the few that are left over, others in each epoch, are not given. `pool` is where the tars lie if
    they have moved. Rank and world size are torch.distributed's where it has begun, else RANK and WORLD_SIZE of
    the environment, unless given.

    Raises InputError for a folder that is no finished virtual subset, PartError naming tars that are not as they
    were when it was made, now or when they are read; nothing is ever skipped.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        pool: str | Path | None = None,
        seed: int = 0,
        shuffle: bool = True,
        window: int = WINDOW,
        resampled: bool = False,
        equal: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.settings = Settings(seed, shuffle, window, resampled, equal)
        self._place = _given_place(rank, world_size)
        self.folder = open_folder(Path(path), None if pool is None else Path(pool))
        check_tars(self.folder)
        self._order = Order(self.folder.sizes, seed, shuffle, window)
        self._reader = Reader(self.folder.tars)
        self._tables: dict[int, pa.Table] = {}
        self._epoch = self._given = 0
        self._resume: Mapping[str, Any] = {}

    # --- the samples --------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Sample]:
        consumer, consumers = self._consumer()
        epoch, given = self._epoch, self._resumed(consumer, consumers)
        self._given, self._resume = given, {}
        for window in self._windows(epoch, consumer, consumers, given):
            for row, members in self._read(window):
                self._given += 1
                yield {"__key__": row.key, "__url__": str(self.folder.tars[row.tar].path), **dict(members)}
        self._epoch, self._given = epoch + 1, 0

    def __len__(self) -> int:
        """Samples of an epoch at this rank, over all its workers (with `equal`, at most).

        Raises TypeError where they never end.
        """
        if self.settings.resampled:
            raise TypeError("samples that are drawn with replacement never end")
        start, stop = share(self._order.total, *self._rank(), equal=self.settings.equal)
        return stop - start

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration, or of the one that is under way."""
        return self._epoch

    @property
    def shards(self) -> Sequence[str]:
        """The names of the virtual shards, in order."""
        return self.folder.names

    def torch(self) -> TorchSubset:
        """The same as a torch IterableDataset, for a DataLoader or as the first stage of a webdataset pipeline."""
        from curate.sampling.for_torch import TorchSubset

        return TorchSubset(self)

    def _windows(self, epoch: int, consumer: int, consumers: int, given: int) -> Iterator[Window]:
        if self.settings.resampled:
            return self._order.resampled(epoch, consumer, given)
        start, stop = share(self._order.total, consumer, consumers, equal=self.settings.equal)
        return self._order.epoch(epoch, min(start + given, stop), stop)

    def _read(self, window: Window) -> Iterator[tuple[Row, list[tuple[str, bytes]]]]:
        listed: list[Row] = []
        for part in window.slices:
            listed += rows_of(self._table(part.shard).slice(part.first, part.stop - part.first))
        rows = [listed[at] for at in window.rows]
        for at, row in enumerate(rows):
            if at + AHEAD < len(rows):
                self._reader.expect(rows[at + AHEAD])
            yield row, self._reader.members(row)

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._tables:
            if len(self._tables) >= TABLES:
                del self._tables[next(iter(self._tables))]
            self._tables[shard] = self.folder.table(shard)
        return self._tables[shard]

    # --- who gives which ----------------------------------------------------------------------------------

    def _rank(self) -> tuple[int, int]:
        if self._place is not None:
            return self._place
        distributed = getattr(sys.modules.get("torch"), "distributed", None)
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def _consumer(self) -> tuple[int, int]:
        (rank, world), (worker, workers) = self._rank(), _worker()
        return rank * workers + worker, world * workers

    def __getstate__(self) -> dict[str, Any]:
        # a process that is started for a DataLoader has not begun torch.distributed
        return {**self.__dict__, "_place": self._rank(), "_tables": {}}

    # --- going on where one stopped -----------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch's, from its beginning unless a state of it was loaded."""
        if epoch != self._epoch:
            self._resume = {}
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands: the epoch, how many of its samples it has given, and of what.

        Of the last iteration that was begun. In a DataLoader's worker that is the worker's own place (torchdata's
        StatefulDataLoader asks for it); for a plain DataLoader see `state_after`.
        """
        consumer, consumers = self._consumer()
        place = self._resume or {"consumer": consumer, "consumers": consumers, "given": self._given}
        return {**self._what(), "epoch": self._epoch, **place}

    def state_after(self, batches: int, *, batch_size: int = 1, workers: int = 0) -> dict[str, Any]:
        """The state after so many `batches` of this epoch at this rank, from a DataLoader with these settings.

        For DataLoader(..., batch_size, num_workers=workers) in its default order; batch_size=None counts as 1.
        """
        (rank, world), each = self._rank(), max(workers, 1)
        first = rank * each
        if self.settings.resampled:
            full, more = divmod(batches, each)
            taken = [full + (worker < more) for worker in range(each)]
        else:
            runs = [
                share(self._order.total, first + w, world * each, equal=self.settings.equal) for w in range(each)
            ]
            taken = batches_of([-(-(stop - start) // batch_size) for start, stop in runs], batches)
        given = {str(first + worker): n * batch_size for worker, n in enumerate(taken)}
        return {**self._what(), "epoch": self._epoch, "consumers": world * each, "given_by": given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` says.

        Raises InputError, naming what differs, for a state of another subset or of other settings.
        """
        for name, value in self._what().items():
            if state.get(name) != value:
                raise InputError(
                    "state", f"is of another {name} ({state.get(name)!r}, here {value!r})", hint=_FRESH
                )
        self._epoch = int(state["epoch"])
        self._resume = {k: v for k, v in state.items() if k in ("consumer", "consumers", "given", "given_by")}

    def _resumed(self, consumer: int, consumers: int) -> int:
        """How many samples of the epoch this process has given already."""
        state = self._resume
        if not state:
            return 0
        if state["consumers"] != consumers:
            what = f"is of {state['consumers']} readers (ranks times workers), here are {consumers}"
            raise InputError("state", what, hint=_FRESH)
        given = state["given_by"] if "given_by" in state else {str(state["consumer"]): state["given"]}
        if str(consumer) not in given:
            raise InputError("state", f"is of reader {', '.join(given)}, not of reader {consumer}", hint=_FRESH)
        return int(given[str(consumer)])

    def _what(self) -> dict[str, Any]:
        return {"format": 1, "subset": self.folder.identity, **asdict(self.settings)}


_FRESH = "go on with the same settings, ranks and workers, or begin an epoch with set_epoch"


def _worker() -> tuple[int, int]:
    """Number of this DataLoader worker, and how many there are."""
    data = getattr(getattr(sys.modules.get("torch"), "utils", None), "data", None)
    info = data.get_worker_info() if data is not None else None
    return (info.id, info.num_workers) if info is not None else (0, 1)


def _given_place(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        raise InputError("rank", "comes with world_size, and world_size with rank")
    if not 0 <= rank < world_size:
        raise InputError("rank", f"must be 0 to {world_size - 1} (found {rank})")
    return rank, world_size
