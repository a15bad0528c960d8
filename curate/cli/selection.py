"""`curate selection`: what selections and uid lists have in common, what one has alone; lists in and out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli import _common as common
from curate.cli._common import JsonOption, PoolsOption, StaleOption, WorkOption
from curate.errors import InputError, PartError

if TYPE_CHECKING:
    from curate.stages.combine import Made

OperandArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="A B...", help="Selections of the pool, or uid lists (.npy .bin .memmap .parquet .txt)."
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="The new selection's name.  [default: the operands' and a digest]")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Write the result's uids to this file; no selection without --name.")
]
ForeignOption = Annotated[
    Path | None, typer.Option("--foreign", help="Write the uids that are not in the pool to this file.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Refuse (exit 2) uids that are not in the pool.")]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        name="selection",
        help="What selections and uid lists have in common, what one has alone; lists in and out.\n\n"
        "Examples: curate selection and A B --name both; curate selection export A --out a.npy",
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings=common.SHORT_HELP,
    )
    group.command("list")(list_)
    for how, about in _ABOUT.items():
        group.command(how, help=inspect.cleandoc(about))(_operation(how))
    group.command("import")(import_)
    group.command("export")(export)
    app.add_typer(group)


def list_(pool: PoolsOption = None, work: WorkOption = None, as_json: JsonOption = False) -> int:
    """List the pool's selections with their counts. Example:

    curate selection list
    """
    from curate.views.status import selections

    told = selections(common.open_pools(pool, work))
    if as_json:
        common.show_json({"selections": told})
        return 0
    lines: list[tuple[Any, ...]] = [("selection", "kept", "dropped", "unjudged", "")]
    for one in told:
        marks = [word for word in ("latest", "stale") if one[word]]
        lines.append((one["selection"], one["kept"], one["dropped"], one["unjudged"], ", ".join(marks)))
    common.show(common.table(lines, right=[1, 2, 3]) if told else "no selection yet: curate filter makes one")
    return 0


_ABOUT = {
    "and": """What is in all of them: of each uid the smallest number of copies. Example:

    curate selection and mine theirs.npy --name both
    """,
    "or": """What is in any of them: of each uid the largest number of copies. Example:

    curate selection or mine theirs.npy --name either
    """,
    "minus": """What is in the first and in none of the others.

    It keeps all its copies. Example:

    curate selection minus mine evaluation.txt --name clean
    """,
}


def _operation(how: str) -> Callable[..., int]:
    def operation(
        operands: OperandArgument,
        name: NameOption = None,
        out: OutOption = None,
        pool: PoolsOption = None,
        work: WorkOption = None,
        foreign: ForeignOption = None,
        strict: StrictOption = False,
        allow_stale: StaleOption = False,
        as_json: JsonOption = False,
    ) -> int:
        return _combine(how, operands, name, out, pool, work, foreign, strict, allow_stale, as_json)

    return operation


def import_(
    file: Annotated[str, typer.Argument(help="A uid list: .npy, .bin, .memmap, .parquet or .txt.")],
    name: Annotated[str, typer.Option("--name", help="The new selection's name.")],
    pool: PoolsOption = None,
    work: WorkOption = None,
    foreign: ForeignOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> int:
    """Make a selection of a uid list.

    What is not in the pool is counted and left out. Example:

    curate selection import theirs.npy --name theirs
    """
    return _combine("import", [file], name, None, pool, work, foreign, strict, False, as_json)


def export(
    selection: Annotated[str, typer.Argument(help="A selection's name, or a uid list in another form.")],
    out: Annotated[Path, typer.Option("--out", help="The file: .npy, .bin, .memmap, .parquet or .txt.")],
    pool: PoolsOption = None,
    work: WorkOption = None,
    as_json: JsonOption = False,
) -> int:
    """Write a selection's uids to a file.

    Its suffix says the form. Example:

    curate selection export mine --out mine.npy
    """
    from curate import selection as selections
    from curate import uid_files, uid_lists

    if uid_lists.is_file_name(selection):
        pairs = uid_lists.read(selection).said().pairs
    else:
        pairs = selections.load(common.open_pools(pool, work).layout, selection).uids()
    uid_files.write(out.expanduser(), pairs)
    distinct = len(uid_lists.distinct(pairs)[0])
    if as_json:
        common.show_json({"selection": selection, "out": str(out), "uids": distinct, "samples": len(pairs)})
    else:
        copies = f", {len(pairs):,} with copies" if len(pairs) > distinct else ""
        common.show(f"{out}: {distinct:,} uids{copies}")
    return 0


def _combine(
    how: str,
    operands: list[str],
    name: str | None,
    out: Path | None,
    pool: Any,
    work: Path | None,
    foreign: Path | None,
    strict: bool,
    allow_stale: bool,
    as_json: bool,
) -> int:
    from curate import uid_lists
    from curate.stages import combine as stage

    if how != stage.IMPORT and len(operands) < 2:
        hint = f"curate selection {how} A B; a name or a file each"
        raise InputError(f"curate selection {how}", f"wants two operands or more (found {operands[0]})", hint=hint)
    select = name is not None or out is None
    request = stage.Request(
        how,
        tuple(operands),
        select,
        name,
        out.expanduser() if out else None,
        foreign.expanduser() if foreign else None,
        strict,
        allow_stale,
    )
    files_alone = all(uid_lists.is_file_name(text) for text in operands)
    compared = select or strict or foreign is not None or bool(pool) or not files_alone
    opened = common.open_pools(pool, work) if compared else None
    if opened is not None and select:
        common.keep_log(opened.layout, "selection")
    made = stage.combine(opened, request)
    if as_json:
        chosen = made.selection
        places = {"selection": chosen.name, "folder": str(chosen.folder)} if chosen else {}
        common.show_json({**made.as_json(), **places, **({"out": str(out)} if out else {})})
    else:
        common.show("\n".join(_lines(made, out)))
    if made.failed_parts:
        first = next(iter(made.failed_parts.values()))
        raise PartError(
            f"curate selection {how}",
            f"parts failed: {', '.join(made.failed_parts)} ({first})",
            hint="the selection holds the other parts; mend these and run the same command again",
        )
    return 0


def _lines(made: Made, out: Path | None) -> list[str]:
    """Counts and overlap, for people."""
    rows: list[tuple[Any, ...]] = [("list", "uids", "samples")]
    rows += [(each.name, len(each.uids), each.samples) for each in (*made.operands, made.result)]
    if made.how == "import":
        del rows[-1]
        rows.append(("in the pool", len(made.result.uids), made.result.samples))
    lines = common.table(rows, right=[1, 2]).splitlines()
    if made.overlaps:
        shared: list[tuple[Any, ...]] = [("A", "B", "both", "only A", "only B", "Jaccard")]
        shared += [(o.a, o.b, o.both, o.only_a, o.only_b, f"{o.jaccard:.4f}") for o in made.overlaps]
        lines += ["", *common.table(shared, right=[2, 3, 4, 5]).splitlines()]
    if made.selection is not None:
        lines += ["", f"selection {made.selection.name}: {made.selection.folder}"]
    if out is not None:
        lines += ["", f"{out}: {len(made.result.uids):,} uids"]
    return lines
