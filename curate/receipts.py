"""Everything that is written goes through here: whole files under final names, a receipt last.

A part's files are written to `.tmp` names beside their final ones, fsynced and renamed; the receipt, which
holds their hashes, follows. A process killed at any instant leaves `.tmp` files, which the next command
sweeps, and never half a file under a final name. A file under a `.tmp` name is locked by the process that
writes it, so that the sweep of another command leaves it alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from curate.disk import disk, fsync_folder, lock, make_folder, same_file
from curate.errors import Busy, CurateError, InputError, PartError
from curate.sink import Sink

FORMAT = 1
RECEIPTS = "_receipts"
CHUNK = 1 << 20


# --- the five calls that change the disk (a test stops the process at each of them) -----------------------


def _create(path: Path) -> int:
    # not truncated here: another process may hold it
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _write(fd: int, data: memoryview) -> int:
    return os.write(fd, data)


def _fsync(fd: int) -> None:
    os.fsync(fd)


def _rename(source: Path, target: Path) -> None:
    os.replace(source, target)  # noqa: PTH105 - named beside its kin


def _fsync_folder(path: Path) -> None:
    fsync_folder(path)


# --- receipts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """One file of a part: its size, its sha256, and whether its bytes hold clock readings."""

    bytes: int
    sha256: str
    varies: bool = False


@dataclass(frozen=True)
class Receipt:
    """The proof that a part's outputs are whole."""

    stage: str
    version: int
    part: str
    fingerprint: str
    """sha256 of `what`; the outputs are skipped only if it matches."""
    what: Mapping[str, Any]
    """Settings, digests of models and fits, identity of the inputs; never a position or a path."""
    outputs: Mapping[str, Written]
    counts: Mapping[str, int]
    made: Mapping[str, Any]
    """Clock and host, for people."""

    @property
    def identity(self) -> str:
        """A hash of the outputs' content, equal in two runs that made the same bytes."""
        return digest({n: w.sha256 for n, w in self.outputs.items() if not w.varies})

    def damage(self, folder: Path) -> dict[str, str]:
        """Outputs that are seen to be broken without reading them, each with what is wrong, as a clause.

        Size and, of a table or an array, the mark that its form begins with; `curate verify` reads every byte.
        """
        found = ((name, _damage(folder / name, written.bytes)) for name, written in self.outputs.items())
        return {name: what for name, what in found if what}

    def missing(self, folder: Path) -> list[str]:
        """Names of outputs that are not in `folder` as they were written, as far as is seen without reading."""
        return list(self.damage(folder))


_MARKS = {".parquet": b"PAR1", ".npy": b"\x93NUMPY", ".json": b"{"}
"""What files begin with: a disk that lost power may leave one of the right size that is all zeros."""


def _damage(path: Path, written: int) -> str | None:
    mark = _MARKS.get(path.suffix, b"")
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            begins = stream.read(len(mark)) == mark
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if size != written:
        return f"has {size:,} of the {written:,} bytes that were written"
    return None if begins else f"does not begin as a {path.suffix} file does"


