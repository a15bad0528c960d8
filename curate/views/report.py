"""The report: one HTML page that says what came in, what each rule took and why, and what is left.

The page needs no network and no script. Counts are of all samples, from the selection and the shards' tables;
charts and examples are of the samples that `evidence` gathered. Nothing is written but the page.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curate import __version__, receipts, scales
from curate.errors import InputError
from curate.pool import FAILED, Pool
from curate.selection import Selection, check_fresh
from curate.views import charts, evidence, examples
from curate.views.charts import Mark, number, share
from curate.views.evidence import VALUE, Evidence
from curate.views.inert import inert
from curate.views.pictures import meaning

GENERATOR = "curate report"
_MARK = f'<meta name="generator" content="{GENERATOR}'


@dataclass(frozen=True)
class Result:
    """What a page was made of."""

    out: Path
    bytes: int
    selection: str
    samples: int
    kept: int
    charted: int
    """Samples that charts and examples are of."""
    charts: int
    examples: int
    pictures: int
    notes: Sequence[str]
    """What could not be shown, in words."""

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {**vars(self), "out": str(self.out)}


def report(
    pool: Pool,
    selection: Selection,
    out: Path,
    *,
    allow_stale: bool = False,
    pictures: bool = True,
    seed: int = 0,
    rows: int = evidence.ROWS,
) -> Result:
    """Write the page to `out`, in place of an earlier report alone.

    Charts and examples are of some `rows` samples drawn under `seed` where the pool has more. Raises InputError,
    with nothing written, for a selection of an older pool (unless `allow_stale`) and for an `out` that is in the
    pool, is no file or holds something else.
    """
    _check_out(pool, out)
    selection.need_decisions()
    if not allow_stale:
        check_fresh(pool, selection)
    found = evidence.gather(pool, selection, rows=rows, seed=seed)
    groups, made = examples.examples(pool, selection, found, seed=seed, pictures=pictures)
    drawn = _charts(found)
    page = render(_context(pool, selection, found, groups, drawn, pictures=pictures))
    receipts.write_file(out, page)
    return Result(
        out,
        len(page),
        selection.name,
        selection.counts["samples"],
        selection.counts["kept"],
        len(found.table),
        len(drawn),
        sum(len(g.tiles) for rule in groups for g in rule),
        made,
        list(dict.fromkeys(found.notes)),
    )


def _check_out(pool: Pool, out: Path) -> None:
    where, place = str(out), out.resolve()
    if out.is_dir():
        raise InputError(where, "is a folder", hint=f"name a file: --out {out / 'report.html'}")
    if not place.parent.is_dir():
        raise InputError(where, "its folder does not exist", hint=f"mkdir -p {out.parent}")
    if any(place.is_relative_to(root.resolve()) for root in (pool.layout.root, pool.layout.work)):
        raise InputError(where, "lies in the pool, where a report writes nothing", hint="name another place: --out")
    if out.exists():
        with out.open("rb") as stream:
            head = stream.read(2048)
        if head.strip() and _MARK.encode() not in head:
            raise InputError(where, "is there already and is no report", hint="name another file: --out")


def render(context: Mapping[str, Any]) -> bytes:
    """The page of the template, all text of the context escaped; only what `charts` drew is taken as markup."""
    import jinja2
    from markupsafe import Markup, escape

    def breaks(text: str) -> Markup:
        """A name that may break after its underscores."""
        return escape(text).replace("_", Markup("_<wbr>"))

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"share": share, "number": number, "markup": Markup, "inert": inert, "breaks": breaks}
    template = environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.render(context).encode("utf-8", "replace")


# --- what the page shows ----------------------------------------------------------------------------------


def _context(
    pool: Pool,
    selection: Selection,
    found: Evidence,
    groups: Sequence[Sequence[examples.Group]],
    drawn: Sequence[Mapping[str, Any]],
    *,
    pictures: bool,
) -> dict[str, Any]:
    raw, counts = selection.raw, selection.counts
    failures, here = _images(pool)
    return {
        "generator": f"{GENERATOR} {__version__}",
        "pool": {
            "name": pool.layout.root.resolve().name,
            "kind": pool.kind,
            "parts": len(pool.rows),
            "shards": len(pool.shards),
            "models": pool.models,
            "here": here,
            "failures": failures,
        },
        "selection": {
            "name": selection.name,
            "counts": counts,
            "copies": raw.get("copies", counts["kept"]),
            "identity": selection.pool_identity,
            "stale": selection.pool_identity != pool.identity(),
            "scale": raw.get("scale"),
            "seed": raw.get("seed", 0),
            "versions": raw.get("versions", {}),
            "failed_parts": raw.get("failed_parts", {}),
            "rules": raw.get("rules", []),
            "recipe": json.dumps(raw.get("recipe"), indent=2, ensure_ascii=False),
        },
        "funnel": _funnel(selection),
        "unjudged": _coded(sum((Counter(line["unjudged"]) for line in selection.funnel), Counter())),
        "charts": drawn,
        "rules": [
            {"line": line, "groups": shown, "id": f"rule-{at}"}
            for at, (line, shown) in enumerate(zip(_funnel(selection), groups, strict=True), 1)
        ],
        "repeats": _repeats(pool, selection),
        "enough": scales.REPEATS,
        "sampled": {"rows": len(found.table), "parts": len(found.parts)} if found.sampled else None,
        "notes": list(dict.fromkeys(found.notes)),
        "pictures": pictures,
    }


def _images(pool: Pool) -> tuple[list[dict[str, Any]], int | None]:
    """Failures of the shards' samples by error code, most first, and how many images are here (None: no shards)."""
    if not pool.shards:
        return [], None
    found: Counter[str] = Counter()
    here = 0
    for shard in pool.shards:
        try:
            codes = pl.scan_parquet(shard.table, glob=False).group_by(FAILED).len().collect()
        except (OSError, pl.exceptions.PolarsError):
            continue  # the pool names it as unreadable
        for code, count in codes.iter_rows():
            here += count if code is None else 0
            found[str(code)] += count if code is not None else 0
    return _coded(+found), here


