"""`filter`: a recipe over a pool becomes a selection; the decision on every sample, the kept uids, the funnel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate import __version__, disk, receipts, runner, scales, selection, uid_files, uids
from curate.engines import local
from curate.errors import CurateError, InputError, PartError
from curate.filter_api import Column, Score, Scorer, Similarity
from curate.pool import Pool, adopt, reading
from curate.pool.names import PUBLISHED
from curate.recipe import Recipe
from curate.selection import STAGE, VERSION, WHOLE, Selection
from curate.shards import table_bytes
from curate.stages import decide, joint, needs
from curate.stages.decisions import OUTSIDE, SAME_UID, SCALE, Decisions, Words
from curate.stages.needs import Means, Work
from curate.stages.samples import Ahead, Mask, PoolFacts, Samples, checked_vectors, similarity_source

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("curate.filter")

_CODED = ("rule", "reason", "error_code")
"""The columns of a decision that hold few different words."""

Allow = Callable[[Work], None]
"""Raises InputError where a pass over pixels may not start."""


@dataclass(frozen=True)
class Request:
    """What `curate filter` was asked for. Raises InputError for a scale or a name that cannot be."""

    recipe: Recipe
    name: str | None = None
    scale: str | None = None
    seed: int = 0
    means: Means = field(default_factory=Means)

    def __post_init__(self) -> None:
        if self.scale is not None:
            scales.scale(self.scale)
        if self.name is not None:
            selection.check_name(self.name)


@dataclass(frozen=True)
class Outcome:
    """A selection, and whether it was there already."""

    selection: Selection
    failed_parts: Mapping[str, str]
    reused: bool


def settle(pool: Pool, recipe: Recipe, means: Means) -> tuple[Pool, Recipe]:
    """The pool with foreign shards adopted where the rules need them, and the recipe with its defaults filled in.

    Raises InputError for a column that no part has, before anything is computed.
    """
    pool = pool.each(lambda one: adopt.adopt(one, workers=means.workers) if _to_adopt(one, recipe) else one)
    settled = recipe.settle(PoolFacts(pool))
    for step in settled:
        for rule in step.rules:
            for need in rule.needs:
                for column in [need, *(need.scorer.needs() if isinstance(need, Score) else [])]:
                    if isinstance(column, Column) and not column.optional and pool.rows:
                        pool.need_column(column.name, f"rule {rule.name}")
    _say_absent(pool, settled)
    return pool, settled


def _say_absent(pool: Pool, recipe: Recipe) -> None:
    """Name the parts without a column that others have and a rule reads: their samples stay unjudged."""
    wanted: dict[tuple[str, str], Pool] = {}
    for share in (s for step in recipe for rule in step.rules for s in joint.shares(pool, rule.needs)):
        for need in share.needs:
            if isinstance(need, Column) and not need.optional and need.name in share.pool.columns:
                wanted[share.prefix, need.name] = share.pool
            elif isinstance(need, Similarity) and similarity_source(share.pool, need) == "column":
                wanted[share.prefix, PUBLISHED[need.model].similarity] = share.pool
    for (prefix, name), one in wanted.items():
        if absent := [prefix + part for part in one.without(name)]:
            listed = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            log.warning("no column %r in %s: rules that read it leave their samples unjudged", name, listed)


def _to_adopt(pool: Pool, recipe: Recipe) -> bool:
    if not pool.joined or not pool.covered_by("uid"):
        return True
    needs_ = [n for s in recipe for r in s.rules for n in r.needs]
    return any(not isinstance(n, Column) or n.name not in pool.columns for n in needs_)


def dry_run(pool: Pool, recipe: Recipe, means: Means) -> tuple[list[Work], bool]:
    """The work that could start now, and whether more would follow that is computed from it."""
    pool, recipe = settle(pool, recipe, means)
    found: list[Work] = []
    try:
        for todo in needs.plan(pool, recipe, means):
            found.append(todo)  # noqa: PERF402 - what was found stays when the next needs it done
    except InputError:
        if not found:
            raise
        return found, True
    return found, False


def compute(pool: Pool, recipe: Recipe, means: Means) -> list[tuple[str, runner.Summary]]:
    """Make all that the recipe's rules need, without judging anything; what was made, and its counts."""
    pool, recipe = settle(pool, recipe, means)
    made = []
    for todo in needs.plan(pool, recipe, means):
        made.append((todo.what, todo.run()))
        pool.forget()
    return made


