"""Selections out of uid lists: what two of them have in common, what one has alone, what another tool chose.

Operands are selections of the pool or files. The result is a selection like any other: the rule `uids` decides on
every sample by a list that stays in the selection's folder, so that it can be made again.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from curate import receipts, selection, uid_files, uid_lists
from curate.errors import CurateError, InputError
from curate.pool import Pool, adopt
from curate.progress import plural
from curate.recipe import Recipe, make_rule
from curate.selection import Selection
from curate.stages import filter as stage
from curate.stages.joint import samples_of
from curate.stages.needs import Work
from curate.uid_files import Pairs
from curate.uid_lists import Overlap, UidList

log = logging.getLogger("curate.selection")

STAGE, VERSION = "selection", 1
PART = "list"
"""The part whose receipt stands for the list and what it was made of."""
IMPORT = "import"
_LIST = "list-{}.npy"


@dataclass(frozen=True)
class Request:
    """What was asked for: an operation on selections and files, and where its result goes."""

    how: str
    """`and`, `or`, `minus`, or `import` of one file."""
    operands: tuple[str, ...]
    select: bool = True
    """Whether a selection is made."""
    name: str | None = None
    out: Path | None = None
    """A file for the result's uid list."""
    foreign: Path | None = None
    """A file for the uids that are not in the pool."""
    strict: bool = False
    """Whether uids that are not in the pool are refused."""
    allow_stale: bool = False

    def __post_init__(self) -> None:
        if self.name is not None:
            selection.check_name(self.name)
        for path in (self.out, self.foreign):
            if path is not None:
                uid_files.form_of(path)
                _check_apart(path, self.operands)


def _check_apart(path: Path, operands: Sequence[str]) -> None:
    for operand in operands:
        if path.exists() and uid_lists.is_file_name(operand) and Path(operand).expanduser().samefile(path):
            raise InputError(str(path), "is an operand, and is not written over", hint="name another file")


