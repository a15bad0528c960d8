"""A virtual subset's folder as a trainer opens it: what it is made of, and the tars that its samples lie in.

`curate.stages.virtual` writes it. Nothing here is cached across processes, so that it can be sent to workers.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from curate.errors import InputError, PartError, UnknownName
from curate.pool.layout import file_identity
from curate.receipts import digest, read_json
from curate.shards import TarWriter, members, read_table, split_name
from curate.subset_layout import INDEX, LOOKS, MARK, SIZES, TARS

if TYPE_CHECKING:
    import pyarrow as pa

OPEN = 128
"""Tars that a process holds open at most."""
NAMED = 5

AGAIN = (
    "make it again with the command that made it (subset.json says from what); a kept copy of the tars does as well"
)


@dataclass(frozen=True)
class Tar:
    """A tar of the pool, as it was when the subset was made."""

    path: Path
    bytes: int
    ends: str
    """sha256 of its first and last 64 KiB."""


class Row(NamedTuple):
    """Where one sample lies, and what it is called here and there."""

    tar: int
    """Its number in `Folder.tars`."""
    offset: int
    length: int
    key: str
    source_key: str


@dataclass(frozen=True)
class Folder:
    """A virtual subset that is whole, and its tars."""

    path: Path
    identity: str
    """A hash of what it was made of: the pool, the selection, the options."""
    names: Sequence[str]
    """Of its shards."""
    sizes: Sequence[int]
    """Samples in each shard."""
    tars: Mapping[int, Tar]
    """The tars by their numbers."""

    def table(self, shard: int) -> pa.Table:
        """The samples of a shard, in order, with `Row`'s columns. Raises PartError where it is broken."""
        path = self.path / INDEX / f"{self.names[shard]}.parquet"
        table = read_table(path, Row._fields, hint=AGAIN)
        if len(table) != self.sizes[shard]:
            what = f"has {len(table):,} rows (subset.json was written for {self.sizes[shard]:,})"
            raise PartError(str(path), what, hint=AGAIN)
        return table.select(list(Row._fields))


