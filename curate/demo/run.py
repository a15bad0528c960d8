"""The demo: a small web with planted defects goes through the whole job, and planted is held against found."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curate import selection
from curate.demo import plant, truth
from curate.demo.languages import train_language_model
from curate.demo.server import serve_apart
from curate.demo.truth import Finding
from curate.errors import InputError, PartError
from curate.pool import open_pool
from curate.progress import span

RULES = (
    "basic:language_model={language}",
    str(Path(__file__).with_name("lettering.py")),
    "clipscore:model=tiny,min=0.68",
    "dedup:model=tiny,threshold=0.99",
)
"""Rules of the demo. The watermark rule wants LAION's weights, which are not ours to ship: a rule in a file of its
own stands for it. The thresholds are those of `tiny`, which knows nothing but scenes and is sure of them."""


@dataclass(frozen=True)
class Demo:
    """Where the demo's things lie."""

    folder: Path

    @property
    def web(self) -> Path:
        """The pictures that the server gives."""
        return self.folder / "web"

    @property
    def list(self) -> Path:
        """The candidate list."""
        return self.folder / "list.parquet"

    @property
    def truth(self) -> Path:
        """What was planted."""
        return self.folder / "truth.parquet"

    @property
    def language(self) -> Path:
        """The language model, trained on the scenes' own sentences."""
        return self.folder / "language.bin"

    @property
    def pool(self) -> Path:
        """The pool."""
        return self.folder / "pool"

    @property
    def subset(self) -> Path:
        """The subset."""
        return self.folder / "subset"

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"


def run(folder: Path, count: int, seed: int, workers: int) -> list[Finding]:
    """Render, serve, download, embed, filter, subset and report in `folder`; what was found of what was planted.

    What an earlier demo left in the folder is made anew: its server had other ports, so its list had other URLs.
    Raises InputError for a folder that holds something else, PartError where a command fails.
    """
    demo = Demo(folder)
    if folder.exists() and any(folder.iterdir()) and not demo.truth.exists():
        raise InputError(str(folder), "is not empty and not the demo's", hint="curate demo --out DIR")
    try:
        planned = plant.plan(count, seed)
    except ValueError as error:
        raise InputError("curate demo", str(error), hint="--scenes 2000") from error
    for earlier in (demo.web, demo.pool, demo.subset):
        shutil.rmtree(earlier, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    # first of all, since it marks the folder as the demo's if the rendering is interrupted
    plant.write_truth(planned, demo.truth)
    _say(f"render {count:,} candidates with planted defects")
    plant.plant(demo.web, count, seed, workers)
    train_language_model(demo.language)
    with serve_apart(demo.web, plant.HOSTS) as bases:
        plant.write_list(planned, bases, demo.list)
        _command(
            "download", "--source", demo.list, "--pool", demo.pool,
            "--samples-per-shard", 500, "--idle-seconds", 3, "--allow-private-hosts", "--workers", workers,
        )  # fmt: skip
    _command("embed", "--pool", demo.pool, "--model", "tiny", "--workers", workers)
    rules = [word for rule in RULES for word in ("--rule", rule.format(language=demo.language))]
    _command("filter", "--pool", demo.pool, "--workers", workers, *rules)
    _command("subset", "--pool", demo.pool, "--scale", "debug", "--out", demo.subset, "--workers", workers)
    _command("report", "--pool", demo.pool, "--out", demo.report)
    return findings(demo)


def findings(demo: Demo) -> list[Finding]:
    """Planted against found, a line a defect."""
    import polars as pl

    pool = open_pool(demo.pool)
    chosen = selection.load(pool.layout, None)
    decisions = []
    for part in pool.parts:
        fetched = pool.scan(part, ["url", "error_code"]).collect()
        said = chosen.decisions(part.name).select(pl.col("rule", "reason").cast(pl.String))
        decisions.append(pl.concat([fetched, said], how="horizontal"))
    return truth.compare(pl.read_parquet(demo.truth), pl.concat(decisions))


def _command(*words: object) -> None:
    told = [str(w) for w in words]
    _say("curate " + " ".join(told))
    began = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "curate", *told], check=False).returncode
    if code:
        raise PartError("curate demo", f"curate {told[0]} ended with exit code {code}")
    sys.stderr.write(f"  took {span(time.monotonic() - began)}\n")


def _say(text: str) -> None:
    sys.stderr.write(f"\n$ {text}\n")
    sys.stderr.flush()


def table(found: Sequence[Finding]) -> list[tuple[str, str, str, str, str]]:
    """The findings as rows of cells, a header first."""
    rows = [("defect", "planted", "found", "precision", "recall")]
    for f in found:
        precision, recall = (f"{x:.3f}" if x is not None else "-" for x in (f.precision, f.recall))
        rows.append((f.defect, str(f.planted), str(f.found), precision, recall))
    return rows
