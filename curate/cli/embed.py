"""`curate embed`: image and text vectors of every sample by one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli import _common as common
from curate.cli._common import DeviceOption, JsonOption, PoolOption, WorkersOption, WorkOption

if TYPE_CHECKING:
    from curate.models import ModelSpec
    from curate.runner import Summary


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("embed")(embed)


def embed(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="ARCH/PRETRAINED in open_clip's names, tiny, or a weights file."),
    ] = "ViT-L-14/openai",
    pretrained: Annotated[
        Path | None,
        typer.Option("--pretrained", help="A file of weights for the architecture that --model names."),
    ] = None,
    pool: PoolOption = None,
    work: WorkOption = None,
    device: DeviceOption = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="fp32, fp16 or bf16; auto is fp32 on a CPU and half on a GPU.")
    ] = "auto",
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Samples that go through the model at a time.  [default: 64; GPU 256]"),
    ] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> int:
    """Compute image and text vectors of every sample by a CLIP model. Example:

    curate embed --model ViT-B-32/openai

    The same command again goes on where it stopped. A sample whose image does not decode keeps its row, with an
    error code.
    """
    from curate import models
    from curate.stages import embed as stage

    spec = models.parse(model, pretrained)
    opened = common.open_pool(pool, work)
    common.keep_log(opened.layout, "embed")
    summary = stage.embed(
        opened, spec, device=device, precision=precision, workers=common.workers(workers), batch=batch
    )
    _show(opened.layout.embeddings(spec.slug), spec, summary, as_json)
    summary.raise_failed()
    return 0


def _show(folder: Path, spec: ModelSpec, summary: Summary, as_json: bool) -> None:

    counts = summary.counts
    ordered = common.codes(counts)
    if as_json:
        common.show_json(
            {
                "model": spec.name,
                "folder": str(folder),
                "samples": counts["samples"],
                "ok": counts["ok"],
                "failed": counts["failed"],
                "codes": ordered,
                "parts": summary.parts,
                "skipped": summary.skipped,
                "failed_parts": {part: str(error) for part, error in summary.failed.items()},
            }
        )
        return
    rows: list[tuple[Any, ...]] = [("embedded", counts["ok"], "")]
    rows += [(code, n, common.meaning(code)) for code, n in ordered.items()]
    rows.append(("all samples", counts["samples"], ""))
    common.show(common.table(rows, right=[1]))
    done = summary.parts - len(summary.failed)
    common.show(f"{done:,} shards by {spec.name} ({summary.skipped:,} were there), in {folder}")
