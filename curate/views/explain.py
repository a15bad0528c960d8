"""`explain`: where one sample is, its columns and scores, and what each rule of a selection says of it.

Only columns of uids are read of the whole pool; of the rest, the sample's own part. Several rows may have one uid.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curate import uids
from curate.errors import CurateError, InputError, PartError
from curate.pool import FAILED, Part, Pool, Shard, reading
from curate.pool.joint import JointPool
from curate.pool.names import machine_names
from curate.progress import plural
from curate.selection import Selection, check_fresh
from curate.views.charts import number
from curate.views.inert import inert, plain_url
from curate.views.verdicts import DROPS, KEEPS, UNJUDGED, verdict

log = logging.getLogger("curate.explain")

FEWEST_DIGITS = 6
"""Digits of an abbreviated uid."""
_DIGITS = re.compile(rf"[0-9a-f]{{{FEWEST_DIGITS},32}}")
_WHOLE = 1 << 20
"""Characters of a text in the JSON."""
_CELL = 100
"""Characters of a value in the tables."""
_RULE = 60
"""Characters of a rule in the tables."""
_WOULD = {KEEPS: "would keep", DROPS: "would drop", UNJUDGED: "could not judge"}
"""Of rules below the one that took the sample."""
_SHOWN_APART = frozenset({"uid", "url", "caption", "key"})


@dataclass(frozen=True)
class Place:
    """A row that has the uid, and where its image is, or would be."""

    name: str
    """Of its part among all that are looked at."""
    pool: Pool
    """The one that has the part, of several."""
    part: Part
    row: int
    shard: Shard | None
    shard_row: int


def explain(pool: Pool, text: str, selection: Selection | None, *, allow_stale: bool = False) -> dict[str, Any]:
    """All that is known of the sample with this uid (or its first digits, where only one has them), as JSON values.

    Raises InputError where the pool has no such sample, and for a selection of an older pool.
    """
    if selection is not None and not allow_stale:
        check_fresh(pool, selection)
    uid, rows = _find(pool, text)
    places = list(_places(pool, uid, rows))
    return {
        "uid": uid,
        "pool": ", ".join(dict.fromkeys(place.pool.folders for place in places)),
        "rows": [_row(pool, place, selection) for place in places],
        "listed": _listed(selection, uid),
    }


def _listed(selection: Selection | None, uid: str) -> dict[str, Any] | None:
    """How often a uid list, in the place of a selection, has the uid."""
    if selection is None or selection.listed is None:
        return None
    listed, pair = selection.listed, np.empty(1, uids.UID_DTYPE)
    pair["f0"], pair["f1"] = int(uid[:16], 16), int(uid[16:], 16)
    at = int(uids.find(listed.uids, pair)[0])
    return {"name": selection.name, "copies": int(listed.copies[at]) if at >= 0 else 0}


# --- where ------------------------------------------------------------------------------------------------


def _find(pool: Pool, text: str) -> tuple[str, list[tuple[Part, int]]]:
    digits = text.strip().lower()
    if not _DIGITS.fullmatch(digits):
        raise InputError(
            text, "is not a uid", hint=f"a uid is 32 hex digits; its first {FEWEST_DIGITS} or more will do"
        )
    parts = [part for part in pool.parts if part.name in pool.rows]
    if not parts or "uid" not in pool.columns:
        raise InputError(
            pool.folders, "has no table with uids yet", hint="the first curate filter or embed makes it"
        )
    found: dict[str, list[tuple[Part, int]]] = {}
    broken = list(pool.unreadable)
    for part in parts:
        try:
            for row, uid in _rows_with(pool, part, digits):
                found.setdefault(uid, []).append((part, row))
        except PartError as error:
            log.warning("%s", error)
            broken.append(part.name)
    if not found:
        unread = f"; {plural(len(broken), 'part')} cannot be read" if broken else ""
        raise InputError(
            digits,
            f"no sample of {pool.folders} has this uid ({pool.n:,} looked at{unread})",
            hint="--pool DIR names another pool",
        )
    if len(found) > 1:
        some = ", ".join(sorted(found)[:5]) + (", ..." if len(found) > 5 else "")
        raise InputError(digits, f"is how {len(found):,} uids begin ({some})", hint="give more digits")
    return next(iter(found.items()))


def _rows_with(pool: Pool, part: Part, digits: str) -> list[tuple[int, str]]:
    """Row and uid of those whose uid begins so. Raises PartError where the part cannot be read."""
    uid = pl.col("uid").cast(pl.String).str.to_lowercase()
    wanted = uid == digits if len(digits) == 32 else uid.str.starts_with(digits)
    frame = pool.scan(part, ["uid"])
    with reading(frame, part):
        return frame.with_row_index("row").filter(wanted).select("row", uid).collect().rows()


def _places(pool: Pool, uid: str, rows: Sequence[tuple[Part, int]]) -> Iterator[Place]:
    stored: dict[int, tuple[Shard, int] | None] = {}
    for part, row in rows:
        home = pool.homes[part.name] if isinstance(pool, JointPool) else None
        own, here = (home.pool, home.part) if home else (pool, part)
        if here.shard is None and id(own) not in stored:
            stored[id(own)] = _in_shards(own, uid)
        shard, shard_row = (here.shard, row) if here.shard else stored[id(own)] or (None, -1)
        yield Place(part.name, own, here, row, shard, shard_row)


def _in_shards(pool: Pool, uid: str) -> tuple[Shard, int] | None:
    """The first shard whose table has the uid: the one that results are joined by."""
    for shard in pool.shards:
        try:
            rows = _rows_with(pool, Part(shard.name, shard.table, shard=shard), uid)
        except (OSError, CurateError, pl.exceptions.PolarsError):
            continue  # `status` tells of it
        if rows:
            return shard, rows[0][0]
    return None


# --- what -------------------------------------------------------------------------------------------------


def _row(pool: Pool, place: Place, selection: Selection | None) -> dict[str, Any]:
    own = _values(place.part.path, place.row)
    stored = _values(place.shard.table, place.shard_row) if place.shard and place.pool.joined else {}
    columns = {**stored, **own}
    blocked = FAILED in columns and columns[FAILED] == "blocked"
    if blocked:  # nothing that leads to the sample is shown
        columns = {k: v for k, v in columns.items() if k in ("key", FAILED, "status")}
    judged = None
    if selection is not None and selection.listed is None:
        judged = verdict(_narrowed(pool, place), selection, replace(place.part, name=place.name), place.row)
    return {
        "part": place.name,
        "row": place.row,
        "image": _image(place, columns) if place.shard else None,
        "url": plain_url(str(columns["url"])) if columns.get("url") is not None else None,
        "caption": _plain(columns.get("caption")),
        "columns": {k: _shown(k, v) for k, v in columns.items() if k not in _SHOWN_APART},
        "scores": list(_scores(place)),
        "selection": judged,
    }


def _narrowed(pool: Pool, place: Place) -> Pool:
    """What is looked at, as far as this sample goes: its part and, where results are joined by uid, its shard."""
    narrow = place.pool.narrowed(place.part)
    if place.pool.joined and place.pool.shards:
        vars(narrow)["shards"] = [place.shard or place.pool.shards[0]]
    if not isinstance(pool, JointPool):
        return narrow
    home = replace(pool.homes[place.name], pool=narrow)
    joint = JointPool(pool.layout, pool.kind, {**pool.members, home.source: narrow})
    vars(joint).update(homes={place.name: home}, columns=pool.columns)
    return joint


def _values(table: Path, row: int) -> dict[str, Any]:
    """One row of a table under the machine's names."""
    try:
        found = pl.scan_parquet(table, glob=False).slice(row, 1).collect()
    except (OSError, pl.exceptions.PolarsError):
        return {}
    return {name: found[theirs][0] for name, theirs in machine_names(found.columns).items()} if len(found) else {}


