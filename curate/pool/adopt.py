"""Adoption: what a pool that others made lacks is derived once, so that every stage finds one form.

A foreign shard gets a table with uids and error codes and an index of its tar; metadata without uids gets a
table of them. All lie in the pool's `derived` folder; the foreign files stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import runner, shards
from curate.errors import PartError
from curate.pool import Part, Pool, Shard, foreign, open_pool
from curate.pool.layout import file_identity
from curate.pool.names import column_in

if TYPE_CHECKING:
    from curate.engines.local import Tick
    from curate.receipts import Output

STAGE, VERSION = "adopt", 1

log = logging.getLogger("curate.adopt")


def adopt(pool: Pool, *, workers: int) -> Pool:
    """The pool with all that is derived for its foreign files; `pool` itself where nothing is foreign.

    A part that cannot be read (a tar that is cut short, a broken table) is logged and left without a table, so
    that `Pool.unreadable`, or the missing `Shard.table`, names it; the others go on.
    """
    tasks: list[runner.Task] = []
    for shard in pool.shards:
        if not shard.ours:
            _add(tasks, shard.name, pool, [shard.tar, shard.foreign_table], _adopt_shard, (shard,))
    files = [part for part in pool.parts if part.shard is None and part.name in pool.rows]
    bare = [part for part in files if not _has_uids(part)]
    # where other files have uids, one without is damaged: uids of another kind would name other samples
    for part in bare if len(bare) == len(files) else []:
        _add(tasks, f"{part.name}.uids", pool, [part.path], _adopt_metadata, (part.path,))
    if not tasks:
        return pool
    summary = runner.run(STAGE, VERSION, tasks, workers=min(workers, len(tasks)))
    for error in summary.failed.values():
        log.warning("%s; its samples are left out", error)
    return open_pool(pool.layout.root, pool.layout.work)


def _add(
    tasks: list[runner.Task], name: str, pool: Pool, files: list[Path | None], function: Any, args: tuple[Any, ...]
) -> None:
    try:
        known = [file_identity(f) if f else None for f in files]
    except PartError as error:
        log.warning("%s; its samples are left out", error)
        return
    tasks.append(runner.Task(name, pool.layout.derived, {"files": known}, function, args))


def _has_uids(part: Part) -> bool:
    import pyarrow.parquet as pq

    return column_in(pq.read_schema(part.path).names, "uid") is not None


def _adopt_shard(output: Output, tick: Tick, shard: Shard) -> Mapping[str, int]:
    index = shards.read_index(shard.tar)
    if shard.foreign_table is None:
        table = foreign.table_of_tar(shard.tar, index)
    else:
        table = foreign.completed(shards.read_table(shard.foreign_table), index[0], shard.foreign_table)
    shards.write_table(output, shard.table.name, table)
    shards.write_table(output, shard.index.name, shards.index_table(*index))
    failed = len(table) - table["error_code"].null_count
    tick(len(table), failed)
    return {"samples": len(table), "ok": len(table) - failed, "failed": failed}


def _adopt_metadata(output: Output, tick: Tick, path: Path) -> Mapping[str, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    wanted = [c for c in (column_in(names, "url"), column_in(names, "caption")) if c]
    made = foreign.uids_of(shards.read_table(path, wanted or None), path)
    shards.write_table(output, f"{path.stem}.uids.parquet", pa.table({"uid": made}))
    tick(len(made), 0)
    return {"samples": len(made), "ok": len(made)}
