"""Faces in a subset: their boxes looked up by uid, blurred out of the pictures, written into the samples' JSON.

It is the one place where pixels may change after the download. A sample without boxes keeps its bytes; one whose
picture cannot be blurred is left out, with an error code, and is never written as it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate import uids
from curate.errors import InputError, SampleError, no_such
from curate.fetch.converted import Box
from curate.pool import Pool
from curate.pool.layout import file_identity
from curate.pool.names import column_in
from curate.shards import readable
from curate.stages.columns import ints

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.stages.placing import Plan

FACES = "face_bboxes"
METADATA = "metadata"
BATCH = 100_000
QUALITY = 95
"""Of the JPEGs that blurred pictures become."""

log = logging.getLogger("curate.subset")


@dataclass(frozen=True)
class Faces:
    """What to do with faces: `source` is `metadata` or a Parquet file with `uid` and `face_bboxes`."""

    source: str
    blur: bool
    inject: bool

    def as_json(self) -> dict[str, Any]:
        """What results depend on: a file by its content, not its path."""
        known = METADATA if self.source == METADATA else file_identity(Path(self.source))
        said = {"boxes": known, "blur": self.blur, "inject": self.inject}
        return said | ({"encoding": f"jpg, quality {QUALITY}"} if self.blur else {})

    def told(self, blurred: int | None) -> str:
        """What a dataset card says of it."""
        said = []
        if blurred is not None:
            said.append(
                f"Faces are blurred in {blurred:,} images, which were encoded anew as JPEG of quality {QUALITY}; "
                f"the tables' column `blurred` names them. The bytes of all others are those that the pool holds."
            )
        else:
            said.append("The bytes of an image are those that the pool holds.")
        if self.inject:
            said.append(f"The boxes of faces stand in the samples' JSON as `{FACES}` (`train.py --blur_field`).")
        return " ".join(said)


def faces(blur: str | None, inject: str | None) -> Faces | None:
    """What `--blur-faces` and `--inject-boxes` ask for. Raises InputError where they name different boxes."""
    for option, given in (("--blur-faces", blur), ("--inject-boxes", inject)):
        if given is not None and given != METADATA and not Path(given).is_file():
            hint = "metadata takes the pool's column face_bboxes"
            if Path(given).is_dir():
                raise InputError(option, f"is a folder ({given})", hint=hint)
            raise InputError(option, str(no_such(Path(given), "file of boxes")), hint=hint)
    if blur is not None and inject is not None and blur != inject:
        raise InputError("--inject-boxes", f"must name the boxes of --blur-faces ({blur}; found {inject})")
    source = blur if blur is not None else inject
    return None if source is None else Faces(source, blur is not None, inject is not None)


# --- boxes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lists:
    """A list of boxes for each of some samples, empty where there are none."""

    ends: npt.NDArray[np.int64]
    """Where in `values` the boxes of each end; they begin where those of the one before end."""
    values: npt.NDArray[np.float64]
    """n x 4, fractions of the picture; one row of NaN where what was said is no list of boxes."""

    def digest(self) -> bytes:
        """sha256 of the lists."""
        return hashlib.sha256(b"".join(a.tobytes() for a in (self.ends, self.values))).digest()

    def array(self) -> pa.ListArray:
        """The lists as a column of lists of four numbers each."""
        import pyarrow as pa

        flat = np.ascontiguousarray(self.values)
        sides = pa.Array.from_buffers(pa.float64(), flat.size, [None, pa.py_buffer(flat)])
        boxes = pa.ListArray.from_arrays(ints(np.arange(0, flat.size + 1, 4)), sides)
        return pa.ListArray.from_arrays(ints(np.concatenate([[0], self.ends])), boxes)


@dataclass(frozen=True)
class Boxes(Lists):
    """The boxes of each sample of a plan, in its order."""

    unlisted: int
    """Samples of which the source says nothing; they are taken for samples without faces."""
    of_tables: bool
    """Whether they stand in the shards' tables, where a download that blurred them has turned them upright."""
    outside: int = 0
    """Samples with a box of which no part is in the picture."""

    def of(self, which: npt.NDArray[np.integer[Any]]) -> Lists:
        """The boxes of these samples."""
        begins = np.where(which > 0, self.ends[which - 1], 0)
        counts = self.ends[which] - begins
        ends = np.cumsum(counts)
        return Lists(ends, self.values[np.arange(counts.sum()) + np.repeat(begins - ends + counts, counts)])


