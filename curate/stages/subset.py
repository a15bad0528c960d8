"""The subset stage: a selection made real, as shards that DataComp's train.py and open_clip read as they stand.

The folder holds one subfolder, `shards`: train.py takes every other one for more data. `subset.json` is written
first and last: it marks the folder as ours, and says what it is being made of and whether that is done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curate import disk, receipts, runner, scales, uid_lists
from curate.errors import InputError, PartError
from curate.pool import Pool, need_shards
from curate.pool.adopt import adopt
from curate.pool.layout import Layout, is_own
from curate.scales import Scale
from curate.selection import Selection, check_fresh
from curate.stages import blurring, copying, placing, resharding, shuffled
from curate.stages import subset_files as written
from curate.stages import virtual as indexing
from curate.stages.blurring import Faces
from curate.stages.card import Facts, card
from curate.stages.placing import BROKEN, Pairs, Plan
from curate.subset_layout import INDEX, MARK

STAGE, VERSION = "subset", 1
SAMPLES_PER_SHARD = 10_000
PROCESSES_FROM = 8_000_000_000
"""Under so many bytes threads of this process do the work: they are done before processes have started."""

log = logging.getLogger("curate.subset")


class NothingHere(InputError):
    """None of the selected samples has an image in the pool; `plan` says why not."""

    def __init__(self, where: str, what: str, plan: Plan, *, hint: str) -> None:
        gone = lost(plan, Path(where))
        super().__init__(where, what, hint=gone.hint if gone else hint)
        self.plan = plan
        self.exit_code = gone.exit_code if gone else self.exit_code


@dataclass(frozen=True)
class Result:
    """What became of a selection."""

    out: Path
    selection: str
    scale: Scale
    selected: int
    """Distinct uids of the selection."""
    outside: int
    """Of these, how many are not in the scale's pool."""
    missing: Mapping[str, int]
    """Of the others, how many have no image here, by cause."""
    kept: int
    samples: int
    """Samples in the shards, copies counted."""
    shards: int
    bytes: int
    shuffled: bool = False
    virtual: bool = False
    blurred: int | None = None
    """Pictures whose faces are blurred, copies counted; None where that was not asked for."""
    unmade: int = 0
    """Of the shards, how many could not be made: there is nothing to train on yet."""
    failure: PartError | None = None
    """Why the command must exit 3, although all that could be made is made."""
    warnings: list[str] = field(default_factory=list)

    @property
    def repeats(self) -> float:
        """How often a training at this scale sees each sample."""
        return self.scale.repeats(self.samples)

    def trained_on(self, folder: Path) -> tuple[str, str]:
        """What open_clip's --train-data and train.py's --data_dir take, the subset lying in `folder`."""
        return written.trained_on(folder, self.shards, virtual=self.virtual)

    @property
    def commands(self) -> dict[str, str]:
        """What trains on it, as `open_clip` and `datacomp` are called, from any folder."""
        pattern, folder = self.trained_on(self.out.resolve())
        return {
            "open_clip": scales.training_command(self.scale, pattern),
            "datacomp": scales.datacomp_command(self.scale, folder),
        }

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        shown = {k: v for k, v in vars(self).items() if k not in ("scale", "failure", "out", "unmade")}
        whole = {"unmade": self.unmade} if self.unmade else {"commands": self.commands}
        failed = {"failure": str(self.failure)} if self.failure else {}
        return {
            "out": str(self.out),
            "scale": self.scale.name,
            **shown,
            "repeats": round(self.repeats, 3),
            **whole,
            **failed,
        }


