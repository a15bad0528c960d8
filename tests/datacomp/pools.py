"""Metadata folders in DataComp's form that hold every boundary of its baselines, from a seed.

Rows are the boundary captions, sizes and scores one at a time, then mixed at random. Nothing in them depends on the
machine, and only on integers of NumPy's generator.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .assets import CENTROIDS, DIM, centroids, sparse

SPACES = (
    *("\t", "\n", "\v", "\f", "\r", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2009"),
    *("\u2028", "\u2029", "\u202f", "\u205f", "\u3000"),
)
"""What Python splits at; fastText does at the first five only."""
NO_SPACES = ("\0", "\u200b", "\u180e", "\ufeff", "\u2060")
"""What Python does not split at, and fastText only at the first."""
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
"""One picture of 5 code points."""
TOKENS = (
    *(
        "dog",
        "dogs",
        "Dogs",
        "DOG",
        "dog,",
        "dog.",
        "dog's",
        "(dog)",
        '"dog"',
        "dog-dog",
        "domestic_dog",
        "hot_dog",
    ),
    *("geese", "goose", "womens", "ladieses", "dogss", "dogsss", "mens", "men", "lovings", "loving", "ran", "runs"),
    *(
        "running",
        "blue",
        "Blue",
        "church",
        "churches",
        "bank",
        "banks",
        "k",
        "K",
        "\u212a",
        "dr.",
        "dr",
        "a.m.",
        "am",
    ),
    *("quickly", "new", "newer", "newest", "old", "older", "olden", "hot", "hotter", "table", "tables", "tableses"),
    *("painted", "exists", "is", "are", "be", "bee", "bees", "caf\xe9", "cafe\u0301", "CAF\xc9", "caf\xe9s", "cat"),
    *("\u0130", "\u017f", "s", "men's", "ss", "\ufb00", "d\u043eg", "\uff44\uff4f\uff47", "dog\u200b", "\ufeffdog"),
    *("very", "123", "_", "dog_", "run", "woman", "women", "boxes", "knives", "love", "loved", "loveing", "the"),
)
"""Words as WordNet is asked for them: inflected, in other cases, with punctuation, of one part of speech only."""
CAPTIONS = (
    *("", " ", "\n", "\0", "   ", "a", "dog", "a a a", "a a an", "a an a", "a a  a", "a a a ", " a a a"),
    *("abc an", "abc a an", "abcde", "abcdef", "abcdef ", "abcdef\n", "\nabcdef", "abcdef\ndog", "dog\ndog\ndog"),
    *(
        f"a dog {FAMILY}",
        f"a a {FAMILY[:1]}",
        f"a a {FAMILY[:2]}",
        f"a {FAMILY}",
        FAMILY,
        FAMILY * 2,
        f"{FAMILY} dog",
    ),
    *(
        "a e\u0301 a",
        "a \xe9 a",
        "a \xe9 a.",
        "\U0001f1e9\U0001f1ea a dog",
        "a dog \U0001f469\U0001f3fd\u200d\U0001f680",
    ),
    *(
        "ein hund auf dem tisch",
        "un chien sur la table",
        "a dog ein hund",
        "dog hund",
        "dog hund chien",
        "the the hund",
    ),
    *("ein dog mit dogs", "hund hund dog dog dog", "xyzzy plugh", "\u4e00\u53ea\u72d7\u5728\u684c\u5b50\u4e0a"),
    *(
        "\u0441\u043e\u0431\u0430\u043a\u0430 \u043d\u0430 \u0441\u0442\u043e\u043b\u0435",
        "IMG_0001.JPG",
        "a photo of a",
        "12345 67890 12",
    ),
    *(
        "very old very old",
        "the of and in",
        "a " * 10_000 + "dog",
        "is " * 400 + "hund " * 400,
        "the" * 1_000 + " of the",
    ),
    *(
        "\xe9" * 600 + " a dog",
        "A NEW DOG FOR SALE",
        "a\u0301 dog on a table",
        "<b>a dog</b> on a table &amp; a cat",
    ),
    *(f"a{s}dog{s}table" for s in SPACES + NO_SPACES),
    *(f"a dog{s}is" for s in SPACES + NO_SPACES),
    *(f"photo{s}abc" for s in SPACES + NO_SPACES),
    *(f"{s}the of{s}" for s in SPACES + NO_SPACES),
    *(f"the{t} {t} of the" for t in ("\0", "\x1c", "\x85")),
    *(f"the {token} of the" for token in TOKENS),
    *(f"the\xa0{token}" for token in TOKENS[:12]),
)
SIZES = (
    *((199, 199), (199, 200), (200, 199), (200, 200), (199, 500), (201, 250), (200, 600), (600, 200), (601, 200)),
    *((200, 601), (602, 200), (300, 900), (900, 300), (901, 300), (1000, 333), (1002, 334), (1003, 334), (0, 0)),
    *((0, 300), (300, 0), (1, 1), (10_000, 3_333), (9_999, 3_333), (10_000, 3_334), (65_500, 21_833), (640, 480)),
)
"""Width and height about the least side of 200 and the greatest ratio of 3."""
CAPTION, SIZE = "a photo of a dog on a table", (640, 480)
"""Such as pass every condition."""


def _about(score: float) -> Iterator[float]:
    """A score, what float32 makes of it, and the neighbours of both."""
    single = np.float32(score)
    for near in (single, np.nextafter(single, np.float32(0)), np.nextafter(single, np.float32(1))):
        yield float(near)
    for close in (
        score,
        np.nextafter(score, 0),
        np.nextafter(score, 1),
        round(score, 2) + 1e-5,
        round(score, 2) - 1e-5,
    ):
        yield float(close)


SCORES = (*dict.fromkeys(itertools.chain(*map(_about, (0.3, 0.28, 0.25)))), 0.0, -0.0, -0.1, 1.0, 0.5)
"""Scores about the thresholds that are used."""


@dataclass(frozen=True)
class Rows:
    """What one metadata file holds. Scores are float64 here; `Form` says what they are stored as."""

    uid: list[str]
    caption: list[str]
    size: list[tuple[int, int]]
    b32: list[float]
    l14: list[float]

    def __len__(self) -> int:
        return len(self.uid)


@dataclass(frozen=True)
class Form:
    """How one metadata file is written; the defaults are DataComp's."""

    score: str = "float32"
    size: str = "int64"
    text: str = "string"
    row_group: int = 1 << 20
    faces: bool = True
    all_members: bool = True
    """Whether the npz has all five arrays and was streamed, or only those of one model."""
    near: bool = False
    """Whether its image vectors are dense ones, for which products round."""
    broken: bool = False
    """Whether some image vectors hold NaN or infinity."""


