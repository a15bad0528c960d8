"""How long `curate filter --rule clipscore` takes on 1.28M rows of metadata in DataComp's form.

The whole command counts: start-up, reading, choosing the top 30 %, writing uid list and every decision. The files
are in the page cache, as they are just after a download.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bench import CURATE, Figure, median, seconds

ROWS = 1_280_000
PER_FILE = 507_848
"""Rows of each of DataComp's metadata files but the last."""
REPEATS = 5
TARGET = 2.0
KEPT = 0.3
"""The share that the rule keeps when it is not told."""


def measure(folder: Path) -> list[Figure]:
    """Seconds of the command, a new selection each time; one run before only warms the caches."""
    pool = folder / "pool"
    make_metadata(pool / "metadata", ROWS)
    command = (*CURATE, "filter", "--pool", pool, "--rule", "clipscore", "--name")
    runs = []
    for number in range(REPEATS + 1):
        name = f"run{number}"
        runs.append(seconds((*command, name)))
        check(pool / "selections" / name)
        shutil.rmtree(pool / "selections")
    return [
        median(
            "filter 1.28M rows",
            runs[1:],
            "s",
            TARGET,
            "curate filter --rule clipscore",
            note=f"{ROWS:,} rows in {-(-ROWS // PER_FILE)} files",
        )
    ]


def check(selection: Path) -> None:
    """Raise RuntimeError unless the selection holds the share that it should, and a decision on every row."""
    kept = len(np.load(selection / "uids.npy", mmap_mode="r"))
    decided = sum(pq.read_metadata(p).num_rows for p in (selection / "decisions").glob("*.parquet"))
    counted = json.loads((selection / "selection.json").read_bytes())["counts"]["kept"]
    if not (kept == counted == int(KEPT * ROWS) and decided == ROWS):
        raise RuntimeError(f"{selection}: kept {kept:,} ({counted:,} counted), decided on {decided:,} of {ROWS:,}")


def make_metadata(folder: Path, rows: int, seed: int = 0) -> None:
    """`rows` rows in DataComp's columns, order and types, in files of its size."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for start in range(0, rows, PER_FILE):
        count = min(PER_FILE, rows - start)
        pq.write_table(_table(rng, count), folder / f"{start:032x}.parquet", row_group_size=count)


def _table(rng: np.random.Generator, count: int) -> pa.Table:
    score = np.clip(rng.normal(0.2, 0.07, count), -0.1, 0.6).astype(np.float16).astype(np.float32)
    names = _hex(rng, count, 8)
    faces = pa.ListArray.from_arrays(
        np.arange(count + 1, dtype=np.int32),
        pa.ListArray.from_arrays(
            np.arange(0, 4 * count + 1, 4, dtype=np.int32), rng.random(4 * count).astype(np.float64)
        ),
    )
    return pa.table(
        {
            "uid": _hex(rng, count, 16),
            "url": pa.compute.binary_join_element_wise("https://images.example/", names, ".jpg", ""),
            "text": _captions(rng, count),
            "original_width": rng.integers(100, 3000, count),
            "original_height": rng.integers(100, 3000, count),
            "clip_b32_similarity_score": np.clip(score + rng.normal(0, 0.02, count), -1, 1).astype(np.float32),
            "clip_l14_similarity_score": score,
            "face_bboxes": faces,
            "sha256": _hex(rng, count, 32),
        }
    )


def _hex(rng: np.random.Generator, count: int, octets: int) -> pa.StringArray:
    """Random strings of `2 * octets` hex digits."""
    return _strings(rng.bytes(count * octets).hex().encode(), np.arange(count + 1, dtype=np.int64) * 2 * octets)


def _captions(rng: np.random.Generator, count: int) -> pa.StringArray:
    """Captions of 10 to 120 characters, cut from a long text of made-up words."""
    letters = rng.choice(np.frombuffer(b"etaoin shrdlu cmfwyp", np.uint8), 1 << 20).tobytes()
    lengths, places = rng.integers(10, 120, count), rng.integers(0, len(letters) - 120, count)
    pieces = [letters[at : at + n] for at, n in zip(places.tolist(), lengths.tolist(), strict=True)]
    return _strings(b"".join(pieces), np.concatenate([[0], np.cumsum(lengths)]))


def _strings(data: bytes, offsets: npt.NDArray[np.int64]) -> pa.StringArray:
    return pa.StringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets.astype(np.int32).tobytes()), pa.py_buffer(data)
    )