def filter_pool(pool: Pool, request: Request, *, allow: Allow) -> Outcome:
    """The selection that the recipe leaves of the pool; what its rules need is made first, where `allow` lets it.

    The same recipe over the same pool again is read back, not made again. Parts whose table cannot be read are
    left out and named.
    """
    local.keep_freed_memory()  # arrays of each part's size come and go
    pool, recipe = settle(pool, request.recipe, request.means)
    if not pool.rows:
        if pool.unreadable:
            first, further = next(iter(pool.unreadable.values())), len(pool.unreadable) - 1
            said = f"no part of it can be read ({first}" + (f", and {further:,} more)" if further else ")")
            raise PartError(pool.folders, said, hint="curate verify says what else is")
        raise InputError(pool.folders, "has no samples", hint="curate status says what is there")
    failed = {name: str(error) for name, error in pool.unreadable.items()}
    for todo in needs.plan(pool, recipe, request.means, whole=False):
        if todo.pixels:
            allow(todo)
        summary = todo.run()
        failed |= joint.what_failed(summary, todo.prefix)
        # what was computed is found by the next need through the same pool
        pool.forget()
    failed |= _without_vectors(pool, recipe)
    name = request.name or recipe.default_name
    what = _fingerprint(pool, recipe, request)
    if pool.awaited:
        log.warning(
            "filter: the download of this pool is not finished (curate status); only what is here is judged"
        )
    folder = pool.layout.selection(name)
    with _not_left_empty(folder), disk.lock(folder / "selection.lock"):
        if _stands(pool, folder, what):
            selection.point_at(pool.layout, name)
            return Outcome(selection.load(pool.layout, name), failed, True)
        try:
            _make(pool, recipe, request, name, what, failed)
        except PartError:
            broken = _broken(pool, recipe)
            if broken.keys() >= pool.rows.keys():
                raise
            pool.leave_out(broken)
            failed |= {part: str(error) for part, error in broken.items()}
            _make(pool, recipe, request, name, what, failed)
    selection.point_at(pool.layout, name)
    return Outcome(selection.load(pool.layout, name), failed, False)


@contextmanager
def _not_left_empty(folder: Path) -> Iterator[None]:
    """What is refused inside leaves no folder that holds nothing."""
    try:
        yield
    except CurateError:
        with suppress(OSError):
            folder.rmdir()
        raise


def _without_vectors(pool: Pool, recipe: Recipe) -> dict[str, str]:
    """The parts whose published vectors cannot be used, and why: rules over them leave those samples unjudged."""
    found = {}
    for share in (s for step in recipe for rule in step.rules for s in joint.shares(pool, rule.needs)):
        samples = Samples(share.pool)
        for source in samples.published(share.needs):
            for part in samples.parts:
                try:
                    checked_vectors(source, part.name, share.pool.rows[part.name])
                except PartError as error:
                    found[share.prefix + part.name] = str(error)
    return found


def _broken(pool: Pool, recipe: Recipe) -> dict[str, PartError]:
    """The parts that hold what cannot be read or is no uid, although their footers are whole."""
    samples = joint.samples_of(pool)
    found = {}
    for part in samples.parts:
        try:
            pool.uids(part)
            pool.failed(part)
            for rule in (r for step in recipe for r in step.rules):
                frame = samples.frame(rule.needs, part)
                with reading(frame, part):
                    frame.collect()
        except PartError as error:
            found[part.name] = error
    return found


def _stands(pool: Pool, folder: Path, what: Mapping[str, Any]) -> bool:
    """Whether the selection and the decisions of all parts are there, made of just this."""
    places = [(folder, WHOLE), *((folder / "decisions", name) for name in pool.rows)]
    found = ((where, receipts.read_receipt(where, part)) for where, part in places)
    wanted = receipts.digest(what)
    if not all(r is not None and r.fingerprint == wanted and not r.missing(where) for where, r in found):
        return False
    # what failed may go well now
    return not receipts.read_json(folder / "selection.json").get("failed_parts")


