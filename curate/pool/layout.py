"""Where everything lies in a pool, and what kind of pool a folder is."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.errors import InputError, PartError, no_such
from curate.receipts import RECEIPTS

DOWNLOAD_STAGE = "download"

_SHARD_TAR = re.compile(r"(?P<name>.+)\.tar")
_OURS = re.compile(r".*(_ledger|\.index)\.parquet")


@dataclass(frozen=True)
class Shard:
    """One tar, the table beside it and the index of it, each where it should lie."""

    name: str
    tar: Path
    table: Path
    """One row per attempted sample, in our form; for a foreign shard the derived one."""
    index: Path
    ours: bool
    """Whether a receipt of `curate download` stands for it."""
    foreign_table: Path | None = None
    """The table that a foreign tool left beside the tar."""


@dataclass(frozen=True)
class Layout:
    """The paths of one pool: `root` is what was given, `work` takes all that `curate` writes."""

    root: Path
    work: Path

    @property
    def shards(self) -> Path:
        """Where a download writes."""
        return self.root / "shards"

    @property
    def sources(self) -> Path:
        """The lists that were downloaded from."""
        return self.root / "sources.json"

    @property
    def drawn(self) -> Path:
        """Rows that were drawn from a list, for a selection or a sample, and wait to be downloaded."""
        return self.root / "sources"

    @property
    def attempts(self) -> Path:
        """The attempts made since at what a download could not have."""
        return self.root / "attempts.json"

    @property
    def derived(self) -> Path:
        """Tables and indexes made for foreign shards and metadata."""
        return self.work / "derived"

    @property
    def selections(self) -> Path:
        """The folder of all selections."""
        return self.work / "selections"

    @property
    def logs(self) -> Path:
        """Log files, one a command."""
        return self.work / "logs"

    def embeddings(self, slug: str) -> Path:
        """The vectors of one model."""
        return self.work / "embeddings" / slug

    def score(self, folder: str) -> Path:
        """The columns of one scorer."""
        return self.work / "scores" / folder

    def selection(self, name: str) -> Path:
        """One selection."""
        return self.selections / name


OWN = frozenset(
    [
        "derived",
        "embeddings",
        "logs",
        "metadata",
        "metadata.incomplete",
        "scores",
        "selections",
        "shards",
        "sources",
    ]
)
"""Folders of a pool: what else lies in one of these would be taken for a part of it."""


def is_own(layout: Layout, path: Path) -> bool:
    """Whether a path is, or lies in, a folder that is the pool's own, there already or not."""
    here = path.resolve()
    roots = [root for root in (layout.root.resolve(), layout.work.resolve()) if root in here.parents]
    return any(here.relative_to(root).parts[0] in OWN for root in roots)


def find(root: Path, work: Path | None = None) -> Layout:
    """The layout of the pool at `root`. Raises InputError where that is no folder."""
    if not root.is_dir():
        hint = "make one with: curate download --source LIST --pool DIR"
        if root.exists():
            raise InputError(str(root), "is not a folder", hint=hint)
        raise no_such(root, "pool", like=_may_be_pool, hint=hint)
    return Layout(root, work or root)


def _may_be_pool(path: Path) -> bool:
    return any((path / name).exists() for name in ("shards", "metadata", "sources.json")) or any(path.glob("*.tar"))


def metadata_files(layout: Layout) -> list[Path]:
    """DataComp's metadata files, sorted; or the Parquet files of a folder that is metadata alone."""
    folder = layout.root / "metadata"
    if folder.is_dir():
        return sorted(p for p in folder.glob("*.parquet") if p.is_file())
    if layout.shards.is_dir() or any(layout.root.glob("*.tar")):
        return []
    return sorted(p for p in layout.root.glob("*.parquet") if p.is_file() and not _OURS.fullmatch(p.name))


def shards(layout: Layout) -> list[Shard]:
    """All shards, by name. Ours are those with a receipt, whether their files are still there or not."""
    folder = layout.shards if layout.shards.is_dir() else layout.root
    ours = sorted(p.stem for p in (folder / RECEIPTS).glob("*.json"))
    if ours:
        return [_our_shard(folder, name) for name in ours]
    found = (_SHARD_TAR.fullmatch(p.name) for p in folder.glob("*.tar") if p.is_file())
    return [
        _foreign_shard(layout, folder, m["name"]) for m in sorted((m for m in found if m), key=lambda m: m["name"])
    ]


def _our_shard(folder: Path, name: str) -> Shard:
    return Shard(name, folder / f"{name}.tar", folder / f"{name}.parquet", folder / f"{name}.index.parquet", True)


def _foreign_shard(layout: Layout, folder: Path, name: str) -> Shard:
    beside = folder / f"{name}.parquet"
    return Shard(
        name,
        folder / f"{name}.tar",
        layout.derived / f"{name}.parquet",
        layout.derived / f"{name}.index.parquet",
        False,
        beside if beside.is_file() else None,
    )


def kind(layout: Layout) -> str:
    """`curate`, `datacomp`, `img2dataset`, `tars` or `metadata`. Raises InputError for a folder that is none."""
    tars = shards(layout)
    metadata = metadata_files(layout)
    if tars and tars[0].ours:
        return "curate"
    if metadata:
        return "datacomp" if tars else "metadata"
    if any(s.foreign_table for s in tars):
        return "img2dataset"
    if tars:
        return "tars"
    if layout.sources.is_file():
        return "curate"  # a download that has not finished its first shard
    raise InputError(
        str(layout.root),
        "is not a pool (no shards, no metadata, no tars)",
        hint="a pool is made by curate download, img2dataset or DataComp's scripts, or is a folder of Parquet",
    )


def file_identity(path: Path, *, ends: int = 1 << 16) -> dict[str, Any]:
    """Size and a hash of the first and last 64 KiB: what a foreign file is known by."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            hashed = hashlib.sha256(stream.read(ends))
            if size > ends:
                stream.seek(max(ends, size - ends))
                hashed.update(stream.read(ends))
    except OSError as error:
        raise PartError(str(path), f"cannot be read ({error.strerror or error})") from error
    return {"bytes": size, "ends": hashed.hexdigest()}
