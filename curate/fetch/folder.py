"""Images that are on this machine already, as a list: a folder of files, or of tars in WebDataset form.

The folder is walked once, in order of name, and written down as lines of JSON: one line an image, with the file
and the bytes of it that are the image, its caption and what else its .json says. That text is a list like any
other, so whatever is promised of lists holds for folders too, growth included: a line says what its file is
known by (its size and a hash of its ends), so the same text means the same files.

Only regular files below the folder are read. Of a tar only headers, captions and .json are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.errors import InputError, PartError, no_such
from curate.fetch import records
from curate.fetch.lists import ListFile, SourceList
from curate.fetch.rows import LOCAL, Columns
from curate.receipts import file_sha256
from curate.shards import mapped, members, split_name
from curate.uids import is_uid

log = logging.getLogger("curate.fetch")

FILE, OFFSET, LENGTH = LOCAL
"""Columns of such a list: the file's name below the folder, and the range of its bytes."""
IMAGES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif"}
    | {"jp2", "jxl", "ppm", "pgm"}
)
"""Endings of names that are taken for images."""

_IDENTITY = "local_identity"
_OURS = frozenset({FILE, OFFSET, LENGTH, _IDENTITY, "uid", "url", "caption", "list_error"})
_TEXTS = ("txt", "json")
_LISTS = (".parquet", ".pq", ".csv", ".tsv", ".tab", ".jsonl", ".ndjson")
_MAX_TEXT = 1 << 24
_ENDS = 1 << 12
_TAR_ENDS = 1 << 16


def holds_images(source: Path) -> bool:
    """Whether `source` is a folder of images or tars, or one tar, and not of lists.

    Raises InputError for a folder that holds both. A table beside a tar that has its name is part of the tar.
    """
    if not source.is_dir():
        return source.suffix.lower() == ".tar" and source.is_file()
    image = _first_image(source)
    if image is None:
        return False
    for path in sorted(source.iterdir()):
        if path.name.lower().removesuffix(".gz").endswith(_LISTS) and not _beside_a_tar(path):
            raise InputError(
                str(source),
                f"holds images and lists (found: {image.relative_to(source)}, {path.name})",
                hint=f"--source {path} for the list alone; a folder of images has no list in it",
            )
    return True


def _first_image(source: Path) -> Path | None:
    for path, _ in _walk(source, _Left()):
        if _ending(path.name) in IMAGES or path.suffix.lower() == ".tar":
            return path
    return None


def open_folder(source: Path) -> SourceList:
    """The images of a folder, or of one tar, as a list; raises InputError where there are none.

    The list is in a temporary file that is gone with it. What is left out is told in warnings: what is no
    regular file or lies elsewhere, names that are neither images nor their texts, the rest of a broken tar.
    """
    if not source.exists():
        raise no_such(source, "file or folder", like=Path.exists, hint="--source FILE_OR_FOLDER")
    left, text = _Left(), _Text()
    with text.path.open("w", encoding="ascii") as stream:
        for line in _lines(source, left):
            stream.write(json.dumps(line) + "\n")
    left.tell(source)
    size = text.path.stat().st_size
    if not size:
        raise InputError(str(source), "holds no image", hint="names of images end in .jpg, .png, .webp, ...")
    scan = records.scan(text.path, "jsonl")
    kinds = {name: pa.type_for_alias(kind) for name, kind in scan.columns.items()}
    held = ListFile(text.path, "jsonl", scan.rows, size, file_sha256(text.path), scan.marks, tuple(kinds))
    taken = {"uid", "url", "caption", _IDENTITY}
    others = pa.schema([pa.field(n, kind) for n, kind in kinds.items() if n not in taken])
    columns = Columns("url", "caption", "uid", others.serialize().to_pybytes(), local=True)
    return SourceList((held,), columns, source if source.is_dir() else source.parent, text)


class _Text:
    """A temporary file that is there as long as this object is."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="curate-", suffix=".jsonl")
        os.close(handle)
        self.path = Path(name)
        weakref.finalize(self, self.path.unlink, missing_ok=True)


@dataclass
class _Left:
    """What was left out, by why; and the first of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def out(self, why: str, path: Path) -> None:
        self.counts[why] += 1
        self.first.setdefault(why, path.name)

    def tell(self, source: Path) -> None:
        for why, count in self.counts.items():
            log.warning("%s: %d left out: %s (the first is %s)", source, count, why, self.first[why])


def _lines(source: Path, left: _Left) -> Iterator[dict[str, Any]]:
    """One record an image, in the order of names."""
    if source.is_file():
        yield from _of_tar(source, source.name, source.stat().st_size)
        return
    loose: list[tuple[Path, os.stat_result]] = []
    for path, found in _walk(source, left):
        if loose and (path.parent, _key(path)) != (loose[0][0].parent, _key(loose[0][0])):
            yield from _of_files(source, loose, left)
            loose = []
        if path.suffix.lower() == ".tar":
            yield from _of_tar(path, path.relative_to(source).as_posix(), found.st_size)
        else:
            loose.append((path, found))
    yield from _of_files(source, loose, left)