def _fingerprint(pool: Pool, recipe: Recipe, request: Request) -> dict[str, Any]:
    return {
        "recipe": recipe.describe(),
        "pool": pool.identity(),
        "inputs": _inputs(pool, recipe),
        "scale": request.scale,
        "seed": request.seed,
        "versions": VERSION,
    }


def _inputs(pool: Pool, recipe: Recipe) -> dict[str, str]:
    """The identity of every score and embedding that the rules read.

    Of scores that are computed for some rows the identity of what they are computed from: which rows those are
    depends on what was asked before, their values do not.
    """
    read = {}
    for share in (s for step in recipe for rule in step.rules for s in joint.shares(pool, rule.needs)):
        samples = Samples(share.pool)
        needed = [
            need
            for n in share.needs
            for need in (n.scorer.needs() if isinstance(n, Score) and samples.some_rows(n.scorer) else [n])
        ]
        for folder in samples.folders(needed):
            known = {part: r.identity for part, r in receipts.receipts(folder).items()}
            read[share.prefix + folder.name] = receipts.digest(known)
        for source in samples.published(needed):
            known = {part.name: source.identity(part.name) for part in samples.parts}
            read[f"{share.prefix}{source.model} {source.side}"] = receipts.digest(known)
    return read


def _make(
    pool: Pool, recipe: Recipe, request: Request, name: str, what: Mapping[str, Any], failed: dict[str, str]
) -> None:
    samples = joint.samples_of(pool)
    inside = _inside(samples, request)
    texts = [step.text for step in request.recipe]

    def compute(scorer: Scorer, rows: Mapping[str, Mask]) -> None:
        means = request.means
        failed.update(joint.score_some(pool, scorer, rows, device=means.device, workers=means.workers))

    decisions = decide.decide(
        samples, recipe, texts=texts, inside=inside, compute=compute, device=request.means.device
    )
    if failed:  # what is decided without these parts, or of them, is not what stands when they are mended
        what = {**what, "failed": sorted(failed)}
    for line in decisions.funnel:
        if line["in"] and sum(line["unjudged"].values()) == line["in"]:
            causes = ", ".join(line["unjudged"])
            log.warning(
                "%s could judge none of the %s samples that it saw (%s)", line["rule"], f"{line['in']:,}", causes
            )
    folder = pool.layout.selection(name)
    # another selection of this name ends here: its decisions are about to be replaced
    (folder / "selection.json").unlink(missing_ok=True)
    receipts.remove_part(folder, WHOLE)
    for part in receipts.receipts(folder / "decisions").keys() - pool.rows.keys():
        receipts.remove_part(folder / "decisions", part)
    with Ahead(len(samples.parts), lambda i: i, partial(_table, decisions)) as tables:
        tasks = [
            runner.Task(
                part.name, folder / "decisions", dict(what), _write_part, (tables, index), pool.rows[part.name]
            )
            for index, part in enumerate(samples.parts)
        ]
        summary = runner.run(STAGE, VERSION, tasks, workers=0, title="decisions")
    summary.raise_failed()
    counts = {k: summary.counts[k] for k in ("samples", "kept", "dropped", "unjudged")}
    runner.check_counts("filter", counts)
    raw = {
        "format": receipts.FORMAT,
        "name": name,
        "recipe": recipe.describe(),
        "recipe_name": recipe.name,
        "rules": [s.text for s in recipe],
        "sentences": _sentences(recipe, decisions),
        "scale": request.scale,
        "seed": request.seed,
        "counts": counts,
        "copies": int(decisions.copies.sum(dtype=np.int64)),
        "funnel": decisions.funnel,
        "failed_parts": dict(failed),
        "pool": what["pool"],
        **({"sources": told} if (told := joint.tallies(decisions)) else {}),
        "parts": {p.name: pool.rows[p.name] for p in samples.parts},
        "versions": {"curate": __version__},
    }
    output = receipts.Output(STAGE, VERSION, WHOLE, folder, what)
    try:
        _write_uids(output, samples, decisions)
        output.write("selection.json", receipts.json_bytes(raw))
        output.commit(counts)
    finally:
        output.abandon()


def _inside(samples: Samples, request: Request) -> Mask | None:
    if request.scale is None:
        return None
    return scales.scale_pool(samples.uids, scales.scale(request.scale), request.seed)


