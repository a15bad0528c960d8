"""Embed: two vectors per sample, image and text, by one model; a folder of plain arrays per model.

The model lives in this process and computes on all its cores or on the GPU; decode processes read and prepare
the pixels meanwhile. Row i of a shard's arrays is row i of its table, zeros where there is no vector. Of a
shard that was replaced, rows whose image and caption are what they were keep their vectors.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from curate import devices, disk, models, receipts, runner
from curate.errors import Busy, PartError
from curate.pixels import Decoders, PixelBatch
from curate.pool import FAILED, Part, Pool, Shard, need_shards, reading
from curate.pool.adopt import adopt
from curate.preprocess import preprocess_of
from curate.progress import plural
from curate.shards import write_table
from curate.stages import reuse
from curate.stages.reuse import Todo

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from curate.engines.local import Tick
    from curate.models import Model, ModelSpec
    from curate.receipts import Output

STAGE, VERSION = "embed", 1
ROWS = {"cpu": 64, "cuda": 256}
"""Rows in a batch, by kind of device."""
_STORED = "stored_sha256"

log = logging.getLogger("curate.embed")


def embed(
    pool: Pool,
    spec: ModelSpec,
    *,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 1,
    batch: int | None = None,
) -> runner.Summary:
    """Vectors of every shard's samples by the model `spec`, in `embeddings/<slug>/`.

    `workers` processes decode (0: this one does). `batch` rows go through the model at a time; they decide the
    last bit of a vector, so they are a setting like any other. What is not given is as the vectors that are
    there have it. Counts: samples, ok (both vectors), failed, and `code:CODE` for the first code of each that
    failed. Raises InputError for a pool without shards or a model that cannot be had, Busy where another
    process embeds with other settings.
    """
    need_shards(pool)
    pool = adopt(pool, workers=workers)
    folder = pool.layout.embeddings(spec.slug)
    standing, kind = _standing(folder), _kind(device)
    if standing.get("device") == kind:
        batch = batch or standing.get("batch")
        precision = standing.get("precision", precision) if precision == "auto" else precision
    rows = batch or ROWS.get(kind, ROWS["cpu"])
    with Decoders(workers, yielding=kind == "cpu") as decoders:
        means = Means(pool, spec, decoders, rows, device, precision)
        described = _as_it_stands(standing, means, kind)
        if described is None or _todo(pool, folder, described).rows:
            told = _plain({**means.model.describe(), "device": kind, "batch": rows})
            described = {"format": receipts.FORMAT, "model": told.pop("name"), **told}
        with _agreed(folder, described):
            tasks = [_task(pool, shard, folder, described, means) for shard in pool.shards]
            return runner.run(STAGE, VERSION, tasks, workers=0, title=f"embed {spec.name}")


def pending(pool: Pool, spec: ModelSpec, device: str = "auto") -> Todo:
    """The shards whose vectors of `spec` are not current, and how many rows must be computed for them.

    Known from what lies there: no model is loaded.
    """
    folder = pool.layout.embeddings(spec.slug)
    standing = _standing(folder)
    found = _todo(pool, folder, standing)
    if found and standing and standing.get("device") != _kind(device):
        return _todo(pool, folder, {})  # none are added to those of another device: all will be done again
    return found


def _todo(pool: Pool, folder: Path, described: Mapping[str, Any]) -> Todo:
    """The parts that have no vectors as `described`, and the rows that must be computed for them."""
    tasks = [_task(pool, shard, folder, described) for shard in pool.shards]
    todo = {task.part: task for task in runner.pending(STAGE, VERSION, tasks)}
    return Todo(len(todo), sum(_missing(pool, s, todo[s.name]) for s in pool.shards if s.name in todo))


def _missing(pool: Pool, shard: Shard, task: runner.Task) -> int:
    before = reuse.before(STAGE, VERSION, task.part, task.folder, task.what, inputs=_INPUTS)
    if before is not None:
        with suppress(PartError):  # it fails by name when it runs
            table = _samples(pool, shard)
            return int(_wanted(table, before.rows(table["uid"], table[reuse.MADE_OF])).sum())
    return task.samples


def load(spec: ModelSpec, device: str, precision: str) -> Model:
    """The model, on all cores of this process where it is not on a GPU."""
    torch = _torch()
    # the number of threads may decide the last bit of a vector: it depends on the machine alone
    torch.set_num_threads(devices.cores())
    return models.load(spec, device=device, precision=precision)


def _let_go() -> None:
    """Before torch is imported: threads that wait for the slowest give their core to a decode process."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _torch() -> ModuleType:
    _let_go()
    import torch

    return torch


def _kind(device: str) -> str:
    """`cpu` or `cuda` for `auto`, cuda:1 and their like."""
    if device != "auto":
        return device.split(":")[0]
    _let_go()
    return devices.best()


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it, with lists for tuples: what is read back compares equal."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


# --- model.json -------------------------------------------------------------------------------------------