def boxes_of(pool: Pool, plan: Plan, source: str) -> Boxes:
    """The boxes of all samples of the plan. Raises InputError where the source has none at all to read.

    Some 8 bytes a sample and 32 a box are held, three times as many while they are read. Where several rows have
    the uid, the first that has boxes counts.
    """
    order = uids.sort_order(plan.uids)
    ordered = plan.uids[order]
    listed = np.zeros(len(ordered), dtype=np.bool_)
    counts = np.zeros(len(ordered), dtype=np.int64)
    held, owners = [np.empty((0, 4))], [np.empty(0, dtype=np.int64)]
    for path, uid_path in _files(pool, plan, source):
        for hits, cells in _read(path, uid_path, ordered):
            listed[hits] = True
            said: dict[int, list[list[float]]] = {}
            for place, cell in zip(order[hits].tolist(), cells, strict=True):
                if cell is not None and len(cell) and not counts[place]:
                    said.setdefault(place, _checked(cell))
            places, numbers = list(said), [len(boxes) for boxes in said.values()]
            counts[places] = numbers
            owners.append(np.repeat(np.array(places, dtype=np.int64), numbers))
            held.append(np.array([box for boxes in said.values() for box in boxes], dtype=float).reshape(-1, 4))
    owner, values = np.concatenate(owners), np.concatenate(held)
    outside = len(np.unique(owner[_outside(values)]))
    values = values[np.argsort(owner, kind="stable")]
    own = source == METADATA and not pool.joined
    return Boxes(np.cumsum(counts), values, int(len(ordered) - listed.sum()), own, outside)


