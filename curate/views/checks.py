"""The checks of `verify`, a part at a time: bytes against receipts, tables against tars, images as decoders see."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import receipts, shards, uids
from curate.errors import CurateError, PartError
from curate.pool import Part, Shard
from curate.pool.names import column_in
from curate.receipts import Receipt, Written
from curate.runner import check_counts

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_STAGES = ("download", "subset")
"""Stages whose parts are a tar, the table beside it and its index."""

NAMED = 5
"""So many keys are named where several are wrong."""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be."""

    path: str
    what: str
    grave: bool = True
    """Whether it is damage; a foreign file or a left-over is told, and costs nothing."""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass
class Checked:
    """What was looked at, and what was found."""

    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    samples: int = 0
    images: int = 0
    """Images that were decoded, in foreign shards."""

    def add(self, other: Checked) -> None:
        """Take in what another process found."""
        self.problems += other.problems
        self.files += other.files
        self.bytes += other.bytes
        self.samples += other.samples
        self.images += other.images

    def wrong(self, path: Path | str, what: str) -> None:
        """Note damage."""
        self.problems.append(Problem(str(path), what))


# --- parts with a receipt ---------------------------------------------------------------------------------


def check_part(folder: Path, part: str, receipt: Receipt) -> Checked:
    checked = Checked()
    where = receipts.receipt_path(folder, part)
    if receipt.fingerprint != receipts.digest(receipt.what):
        checked.wrong(where, "was changed: its fingerprint is not that of what it says")
    try:
        if any(end in receipt.counts for end in ("ok", "failed", "kept", "dropped", "unjudged")):
            check_counts(str(where), receipt.counts)
    except (PartError, KeyError) as error:
        checked.wrong(where, getattr(error, "what", "counts no samples"))
    whole = {
        name: _check_file(checked, folder / name, written, receipt) for name, written in receipt.outputs.items()
    }
    if receipt.stage in SHARD_STAGES:
        checked.samples += receipt.counts.get("samples", 0)
        _check_shard(checked, folder, part, receipt, whole)
    return checked


def _check_file(checked: Checked, path: Path, written: Written, receipt: Receipt) -> bool:
    """Whether the file's bytes are those that were written; else the difference is noted."""
    checked.files += 1
    try:
        size, digest = path.stat().st_size, receipts.file_sha256(path)
    except FileNotFoundError:
        checked.wrong(path, "is missing")
        return False
    except OSError as error:
        checked.wrong(path, f"cannot be read ({error.strerror or error})")
        return False
    checked.bytes += size
    if (size, digest) == (written.bytes, written.sha256):
        return True
    change = (
        "bytes changed since it was written"
        if size == written.bytes
        else f"has {size:,} bytes, {written.bytes:,} were written"
    )
    checked.wrong(path, change + _rows_now(path, receipt))
    return False


def _rows_now(path: Path, receipt: Receipt) -> str:
    """How the rows of a table that changed differ in number from the samples counted, as a clause."""
    if path.suffix != ".parquet" or path.name != f"{path.name.split('.', 1)[0]}.parquet":
        return ""
    try:
        rows = len(shards.read_table(path))
    except PartError:
        return ", and it is not a readable Parquet file"
    samples = receipt.counts.get("samples")
    return f", and it has {rows:,} rows where {samples:,} were counted" if samples not in (None, rows) else ""


def _check_shard(checked: Checked, folder: Path, part: str, receipt: Receipt, whole: Mapping[str, bool]) -> None:
    """Table, tar and index of one of our shards against each other and against the receipt's counts."""
    paths = [folder / f"{part}{ending}" for ending in (".tar", ".parquet", ".index.parquet")]
    if not all(p.is_file() for p in paths):
        return
    tar, table_path, index_path = paths
    table = index = None
    try:
        table, index = shards.read_table(table_path), shards.read_table(index_path)
    except PartError as error:
        if all(whole.values()):
            checked.wrong(error.where, error.what)
    try:
        keys, offsets, lengths = shards.read_index(tar)
    except PartError as error:
        checked.wrong(tar, error.what)
        return
    if table is None or index is None:
        return
    _check_rows(checked, table_path, table, keys, tar)
    if [keys, offsets, lengths] != [index[c].to_pylist() for c in ("key", "offset", "length")]:
        checked.wrong(index_path, "does not say where the tar's samples lie")
    good = receipt.counts.get("ok", receipt.counts.get("kept"))
    if (len(table), len(keys)) != (receipt.counts.get("samples"), good) and all(whole.values()):
        checked.wrong(
            table_path, f"has {len(table):,} rows and {len(keys):,} images, other than its receipt counts"
        )
    if not whole.get(tar.name, True):
        _name_changed_images(checked, tar, table, (keys, offsets, lengths))


def _check_rows(checked: Checked, path: Path, table: pa.Table, keys: Sequence[str], tar: Path) -> None:
    """Rows that say that an image was stored against the keys of the tar, and uids."""
    import pyarrow as pa
    import pyarrow.compute as pc

    codes = pc.is_null(table["error_code"]) if "error_code" in table.column_names else None
    if codes is None and "status" in table.column_names:
        codes = pc.equal(table["status"], "success")
    stored = table["key"] if codes is None else table["key"].filter(codes)
    wanted, there = set(stored.cast(pa.string()).to_pylist()), set(keys)
    if lost := sorted(wanted - there, key=str):
        checked.wrong(tar, f"lacks {len(lost):,} samples that its table has ({_some(lost)})")
    if extra := sorted(there - wanted):
        checked.wrong(tar, f"has {len(extra):,} samples that its table has not as stored ({_some(extra)})")
    if (name := column_in(table.column_names, "uid")) is not None:
        try:
            uids.to_pairs(table[name])
        except ValueError as error:
            checked.wrong(path, f"column {name!r}: {error}")


