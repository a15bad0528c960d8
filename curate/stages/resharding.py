"""One new shard: the tar of its samples, the table of their rows, the index and the stats.

Its rows come with four columns of ours, which say where each sample lies and what it is called there; they and
the boxes of faces, where these matter, are not written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curate.errors import PartError
from curate.shards import BLOCK, header, read_table, write_table
from curate.stages.columns import ints, numbers, texts
from curate.stages.copying import Copies, Runs, members_of
from curate.stages.placing import Source

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.engines.local import Tick
    from curate.receipts import Output
    from curate.stages.blurring import Faces

TAR, OFFSET, LENGTH, OLD = "_curate_tar", "_curate_offset", "_curate_length", "_curate_key"
BOXES, TURNED = "_curate_boxes", "_curate_turned"
PRIVATE = (TAR, OFFSET, LENGTH, OLD, BOXES, TURNED)
BLURRED = "blurred"
"""The column that says which pictures are not those of the pool."""


def write_shard(
    output: Output, tick: Tick, sources: Sequence[Source], faces: Faces | None = None
) -> Mapping[str, int]:
    """One new shard of the samples of `sources`, in their order. Raises PartError naming a broken source."""
    rows = joined([located(source, place) for place, source in enumerate(sources)])
    return write_rows(output, tick, rows, [source.shard.tar for source in sources], faces)


def located(source: Source, place: int) -> pa.Table:
    """The rows that a source gives, under their new keys, and where each sample lies; its tar is called `place`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table, index = read_table(source.shard.table).take(ints(source.rows)), read_table(source.shard.index)
    keys = table["key"].cast(pa.string()).combine_chunks()
    at = pc.index_in(keys, value_set=index["key"])
    if at.null_count:
        lost = keys.filter(pc.is_null(at))[0].as_py()
        raise PartError(str(source.shard.index), f"does not say where the key {lost!r} lies")
    uid = table["uid"].cast(pa.string()).combine_chunks()
    new = pc.binary_join_element_wise(uid, ints(source.copies).cast(pa.string()), texts(["-"])[0])
    table = table.set_column(table.column_names.index("key"), "key", new)
    more: dict[str, Any] = {
        TAR: ints(np.full(len(table), place, dtype=np.int32)),
        OFFSET: index["offset"].take(at),
        LENGTH: index["length"].take(at),
        OLD: keys,
    }
    if source.boxes is not None:
        more[BOXES] = source.boxes.array()
        more[TURNED] = pa.array([source.turned] * len(table))
    for name, column in more.items():
        table = table.append_column(name, column)
    return table


def write_rows(
    output: Output, tick: Tick, rows: pa.Table, tars: Sequence[Path], faces: Faces | None
) -> Mapping[str, int]:
    """One new shard of these rows, in order, named as the part; what cannot be changed is a row that failed."""
    name = output.part
    runs = Runs(
        tars,
        numbers(rows[TAR], np.int32),
        numbers(rows[OFFSET], np.int64),
        numbers(rows[LENGTH], np.int64),
        rows[OLD].combine_chunks(),
        rows["key"].combine_chunks(),
    )
    table = rows.drop_columns([c for c in PRIVATE if c in rows.column_names])
    tar = Copies(output.open(f"{name}.tar", past_cache=True))
    if faces is None:
        tar.copy(runs, tick=tick)
    else:
        table = _changed(tar, runs, rows, table, faces, tick)
    tar.finish()
    failed = sorted(tar.refused)
    keys = runs.new
    if failed:
        stays = np.ones(len(keys), dtype=np.bool_)
        stays[failed] = False
        keys = keys.take(ints(np.flatnonzero(stays)))
    write_table(output, f"{name}.parquet", table)
    write_table(output, f"{name}.index.parquet", tar.index(keys))
    output.write(f"{name}_stats.json", json.dumps({"successes": len(keys)}).encode())
    counts = {"samples": len(table), "kept": len(keys), "failed": len(failed), "bytes": tar.position}
    if faces is not None:
        changed = table[BLURRED].to_pylist().count(True) if faces.blur else 0
        counts |= {"blurred": changed}
    for error in tar.refused.values():
        counts[f"code:{error.code}"] = counts.get(f"code:{error.code}", 0) + 1
    return counts


# --- samples with faces -----------------------------------------------------------------------------------


def _changed(tar: Copies, runs: Runs, rows: pa.Table, table: pa.Table, faces: Faces, tick: Tick) -> pa.Table:
    """Copy the samples, those with boxes changed; the table with what is true of them now."""
    from curate.stages.blurring import Changes

    boxes = rows[BOXES].to_pylist()
    changes = Changes(faces, table, boxes, rows[TURNED].to_pylist())

    def change(at: int, run: memoryview) -> bytes:
        path, old, new = runs.tars[runs.tar[at]], runs.old[at].as_py(), runs.new[at].as_py()
        found = {
            extension: bytes(run[member.offset : member.offset + member.size])
            for member, extension in members_of(run, old, path)
        }
        pieces: list[bytes] = []
        for extension, data in changes.members(at, found):
            pieces += (header(f"{new}.{extension}", len(data)), data, bytes(-len(data) % BLOCK))
        return b"".join(pieces)

    tar.copy(runs, tick=tick, changed=[at for at, listed in enumerate(boxes) if listed], change=change)
    facts = {at: dict(said) for at, said in changes.facts.items() if said}
    for at, error in tar.refused.items():
        facts[at] = {"status": "failed_to_resize", "error_code": error.code, "error_message": error.what}
    if faces.blur:
        import pyarrow as pa

        blurred = [at in facts and at not in tar.refused for at in range(len(table))]
        place = table.column_names.index(BLURRED) if BLURRED in table.column_names else None
        if place is not None:  # of a subset whose pictures were blurred before
            before = table[BLURRED].to_pylist()
            blurred = [now or bool(then) for now, then in zip(blurred, before, strict=True)]
            table = table.drop_columns([BLURRED])
        table = table.append_column(BLURRED, pa.array(blurred, pa.bool_()))
    return _corrected(table, facts)


def _corrected(table: pa.Table, facts: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    """The table with some cells replaced, row to column to value; columns that it has not are left out."""
    import pyarrow as pa

    for name in sorted({name for said in facts.values() for name in said} & set(table.column_names)):
        place = table.column_names.index(name)
        values = table[name].to_pylist()
        for row, said in facts.items():
            values[row] = said.get(name, values[row])
        kind = table.schema.field(name).type
        table = table.set_column(place, name, pa.array(values, pa.string() if pa.types.is_null(kind) else kind))
    return table


# --- tables of several shards -----------------------------------------------------------------------------


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
