"""Thumbnails of samples as data: URIs, or the reason why there is none."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from curate.decoding import Span, decode, image_bytes, open_tar
from curate.errors import ERROR_CODES, PartError, SampleError
from curate.pool import FAILED, Part, Pool
from curate.pool.join import Join

if TYPE_CHECKING:
    from curate.pool import Shard

SIDE = 192
"""Pixels of a thumbnail's longer side at most."""
QUALITY = 62

_UNWANTED = "no thumbnails were asked for"


@dataclass(frozen=True)
class Picture:
    """A sample's thumbnail, or why it has none."""

    source: str | None
    """A data: URI."""
    why: str = ""
    width: int = 0
    height: int = 0
    """Pixels of the thumbnail."""
    blocked: bool = False
    """Then nothing that leads to the sample may be shown."""


def meaning(code: str) -> str:
    """What an error code says, in words; the code itself where it is unknown."""
    known = "http_NNN" if code.startswith("http_") else code
    return ERROR_CODES.get(known, code)


class Pictures:
    """The thumbnails of a pool's samples; none are made unless they are `wanted`."""

    def __init__(self, pool: Pool, *, wanted: bool = True) -> None:
        self._pool, self._wanted = pool, wanted
        self._join = Join(pool)

    def of(self, part: Part, rows: Sequence[int]) -> list[Picture]:
        """One picture for each of these rows of a part."""
        made: dict[int, Picture] = {}
        for shard, places in self._places(part, rows).items():
            if shard is None:
                made |= {at: Picture(None, self._absent if self._wanted else _UNWANTED) for at in places}
            else:
                made |= self._of_shard(self._pool.shards[shard], places)
        return [made[at] for at in range(len(rows))]

    @cached_property
    def _absent(self) -> str:
        if not self._pool.shards:
            return "no image: the pool is metadata alone"
        return f"no image: {meaning('not_downloaded')}"

    def _places(self, part: Part, rows: Sequence[int]) -> Mapping[int | None, dict[int, int]]:
        """By number of the shard, None for none: which of `rows` lie there, and in which of its rows."""
        numbers = {s.name: n for n, s in enumerate(self._pool.shards)}
        if part.shard is not None:
            return {numbers.get(part.shard.name): dict(enumerate(rows))}
        if not numbers:
            return {None: dict(enumerate(rows))}
        import numpy as np

        places: dict[int | None, dict[int, int]] = {}
        for at, row in enumerate(self._join.rows(part)[list(rows)].tolist()):
            shard = None if row < 0 else int(np.searchsorted(self._join.starts, row, side="right")) - 1
            places.setdefault(shard, {})[at] = row if shard is None else row - int(self._join.starts[shard])
        return places

    def _of_shard(self, shard: Shard, places: Mapping[int, int]) -> Iterator[tuple[int, Picture]]:
        try:
            table = pl.read_parquet(shard.table, columns=["key", FAILED], glob=False)
            index = pl.read_parquet(shard.index, glob=False)
        except (OSError, pl.exceptions.PolarsError):
            why = f"shard {shard.name}: its table or index cannot be read"
            yield from ((at, Picture(None, why)) for at in places)
            return
        wanted = table[list(places.values())].join(index, on="key", how="left", maintain_order="left")
        with ExitStack() as stack:
            tar: int | PartError | None = None
            try:
                if self._wanted:
                    tar = open_tar(str(shard.tar))
                    stack.callback(os.close, tar)
            except PartError as error:
                tar = error
            for at, row in zip(places, wanted.iter_rows(named=True), strict=True):
                yield at, self._thumbnail(tar, shard, row)

    def _thumbnail(self, tar: int | PartError | None, shard: Shard, row: Mapping[str, object]) -> Picture:
        """`tar` is None where no thumbnails are wanted."""
        if row[FAILED] == "blocked":
            return Picture(None, f"blocked: {meaning('blocked')}", blocked=True)
        if tar is None:
            return Picture(None, _UNWANTED)
        if (code := row[FAILED]) is not None:
            return Picture(None, f"{code}: {meaning(str(code))}")
        if isinstance(tar, PartError):
            return Picture(None, f"shard {shard.name}: {tar.what}")
        if row["offset"] is None:
            return Picture(None, f"lost: {meaning('lost')}")
        span = Span(str(row["key"]), int(str(row["offset"])), int(str(row["length"])))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of odd images, row by row
                run = os.pread(tar, span.length, span.offset)
                data, width, height = _small(image_bytes(run, span, str(shard.tar)))
        except SampleError as error:
            return Picture(None, f"{error.code}: {meaning(error.code)}")
        except PartError as error:
            return Picture(None, f"shard {shard.name}: {error.what}")
        except MemoryError:
            return Picture(None, "the image does not fit into memory")
        return Picture("data:image/webp;base64," + base64.b64encode(data).decode(), "", width, height)


def _small(data: bytes) -> tuple[bytes, int, int]:
    """An image's WebP thumbnail, its width and height. Raises SampleError where it does not decode."""
    image = decode(data)
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY, method=4)
    return out.getvalue(), image.width, image.height
