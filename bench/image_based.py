"""How near `curate filter --rule image_based` comes to the bare matrix product that it is made of, on the CPU.

DataComp's shapes: vectors of 768 values against 100,000 centroids; fewer rows, since beyond the start-up the rate
does not depend on them. The rule's conditions on captions are off, so that every row is multiplied. The whole
command counts: start-up, hashing the centroids, float16 to float32, the largest product of each row, and writing.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bench import CURATE, Figure, median, seconds

ROWS, CENTROIDS, DIM = 32_768, 100_000, 768
TARGETS = 64
REPEATS = 1
BLOCK = 2048
"""Rows of one bare product: its result is never larger than 0.8 GB."""
TARGET = 0.6

Array = npt.NDArray[np.float32]


def measure(folder: Path) -> list[Figure]:
    """The product's seconds over those of the command, taken in turn."""
    rng = np.random.default_rng(0)
    table = _unit(rng, CENTROIDS) * rng.uniform(0.5, 0.8, (CENTROIDS, 1)).astype(np.float32)
    vectors = _unit(rng, ROWS).astype(np.float16)
    pool, centroids, targets = folder / "pool", folder / "centroids.npy", folder / "targets.npy"
    _make_pool(pool, vectors)
    np.save(centroids, table)
    np.save(targets, vectors[:TARGETS])
    rule = f"image_based:language=,min_chars=0,min_tokens=0,centroids={centroids},targets={targets}"
    command = ("env", f"XDG_CACHE_HOME={folder / 'cache'}", *CURATE, "filter", "--pool", pool, "--rule", rule)
    wide, out = vectors.astype(np.float32), np.empty((BLOCK, CENTROIDS), np.float32)
    np.matmul(wide[:BLOCK], table.T, out=out)  # the first touch of its memory is not the product's
    shares, bare = [], 0.0
    for _ in range(REPEATS):
        bare = _bare(wide, table, out)
        shares.append(bare / seconds(command))
        for made in ("scores", "selections"):
            shutil.rmtree(pool / made)
    note = f"{ROWS:,} x {DIM} by {CENTROIDS:,}; numpy's product alone {bare:.1f} s"
    return [
        median(
            "image_based, share of the bare product's rate",
            shares,
            "x",
            TARGET,
            "curate filter --rule image_based",
            at_least=True,
            note=note,
        )
    ]


def _bare(vectors: Array, table: Array, out: Array) -> float:
    """Seconds of the float32 product alone."""
    began = time.perf_counter()
    for start in range(0, len(vectors), BLOCK):
        np.matmul(vectors[start : start + BLOCK], table.T, out=out)
    return time.perf_counter() - began


def _unit(rng: np.random.Generator, rows: int) -> Array:
    x = rng.standard_normal((rows, DIM), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def _make_pool(pool: Path, image: npt.NDArray[np.float16]) -> None:
    """One metadata file in DataComp's form, with its npz."""
    metadata, n, name = pool / "metadata", len(image), "0" * 32
    metadata.mkdir(parents=True)
    rows = {"uid": [f"{i:032x}" for i in range(n)], "url": [f"u{i}" for i in range(n)], "text": ["a"] * n}
    pq.write_table(pa.table(rows), metadata / f"{name}.parquet")
    small = np.zeros((n, 512), np.float16)
    dedup = np.zeros(n, np.int32)
    npz = metadata / f"{name}.npz"
    np.savez(npz, b32_img=small, b32_txt=small, l14_img=image, l14_txt=image, dedup=dedup)
