"""What a part had before its shard was replaced, and which rows of that hold as they are.

A second download pass replaces a shard of which most images are what they were. Each row of vectors, and of a
score over pixels, is stored with a digest of all that it was made of; rows whose digest is the same are copied,
and only the others are computed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import receipts
from curate.receipts import Receipt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

log = logging.getLogger("curate.reuse")

MADE_OF = "made_of"
"""The column of digests."""


@dataclass(frozen=True)
class Todo:
    """What a stage has yet to do: parts whose files are not current, and rows in them that must be computed."""

    parts: int
    rows: int

    def __bool__(self) -> bool:
        return self.parts > 0


def digests(stored: Iterable[str | None], *values: Iterable[Any]) -> pl.Series:
    """16 bytes a row that stand for its image's bytes (`stored`, their sha256) and its other `values`.

    Null where `stored` is: of a row without known bytes nothing can be kept.
    """
    import polars as pl

    rows = zip(stored, *values, strict=True)
    made = (None if row[0] is None else repr(row).encode("utf-8", "surrogatepass") for row in rows)
    return pl.Series(MADE_OF, [r and hashlib.sha256(r).digest()[:16] for r in made], dtype=pl.Binary)


@dataclass(frozen=True)
class Before:
    """The files of a part, made with the same settings from other inputs."""

    folder: Path
    receipt: Receipt
    table: pl.DataFrame
    """With `uid` and the digests of its rows."""

    def rows(self, uids: pl.Series, made_of: pl.Series) -> npt.NDArray[np.int64]:
        """For each row of the part as it is now the row here with the same uid and digest, else -1."""
        import numpy as np

        known: dict[tuple[str, bytes], int] = {}
        for row, (uid, digest) in enumerate(zip(self.table["uid"], self.table[MADE_OF], strict=True)):
            if digest is not None:
                known.setdefault((uid, digest), row)
        found = [known.get(pair, -1) for pair in zip(uids, made_of, strict=True)]
        return np.array(found, dtype=np.int64)

    def whole(self) -> bool:
        """Whether every file has the bytes that its receipt says: what is copied gets a new receipt."""
        for name, written in self.receipt.outputs.items():
            try:
                whole = receipts.file_sha256(self.folder / name) == written.sha256
            except OSError:
                whole = False
            if not whole:
                log.warning("%s is not as it was written: nothing is taken over from it", self.folder / name)
                return False
        return True


def before(
    stage: str,
    version: int,
    part: str,
    folder: Path,
    what: Mapping[str, Any],
    *,
    inputs: frozenset[str],
    columns: frozenset[str] = frozenset({"uid", MADE_OF}),
) -> Before | None:
    """What the part has where that differs from `what` in its `inputs` alone; None where there is no such thing.

    Also None where its table cannot be read, or has not these columns.
    """
    import polars as pl

    receipt = receipts.read_receipt(folder, part)
    if receipt is None or (receipt.stage, receipt.version) != (stage, version):
        return None
    if not inputs.issuperset(receipts.changed(receipt.what, what)) or receipt.missing(folder):
        return None
    try:
        table = pl.read_parquet(folder / f"{part}.parquet", glob=False)
    except (OSError, pl.exceptions.PolarsError):
        return None
    return Before(folder, receipt, table) if columns <= set(table.columns) else None
