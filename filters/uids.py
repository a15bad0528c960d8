"""What stands in a uid list, with its copies: another tool's choice, or what two selections have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from curate.filter_api import Draw, File, InputError, Left, Need, Sampler, setting, uid_list


@dataclass(frozen=True)
class Uids(Sampler):
    """Keep the samples whose uid stands in a list; one that stands n times is taken n times.

    The list is a file: DataComp's npy (`u8,u8`), the same without its header (.bin, .memmap), Parquet with a
    column `uid`, or text with one uid a line. Its order does not matter. Where several samples have one uid,
    which happens with `keep_same_uid` alone, they share its copies, the first ones the rest. Listed uids that
    are not among the samples left are counted (`not here`).
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "not_listed": "the list does not have its uid, or less often than there are samples of it",
    }

    file: File | None = setting(None, "the uid list: .npy, .bin, .memmap, .parquet or .txt")
    missing: str = setting("count", "what to do where a listed uid is not here", choices=("count", "refuse"))

    def __post_init__(self) -> None:
        if self.file is None:
            raise ValueError("wants the uid list: file=FILE.npy")
        if self.missing not in ("count", "refuse"):
            raise ValueError(f"missing is count or refuse (found {self.missing!r})")

    def needs(self) -> list[Need]:
        return []

    def draw(self, left: Left) -> Draw:
        import numpy as np

        assert self.file is not None
        listed = uid_list(self.file)
        copies, absent = listed.share(left.uids)
        if absent and self.missing == "refuse":
            what = f"{absent:,} of its {len(listed.uids):,} uids are not among the {left.n:,} samples left"
            raise InputError(listed.name, what, hint="missing=count keeps the others")
        most = np.iinfo(np.uint16).max
        if copies.max(initial=0) > most:
            what = f"wants a sample {copies.max():,} times; a selection holds at most {most:,} copies"
            raise InputError(listed.name, what, hint="leave some of the copies out")
        notes = {"listed": len(listed.uids), "not here": absent}
        if listed.samples > len(listed.uids):
            notes["copies"] = listed.samples
        return Draw(copies.astype(np.uint16), "not_listed", notes=notes)