@dataclass(frozen=True)
class MadePool:
    """A pool by its files: name without suffix, rows and form."""

    name: str
    files: Sequence[tuple[str, Rows, Form]] = field(repr=False)

    @property
    def uids(self) -> npt.NDArray[np.void]:
        """Every uid, as often as it stands in the pool, sorted as DataComp's lists are."""
        found = [(int(u[:16], 16), int(u[16:], 16)) for _, rows, _ in self.files for u in rows.uid]
        return np.array(sorted(found), np.dtype("u8,u8"))

    @property
    def digest(self) -> str:
        """Of all that a decision can depend on; the same where the same pool is made."""
        said = hashlib.sha256()
        for stem, rows, form in self.files:
            said.update(repr((stem, vars(rows), vars(form))).encode())
            said.update(vectors(self.name, stem, len(rows), form).tobytes())
        return said.hexdigest()

    def write(self, folder: Path) -> Path:
        """Parquet files with their npz beside them, in a new folder."""
        folder.mkdir(parents=True)
        for stem, rows, form in self.files:
            table = _table(rows, form)
            pq.write_table(table, folder / f"{stem}.parquet", row_group_size=form.row_group)
            _write_npz(folder / f"{stem}.npz", vectors(self.name, stem, len(rows), form), form)
        return folder


