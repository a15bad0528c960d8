"""All that a filter sees of the machine. Filters import this module and nothing else of `curate`.

A filter is one frozen dataclass in one file: its fields are its settings. A *judge* puts a condition on each
sample; a *sampler* chooses among the samples that the rules above it left. Either says what it reads in
`needs()`; the machine finds that or makes it. A *scorer* computes stored columns, one row per sample.

    @dataclass(frozen=True)
    class Longer(Judge):
        '''Keep samples whose caption has at least `words` words.'''

        reasons = {"caption_words": "the caption has {value:.0f} words, under {words}"}
        words: int = setting(3, "fewest whitespace-separated words")

        def needs(self):
            return [Column("caption")]

        def keep(self, pool):
            return {"caption_words": words(pl.col("caption")) >= self.words}

Neither opens a path, loops over parts, prints, or catches what it does not understand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from curate import uids
from curate.errors import InputError, SampleError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    from PIL.Image import Image
    from typing_extensions import Self

    from curate.uid_lists import UidList

__all__ = [
    "Batch",
    "Column",
    "Draw",
    "Facts",
    "Figures",
    "File",
    "Filter",
    "Images",
    "InputError",
    "Judge",
    "Left",
    "Need",
    "Neighbours",
    "SampleError",
    "Sampler",
    "Score",
    "Scorer",
    "Similarity",
    "Vectors",
    "asset",
    "assets",
    "chance",
    "closest",
    "components",
    "fraction_of",
    "setting",
    "settings_of",
    "text_encoder",
    "uid_list",
    "vectors_of",
]


# --- settings -------------------------------------------------------------------------------------------


def setting(default: Any, help: str, *, choices: Sequence[str] = ()) -> Any:
    """A field of a filter or scorer: its default, one line of help with unit and range, allowed words."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices)})


@dataclass(frozen=True)
class File:
    """A file that a setting names. Its sha256, not its path, enters fingerprints."""

    path: Path
    sha256: str

    @classmethod
    def at(cls, path: str | Path) -> File:
        """The file at `path`, hashed. Raises InputError where it cannot be read."""
        from curate.assets.check import hashed

        path = Path(path).expanduser()
        return cls(path, hashed(path))

    def read_text(self) -> str:
        """The file's text, UTF-8. Raises InputError where it is not."""
        try:
            return self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(str(self.path), f"is not UTF-8 text (byte {error.start})") from error

    def read_bytes(self) -> bytes:
        """The file's bytes."""
        return self.path.read_bytes()


def asset(name: str, variant: str | None = None) -> File:
    """The asset of this name as `--asset` gives it; else the published one, from `$CURATE_ASSETS`, the cache, or
    fetched with its pinned digest. Call it in `settle`, in the process that has the command's options.

    `variant` says which, of an asset that has variants (`centroids`: small, medium, large, xlarge). Raises
    InputError that says how to give the file where there is no network.
    """
    from curate import assets as published

    return File(*published.find(name, variant))


def assets(name: str) -> tuple[File, ...]:
    """The files of an asset that is several (`imagenet-targets`), in order; what `--asset` gives may be fewer."""
    from curate import assets as published

    return tuple(File(path, sha256) for path, sha256 in published.find_all(name))


def vectors_of(files: File | Sequence[File]) -> npt.NDArray[np.float32]:
    """The vectors in .npy, .npz or .pt files, one file's rows after another's: rows x dim, float32, read-only.

    Of one file that is float32 and not compressed it is a mapping, so that few bytes are held; what is in a file
    is never run. Raises InputError for a file that holds no matrix of finite floats.
    """
    from curate import arrays

    return arrays.vectors([files.path] if isinstance(files, File) else [f.path for f in files])


def closest(
    table: npt.NDArray[np.float32], device: str = "cpu"
) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.int64]]:
    """A function from vectors (rows x dim) to the row of `table` with the largest inner product with each.

    Nothing is normalised. As in exact arithmetic, on any device; of equal products the lowest row.
    """
    from curate.vectors import closest as search

    return search.closest(table, device)


def uid_list(file: File) -> UidList:
    """The uid list in a file (.npy, .bin, .memmap, .parquet, .txt), sorted; a uid that stands n times is wanted n
    times. Raises InputError for a file that holds none; says so where it was not in order."""
    from curate import uid_lists

    return uid_lists.read(file.path).said(copies=False)


def text_encoder(model: str, device: str = "cpu") -> Callable[[Sequence[str]], npt.NDArray[np.float32]]:
    """A function from texts to their L2-normalised vectors (rows x dim) by `model`, for zero-shot scorers."""
    from curate import models

    return models.load(models.parse(model), device=device).encode_texts


