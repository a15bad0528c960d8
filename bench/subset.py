"""How fast `curate subset` writes, beside `cp` and `sync` of files with the same kept bytes.

Half of the samples, drawn at random, of a pool whose pictures are noise. Both sides read from the page cache,
write to the same disk and end when all is on it; the whole command counts, start-up included.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from bench import CURATE, Figure, median, seconds
from curate.pool.layout import DOWNLOAD_STAGE
from curate.receipts import FORMAT, Output, write_json
from curate.shards import TarWriter, write_table

SHARDS, PER_SHARD, IMAGE_BYTES = 160, 1000, 30_000
"""So much that start-up weighs little: half of it is 2.6 GB; a small scale's subset has a hundred
times more."""
REPEATS = 3
TARGET = 60.0
COPY = "mkdir '{to}' && cp '{kept}'/*.tar '{to}' && sync '{to}'/*.tar '{to}'"


def measure(folder: Path) -> list[Figure]:
    """The rate of the command as a share of the copy's, each pair run back to back; both rates; the start-up."""
    pool, out, kept, copy = (folder / name for name in ("pool", "subset", "kept", "copy"))
    make_pool(pool)
    filter_ = (*CURATE, "filter", "--pool", pool, "--rule")
    subset = (*CURATE, "subset", "--pool", pool, "--scale", "debug", "--samples-per-shard", str(PER_SHARD))
    seconds((*filter_, "random:n=1", "--name", "one"))
    seconds((*filter_, "random:fraction=0.5", "--name", "half"))
    subset_half = (*subset, "--selection", "half", "--out", out)
    seconds(subset_half)
    shutil.copytree(out / "shards", kept)
    tars = list(kept.glob("*.tar"))
    size = sum(p.stat().st_size for p in tars) / 1e6
    ours, theirs, starts = [], [], []
    for number in range(REPEATS):
        shutil.rmtree(out)
        settle(folder)
        ours.append(size / seconds(subset_half))
        settle(folder)
        theirs.append(size / seconds(("sh", "-c", COPY.format(kept=kept, to=copy))))
        shutil.rmtree(copy)
        starts.append(seconds((*subset, "--selection", "one", "--out", folder / f"one{number}")))
    shares = [100 * a / b for a, b in zip(ours, theirs, strict=True)]
    said = "curate subset --scale debug"
    note = f"{size:,.0f} MB kept in {len(tars)} shards"
    return [
        median("subset against cp and sync", shares, "%", TARGET, said, at_least=True, note=note),
        median("subset", ours, "MB/s", None, said),
        median("cp and sync", theirs, "MB/s", None, "cp KEPT/*.tar COPY; sync COPY/*.tar"),
        median("subset of one sample", starts, "s", None, said, note="start-up and plan"),
    ]


def settle(folder: Path) -> None:
    """Wait until nothing of what was written before is still on its way to the disk."""
    seconds(("sync", "-f", folder))
    time.sleep(0.2)


def make_pool(folder: Path, seed: int = 0) -> None:
    """A pool as `curate download` leaves it; the pictures do not decode."""
    chance = Random(seed)
    for shard in range(SHARDS):
        name = f"{shard:08d}"
        output = Output(DOWNLOAD_STAGE, 1, name, folder / "shards", {"bench": [shard, seed]})
        tar = TarWriter(output.open(f"{name}.tar"))
        samples = [_sample(chance, name, row) for row in range(PER_SHARD)]
        for sample in samples:
            picture = b"\xff\xd8\xff" + chance.randbytes(IMAGE_BYTES - 5) + b"\xff\xd9"
            members = [
                ("jpg", picture),
                ("txt", sample["caption"].encode()),
                ("json", json.dumps(sample, indent=4).encode()),
            ]
            tar.add(sample["key"], members)
        tar.finish()
        write_table(output, f"{name}.parquet", pa.Table.from_pylist(samples))
        write_table(output, f"{name}.index.parquet", tar.index())
        output.commit({"samples": PER_SHARD, "ok": PER_SHARD, "failed": 0})
    write_json(folder / "sources.json", {"format": FORMAT, "sources": []})


def _sample(chance: Random, shard: str, row: int) -> dict[str, Any]:
    return {
        "url": f"http://images.example/{shard}/{row}.jpg",
        "caption": f"picture {row} of shard {shard}, which nobody has seen",
        "uid": chance.randbytes(16).hex(),
        "key": f"{shard}{row:04d}",
        "status": "success",
        "error_message": None,
        "width": 320,
        "height": 240,
        "original_width": 640,
        "original_height": 480,
        "error_code": None,
    }
