"""Metadata files in DataComp's form: Parquet, and beside each an npz with its vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .assets import DIM, centroids, sparse


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