def _sentences(recipe: Recipe, decisions: Decisions) -> dict[str, dict[str, str]]:
    """Rule to reason to sentence, the settings already filled in; {value} and {of} are left to fill."""
    said: dict[str, dict[str, str]] = {
        SAME_UID: {SAME_UID: "another sample of the pool has this uid"},
        SCALE: {OUTSIDE: "outside of the scale's pool"},
    }
    names = iter([line["rule"] for line in decisions.funnel if line["rule"] not in said])
    for step in recipe:
        said[next(names)] = {reason: text for rule in step.rules for reason, text in rule.sentences().items()} | {
            "no_member_keeps": "none of the group's rules keeps it",
            "members_keep": "the group's rules keep it",
        }
    return said


@dataclass(frozen=True)
class _Table:
    """The decisions on one part as Parquet, and how many of each kind they are."""

    data: Any
    counts: Mapping[str, int]


def _write_part(
    output: receipts.Output, tick: local.Tick, tables: Ahead[int, _Table], index: int
) -> Mapping[str, int]:
    table = tables[index]
    output.write(f"{output.part}.parquet", table.data)
    tick(table.counts["samples"], 0)
    return table.counts


def _table(decisions: Decisions, index: int) -> _Table:
    import pyarrow as pa

    span = decisions.samples.span(index)
    rule, code, value = decisions.rule[span], decisions.code[span], decisions.value[span]
    columns = {
        "rule": _words(rule, decisions.rules),
        "reason": _words(decisions.reason[span], decisions.reasons),
        "error_code": _words(code, decisions.codes),
        "value": _array(pa.float32(), value, ~np.isnan(value)),
        "copies": _array(pa.uint16(), decisions.copies[span]),
        "of": _of(decisions, span),
    }
    kept, unjudged = int((rule < 0).sum()), int((code >= 0).sum())
    dropped = len(rule) - kept - unjudged
    counts = {"samples": len(rule), "kept": kept, "unjudged": unjudged, "dropped": dropped}
    return _Table(table_bytes(pa.table(columns), dictionaries=_CODED, small=("copies",)), counts)


def _array(kind: pa.DataType, data: npt.NDArray[Any], valid: Mask | None = None) -> pa.Array:
    """The numbers where they lie, null where they are not valid: pyarrow's own way looks at every row."""
    import pyarrow as pa

    bits = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(kind, len(data), [bits, pa.py_buffer(np.ascontiguousarray(data))])


def _words(numbers: npt.NDArray[np.int16], words: Words) -> pa.DictionaryArray:
    import pyarrow as pa

    texts = [w.encode() for w in words.words]
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    # from buffers: pa.array of a list imports pandas, half a second
    known = pa.Array.from_buffers(
        pa.string(), len(texts), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    )
    places = _array(pa.int16(), numbers, numbers >= 0)
    return pa.DictionaryArray.from_arrays(places, known, safe=False)


def _of(decisions: Decisions, span: slice) -> pa.Array:
    import pyarrow as pa

    if decisions.of is None:
        return pa.nulls(span.stop - span.start, pa.binary())
    rows = decisions.of[span]
    named = rows >= 0
    pairs = decisions.samples.uids[rows[named]]
    octets = np.stack([pairs["f0"], pairs["f1"]], axis=1).astype(">u8")
    ends = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(named, out=ends[1:])
    valid = pa.py_buffer(np.packbits(named, bitorder="little"))
    return pa.Array.from_buffers(
        pa.binary(), len(rows), [valid, pa.py_buffer(ends * octets.itemsize * 2), pa.py_buffer(octets)]
    )


def _write_uids(output: receipts.Output, samples: Samples, decisions: Decisions) -> None:
    """The kept uids, sorted, one entry a copy."""
    pairs = samples.uids_of(decisions.copies > 0)
    order = uids.sort_order(pairs)
    pairs = pairs[order]
    if decisions.copies.max(initial=1) > 1:
        pairs = np.repeat(pairs, decisions.copies[decisions.copies > 0][order])
    sink = output.open("uids.npy")
    for piece in uid_files.pieces("npy", pairs):
        sink.write(piece)
