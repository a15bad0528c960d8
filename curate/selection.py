"""A selection on disk: what a recipe left of a pool, with the decision on every sample.

Where a selection's name is taken, a file may stand that is a uid list: it has uids and copies, and no decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.errors import InputError, PartError, UnknownName
from curate.pool.joint import JointPool
from curate.pool.layout import Layout
from curate.receipts import FORMAT, file_sha256, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from curate.pool import Pool
    from curate.uid_lists import UidList

STAGE, VERSION = "filter", 2
WHOLE = "selection"
"""The part whose receipt stands for uids.npy and selection.json."""
LIST_RULE = "uids"
"""The rule that keeps what stands in a uid list: a selection is a recipe's, and of a list this is the recipe."""
LONGEST = 120
"""Bytes of a selection's name."""
AGAIN = "run the same curate filter again"
_FILES = (".json", ".tmp", ".lock")
"""Ends of the names of files beside selections."""


@dataclass(frozen=True)
class Selection:
    """One selection of a pool: its folder and what selection.json says."""

    folder: Path
    """Of a uid list the file."""
    raw: Mapping[str, Any]
    listed: UidList | None = None
    """The uid list that stands in a selection's place."""

    @property
    def name(self) -> str:
        """The name of the folder, or of the uid list's file."""
        return self.folder.name

    @property
    def counts(self) -> Mapping[str, int]:
        """samples, kept, dropped, unjudged; the last three add up to the first."""
        return dict(self.raw["counts"])

    @property
    def funnel(self) -> list[dict[str, Any]]:
        """One entry a rule: rule, text, in, dropped (reason to count), unjudged (error code to count), left."""
        return list(self.raw["funnel"])

    @property
    def pool_identity(self) -> str:
        """The identity of the pool that it was made of."""
        return str(self.raw["pool"])

    def uids(self) -> npt.NDArray[np.void]:
        """The kept uids, sorted pairs of u8 (mapped); one that stands n times is wanted n times."""
        import numpy as np

        if self.listed is not None:
            return self.listed.pairs
        path = self.folder / "uids.npy"
        try:
            mapped: npt.NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise PartError(str(path), f"cannot be read ({error})", hint=AGAIN) from error
        return mapped

    def need_decisions(self) -> None:
        """Raise InputError for a uid list, which says what is wanted and nothing of the other samples."""
        if self.listed is not None:
            raise InputError(
                str(self.folder),
                "is a uid list, which holds no decisions",
                hint=f"curate selection import {self.folder} --name NAME makes a selection of it",
            )

    def decisions(self, part: str) -> pl.DataFrame:
        """The decision on each sample of a part, in its order.

        Columns: `rule` and `reason` (null where kept), `error_code` (null unless unjudged), `value` (float32),
        `copies` (uint16, 0 unless kept), `of` (16 bytes of the uid that the reason speaks of, or null).
        """
        import polars as pl

        self.need_decisions()
        path = self.folder / "decisions" / f"{part}.parquet"
        if not path.is_file():
            raise PartError(str(path), "is missing", hint=AGAIN)
        try:
            return pl.read_parquet(path, glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise PartError(str(path), f"cannot be read ({error})", hint=AGAIN) from error


def names(layout: Layout) -> list[str]:
    """The finished selections of a pool."""
    return sorted(p.parent.name for p in layout.selections.glob("*/selection.json"))


def check_name(name: str) -> None:
    """Raise InputError for a name that cannot be that of a selection's folder."""
    from curate.uid_files import FORMS  # files of these names are uid lists, in a selection's place

    plain = name != "" and name == Path(name).name and name.isprintable() and not name.startswith((".", "_"))
    if not plain or name.lower().endswith((*_FILES, *FORMS)) or len(name.encode()) > LONGEST:
        raise InputError(
            "--name",
            f"a selection cannot be called {name!r}",
            hint=f"letters, digits, - and _ are safe; no /, no dot in front, at most {LONGEST} bytes",
        )


def load(layout: Layout, name: str | None) -> Selection:
    """The selection of this name, or the uid list in this file; None takes the latest.

    Raises InputError where it is not there.
    """
    from curate import uid_lists

    if name is not None and uid_lists.is_file_name(name):
        return of_list(uid_lists.read(name).said())
    latest = layout.selections / "latest.json"
    if name is None:
        if not latest.is_file():
            raise InputError(
                str(layout.root), "has no selection yet", hint="make one with: curate filter --rule clipscore"
            )
        name = str(read_json(latest, hint="name one: --selection NAME").get("name"))
    known = names(layout)
    if name not in known:
        raise UnknownName(str(layout.root), "selection", name, known, hint="curate filter makes one; see --name")
    path = layout.selection(name) / "selection.json"
    raw = read_json(path, hint=AGAIN)
    if lacking := {"counts", "funnel", "pool"} - raw.keys():
        raise PartError(str(path), f"cannot be read (it has no {', '.join(sorted(lacking))})", hint=AGAIN)
    return Selection(path.parent, raw)


def of_list(listed: UidList) -> Selection:
    """A uid list in the place of a selection; its recipe is the file's sha256."""
    path, n = Path(listed.name), len(listed.uids)
    text = f"{LIST_RULE}:file={path.name}"
    recipe = {"uid_list": {"file": path.name, "form": listed.form, "sha256": file_sha256(path), "uids": n}}
    line = {"rule": LIST_RULE, "text": text, "figures": {}, "in": n, "dropped": {}, "unjudged": {}, "left": n}
    counts = {"samples": n, "kept": n, "dropped": 0, "unjudged": 0}
    raw = {
        "name": path.name,
        "recipe": recipe,
        "rules": [text],
        "counts": counts,
        "copies": listed.samples,
        "funnel": [line],
        "pool": "",
    }
    return Selection(path, raw, listed)


def check_fresh(pool: Pool, chosen: Selection) -> None:
    """Raise InputError where the selection was made of an older state of this pool; a uid list is of none."""
    if chosen.listed is not None:
        return
    known = dict(pool.identities)
    for part in pool.parts:
        if part.name in pool.unreadable and part.shard and (receipt := pool.shard_receipt(part.shard)):
            known[part.name] = receipt.identity  # what it was when it was whole
    if chosen.pool_identity not in (pool.identity(), pool.identity_of(known)):
        _check_sources(pool, chosen)
        raise InputError(
            str(chosen.folder),
            "was made of an older state of this pool",
            hint="run the same curate filter again, or add --allow-stale",
        )


def _check_sources(pool: Pool, chosen: Selection) -> None:
    """Raise InputError where it was made of other pools than are given, or given in another order."""
    made_of = [(s["source"], s["pool"]) for s in chosen.raw.get("sources", ())]
    given = list(pool.members) if isinstance(pool, JointPool) else []
    if [source for source, _ in made_of] == given:
        return
    if not made_of:
        what, pools = "is a selection of one pool", f"--pool {chosen.folder.parent.parent}"
    else:
        what = f"is a selection of several pools ({', '.join(source for source, _ in made_of)})"
        pools = " ".join(f"--pool {source}={folder}" for source, folder in made_of)
    hint = (
        f"curate subset takes the same, in their order: {pools}; curate download --pool DIR --selection "
        f"{chosen.folder}/uids.npy fetches its images, a pool at a time; or name another selection"
    )
    raise InputError(str(chosen.folder), what, hint=hint)


def point_at(layout: Layout, name: str) -> None:
    """Make `name` the latest selection."""
    write_json(layout.selections / "latest.json", {"format": FORMAT, "name": name})
