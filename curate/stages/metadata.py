"""A list made the metadata of a pool, so that it can be filtered before anything is fetched."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import receipts
from curate.disk import disk, fsync_folder, lock, make_folder
from curate.errors import InputError
from curate.pool import open_pool
from curate.pool.layout import Layout, metadata_files
from curate.progress import plural
from curate.stages import drawn

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from curate.fetch.lists import SourceList

FILE_ROWS = 500_000
"""Rows of a metadata file."""
MADE_OF = b"curate.made_of"
"""The entry of each file's Parquet metadata that says which list it was made of."""

_STAGE, _VERSION = "metadata", 1

log = logging.getLogger("curate.download")


def write(layout: Layout, listed: SourceList, *, limit: int | None, sample: float | None) -> int:
    """The rows of a list, or what a limit and a sample leave of it, as POOL/metadata; how many there are.

    Each row has its uid, url and caption, what was wrong with it (list_error), and the list's own columns. The
    folder takes its name when all its files are whole. The same list again is left as it is.
    """
    taken = {"digest": listed.digest, "limit": limit, "sample": sample}
    folder = layout.root / "metadata"
    arriving = layout.root / "metadata-of-list.incomplete"
    make_folder(layout.root)
    with lock(arriving.with_suffix(".lock")), disk(arriving):
        if metadata_files(layout):
            check_made_of(layout, listed.digest)
            if made_of(layout) != taken:
                raise InputError(str(folder), "was made of other rows of this list", hint="another --pool")
            return open_pool(layout.root).n
        shutil.rmtree(arriving, ignore_errors=True)
        rows = drawn.left(drawn.wanted(listed, kept=None, sample=sample, limit=limit), 0)
        if not len(rows):
            raise InputError("--sample", f"leaves no row of the list ({listed.rows:,} rows)")
        spoiled = 0
        for number, start in enumerate(range(0, len(rows), FILE_ROWS)):
            spoiled += _file(arriving, number, listed, rows[start : start + FILE_ROWS], json.dumps(taken))
        shutil.rmtree(arriving / receipts.RECEIPTS)
        arriving.rename(folder)
        fsync_folder(folder.parent)
    if spoiled:
        log.warning(
            "%s: %s of the list cannot be downloaded (column list_error says why)", folder, plural(spoiled, "row")
        )
    return len(rows)


def _file(folder: Path, number: int, listed: SourceList, rows: range | npt.NDArray[np.int64], made_of: str) -> int:
    """One metadata file; how many of its rows the list spoils."""
    import numpy as np

    spoiled = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal spoiled
        for _, table in drawn.picked(listed, np.asarray(rows, np.int64)):
            spoiled += len(table) - table["list_error"].null_count
            if listed.columns.caption is None:
                table = table.drop_columns(["caption"])
            yield table.replace_schema_metadata({MADE_OF: made_of})

    name = f"{number:08d}"
    output = receipts.Output(_STAGE, _VERSION, name, folder, {})
    try:
        drawn.write_groups(output.open(f"{name}.parquet"), tables())
        output.commit({"samples": len(rows)})
    finally:
        output.abandon()
    return spoiled


def made_of(layout: Layout) -> dict[str, Any]:
    """The list that the pool's metadata was made of: its digest, limit and sample; empty for other metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        told = pq.read_schema(metadata_files(layout)[0]).metadata or {}
        made: dict[str, Any] = json.loads(told.get(MADE_OF, b"{}"))
    except (IndexError, OSError, ValueError, pa.ArrowException):
        return {}
    return made


def check_made_of(layout: Layout, digest: str) -> None:
    """Raise InputError unless the pool's metadata was made of the list with this digest."""
    known = made_of(layout).get("digest")
    if known != digest:
        raise InputError(
            str(layout.root / "metadata"),
            "is the list of this pool, and its rows are the samples"
            + (f" (its list's sha256 is {known}; this one's is {digest})" if known else ""),
            hint="leave out --source; a choice among the rows is --selection; another --pool for another list",
        )