@dataclass(frozen=True)
class Made:
    """The result, and what it was made of."""

    how: str
    operands: Sequence[UidList]
    overlaps: Sequence[Overlap]
    """Of each two operands."""
    result: UidList
    foreign: int | None
    """Distinct uids that are not in the pool, and so not in the result; None where no pool was looked at."""
    selection: Selection | None = None
    failed_parts: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All counts as JSON values."""
        return {
            "operation": self.how,
            "operands": [_counted(each) | {"form": each.form} for each in self.operands],
            "overlap": [asdict(each) | {"jaccard": each.jaccard} for each in self.overlaps],
            "result": _counted(self.result),
            "foreign": self.foreign,
        }


def _counted(listed: UidList) -> dict[str, Any]:
    return {"name": listed.name, "uids": len(listed.uids), "samples": listed.samples}


def combine(pool: Pool | None, request: Request) -> Made:
    """The operation's result, as a selection of the pool, a file, or both; nothing is written where it is empty.

    `pool` may be None where all operands are files and no selection is asked for; then uids that are in no pool
    stay. Raises InputError, also for a selection of an older pool, and with `strict` for foreign uids.
    """
    operands = [_operand(pool, text, request) for text in request.operands]
    pairs = operands[0].pairs if request.how == IMPORT else uid_lists.combine(request.how, operands)
    what = f" {request.how} ".join(each.name for each in operands)
    if not len(pairs):
        raise InputError(
            what, "leaves no uid, so nothing is written", hint="curate selection list says what there is"
        )
    whole = UidList(what, "result", pairs)
    overlaps = [uid_lists.overlap(a, b) for a, b in combinations(operands, 2)]
    made = Made(request.how, operands, overlaps, whole, None)
    if pool is not None:
        made = _in_pool(pool, request, made)
    if request.out is not None:
        uid_files.write(request.out, made.result.pairs)
    return made


def _operand(pool: Pool | None, text: str, request: Request) -> UidList:
    if request.how == IMPORT or uid_lists.is_file_name(text):
        return uid_lists.read(text).said()
    assert pool is not None
    if text == request.name:
        raise InputError("--name", f"{text!r} is an operand, and is not written over", hint="give another name")
    chosen = selection.load(pool.layout, text)
    if not request.allow_stale:
        selection.check_fresh(pool, chosen)
    return UidList(text, "selection", chosen.uids())


def _in_pool(pool: Pool, request: Request, made: Made) -> Made:
    """What the pool has of the result, as a selection where one is asked for; the rest is told."""
    pool = pool.each(_with_uids)
    whole = made.result
    outside = whole.outside(samples_of(pool).over(lambda _, part: part, pool.uids))
    foreign = whole.uids[outside]
    if outside.all():
        what = f"none of its {plural(len(foreign), 'uid')} is in {pool.folders}"
        raise InputError(whole.name, what, hint="--pool DIR names another pool")
    if len(foreign):
        _list_foreign(request, foreign, whole, pool)
    if request.select:
        outcome = _select(pool, request, made)
        here, chosen, failed = np.asarray(outcome.selection.uids()), outcome.selection, outcome.failed_parts
    else:
        here, chosen, failed = np.repeat(whole.uids[~outside], whole.copies[~outside]), None, {}
    result = UidList(whole.name, "result", here)
    return replace(made, result=result, foreign=len(foreign), selection=chosen, failed_parts=failed)


def _with_uids(pool: Pool) -> Pool:
    """The pool with the tables that tell the uids of foreign shards and metadata."""
    return pool if pool.joined and pool.covered_by("uid") else adopt.adopt(pool, workers=0)


def _list_foreign(request: Request, foreign: Pairs, whole: UidList, pool: Pool) -> None:
    """Write the uids that are not in the pool where that was asked for, and say how many they are."""
    if request.foreign is not None:
        uid_files.write(request.foreign, foreign)
    said = f"{len(foreign):,} of its {plural(len(whole.uids), 'uid')} are not in {pool.folders}"
    if request.strict:
        raise InputError(
            whole.name, said, hint="without --strict the others are taken; --foreign FILE.txt lists these"
        )
    listed = f"{request.foreign} lists them" if request.foreign else "--foreign FILE.txt lists them"
    log.warning("%s: %s: left out; %s", whole.name, said, listed)


# --- the selection ----------------------------------------------------------------------------------------


def _select(pool: Pool, request: Request, made: Made) -> stage.Outcome:
    """The list as a selection: kept in its folder, and every sample decided on by the rule."""
    pairs = np.ascontiguousarray(made.result.pairs)
    digest = hashlib.sha256(pairs.view(np.uint8).data).hexdigest()
    name = request.name or _default_name(request, digest)
    folder = pool.layout.selection(name)
    path = folder / _LIST.format(digest[:12])
    with _taken_back(folder):
        _keep_list(path, pairs, made)
        recipe = Recipe((make_rule(selection.LIST_RULE, {"file": str(path)}),), keep_same_uid=True)
        return stage.filter_pool(pool, stage.Request(recipe, name), allow=_nothing)


def _keep_list(path: Path, pairs: Pairs, made: Made) -> None:
    """The list beside the selection, and what it was made of; what an earlier one left there goes."""
    counts = {"uids": len(made.result.uids), "samples": len(pairs)}
    what = {"operation": made.how, "list": path.stem}
    before = receipts.read_receipt(path.parent, PART)
    if before and path.name not in before.outputs:
        receipts.remove_part(path.parent, PART)
    output = receipts.Output(STAGE, VERSION, PART, path.parent, what)
    try:
        sink = output.open(path.name)
        for piece in uid_files.pieces("npy", pairs):
            sink.write(piece)
        told = {k: v for k, v in made.as_json().items() if k not in ("result", "foreign")}
        output.write("made_of.json", receipts.json_bytes({"format": receipts.FORMAT, **told}))
        output.commit(counts)
    finally:
        output.abandon()


def _nothing(work: Work) -> None:
    """A list needs no pixels."""


@contextmanager
def _taken_back(folder: Path) -> Iterator[None]:
    """What is refused inside leaves no list where there was no selection, and no folder for it."""
    there = folder.exists()
    try:
        yield
    except CurateError:
        if not there:
            receipts.remove_part(folder, PART)
            for empty in (folder / receipts.RECEIPTS, folder):
                with suppress(OSError):
                    empty.rmdir()
        raise


def _default_name(request: Request, digest: str) -> str:
    stems = [Path(text).stem if uid_lists.is_file_name(text) else text for text in request.operands]
    joined = f"-{request.how}-".join(re.sub(r"[^\w-]+", "_", stem).strip("_-") for stem in stems)
    return f"{joined.encode('ascii', 'ignore').decode()[:60] or request.how}-{digest[:6]}"