def subset(
    pool: Pool,
    selection: Selection,
    scale: Scale,
    out: Path,
    *,
    seed: int = 0,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    workers: int = 0,
    shuffle: bool = False,
    faces: Faces | None = None,
    virtual: bool = False,
    require_all: bool = False,
    allow_stale: bool = False,
) -> Result:
    """The selection's samples in new shards under `out`, with all that a training needs to know.

    In the order of the pool or, with `shuffle`, by chance over all shards: a function of uid, copy and `seed`.
    `faces` are blurred in the pictures, or written into the samples' JSON; a sample for which that cannot be done
    is missing with an error code. `virtual` makes an index of the pool's own tars in place of shards; its pictures
    cannot change. Goes on where an earlier call stopped.

    Raises InputError, with nothing written, for an `out` that holds something else, a selection of an older pool,
    or one of which no image is here. Samples that were never fetched are listed; `Result.failure` tells of bytes
    that should be there and are not.
    """
    if samples_per_shard < 1:
        raise InputError("--samples-per-shard", f"must be 1 or more (found {samples_per_shard})")
    if virtual and faces is not None:
        raise InputError(
            "--virtual", "copies nothing, so faces cannot be blurred in it", hint="leave one of the two options out"
        )
    _check_out(pool, out)
    need_shards(pool)
    pool = adopt(pool, workers=workers)
    if not allow_stale:
        check_fresh(pool, selection)
    wanted, copies = uid_lists.distinct(selection.uids())
    inside = _inside(pool, wanted, scale, seed)
    plan = placing.make_plan(pool, wanted[inside], copies[inside], foreign=selection.listed is not None)
    if not plan.samples:
        for error in plan.damaged.values():
            log.error("%s", error)
        raise NothingHere(
            str(selection.folder),
            f"none of its {len(wanted):,} samples has an image here" + _because(plan),
            plan,
            hint="curate download --pool DIR fetches images" if len(wanted) else "keep more: curate filter ...",
        )
    if faces is not None:
        plan.boxes = blurring.boxes_of(pool, plan, faces.source)
    disk.make_folder(out)
    with disk.lock(out / "subset.lock"):
        how = _How(scale, seed, samples_per_shard, shuffle, faces, virtual)
        return _Making(pool, selection, how, out, plan, len(wanted), ~inside).run(workers, require_all)


@dataclass(frozen=True)
class _How:
    """What was asked for, beside the selection."""

    scale: Scale
    seed: int
    samples_per_shard: int
    shuffle: bool
    faces: Faces | None
    virtual: bool

    def as_json(self) -> dict[str, Any]:
        plain = {"scale": self.scale.name, "seed": self.seed, "samples_per_shard": self.samples_per_shard}
        more = {name: True for name, set_ in (("shuffled", self.shuffle), ("virtual", self.virtual)) if set_}
        return plain | more | ({"faces": self.faces.as_json()} if self.faces else {})


