"""What a user may set of a download, and what of it decides the bytes that are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from curate.errors import InputError, UnknownName, nearest
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.stages import sources
from curate.stages.download_part import FETCHERS

if TYPE_CHECKING:
    from curate.fetch.lists import SourceList


@dataclass(frozen=True)
class DownloadSettings:
    """How a list becomes shards.

    `verify_column` of the list holds the hashes of `images.verify_hash`; without them the list's `sha256` is
    compared, where it has one. `bbox_col` holds faces to `blur` (None: DataComp's `face_bboxes`, where the list
    has them). `dedup_urls` fetches each URL of a list once. The same bytes under more than `placeholder_urls`
    URLs of a part are marked. `fetcher` is who fetches: ours, or img2dataset.
    """

    images: ImageSettings = field(default_factory=ImageSettings)
    limits: FetchLimits = field(default_factory=FetchLimits)
    samples_per_shard: int = 10_000
    url_col: str | None = None
    caption_col: str | None = None
    verify_column: str | None = None
    bbox_col: str | None = None
    blur: bool = True
    dedup_urls: bool = False
    placeholder_urls: int = 10
    fetcher: str = FETCHERS[0]

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise InputError("--samples-per-shard", f"must be above 0 (found {self.samples_per_shard})")
        if self.placeholder_urls < 1:
            raise InputError("--placeholder-urls", f"must be above 0 (found {self.placeholder_urls})")
        if (self.verify_column is None) != (self.images.verify_hash is None):
            raise InputError("--verify-hash", "needs a column and a hash", hint="--verify-hash sha256 sha256")
        if self.bbox_col is not None and not self.blur:
            raise InputError("--bbox-col", "names faces, and --no-blur-faces leaves them", hint="leave one out")
        if self.fetcher not in FETCHERS:
            raise UnknownName("--fetcher", "fetcher", self.fetcher, FETCHERS)

    def described(self) -> dict[str, Any]:
        """The settings that decide what is stored, as JSON. Deadlines and retries do not: they may change.

        Raises InputError for a block list that cannot be read.
        """
        from curate.fetch import blocks

        blocked = self.limits.block_list
        return {
            "images": replace(self.images, verify_hash=None).as_json(),
            "samples_per_shard": self.samples_per_shard,
            "blur": self.blur,
            "dedup_urls": self.dedup_urls,
            "placeholder_urls": self.placeholder_urls,
            "fetcher": self.fetcher,
            "max_bytes": self.limits.max_bytes,
            "obey_opt_out": self.limits.obey_opt_out,
            "obey_robots": self.limits.obey_robots,
            "block_list": blocks.load(blocked).sha256 if blocked else None,
        }

    def columns(self, source: SourceList, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the columns of a list stand for: as is set, else as it was `before`, else as its names say.

        Raises InputError for a column that it lacks.
        """
        boxes, hashes = self.bbox_col, None
        if boxes:
            _need(source, "--bbox-col", boxes, "--bbox-col COLUMN")
        elif before:
            boxes = before["boxes"]
        else:
            boxes = source.box_column
        if self.verify_column:
            _need(source, "--verify-hash", self.verify_column, "--verify-hash COLUMN HASH")
            hashes = [self.verify_column, self.images.verify_hash]
        elif before:
            hashes = before["hash"]
        elif source.root is None and (column := source.hash_column):  # what a tar says of a hash is of its original
            hashes = [column, "sha256"]
        return sources.columns_of(source, boxes=boxes, hashes=hashes)


def _need(source: SourceList, flag: str, column: str, usage: str) -> None:
    if column not in source.other_columns:
        columns = ", ".join(source.other_columns) or "none besides url and caption"
        close = nearest(column, source.other_columns)
        raise InputError(
            flag,
            f"the list has no column {column!r} (found: {columns})",
            hint=f"did you mean {close!r}?" if close else usage,
        )
