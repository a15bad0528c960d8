"""Rows drawn from a list: which ones a selection, a sample or a limit asks for, and the file that keeps them.

Rows are known by their places in the list, which stay what they are when it grows. Drawn rows are copied to
POOL/sources/NNNN.parquet, so that a download can go on when the selection or the list is gone; the file says
each row's place, so that what was asked for once is not asked for again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from curate import receipts, uids
from curate.errors import InputError, PartError
from curate.filter_api import chance
from curate.pool.layout import Layout
from curate.stages.sources import Entry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from curate.fetch.lists import SourceList

    Mask = npt.NDArray[np.bool_]
    Pairs = npt.NDArray[np.void]

STAGE, VERSION = "sources", 1
PLACE = "list_row"
"""The column of a file of drawn rows that says where each stands in the list."""
SEED = 0
"""The seed of `--sample`: with the same fraction the rule `random` would draw about the same samples."""
GROUP = 10_000
"""Rows of a group in the Parquet files that are written here."""


def wanted(source: SourceList, *, kept: Pairs | None, sample: float | None, limit: int | None) -> int | Mask:
    """The rows that are asked for: the number of the first ones, or one truth for each row of the list.

    `kept` are the sorted uids of a selection: the first row of each is wanted. `sample` wants each row whose
    uid's chance is below it. `limit` is of the rows that these leave.
    """
    import numpy as np

    if kept is None and sample is None:
        return source.rows if limit is None else min(limit, source.rows)
    mask, seen = np.zeros(source.rows, bool), np.zeros(0 if kept is None else len(kept), bool)
    row = 0
    for pairs in _pairs(source):
        these = np.ones(len(pairs), bool)
        if kept is not None:
            at = uids.find(kept, pairs)
            these = at >= 0
            rows = np.flatnonzero(these)
            _, first = np.unique(at[rows], return_index=True)
            these[np.setdiff1d(rows, rows[first])] = False
            rows = rows[np.sort(first)]
            these[rows[seen[at[rows]]]] = False
            seen[at[rows]] = True
        if sample is not None:
            these &= chance(pairs["f0"], pairs["f1"], SEED) < sample
        mask[row : row + len(pairs)] = these
        row += len(pairs)
    if limit is not None:
        mask[np.flatnonzero(mask)[limit:]] = False
    return mask


def _pairs(source: SourceList) -> Iterator[Pairs]:
    """The uids of a list, some rows at a time; of a file without one, what its name makes."""
    from curate.fetch.rows import each

    if source.files[0].form == "parquet" and source.columns.uid and not source.columns.local:
        yield from _given(source)
        return
    for table in each(source.part(0, source.rows)):
        yield _made(table)


def _made(table: pa.Table) -> Pairs:
    import pyarrow as pa

    from curate.fetch.folder import FILE, OFFSET

    column = table["uid"]
    if column.null_count:
        names = zip(column.to_pylist(), table[FILE].to_pylist(), table[OFFSET].to_pylist(), strict=True)
        column = pa.chunked_array(
            [[uid or uids.derive_uid(f"{name}\0{offset}", None) for uid, name, offset in names]]
        )
    return uids.to_pairs(column)


def _given(source: SourceList) -> Iterator[Pairs]:
    """The column of uids, without reading the others where it is whole."""
    import pyarrow as pa

    from curate.fetch.rows import column_of, read_rows

    row = 0
    for cells in column_of(source.part(0, source.rows), str(source.columns.uid)):
        try:
            yield uids.to_pairs(cells)
        except (ValueError, pa.ArrowException):  # some are missing or wrong: these are derived
            yield _made(read_rows(source.part(row, len(cells))))
        row += len(cells)


def taken(layout: Layout, entries: Sequence[Entry], line: Sequence[int], rows: int) -> int | Mask:
    """The rows of the list that earlier entries have: the number of the first ones, or a truth for each."""
    import numpy as np

    first = sum(entries[place].rows for place in line if not entries[place].drawn)
    if not any(entries[place].drawn for place in line):
        return min(first, rows)
    mask = np.zeros(rows, bool)
    mask[:first] = True
    for place in line:
        if entries[place].drawn:
            at = places(layout, place, entries[place])
            mask[at[at < rows]] = True
    return mask


def left(want: int | Mask, have: int | Mask) -> range | npt.NDArray[np.int64]:
    """The places of the rows that are asked for and nobody has: a range, or, where rows are drawn, all of them."""
    import numpy as np

    if isinstance(want, int) and isinstance(have, int):
        return range(have, max(have, want))
    rows = len(have) if isinstance(want, int) and not isinstance(have, int) else len(want)  # type: ignore[arg-type]
    return np.flatnonzero(_mask(want, rows) & ~_mask(have, rows))


def _mask(rows: int | Mask, total: int) -> Mask:
    import numpy as np

    if not isinstance(rows, int):
        return rows
    mask = np.zeros(total, bool)
    mask[:rows] = True
    return mask


def shards_with(layout: Layout, place: int, entry: Entry, size: int, want: int | Mask) -> list[int]:
    """Which of the entry's shards hold a row that is asked for, counted in the entry."""
    import numpy as np

    rows = places(layout, place, entry) if entry.drawn else np.arange(entry.first_row, entry.first_row + entry.rows)
    if isinstance(want, int):
        hit = rows < want
    else:
        hit = np.zeros(len(rows), bool)
        inside = rows < len(want)
        hit[inside] = want[rows[inside]]
    return [int(n) for n in np.unique(np.flatnonzero(hit) // size)]


# --- the file ---------------------------------------------------------------------------------------------


def path_of(layout: Layout, place: int) -> Path:
    """The file of the entry at `place`."""
    return layout.drawn / f"{place:04d}.parquet"


def digest(source: SourceList, rows: npt.NDArray[np.int64]) -> str:
    """What rows drawn from a list are known by."""
    hashed = hashlib.sha256(source.digest.encode())
    hashed.update(rows.astype("<i8").tobytes())
    return hashed.hexdigest()


def write(layout: Layout, place: int, source: SourceList, rows: npt.NDArray[np.int64], known_by: str) -> None:
    """The rows at these places of a list, in its order, as the file of the entry at `place`."""
    import pyarrow as pa

    receipts.sweep(layout.drawn)
    path = path_of(layout, place)
    output = receipts.Output(STAGE, VERSION, path.stem, layout.drawn, {"rows": known_by})
    try:
        tables = (table.add_column(0, PLACE, pa.array(at)) for at, table in picked(source, rows))
        write_groups(output.open(path.name), tables)
        output.commit({"samples": len(rows)})
    finally:
        output.abandon()


def picked(source: SourceList, rows: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], pa.Table]]:
    """The rows at these ascending places of a list, some at a time: their places, and read_rows' table of them."""
    import pyarrow as pa

    from curate.fetch.rows import each

    first, done = int(rows[0]), 0
    for table in each(source.part(first, int(rows[-1]) + 1 - first)):
        until = int(rows.searchsorted(first + len(table)))
        at = rows[done:until]
        yield at, table.take(pa.array(at - first))
        first, done = first + len(table), until