@dataclass
class _Making:
    """One subset in the making, with its folder locked."""

    pool: Pool
    selection: Selection
    how: _How
    out: Path
    plan: Plan
    selected: int
    outside: npt.NDArray[np.bool_]

    @property
    def shards(self) -> Path:
        return self.out / (INDEX if self.how.virtual else "shards")

    def run(self, workers: int, require_all: bool) -> Result:
        gathering, tasks = self._tasks()
        what = self._what
        self._begin(what, {t.part for t in tasks})
        alone = placing.bytes_about(self.plan) < PROCESSES_FROM
        do = partial(runner.run, workers=0 if alone else workers, threads=workers)
        if gathering and runner.pending(STAGE, VERSION, tasks):
            do(shuffled.STAGE, shuffled.VERSION, gathering, title=f"{STAGE}: rows", aloud=False).raise_failed()
        summary = do(STAGE, VERSION, tasks)
        if refused := summary.counts["failed"]:
            self.plan = self.plan.without(*written.failed_rows(self.shards, summary.receipts))
            one = "1 picture could not be blurred, or given its boxes: it is left out"
            many = f"{refused:,} pictures could not be blurred, or given their boxes: they are left out"
            log.warning("%s", one if refused == 1 else many)
        result = self._result(summary)
        result = replace(result, failure=self._failure(summary, require_all), warnings=self._warnings(result))
        if not summary.failed:
            self._finish(result, summary, what)
        for warning in result.warnings:
            log.warning("%s", warning)
        return result

    def _tasks(self) -> tuple[list[runner.Task], list[runner.Task]]:
        """What is done before all else, and the new shards."""
        size, faces = self.how.samples_per_shard, self.how.faces
        if self.how.shuffle:
            dealt = shuffled.shuffle(self.plan, size, self.how.seed, faces)
            gathering = dealt.gathering(self.out)
            write = indexing.write_rows if self.how.virtual else resharding.write_rows
            return gathering, dealt.writing(self.shards, gathering, write)
        more = {"faces": faces.as_json()} if faces else {}
        return [], [
            runner.Task(
                f"{number:08d}",
                self.shards,
                placing.fingerprint(self.plan, sources) | more | self._numbers(sources),
                indexing.write_shard if self.how.virtual else resharding.write_shard,
                (sources, faces),
                sum(len(s.rows) for s in sources),
            )
            for number, sources in enumerate(self.plan.pieces(size))
        ]

    def _numbers(self, sources: Sequence[placing.Source]) -> dict[str, Any]:
        """The numbers of the tars, where these are written."""
        return {"tars": [source.number for source in sources]} if self.how.virtual else {}

    def _result(self, summary: runner.Summary) -> Result:
        return Result(
            self.out,
            self.selection.name,
            self.how.scale,
            self.selected,
            int(self.outside.sum()),
            self.plan.missing_by_cause(),
            len(self.plan.uids),
            self.plan.samples,
            summary.parts,
            summary.counts["bytes"],
            self.how.shuffle,
            self.how.virtual,
            summary.counts["blurred"] if self.how.faces and self.how.faces.blur else None,
            len(summary.failed),
        )

    @property
    def _what(self) -> dict[str, Any]:
        raw = self.selection.raw
        return {
            "selection": self.selection.name,
            "selection_digest": receipts.digest([raw.get("recipe"), raw["counts"], raw["pool"]]),
            "pool": self.pool.identity(),
            **self.how.as_json(),
            "uids": hashlib.sha256(self.plan.uids.tobytes() + self.plan.copies.tobytes()).hexdigest(),
        }

    def _begin(self, what: Mapping[str, Any], parts: set[str]) -> None:
        """Mark the folder as ours, and take away what an earlier subset left that this one has not."""
        receipts.sweep(self.out)
        before = _marked(self.out)
        if before.get("made_of") == what:
            return
        shutil.rmtree(self.out / shuffled.FOLDER, ignore_errors=True)
        for name in before.get("files", {}):
            (self.out / name).unlink(missing_ok=True)
        for folder in (self.out / "shards", self.out / INDEX):
            for part in receipts.receipts(folder).keys() - (parts if folder == self.shards else set()):
                receipts.remove_part(folder, part)
            if folder != self.shards:  # train.py takes a folder that is left over for more data
                with suppress(OSError):
                    (folder / receipts.RECEIPTS).rmdir()
                with suppress(OSError):
                    folder.rmdir()
        # last: a kill before it leaves the old mark, so that the next call takes away what is left
        receipts.write_json(self.out / MARK, {"format": receipts.FORMAT, "made_of": what, "done": False})

    def _failure(self, summary: runner.Summary, require_all: bool) -> PartError | None:
        """The one error that names all that is broken, or, with `require_all`, missing."""
        broken = {**self.plan.damaged, **summary.failed}
        for error in broken.values():
            log.error("%s", error)
        if summary.failed:
            what = (
                f"{len(summary.failed)} of {summary.parts} shards could not be made ({', '.join(summary.failed)})"
            )
            return PartError(str(self.out), what, hint=_hint(broken))
        if gone := lost(self.plan, self.out):
            return gone
        if not self.plan.samples:
            what = "none of its pictures could be blurred, or given its boxes" + _because(self.plan)
            return PartError(str(self.out), what, hint="error_message in the tables of its shards says why")
        return not_all(self.plan.missing_by_cause(), self.out) if require_all else None

    def _finish(self, result: Result, summary: runner.Summary, what: Mapping[str, Any]) -> None:
        """What stands beside the shards, then the mark that all is there."""
        shutil.rmtree(self.out / shuffled.FOLDER, ignore_errors=True)
        sizes = {name: r.counts["kept"] for name, r in sorted(summary.receipts.items())}
        pattern, _ = result.trained_on(Path())
        files = written.files(self.plan, self.how.scale, sizes, pattern)
        if self.how.virtual:
            files = indexing.files(files, indexing.tars(self.pool, self.plan.shards, self.plan.place), sizes)
        files["README.md"] = card(self._facts(result, pattern)).encode()
        for name, data in files.items():
            receipts.write_file(self.out / name, data)
        hashed = {n: asdict(receipts.Written(len(d), hashlib.sha256(d).hexdigest())) for n, d in files.items()}
        mark = {"format": receipts.FORMAT, "made_of": what, "done": True}
        counts = {k: v for k, v in result.as_json().items() if k not in ("out", "warnings", "failure", "commands")}
        receipts.write_json(self.out / MARK, {**mark, "counts": counts, "files": hashed})

    def _warnings(self, result: Result) -> list[str]:
        # of one of several pools a training sees what all together are
        several = "source" in self.selection.raw
        said = [] if several else written.warnings(self.pool, result.scale, result.samples)
        if missing := placing.holes(self.plan.shards):
            listed = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            said.append(f"the pool's numbering has a hole: no shard {listed}; what they held is not here")
        if unfinished := placing.unfinished(self.plan.shards):
            listed = ", ".join(unfinished[:8]) + (", ..." if len(unfinished) > 8 else "")
            said.append(
                f"shards without _stats.json, so perhaps not finished by their tool: {listed}; they are used"
            )
        if self.plan.boxes and (unlisted := self.plan.boxes.unlisted):
            said.append(f"{unlisted:,} samples are not in the list of faces: they are taken to have none")
        if self.plan.boxes and (outside := self.plan.boxes.outside):
            said.append(
                f"samples with boxes outside of their pictures: {outside:,}; there nothing is blurred "
                "(a box is x0, y0, x1, y1, fractions of width and height)"
            )
        return said

    def _facts(self, result: Result, pattern: str) -> Facts:
        raw = self.selection.raw
        return Facts(
            self.how.scale,
            self.how.seed,
            self.pool.kind,
            self.pool.n,
            self.pool.identity(),
            self.selection.name,
            raw.get("recipe"),
            raw.get("rules", ()),
            self.selection.funnel,
            result.selected,
            result.outside,
            result.kept,
            result.samples,
            result.shards,
            result.missing,
            pattern,
            raw.get("recipe_name", ""),
            virtual=result.virtual,
            shuffled=result.shuffled,
            faces=self.how.faces.told(result.blurred) if self.how.faces else "",
        )


