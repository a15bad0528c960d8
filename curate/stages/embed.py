"""Embed: two vectors per sample, image and text, by one model; a folder of plain arrays per model.

The model lives in this process and computes on all its cores or on the GPU; decode processes read and prepare
the pixels meanwhile. Row i of a shard's arrays is row i of its table, zeros where there is no vector.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from curate import disk, receipts, runner
from curate.errors import Busy, PartError
from curate.pixels import Decoders, PixelBatch
from curate.pool import Part, Pool, Shard, need_shards
from curate.pool.adopt import adopt
from curate.shards import write_table

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
    standing = _standing(folder)
    if standing.get("device") == _kind(device):
        batch = batch or standing.get("batch")
        precision = standing.get("precision", precision) if precision == "auto" else precision
    model = load(spec, device, precision)
    rows = batch or ROWS.get(model.device.type, ROWS["cpu"])
    settings = _plain({**model.describe(), "device": model.device.type, "batch": rows})
    del settings["name"]
    described = {"format": receipts.FORMAT, "model": spec.name, **settings}
    del settings["pretrained"]  # a file's name, perhaps; the digest says which weights
    with (
        _agreed(folder, described),
        Decoders(workers, yielding=model.device.type == "cpu") as decoders,
    ):
        means = Means(pool, model, decoders, rows)
        tasks = [_task(means, shard, folder, settings) for shard in pool.shards]
        return runner.run(STAGE, VERSION, tasks, workers=0, title=f"embed {spec.name}")


def pending(pool: Pool, spec: ModelSpec) -> int:
    """How many rows of the pool's shards have no vectors of `spec` yet, by receipts alone: no model is loaded."""
    folder = pool.layout.embeddings(spec.slug)
    rows = 0
    for shard in pool.shards:
        made, shard_receipt = receipts.read_receipt(folder, shard.name), pool.shard_receipt(shard)
        current = made and shard_receipt and made.what.get("shard") == shard_receipt.identity
        if not (made and current and not made.missing(folder)):
            rows += shard_receipt.counts["samples"] if shard_receipt else 1
    return rows


def load(spec: ModelSpec, device: str, precision: str) -> Model:
    """The model, on all cores of this process where it is not on a GPU."""
    torch = _torch()
    from curate import models

    # the number of threads may decide the last bit of a vector: it depends on the machine alone
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return models.load(spec, device=device, precision=precision)


def _torch() -> ModuleType:
    if "torch" not in sys.modules:
        # threads that wait for the slowest give their core to a decode process instead of spinning
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    return torch


def _kind(device: str) -> str:
    """`cpu` or `cuda` for `auto`, cuda:1 and their like."""
    if device != "auto":
        return device.split(":")[0]
    return "cuda" if _torch().cuda.is_available() else "cpu"


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it, with lists for tuples: what is read back compares equal."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


# --- model.json -------------------------------------------------------------------------------------------


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
        log.warning("embed: %d parts are redone, because these changed: %s", len(stale), ", ".join(names))
        for part in stale:
            receipts.remove_part(folder, part)
    receipts.write_json(folder / "model.json", wanted)


# --- one shard --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Means:
    """What the parts of one run share."""

    pool: Pool
    model: Model
    decoders: Decoders
    rows: int


def _task(means: Means, shard: Shard, folder: Path, settings: Mapping[str, Any]) -> runner.Task:
    receipt = means.pool.shard_receipt(shard)
    return runner.Task(
        shard.name,
        folder,
        {**settings, "shard": receipt.identity if receipt else None},
        embed_shard if receipt else _no_shard,
        (means, shard),
        samples=receipt.counts["samples"] if receipt else 0,
    )


def _no_shard(output: Output, tick: Tick, means: Means, shard: Shard) -> Mapping[str, int]:
    raise PartError(str(shard.tar), "has no receipt that says what it holds", hint="curate verify says more")


def embed_shard(output: Output, tick: Tick, means: Means, shard: Shard) -> Mapping[str, int]:
    """The files of one shard; its counts."""
    part = Part(shard.name, shard.table, shard=shard)
    table = means.pool.scan(part, ["uid", "caption", "error_code"], optional=["caption"]).collect()
    done = _Vectors(output, shard.name, table, means.model.dim)
    for pixels in means.decoders.batches(shard, means.model.prepare, rows=means.rows):
        failed = done.add(pixels, means.model)
        tick(len(pixels.ok), failed)
    return done.finish()


class _Vectors:
    """The files of one shard, written batch by batch."""

    def __init__(self, output: Output, name: str, table: pl.DataFrame, dim: int) -> None:
        import polars as pl

        self.output, self.name, self.table, self.dim = output, name, table, dim
        self.captions: list[str | None] = table["caption"].cast(pl.String).to_list()
        # a sample that was never had gets neither vector: nobody could be shown it
        self.text_codes = table.select(
            pl.coalesce(
                pl.col("error_code").cast(pl.String),
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

    def add(self, pixels: PixelBatch, model: Model) -> int:
        """The vectors of one batch; how many of its rows lack one."""
        import numpy as np

        span = slice(pixels.start, pixels.start + len(pixels.ok))
        has_text = self.text_codes[span].is_null().to_numpy()
        texts = [c for c, has in zip(self.captions[span], has_text, strict=True) if has and c is not None]
        image = self._rounded(pixels.ok, model.encode_images(pixels.images) if pixels.ok.any() else None)
        text = self._rounded(has_text, model.encode_texts(texts) if texts else None)
        self.images.write(image.data)
        self.texts.write(text.data)
        self.codes += pixels.codes
        dots = np.einsum("ij,ij->i", image.astype(np.float32), text.astype(np.float32))
        both = pixels.ok & has_text
        self.similarity.append(np.where(both, dots, np.nan).astype(np.float32))
        return int((~both).sum())

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
        codes = pl.Series("error_code", self.codes, dtype=pl.String)
        made = pl.DataFrame(
            {
                "uid": self.table["uid"],
                "image_ok": codes.is_null(),
                "text_ok": self.text_codes.is_null(),
                "error_code": codes,
                "text_error_code": self.text_codes,
                "similarity": pl.Series(similarity, dtype=pl.Float32).fill_nan(None),
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
