"""Status: what a pool holds and what was computed for it, read from footers and receipts; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curate import receipts, selection
from curate.errors import CurateError, InputError, PartError
from curate.pool import Pool, npz
from curate.pool.layout import DOWNLOAD_STAGE
from curate.progress import plural
from curate.receipts import Receipt
from curate.shards import BLOCK
from curate.views import fetches, inventory

KINDS: Mapping[str, str] = {
    "curate": "a pool of curate's own",
    "datacomp": "DataComp's metadata and shards",
    "img2dataset": "img2dataset's shards",
    "tars": "tars alone",
    "metadata": "metadata alone",
}


def status(pool: Pool) -> dict[str, Any]:
    """All that is known of a pool without reading a tar, as JSON values.

    `stored`, `failed` and `download` are None where a foreign pool has not been read yet. `missing` and
    `unreadable` are what `curate verify` would call damage; `foreign` is what it ignores.
    """
    found = inventory.take(pool)
    fetched, unreadable = _shards(pool)
    counts = fetched.codes if fetched else None
    failed = {code: n for code, n in sorted(counts.items()) if code} if counts is not None else None
    made = [receipt for _, _, receipt in found.receipts if receipt and receipt.stage == DOWNLOAD_STAGE]
    return {
        "pool": str(pool.layout.root),
        "work": str(pool.layout.work),
        "kind": pool.kind,
        "samples": pool.n if pool.joined or counts is None else sum(counts.values()),
        "parts": len(pool.parts),
        "shards": len(pool.shards),
        "awaited": pool.awaited,
        "stored": counts[""] if counts is not None else None,
        "failed": failed,
        "download": fetches.told(fetched, pool, made) if fetched and pool.shards else None,
        "models": _models(pool),
        "scores": _scores(pool),
        "selections": selections(pool),
        "unreadable": unreadable,
        "missing": [
            {"path": str(path), "found": what}
            for path, what in found.damage()
            if not any(error.startswith(f"{path}: ") for error in unreadable.values())
        ],
        "foreign": [str(p) for p in found.foreign],
        "unfinished": [str(p) for p in found.unfinished],
        "running": found.running(),
    }


def _shards(pool: Pool) -> tuple[fetches.Fetches | None, dict[str, str]]:
    """What the shards' tables say, None where some were never read; and the parts that cannot be read, with why."""
    found = fetches.Fetches()
    unreadable = {n: str(e) for n, e in pool.unreadable.items() if pool.joined}
    known = True
    for part in pool.parts:
        if part.npz is not None:
            try:
                npz.names(part.npz)
            except PartError as error:
                unreadable.setdefault(part.name, str(error))
    for shard in pool.shards:
        try:
            if not shard.ours:
                _check_blocks(shard.tar)
            known &= found.read(pool, shard)
        except CurateError as error:
            unreadable[shard.name] = str(error)
    return (found if known else None), unreadable


def _check_blocks(tar: Path) -> None:
    """Raise PartError for a tar whose size no tar has: most cuts leave one."""
    size = tar.stat().st_size
    if size % BLOCK:
        raise PartError(str(tar), f"is cut short ({size:,} bytes, not whole blocks of {BLOCK})")


def _total(found: Mapping[str, Receipt], name: str) -> int:
    return sum(r.counts.get(name, 0) for r in found.values())


def _models(pool: Pool) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for model in pool.models if pool.rows else pool.embedded:
        if model not in pool.embedded:
            told.append({"model": model, "published": True})
            continue
        made = receipts.receipts(pool.layout.embeddings(pool.embedded[model]))
        counts = {name: _total(made, name) for name in ("samples", "ok", "failed")}
        told.append({"model": model, "published": False, "parts": len(made), **counts})
    return told


_NOT_OK = {"failed": "failed", "unasked": "not asked for yet"}
"""Counts of a score's samples that have none, in words."""


def _scores(pool: Pool) -> list[dict[str, Any]]:
    told = []
    for path in _folders(pool.layout.work / "scores"):
        made = receipts.receipts(path)
        counts = {name: _total(made, name) for name in ("samples", "ok", "failed", "unasked")}
        told.append({"score": path.name, "parts": len(made), **counts})
    return told


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def selections(pool: Pool) -> list[dict[str, Any]]:
    """The pool's selections: name, counts, which one is the latest, which are of an older state of the pool."""
    names = selection.names(pool.layout)
    latest = None
    if (pool.layout.selections / "latest.json").is_file():
        try:
            latest = selection.load(pool.layout, None).name
        except CurateError:
            latest = None  # it points at one that was deleted
    told = []
    for name in names:
        try:
            chosen = selection.load(pool.layout, name)
        except PartError:
            continue  # its file is told as broken
        one = {"selection": name, **chosen.counts, "latest": name == latest}
        if sources := [s["source"] for s in chosen.raw.get("sources", ())]:
            told.append({**one, "stale": False, "sources": sources})  # whether it is, all of them decide
        else:
            told.append({**one, "stale": _stale(pool, chosen)})
    return told


def _stale(pool: Pool, chosen: selection.Selection) -> bool:
    try:
        selection.check_fresh(pool, chosen)
    except InputError:
        return True
    return False


# --- for people -------------------------------------------------------------------------------------------


def lines(told: Mapping[str, Any]) -> list[str]:
    """What `status` said, as text."""
    out = [f"{told['pool']}: {KINDS.get(told['kind'], told['kind'])}"]
    unread = not told["samples"] and told["shards"] and told["stored"] is None
    samples = "not counted yet," if unread else f"{told['samples']:,}"
    out.append(f"samples   {samples} in {plural(told['parts'], 'part')}")
    if told["awaited"]:
        awaited = plural(told["awaited"], "shard")
        out.append(f"awaited   {awaited} of the list not here yet: the same curate download goes on")
    if told["shards"]:
        if told["stored"] is None:
            out.append(f"shards    {told['shards']:,}, not read yet: the first stage that needs them does")
        else:
            failed, asked = sum(told["failed"].values()), told["download"]["asked"]
            share = f" ({told['stored'] / asked:.1%} success)" if asked else ""
            out.append(f"shards    {told['shards']:,}: {told['stored']:,} images stored, {failed:,} failed{share}")
            out += fetches.lines(told["download"])
    for model in told["models"]:
        made = "published" if model["published"] else f"{model['ok']:,} of {model['samples']:,} samples"
        out.append(f"model     {model['model']}: {made}")
    for score in told["scores"]:
        further = [f"{score[count]:,} {said}" for count, said in _NOT_OK.items() if score[count]]
        line = f"score     {score['score']}: {score['ok']:,} of {score['samples']:,} samples"
        out.append(line + (f" ({', '.join(further)})" if further else ""))
    for chosen in told["selections"]:
        marks = [m for m in ("latest", "stale") if chosen[m]]
        marks += [f"of the pools {', '.join(chosen['sources'])}"] if "sources" in chosen else []
        out.append(
            f"selection {chosen['selection']}: {chosen['kept']:,} of {chosen['samples']:,} kept"
            + (f" ({', '.join(marks)})" if marks else "")
        )
    out += [f"running   {holder}" for holder in told["running"]]
    out += [f"broken    {error}" for error in told["unreadable"].values()]
    out += [f"broken    {m['path']} {m['found']}" for m in told["missing"]]
    out += [f"left over {path}" for path in told["unfinished"] if not told["running"]]
    out += [f"foreign   {path} (ignored)" for path in told["foreign"]]
    return out
