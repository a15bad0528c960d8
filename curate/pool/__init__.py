"""The pool: the only place that knows paths, formats and other people's column names.

The samples of a pool are the rows of its metadata where it has any, else of its shards' tables; they come in
*parts*, one a metadata file or shard. What was computed per shard is joined to them by uid (`pool.join`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from curate import receipts, uids
from curate.errors import InputError, PartError, UnknownName
from curate.pool import columns as columns_
from curate.pool import layout as layouts
from curate.pool.layout import Layout, Shard
from curate.pool.names import PUBLISHED, column_in, machine_names
from curate.shards import readable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    import pyarrow as pa

__all__ = ["Part", "Pool", "Shard", "open_pool"]

log = logging.getLogger("curate.pool")

FAILED = "error_code"
"""The column of every table that says why a sample could not be had."""


@dataclass(frozen=True)
class Part:
    """Some of the pool's samples: one metadata file, or the table of one shard."""

    name: str
    path: Path
    uids: Path | None = None
    """A derived table with column `uid`, for metadata that has none."""
    npz: Path | None = None
    """Published vectors, row-aligned."""
    shard: Shard | None = None


@dataclass
class Pool:
    """A folder of candidate samples, opened. Nothing is read until it is asked for."""

    layout: Layout
    kind: str

    @cached_property
    def shards(self) -> list[Shard]:
        """All shards, by name."""
        return layouts.shards(self.layout)

    @cached_property
    def parts(self) -> list[Part]:
        """The parts that the samples come in, by name."""
        files = layouts.metadata_files(self.layout)
        if not files:
            return [Part(s.name, s.table, shard=s) for s in self.shards]
        return [self._metadata_part(path) for path in files]

    def _metadata_part(self, path: Path) -> Part:
        npz = path.with_suffix(".npz")
        derived = self.layout.derived / f"{path.stem}.uids.parquet"
        return Part(path.stem, path, derived if derived.is_file() else None, npz if npz.is_file() else None)

    @property
    def folders(self) -> str:
        """Where the pool lies, for messages: its folder, or all of several pools."""
        return str(self.layout.root)

    @property
    def joined(self) -> bool:
        """Whether samples are rows of metadata, so that results per shard are joined by uid."""
        return bool(self.parts) and self.parts[0].shard is None

    @property
    def per_shard(self) -> str:
        """What results made per shard go with: the `shard`, or the `part` where these are the same."""
        return "shard" if self.joined else "part"

    # --- samples ------------------------------------------------------------------------------------------

    @cached_property
    def _footers(self) -> dict[str, pa.parquet.FileMetaData | PartError]:
        read: dict[str, pa.parquet.FileMetaData | PartError] = {}
        for part in self.parts:
            try:
                read[part.name] = _footer(part.path)
            except PartError as error:
                read[part.name] = error
        return read

    @cached_property
    def rows(self) -> dict[str, int]:
        """Samples per part, from the tables' footers; a part whose table cannot be read is left out."""
        return {name: f.num_rows for name, f in self._footers.items() if not isinstance(f, PartError)}

    @cached_property
    def unreadable(self) -> dict[str, PartError]:
        """The parts whose table is missing or broken."""
        return {name: f for name, f in self._footers.items() if isinstance(f, PartError)}

    @property
    def n(self) -> int:
        """The number of samples."""
        return sum(self.rows.values())

    @cached_property
    def _kinds(self) -> dict[str, pa.DataType]:
        """The machine's name of each column that some part has, to the type of the first that says one."""
        import pyarrow as pa

        found: dict[str, pa.DataType] = {}
        for part in self.parts:
            if part.name in self.rows:
                kinds = self._file_kinds(part)
                for name, column in machine_names(kinds).items():
                    if pa.types.is_null(found.get(name, pa.null())):
                        found[name] = kinds[column]
        return found

    @cached_property
    def columns(self) -> frozenset[str]:
        """The names of all columns that some part has, the machine's name for each."""
        return frozenset(self._kinds)

    def without(self, name: str) -> list[str]:
        """The readable parts that have no such column."""
        there = (p for p in self.parts if p.name in self.rows)
        return [p.name for p in there if column_in(self._file_kinds(p), name) is None]

    def covered_by(self, name: str) -> bool:
        """Whether every readable part has this column."""
        return not self.without(name)

    @cached_property
    def shard_columns(self) -> frozenset[str]:
        """What only the shards' tables tell of a sample; empty where samples are their rows."""
        if not self.joined:
            return frozenset()
        return frozenset(self._shard_names) - self.columns

    @cached_property
    def _shard_names(self) -> dict[str, str]:
        """The machine's name of each column of the shards' tables, to theirs; read off the first that is whole."""
        for shard in self.shards:
            try:
                return machine_names(_footer(shard.table).schema.to_arrow_schema().names)
            except PartError:
                continue
        return {}

    def shard_column(self, name: str) -> str:
        """What the shards' tables call the column that the machine calls `name`."""
        return self._shard_names[name]

    def _file_kinds(self, part: Part) -> dict[str, pa.DataType]:
        """The columns of a part's files under the names that these give them, to their types."""
        import pyarrow as pa

        known = self._footers.get(part.name) if part.shard is None or not self.joined else None
        footer = _footer(part.path) if known is None else known
        if isinstance(footer, PartError):
            raise footer
        schema = footer.schema.to_arrow_schema()
        kinds = dict(zip(schema.names, schema.types, strict=True))
        return kinds | {"uid": pa.string()} if part.uids else kinds

    def scan(self, part: Part, columns: Sequence[str], *, optional: Iterable[str] = ()) -> pl.LazyFrame:
        """The named columns of one part under the machine's names, NaN as null, in the part's order.

        Raises InputError for a column that no part has, PartError for one that holds something else than its
        name says; one that only this part lacks is all null.
        """
        import polars as pl

        kinds = self._file_kinds(part)
        maybe = set(optional)
        chosen = []
        for name in columns:
            source = column_in(kinds, name)
            if source is not None:
                chosen.append(columns_.read(part.path, name, source, kinds[source]).alias(name))
            else:
                if name not in maybe:
                    self.need_column(name, str(self.layout.root))
                chosen.append(pl.lit(None, dtype=self.null_kind(name)).alias(name))
        frame = pl.scan_parquet(part.path, glob=False)
        if part.uids:
            frame = pl.concat([frame, pl.scan_parquet(part.uids, glob=False)], how="horizontal")
        floats = pl.selectors.float()
        # with_columns before select: a select of nothing but nulls would be one row
        return frame.with_columns(chosen).select(columns).with_columns(floats.fill_nan(None))

    def null_kind(self, name: str) -> pl.DataType | None:
        """The type of a column where it is missing: as in the parts that have it, for rules count on one."""
        return columns_.null_kind(name, self._kinds.get(name))

    def each(self, change: Callable[[Pool], Pool]) -> Pool:
        """What `change` makes of it; of several pools, of each."""
        return change(self)

    def need_column(self, name: str, where: str) -> None:
        """Raise InputError, naming the columns that are there, unless some part has this one."""
        if name not in self.columns and name not in self.shard_columns:
            hint = "take a pool whose tables have it, or set what reads it otherwise"
            raise UnknownName(where, "column", name, self.columns, hint=hint)

    def forget(self) -> None:
        """Look again at what lies on disk: models and derived tables may have been added."""
        for name in [n for n in vars(self) if n not in ("layout", "kind")]:
            del vars(self)[name]

    def narrowed(self, part: Part) -> Pool:
        """The pool for work on `part` alone: it knows what this one does, of single parts only about that one.

        Small enough to be sent to another process, and no other part is looked at again there.
        """
        one = Pool(self.layout, self.kind)
        known = vars(one)
        # of a pool with metadata a shard is no part; one part still tells which kind of pool it is
        known["parts"] = [p for p in self.parts if p == part] or self.parts[:1]
        known["_footers"] = {p.name: self._footers[p.name] for p in one.parts}
        known["_kinds"], known["columns"] = self._kinds, self.columns
        for name in ("_shard_names", "shard_columns", "embedded", "published"):
            if name in vars(self):
                known[name] = vars(self)[name]
        if "published" in vars(self):
            known["widths"] = dict(self.widths)
        return one

    def leave_out(self, broken: Mapping[str, PartError]) -> None:
        """Take parts whose tables turned out broken behind their footers for unreadable, until `forget`."""
        footers = {**self._footers, **broken}
        self.forget()
        vars(self)["_footers"] = footers

    def failed(self, part: Part) -> pl.Series:
        """The error code of each sample that has no image here, else null; a String series of the part's rows."""
        import polars as pl

        frame = self.scan(part, [FAILED], optional=[FAILED])
        with reading(frame, part):
            return frame.collect()[FAILED].cast(pl.String)

    def uids(self, part: Part, rows: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.void]:
        """The uids of one part, or of some of its rows, as pairs of u8, in its order.

        Raises PartError where one of these is not a uid.
        """
        import polars as pl

        path = part.uids or part.path
        schema = _footer(path).schema.to_arrow_schema()
        name = column_in(schema.names, "uid")
        if name is None:
            hint = "other files of this pool have uids: bring this one again, or take it out of the pool"
            raise PartError(str(path), "has no column 'uid'", hint=hint)
        frame = pl.scan_parquet(path, glob=False).select(columns_.uid(name, schema.field(name).type))
        with reading(frame, part):
            # polars decodes strings several times as fast as pyarrow
            column = frame.collect().to_series()
        chosen = column if rows is None else column.filter(pl.Series(rows))
        try:
            return uids.to_pairs(chosen.to_arrow(compat_level=pl.CompatLevel.oldest()))
        except ValueError as error:
            if rows is not None:
                self.uids(part)  # names the row by its place in the part
            raise PartError(str(path), f"column 'uid': {error}") from error

    @cached_property
    def identities(self) -> dict[str, str]:
        """What each readable part is known by: its receipt's identity, or a hash of the foreign file's ends."""
        known = {}
        for part in self.parts:
            if part.name in self.rows:
                known[part.name] = self._identity(part)
        return known

    def _identity(self, part: Part) -> str:
        if part.shard is not None and (receipt := self.shard_receipt(part.shard)):
            return receipt.identity
        return receipts.digest(layouts.file_identity(part.path))

    def identity(self) -> str:
        """What the whole pool is known by: changes when a part is added, taken away or changed."""
        return self.identity_of(self.identities)

    def identity_of(self, identities: Mapping[str, str]) -> str:
        """What the whole pool would be known by, if its parts were known by these."""
        return receipts.digest(identities)

    def shard_receipt(self, shard: Shard) -> receipts.Receipt | None:
        """The receipt that stands for a shard: its download's, or its adoption's where it is foreign."""
        folder = shard.tar.parent if shard.ours else self.layout.derived
        return receipts.read_receipt(folder, shard.name)

    @cached_property
    def awaited(self) -> int:
        """Shards of the list that this pool is downloaded from that are not here: its download has not finished."""
        if not self.layout.sources.is_file():
            return 0
        try:
            listed = [int(entry["shards"]) for entry in receipts.read_json(self.layout.sources)["sources"]]
        except (PartError, KeyError, TypeError, ValueError):
            return 0  # the file is told as broken
        return max(0, sum(listed) - sum(shard.ours for shard in self.shards))

    # --- models -------------------------------------------------------------------------------------------

    @cached_property
    def embedded(self) -> dict[str, str]:
        """Models with vectors of our own, to their folder's slug, from each folder's model.json."""
        found = {}
        folder = self.layout.work / "embeddings"
        for path in sorted(folder.glob("*/model.json")) if folder.is_dir() else []:
            try:
                raw = receipts.read_json(path)
            except PartError as error:
                log.error("%s; the vectors beside it are not read", error)
            else:
                found[str(raw.get("model", path.parent.name))] = path.parent.name
        return found

    @cached_property
    def widths(self) -> dict[tuple[str, str, str], tuple[Path, int]]:
        """Of each kind of vectors (model, side, origin) a file, and how many numbers a vector has there.

        Of published ones what most of the first few files have; others are added when they are read.
        """
        from curate.pool import vectors

        return vectors.widths(self)

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The models whose similarities or vectors this pool has, published ones first."""
        published = [
            model
            for model, names in PUBLISHED.items()
            if names.similarity in self.columns or self._with_arrays(names.image)
        ]
        return tuple(dict.fromkeys([*published, *self.embedded]))

    @cached_property
    def arrays(self) -> dict[str, set[str]]:
        """The arrays of each part's npz; none for one that cannot be read. Parts without one are left out."""
        from curate.pool import npz

        found: dict[str, set[str]] = {}
        for part in self.parts:
            if part.npz:
                try:
                    found[part.name] = set(npz.names(part.npz))
                except PartError:
                    found[part.name] = set()  # who reads its vectors names it
        return found

    def _with_arrays(self, *names: str) -> int:
        """How many parts have all these arrays."""
        return sum(there.issuperset(names) for there in self.arrays.values())

    @cached_property
    def published(self) -> frozenset[str]:
        """The models whose image and text vectors are published for every part.

        An npz that is there but is broken or lacks them costs its part alone, unless the model's vectors were
        also made here, which then are those that are read.
        """
        if not self.parts or len(self.arrays) < len(self.parts):
            return frozenset()
        having = {model: self._with_arrays(n.image, n.text) for model, n in PUBLISHED.items()}
        return frozenset(m for m, n in having.items() if n == len(self.parts) or (n and m not in self.embedded))


