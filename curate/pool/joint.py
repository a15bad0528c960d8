"""Several pools as one: their samples in the order of the pools, each knowing where it is from.

Each pool keeps its own files: embeddings and scores are made and read per pool. What is of all, the parts, their
identities and the figures over them, is the union's; a part of it is called `<source>--<part>`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from curate import receipts
from curate.errors import InputError, PartError
from curate.pool import Part, Pool, Shard, open_pool
from curate.pool.layout import Layout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    import pyarrow as pa

log = logging.getLogger("curate.pool")

SOURCE = "source"
"""The column that says which pool a sample is from."""
BETWEEN = "--"
"""What stands between a source and the name of its part."""


@dataclass(frozen=True)
class Home:
    """Where a part of the union is from."""

    source: str
    pool: Pool
    part: Part
    """As its own pool calls it."""


@dataclass
class JointPool(Pool):
    """The union of several pools, which `members` has by source, in the order in which they were given.

    `layout` is that of what is written for all of them: of the first, or of a folder of their own.
    """

    members: Mapping[str, Pool]

    @cached_property
    def homes(self) -> dict[str, Home]:
        """The name of each part to where it is from, in the union's order."""
        return {
            source + BETWEEN + part.name: Home(source, pool, part)
            for source, pool in self.members.items()
            for part in pool.parts
        }

    @cached_property
    def parts(self) -> list[Part]:
        """The parts of all members, those of the first before those of the second."""
        return [replace(home.part, name=name) for name, home in self.homes.items()]

    @cached_property
    def shards(self) -> list[Shard]:
        """The shards of all members."""
        return [shard for pool in self.members.values() for shard in pool.shards]

    @property
    def folders(self) -> str:
        """The folders of all members."""
        return ", ".join(pool.folders for pool in self.members.values())

    @property
    def joined(self) -> bool:
        """Whether the samples of every member are rows of metadata."""
        return all(pool.joined for pool in self.members.values())

    def each(self, change: Callable[[Pool], Pool]) -> JointPool:
        """The union of what `change` makes of each member; this one where it makes nothing new."""
        changed = {source: change(pool) for source, pool in self.members.items()}
        same = all(changed[source] is pool for source, pool in self.members.items())
        return self if same else JointPool(self.layout, self.kind, changed)

    # --- samples ------------------------------------------------------------------------------------------

    @cached_property
    def _footers(self) -> dict[str, pa.parquet.FileMetaData | PartError]:
        return {name: home.pool._footers[home.part.name] for name, home in self.homes.items()}

    @cached_property
    def _kinds(self) -> dict[str, pa.DataType]:
        import pyarrow as pa

        found: dict[str, pa.DataType] = {}
        for pool in self.members.values():
            for name, kind in pool._kinds.items():
                if pa.types.is_null(found.get(name, pa.null())):
                    found[name] = kind
        return found | {SOURCE: pa.string()}

    def without(self, name: str) -> list[str]:
        """The readable parts that have no such column."""
        if name == SOURCE:
            return []
        there = {source: set(pool.without(name)) for source, pool in self.members.items()}
        return [part for part in self.rows if (home := self.homes[part]).part.name in there[home.source]]

    @cached_property
    def shard_columns(self) -> frozenset[str]:
        """What only the tables of some member's shards tell of a sample."""
        return frozenset[str]().union(*(p.shard_columns for p in self.members.values())) - self.columns

    def scan(self, part: Part, columns: Sequence[str], *, optional: Iterable[str] = ()) -> pl.LazyFrame:
        """As `Pool.scan`; a column that only this part's pool lacks is all null, `source` says which pool it is."""
        import polars as pl

        home = self.homes[part.name]
        gone = [name for name in columns if name not in home.pool.columns]
        for name in gone:
            if name not in optional:
                self.need_column(name, str(self.layout.root))
        own = [name for name in columns if name != SOURCE]
        frame = home.pool.scan(home.part, own or ["uid"], optional=[*optional, *gone])
        typed = {name: self.null_kind(name) for name in gone if name != SOURCE}
        return frame.with_columns(
            pl.lit(home.source).alias(SOURCE),
            *(pl.lit(None, dtype=kind).alias(name) for name, kind in typed.items()),
        ).select(columns)

    def forget(self) -> None:
        """Look again at what lies on disk, for every member."""
        for pool in self.members.values():
            pool.forget()
        self._look_again()

    def _look_again(self) -> None:
        for name in [n for n in vars(self) if n not in ("layout", "kind", "members")]:
            del vars(self)[name]

    def leave_out(self, broken: Mapping[str, PartError]) -> None:
        """Take parts whose tables turned out broken behind their footers for unreadable, until `forget`."""
        homes = self.homes
        for source, pool in self.members.items():
            mine = {homes[n].part.name: error for n, error in broken.items() if homes[n].source == source}
            if mine:
                pool.leave_out(mine)
        self._look_again()

    def failed(self, part: Part) -> pl.Series:
        """The error code of each sample that has no image here, else null."""
        home = self.homes[part.name]
        return home.pool.failed(home.part)

    def uids(self, part: Part, rows: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.void]:
        """The uids of one part, or of some of its rows. Raises PartError where one of these is not a uid."""
        home = self.homes[part.name]
        return home.pool.uids(home.part, rows)

    @cached_property
    def identities(self) -> dict[str, str]:
        """What each readable part is known by."""
        return {
            name: home.pool.identities[home.part.name]
            for name, home in self.homes.items()
            if home.part.name in home.pool.identities
        }

    def identity_of(self, identities: Mapping[str, str]) -> str:
        """What the union would be known by, if its parts were known by these: the order of the pools counts.

        Of samples with one uid the one of the first pool stays.
        """
        return receipts.digest([list(self.members), dict(identities)])

    def shard_receipt(self, shard: Shard) -> receipts.Receipt | None:
        """The receipt that stands for a shard of some member."""
        owner = next(p for p in self.members.values() if shard in p.shards)
        return owner.shard_receipt(shard)

    @property
    def awaited(self) -> int:
        """Shards that are not here yet, of all downloads that have not finished."""
        return sum(pool.awaited for pool in self.members.values())

    # --- models -------------------------------------------------------------------------------------------

    @property
    def embedded(self) -> dict[str, str]:
        """Models of which some member has vectors of our own, to their folder's slug."""
        return {model: slug for pool in self.members.values() for model, slug in pool.embedded.items()}

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose similarities or vectors some member has."""
        return tuple(dict.fromkeys(model for pool in self.members.values() for model in pool.models))

    @property
    def published(self) -> frozenset[str]:
        """The models whose vectors are published for some member."""
        return frozenset[str]().union(*(pool.published for pool in self.members.values()))


def open_pools(given: Sequence[str | Path], work: str | Path | None = None) -> Pool:
    """The pool in one folder, or the union of those in several: each is DIR, or NAME=DIR for a source of that name.

    Without a name the source is the folder's, with a number behind it where an earlier one has it. `work` takes
    all that is written: for the union in it, for each pool in its folder `work/<source>`; else it goes to each
    pool, and for the union to the first. Raises InputError for a name that can be no folder's, for one that is
    given twice, and for a folder that is given twice.
    """
    named = [_named(str(item)) for item in given]
    if len(named) == 1:
        name, path = named[0]
        if name is not None:
            what = "names a source, and there is one pool"
            raise InputError(f"--pool {given[0]}", what, hint=f"--pool {path}, or a second --pool")
        return open_pool(path, work)
    members: dict[str, Pool] = {}
    for source, path in _sources(named).items():
        members[source] = open_pool(path, Path(work) / source if work else None)
    _check_apart(members)
    for source, pool in members.items():
        if SOURCE in pool.columns:
            log.warning("%s: its column %r is hidden by the names of the pools", source, SOURCE)
    first = next(iter(members.values())).layout
    return JointPool(Layout(first.root, Path(work)) if work else first, "several pools", members)


def _named(given: str) -> tuple[str | None, Path]:
    """NAME and DIR of NAME=DIR, no name where it is a folder as it stands or has no name in front."""
    name, equals, path = given.partition("=")
    if not (path if equals else given):  # as a path it would be the folder that the command runs in
        raise InputError("--pool", f"names no folder (found {given!r})", hint="--pool . is this folder")
    if equals and "/" not in name and os.sep not in name and not Path(given).expanduser().is_dir():
        return name, Path(path).expanduser()
    return None, Path(given).expanduser()


def _sources(named: Sequence[tuple[str | None, Path]]) -> dict[str, Path]:
    """Source to folder, in their order."""
    found: dict[str, Path] = {}
    taken = {name for name, _ in named if name is not None}
    for name, path in named:
        if name is None:
            folder = path.resolve().name or "pool"
            tries = (folder if n == 1 else f"{folder}-{n}" for n in range(1, len(named) + len(taken) + 2))
            source = next(t for t in tries if t not in found and t not in taken)
        else:
            source = name
        plain = source.isprintable() and not source.startswith((".", "_", "-")) and BETWEEN not in source
        if not plain or not source or len(source.encode()) > 60 or any(c in source for c in "/\\:=,{}' \""):
            hint = f"give it another one: --pool NAME={path}"
            raise InputError(f"--pool {path}", f"a source cannot be called {source!r}", hint=hint)
        if source in found:
            raise InputError("--pool", f"two pools are called {source!r}", hint="give each a name of its own")
        found[source] = path
    return found


def _check_apart(members: Mapping[str, Pool]) -> None:
    seen: dict[Path, str] = {}
    for source, pool in members.items():
        root = pool.layout.root.resolve()
        if root in seen:
            what = f"is given twice, as {seen[root]} and {source}"
            raise InputError(str(pool.layout.root), what, hint="give each pool once")
        seen[root] = source
