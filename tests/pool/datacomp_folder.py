"""A folder as DataComp's download_upstream.py leaves it, but small: metadata/ with npz, shards/ of img2dataset."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.shards import TarWriter
from tests.pools import jpeg

A_SHARD = 10
"""Rows of a shard, where DataComp has 10,000."""
SIZES = (23, 10, 7)
"""Rows of the metadata files, where DataComp has 507,848 and a rest."""
DEAD = 7
"""Every so many-th URL is dead."""

Form = Callable[[pa.Table], pa.Table]
"""Another form of the same metadata."""


class Pipe(io.RawIOBase):
    """A sink that cannot seek, as DataComp's npz were streamed to."""

    def __init__(self) -> None:
        self.held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.held += bytes(data)
        return len(data)


def streamed(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """An npz written as DataComp's were: sizes behind the members."""
    sink = Pipe()
    np.savez(sink, **arrays)  # type: ignore[arg-type]
    path.write_bytes(sink.held)


@dataclass(frozen=True)
class Row:
    """One row of the metadata; `number` counts over all files."""

    number: int

    @property
    def uid(self) -> str:
        return hashlib.md5(b"%d" % self.number).hexdigest()

    @property
    def score(self) -> np.float32:
        return np.float32(((self.number * 29) % 41) / 100)

    @property
    def dead(self) -> bool:
        return self.number % DEAD == 3

    def values(self) -> dict[str, Any]:
        """What its metadata says, in DataComp's order."""
        return {
            "uid": self.uid,
            "url": f"http://images.test/{self.number}.jpg",
            "text": f"a photo of thing {self.number}",
            "original_width": 199 + self.number,
            "original_height": 300,
            "clip_b32_similarity_score": self.score / np.float32(2),
            "clip_l14_similarity_score": self.score,
            "face_bboxes": [[0.1, 0.1, 0.5, 0.5]] if self.number % 5 == 0 else [],
            "sha256": hashlib.sha256(b"%d" % self.number).hexdigest(),
        }


SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
        ("clip_b32_similarity_score", pa.float32()),
        ("clip_l14_similarity_score", pa.float32()),
        ("face_bboxes", pa.list_(pa.list_(pa.float64()))),
        ("sha256", pa.string()),
    ]
)


def files() -> list[tuple[str, list[Row]]]:
    """The metadata files, sorted by name, as DataComp's shards follow them: stem and rows."""
    stems = sorted(hashlib.md5(b"file %d" % n).hexdigest() for n in range(len(SIZES)))
    starts = [sum(SIZES[:n]) for n in range(len(SIZES))]
    return [
        (stem, [Row(n) for n in range(start, start + size)])
        for stem, start, size in zip(stems, starts, SIZES, strict=True)
    ]


def make(
    folder: Path,
    form: Form = lambda table: table,
    *,
    npz: bool = False,
    shards: bool = True,
    row_group: int = 5,
) -> list[Row]:
    """The folder; all rows of its metadata."""
    (folder / "metadata").mkdir(parents=True)
    (folder / "metadata" / ".cache").mkdir()
    if shards:
        (folder / "shards").mkdir()
    number = 0
    for stem, rows in files():
        table = pa.Table.from_pylist([r.values() for r in rows], SCHEMA)
        pq.write_table(form(table), folder / "metadata" / f"{stem}.parquet", row_group_size=row_group)
        if npz:
            streamed(folder / "metadata" / f"{stem}.npz", vectors(rows))
        for start in range(0, len(rows) if shards else 0, A_SHARD):
            _shard(folder / "shards", number, rows[start : start + A_SHARD])
            number += 1
    return [row for _, rows in files() for row in rows]


def vectors(rows: Sequence[Row]) -> dict[str, npt.NDArray[Any]]:
    """The five arrays of an npz; the cosine of a pair is about its L/14 score."""
    made: dict[str, npt.NDArray[Any]] = {}
    for model, width in (("b32", 512), ("l14", 768)):
        image, text = np.zeros((len(rows), width)), np.zeros((len(rows), width))
        for at, row in enumerate(rows):
            image[at, row.number] = 1
            text[at, row.number], text[at, -1] = row.score, np.sqrt(1 - row.score**2)
        made |= {f"{model}_img": image.astype(np.float16), f"{model}_txt": text.astype(np.float16)}
    return made | {"dedup": np.eye(len(rows), 256, dtype=np.float32)}


def _shard(folder: Path, number: int, rows: Sequence[Row]) -> None:
    """A tar of what could be had, a table of all, in the order in which the answers came."""
    name = f"{number:08d}"
    tabled = []
    with (folder / f"{name}.tar").open("wb") as sink:
        tar = TarWriter(sink)
        for place, row in sorted(enumerate(rows), key=lambda pair: pair[1].uid):
            given = row.values()
            image = None if row.dead else jpeg(row.number)
            told = {
                "uid": row.uid,
                "face_bboxes": given["face_bboxes"],
                "caption": given["text"],
                "url": given["url"],
                "key": f"{name}{place:04d}",
                "status": "success" if image else "failed_to_download",
                "error_message": None if image else "HTTP Error 404: Not Found",
                "width": 24 if image else None,
                "height": 16 if image else None,
                "original_width": 48 if image else None,
                "original_height": 32 if image else None,
                "exif": "{}" if image else None,
                "sha256": hashlib.sha256(image).hexdigest() if image else None,
            }
            tabled.append(told)
            if image:
                members = [("jpg", image), ("json", json.dumps(told).encode()), ("txt", given["text"].encode())]
                tar.add(told["key"], members)
        tar.finish()
    pq.write_table(pa.Table.from_pylist(tabled), folder / f"{name}.parquet")
    failed = sum(row.dead for row in rows)
    stats = {
        "count": len(rows),
        "successes": len(rows) - failed,
        "failed_to_download": failed,
        "failed_to_resize": 0,
        "duration": 1.0,
        "start_time": 0.0,
        "end_time": 1.0,
        "status_dict": {"success": len(rows) - failed, "HTTP Error 404: Not Found": failed},
    }
    (folder / f"{name}_stats.json").write_text(json.dumps(stats, indent=4))
