"""`curate demo`: the whole job on rendered scenes with planted defects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curate.cli import _common as common
from curate.cli._common import JsonOption, WorkersOption


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder that the demo works in.")] = Path("demo"),
    scenes: Annotated[int, typer.Option("--scenes", min=1, help="Candidates to render.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", help="Which scenes, and which defects where.")] = 0,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> int:
    """Render a small web with planted defects, serve it on loopback, curate it, and tell what was found. Example:

    curate demo --out demo
    """
    from dataclasses import asdict

    from curate.demo import run

    found = run.run(out, scenes, seed, common.workers(workers))
    if as_json:
        common.show_json({"findings": [asdict(f) for f in found]})
    else:
        common.show("\n" + common.table(run.table(found), right=[1, 2, 3, 4]))
        common.show(f"\nthe report: {run.Demo(out).report}")
    return 0