def open_pool(path: str | Path, work: str | Path | None = None) -> Pool:
    """The pool in a folder as it stands: ours, DataComp's, img2dataset's, tars alone or metadata alone.

    `work` takes all that `curate` writes, for a pool that is read-only. Raises InputError where the folder is
    missing or holds no pool.
    """
    layout = layouts.find(Path(path), Path(work) if work else None)
    return Pool(layout, layouts.kind(layout))


@contextmanager
def reading(frame: pl.LazyFrame, part: Part) -> Iterator[None]:
    """An exception inside becomes a PartError where it is the part's own `frame` that cannot be read.

    A lazy frame is read together with what a rule makes of it, and polars does not say which of them failed.
    """
    try:
        yield
    except Exception as error:
        import polars as pl

        try:
            frame.collect()
        except (OSError, pl.exceptions.PolarsError) as cause:
            what = f"cannot be read ({str(cause).splitlines()[0]})"
            raise PartError(str(part.path), what, hint="curate verify says what else is") from error
        raise


def _footer(path: Path) -> pa.parquet.FileMetaData:
    import pyarrow.parquet as pq

    with readable(path):
        return pq.read_metadata(path)


def need_shards(pool: Pool) -> list[Shard]:
    """The pool's shards. Raises InputError where it has none: nothing can be computed from pixels."""
    if not pool.shards:
        raise InputError(
            str(pool.layout.root),
            "has no shards, so no pixels (found: metadata alone)",
            hint="curate download --pool DIR fetches the images",
        )
    return pool.shards