def write_groups(sink: BinaryIO, tables: Iterable[pa.Table]) -> None:
    """Tables of one schema as one Parquet file, in groups of rows that are worth reading alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None
    held: list[pa.Table] = []
    for table in chain(tables, [None]):
        held += [] if table is None else [table]
        if held and (table is None or sum(map(len, held)) >= GROUP):
            group = pa.concat_tables(held)
            writer = writer or pq.ParquetWriter(sink, group.schema, compression="zstd")
            writer.write_table(group)
            held = []
    if writer is not None:
        writer.close()


def opened(layout: Layout, place: int, entry: Entry, root: Path | None = None) -> SourceList:
    """The rows of a file of drawn rows, as a list; `root` holds the files that they stand for, if they do.

    Raises PartError where the file is not as it was written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from curate.fetch.lists import ListFile, SourceList
    from curate.fetch.rows import OWN, Columns

    path = _whole(layout, place)
    schema = pq.read_schema(path).remove_metadata()
    others = pa.schema([f for f in schema if f.name not in OWN and f.name != PLACE])
    columns = Columns(
        "url", "caption", "uid", others.serialize().to_pybytes(), "list_error", entry.kind == "folder"
    )
    size = path.stat().st_size
    file = ListFile(path, "parquet", entry.rows, size, entry.digest, (), tuple(schema.names))
    return SourceList((file,), columns, root)


def places(layout: Layout, place: int, entry: Entry) -> npt.NDArray[np.int64]:
    """Where the rows of a file of drawn rows stand in the list. Raises InputError where the file is gone."""
    import numpy as np
    import pyarrow.parquet as pq

    try:
        column = pq.ParquetFile(_whole(layout, place)).read(columns=[PLACE]).column(0)
    except PartError as error:
        raise InputError(error.where, error.what, hint=error.hint) from None
    return np.concatenate([np.empty(0, np.int64), *(chunk.to_numpy() for chunk in column.chunks)])


def _whole(layout: Layout, place: int) -> Path:
    path = path_of(layout, place)
    receipt = receipts.read_receipt(layout.drawn, path.stem)
    damage = receipt.damage(layout.drawn) if receipt else {path.name: "has no receipt"}
    for name, what in damage.items():
        raise PartError(
            str(layout.drawn / name),
            f"{what}; it holds the rows that were drawn",
            hint="bring it back, or another --pool",
        )
    return path