def _walk(source: Path, left: _Left) -> Iterator[tuple[Path, os.stat_result]]:
    """The regular files below a folder, by name; what has one key stands together, an image with its texts."""
    folders = [iter(sorted(_entries(source, left), key=_order))]
    inside = source.resolve()
    while folders:
        for path in folders[-1]:
            try:
                if path.is_symlink() and (path.is_dir() or not path.resolve(strict=True).is_relative_to(inside)):
                    left.out("links to folders, or out of this one", path)
                    continue
                found = path.stat()
            except (OSError, RuntimeError):
                left.out("cannot be read", path)
                continue
            if stat.S_ISDIR(found.st_mode):
                folders.append(iter(sorted(_entries(path, left), key=_order)))
                break
            if stat.S_ISREG(found.st_mode):
                yield path, found
            else:
                left.out("no regular files", path)
        else:
            folders.pop()


def _entries(folder: Path, left: _Left) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        left.out("cannot be read", folder)
        return []


def _order(path: Path) -> tuple[str, str]:
    return _key(path), path.name


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _key(path: Path) -> str:
    return path.name.rpartition(".")[0] or path.name


def _of_files(source: Path, files: Iterable[tuple[Path, os.stat_result]], left: _Left) -> Iterator[dict[str, Any]]:
    """The images among files of one key, each with the texts among them."""
    images, texts = [], {}
    for path, found in files:
        if _ending(path.name) in IMAGES:
            images.append((path, found))
        elif _ending(path.name) in _TEXTS:
            texts[_ending(path.name)] = path
        elif not _beside_a_tar(path):
            left.out("neither images nor their .txt or .json", path)
    if not images:
        for path in texts.values():
            if not _beside_a_tar(path):
                left.out("texts without an image", path)
        return
    said = {ending: _text(path) for ending, path in texts.items()}
    for path, found in images:
        name = path.relative_to(source).as_posix()
        yield _line(name, 0, found.st_size, _identity(path, found.st_size, _ENDS), said)


def _beside_a_tar(path: Path) -> bool:
    """Whether a file is a shard's table, ledger, index or statistics."""
    stem = path.name.partition(".")[0]
    return any((path.parent / f"{stem.removesuffix(end)}.tar").exists() for end in ("", "_ledger", "_stats"))


def _text(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_TEXT)
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror or error})") from None


def _of_tar(path: Path, name: str, size: int) -> Iterator[dict[str, Any]]:
    """The images of a tar, in its order; where it breaks off, those before."""
    identity = _identity(path, size, _TAR_ENDS)
    key: str | None = None
    images: list[tuple[int, int]] = []
    said: dict[str, bytes] = {}
    try:
        with mapped(path) as data:
            for member in members(data, str(path)):
                its, ending = split_name(member.name)
                if its != key:
                    yield from (_line(name, *image, identity, said) for image in images)
                    key, images, said = its, [], {}
                if ending in IMAGES:
                    images.append((member.offset, member.size))
                elif ending in _TEXTS:
                    said[ending] = bytes(data[member.offset : member.offset + min(member.size, _MAX_TEXT)])
    except PartError as error:
        log.warning("%s; the rest of it is left out", error)
    yield from (_line(name, *image, identity, said) for image in images)


def _line(name: str, offset: int, length: int, identity: str, said: dict[str, bytes]) -> dict[str, Any]:
    """The record of one image; its .txt is the caption, else what its .json calls so."""
    told = _scalars(said.get("json", b""))
    caption = told.get("caption")
    if "txt" in said:
        caption = said["txt"].decode("utf-8", "surrogateescape")
    uid, url = told.get("uid"), told.get("url")
    return {
        "uid": uid if isinstance(uid, str) and is_uid(uid.lower()) else None,
        "url": url if isinstance(url, str) else None,
        "caption": caption if isinstance(caption, str) else None,
        FILE: name,
        OFFSET: offset,
        LENGTH: length,
        _IDENTITY: identity,
        **{column: value for column, value in told.items() if column not in _OURS},
    }


def _scalars(text: bytes) -> dict[str, Any]:
    """The texts, numbers and truths of a JSON object; nothing where it is none."""
    try:
        value = json.loads(text.decode("utf-8-sig", "surrogateescape")) if text else {}
    except (ValueError, RecursionError):
        return {}
    return {k: v for k, v in value.items() if isinstance(v, (str, int, float))} if isinstance(value, dict) else {}


def _identity(path: Path, size: int, ends: int) -> str:
    """A hash of a file's size and its first and last bytes."""
    hashed = hashlib.sha256(str(size).encode())
    try:
        with path.open("rb") as stream:
            hashed.update(stream.read(ends))
            if size > ends:
                stream.seek(max(ends, size - ends))
                hashed.update(stream.read(ends))
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror or error})") from None
    return hashed.hexdigest()[:32]