def _as_it_stands(standing: Mapping[str, Any], means: Means, kind: str) -> Mapping[str, Any] | None:
    """`standing` where loading the model would give no other description; None where only that can tell."""
    asked = {"device": kind, "precision": means.precision, "batch": means.rows, "model": means.spec.name}
    if any(standing.get(k) != v for k, v in asked.items()):
        return None
    known = models.identity(means.spec)
    if known is None or any(standing.get(k) != v for k, v in _plain(known).items()):
        return None
    return standing


def _standing(folder: Path) -> Mapping[str, Any]:
    """What model.json says of the vectors that are there; empty where there is none."""
    path = folder / "model.json"
    try:
        found = json.loads(path.read_bytes())
        receipts.check_format(found, path)
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _agreed(folder: Path, wanted: Mapping[str, Any]) -> Iterator[None]:
    """model.json says `wanted`, and no other process changes it inside the block.

    Vectors that another one described are taken away, so that none are mixed. Processes with the same settings
    may work side by side; raises Busy where one with others is at work.
    """
    disk.make_folder(folder)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _locked(fd, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _describe(folder, wanted)
        _locked(fd, fcntl.LOCK_SH)
        if _standing(folder) != wanted:
            locks = sorted((folder / receipts.RECEIPTS).glob("*.lock"))
            holder = next((p.read_text() for p in locks), "") or "another process"
            raise Busy(str(folder), f"is being written with other settings by {holder}", hint="wait for it to end")
        yield
    finally:
        os.close(fd)


def _locked(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    except OSError:  # a file system that cannot lock folders
        return True
    return True


def _describe(folder: Path, wanted: Mapping[str, Any]) -> None:
    found = _standing(folder)
    if found == wanted:
        return
    stale = receipts.receipts(folder)
    if stale:
        names = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        log.warning(
            "embed: %s redone, because these changed: %s",
            plural(len(stale), "part is", "parts are"),
            ", ".join(names),
        )
        for part in stale:
            receipts.remove_part(folder, part)
    receipts.write_json(folder / "model.json", wanted)


# --- one shard --------------------------------------------------------------------------------------------

_INPUTS = frozenset({"shard"})
"""What of a part's `what` is its input; the rest is how it was computed."""
_NOT_SETTINGS = ("format", "model", "pretrained")
"""What model.json says for people; of the weights their digest says which they are, not a file's name."""


@dataclass
class Means:
    """What the parts of one run share."""

    pool: Pool
    spec: ModelSpec
    decoders: Decoders
    rows: int
    """In a batch."""
    device: str = "auto"
    precision: str = "auto"

    @cached_property
    def model(self) -> Model:
        """The model, loaded when it is first wanted."""
        return load(self.spec, self.device, self.precision)


def _task(
    pool: Pool, shard: Shard, folder: Path, described: Mapping[str, Any], means: Means | None = None
) -> runner.Task:
    receipt = pool.shard_receipt(shard)
    settings = {k: v for k, v in described.items() if k not in _NOT_SETTINGS}
    return runner.Task(
        shard.name,
        folder,
        {**settings, "shard": receipt.identity if receipt else None},
        embed_shard if receipt else _no_shard,
        (means, shard),
        samples=receipt.counts["samples"] if receipt else 1,  # it cannot be read, and fails by name
    )


def _no_shard(output: Output, tick: Tick, means: Means, shard: Shard) -> Mapping[str, int]:
    raise PartError(str(shard.tar), "has no receipt that says what it holds", hint="curate verify says more")


def embed_shard(output: Output, tick: Tick, means: Means, shard: Shard) -> Mapping[str, int]:
    """The files of one shard; its counts."""
    table = _samples(means.pool, shard)
    kept = _kept(output, shard.name, table)
    done = _Vectors(output, shard.name, table, kept, means)
    wanted = None if kept is None else _wanted(table, kept.rows)
    # where all is kept nothing is prepared, and the model need not be loaded
    prepare = means.model.prepare if wanted is None or wanted.any() else preprocess_of(means.spec)
    for pixels in means.decoders.batches(shard, prepare, rows=means.rows, wanted=wanted):
        failed = done.add(pixels)
        tick(len(pixels.ok), failed)
    return done.finish()


def _samples(pool: Pool, shard: Shard) -> pl.DataFrame:
    """uid, caption, error_code and the digest of what the vectors are made of, for each row of a shard."""
    import polars as pl

    part = Part(shard.name, shard.table, shard=shard)
    lazy = pool.scan(part, ["uid", "caption", FAILED, _STORED], optional=["caption", _STORED])
    with reading(lazy, part):
        table = lazy.collect().cast(pl.String, strict=False)
    stored = table.select(pl.when(pl.col(FAILED).is_null()).then(_STORED)).to_series()
    return table.with_columns(reuse.digests(stored, table["caption"])).drop(_STORED)


def _wanted(table: pl.DataFrame, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """The samples that are there and have no row to be copied from."""
    return table[FAILED].is_null().to_numpy() & (rows < 0)


@dataclass(frozen=True)
class _Kept:
    """Vectors that the part had, and which row of them each of its rows has now (-1: none)."""

    rows: npt.NDArray[np.int64]
    image: npt.NDArray[np.float16]
    text: npt.NDArray[np.float16]
    codes: list[str | None]
    similarity: npt.NDArray[np.float32]
    """NaN where there is none."""


def _kept(output: Output, name: str, table: pl.DataFrame) -> _Kept | None:
    import numpy as np

    before = reuse.before(STAGE, VERSION, name, output.folder, output.what, inputs=_INPUTS)
    if before is None or not before.whole():
        return None
    rows = before.rows(table["uid"], table[reuse.MADE_OF])
    log.info("%s: %d of %d rows keep their vectors", name, np.count_nonzero(rows >= 0), len(rows))
    # mapped: the files stay readable when others take their names
    image, text = (np.load(output.folder / f"{name}.{side}.npy", mmap_mode="r") for side in ("image", "text"))
    similarity = before.table["similarity"].fill_null(float("nan")).to_numpy()
    return _Kept(rows, image, text, before.table[FAILED].to_list(), similarity)


class _Vectors:
    """The files of one shard, written batch by batch."""

    def __init__(self, output: Output, name: str, table: pl.DataFrame, kept: _Kept | None, means: Means) -> None:
        import numpy as np
        import polars as pl

        self.output, self.name, self.table, self.kept, self.means = output, name, table, kept, means
        self.dim = means.model.dim if kept is None else kept.image.shape[1]
        self.kept_rows = np.full(len(table), -1) if kept is None else kept.rows
        self.captions: list[str | None] = table["caption"].to_list()
        # a sample that was never had gets neither vector: nobody could be shown it
        self.text_codes = table.select(
            pl.coalesce(
                pl.col(FAILED),
                pl.when(pl.col("caption").is_null()).then(pl.lit("no_caption")),
            )
        ).to_series()
        self.codes: list[str | None] = []
        self.similarity: list[npt.NDArray[np.float32]] = []
        self.images = self._array("image")
        self.texts = self._array("text")

    def _array(self, side: str) -> BinaryIO:
        from numpy.lib import format as npy

        sink = self.output.open(f"{self.name}.{side}.npy")
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(self.table), self.dim)}
        npy.write_array_header_1_0(sink, header)
        return sink

    def add(self, pixels: PixelBatch) -> int:
        """The vectors of one batch; how many of its rows lack one."""
        import numpy as np

        span = slice(pixels.start, pixels.start + len(pixels.ok))
        text_ok = self.text_codes[span].is_null().to_numpy()
        taken = self.kept_rows[span] >= 0
        texts = [c for c, new in zip(self.captions[span], text_ok & ~taken, strict=True) if new and c is not None]
        image = self._rounded(pixels.ok, self.means.model.encode_images(pixels.images) if pixels.ok.any() else None)
        text = self._rounded(text_ok & ~taken, self.means.model.encode_texts(texts) if texts else None)
        dots = np.einsum("ij,ij->i", image.astype(np.float32), text.astype(np.float32))
        similarity = np.where(pixels.ok & text_ok, dots, np.nan).astype(np.float32)
        codes = list(pixels.codes)
        if self.kept is not None:
            rows = self.kept_rows[span][taken]
            image[taken], text[taken] = self.kept.image[rows], self.kept.text[rows]
            similarity[taken] = self.kept.similarity[rows]
            for at, row in zip(np.flatnonzero(taken), rows, strict=True):
                codes[at] = self.kept.codes[row]
        self.images.write(image.data)
        self.texts.write(text.data)
        self.codes += codes
        self.similarity.append(similarity)
        return sum(code is not None or not ok for code, ok in zip(codes, text_ok, strict=True))

    def _rounded(
        self, has: npt.NDArray[np.bool_], vectors: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float16]:
        import numpy as np

        rows = np.zeros((len(has), self.dim), dtype="<f2")
        if vectors is not None:
            rows[has] = vectors
        return rows

    def finish(self) -> Mapping[str, int]:
        """Write the table; the part's counts."""
        import numpy as np
        import polars as pl

        similarity = np.concatenate([np.empty(0, np.float32), *self.similarity])
        codes = pl.Series(FAILED, self.codes, dtype=pl.String)
        made = pl.DataFrame(
            {
                "uid": self.table["uid"],
                "image_ok": codes.is_null(),
                "text_ok": self.text_codes.is_null(),
                "error_code": codes,
                "text_error_code": self.text_codes,
                "similarity": pl.Series(similarity, dtype=pl.Float32).fill_nan(None),
                reuse.MADE_OF: self.table[reuse.MADE_OF],
            }
        )
        write_table(self.output, f"{self.name}.parquet", made.to_arrow())
        first = made.select(pl.coalesce("error_code", "text_error_code")).to_series()
        counts = {f"code:{code}": n for code, n in sorted(Counter(first.drop_nulls()).items())}
        return {
            "samples": len(made),
            "ok": first.null_count(),
            "failed": first.len() - first.null_count(),
            **counts,
        }
