"""A folder that is fetched from one revision of a repository: what it lacks, on the way, and whole.

It arrives beside its place, in `<folder>.incomplete`, and takes its name when it is whole, so that half a
metadata folder is never taken for a whole one. There stand the listing of the one revision that all files are of,
`NAME.part` for each file that is on its way, and `files/`, which holds what is whole and right. Later additions
arrive in the same place and move one by one. `.hub.json` in the finished folder says what it was fetched from;
it is hidden, since a visible JSON file is a list to those who read a folder of lists.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curate.disk import disk, make_folder
from curate.errors import InputError, PartError, StopError
from curate.fetch.hub_client import Hub, HubFile, NotThere, fsync_folder
from curate.progress import INTERVAL, plural, size, span
from curate.receipts import FORMAT, read_json, write_json

log = logging.getLogger("curate.fetch")

RECORD = ".hub.json"
"""Our file in a folder that was fetched: repository, revision, and the files with their sizes and hashes."""
INCOMPLETE = ".incomplete"
"""What the name of a folder ends with while it arrives."""
AT_ONCE = 4
"""Files on their way at one time."""

_LISTING = "listing.json"
_KINDS = (".parquet", ".npz")
_NO_FILE = "EntryNotFound"


@dataclass(frozen=True)
class Record:
    """What a folder was fetched from, as its `.hub.json` says."""

    repository: str
    revision: str
    whole: bool
    """Whether all metadata files of the repository are here, and not the first few alone."""
    files: Mapping[str, HubFile]
    """By their names in the folder."""

    def missing(self, folder: Path) -> list[str]:
        """The files that are not in the folder, or have another size there."""
        return [name for name, file in self.files.items() if not _has(folder, file)]


@dataclass(frozen=True)
class Coming:
    """What a fetch has yet to bring: files, and bytes, which are the hub's own sizes less what is here."""

    files: int
    bytes: int
    revision: str

    def check_space(self, folder: Path) -> None:
        """Raises InputError where the disk of `folder`, which need not be there yet, has too little space."""
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        if self.bytes > free:
            raise InputError(
                str(folder),
                f"{plural(self.files, 'file')} to come need {size(self.bytes)}, and {size(free)} are free there "
                f"({self.bytes:,} and {free:,} bytes)",
                hint="another --pool with more space, or part of it: --limit ROWS",
            )


@dataclass(frozen=True)
class Fetched:
    """What a fetch has brought. `lacking` are the npz that the hub does not have."""

    revision: str
    files: tuple[str, ...]
    bytes: int
    here: int
    """Files of the folder that were here before."""
    whole: bool
    lacking: tuple[str, ...] = ()


def read_record(folder: Path) -> Record | None:
    """What `folder` was fetched from, or None where `curate` did not fetch it. Raises InputError if unreadable."""
    path = folder / RECORD
    if not path.is_file():
        return None
    raw = _read(path)
    files = {name: _file(entry) for name, entry in raw["files"].items()}
    return Record(raw["repository"], raw["revision"], raw["whole"], files)


def begun(folder: Path) -> str | None:
    """The repository that a fetch into `folder` has begun and not finished with, if there is one."""
    path = arriving(folder) / _LISTING
    return None if folder.exists() or not path.is_file() else str(_read(path)["repository"])


def tidy(folder: Path) -> None:
    """Remove what is left where `folder` arrived, if no file is on its way there."""
    place = arriving(folder)
    if folder.is_dir() and not any(place.glob("*.part")):
        (place / _LISTING).unlink(missing_ok=True)
        with suppress(OSError):  # what is not ours stays
            place.rmdir()