def rows_of(table: pa.Table) -> list[Row]:
    """The rows of (a slice of) a shard's table."""
    return [Row(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def open_folder(path: Path, pool: Path | None = None) -> Folder:
    """The virtual subset in a folder. `pool` is where the tars lie if they have moved.

    Raises InputError for what is no virtual subset or is not whole.
    """
    if not (path / MARK).is_file():
        raise InputError(
            str(path), f"is no virtual subset (it has no {MARK})", hint="curate subset --virtual makes one"
        )
    mark = read_json(path / MARK)
    if not mark.get("made_of", {}).get("virtual"):
        raise InputError(
            str(path),
            "is a subset with shards of its own, no virtual one",
            hint="its shards/*.tar are read as they stand, by webdataset for example",
        )
    if not mark.get("done"):
        raise InputError(str(path), "is not finished", hint="run the same curate subset --virtual again")
    sizes = read_json(path / INDEX / SIZES, hint=AGAIN)
    names = [Path(name).stem for name in sizes]
    return Folder(path, digest(mark["made_of"]), names, list(sizes.values()), _tars(path / TARS, pool))


def _tars(path: Path, pool: Path | None) -> dict[int, Tar]:
    rows = read_table(path, hint=AGAIN).to_pylist()
    roots = {row["root"] for row in rows}
    if pool is not None and len(roots) > 1:
        raise InputError("pool", f"the tars lie in {len(roots)} pools ({', '.join(sorted(roots))}), not in one")
    return {row["tar"]: Tar((pool or Path(row["root"])) / row["path"], row["bytes"], row["ends"]) for row in rows}


def check_tars(folder: Folder) -> None:
    """Look at every tar; raise PartError naming those that are not there or have another size than they had."""
    with ThreadPoolExecutor(LOOKS) as threads:
        looked = zip(folder.tars.values(), threads.map(_looked_at, folder.tars.values()), strict=True)
        wrong = [f"{tar.path} {what}" for tar, what in looked if what]
    if wrong:
        listed = "; ".join(wrong[:NAMED]) + ("; ..." if len(wrong) > NAMED else "")
        what = f"{len(wrong)} of its {len(folder.tars)} tars are not as they were when it was made ({listed})"
        raise PartError(str(folder.path), what, hint=f"where the pool has moved, name it (pool=DIR); else {AGAIN}")


def _looked_at(tar: Tar) -> str | None:
    """What is seen to be wrong with a tar without reading it, as a clause."""
    try:
        size = tar.path.stat().st_size
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return _other_size(size, tar)


def _other_size(size: int, tar: Tar) -> str | None:
    return None if size == tar.bytes else f"has {size:,} bytes, not the {tar.bytes:,} of then"


@dataclass
class Reader:
    """Reads samples from tars by range. Each process has one of its own."""

    tars: Mapping[int, Tar]
    held: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """Descriptor of each tar that is open, the one that was used last at the end."""
    known: set[int] = field(default_factory=set)
    """Tars whose ends were found to be what they were."""

    def __getstate__(self) -> dict[str, Any]:
        return {"tars": self.tars, "held": OrderedDict(), "known": set()}

    def __del__(self) -> None:
        self.close()

    def expect(self, row: Row) -> None:
        """Have the disk begin with a sample that is read soon."""
        os.posix_fadvise(self._descriptor(row.tar), row.offset, row.length, os.POSIX_FADV_WILLNEED)

    def members(self, row: Row) -> list[tuple[str, bytes]]:
        """The sample's members as (extension, bytes). Raises PartError naming a tar that is not as it was."""
        tar = self.tars[row.tar]
        run = memoryview(self._read(row))
        try:
            found = list(members(run, str(tar.path)))
        except PartError as error:
            raise _changed(tar, error.what) from error
        named = [split_name(member.name) for member in found]
        if other := next((key for key, _ in named if key != row.source_key), None):
            raise _changed(tar, f"holds {other!r} at byte {row.offset:,}, where {row.source_key!r} was")
        if not found or found[-1].end != row.length:
            raise _changed(tar, f"does not hold the whole of {row.source_key!r} at byte {row.offset:,}")
        contents = (bytes(run[m.offset : m.offset + m.size]) for m in found)
        return [(extension, content) for (_, extension), content in zip(named, contents, strict=True)]

    def close(self) -> None:
        """Close the tars."""
        while self.held:
            os.close(self.held.popitem()[1])

    def _read(self, row: Row) -> bytearray:
        descriptor, tar = self._descriptor(row.tar), self.tars[row.tar]
        run = bytearray(row.length)
        done = 0
        while done < row.length:
            try:
                got = os.preadv(descriptor, [memoryview(run)[done:]], row.offset + done)
            except OSError as error:
                raise PartError(str(tar.path), f"cannot be read ({error.strerror})") from error
            if not got:
                ends = row.offset + row.length
                raise _changed(tar, f"is cut short (it ends at {row.offset + done:,}, a sample at {ends:,})")
            done += got
        return run

    def _descriptor(self, number: int) -> int:
        if number in self.held:
            self.held.move_to_end(number)
            return self.held[number]
        while len(self.held) >= OPEN:
            os.close(self.held.popitem(last=False)[1])
        tar = self.tars[number]
        try:
            descriptor = os.open(tar.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PartError(str(tar.path), f"cannot be read ({error.strerror})") from error
        self.held[number] = descriptor
        if number not in self.known:
            now = file_identity(tar.path)
            if wrong := _other_size(now["bytes"], tar):
                raise _changed(tar, wrong)
            if now["ends"] != tar.ends:
                raise _changed(tar, "begins or ends otherwise than then")
            self.known.add(number)
        return descriptor


def write_tar(folder: Folder, shard: str, sink: BinaryIO) -> None:
    """Write one shard as a tar: the bytes that the shard of a subset with tars of its own has.

    `shard` may end in .tar. Raises UnknownName, or PartError for a tar of the pool that is not as it was.
    """
    name = shard.removesuffix(".tar")
    if name not in folder.names:
        raise UnknownName(str(folder.path), "shard", name, folder.names)
    tar, reader = TarWriter(sink), Reader(folder.tars)
    for row in rows_of(folder.table(folder.names.index(name))):
        tar.add(row.key, reader.members(row))
    tar.finish()
    reader.close()


def _changed(tar: Tar, what: str) -> PartError:
    return PartError(str(tar.path), f"is not as it was when the virtual subset was made: it {what}", hint=AGAIN)
