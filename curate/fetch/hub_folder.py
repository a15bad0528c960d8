"""A folder that is fetched from one revision of a repository: what it lacks, on the way, and whole.

It arrives beside its place, in `<folder>.incomplete`, and takes its name when it is whole, so that half a
metadata folder is never taken for a whole one. There stand the listing of the one revision that all files are of,
`NAME.part` for each file that is on its way, and `files/`, which holds what is whole and right. Later additions
arrive in the same place, and move when all are there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from curate.disk import disk, fsync_folder, make_folder
from curate.errors import InputError, StopError
from curate.fetch.hub_client import Hub, HubFile, NotThere
from curate.fetch.hub_record import RECORD, Coming, Fetched, Record, arriving, has, read, stands, write
from curate.progress import INTERVAL, plural, size, span

log = logging.getLogger("curate.fetch")

AT_ONCE = 4
"""Files on their way at one time."""

_LISTING, _FILES = "listing.json", "files"
_KINDS = (".parquet", ".npz")
_NO_FILE = "EntryNotFound"


def begun(folder: Path) -> str | None:
    """The repository that a fetch into `folder` has begun and not finished with, if there is one."""
    path = arriving(folder) / _LISTING
    return None if stands(folder) or not path.is_file() else read(path).repository


def tidy(folder: Path) -> None:
    """Remove what is left where `folder` arrived, if no file is on its way there."""
    place = arriving(folder)
    if stands(folder) and not any(place.glob("*.part")):
        with suppress(OSError):  # what is not ours stays
            if (place / _FILES).is_dir():
                (place / _FILES).rmdir()
            (place / _LISTING).unlink(missing_ok=True)
            place.rmdir()


class Errand:
    """One fetch into one folder, from one revision of the hub's repository."""

    def __init__(self, hub: Hub, folder: Path, record: Record | None) -> None:
        self.hub, self.folder = hub, folder
        self.arriving = arriving(folder)
        self.record = record or Record(hub.repository, "", False, {})
        self._listed: Mapping[str, HubFile] = {}
        self._brought: dict[str, HubFile] = {}
        self._lacking: list[str] = []
        self._before = 0

    def look(self) -> None:
        """Learn what the repository holds at this folder's revision, or at the newest where it has none yet."""
        pinned = _pinned(self.arriving, self.hub.repository, self.record.revision)
        if pinned:
            self._listed = pinned.files
            self.record = replace(self.record, revision=pinned.revision)
        else:
            revision = self.record.revision or self.hub.newest()
            try:
                self._listed = self._flat(f for f in self.hub.files(revision) if f.path.endswith(_KINDS))
            except NotThere as error:
                if self.record.revision:
                    raise self._gone(error) from error
                raise
            self.record = replace(self.record, revision=revision)
        self._before = sum(map(self._here, self._listed.values()))

    def begin(self) -> None:
        """Pin the revision, so that this errand and those that go on with it mix no two of them."""
        make_folder(self.arriving / _FILES)
        if _pinned(self.arriving, self.hub.repository, self.record.revision) is None:
            write(self.arriving / _LISTING, replace(self.record, whole=True, files=self._listed))

    def path(self, name: str) -> Path:
        """Where a file is, that has come."""
        new = self.arriving / _FILES / name
        return new if new.is_file() else self.folder / name

    def metadata_names(self) -> list[str]:
        """The names of all metadata files, in the order in which a pool reads them. Raises StopError for none."""
        names = sorted(name for name in self._listed if name.endswith(".parquet"))
        if not names:
            raise StopError(self.hub.page, "holds no Parquet file")
        return names

    def coming(self, names: Sequence[str]) -> Coming:
        """What is still to be fetched of these, as far as the hub has them."""
        left = [f for name in names if (f := self._listed.get(name)) and not self._here(f)]
        return Coming(len(left), sum(f.bytes - self._arrived(f) for f in left), self.record.revision)

    def bring(self, names: Sequence[str], kind: str = "metadata") -> None:
        """Fetch these, which the hub lists, where they are not here yet. Raises what `Hub.fetch` does."""
        wanted = [self._listed[name] for name in names]
        left = [file for file in wanted if not self._here(file)]
        for file in left:
            if file.name in self.record.files:
                log.warning(
                    "%s: not the %s bytes of the hub's; fetching it", self.folder / file.name, f"{file.bytes:,}"
                )
        said = _Said(kind, len(left), sum(f.bytes for f in left), sum(map(self._arrived, left)))
        with ThreadPoolExecutor(AT_ONCE, "hub") as threads:
            futures = {threads.submit(self._fetch, file, said): file for file in left}
            try:
                for future in as_completed(futures):
                    try:
                        if future.result():
                            self._brought[futures[future].name] = futures[future]
                    except NotThere as error:
                        if kind == "metadata" or error.code != _NO_FILE:
                            raise self._gone(error) from error
                        self._lacks(futures[future].name)
            except BaseException:
                self.hub.stop()
                threads.shutdown(cancel_futures=True)
                raise
        here = {file.name: file for file in wanted if file.name not in self._lacking}
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
        self.record = replace(self.record, whole=whole)
        files = self.arriving / _FILES
        with disk(self.folder):
            if stands(self.folder):
                write(self.folder / RECORD, self.record)  # a kill from here on leaves some missing, and is seen
                for path in sorted(files.iterdir()):
                    path.rename(self.folder / path.name)
                fsync_folder(self.folder)
            else:
                write(files / RECORD, self.record)
                files.rename(self.folder)
                fsync_folder(self.folder.parent)
        for path in self.arriving.glob("*.part"):
            path.unlink()
        tidy(self.folder)
        total = sum(file.bytes for file in self._brought.values())
        names = tuple(sorted(self._brought))
        return Fetched(self.record.revision, names, total, self._before, whole, tuple(self._lacking))

    def _flat(self, files: Iterable[HubFile]) -> dict[str, HubFile]:
        """The files by the names that they will have in one folder."""
        found: dict[str, HubFile] = {}
        for file in files:
            if other := found.get(file.name):
                raise StopError(
                    self.hub.page,
                    f"has two files that would lie in one folder as {file.name} ({other.path}, {file.path})",
                )
            found[file.name] = file
        return found

    def _fetch(self, file: HubFile, said: _Said) -> bool:
        """Have a file here. False where it was in the folder already, by other means, and is right."""
        if has(self.folder, file) and file.damage(self.folder / file.name) is None:
            said.came(file.bytes - self._arrived(file))
        else:
            part, whole = self.arriving / f"{file.name}.part", self.arriving / _FILES / file.name
            self.hub.fetch(self.record.revision, file, whole, part, said.came)
        said.whole(file)
        return has(self.arriving / _FILES, file)

    def _here(self, file: HubFile) -> bool:
        """Whether a file is here that is known to be right, since it was checked when it came."""
        return has(self.arriving / _FILES, file) or (file.name in self.record.files and has(self.folder, file))

    def _arrived(self, file: HubFile) -> int:
        part = self.arriving / f"{file.name}.part"
        return min(part.stat().st_size, file.bytes) if part.is_file() else 0

    def _lacks(self, name: str) -> None:
        self._lacking.append(name)
        log.warning("%s: %s has no %s: no vectors for these rows", self.hub.host, self.hub.repository, name)

    def _gone(self, error: NotThere) -> StopError:
        """The hub has forgotten the revision, or a file of it, that we hold to."""
        if stands(self.folder):
            hint = f"{self.folder} stays as it is; the newest can be fetched into another --pool"
        else:
            hint = f"remove {self.arriving} to begin again, with the newest"
        what = f"{self.hub.repository} is no longer what it was at {self.record.revision} ({error.what})"
        return StopError(error.where, what, hint=hint)


class _Said:
    """Tells the log which files have arrived, and now and then how far the bytes are."""

    def __init__(self, kind: str, files: int, total: int, here: int) -> None:
        self._kind, self._files, self._total = kind, files, total
        self._done = 0
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


def _pinned(place: Path, repository: str, revision: str) -> Record | None:
    """The listing that an earlier errand left here, if it is of `revision`; of any where that is empty."""
    path = place / _LISTING
    if not path.is_file():
        return None
    listing = read(path)
    if listing.repository != repository:
        raise InputError(
            str(place),
            f"holds a part of {listing.repository} (asked for: {repository})",
            hint=f"go on with what was begun, or remove {place}",
        )
    return listing if revision in ("", listing.revision) else None
