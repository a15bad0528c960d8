"""Shards: tars in WebDataset form, their index, and tables; written deterministically, read by byte range.

A sample is a run of members that share a key (the member's name up to the first dot of its last component).
The index beside a shard says where each run lies, so that a sample is one read.
"""

from __future__ import annotations

import mmap
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from curate.errors import CurateError, PartError

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.receipts import Output

BLOCK = 512
RECORD = 10240
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Extensions that hold a sample's image, in order of preference."""


# --- writing ----------------------------------------------------------------------------------------------


def header(name: str, size: int) -> bytes:
    """A ustar header of a regular file with fixed mtime, mode and owner (a long name gets a pax record)."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > 100 or size >= 8 << 30 or not name.isascii():
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o444
        return info.tobuf(tarfile.PAX_FORMAT)
    head = bytearray(_TEMPLATE)
    head[: len(encoded)] = encoded
    head[124:135] = b"%011o" % size
    head[148:156] = b"%06o\0 " % sum(head)  # the template's checksum field is blanks, as the rule wants
    return bytes(head)


def _template() -> bytes:
    info = tarfile.TarInfo("")
    info.mode = 0o444
    blank = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    blank[148:156] = b" " * 8
    return bytes(blank)


_TEMPLATE = _template()


@dataclass
class TarWriter:
    """Appends samples to a sequential sink and remembers where each lies."""

    sink: BinaryIO
    keys: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    position: int = 0

    def add(self, key: str, members: Sequence[tuple[str, bytes]]) -> None:
        """One sample: its members as (extension, bytes), in the order given."""
        pieces: list[bytes] = []
        for extension, data in members:
            pieces += (header(f"{key}.{extension}", len(data)), data, bytes(-len(data) % BLOCK))
        self.add_raw(key, b"".join(pieces))

    def add_raw(self, key: str, run: bytes) -> None:
        """One sample as the run of blocks that it is in a tar."""
        self.keys.append(key)
        self.offsets.append(self.position)
        self.lengths.append(len(run))
        self.sink.write(run)
        self.position += len(run)

    def finish(self) -> None:
        """The end of the archive, padded to a record as tar does."""
        end = 2 * BLOCK
        self.sink.write(bytes(end + -(self.position + end) % RECORD))

    def index(self) -> pa.Table:
        """key, offset, length of each sample, in tar order."""
        return index_table(self.keys, self.offsets, self.lengths)


def index_table(keys: list[str], offsets: list[int], lengths: list[int]) -> pa.Table:
    """The index of a shard: key, and the byte range of its run of members."""
    import pyarrow as pa

    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "offset": pa.array(offsets, pa.int64()),
            "length": pa.array(lengths, pa.int64()),
        }
    )


def write_table(
    output: Output, name: str, table: pa.Table, *, varies: bool = False, dictionaries: Sequence[str] | None = None
) -> None:
    """`table` as zstd Parquet, one file of a part; `dictionaries` names the columns worth coding so (None: all)."""
    import pyarrow.parquet as pq

    coded: Any = True if dictionaries is None else list(dictionaries)
    pq.write_table(table, output.open(name, varies=varies), compression="zstd", use_dictionary=coded)


def read_table(path: Path, columns: Sequence[str] | None = None, *, hint: str | None = None) -> pa.Table:
    """A table, or some of its columns, read by one thread. Raises PartError as `readable` says."""
    import pyarrow.parquet as pq

    with readable(path, hint=hint):
        # pq.read_table would add columns for folders that are called key=value
        return pq.ParquetFile(path).read(columns=None if columns is None else list(columns), use_threads=False)


@contextmanager
def readable(path: Path, kind: type[CurateError] = PartError, *, hint: str | None = None) -> Iterator[None]:
    """What pyarrow raises inside for a Parquet file that is missing or broken becomes `kind`, naming the file."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError as error:
        raise kind(str(path), "is missing", hint=hint or "curate verify says what else is") from error
    except (pa.ArrowException, OSError) as error:
        raise kind(str(path), f"is not a readable Parquet file ({error})", hint=hint) from error


def table_bytes(table: pa.Table, *, dictionaries: Sequence[str], small: Sequence[str]) -> pa.Buffer:
    """A table of very many rows as Parquet that is quickly written: not compressed, without statistics.

    `dictionaries` names the columns of few words, `small` those of integers that differ little.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="none",
        use_dictionary=list(dictionaries),
        column_encoding=dict.fromkeys(small, "DELTA_BINARY_PACKED"),
        write_statistics=False,
    )
    return sink.getvalue()


# --- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A regular file in a tar: name, where its header begins, where its bytes lie, where the next begins."""

    name: str
    start: int
    offset: int
    size: int
    end: int


