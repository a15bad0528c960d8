"""`curate filter` and `curate rules`: choose, and see what there is to choose with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli import _common as common
from curate.cli._common import (
    AssetOption,
    DeviceOption,
    JsonOption,
    PoolsOption,
    WorkersOption,
    WorkOption,
    YesOption,
)
from curate.errors import PartError

if TYPE_CHECKING:
    from curate.selection import Selection
    from curate.stages.filter import Allow, Outcome
    from curate.stages.needs import Work


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("filter")(filter_)
    app.command("rules")(rules)


def filter_(
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", "-r", help="NAME or NAME:key=value,key=value, or path/to/file.py; repeat for more."),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="FILE.toml or a shipped recipe's name, and :key=value,... to set."),
    ] = None,
    pool: PoolsOption = None,
    work: WorkOption = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The selection's name.  [default: the rules and a digest]")
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="Take this scale's pool before any rule: small, medium, ...")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides which samples are in the scale's pool.")] = 0,
    asset: AssetOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    yes: YesOption = False,
    no_compute: Annotated[
        bool, typer.Option("--no-compute", help="Refuse (exit 2) where a rule needs a pass over pixels first.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be computed, on how many rows, how long.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Apply rules to a pool, print the funnel, write the selection.

    What the rules need and the pool has not is computed first. Example:

        curate filter --rule basic --rule clipscore:top=0.3
    """
    from curate import recipe as recipes
    from curate.stages import filter as stage
    from curate.stages.needs import Means

    common.take_assets(asset)
    chosen = recipes.compose(rule or [], recipe or [])
    opened = common.open_pools(pool, work)
    means = Means(device, common.workers(workers))
    request = stage.Request(chosen, name, scale, seed, means)
    if dry_run:
        _show_plan(*stage.dry_run(opened, chosen, means), as_json)
        return 0
    common.keep_log(opened.layout, "filter")
    outcome = stage.filter_pool(opened, request, allow=_allow(yes=yes, no_compute=no_compute))
    common.name_unread_assets()
    _show(outcome, as_json)
    if outcome.failed_parts:
        first = next(iter(outcome.failed_parts.values()))
        raise PartError(
            "curate filter",
            f"parts failed: {', '.join(outcome.failed_parts)} ({first})",
            hint="the selection holds the other parts; mend these and filter again",
        )
    return 0


def _allow(*, yes: bool, no_compute: bool) -> Allow:
    from curate.progress import span
    from curate.stages import needs

    def allow(work: Work) -> None:
        if no_compute:
            raise needs.refuse(work, None)
        seconds = work.measure()
        announced = f"curate filter: {work.describe()}, about {span(seconds)}"
        if seconds < needs.ASK_FROM:
            sys.stderr.write(announced + "\n")
        else:
            common.confirm(announced, yes=yes, hint=needs.refuse(work, seconds).hint or "")

    return allow


def _show_plan(plan: list[Work], later: bool, as_json: bool) -> None:
    from curate.progress import span

    told = [
        {"work": w.what, "samples": w.rows, "pixels": w.pixels, "seconds": w.measure(), "command": w.command}
        for w in plan
    ]
    if as_json:
        common.show_json({"plan": told, "more_after": later})
        return
    if not told:
        common.show("nothing to compute: the rules can run at once")
        return
    lines: list[tuple[Any, ...]] = [("to compute", "samples", "about", "or alone with")]
    lines += [
        (t["work"], t["samples"], span(float(str(t["seconds"]))) if t["pixels"] else "at once", t["command"])
        for t in told
    ]
    common.show(common.table(lines, right=[1, 2]))
    if later:
        common.show("then what is computed from these")


def _show(outcome: Outcome, as_json: bool) -> None:
    selection = outcome.selection
    if as_json:
        common.show_json({**selection.raw, "folder": str(selection.folder)})
        return
    common.show("\n".join(funnel_lines(selection)))
    if sources := selection.raw.get("sources"):
        common.show("\n" + "\n".join(source_lines(sources)))
    again = " (as before)" if outcome.reused else ""
    common.show(f"\nselection {selection.name}{again}: {selection.folder}")


WIDE = 36
"""Characters of a rule that stand in a line with its numbers."""


def funnel_lines(selection: Selection) -> list[str]:
    """The funnel of a selection: in, dropped by each rule and why, unjudged and why, left; 80 columns wide.

    A long rule stands above its numbers, and the figures that it rests on below them, outside of the columns.
    """
    lines: list[tuple[Any, ...] | str] = [("rule", "in", "dropped", "unjudged", "left")]
    for line in selection.funnel:
        dropped, unjudged = sum(line["dropped"].values()), sum(line["unjudged"].values())
        short = len(line["text"]) <= WIDE
        lines += [] if short else [line["text"]]
        lines.append((line["text"] if short else "", line["in"], dropped, unjudged, line["left"]))
        lines += [
            f"  ({name} {figure:.6g})" if isinstance(figure, float) else f"  ({name} {figure})"
            for name, figure in line["figures"].items()
        ]
        lines += [(f"  {reason}", "", count, "", "") for reason, count in line["dropped"].items()]
        lines += [(f"  {code}", "", "", count, "") for code, count in line["unjudged"].items()]
    counts = selection.counts
    lines.append(("total", counts["samples"], counts["dropped"], counts["unjudged"], counts["kept"]))
    rows = iter(common.table([row for row in lines if isinstance(row, tuple)], right=[1, 2, 3, 4]).splitlines())
    return [line if isinstance(line, str) else next(rows) for line in lines]


def source_lines(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """What became of each pool's samples, where several were filtered as one."""
    rows: list[tuple[Any, ...]] = [("source", "samples", "dropped", "unjudged", "kept", "keep rate")]
    rows += [
        (s["source"], s["samples"], s["dropped"], s["unjudged"], s["kept"], f"{100 * s['keep_rate']:.1f} %")
        for s in sources
    ]
    return common.table(rows, right=[1, 2, 3, 4, 5]).splitlines()


def rules(
    name: Annotated[str | None, typer.Argument(help="A rule's name, or a .py file.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> int:
    """List the rules, or show one's settings, reasons and source. Example:

    curate rules clipscore
    """
    from curate import plugins

    if name is None:
        found = {n: plugins.page(n).splitlines()[0] for n in plugins.installed()}
        if as_json:
            common.show_json({"rules": found})
        else:
            common.show(common.table(list(found.items())))
        return 0
    cls = plugins.load(name)
    settings = plugins.settings(cls)
    if as_json:
        said = [{"name": s.name, "kind": s.kind, "default": s.default, "help": s.help} for s in settings]
        common.show_json(
            {"rule": name, "about": plugins.page(name), "settings": said, "reasons": dict(cls.reasons)}
        )
        return 0
    common.show(plugins.page(name))
    common.show("\nsettings")
    common.show(common.table([(s.name, s.kind, _default(s.default), s.help) for s in settings], indent="  "))
    common.show("\nreasons")
    common.show(common.table(list(cls.reasons.items()), indent="  "))
    return 0


def _default(value: Any) -> str:
    if value is None or value == "" or value == ():
        return "-"
    return "+".join(value) if isinstance(value, tuple) else str(value)