def _image(place: Place, columns: Mapping[str, Any]) -> dict[str, Any]:
    assert place.shard is not None
    shard = place.shard
    told = {
        "shard": shard.name,
        "shard_row": place.shard_row,
        "tar": str(shard.tar),
        "key": columns.get("key"),
        "error_code": columns.get(FAILED),
    }
    try:
        index = pl.scan_parquet(shard.index, glob=False).filter(pl.col("key") == str(columns.get("key"))).collect()
    except (OSError, pl.exceptions.PolarsError):
        return told
    return told | (index.select("offset", "length").row(0, named=True) if len(index) else {})


def _scores(place: Place) -> Iterator[dict[str, Any]]:
    """The stored columns of each scorer and the similarity of each model, or why there are none."""
    pool = place.pool
    slugs = [("embedding", model, pool.layout.embeddings(slug)) for model, slug in pool.embedded.items()]
    root = pool.layout.work / "scores"
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    for kind, name, folder in [("score", p.name, p) for p in folders] + slugs:
        for part, row in ((place.part.name, place.row), (place.shard.name if place.shard else "", place.shard_row)):
            path = folder / f"{part}.parquet"
            if part and path.is_file():
                columns = {k: v for k, v in _values(path, row).items() if k != "uid"}
                yield {
                    kind: name,
                    "values": {k: _shown(k, v) for k, v in columns.items() if v is not None and k != FAILED},
                    "error_code": columns.get(FAILED),
                }
                break


