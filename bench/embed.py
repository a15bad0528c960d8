"""How near `curate embed` comes to a machine that never waits.

A sample costs a forward pass (image and caption) and a preparation (read, decode, resize). Each is measured
alone on all cores; on a CPU, which does both, the best possible rate is 1 / (1 / forward + 1 / prepare). Each
round measures the three on one shard back to back, so that a busy machine is equally busy for all.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench import Figure, median
from bench.pictures import soft
from curate import models, runner
from curate.pixels import Decoders
from curate.pool import Pool, Shard, open_pool
from curate.pool.layout import DOWNLOAD_STAGE
from curate.receipts import FORMAT, Output, write_json
from curate.shards import TarWriter, write_table
from curate.stages import embed

ROUNDS = {"tiny": 6, "ViT-B-32/random": 3}
"""Model to how many shards it is measured on; the second takes some 80 ms a sample on two cores."""
PER_SHARD = 256
FORWARD = 128
"""Rows that the forward pass alone is measured on."""
TARGET = 88.0


def measure(folder: Path) -> list[Figure]:
    """For each model the share of the possible rate that is reached, and the three rates."""
    make_pool(folder / "pool")
    pool = open_pool(folder / "pool")
    return [figure for name, rounds in ROUNDS.items() for figure in _measure(pool, name, rounds)]


def _measure(pool: Pool, name: str, shards: int) -> list[Figure]:
    with Decoders(len(os.sched_getaffinity(0)), yielding=True) as decoders:
        means = embed.Means(pool, models.parse(name), decoders, embed.ROWS["cpu"], "cpu")
        _prepare(means, pool.shards[0])
        _forward(means, pool.shards[0])
        rounds = [(_prepare(means, s), _forward(means, s), _embed(means, s)) for s in pool.shards[:shards]]
    shares = [100 * both * (1 / prepare + 1 / forward) for prepare, forward, both in rounds]
    said = f"curate embed --model {name}"
    return [
        median(f"embed {name}, of the possible", shares, "%", TARGET, said, at_least=True),
        median(f"embed {name}", [r[2] for r in rounds], "/s", None, said, at_least=True),
        median("forward alone", [r[1] for r in rounds], "/s", None, "model.encode_images, encode_texts"),
        median("prepare alone", [r[0] for r in rounds], "/s", None, "Decoders.batches"),
    ]


def _prepare(means: embed.Means, shard: Shard) -> float:
    """Samples a second, read and made ready on all cores, with nobody who computes on them."""
    began = time.perf_counter()
    rows = sum(len(b.ok) for b in means.decoders.batches(shard, means.model.prepare, rows=means.rows))
    return rows / (time.perf_counter() - began)


def _forward(means: embed.Means, shard: Shard) -> float:
    """Samples a second through the model on all cores, with pixels and captions that are there already."""
    batches = [b.images for b in means.decoders.batches(shard, means.model.prepare, rows=means.rows)]
    captions = [_caption(shard.name, row) for row in range(PER_SHARD)]
    began, rows = time.perf_counter(), 0
    for images in batches[: FORWARD // means.rows]:
        means.model.encode_images(images)
        means.model.encode_texts(captions[rows : rows + len(images)])
        rows += len(images)
    return rows / (time.perf_counter() - began)


def _embed(means: embed.Means, shard: Shard) -> float:
    """Samples a second of the stage itself, files and receipt included."""
    folder = means.pool.layout.embeddings(means.model.spec.slug)
    task = runner.Task(shard.name, folder, {"bench": shard.name}, embed.embed_shard, (means, shard))
    began = time.perf_counter()
    summary = runner.run(embed.STAGE, embed.VERSION, [task], workers=0)
    took = time.perf_counter() - began
    summary.raise_failed()
    return summary.counts["ok"] / took


# --- a pool of photo-like pictures ------------------------------------------------------------------------


def make_pool(folder: Path) -> None:
    """A pool as `curate download` leaves it, of JPEGs with the size and weight of photos (some 90 kB)."""
    for number in range(max(ROUNDS.values())):
        name = f"{number:08d}"
        output = Output(DOWNLOAD_STAGE, 1, name, folder / "shards", {"bench": number})
        tar = TarWriter(output.open(f"{name}.tar"))
        rows = []
        for row in range(PER_SHARD):
            key, caption = f"{name}{row:04d}", _caption(name, row)
            tar.add(key, [("jpg", picture(number * PER_SHARD + row)), ("txt", caption.encode())])
            uid = f"{number * PER_SHARD + row:032x}"
            rows.append({"uid": uid, "key": key, "url": f"http://images.example/{key}", "caption": caption})
        tar.finish()
        table = pa.Table.from_pylist(rows)
        table = table.append_column("error_code", pa.nulls(PER_SHARD, pa.string()))
        write_table(output, f"{name}.parquet", table)
        write_table(output, f"{name}.index.parquet", tar.index())
        output.commit({"samples": PER_SHARD, "ok": PER_SHARD, "failed": 0})
    write_json(folder / "sources.json", {"format": FORMAT, "sources": []})


def picture(seed: int) -> bytes:
    """A JPEG of about 450 x 400: soft blobs of colour under a little grain."""
    chance = np.random.default_rng(seed)
    width, height = int(chance.integers(380, 513)), int(chance.integers(300, 513))
    return soft(chance, width, height, grain=10, quality=95)


def _caption(shard: str, row: int) -> str:
    return f"A soft picture of many colours, number {row} of shard {shard}, seen through a little grain"
