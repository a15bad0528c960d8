"""Pools that hold every boundary of DataComp's baselines, from a seed.

Rows are the boundary captions, sizes and scores one at a time, then mixed at random. Nothing in them depends on the
machine, and only on integers of NumPy's generator.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from .boundaries import CAPTION, CAPTIONS, SCORES, SIZE, SIZES, about
from .metadata import Form, MadePool, Rows


def uid_of(pool: str, row: int) -> str:
    """A uid: as random as a hash, some with equal halves and at the ends of the range."""
    made = hashlib.sha256(f"{pool}/{row}".encode()).hexdigest()[:32]
    edges = {
        0: "0" * 32,
        1: "f" * 32,
        2: "8" + "0" * 31,
        3: "7" + "f" * 31,
        4: "0" * 16 + "f" * 16,
        5: "0" * 31 + "1",
    }
    if row in edges:
        return edges[row]
    return "abcdef0123456789" + made[16:] if row % 16 == 6 else made


def _rows(pool: str, seed: int, mixed: int, scores: Sequence[float] = ()) -> Rows:
    """Every boundary once with the rest as it should be, then `mixed` rows of chance.

    Scores are multiples of 1/2048, so that many are equal, unless `scores` are given to draw from.
    """
    rng = np.random.default_rng(seed)
    captions = [*CAPTIONS, *[CAPTION] * (len(SIZES) + len(SCORES))]
    sizes = [*[SIZE] * len(CAPTIONS), *SIZES, *[SIZE] * len(SCORES)]
    captions += [CAPTIONS[i] for i in rng.integers(0, len(CAPTIONS), mixed)]
    sizes += [SIZES[i] for i in rng.integers(0, len(SIZES), mixed)]
    n = len(captions)
    drawn = [(rng.integers(0, 1024, n) / 2048).tolist() for _ in range(2)]
    if scores:
        drawn = [[scores[i] for i in rng.integers(0, len(scores), n)] for _ in range(2)]
    order = rng.permutation(n).tolist()
    picked = [[values[i] for i in order] for values in (captions, sizes)]
    return Rows([uid_of(pool, i) for i in range(n)], *picked, *drawn)  # type: ignore[arg-type]


def _cut(pool: str, rows: Rows, forms: Sequence[Form], sizes: Sequence[int] = ()) -> MadePool:
    """The rows as files of about equal length, or of the `sizes` given (the last has what is left)."""
    share = -(-len(rows) // len(forms))
    ends = list(itertools.accumulate(sizes or [share] * (len(forms) - 1)))
    files = []
    for number, (start, end) in enumerate(itertools.pairwise([0, *ends, len(rows)])):
        stem = hashlib.md5(f"{pool} {number}".encode(), usedforsecurity=False).hexdigest()
        files.append((stem, Rows(*(values[start:end] for values in vars(rows).values())), forms[number]))
    return MadePool(pool, files)


def _published() -> MadePool:
    rows = _rows("published", 10, 200)
    return _cut("published", rows, [Form(), Form(), Form(near=True), Form()], [200, 1, 150])


def _other_types() -> MadePool:
    form = Form("float64", "int32", "large_string", row_group=50, faces=False, all_members=False)
    return _cut("other_types", _rows("other_types", 11, 100), [form, replace(form, near=True)])


def _mixed_types() -> MadePool:
    scores = [s for score in (0.25, 0.3) for s in about(score)] + [0.1, 0.2, 0.4]
    rows = _rows("mixed_types", 12, 0, scores)
    return _cut("mixed_types", rows, [Form(), Form("float64", "int32"), Form("float32", "int32")])


def _copies() -> MadePool:
    """Every third row has the uid of another, with a caption, size and score of its own."""
    rows = _rows("copies", 13, 150)
    n = len(rows)
    uid = [rows.uid[(i * 7) % 40] if i % 3 == 0 else rows.uid[i] for i in range(n)]
    return _cut("copies", replace(rows, uid=uid), [Form()] * 3)


def _unscored() -> MadePool:
    """A fifth has no score, and one file none at all."""
    rows = _rows("unscored", 14, 50)
    nan = float("nan")
    third = len(rows) // 3
    b32 = [nan if i % 5 == 0 or i < third else s for i, s in enumerate(rows.b32)]
    l14 = [nan if i % 5 == 1 or i >= 2 * third else s for i, s in enumerate(rows.l14)]
    return _cut("unscored", replace(rows, b32=b32, l14=l14), [Form()] * 3, [third, third])


def _no_scores() -> MadePool:
    rows = _rows("no_scores", 15, 0)
    none = [float("nan")] * len(rows)
    return _cut("no_scores", replace(rows, b32=none, l14=none), [Form(), Form("float64")])


def _level() -> MadePool:
    """All scores are equal but some lower ones, more than the rank at which a usual fraction cuts."""
    rows = _rows("level", 16, 0)
    return _cut(
        "level",
        replace(rows, b32=[0.3] * len(rows), l14=[0.3 - (i % 9 == 0) / 8 for i in range(len(rows))]),
        [Form()] * 2,
    )


def _edges(name: str, score: str, seed: int) -> MadePool:
    return _cut(name, _rows(name, seed, 0, SCORES), [Form(score)] * 2)


def _broken_vectors() -> MadePool:
    return _cut("broken_vectors", _rows("broken_vectors", 19, 0), [Form(broken=True), Form(broken=True, near=True)])


def _hundred() -> MadePool:
    """A hundred rows of unlike scores: a fraction of them is a whole number, though not always as floats."""
    rows = _rows("hundred", 20, 0)
    cut = Rows(*(values[:100] for values in vars(rows).values()))
    return _cut("hundred", replace(cut, l14=[s + i / 2**20 for i, s in enumerate(cut.l14)]), [Form()] * 2)


def _few() -> MadePool:
    """Three files of one row and one of none."""
    rows = Rows(
        [uid_of("few", i) for i in (1, 2, 9)], [CAPTION, "", CAPTION], [SIZE] * 3, [0.3, 0.2, 0.3], [0.2, 0.3, 0.4]
    )
    return _cut("few", rows, [Form()] * 4, [1, 1, 1])


MAKERS: dict[str, Callable[[], MadePool]] = {
    "published": _published,
    "other_types": _other_types,
    "mixed_types": _mixed_types,
    "copies": _copies,
    "unscored": _unscored,
    "no_scores": _no_scores,
    "level": _level,
    "edges": lambda: _edges("edges", "float32", 17),
    "edges_double": lambda: _edges("edges_double", "float64", 18),
    "broken_vectors": _broken_vectors,
    "hundred": _hundred,
    "few": _few,
}