class Errand:
    """One fetch into one folder, from one revision of the hub's repository."""

    def __init__(self, hub: Hub, folder: Path, record: Record | None) -> None:
        self.hub, self.folder = hub, folder
        self.arriving = arriving(folder)
        self.place = folder if folder.is_dir() else self.arriving / "files"
        """Where files that are whole go."""
        self.record = record or Record(hub.repository, "", False, {})
        self._listed: dict[str, HubFile] = {}
        self._brought: dict[str, HubFile] = {}
        self._lacking: list[str] = []
        self._before = 0

    def look(self) -> None:
        """Learn what the repository holds at this folder's revision, or at the newest where it has none yet."""
        pinned = _pinned(self.arriving, self.hub.repository, self.record.revision)
        if pinned:
            revision, files = pinned
        else:
            revision = self.record.revision or self.hub.newest()
            try:
                files = [f for f in self.hub.files(revision) if f.path.endswith(_KINDS)]
            except NotThere as error:
                if self.record.revision:
                    raise self._gone(error) from error
                raise
        self.record = replace(self.record, revision=revision)
        for file in files:
            if other := self._listed.get(file.name):
                raise StopError(
                    self.hub.page,
                    f"has two files that would lie in one folder as {file.name} ({other.path}, {file.path})",
                )
            self._listed[file.name] = file
        self._before = sum(_has(self.place, file) for file in files)

    def begin(self) -> None:
        """Pin the revision, so that this errand and those that go on with it mix no two of them."""
        make_folder(self.place)
        make_folder(self.arriving)
        if _pinned(self.arriving, self.hub.repository, self.record.revision) is None:
            described = {"format": FORMAT, "repository": self.hub.repository, "revision": self.record.revision}
            files = [_entry(file) for file in self._listed.values()]
            write_json(self.arriving / _LISTING, {**described, "files": files})

    def metadata_names(self) -> list[str]:
        """The names of all metadata files, in the order in which a pool reads them. Raises StopError for none."""
        names = sorted(name for name in self._listed if name.endswith(".parquet"))
        if not names:
            raise StopError(self.hub.page, "holds no Parquet file")
        return names

    def coming(self, names: Sequence[str]) -> Coming:
        """What is still to be fetched of these, as far as the hub has them."""
        left = [f for name in names if (f := self._listed.get(name)) and not _has(self.place, f)]
        return Coming(len(left), sum(f.bytes - self._arrived(f) for f in left), self.record.revision)

    def bring(self, names: Sequence[str], kind: str = "metadata") -> None:
        """Fetch these, which the hub lists, where they are not here yet. Raises what `Hub.fetch` does."""
        wanted = [self._listed[name] for name in names]
        left = [file for file in wanted if not _has(self.place, file)]
        for file in left:
            if self.folder == self.place and file.name in self.record.files:
                log.warning(
                    "%s: not the %s bytes of the hub's; fetching it", self.folder / file.name, f"{file.bytes:,}"
                )
        said = _Said(kind, len(left), sum(f.bytes for f in left), sum(map(self._arrived, left)))
        with ThreadPoolExecutor(AT_ONCE, "hub") as threads:
            futures = {threads.submit(self._fetch, file, said): file for file in left}
            try:
                for future in as_completed(futures):
                    try:
                        future.result()
                        self._brought[futures[future].name] = futures[future]
                    except NotThere as error:
                        if kind == "metadata" or error.code != _NO_FILE:
                            raise self._gone(error) from error
                        self._lacks(futures[future].name)
            except BaseException:
                self.hub.stop()
                threads.shutdown(cancel_futures=True)
                raise
        here = {file.name: file for file in wanted if _has(self.place, file)}
        self.record = replace(self.record, files={**self.record.files, **here})

    def bring_vectors(self, names: Sequence[str]) -> None:
        """Fetch these npz; those that the hub does not have are noted, and said."""
        for name in names:
            if name not in self._listed:
                self._lacks(name)
        self.bring([name for name in names if name in self._listed], "vectors")

    def recognise(self) -> None:
        """Take a folder that others fetched for what it is, if each file is the hub's. Raises InputError."""
        names = sorted(p.name for p in self.folder.glob("*.parquet"))
        if not names:
            raise InputError(str(self.folder), "holds no metadata", hint="another --pool")
        log.info("%s: comparing %s with the hub's", self.folder, plural(len(names), "file"))
        for name in names:
            file = self._listed.get(name)
            damage = file.damage(self.folder / name) if file else "none of this name is there"
            if damage:
                raise InputError(
                    str(self.folder / name),
                    f"is not that of {self.hub.repository} at {self.record.revision[:12]}, "
                    f"to whose rows the vectors belong ({damage})",
                    hint="--scale names the pool that the metadata is of; for other metadata, curate embed",
                )
        files = {name: self._listed[name] for name in names}
        self.record = replace(self.record, files=files, whole=names == self.metadata_names())

    def finish(self, *, whole: bool) -> Fetched:
        """Write down what is here, and give the folder its name."""
        files = {name: _entry(file) for name, file in sorted(self.record.files.items())}
        described = {"format": FORMAT, "repository": self.record.repository, "revision": self.record.revision}
        write_json(self.place / RECORD, {**described, "whole": whole, "files": files})
        if self.place != self.folder:
            with disk(self.folder):
                self.place.rename(self.folder)
                fsync_folder(self.folder.parent)
        for path in self.arriving.glob("*.part"):
            path.unlink()
        tidy(self.folder)
        total = sum(file.bytes for file in self._brought.values())
        names = tuple(sorted(self._brought))
        return Fetched(self.record.revision, names, total, self._before, whole, tuple(self._lacking))

    def _fetch(self, file: HubFile, said: _Said) -> None:
        part = self.arriving / f"{file.name}.part"
        self.hub.fetch(self.record.revision, file, self.place / file.name, part, said.came)
        said.whole(file)

    def _arrived(self, file: HubFile) -> int:
        part = self.arriving / f"{file.name}.part"
        return min(part.stat().st_size, file.bytes) if part.is_file() else 0

    def _lacks(self, name: str) -> None:
        self._lacking.append(name)
        log.warning("%s: %s has no %s: no vectors for these rows", self.hub.host, self.hub.repository, name)

    def _gone(self, error: NotThere) -> StopError:
        """The hub has forgotten the revision, or a file of it, that we hold to."""
        if self.place == self.folder:
            hint = f"{self.folder} stays as it is; the newest can be fetched into another --pool"
        else:
            hint = f"remove {self.arriving} to begin again, with the newest"
        what = f"{self.hub.repository} is no longer what it was at {self.record.revision} ({error.what})"
        return StopError(error.where, what, hint=hint)