def settings_of(thing: Any) -> dict[str, Any]:
    """The settings of a filter or scorer as JSON values; a file is its sha256."""
    return {f.name: _plain(getattr(thing, f.name)) for f in fields(thing)}


def _plain(value: Any) -> Any:
    if isinstance(value, File):
        return {"sha256": value.sha256}
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__qualname__, **settings_of(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


# --- what a filter or scorer reads ----------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the samples under the machine's name: uid, url, caption, original_width, original_height,
    width, height, sha256, status, ... or one of the list's own."""

    name: str
    _: KW_ONLY
    optional: bool = False
    """An absent column is all null instead of an error."""


@dataclass(frozen=True)
class Score:
    """The stored columns of a scorer, under the names that it gives them."""

    scorer: Scorer


@dataclass(frozen=True)
class Similarity:
    """The image-text cosine of one model, as column `similarity` (float32, -1..1, higher is better).

    `source` is where the numbers come from, one for the whole pool: `column` (published with the metadata),
    `published` (from published vectors), `own` (from vectors that `curate embed` made); None takes the first
    of these that covers every part.
    """

    model: str
    source: str | None = None


@dataclass(frozen=True)
class Vectors:
    """The L2-normalised embeddings of one model; `side` is `image` or `text`."""

    model: str
    side: str


@dataclass(frozen=True)
class Neighbours:
    """All pairs of samples whose vectors have a cosine of at least `threshold`."""

    model: str
    threshold: float
    side: str = "image"


@dataclass(frozen=True)
class Images:
    """Decoded pixels: the scorer's `prepare` runs on each in the decode processes."""


Need = Column | Score | Similarity | Vectors | Neighbours | Images


# --- what the machine answers ---------------------------------------------------------------------------


class Facts(Protocol):
    """What a filter may know of the pool before it says what it needs."""

    @property
    def n(self) -> int:
        """The number of samples."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose embeddings or similarities the pool has."""

    @property
    def columns(self) -> frozenset[str]:
        """The names of the samples' columns."""

    def model(self, rule: str, *, among: Sequence[str] = ()) -> str:
        """The model a rule takes when its user named none: ViT-L-14/openai where the pool has it, else the
        pool's only model, else (none yet) ViT-L-14/openai; with `among`, only those count.

        Raises InputError listing the models where there are several others.
        """


class Figures(Protocol):
    """Answers of the whole pool, or with `among=left` of what the rules above left, for a judge.

    Nulls do not rank but count in `n`.
    """

    @property
    def n(self) -> int:
        """The number of samples that figures are taken over."""

    def nth_largest(self, value: pl.Expr, n: int) -> float | None:
        """The value at 0-based rank `n` of the descending order; None where fewer have one."""

    def quantile(self, value: pl.Expr, q: float) -> float | None:
        """The `q`-quantile (linear interpolation) of the values; None where none has one."""

    def mean(self, value: pl.Expr) -> float | None:
        """The mean of the values; None where none has one."""

    def reached(self, files: Sequence[File], table: File) -> npt.NDArray[np.int64]:
        """The rows of `table` that are closest, as `closest` says it, to a vector in one of `files`: ascending.

        Worked out once for these contents, on the command's `--device`, then kept beside the assets. Raises
        InputError for files without vectors, or with vectors of another width.
        """

    def top(self, value: pl.Expr, n: int) -> pl.Expr:
        """True for exactly the `n` largest (fewer where fewer have a value), ties by lowest uid; null for
        samples without a value."""


class Left(Protocol):
    """The samples that the rules above left, in uid order, for a sampler: row i is one sample throughout."""

    @property
    def n(self) -> int:
        """How many are left."""

    @property
    def pool_n(self) -> int:
        """How many the pool has; with `--scale`, how many are in the scale's pool."""

    @property
    def uids(self) -> npt.NDArray[np.void]:
        """The uid of each, as its two 64-bit halves (`u8,u8`: f0 the high, f1 the low), in order."""

    def frame(self, *wanted: pl.Expr) -> pl.LazyFrame:
        """Column `uid` and the columns that were asked for; a null is a value that is not there.

        With `wanted`, these instead: each computed from a row alone, a part at a time, so that the texts that
        they are made of are never held for all rows at once.
        """

    def vectors(self, model: str, side: str) -> tuple[npt.NDArray[np.bool_], Iterator[npt.NDArray[np.float32]]]:
        """Which rows have a vector, and all rows (zeros where none) as consecutive blocks, float32."""

    def neighbours(
        self, model: str, threshold: float, side: str = "image", *, links: bool = False
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Pairs of rows (i < j) with cosine >= threshold, sorted by (i, j), and their cosines.

        With `links` only as many of them as hold each group together, fewer than rows however dense they are.
        """

    def chance(self, seed: int) -> npt.NDArray[np.float64]:
        """A number in [0, 1) a row that depends on (uid, seed) alone: the same in any order, nested."""


# --- the plug-ins ---------------------------------------------------------------------------------------


class Filter:
    """Base of judges and samplers."""

    reasons: ClassVar[Mapping[str, str]]
    """Each reason for a drop and its sentence, formatted with the settings, {value} and {of} (a uid)."""

    def settle(self, pool: Facts) -> Self:
        """A copy with the settings that depend on the pool filled in (a default model, an asset's file)."""
        return self

    def needs(self) -> Sequence[Need]:
        """What is read, from the settings."""
        raise NotImplementedError


class Judge(Filter):
    """Puts a condition on each sample, whatever the others are."""

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        """Reason to stay-condition, cheapest first. The first that is false is the reason of the drop; a null
        leaves the sample unjudged unless another condition is false."""
        raise NotImplementedError

    def values(self) -> dict[str, pl.Expr]:
        """Reason to the number that the sentence shows; reasons without one are left out."""
        return {}


@dataclass(frozen=True)
class Draw:
    """A sampler's choice among the rows of `left`, all arrays of that length."""

    copies: npt.NDArray[np.uint16]
    """How often each sample is taken; 0 drops it."""
    reason: str | npt.NDArray[np.uint8]
    """Why a row with 0 copies was dropped: one for all, or for each row its place in the filter's `reasons`."""
    _: KW_ONLY
    value: npt.NDArray[np.float32] | None = None
    of: npt.NDArray[np.int64] | None = None
    """The row that the reason speaks of (the copy that stayed), -1 for none."""
    unjudged: npt.NDArray[np.bool_] | None = None
    """Rows that could not be judged: not taken, and not a drop."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Figures that the choice rests on, for the funnel: a threshold found, a target derived."""


class Sampler(Filter):
    """Chooses among the samples left."""

    def draw(self, left: Left) -> Draw:
        """The choice; chance only through `left.chance`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Batch:
    """Rows for a scorer, all of which have everything that it needs."""

    uid: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    vectors: Mapping[tuple[str, str], npt.NDArray[np.float32]]
    """(model, side) to rows x dim, L2-normalised."""
    images: npt.NDArray[Any]
    """What `prepare` made of each image, stacked: rows x its shape. Empty unless pixels are asked for."""

    def __len__(self) -> int:
        return len(self.uid)


Compute = Callable[[Batch], Mapping[str, Any]]


class Scorer:
    """Computes stored columns, one row per sample, none dropped. A frozen dataclass; fields are its settings.

    `name` and `version` name the folder; `version` is raised whenever the numbers may change. `columns` says
    what is written: name to a polars type name (`Float32`, `String`, `List(String)`, ...).
    """

    name: ClassVar[str]
    version: ClassVar[int]
    columns: ClassVar[Mapping[str, str]]
    rows: ClassVar[int] = 1024
    """Rows in a batch; batches are cut at fixed rows inside a part."""
    some_rows: ClassVar[bool] = False
    """Whether each row stands for itself and costs enough that only those should be computed on which the
    conditions before have not decided; the others are marked `not_asked`. Not for pixels."""
    gpu: ClassVar[bool] = False
    """Whether `--device auto` is a GPU where there is one. Over pixels it always is."""

    def needs(self) -> Sequence[Need]:
        """Column, Vectors and Images that a batch holds."""
        raise NotImplementedError

    def open(self, device: str) -> Compute:
        """Load weights or assets, once per worker; the function from a batch to its columns.

        Raise SampleError inside `prepare` for one bad image; anything else fails the part.
        """
        raise NotImplementedError

    def prepare(self, image: Image) -> npt.NDArray[Any]:
        """One decoded RGB image made ready, in a decode process (keep torch out of it)."""
        raise NotImplementedError


def components(n: int, *pairs: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """For each of `n` rows the smallest row that these pairs connect it with; a row alone is its own."""
    import numpy as np

    from curate.vectors import components as found

    i, j = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return found.components(n, i, j)


def fraction_of(n: int, fraction: float) -> int:
    """floor(fraction * n), by the decimal that was written: of 100, 0.29 is 29, where floating point says 28."""
    return int(Fraction(str(fraction)) * n)


def chance(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each 128-bit uid (its two halves), by splitmix64 over (uid, seed)."""
    import numpy as np

    bits = uids.mixed(high, low, seed=seed, word=0x94D049BB133111EB)
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) / float(1 << 53))
