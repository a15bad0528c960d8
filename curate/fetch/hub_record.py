"""What is known of a folder that came from the model hub, on disk and in the answers of fetch/hub.

`.hub.json` in the folder says what it was fetched from. It is hidden, since a visible JSON file is a list to those
who read a folder of lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from curate import disk
from curate.errors import InputError, PartError
from curate.fetch.hub_client import HubFile
from curate.progress import plural, size
from curate.receipts import FORMAT, read_json, write_json

RECORD = ".hub.json"
"""Our file in a folder that was fetched: repository, revision, and the files with their sizes and hashes."""
INCOMPLETE = ".incomplete"
"""What the name of a folder ends with while it arrives."""

_DIGESTS = {"sha256": "sha256", "git": "git_blob"}


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
        return [name for name, file in self.files.items() if not has(folder, file)]


@dataclass(frozen=True)
class Coming:
    """What a fetch has yet to bring: files, and bytes, which are the hub's own sizes less what is here."""

    files: int
    bytes: int
    revision: str

    def check_space(self, folder: Path) -> None:
        """Raises InputError where the disk of `folder`, which need not be there yet, has too little space."""
        free = disk.free(folder)
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
    return read(path) if path.is_file() else None


def arriving(folder: Path) -> Path:
    """Where a folder is while it arrives."""
    return folder.with_name(f"{folder.name}{INCOMPLETE}")


def stands(folder: Path) -> bool:
    """Whether there is anything of this name but an empty folder."""
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def has(folder: Path, file: HubFile) -> bool:
    """Whether a file of this name and size is in a folder."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.bytes


def write(path: Path, record: Record) -> None:
    """Keep a record at `path`."""
    files = []
    for _, file in sorted(record.files.items()):
        kind, _, value = file.digest.partition(":")
        files.append({"path": file.path, "bytes": file.bytes, _DIGESTS[kind]: value})
    about = {"repository": record.repository, "revision": record.revision, "whole": record.whole}
    write_json(path, {"format": FORMAT, **about, "files": files})


def read(path: Path) -> Record:
    """The record that `write` kept. Raises InputError where it cannot be read."""
    hint = f"remove {path}: it says only what was fetched"
    try:
        raw = read_json(path)
        files = []
        for entry in raw["files"]:
            kind = next(kind for kind, key in _DIGESTS.items() if key in entry)
            files.append(HubFile(entry["path"], entry["bytes"], f"{kind}:{entry[_DIGESTS[kind]]}"))
        return Record(raw["repository"], raw["revision"], raw["whole"], {file.name: file for file in files})
    except PartError as error:
        raise InputError(error.where, error.what, hint=hint) from error
    except (KeyError, TypeError, StopIteration) as error:
        raise InputError(str(path), "does not say what was fetched", hint=hint) from error
