"""A virtual subset: in place of new shards, an index that says where each sample lies in the pool's own tars.

Its shards hold the samples that real ones would, in the same order under the same keys. `curate.sampling` streams
them. Nothing is copied: tars of the pool that have changed are noticed when it is opened.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from curate.pool.layout import file_identity
from curate.receipts import json_bytes
from curate.shards import write_table
from curate.stages.resharding import LENGTH, OFFSET, OLD, TAR, joined, located
from curate.subset_layout import INDEX, LOOKS, SIZES, TARS

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.engines.local import Tick
    from curate.pool import Pool, Shard
    from curate.receipts import Output
    from curate.stages.placing import Source

COLUMNS = {"key": "key", "uid": "uid", "tar": TAR, "source_key": OLD, "offset": OFFSET, "length": LENGTH}
"""The index's columns, and those of `located`'s rows that they are. A sample's key, its uid, the number of its tar,
its key there, and the byte range of its members."""


def write_shard(output: Output, tick: Tick, sources: Sequence[Source], *_: object) -> Mapping[str, int]:
    """The index of one shard of the samples of `sources`, for `resharding.write_shard`, and called as that is.

    Raises PartError naming a broken source.
    """
    return write_rows(output, tick, joined([located(source, source.number) for source in sources]))


def write_rows(output: Output, tick: Tick, rows: pa.Table, *_: object) -> Mapping[str, int]:
    """The index of one shard of these rows, in their order, for `resharding.write_rows`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table({name: rows[column] for name, column in COLUMNS.items()})
    write_table(output, f"{output.part}.parquet", table)
    tick(len(table), 0)
    return {"samples": len(table), "kept": len(table), "bytes": pc.sum(rows[LENGTH]).as_py()}


def tars(pool: Pool, shards: Sequence[Shard], used: npt.NDArray[np.int32]) -> bytes:
    """The table of the tars that are read from, as Parquet: where they lie, and what they are known by.

    Columns: tar (its number in the pool), root and path (of which the pool's folder is the root), bytes, ends
    (sha256 of the first and last 64 KiB). Raises PartError for a tar that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = np.unique(used).tolist()
    paths = [shards[number].tar.resolve() for number in numbers]
    root = pool.layout.root.resolve()
    with ThreadPoolExecutor(LOOKS) as threads:
        known = list(threads.map(file_identity, paths))
    inside = [path.is_relative_to(root) for path in paths]
    places = [
        (root, p.relative_to(root)) if i else (p.parent, Path(p.name)) for p, i in zip(paths, inside, strict=True)
    ]
    table = pa.table(
        {
            "tar": pa.array(numbers, pa.int32()),
            "root": pa.array([str(folder) for folder, _ in places], pa.string()),
            "path": pa.array([path.as_posix() for _, path in places], pa.string()),
            "bytes": pa.array([k["bytes"] for k in known], pa.int64()),
            "ends": pa.array([k["ends"] for k in known], pa.string()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def files(of_real: Mapping[str, bytes], tars: bytes, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """The files beside the index, of those that stand beside real shards: name to content."""
    kept = {name: data for name, data in of_real.items() if not name.startswith("shards/")}
    listed = json_bytes({f"{name}.parquet": n for name, n in sizes.items()})
    return {**kept, TARS: tars, f"{INDEX}/{SIZES}": listed}