def _outside(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    first, second = boxes[:, :2], boxes[:, 2:]
    beyond = (np.minimum(first, second) >= 1) | (np.maximum(first, second) <= 0)
    return np.asarray(beyond.any(axis=1))


def _checked(cell: Sequence[Any]) -> list[list[float]]:
    try:
        boxes = [[float(side) for side in box] for box in cell]
    except (TypeError, ValueError):
        boxes = [[]]
    fine = all(len(box) == 4 and all(map(math.isfinite, box)) for box in boxes)
    return boxes if fine else [[math.nan] * 4]


def _files(pool: Pool, plan: Plan, source: str) -> list[tuple[Path, Path | None]]:
    """The tables to read, each with the one of its uids where that is another."""
    if source != METADATA:
        return [(Path(source), None)]
    if pool.joined:
        files = [(part.path, part.uids) for part in pool.parts if part.name in pool.rows]
    else:
        files = [(plan.shards[number].table, None) for number in sorted(plan.held)]
    if not any(FACES in _names(path) for path, _ in files):
        raise InputError(
            str(pool.layout.root),
            f"its metadata has no column {FACES!r}",
            hint="name a Parquet file with uid and face_bboxes: --blur-faces FILE",
        )
    return files


def _names(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    # what cannot be read is the user's to mend: faces are not left as they are for a file that is broken
    with readable(path, InputError):
        return list(pq.read_schema(path).names)


def _read(path: Path, uid_path: Path | None, ordered: npt.NDArray[np.void]) -> Iterator[tuple[Any, list[Any]]]:
    """Of each row group: places in `ordered` of the rows that are wanted, and what their cells say."""
    import pyarrow.parquet as pq

    names = _names(path)
    uid = column_in(_names(uid_path or path), "uid")
    if FACES not in names or uid is None:
        lacks = "uid" if uid is None else FACES
        raise InputError(str(path), f"has no column {lacks!r} (found: {', '.join(names)})")
    with readable(path, InputError):
        file = pq.ParquetFile(path)
        listed = pq.ParquetFile(uid_path or path).read(columns=[uid])[uid]
        try:
            keys = uids.to_pairs(listed)
        except ValueError as error:
            raise InputError(str(path), f"column {uid!r}: {error}") from error
        first = 0
        for batch in file.iter_batches(BATCH, columns=[FACES]):
            found = uids.find(ordered, keys[first : first + len(batch)])
            rows = np.flatnonzero(found >= 0)
            first += len(batch)
            yield found[rows], batch[FACES].take(ints(rows)).to_pylist()


# --- samples ----------------------------------------------------------------------------------------------


@dataclass
class Changes:
    """The samples of a new shard that have boxes, changed as `faces` says, and what the table must say of them."""

    faces: Faces
    table: pa.Table
    boxes: Sequence[list[list[float]] | None]
    turned: Sequence[bool]
    """Of each row, whether its boxes already lie as the stored picture does."""
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)

    def members(self, row: int, members: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
        """The members to write for a row, in order. Raises SampleError with bad_metadata, or an image's codes."""
        from curate import shards
        from curate.fetch.blur import upright, valid

        boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in self.boxes[row] or ()]
        if any(side != side for box in boxes for side in box):
            raise SampleError("bad_metadata", f"{FACES} is no list of boxes (x0, y0, x1, y1)")
        if not self.turned[row] and (orientation := self._cell("original_orientation", row)):
            boxes = list(upright(boxes, int(orientation)))
        made = list(members.items())
        facts: dict[str, Any] = {}
        if self.faces.blur and valid(boxes):
            image = shards.image_of(dict(members))
            if image is None:
                raise SampleError("not_an_image", "no image in the tar")
            blurred = _blurred(image[1], boxes)
            facts = blurred.facts
            boxes = list(blurred.boxes)
            made = [("jpg", blurred.data) if name == image[0] else (name, data) for name, data in made]
        made = [(name, self._described(data, boxes, facts) if name == "json" else data) for name, data in made]
        if self.faces.inject and "json" not in members:
            uid = self._cell("uid", row)
            made.append(("json", json.dumps({"uid": uid, FACES: [list(box) for box in boxes]}).encode()))
        self.facts[row] = facts
        return made

    def _described(self, text: bytes, boxes: Sequence[Sequence[float]], facts: Mapping[str, Any]) -> bytes:
        """A sample's JSON with the boxes, and true again of the picture; itself where it says nothing of either."""
        try:
            said = json.loads(text)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            if self.faces.inject:
                raise SampleError("bad_metadata", "its json is no object that boxes could be written into")
            return text
        now = {name: value for name, value in facts.items() if name in said}
        if self.faces.inject:
            now[FACES] = [list(box) for box in boxes]
        return json.dumps(said | now).encode() if now else text

    def _cell(self, name: str, row: int) -> Any:
        return self.table[name][row].as_py() if name in self.table.column_names else None


@dataclass(frozen=True)
class _Blurred:
    data: bytes
    facts: dict[str, Any]
    """Columns of the table that are no longer true, and what they are now."""
    boxes: Sequence[Box]


def _blurred(image: bytes, boxes: Sequence[Box]) -> _Blurred:
    from curate.fetch.images import convert, use_one_thread
    from curate.fetch.settings import ImageSettings

    use_one_thread()
    settings = ImageSettings(resize_mode="no", encode_format="jpg", encode_quality=QUALITY, draft=False)
    done = convert(image, settings, boxes=boxes)
    facts = {
        "width": done.width,
        "height": done.height,
        "stored_sha256": done.stored_sha256,
        "stored_bytes": len(done.data),
    }
    return _Blurred(done.data, facts, done.boxes)
