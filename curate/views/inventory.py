"""What lies in a pool's folders: files that receipts stand for, loose files of ours, and everybody else's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

from curate.errors import CurateError
from curate.fetch.hub_record import INCOMPLETE, RECORD
from curate.pool import Pool
from curate.receipts import RECEIPTS, Receipt, read_json, read_receipt, receipt_path

OWN = ("derived", "embeddings", "scores", "indexes", "selections", "sources", "logs")
"""Folders that only `curate` writes, below the pool's `work`."""

_LOOSE = frozenset({"model.json", "score.json", "latest.json", "sources.json", "attempts.json", "subset.json"})
_SUBSET_SHARDS = frozenset({"meta.json", "sizes.json", "sample_ids.npy"})
_SUBSET = frozenset({"README.md", "training.json", "missing.parquet", "uids.npy"})


@dataclass
class Inventory:
    """The files of a pool, each in one of these lists; paths are absolute or as the pool was given."""

    receipts: list[tuple[Path, str, Receipt | None]] = field(default_factory=list)
    """Folder, part, and the receipt, None where it cannot be read."""
    loose: list[Path] = field(default_factory=list)
    """Small files of ours that no receipt stands for."""
    unfinished: list[Path] = field(default_factory=list)
    """`.tmp` files, and metadata that has not all arrived: being written, or left by a process that died."""
    locks: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    """Files and folders that `curate` did not make and does not read."""

    def damage(self) -> list[tuple[Path, str]]:
        """What is seen to be broken without reading it: files that a receipt has, receipts, loose JSON.

        Each a path and what is wrong with it, as a clause.
        """
        found = []
        for folder, part, receipt in self.receipts:
            if receipt is None:
                found.append((receipt_path(folder, part), "is not a readable receipt"))
            else:
                found += [(folder / name, what) for name, what in receipt.damage(folder).items()]
        for path in self.loose:
            if path.suffix == ".json":
                try:
                    read_json(path)
                except CurateError as error:
                    found.append((path, error.what))
        return found

    def running(self) -> list[str]:
        """Who holds the locks, by what the living processes of this machine wrote into them."""
        holders = {path.read_text(errors="replace") for path in self.locks if path.is_file()}
        return sorted(h for h in holders if h and _lives(h))


def take(pool: Pool) -> Inventory:
    """The inventory of a pool; nothing is opened but receipts."""
    layout, found = pool.layout, Inventory()
    shards = layout.shards if layout.shards.is_dir() else layout.root
    ours = bool(pool.shards) and pool.shards[0].ours
    known = {path for shard in pool.shards for path in _of_shard(shards, shard.name)}
    known |= {p for part in pool.parts if part.shard is None for p in (part.path, part.path.with_suffix(".npz"))}
    for root in dict.fromkeys((layout.root, layout.work)):
        if root.is_dir():
            for entry in sorted(root.iterdir()):
                if entry.name in OWN and entry.is_dir():
                    _own(found, entry)
                elif entry == layout.shards and entry.is_dir():
                    _own(found, entry) if ours or layout.sources.is_file() else _listed(found, entry, known)
                elif entry == layout.root / "metadata" and entry.is_dir():
                    _listed(found, entry, known)
                else:
                    _top(found, entry, known)
    return found


def _of_shard(folder: Path, name: str) -> Iterator[Path]:
    for ending in (".tar", ".parquet", "_stats.json"):
        yield folder / f"{name}{ending}"


def _own(found: Inventory, folder: Path) -> None:
    """A folder of ours, with all below it."""
    known: set[Path] = set()
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        at = Path(place)
        if at.name == RECEIPTS:
            for name in sorted(names):
                if name.endswith(".json"):
                    part = name.removesuffix(".json")
                    receipt = read_receipt(at.parent, part)
                    found.receipts.append((at.parent, part, receipt))
                    known |= {at.parent / output for output in receipt.outputs} if receipt else _of(at.parent, part)
                    known.add(at / name)
        files += [at / name for name in sorted(names)]
    for path in files:
        if path not in known:
            _one(found, path, logs=folder.name == "logs")
    found.foreign += [
        Path(p)
        for p, folders, names in os.walk(folder)
        if not folders and not names and p != str(folder) and Path(p).name != RECEIPTS
    ]


def _of(folder: Path, part: str) -> set[Path]:
    """The files of a part whose receipt cannot be read, by their names."""
    return {p for p in folder.glob(f"{escape(part)}*") if p.name.startswith((f"{part}.", f"{part}_"))}


def _one(found: Inventory, path: Path, *, logs: bool = False) -> None:
    if path.name.endswith((".tmp", ".replaced")):
        found.unfinished.append(path)
    elif path.name.endswith(".lock"):
        found.locks.append(path)
    elif logs or path.name in _LOOSE or (path.name in _SUBSET_SHARDS and path.parent.name == "shards"):
        found.loose.append(path)
    else:
        found.foreign.append(path)


def _listed(found: Inventory, folder: Path, known: set[Path]) -> None:
    """A folder that others made: what the pool does not read is foreign."""
    for path in sorted(folder.iterdir()):
        if path not in known:
            (found.loose if path.name == RECORD else found.foreign).append(path)


def _top(found: Inventory, entry: Path, known: set[Path]) -> None:
    if entry in known:
        return
    if entry.is_dir():
        (found.unfinished if entry.name == f"metadata{INCOMPLETE}" else found.foreign).append(entry)
    elif entry.name in _SUBSET and (entry.parent / "subset.json").is_file():
        found.loose.append(entry)
    else:
        _one(found, entry)


def _lives(holder: str) -> bool:
    """Whether the process named in a lock runs on this machine; one of another machine is taken to."""
    words = holder.split()
    if len(words) < 4 or words[0] != "process" or not words[1].isdigit():
        return False
    if words[3] != socket.gethostname():
        return True
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