def _coded(found: Counter[str]) -> list[dict[str, Any]]:
    whole = max(found.values(), default=0)
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [{"code": c, "meaning": meaning(c), "count": n, "width": 100 * n / whole} for c, n in ordered]


def _funnel(selection: Selection) -> list[dict[str, Any]]:
    """The funnel's lines with their sums, their sentences, and the widths of their bars in percent."""
    whole = max(selection.counts["samples"], 1)
    said = selection.raw.get("sentences", {})
    lines = []
    for line in selection.funnel:
        dropped, unjudged = sum(line["dropped"].values()), sum(line["unjudged"].values())
        sentences = said.get(line["rule"], {})
        lines.append(
            {
                **line,
                "figures": {
                    k: number(v) if isinstance(v, float) else v for k, v in line.get("figures", {}).items()
                },
                "sum_dropped": dropped,
                "sum_unjudged": unjudged,
                "reasons": [
                    {"reason": reason, "count": n, "said": _unfilled(sentences.get(reason, reason))}
                    for reason, n in sorted(line["dropped"].items(), key=lambda item: (-item[1], item[0]))
                ],
                "widths": [100 * n / whole for n in (line["left"], dropped, unjudged)],
            }
        )
    return lines


def _unfilled(sentence: str) -> str:
    """A reason's sentence with an ellipsis for what differs from sample to sample."""
    return re.sub(r"\{(value|of)[^}]*\}", "\u2026", str(sentence))


def _repeats(pool: Pool, selection: Selection) -> list[dict[str, Any]]:
    """At each scale, how often a training on this selection would see each sample."""
    kept = int(selection.raw.get("copies", selection.counts["kept"]))
    rows = []
    for scale in scales.SCALES.values():
        size = scale.pool_size
        # of a pool that is larger than the scale's, the subset takes the scale's share of the selection
        taken = kept if size is None or pool.n <= size else round(kept * size / pool.n)
        rows.append(
            {
                "name": scale.name,
                "model": scale.model,
                "pool": size,
                "seen": scale.samples_seen,
                "kept": taken,
                "cut": taken < kept,
                "repeats": scale.repeats(taken) if taken else None,
            }
        )
    return rows


def _charts(found: Evidence) -> list[dict[str, Any]]:
    """A histogram of each number that the rules read, before and after, with the rules' cuts."""
    drawn = []
    marks: list[Mark]
    for reading in found.readings():
        users = [
            (r, reason) for r in found.rules for reason, own in r.readings.items() if own.column == reading.column
        ]
        marks = list({Mark(cut.at, cut.label): None for r, reason in users if (cut := r.cuts.get(reason))})
        names = list(
            dict.fromkeys(r.name for r in found.rules if any(u is r for u, _ in users) or reading in r.further)
        )
        before = found.table[reading.column]
        after = found.table.filter(found.kept)[reading.column]
        title = reading.label + (f" ({reading.source})" if reading.source else "")
        drawn.append(_chart(title, names, before, after, marks, len(found.table)))
    for rule in found.rules:
        for reason in [r for r, own in rule.readings.items() if own.column == VALUE]:
            marks = [Mark(cut.at, cut.label)] if (cut := rule.cuts.get(reason)) else []
            before = found.taken(rule, reason)[VALUE]
            drawn.append(_chart(f"{reason} (of the dropped)", [rule.name], before, before.clear(), marks, None))
    return drawn


def _chart(
    title: str, rules: Sequence[str], before: pl.Series, after: pl.Series, marks: Sequence[Mark], rows: int | None
) -> dict[str, Any]:
    sides = [s.drop_nulls().to_numpy().astype(np.float32, copy=False) for s in (before, after)]
    held = charts.bins(sides[0], sides[1], marks)
    table = [_figures(word, side) for word, side in zip(("before", "after"), sides, strict=True)]
    where = ", ".join(m.label for m in sorted(marks, key=lambda m: m.at)) or "none drawn"
    about = f"Histogram of {title}: {len(sides[0]):,} values before, {len(sides[1]):,} after; thresholds: {where}."
    return {
        "title": title,
        "rules": rules,
        "svg": charts.histogram(held, marks, about) if held else None,
        "figures": table if rows is not None else table[:1],
        "missing": rows - len(sides[0]) if rows is not None else 0,
        "gathered": held is not None and (held.under or held.over),
    }


def _figures(name: str, values: Any) -> dict[str, Any]:
    finite = values[np.isfinite(values)].astype(np.float64)
    quantiles: list[Any] = np.quantile(finite, (0.05, 0.5, 0.95)).tolist() if len(finite) else [None] * 3
    step = None
    if len(finite):
        step = 1.0 if (finite == np.round(finite)).all() else (quantiles[2] - quantiles[0]) / 100
    return {"name": name, "n": len(finite), "quantiles": [number(q, step or None) for q in quantiles]}
