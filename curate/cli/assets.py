"""`curate assets`: the published files that rules read, where they lie, and fetching them ahead of time."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from curate.cli import _common as common
from curate.cli._common import JsonOption

_group = typer.Typer(invoke_without_command=True, rich_markup_mode=None, context_settings=common.SHORT_HELP)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(_group, name="assets")


@_group.callback()
def assets(context: typer.Context, as_json: JsonOption = False) -> int:
    """List the published files that rules read, and where they lie on this machine. Example:

    curate assets
    """
    if context.invoked_subcommand:
        return 0
    from curate.assets import REGISTRY, located

    rows: list[dict[str, Any]] = []
    for asset in REGISTRY.values():
        for file in asset.files:
            path = located(file)
            rows.append(
                {
                    "asset": f"{asset.name}:{file.variant}" if file.variant else asset.name,
                    "file": file.file,
                    "path": str(path) if path else None,
                    "bytes": path.stat().st_size if path else None,
                    "licence": asset.licence,
                    "source": asset.source,
                    "url": file.url,
                    "digest": file.digest,
                }
            )
    if as_json:
        common.show_json({"assets": rows})
        return 0
    lines: list[tuple[Any, ...]] = [("asset", "file", "bytes", "licence", "where")]
    lines += [(r["asset"], r["file"], r["bytes"] or "-", r["licence"], r["path"] or "not here") for r in rows]
    common.show(common.table(lines, right=[2]))
    return 0


@_group.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="NAME, or NAME:VARIANT of one that has variants.")],
    as_json: JsonOption = False,
) -> int:
    """Fetch published files into the cache, or check those that are here. Example:

    curate assets fetch fasttext-lid centroids:small
    """
    from curate.assets import REGISTRY, find, find_all
    from curate.errors import InputError, UnknownName

    rows: list[dict[str, str]] = []
    for text in names:
        name, _, variant = text.partition(":")
        if name not in REGISTRY:
            raise UnknownName("curate assets fetch", "published asset", name, REGISTRY)
        if variant and not REGISTRY[name].variants:
            raise InputError("curate assets fetch", f"{name} has no variants (found {variant!r})")
        files = [find(name, variant or None)] if REGISTRY[name].alone else find_all(name)
        rows += [{"asset": text, "path": str(path), "sha256": sha256} for path, sha256 in files]
    if as_json:
        common.show_json({"assets": rows})
    else:
        common.show(common.table([(r["asset"], r["path"], r["sha256"]) for r in rows]))
    return 0