class _Said:
    """Tells the log which files have arrived, and now and then how far the bytes are."""

    def __init__(self, kind: str, files: int, total: int, here: int) -> None:
        self._kind, self._files, self._total = kind, files, total
        self._here = self._done = 0
        self._first = self._bytes = here
        self._lock = threading.Lock()
        self._began = self._spoke = time.monotonic()

    def came(self, count: int) -> None:
        """So many bytes have arrived, or fewer than 0: are given up."""
        with self._lock:
            self._bytes += count
            if time.monotonic() - self._spoke >= INTERVAL:
                self._say("")

    def whole(self, file: HubFile) -> None:
        """A file is here, and right."""
        with self._lock:
            self._done += 1
            self._say(f" {self._done:,} of {self._files:,}, {file.name}, {size(file.bytes)}")

    def _say(self, what: str) -> None:
        self._spoke = time.monotonic()
        rate = max(0, self._bytes - self._first) / max(self._spoke - self._began, 1e-6)
        left = f", {span((self._total - self._bytes) / rate)} left" if rate and self._bytes < self._total else ""
        log.info("%s%s: %s of %s, %s/s%s", self._kind, what, size(self._bytes), size(self._total), size(rate), left)


def _has(folder: Path, file: HubFile) -> bool:
    """Whether a file is here; its hash was looked at before it got its name."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.bytes


def arriving(folder: Path) -> Path:
    """Where a folder is while it arrives."""
    return folder.with_name(f"{folder.name}{INCOMPLETE}")


def _pinned(place: Path, repository: str, revision: str) -> tuple[str, list[HubFile]] | None:
    """The revision, which is `revision` unless that is empty, and the files that an earlier errand pinned here."""
    path = place / _LISTING
    if not path.is_file():
        return None
    raw = _read(path)
    if raw["repository"] != repository:
        raise InputError(
            str(place),
            f"holds a part of {raw['repository']} (asked for: {repository})",
            hint=f"go on with what was begun, or remove {place}",
        )
    if revision not in ("", raw["revision"]):
        return None
    return raw["revision"], [_file(entry) for entry in raw["files"]]


def _entry(file: HubFile) -> dict[str, Any]:
    kind, _, value = file.digest.partition(":")
    return {"path": file.path, "bytes": file.bytes, {"sha256": "sha256", "git": "git_blob"}[kind]: value}


def _file(entry: Mapping[str, Any]) -> HubFile:
    digest = f"sha256:{entry['sha256']}" if "sha256" in entry else f"git:{entry['git_blob']}"
    return HubFile(entry["path"], entry["bytes"], digest)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except PartError as error:
        raise InputError(error.where, error.what, hint=f"remove {path}") from error
