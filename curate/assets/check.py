"""Whether a file is the published one, and its sha256, which a file in the cache is not made to prove each time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from curate.assets.registry import Asset, PublishedFile
from curate.errors import InputError, no_such
from curate.receipts import file_sha256

_BLOCK = 1 << 20
_KINDS = {"sha256": "sha256", "git": "git blob id"}


def checked(asset: Asset, file: PublishedFile, path: Path, *, remember: bool = False) -> str:
    """The sha256 of the file at `path`; InputError where it is not the published file.

    With `remember` a note beside it spares later calls the reading, until the file is written or replaced.
    """
    note = path.with_name(f".{path.name}.checked")
    before = _state(path)
    key = _key(path, before, file.digest)
    if known := _seen.get(key) or (_noted(note, before, file.digest) if remember else None):
        return known
    sha256, wrong = compared(file, path)
    if wrong:
        raise InputError(
            str(path),
            f"is not the published {asset.name} ({wrong})",
            hint=f"remove it to fetch the published file, or name one of your own: --asset {asset.name}=FILE",
        )
    if _state(path) == before:
        _seen[key] = sha256
        if remember:
            _write(note, {**before, "digest": file.digest, "sha256": sha256})
    return sha256


def compared(file: PublishedFile, path: Path) -> tuple[str, str]:
    """The sha256 of the file at `path`, and what is wrong with it as the published file: empty if nothing."""
    kind, _, want = file.digest.partition(":")
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    for block in _blocks(path):
        sha256.update(block)
        if kind == "git":
            blob.update(block)
    found = (blob if kind == "git" else sha256).hexdigest()
    return sha256.hexdigest(), "" if found == want else f"its {_KINDS[kind]} is {found}, not {want}"


def hashed(path: Path) -> str:
    """The sha256 of a file. Raises InputError where it cannot be read."""
    key = _key(path, _state(path), "")
    if key not in _seen:
        try:
            _seen[key] = file_sha256(path)
        except OSError as error:
            raise _unreadable(path, error) from error
    return _seen[key]


_seen: dict[tuple[object, ...], str] = {}
"""The sha256 of the files that this process has read: a command settles its rules more than once."""


def _key(path: Path, state: dict[str, int], digest: str) -> tuple[object, ...]:
    return (path, digest, *state.values())


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                yield block
    except OSError as error:
        raise _unreadable(path, error) from error


def _state(path: Path) -> dict[str, int]:
    """What changes when a file is written or replaced. Raises InputError where it is not there."""
    try:
        s = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return {"size": s.st_size, "mtime_ns": s.st_mtime_ns, "ctime_ns": s.st_ctime_ns, "inode": s.st_ino}


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return no_such(path, "file")
    return InputError(str(path), f"cannot be read ({error.strerror or error})")


def _noted(note: Path, state: dict[str, int], digest: str) -> str | None:
    """The sha256 in the note, if that is of this very file and this publication."""
    try:
        said: Any = json.loads(note.read_bytes())
        sha256 = said.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return str(sha256) if said == {**state, "digest": digest} else None


def _write(note: Path, said: dict[str, Any]) -> None:
    """Leave the note. Where the cache cannot be written to, its files are read each time."""
    temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        try:
            temporary.write_text(json.dumps(said), encoding="utf-8")
            temporary.replace(note)
        finally:
            temporary.unlink(missing_ok=True)
