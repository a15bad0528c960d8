"""A selection of several pools made real: a subset for each pool, side by side, and how a training weighs them.

`OUT/<source>` is what `curate subset` makes of that pool's share of the selection, each complete in itself. Beside
them stand what is of all: training.json with the commands, missing.parquet, a card, and `subsets.json`, which is
written first and last and marks the folder as ours.
"""

from __future__ import annotations

import io
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curate import disk, receipts, scales, uid_lists, uids
from curate.errors import InputError, PartError, UnknownName
from curate.pool import Pool
from curate.pool.adopt import adopt
from curate.pool.joint import JointPool
from curate.scales import Scale
from curate.selection import Selection, check_fresh
from curate.stages import placing, subset, subset_files

MARK = "subsets.json"

Pairs = npt.NDArray[np.void]
Make = Callable[[Pool, Selection, Path], subset.Result]
"""`subset.subset` with all other settings filled in; it must take a selection of another state of the pool."""

log = logging.getLogger("curate.subset")


@dataclass(frozen=True)
class Share(Selection):
    """What a selection of several pools has of one, in the place of a selection of that pool."""

    pairs: Pairs | None = None

    def uids(self) -> Pairs:
        """The kept uids of this pool, sorted; one that stands n times is wanted n times."""
        assert self.pairs is not None
        return self.pairs


@dataclass(frozen=True)
class Made:
    """One source of a training."""

    source: str
    weight: float
    selected: int
    """Distinct uids that the selection has of it."""
    outside: int
    """Of these, how many are not in the scale's pool."""
    result: subset.Result | None
    """None where no image of it is here."""
    repeats: float = 0.0
    """How often a training at this scale sees each of its samples."""
    absent: placing.Plan | None = None
    """Where no image of it is here, though it has shards: why not."""

    @property
    def missing(self) -> Mapping[str, int]:
        """How many have no image here, by cause."""
        if self.result is not None:
            return self.result.missing
        if self.absent is not None:
            return self.absent.missing_by_cause()
        left = self.selected - self.outside
        return {placing.NOT_DOWNLOADED: left} if left else {}

    def as_json(self) -> dict[str, Any]:
        """The source as JSON values."""
        result = self.result
        return {
            "source": self.source,
            "weight": self.weight,
            "selected": self.selected,
            "outside": self.outside,
            "missing": dict(self.missing),
            "kept": result.kept if result else 0,
            "samples": result.samples if result else 0,
            "shards": result.shards if result else 0,
            "bytes": result.bytes if result else 0,
            "repeats": round(self.repeats, 3),
        }


@dataclass(frozen=True)
class Results:
    """What became of a selection of several pools."""

    out: Path
    selection: str
    scale: Scale
    sources: Sequence[Made]
    commands: Mapping[str, str]
    """What trains on all of it, as `open_clip` and `datacomp` are called, from any folder."""
    require_all: bool = False

    @property
    def failure(self) -> PartError | None:
        """Why the command must exit 3, although all that could be made is made."""
        return next((error for made in self.sources if (error := self._failure(made))), None)

    def _failure(self, made: Made) -> PartError | None:
        if made.result is not None:
            return made.result.failure
        out = self.out / made.source
        error = subset.lost(made.absent, out) if made.absent else None
        return error or (subset.not_all(made.missing, out) if self.require_all else None)

    @property
    def unmade(self) -> int:
        """Shards that could not be made: there is nothing to train on yet."""
        return sum(m.result.unmade for m in self.sources if m.result)

    def as_json(self) -> dict[str, Any]:
        """The results as JSON values."""
        told = [made.as_json() for made in self.sources]
        whole = {what: sum(t[what] for t in told) for what in ("selected", "outside", "kept", "samples", "shards")}
        failed = {"failure": str(self.failure)} if self.failure else {}
        return {
            "out": str(self.out),
            "selection": self.selection,
            "scale": self.scale.name,
            **whole,
            "bytes": sum(t["bytes"] for t in told),
            "sources": told,
            **({"unmade": self.unmade} if self.unmade else {"commands": dict(self.commands)}),
            **failed,
        }