def _name_changed_images(
    checked: Checked, tar: Path, table: pa.Table, index: tuple[list[str], list[int], list[int]]
) -> None:
    """Which images are not those that were stored, where the tar can still be walked."""
    stored = dict(zip(table["key"].to_pylist(), table["stored_sha256"].to_pylist(), strict=True))
    changed = []
    with shards.mapped(tar) as data:
        for key, offset, length in zip(*index, strict=True):
            image = shards.image_of(shards.sample_members(data, offset, length, str(tar)))
            if image is None or hashlib.sha256(image[1]).hexdigest() != stored.get(key):
                changed.append(key)
    if changed:
        checked.wrong(tar, f"{len(changed):,} images are not those that were stored ({_some(changed)})")


def _some(keys: Sequence[Any]) -> str:
    return ", ".join(str(k) for k in keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")


# --- what has no receipt ----------------------------------------------------------------------------------


def check_foreign(shard: Shard) -> Checked:
    """A shard that others made: its structure, each image's decoding, its table against the tar."""
    checked = Checked(files=1)
    try:
        index = shards.read_index(shard.tar)
    except PartError as error:
        checked.wrong(shard.tar, error.what)
        return checked
    checked.samples = len(index[0])
    with shards.mapped(shard.tar) as data:
        checked.bytes = len(data)
        broken = list(_broken_images(data, index, shard.tar))
    checked.images = len(index[0])
    for key, what in broken[:NAMED]:
        checked.wrong(shard.tar, f"{key}: {what}")
    if len(broken) > NAMED:
        checked.wrong(shard.tar, f"{len(broken) - NAMED:,} further images do not decode")
    if shard.foreign_table is not None:
        checked.files += 1
        try:
            table = shards.read_table(shard.foreign_table)
        except PartError as error:
            checked.wrong(shard.foreign_table, error.what)
            return checked
        checked.samples = len(table)
        if "key" in table.column_names:
            _check_rows(checked, shard.foreign_table, table, index[0], shard.tar)
        else:
            checked.wrong(shard.foreign_table, "has no column 'key'")
    return checked


def _broken_images(
    data: Any, index: tuple[list[str], list[int], list[int]], tar: Path
) -> Iterator[tuple[str, str]]:
    from PIL import Image

    for key, offset, length in zip(*index, strict=True):
        image = shards.image_of(shards.sample_members(data, offset, length, str(tar)))
        if image is None:
            yield key, "has no image"
            continue
        try:
            with Image.open(io.BytesIO(image[1])) as opened:
                opened.load()
        except Exception as error:  # PIL's plug-ins raise what they like
            yield key, f"its image does not decode ({type(error).__name__})"


def check_metadata(part: Part) -> Checked:
    """A metadata file: readable to its end, uids well-formed, and the npz beside it as long."""
    from curate.pool import npz

    checked = Checked(files=1)
    try:
        table = shards.read_table(part.path)
    except PartError as error:
        checked.wrong(part.path, error.what)
        return checked
    checked.samples, checked.bytes = len(table), part.path.stat().st_size
    _check_texts(checked, part.path, table)
    if (name := column_in(table.column_names, "uid")) is not None:
        try:
            uids.to_pairs(table[name])
        except ValueError as error:
            checked.wrong(part.path, f"column {name!r}: {error}")
    if part.npz is not None:
        checked.files += 1
        try:
            for name in npz.names(part.npz):
                rows = len(npz.member(part.npz, name))
                if rows != len(table):
                    checked.wrong(part.npz, f"{name} has {rows:,} rows, the metadata {len(table):,}")
        except (PartError, ValueError) as error:
            checked.wrong(part.npz, getattr(error, "what", str(error)))
    return checked


def _check_texts(checked: Checked, path: Path, table: pa.Table) -> None:
    """Text columns hold UTF-8: Arrow does not look, polars refuses the file."""
    import pyarrow as pa

    for name in table.column_names:
        try:
            table[name].validate(full=True)
        except pa.ArrowException as error:
            checked.wrong(path, f"column {name!r}: {str(error).splitlines()[0]}")


def check_loose(checked: Checked, loose: Sequence[Path]) -> None:
    """Small files that have no receipt: JSON that can be read, and a subset's files as its mark has them."""
    for path in loose:
        checked.files += 1
        if path.suffix == ".json":
            try:
                raw = json.loads(path.read_bytes())
                receipts.check_format(raw, path)
            except (OSError, ValueError, AttributeError):
                checked.wrong(path, "is not readable JSON")
            except CurateError as error:
                checked.wrong(path, error.what)
            else:
                if path.name == "subset.json":
                    _check_mark(checked, path, raw)


def _check_mark(checked: Checked, path: Path, raw: Mapping[str, Any]) -> None:
    if not raw.get("done"):
        checked.wrong(path, "says that the subset is not finished: run the same curate subset again")
    for name, written in raw.get("files", {}).items():
        file = path.parent / name
        if not file.is_file():
            checked.wrong(file, "is missing")
        elif receipts.file_sha256(file) != written["sha256"]:
            checked.wrong(file, "bytes changed since it was written")