def _table(rows: Rows, form: Form) -> pa.Table:
    width, height = zip(*rows.size, strict=True) if rows.size else ((), ())
    single = pa.type_for_alias(form.score)
    columns = {
        "uid": pa.array(rows.uid, pa.string()),
        "url": pa.array([f"https://images.example/{u[:12]}.jpg" for u in rows.uid], pa.string()),
        "text": pa.array(rows.caption, pa.type_for_alias(form.text)),
        "original_width": pa.array(width, pa.type_for_alias(form.size)),
        "original_height": pa.array(height, pa.type_for_alias(form.size)),
        "clip_b32_similarity_score": pa.array(np.array(rows.b32), pa.float64()).cast(single, safe=False),
        "clip_l14_similarity_score": pa.array(np.array(rows.l14), pa.float64()).cast(single, safe=False),
    }
    if form.faces:
        columns["face_bboxes"] = pa.array([[[0.1, 0.2, 0.3, 0.4]][: i % 2] for i in range(len(rows))], _BOXES)
        columns["sha256"] = pa.array([hashlib.sha256(u.encode()).hexdigest() for u in rows.uid], pa.string())
    return pa.table(columns)


_BOXES = pa.list_(pa.list_(pa.float64()))


def vectors(pool: str, stem: str, rows: int, form: Form) -> npt.NDArray[np.float16]:
    """The image vectors of a file."""
    rng = np.random.default_rng(list(f"{pool}/{stem}".encode()))
    made = _dense(rng, rows) if form.near else sparse(rng, rows)
    if form.broken:
        made[0::7], made[1::7, 5], made[2::7, 6], made[3::7, 7] = np.nan, np.inf, -np.inf, np.nan
        made[4::7] = 0
    return made


def _dense(rng: np.random.Generator, rows: int) -> npt.NDArray[np.float16]:
    """Unit vectors whose best centroid leads by more than the order of a sum could change."""
    known = np.delete(centroids().astype(np.float64), 31, axis=0)
    found: list[npt.NDArray[np.float16]] = []
    while len(found) < rows:
        # a sum of uniform integers, not a normal draw: the same bits under every version of NumPy
        drawn = rng.integers(-1000, 1001, (rows + 1, DIM)).astype(np.float64)
        drawn = (drawn / np.sqrt((drawn**2).sum(axis=1, keepdims=True))).astype(np.float16)
        best = np.sort(drawn.astype(np.float64) @ known.T, axis=1)
        found += list(drawn[best[:, -1] - best[:, -2] > 1e-3])
    return np.array(found[:rows], np.float16).reshape(rows, DIM)


class _Sink:
    """A stream that cannot be sought in, as DataComp's npz files were written to."""

    read = None
    """What NumPy takes a file for is something to be read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write, self.flush = file.write, file.flush


def _write_npz(file: Path, image: npt.NDArray[np.float16], form: Form) -> None:
    rows = len(image)
    with file.open("wb") as out:
        if not form.all_members:
            np.savez(out, l14_txt=np.zeros((rows, DIM), np.float16), l14_img=image)
            return
        np.savez(
            _Sink(out),  # type: ignore[arg-type]  # NumPy asks for no more than this
            b32_img=np.zeros((rows, 512), np.float16),
            b32_txt=np.zeros((rows, 512), np.float16),
            l14_img=image,
            l14_txt=np.zeros((rows, DIM), np.float16),
            dedup=np.zeros((rows, 256), np.float32),
        )


# --- the pools ----------------------------------------------------------------------------------------------


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
    scores = [s for score in (0.25, 0.3) for s in _about(score)] + [0.1, 0.2, 0.4]
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
    "few": _few,
}
assert CENTROIDS > 31, "the two centroids that are the same"
