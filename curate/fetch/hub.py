"""DataComp's pools on the model hub: how large they are, and their metadata and vectors, fetched and checked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from curate.disk import lock
from curate.errors import InputError, StopError, UnknownName
from curate.fetch import hub_folder
from curate.fetch.hub_client import Hub
from curate.fetch.hub_folder import Errand
from curate.fetch.hub_record import Coming, Fetched, Record, arriving, read_record, stands

__all__ = [
    "POOLS",
    "Coming",
    "Fetched",
    "HubPool",
    "Record",
    "begun",
    "coming",
    "endpoint",
    "fetch_metadata",
    "fetch_vectors",
    "hub_pool",
    "read_record",
]

ROWS_A_FILE = 507_848
"""Rows of every metadata file of DataComp's but a pool's last."""

_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class HubPool:
    """One of DataComp's pools; sizes in bytes, about, as its authors give them or as its rows imply."""

    repository: str
    rows: int
    files: int
    metadata_bytes: int
    npz_bytes: int
    image_bytes: int


POOLS: Mapping[str, HubPool] = {
    "small": HubPool("mlfoundations/datacomp_small", 12_800_000, 26, 3 * 10**9, 75 * 10**9, 450 * 10**9),
    "medium": HubPool("mlfoundations/datacomp_medium", 128_000_000, 253, 30 * 10**9, 750 * 10**9, 4_500 * 10**9),
    "large": HubPool("mlfoundations/datacomp_large", 1_280_000_000, 2_521, 300 * 10**9, 7_500 * 10**9, 45 * 10**12),
    "xlarge": HubPool(
        "mlfoundations/datacomp_xlarge", 12_800_000_000, 25_205, 3 * 10**12, 75 * 10**12, 450 * 10**12
    ),
    "datacomp_1b": HubPool(
        "mlfoundations/datacomp_1b", 1_390_000_000, 2_664, 350 * 10**9, 8_500 * 10**9, 49 * 10**12
    ),
}


def hub_pool(scale: str) -> HubPool:
    """DataComp's pool of this scale. Raises UnknownName."""
    if scale not in POOLS:
        raise UnknownName("--scale", "scale", scale, POOLS)
    return POOLS[scale]


def endpoint() -> str:
    """Where the hub is: `$HF_ENDPOINT`, else the public one."""
    return os.environ.get("HF_ENDPOINT") or _HUB


def fetch_metadata(pool: HubPool, folder: Path, *, npz: bool = False, rows: int | None = None) -> Fetched:
    """The metadata files of a pool in `folder`, which appears when they are all there, and right.

    With `rows`, the first files by name that hold so many; with `npz`, the vectors of each file too. The same
    call goes on where an earlier one stopped. In a folder that was fetched before, what is missing or was left
    out is fetched, from the same revision. Raises InputError for a folder that others made, too little space, or
    half of another pool in `<folder>.incomplete`; StopError, naming the host, where the hub does not give what
    it lists.
    """
    record = _record(folder, pool)
    if record is None and stands(folder):
        raise InputError(
            str(folder),
            "is there already, and was not fetched by this command",
            hint="without --scale it is taken as it stands",
        )
    if record and not npz and not record.missing(folder) and _holds(record, folder, rows):
        if arriving(folder).is_dir():  # a fetch was killed when all was done
            with _locked(folder):
                hub_folder.tidy(folder)
        return Fetched(record.revision, (), 0, len(record.files), record.whole)
    with _locked(folder):
        errand = Errand(Hub(pool.repository, endpoint()), folder, record)
        errand.look()
        names = errand.metadata_names()
        count = _first(rows, len(names))
        known = list(record.files) if record else []
        while True:
            wanted = sorted({*names[:count], *known})
            vectors = [_npz(name) for name in names[:count]] if npz else []
            errand.coming(wanted + vectors).check_space(folder)
            errand.begin()
            errand.bring(wanted)
            if rows is None or count == len(names):
                break
            lack = rows - _rows(errand.path(name) for name in names[:count])
            if lack <= 0:
                break
            count += _first(lack, len(names) - count)
        errand.bring_vectors(vectors)
        return errand.finish(whole=count == len(names) or bool(record and record.whole))


def fetch_vectors(folder: Path, pool: HubPool | None = None) -> Fetched:
    """The npz of the metadata files that are in `folder`, from the revision that these are of.

    `pool` need only be given for a folder that others fetched: then each of its files must be, byte for byte, the
    hub's, since vectors belong to rows by position alone. Raises as `fetch_metadata`.
    """
    record = _record(folder, pool)
    repository = record.repository if record else pool.repository if pool else None
    if repository is None or not folder.is_dir():
        what = "does not say which of DataComp's pools it is" if folder.is_dir() else "is not there"
        raise InputError(str(folder), what, hint="curate download --scale SCALE --embeddings")
    with _locked(folder):
        errand = Errand(Hub(repository, endpoint()), folder, record)
        errand.look()
        if record is None:
            errand.recognise()
        names = [name for name in errand.record.files if name.endswith(".parquet")]
        vectors = [_npz(name) for name in names]
        errand.coming(names + vectors).check_space(folder)
        errand.begin()
        errand.bring(names)
        errand.bring_vectors(vectors)
        return errand.finish(whole=errand.record.whole)


def coming(pool: HubPool, folder: Path, *, npz: bool = False, rows: int | None = None) -> Coming:
    """What is still to come of a pool's metadata, and with `npz` its vectors, by the hub's sizes.

    Of a folder that others made only the vectors. With `rows` the number of files is what full files imply.
    Nothing is written. Raises StopError where the hub cannot be asked.
    """
    record = _record(folder, pool)
    errand = Errand(Hub(pool.repository, endpoint()), folder, record)
    errand.look()
    names = errand.metadata_names()
    if record is None and stands(folder):
        names = sorted(p.name for p in folder.glob("*.parquet"))
        return errand.coming([_npz(name) for name in names] if npz else [])
    names = names[: _first(rows, len(names))]
    known = list(record.files) if record else []
    return errand.coming(sorted({*names, *known, *(_npz(name) for name in names if npz)}))


def begun(folder: Path) -> str | None:
    """The scale that a fetch into `folder` has begun and not finished with, if there is one."""
    repository = hub_folder.begun(folder)
    return next((scale for scale, pool in POOLS.items() if pool.repository == repository), None)


def _locked(folder: Path) -> AbstractContextManager[None]:
    return lock(folder.with_name(f"{folder.name}.lock"))


def _record(folder: Path, pool: HubPool | None) -> Record | None:
    """What the folder was fetched from, which must be `pool` where both are known."""
    record = read_record(folder)
    if record and pool and record.repository != pool.repository:
        raise InputError(
            str(folder), f"is of {record.repository} (asked for: {pool.repository})", hint="another --pool"
        )
    return record


def _holds(record: Record, folder: Path, rows: int | None) -> bool:
    """Whether a folder, of which no file is missing, has all that is wanted."""
    if record.whole or rows is None:
        return record.whole
    return _rows(folder / name for name in record.files if name.endswith(".parquet")) >= rows


def _rows(files: Iterable[Path]) -> int:
    """The rows that Parquet files hold together, by their footers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = 0
    for path in files:
        try:
            total += pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            raise StopError(str(path), f"is not Parquet, and no more so on the hub ({error})") from error
    return total


def _first(rows: int | None, files: int) -> int:
    """How many of so many files hold `rows` if all are full; at least one."""
    return files if rows is None else min(files, max(1, math.ceil(rows / ROWS_A_FILE)))


def _npz(name: str) -> str:
    return f"{name.removesuffix('.parquet')}.npz"