def weights_of(pool: Pool, given: Sequence[str]) -> dict[str, float]:
    """The weight of every source: 1, or what SOURCE=W in `given` says.

    Raises InputError for a single pool, a source that is none, and what is no number above 0.
    """
    if not isinstance(pool, JointPool):
        if given:
            what = f"weighs several pools against each other, and there is one (found {given[0]!r})"
            raise InputError("--weight", what, hint="give --pool several times, or leave out --weight")
        return {}
    found = dict.fromkeys(pool.members, 1.0)
    told: set[str] = set()
    for text in given:
        source, _, number = text.rpartition("=")
        if not source:
            hint = f"--weight {next(iter(found))}=2"
            raise InputError("--weight", f"must be a source and its weight (found {text!r})", hint=hint)
        if source not in found:
            raise UnknownName("--weight", "source", source, found, hint="--weight SOURCE=W")
        if source in told:
            raise InputError("--weight", f"weighs {source!r} twice", hint="give each source once")
        told.add(source)
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise InputError("--weight", f"must be a number above 0 (found {text!r})", hint=f"--weight {source}=2")
        found[source] = weight
    return found


def subsets(
    pool: JointPool,
    selection: Selection,
    scale: Scale,
    out: Path,
    make: Make,
    *,
    weights: Mapping[str, float],
    seed: int = 0,
    workers: int = 0,
    require_all: bool = False,
    allow_stale: bool = False,
) -> Results:
    """The selection's samples in `out`, a subset for each pool, made by `make`.

    Goes on where an earlier call stopped. Raises InputError, with nothing written, for an `out` that holds
    something else, a selection of other pools or of an older state of these, or one of which no image is here. A
    pool of which no image is here gets no folder; its samples are missing.
    """
    whole = pool.each(lambda one: adopt(one, workers=workers))
    assert isinstance(whole, JointPool)
    _check_out(whole, out)
    if not allow_stale:
        check_fresh(whole, selection)
    shares = _shares(whole, selection)
    limit = _limit(whole, scale, seed)
    inside = {source: _within(share.uids(), limit, seed) for source, share in shares.items()}
    if not any(len(pairs) and whole.members[source].shards for source, pairs in inside.items()):
        what = f"none of its {len(selection.uids()):,} samples has an image here"
        raise InputError(str(selection.folder), what, hint="curate download --pool DIR fetches images")
    disk.make_folder(out)
    with disk.lock(out / "subsets.lock"):
        receipts.sweep(out)
        _mark(out, {"sources": list(shares)}, done=False)
        made = []
        for source, share in shares.items():
            ours = replace(share, pairs=inside[source])
            result, absent = _made(make, whole.members[source], ours, out / source)
            selected, kept = (len(uid_lists.distinct(p)[0]) for p in (share.uids(), inside[source]))
            made.append(Made(source, weights[source], selected, selected - kept, result, absent=absent))
        made = _with_repeats(made, scale)
        results = Results(out, selection.name, scale, made, _commands(made, scale, out.resolve()), require_all)
        _finish(whole, results, inside)
    return results


def _made(make: Make, pool: Pool, share: Share, out: Path) -> tuple[subset.Result | None, placing.Plan | None]:
    """The subset of one source; where no image of it is here, none, and the plan that says why if one was made."""
    if not len(share.uids()) or not pool.shards:
        return None, None
    try:
        return make(pool, share, out), None
    except subset.NothingHere as error:
        log.warning("%s: %s", out.name, error.what)
        return None, error.plan


# --- what a selection has of each pool --------------------------------------------------------------------


def _shares(pool: JointPool, selection: Selection) -> dict[str, Share]:
    """The share of each source: by the decisions on its samples, or of a uid list by who has a uid first."""
    if "sources" in selection.raw:
        return {source: _decided(pool, selection, source) for source in pool.members}
    split = _split(pool, np.asarray(selection.uids()))
    return {
        source: Share(selection.folder, dict(selection.raw) | {"source": source}, selection.listed, pairs)
        for source, pairs in split.items()
    }