def lost(plan: Plan, out: Path) -> PartError | None:
    """What is to be said of samples whose bytes should be in the pool and are not."""
    count = sum(n for cause, n in plan.missing_by_cause().items() if cause in BROKEN)
    if not plan.damaged and not count:
        return None
    names = ", ".join(list(plan.damaged)[:8]) + (", ..." if len(plan.damaged) > 8 else "")
    what = f"{count:,} selected samples should be in the pool and are not"
    return PartError(str(out), what + (f" (shards {names})" if names else ""), hint=_hint(plan.damaged))


def not_all(missing: Mapping[str, int], out: Path) -> PartError | None:
    """What `--require-all` says of samples that are missing, by cause."""
    if not missing:
        return None
    what = f"{sum(missing.values()):,} selected samples have no image here" + _causes(missing)
    return PartError(str(out), what, hint="missing.parquet lists them; or leave out --require-all")


# --- what is refused, and what is said --------------------------------------------------------------------


def _check_out(pool: Pool, out: Path) -> None:
    check_place(out, [pool.layout], "the pool")
    if out.is_dir() and not _marked(out):
        check_holds_no(out, [p.name for p in out.iterdir() if not p.name.startswith("subset.")])


def check_place(out: Path, layouts: Sequence[Layout], whose: str, taken: Sequence[Path] = ()) -> None:
    """Raise InputError for an `out` that is no folder, one of `taken`, or a folder of these pools."""
    where, hint = str(out), "name another folder with --out"
    if out.exists() and not out.is_dir():
        raise InputError(where, "is not a folder", hint="name another one with --out")
    if out.resolve() in {p.resolve() for p in (*taken, *(p for at in layouts for p in (at.root, at.work)))}:
        raise InputError(where, f"is {whose} itself", hint=hint)
    if any(is_own(at, out) for at in layouts):
        raise InputError(where, f"is among {whose}'s own folders", hint=hint)


def check_holds_no(out: Path, others: Sequence[str]) -> None:
    """Raise InputError, naming them, where there are files in `out` that are not of an earlier subset."""
    if others:
        listed = ", ".join(sorted(others)[:5]) + (", ..." if len(others) > 5 else "")
        hint = "name an empty folder with --out"
        raise InputError(str(out), f"holds something else (found: {listed})", hint=hint)


def _marked(out: Path) -> dict[str, Any]:
    """What subset.json says; empty where there is none."""
    try:
        raw = json.loads((out / MARK).read_bytes())
    except (OSError, ValueError):
        return {}
    receipts.check_format(raw, out / MARK)
    return dict(raw)


def _inside(pool: Pool, wanted: Pairs, scale: Scale, seed: int) -> npt.NDArray[np.bool_]:
    """Which of the wanted uids are in the scale's pool."""
    if scale.pool_size is None or pool.n <= scale.pool_size:
        return np.ones(len(wanted), dtype=np.bool_)
    parts = (p for p in pool.parts if p.name in pool.rows)
    limit = scales.scale_limit((scales.scale_ranks(pool.uids(p), seed) for p in parts), scale.pool_size)
    assert limit is not None
    return np.asarray(scales.scale_ranks(wanted, seed) <= limit)


def _because(plan: Plan) -> str:
    return _causes(plan.missing_by_cause())


def _causes(causes: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{cause} {n:,}' for cause, n in causes.items())})" if causes else ""


def _hint(broken: Mapping[str, Any]) -> str | None:
    return next((e.hint for e in broken.values() if e.hint), copying.DAMAGED)