def members(data: Any, where: str = "tar", start: int = 0) -> Iterator[Member]:
    """The regular members in a buffer of tar blocks, until its end or the archive's.

    Understands ustar, GNU long names and pax headers. Raises PartError where the blocks are cut short or are
    not a tar.
    """
    total = len(data)
    position = first = start
    name: str | None = None
    size_override: int | None = None
    while position + BLOCK <= total:
        block = bytes(data[position : position + BLOCK])
        if block[0] == 0 and block.count(0) == BLOCK:
            return
        kind, size = block[156:157], _size(block, where, position)
        if size_override is not None and kind in (b"0", b"\0"):
            size, size_override = size_override, None
        offset = position + BLOCK
        end = offset + size + -size % BLOCK
        if offset + size > total:
            raise PartError(where, f"is cut short ({total:,} bytes, a member ends at {offset + size:,})")
        if kind in (b"x", b"L"):
            content = bytes(data[offset : offset + size])
            if kind == b"L":
                name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                records = _pax(content)
                name = records.get("path", name)
                size_override = int(records["size"]) if "size" in records else None
        else:
            if kind in (b"0", b"\0"):
                yield Member(name if name is not None else _name(block), first, offset, size, end)
            name, first = None, end
        position = end
    if position < total:
        raise PartError(where, f"is cut short ({total:,} bytes, not whole blocks)")
    if first < position:
        raise PartError(where, f"is cut short ({total:,} bytes, a long name without its member)")


def _size(block: bytes, where: str, position: int) -> int:
    text = block[124:136]
    try:
        if text[0] & 0x80:
            size = int.from_bytes(text[1:], "big")
        else:
            size = int(text.strip(b" \0") or b"0", 8)
        stated = int(block[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        stated = -1
    if stated != sum(block) - sum(block[148:156]) + 256:
        raise PartError(where, f"is not a tar (no header at byte {position:,})")
    return size


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:262] == b"ustar" and block[263:265] == b"00" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _pax(content: bytes) -> dict[str, str]:
    records: dict[str, str] = {}
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit():
            break
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[int(length) :]
    return records


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's (key, extension) of a member: the key ends at the first dot of the last component."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def read_index(tar: Path) -> tuple[list[str], list[int], list[int]]:
    """Keys, offsets and lengths of all samples, by walking the headers.

    Raises PartError for a tar that is cut short, has no end, holds a key twice or a sample two files of one
    extension, or has a name that is not UTF-8.
    """
    extensions: set[str] = set()
    keys: list[str] = []
    offsets: list[int] = []
    ends: list[int] = []
    with mapped(tar) as data:
        for member in members(data, str(tar)):
            key, extension = split_name(member.name)
            if not keys or key != keys[-1]:
                extensions.clear()
                keys.append(key)
                offsets.append(member.start)
                ends.append(member.end)
            ends[-1] = member.end
            if extension in extensions:
                raise PartError(str(tar), f"holds {member.name!r} twice")
            extensions.add(extension)
            if not member.name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in member.name):
                raise PartError(str(tar), f"holds a name that is not UTF-8 ({member.name!a})")
        last = ends[-1] if ends else 0
        if len(data) < last + BLOCK:
            raise PartError(str(tar), f"is cut short ({len(data):,} bytes, no end of archive)")
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(k for k in keys if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise PartError(str(tar), f"holds the key {twice!r} twice")
    return keys, offsets, [e - o for o, e in zip(offsets, ends, strict=True)]


class mapped:  # noqa: N801 - used as a statement
    """A file mapped read-only inside the block; an empty file is empty bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.map: mmap.mmap | None = None

    def __enter__(self) -> mmap.mmap | bytes:
        try:
            with self.path.open("rb") as stream:
                self.map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            return b""
        except OSError as error:
            raise PartError(str(self.path), f"cannot be read ({error.strerror or error})") from error
        return self.map

    def __exit__(self, *_: object) -> None:
        if self.map is not None:
            self.map.close()


def sample_members(data: Any, offset: int, length: int, where: str = "tar") -> dict[str, bytes]:
    """Extension to bytes of the sample whose run of blocks lies at `offset` in `data`."""
    run = data[offset : offset + length]
    if len(run) < length:
        raise PartError(where, f"is cut short (a sample at byte {offset:,} has {len(run):,} of {length:,} bytes)")
    return {split_name(m.name)[1]: bytes(run[m.offset : m.offset + m.size]) for m in members(run, where)}


def image_of(sample: dict[str, bytes]) -> tuple[str, bytes] | None:
    """The extension and bytes of a sample's image, or None where it has none."""
    for extension in IMAGE_EXTENSIONS:
        if extension in sample:
            return extension, sample[extension]
    return None
