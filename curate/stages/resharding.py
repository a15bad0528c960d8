"""One new shard: samples' blocks read by range from the pool's shards, named anew and written in order.

Contents are never touched. A tar that we wrote needs no parsing beyond its headers' names and sizes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from curate.errors import PartError
from curate.shards import BLOCK, TarWriter, header, members, split_name, write_table
from curate.stages.placing import Source

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.engines.local import Tick
    from curate.receipts import Output

READ = 2 << 20
"""At most this many bytes are read at once, unless one sample has more; they stay in a core's cache."""

Run = tuple[str, str, int, int]
"""A sample in a tar: its key there, its new key, offset and length of its blocks."""


def write_shard(output: Output, tick: Tick, sources: Sequence[Source]) -> Mapping[str, int]:
    """One new shard: tar, table, index and stats, named as the part. Raises PartError naming a broken source."""
    import pyarrow as pa

    name = output.part
    tar = _Copies(output.open(f"{name}.tar"))
    tables = []
    for source in sources:
        table = _rows(source)
        old, offsets, lengths = _runs(source, table)
        new = [f"{uid}-{copy}" for uid, copy in zip(table["uid"].to_pylist(), source.copies.tolist(), strict=True)]
        tar.copy(source.shard.tar, zip(old, new, offsets, lengths, strict=True))
        tables.append(table.set_column(table.column_names.index("key"), "key", pa.array(new)))
        tick(len(new), 0)
    tar.finish()
    write_table(output, f"{name}.parquet", joined(tables))
    write_table(output, f"{name}.index.parquet", tar.index())
    output.write(f"{name}_stats.json", json.dumps({"successes": len(tar.keys)}).encode())
    return {"samples": len(tar.keys), "kept": len(tar.keys), "bytes": tar.position}


def _rows(source: Source) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = source.shard.table
    try:
        return pq.ParquetFile(path).read(use_threads=False).take(source.rows)
    except (pa.ArrowException, OSError) as error:
        raise PartError(str(path), f"is not a readable Parquet file ({error})") from error


def _runs(source: Source, table: pa.Table) -> tuple[list[str], list[int], list[int]]:
    """Key, offset and length in the tar of each row of `table`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = source.shard.index
    try:
        index = pq.ParquetFile(path).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise PartError(str(path), f"is not a readable Parquet file ({error})") from error
    keys = table["key"].cast(pa.string())
    at = pc.index_in(keys, value_set=index["key"])
    if at.null_count:
        lost = keys.filter(pc.is_null(at))[0].as_py()
        raise PartError(str(path), f"does not say where the key {lost!r} lies")
    taken = index.take(at)
    return keys.to_pylist(), taken["offset"].to_pylist(), taken["length"].to_pylist()


@dataclass
class _Copies(TarWriter):
    """A tar of samples copied from other tars: read straight into the buffer that it is written from."""

    buffer: bytearray = field(default_factory=lambda: bytearray(READ))
    filled: int = 0

    def copy(self, path: Path, wanted: Iterable[Run]) -> None:
        """Append samples of the tar at `path` under their new keys."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PartError(str(path), f"cannot be read ({error.strerror})") from error
        try:
            for begin, length, runs in _adjacent(wanted):
                view = self._room(length)
                _read(fd, view, begin, path)
                samples = [(old, new, view[at - begin : at - begin + size]) for old, new, at, size in runs]
                renamed = [_rename(run, old, new) for old, new, run in samples]
                if all(renamed):
                    for _, new, run in samples:
                        self._note(new, len(run))
                    self.filled += length
                else:
                    self.flush()
                    for done, (old, new, run) in zip(renamed, samples, strict=True):
                        self.add_raw(new, bytes(run) if done else _rewritten(run, old, new, path))
        finally:
            os.close(fd)

    def finish(self) -> None:
        self.flush()
        super().finish()

    def flush(self) -> None:
        """Write what the buffer holds."""
        self.sink.write(memoryview(self.buffer)[: self.filled])
        self.filled = 0

    def _room(self, length: int) -> memoryview:
        """The next `length` bytes of the buffer."""
        if self.filled + length > len(self.buffer):
            self.flush()
        if length > len(self.buffer):
            self.buffer = bytearray(length)
        return memoryview(self.buffer)[self.filled : self.filled + length]

    def _note(self, key: str, length: int) -> None:
        self.keys.append(key)
        self.offsets.append(self.position)
        self.lengths.append(length)
        self.position += length


def _adjacent(wanted: Iterable[Run]) -> Iterator[tuple[int, int, list[Run]]]:
    """Runs that follow each other, gathered: (offset, length, runs) of at most `READ` bytes, or one run."""
    begin = end = 0
    gathered: list[Run] = []
    for run in wanted:
        offset, length = run[2:]
        if gathered and (offset != end or end + length - begin > READ):
            yield begin, end - begin, gathered
            gathered = []
        if not gathered:
            begin = offset
        end = offset + length
        gathered.append(run)
    if gathered:
        yield begin, end - begin, gathered


def _read(fd: int, view: memoryview, offset: int, path: Path) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if not got:
            raise PartError(
                str(path),
                f"is cut short (it ends at {offset + done:,}, a sample at {offset + len(view):,})",
                hint="curate verify says what else is wrong; without the tar, its samples are listed as missing",
            )
        done += got


_OURS = header("", 0)
_REST = sum(_OURS[:124]) + sum(_OURS[135:148]) + 8 * 32 + sum(_OURS[156:])
"""What all headers of ours add to their checksum: all but name and size, the checksum itself as blanks."""


def _rename(run: memoryview, old: str, new: str) -> bool:
    """Put a sample's blocks under a new key where they lie; false, and nothing done, where we did not write them.

    A header is ours if it equals one that we would write, but for name and size, and its checksum is right.
    """
    before, after = f"{old}.".encode("utf-8", "surrogateescape"), f"{new}.".encode()
    changes: list[tuple[int, bytes, bytes]] = []
    position = 0
    while position < len(run):
        head = bytes(run[position : position + BLOCK])
        if (head[100:124], head[135:148], head[156:]) != (_OURS[100:124], _OURS[135:148], _OURS[156:]):
            return False
        name, size = head[:100].rstrip(b"\0"), head[124:135]
        rest = _REST + sum(size)
        if not name.startswith(before) or head[148:156] != b"%06o\0 " % (rest + sum(name)):
            return False
        name = after + name[len(before) :]
        if len(name) > 100:
            return False
        changes.append((position, name.ljust(100, b"\0"), b"%06o\0 " % (rest + sum(name))))
        length = int(size, 8)
        position += BLOCK + length + -length % BLOCK
    if position != len(run):
        return False
    for position, name, checksum in changes:
        run[position : position + 100] = name
        run[position + 148 : position + 156] = checksum
    return True


def _rewritten(run: memoryview, old: str, new: str, path: Path) -> bytes:
    """A sample's blocks under a new key, written by whomever; contents and extensions as they are.

    Raises PartError where they are damaged or not those of `old`.
    """
    pieces: list[bytes | memoryview] = []
    end = 0
    for member in members(run, str(path)):
        key, extension = split_name(member.name)
        if key != old:
            raise PartError(str(path), f"holds {key!r} where its index says {old!r}")
        pieces += (header(f"{new}.{extension}", member.size), run[member.offset : member.end])
        end = member.end
    if end != len(run):  # blocks of zeros are where a tar ends, so its reader does not complain
        what = f"does not hold the whole of {old!r} where its index says"
        raise PartError(str(path), what, hint="curate verify says which samples are hurt")
    return b"".join(pieces)


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