def _decided(pool: JointPool, selection: Selection, source: str) -> Share:
    """What the selection decided on the samples of one pool: their uids, counts and funnel."""
    import polars as pl

    names = [n for n, home in pool.homes.items() if home.source == source and n in selection.raw["parts"]]
    parts = [part for part in pool.parts if part.name in names and part.name in pool.rows]
    held = [np.empty(0, dtype=uids.UID_DTYPE)]
    taken: Counter[tuple[str, str | None, str | None]] = Counter()
    for part in parts:
        decided = selection.decisions(part.name)
        held.append(np.repeat(pool.uids(part), decided["copies"].to_numpy()))
        gone = decided.filter(pl.col("rule").is_not_null()).select(
            pl.col("rule", "reason", "error_code").cast(pl.String)
        )
        taken.update({(rule, reason, code): n for rule, reason, code, n in gone.group_by(pl.all()).len().rows()})
    pairs = np.concatenate(held)
    told = next(s for s in selection.raw["sources"] if s["source"] == source)
    funnel, left = [], int(told["samples"])
    for line in selection.funnel:
        mine = sorted((what, n) for what, n in taken.items() if what[0] == line["rule"])
        dropped = {reason: n for (_, reason, code), n in mine if code is None}
        unjudged = {code: n for (_, _, code), n in mine if code is not None}
        after = left - sum(dropped.values()) - sum(unjudged.values())
        funnel.append({**line, "in": left, "dropped": dropped, "unjudged": unjudged, "left": after})
        left = after
    counts = {what: told[what] for what in selection.counts}
    raw = dict(selection.raw) | {"source": source, "counts": counts, "funnel": funnel}
    return Share(selection.folder, raw, None, pairs[uids.sort_order(pairs)])


def _split(pool: JointPool, wanted: Pairs) -> dict[str, Pairs]:
    """The wanted uids (sorted) by the first pool that has them; those that none has are asked of the first."""
    distinct, copies = uid_lists.distinct(wanted)
    of = np.full(len(distinct), -1, dtype=np.int16)
    for number, source in enumerate(pool.members):
        for part in pool.parts:
            if part.name in pool.rows and pool.homes[part.name].source == source:
                at = uids.find(distinct, pool.uids(part))
                at = at[at >= 0]
                of[at[of[at] < 0]] = number
    owner = np.repeat(np.maximum(of, 0), copies)
    return {source: wanted[owner == number] for number, source in enumerate(pool.members)}


def _limit(pool: JointPool, scale: Scale, seed: int) -> np.uint64 | None:
    """The largest rank that is in the scale's pool, which is of the samples of all pools; None if all are in."""
    if scale.pool_size is None or pool.n <= scale.pool_size:
        return None
    parts = (p for p in pool.parts if p.name in pool.rows)
    return scales.scale_limit((scales.scale_ranks(pool.uids(p), seed) for p in parts), scale.pool_size)


def _within(pairs: Pairs, limit: np.uint64 | None, seed: int) -> Pairs:
    """Those that are in the scale's pool."""
    return pairs if limit is None else pairs[scales.scale_ranks(pairs, seed) <= limit]


# --- what stands beside the subsets -----------------------------------------------------------------------


def _with_repeats(made: Sequence[Made], scale: Scale) -> list[Made]:
    """Each source with how often its samples are seen: trainers draw shards, by the weight of their source."""
    whole = sum(m.weight * m.result.shards for m in made if m.result)
    found = []
    for m in made:
        seen = scale.samples_seen * m.weight * m.result.shards / whole if m.result else 0.0
        found.append(replace(m, repeats=seen / m.result.samples if m.result else 0.0))
    return found


def _commands(made: Sequence[Made], scale: Scale, folder: Path) -> dict[str, str]:
    """What trains on all of it, as `open_clip` and `datacomp` are called, the subsets lying in `folder`."""
    here = [(m, m.result.trained_on(folder / m.source)) for m in made if m.result]
    weights = [m.weight for m, _ in here] if len(here) > 1 else None
    return {
        "open_clip": scales.training_command(scale, [pattern for _, (pattern, _) in here], weights),
        "datacomp": scales.datacomp_command(scale, [there for _, (_, there) in here], weights),
    }