def _plain(value: Any) -> str | None:
    return None if value is None else inert(str(value), _WHOLE)


def _shown(name: str, value: Any) -> Any:
    """A value that JSON can say and a terminal may show: texts made harmless, URLs without their query."""
    if isinstance(value, str):
        return plain_url(value, _WHOLE) if "url" in name.lower() and "://" in value else inert(value, _WHOLE)
    if isinstance(value, pl.Series):
        return [_shown(name, item) for item in value.to_list()]
    if isinstance(value, (list, tuple)):
        return [_shown(name, item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


# --- for people -------------------------------------------------------------------------------------------


def lines(told: Mapping[str, Any]) -> list[str | list[tuple[Any, ...]]]:
    """What `explain` said, as lines of text and tables."""
    out: list[str | list[tuple[Any, ...]]] = [f"uid {told['uid']} in {told['pool']}"]
    if len(told["rows"]) > 1:
        out.append(f"{len(told['rows'])} rows have it")
    if listed := told["listed"]:
        out.append(
            f"list {listed['name']}: "
            + (f"stands {plural(listed['copies'], 'time')}" if listed["copies"] else "not in it")
        )
    for row in told["rows"]:
        out += ["", *_row_lines(row)]
    return out


def _row_lines(row: Mapping[str, Any]) -> Iterator[str | list[tuple[Any, ...]]]:
    yield f"part {row['part']}, row {row['row']:,}"
    yield _image_line(row["image"])
    if row["url"] is not None:
        yield f"url {row['url'][:_CELL]}"
    if row["caption"] is not None:
        yield f"caption {inert(row['caption'])}"
    yield [(f"  {name}", _cell(value)) for name, value in row["columns"].items() if value is not None]
    for score in row["scores"]:
        name = f"score {score['score']}" if "score" in score else f"embedding {score['embedding']}"
        yield f"{name}: {score['error_code']}" if score["error_code"] else name
        if score["values"]:
            yield [(f"  {column}", _cell(value)) for column, value in score["values"].items()]
    if row["selection"]:
        yield ""
        yield from _selection_lines(row["selection"])


def _image_line(image: Mapping[str, Any] | None) -> str:
    if image is None:
        return "image not downloaded"
    at = f"shard {image['shard']}, row {image['shard_row']:,}, key {image['key']}"
    if image["error_code"]:
        return f"{at}: {image['error_code']}"
    if "offset" not in image:
        return f"{at}, in {image['tar']}"
    return f"{at}: {image['length']:,} bytes from {image['offset']:,} on, in {image['tar']}"


def _selection_lines(told: Mapping[str, Any]) -> Iterator[str | list[tuple[Any, ...]]]:
    end = f"selection {told['name']}: {told['verdict']}"
    if told["verdict"] == "kept":
        end += f" ({told['copies']} copies)" if told["copies"] != 1 else ""
    else:
        end += f" by {told['by']}: {told['why'] or told['reason'] or told['error_code']}"
    yield end
    table: list[tuple[Any, ...]] = [("rule", "says", "value", "cut", "margin")]
    for rule in told["rules"]:
        says = rule["says"] if rule["asked"] else _WOULD.get(rule["says"], rule["says"])
        table.append((rule["rule"][:_RULE], says, "", "", ""))
        table += _inside(rule, "  ")
    yield table
    yield from told["notes"]


def _inside(told: Mapping[str, Any], indent: str) -> Iterator[tuple[Any, ...]]:
    """The rows below a rule or group: its conditions, its members and what is inside these."""
    for member in told.get("members", ()):
        shown = f"{member['how']} of" if "how" in member else member["rule"]
        yield indent + shown[: _RULE - len(indent)], member["says"], "", "", ""
        yield from _inside(member, indent + "  ")
    yield from (_condition_row(c, indent) for c in told.get("conditions", ()))


def _condition_row(told: Mapping[str, Any], indent: str) -> tuple[Any, ...]:
    margin = "" if told["margin"] is None else f"{told['margin']:+.5g}"
    value = "" if told["value"] is None else number(told["value"])
    return f"{indent}{told['reason']}", told["says"], value, told["cut_label"] or "", margin


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else inert(str(value), _CELL)
