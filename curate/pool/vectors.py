"""Where a model's vectors of this pool lie: published beside the metadata, or embedded here per shard."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import receipts
from curate.errors import PartError
from curate.pool import Pool
from curate.pool.layout import file_identity
from curate.pool.names import PUBLISHED

if TYPE_CHECKING:
    import numpy.typing as npt
    import polars as pl

_FEW = 9
"""So many npz are asked how wide their vectors are."""


@dataclass(frozen=True)
class VectorSource:
    """One model's vectors of one side, a file a part.

    `per` is `part` where rows are those of the pool's parts, `shard` where they are those of its shards'.
    """

    pool: Pool
    model: str
    side: str
    kind: str
    """`published` (npz) or `own` (npy)."""

    @property
    def per(self) -> str:
        """Which parts the files go with."""
        return self.pool.per_shard if self.kind == "own" else "part"

    @property
    def names(self) -> list[str]:
        """The parts that there are files for, or should be."""
        return [s.name for s in self.pool.shards] if self.kind == "own" else [p.name for p in self.pool.parts]

    def array(self, part: str) -> npt.NDArray[Any]:
        """rows x dim, float16, L2-normalised, mapped. Raises PartError where it is missing or not that."""
        import numpy as np

        from curate.pool import npz

        path = self._path(part)
        if self.kind == "published":
            names = PUBLISHED[self.model]
            array = npz.member(path, names.image if self.side == "image" else names.text)
        else:
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise PartError(str(path), f"cannot be read ({error})", hint=self._remedy()) from error
        if array.ndim != 2 or array.dtype not in (np.float16, np.float32):
            what = f"{self.side} vectors of {self.model} are no matrix of float16 or float32"
            raise PartError(str(path), f"{what} ({array.dtype}, shape {array.shape})", hint=self._remedy())
        first, width = self.pool.widths.setdefault((self.model, self.side, self.kind), (path, array.shape[1]))
        if array.shape[1] != width:
            what = (
                f"{self.side} vectors of {self.model} have {array.shape[1]:,} numbers where {first} has {width:,}"
            )
            raise PartError(str(path), what, hint=self._remedy())
        return array

    def codes(self, part: str) -> pl.Series:
        """The error code of each row that has no vector, else null."""
        import polars as pl

        if self.kind == "published":
            return pl.Series([None] * len(self.array(part)), dtype=pl.String)
        path = self.folder / f"{part}.parquet"
        column = "error_code" if self.side == "image" else "text_error_code"
        if not path.is_file():
            raise PartError(str(path), "is missing", hint=self._remedy())
        try:
            return pl.read_parquet(path, columns=[column], glob=False)[column].cast(pl.String)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise PartError(str(path), f"cannot be read ({error})", hint=self._remedy()) from error

    def identity(self, part: str) -> str:
        """What the vectors of a part are known by."""
        if self.kind == "published":
            return receipts.digest(file_identity(self._path(part)))
        receipt = receipts.read_receipt(self.folder, part)
        if receipt is None:
            raise PartError(f"{self.folder}/{part}", "has no receipt", hint=self._remedy())
        return receipt.identity

    @property
    def folder(self) -> Path:
        """The folder of our own vectors."""
        return self.pool.layout.embeddings(self.pool.embedded[self.model])

    def _path(self, part: str) -> Path:
        if self.kind == "own":
            return self.folder / f"{part}.{self.side}.npy"
        found = next((p.npz for p in self.pool.parts if p.name == part), None)
        if found is None:
            raise PartError(part, "has no npz of published vectors")
        return found

    def _remedy(self) -> str:
        if self.kind == "published":
            return "bring this npz again (DataComp's: curate download --scale SCALE --metadata-only --embeddings)"
        return f"curate embed --pool {self.pool.layout.root} --model {self.model}"


def find(pool: Pool, model: str, side: str) -> VectorSource | None:
    """The vectors of `model`: published where every part has them, else our own, else None."""
    if model in pool.published:
        return VectorSource(pool, model, side, "published")
    if model in pool.embedded:
        return VectorSource(pool, model, side, "own")
    return None


def lacking(pool: Pool, model: str) -> dict[str, str]:
    """The parts that have no published vectors of `model` although others have, and why."""
    found = absent(pool, model)
    return found if len(found) < len(pool.parts) else {}


def absent(pool: Pool, model: str) -> dict[str, str]:
    """The parts that have no published vectors of `model`, and why; none for a model that nobody publishes."""
    from curate.pool import npz

    names = PUBLISHED.get(model)
    if names is None:
        return {}
    found = {}
    for part in pool.parts:
        try:
            there = npz.names(part.npz) if part.npz else []
        except PartError as error:
            found[part.name] = str(error)
        else:
            missing = [n for n in (names.image, names.text) if n not in there]
            if missing:
                found[part.name] = f"no {' and no '.join(missing)}" if part.npz else "no npz"
    return found


def widths(pool: Pool) -> dict[tuple[str, str, str], tuple[Path, int]]:
    """Of published vectors (model, side, `published`) a file, and how wide most of the first few files are."""
    found = {}
    for model in pool.published:
        for side, name in (("image", PUBLISHED[model].image), ("text", PUBLISHED[model].text)):
            if read := _first_widths(pool, name):
                common = Counter(read.values()).most_common(1)[0][0]
                found[model, side, "published"] = next(p for p, width in read.items() if width == common), common
    return found


def _first_widths(pool: Pool, name: str) -> dict[Path, int]:
    from curate.pool import npz

    found = {}
    for path in [p.npz for p in pool.parts if p.npz and name in pool.arrays[p.name]][:_FEW]:
        with suppress(PartError):
            array = npz.member(path, name)
            if array.ndim == 2:
                found[path] = int(array.shape[1])
    return found