def _finish(pool: JointPool, results: Results, inside: Mapping[str, Pairs]) -> None:
    samples = results.as_json()["samples"]
    training = {
        "format": receipts.FORMAT,
        **asdict(results.scale),
        "samples": samples,
        "repeats": results.scale.repeats(samples),
        "steps": results.scale.steps,
        "sources": [made.as_json() for made in results.sources],
        "command": _commands(results.sources, results.scale, Path())["open_clip"],
    }
    files = {
        "training.json": receipts.json_bytes(training),
        "missing.parquet": _missing(results, inside),
        "README.md": _card(pool, results).encode(),
    }
    for name, data in files.items():
        receipts.write_file(results.out / name, data)
    for warning in subset_files.warnings(pool, results.scale, samples):
        log.warning("%s", warning)
    for made in results.sources:
        if made.repeats > scales.REPEATS and len(results.sources) > 1:
            log.warning("each sample of %s is seen about %s times", made.source, f"{made.repeats:,.0f}")
    # of a source whose shards could not all be made the folder is not done, and says so
    _mark(results.out, {"sources": [m.as_json() for m in results.sources]}, done=not results.unmade)


def _mark(out: Path, what: Mapping[str, Any], *, done: bool) -> None:
    receipts.write_json(out / MARK, {"format": receipts.FORMAT, **what, "done": done})


def _missing(results: Results, inside: Mapping[str, Pairs]) -> bytes:
    """source, uid and cause of each wanted sample without an image."""
    import polars as pl

    kinds = {"source": pl.String, "uid": pl.String, "cause": pl.String}
    held = [pl.DataFrame(schema=kinds)]
    for made in results.sources:
        path = results.out / made.source / "missing.parquet"
        if made.absent is not None:
            lost = pl.read_parquet(subset_files.missing(made.absent))
        elif made.result is None:
            gone = uids.to_hex(uid_lists.distinct(inside[made.source])[0])
            lost = pl.DataFrame({"uid": gone}, {"uid": pl.String})
            lost = lost.with_columns(cause=pl.lit(placing.NOT_DOWNLOADED))
        elif path.is_file():
            lost = pl.read_parquet(path, glob=False)
        else:
            continue  # not all of its shards could be made
        held.append(lost.select(pl.lit(made.source).alias("source"), "uid", "cause"))
    sink = io.BytesIO()
    pl.concat(held).write_parquet(sink)
    return sink.getvalue()


def _card(pool: JointPool, results: Results) -> str:
    """The text of README.md: the counts of each source, and how to train on all of them."""
    commands = _commands(results.sources, results.scale, Path())
    names = ("source", "samples of the pool", "selected", "kept", "written", "weight", "seen by a training")
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    for made in results.sources:
        told, n = made.as_json(), pool.members[made.source].n
        cells = [f"{n:,}", f"{made.selected:,}", f"{told['kept']:,}", f"{told['samples']:,}", f"{made.weight:g}"]
        lines.append(
            f"| [{made.source}]({made.source}) | "
            + " | ".join([*cells, f"{scales.times(made.repeats)} times"])
            + " |"
        )
    pieces = [
        "---\nlicense: other\nlicense_name: per-image\ntags:\n- webdataset\n- clip\n- curate\nconfigs:\n"
        "- config_name: default\n  data_files:\n  - split: train\n    path: '*/shards/*.tar'\n---\n",
        f"# {results.selection} at {results.scale.name}\n",
        "Image-text pairs for training CLIP-like models, chosen from several pools by `curate`. Each source is a "
        "subset of its own, with a card.\n",
        *lines,
        "\n## Training\n",
        "A weight is how often a shard of the source is drawn, relative to the others. With open_clip, in this "
        "folder:\n",
        f"```bash\n{commands['open_clip']}\n```\n",
        "With DataComp's scripts:\n",
        f"```bash\n{commands['datacomp']}\n```\n",
    ]
    return "\n".join(pieces)


def _check_out(pool: JointPool, out: Path) -> None:
    subset.check_place(out, [m.layout for m in pool.members.values()], "a pool", [pool.layout.work])
    if not out.is_dir():
        return
    ours = {*pool.members, MARK, "subsets.lock", "training.json", "missing.parquet", "README.md"}
    marked = (out / MARK).is_file()
    there = [p.name for p in out.iterdir()]
    if marked:
        others = [name for name in there if name not in ours and not name.startswith(f"{MARK}.")]
    else:
        others = [name for name in there if name != "subsets.lock"]
    subset.check_holds_no(out, others)
