"""Deduplication: of all copies of a sample one stays, and the reason names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from curate.filter_api import Column, Draw, Left, Need, Neighbours, Sampler, Vectors, components, setting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

    Int64 = npt.NDArray[np.int64]
    Pairs = tuple[Int64, Int64, npt.NDArray[np.float32]]

_IMAGE, _ADDRESS, _NEAR = range(3)  # places in `reasons`
_IDENTITY = ("sha256", "url", "caption")


@dataclass(frozen=True)
class Dedup(Sampler):
    """Keep one sample of each group of copies.

    Two samples are copies if their images have equal bytes (sha256 as downloaded), or their URL and caption
    are equal, or, with `model=`, the cosine of their image vectors by that model is at least `threshold`.
    Copies of copies are one group: near copies may be linked through a third and be less alike themselves.
    Samples that have nothing to compare stay; with `model=` those without an image vector are unjudged.

    Which one stays: the best by the columns of `keep`, in their order, larger being better and no value
    worst, except `uid`, of which the lowest is better and which also decides last ties. `area` stands for
    original_width * original_height. Example: keep=aesthetic+area.

    The reason is the drop's relation to the copy that stayed, or where it has none to that one its closest
    to any of the group; `near_duplicate` has the cosine of that relation.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "same_image": "the same image bytes in the group of {of}, which stays",
        "same_url_caption": "the same URL and caption in the group of {of}, which stays",
        "near_duplicate": "an image at cosine {value:.3f} in the group of {of}, which stays",
    }

    model: str | None = setting(None, "ARCH/PRETRAINED for near duplicates; default: exact ones only")
    threshold: float = setting(0.95, "least cosine of near duplicates, -1..1; only with model")
    keep: tuple[str, ...] = setting(
        ("area", "uid"), "which copy stays: columns, best first, larger is better (uid: lower; area: pixels)"
    )

    def __post_init__(self) -> None:
        if self.model == "":
            raise ValueError("model is ARCH/PRETRAINED, or left out for exact duplicates only (found '')")
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is a cosine, -1..1 (found {self.threshold})")
        if not self.keep or len(set(self.keep)) < len(self.keep) or "" in self.keep:
            raise ValueError(f"keep names each column once, best first (found {'+'.join(self.keep) or 'none'})")

    def needs(self) -> list[Need]:
        columns = {name: Column(name, optional=True) for name in _IDENTITY}
        for name in self.keep:
            if name == "area":
                for side in ("original_width", "original_height"):
                    columns.setdefault(side, Column(side, optional=True))
            elif name != "uid":
                columns[name] = Column(name)
        wanted: list[Need] = list(columns.values())
        if self.model is not None:
            wanted += [Vectors(self.model, "image"), Neighbours(self.model, self.threshold)]
        return wanted

    def draw(self, left: Left) -> Draw:
        import numpy as np

        table = left.frame(*_identities(), *self._ranks()).collect()
        judged = np.ones(left.n, np.bool_)
        near: Pairs = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        if self.model is not None:
            judged = left.vectors(self.model, "image")[0]
            near = left.neighbours(self.model, self.threshold, links=True)
        rows = np.arange(left.n)
        image = _first_equal(table, "image", judged)
        address = _first_equal(table, "address", judged)
        stays = _best(table, components(left.n, (image, rows), (address, rows), near[:2]))
        dropped = stays != rows
        reason, cosine = _relations(stays, image, address, near)
        return Draw(
            (judged & ~dropped).astype(np.uint16),
            reason,
            value=np.where(dropped & (reason == _NEAR), cosine, np.float32(np.nan)),
            of=np.where(dropped, stays, -1),
            unjudged=~judged,
        )

    def _ranks(self) -> list[pl.Expr]:
        """The columns that rank copies, as far as `uid`, which is the order of the rows."""
        import polars as pl

        area = pl.col("original_width").cast(pl.Float64) * pl.col("original_height")
        names = self.keep[: self.keep.index("uid")] if "uid" in self.keep else self.keep
        return [(area if name == "area" else pl.col(name)).alias(f"keep_{k}") for k, name in enumerate(names)]


def _identities() -> list[pl.Expr]:
    """What can be equal, as two 64-bit hashes each, so that millions of URLs and captions need not be held.

    The first is null where there is nothing to compare: no sha256, no URL. No caption equals no caption.
    """
    import polars as pl

    digest, url, caption = (pl.col(name).cast(pl.String) for name in _IDENTITY)
    return [
        pl.when(digest.str.len_bytes() > 0).then(digest.str.slice(0, 32).hash(1)).alias("image_0"),
        digest.str.slice(32).hash(2).alias("image_1"),
        pl.when(url.str.len_bytes() > 0).then(url.hash(3)).alias("address_0"),
        caption.hash(4).alias("address_1"),
    ]


def _first_equal(table: pl.DataFrame, what: str, judged: npt.NDArray[np.bool_]) -> Int64:
    """For each row the first judged row that equals it in `what`; itself where there is nothing to compare."""
    import numpy as np

    first = np.arange(len(table))
    rows = np.flatnonzero(judged & table[f"{what}_0"].is_not_null().to_numpy())
    one, two = (table[f"{what}_{k}"].fill_null(0).to_numpy()[rows] for k in (0, 1))
    order = np.lexsort((two, one))
    one, two = one[order], two[order]
    head = np.arange(len(order))
    head[1:][(one[1:] == one[:-1]) & (two[1:] == two[:-1])] = 0
    first[rows[order]] = rows[order[np.maximum.accumulate(head)]]
    return first


def _best(table: pl.DataFrame, group: Int64) -> Int64:
    """For each row the best row of its group, by the columns `keep_*`; ties by row."""
    import numpy as np
    import polars as pl

    members = np.flatnonzero(np.bincount(group, minlength=len(group))[group] > 1)
    ranks = [name for name in table.columns if name.startswith("keep_")]
    columns = {"group": group[members], "row": members, **{name: table[name][members] for name in ranks}}
    best = (
        pl.DataFrame(columns)
        .sort("group", *ranks, "row", descending=[False, *(True for _ in ranks), False], nulls_last=True)
        .unique("group", keep="first", maintain_order=True)
    )
    stays = np.arange(len(group))
    stays[best["group"].to_numpy()] = best["row"].to_numpy()
    return stays[group]


def _relations(
    stays: Int64, image: Int64, address: Int64, near: Pairs
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """What relates each row to the one that stays, or else to its group, and the cosine of that relation."""
    import numpy as np

    i, j, cosine = near
    closest = np.full(len(stays), -2.0, np.float32)
    np.maximum.at(closest, i, cosine)
    np.maximum.at(closest, j, cosine)
    direct = np.full(len(stays), -2.0, np.float32)
    for row, other in ((i, j), (j, i)):
        here = stays[row] == other
        direct[row[here]] = cosine[here]
    alike = [np.bincount(first, minlength=len(stays))[first] > 1 for first in (image, address)]
    reason = np.select(
        [image == image[stays], address == address[stays], direct >= -1, *alike],
        [_IMAGE, _ADDRESS, _NEAR, _IMAGE, _ADDRESS],
        _NEAR,
    )
    return reason.astype(np.uint8), np.where(direct >= -1, direct, closest)