def digest(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of what differs as JSON (a tuple is a list there), sorted."""
    return sorted(k for k in {*before, *after} if digest(before.get(k)) != digest(after.get(k)))


def receipt_path(folder: Path, part: str) -> Path:
    """Where the receipt of a part lies."""
    return folder / RECEIPTS / f"{part}.json"


def read_receipt(folder: Path, part: str) -> Receipt | None:
    """The receipt of a part, or None where there is none or it is unreadable (then the part is redone).

    Raises InputError for a receipt of a newer format.
    """
    path = receipt_path(folder, part)
    try:
        raw = json.loads(path.read_bytes())
        check_format(raw, path)
        outputs = {name: Written(**w) for name, w in raw.pop("outputs").items()}
        raw.pop("format")
        return Receipt(outputs=outputs, **raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def receipts(folder: Path) -> dict[str, Receipt]:
    """All readable receipts of a stage's folder, part to receipt, in order."""
    found: dict[str, Receipt] = {}
    with suppress(OSError):
        for path in sorted((folder / RECEIPTS).iterdir()):
            if path.suffix == ".json" and (receipt := read_receipt(folder, path.stem)):
                found[path.stem] = receipt
    return found


def check_format(raw: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that a newer version wrote."""
    found = raw.get("format", 0)
    if not isinstance(found, int) or found > FORMAT:
        raise InputError(
            str(path),
            f"was written in a newer form (format {found}, this version reads up to {FORMAT})",
            hint="pip install --upgrade curate",
        )


# --- outputs ----------------------------------------------------------------------------------------------


class Output:
    """The files of one part in the making. `open` them in any order, then `commit` once."""

    def __init__(self, stage: str, version: int, part: str, folder: Path, what: Mapping[str, Any]) -> None:
        self.stage, self.version, self.part, self.folder = stage, version, part, folder
        self.what = what
        self._replacing = False
        self._files: dict[str, tuple[io.BufferedWriter, Sink, bool]] = {}
        self._began = time.time()

    def open(self, name: str, *, varies: bool = False, past_cache: bool = False) -> BinaryIO:
        """A sequential binary sink for the file `name` in the folder; `varies` marks clock readings.

        `past_cache` is for files of very many bytes that nobody reads soon, see `Sink`. Closing it is left to
        `commit`; a caller may close it before.
        """
        raw = _open_temporary(self.folder / name, past_cache=past_cache)
        # BufferedWriter closes raw; a pyarrow or tar writer on top may close both
        writer = _KeptOpen(raw, CHUNK)
        self._files[name] = (writer, raw, varies)
        return cast(BinaryIO, writer)

    def write(self, name: str, data: bytes, *, varies: bool = False) -> None:
        """A whole small file."""
        self.open(name, varies=varies).write(data)

    def commit(self, counts: Mapping[str, int]) -> Receipt:
        """All files under their final names, then the receipt. The counts must add up (see `runner`)."""
        outputs: dict[str, Written] = {}
        for name, (writer, raw, varies) in self._files.items():
            _finish(writer, raw)
            outputs[name] = Written(raw.size, raw.hash.hexdigest(), varies)
        receipt = self._receipt(outputs, counts)
        told = {"format": FORMAT, **asdict(receipt)}
        replaces = receipt_path(self.folder, self.part).exists()
        if replaces:
            # all or nothing: whoever finds this goes on with the renaming, see `sweep`
            write_json(_journal(self.folder, self.part), told)
            self._replacing = True
            _forget_receipt(self.folder, self.part)
        for name, (_, raw, _varies) in self._files.items():
            with disk(self.folder / name):
                _rename(raw.path, self.folder / name)
            raw.close()
        for parent in {(self.folder / name).parent for name in self._files}:
            _fsync_folder(parent)
        self._files.clear()
        write_json(receipt_path(self.folder, self.part), told)
        if replaces:
            _journal(self.folder, self.part).unlink(missing_ok=True)
        return receipt

    def _receipt(self, outputs: Mapping[str, Written], counts: Mapping[str, int]) -> Receipt:
        return Receipt(
            self.stage,
            self.version,
            self.part,
            digest(self.what),
            dict(self.what),
            outputs,
            dict(counts),
            {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - self._began, 3),
                "host": socket.gethostname(),
            },
        )

    def abandon(self) -> None:
        """Remove what was written under temporary names; what is whole and replaces others is left to `sweep`."""
        for writer, raw, _ in self._files.values():
            if self._replacing:
                raw.close()
            else:
                _drop(writer, raw)
        self._files.clear()


class _KeptOpen(io.BufferedWriter):
    """A writer whose `close` only flushes: the commit must still fsync the descriptor."""

    def close(self) -> None:
        if not self.raw.closed:
            self.flush()


def _open_temporary(path: Path, *, wait: bool = False, past_cache: bool = False) -> Sink:
    """The `.tmp` file of `path`, empty and locked. Raises Busy where another process writes it, unless `wait`."""
    make_folder(path.parent)
    temporary = path.with_name(path.name + ".tmp")
    while True:
        with disk(path):
            fd = _create(temporary)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            os.close(fd)
            raise Busy(str(path), "is being written by another process") from error
        if same_file(fd, temporary):
            os.ftruncate(fd, 0)
            return Sink(fd, temporary, lambda fd, data: _write(fd, data), past_cache=past_cache)
        os.close(fd)  # renamed or swept since it was opened: make another


def _finish(writer: io.BufferedWriter, raw: Sink) -> None:
    writer.flush()
    raw.settle()
    with disk(raw.path):
        _fsync(raw.fd)


def _drop(writer: io.BufferedWriter, raw: Sink) -> None:
    """Give up a file that has not its final name yet."""
    raw.dropped = True
    with suppress(ValueError):  # from a commit that failed after it closed this one
        writer.detach()  # would write what is buffered, now or when the object is finalised
    with suppress(OSError):
        raw.path.unlink()
    raw.close()


def _forget_receipt(folder: Path, part: str) -> None:
    path = receipt_path(folder, part)
    if path.exists():
        path.unlink()
        _fsync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """One whole file outside of any part (a plan, a pointer): temporary name, fsync, rename, folder fsync.

    Of two processes that write it at once one waits for the other.
    """
    raw = _open_temporary(path, wait=True)
    writer = _KeptOpen(raw, CHUNK)
    try:
        writer.write(data)
        _finish(writer, raw)
        with disk(path):
            _rename(raw.path, path)
    except BaseException:
        _drop(writer, raw)
        raise
    raw.close()
    _fsync_folder(path.parent)


def json_bytes(value: Any) -> bytes:
    """`value` as indented JSON text."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def read_json(path: Path, *, hint: str | None = None) -> dict[str, Any]:
    """The JSON object in one of our files.

    Raises PartError where it cannot be read, InputError where it is of a newer format.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PartError(str(path), f"cannot be read ({reason})", hint=hint) from error
    check_format(raw, path)
    return raw


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, through `write_file`."""
    write_file(path, json_bytes(value))


def remove_part(folder: Path, part: str) -> None:
    """Take back a part: its receipt first, then its files."""
    if receipt := read_receipt(folder, part):
        _forget_receipt(folder, part)
        for name in receipt.outputs:
            with suppress(FileNotFoundError):
                (folder / name).unlink()


def _journal(folder: Path, part: str) -> Path:
    """Where the receipt stands that takes another's place, while the files are renamed."""
    return folder / RECEIPTS / f"{part}.replaced"


def finish_replacing(folder: Path, part: str) -> None:
    """Finish the replacement of a part that a dead process had begun, if there is one: its files are whole.

    To be called with the part's lock held.
    """
    path = _journal(folder, part)
    if not path.is_file():
        return
    try:
        told = read_json(path)
        outputs = {name: Written(**written) for name, written in told["outputs"].items()}
    except (PartError, KeyError, TypeError, AttributeError):
        outputs = {}  # damaged: then the part is made anew
    if outputs and all(_renamed(folder / name, written) for name, written in outputs.items()):
        for parent in {(folder / name).parent for name in outputs}:
            _fsync_folder(parent)
        write_json(receipt_path(folder, part), told)
    path.unlink(missing_ok=True)


def _go_on_replacing(folder: Path) -> None:
    """Finish the replacements that dead processes had begun, but for what another process is at."""
    for path in (folder / RECEIPTS).glob("*.replaced"):
        with suppress(Busy), lock(receipt_path(folder, path.stem).with_suffix(".lock")):
            finish_replacing(folder, path.stem)


def _awaited(folder: Path) -> set[Path]:
    """The temporary files that unfinished replacements are made of."""
    found: set[Path] = set()
    for path in (folder / RECEIPTS).glob("*.replaced"):
        with suppress(CurateError, KeyError, TypeError, AttributeError):
            found |= {folder / f"{name}.tmp" for name in read_json(path)["outputs"]}
    return found


def _renamed(path: Path, written: Written) -> bool:
    """Whether `path` is what was written, after its temporary file has taken its name if it had not yet."""
    made = path.with_name(f"{path.name}.tmp")
    if made.is_file() and made.stat().st_size == written.bytes and file_sha256(made) == written.sha256:
        with disk(path):
            _rename(made, path)
        return True
    return path.is_file() and path.stat().st_size == written.bytes and file_sha256(path) == written.sha256


def sweep(folder: Path) -> int:
    """Remove what dead processes left in `folder` and its receipts: `.tmp` files and folders, locks; how many.

    A replacement of a part that was ended between two of its files is finished first; one that another process
    is finishing keeps its files.
    """
    swept = 0
    _go_on_replacing(folder)
    for place in (folder, folder / RECEIPTS):
        for path in [*place.glob("*.tmp"), *place.glob("*.lock")]:
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if same_file(fd, path) and path not in _awaited(folder):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                        swept += 1
                finally:
                    os.close(fd)
    return swept


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    hashed = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            hashed.update(block)
    return hashed.hexdigest()
