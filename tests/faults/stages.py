"""The stages that are stopped at every call to the disk: each prepares a folder and runs one command in it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate import models, receipts, recipe, runner, scales, selection
from curate.engines.local import Tick
from curate.fetch.settings import FetchLimits, ImageSettings
from curate.filter_api import Batch, Column, Need, Scorer
from curate.pool import adopt, open_pool
from curate.receipts import Output
from curate.stages import download, embed, retry, score, subset
from curate.stages import filter as filtering
from curate.stages.needs import Means
from tests.pools import jpeg, make_img2dataset, make_pool

LIST_OF_TWO = ("00000000", "00000001")


@dataclass(frozen=True)
class Stage:
    """One command: `prepare` makes what it starts from, `run` is the command, both in a folder."""

    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    markers: frozenset[str] = field(default_factory=frozenset)
    """Whole files that say what is under way, and so may differ from the end's."""
    problems: Callable[[Path], list[str]] = lambda folder: []
    """What does not go together, at a stop."""


# --- two files a part -------------------------------------------------------------------------------------


def _two_files(output: Output, tick: Tick, part: str, text: str) -> Mapping[str, int]:
    first = output.open("lines." + part)
    second = output.open(f"{part}.json")
    for number in range(3):
        first.write(f"{part} {text} {number}\n".encode())
        first.flush()
    second.write(json.dumps({"part": part, "text": text}).encode())
    tick(3, 1)
    return {"samples": 3, "ok": 2, "failed": 1}


def _run_tasks(folder: Path, text: str) -> None:
    tasks = [runner.Task(p, folder / "made", {"text": text}, _two_files, (p, text), 3) for p in LIST_OF_TWO]
    summary = runner.run("plain", 1, tasks, workers=0)
    summary.raise_failed()
    assert dict(summary.counts) == {"samples": 6, "ok": 4, "failed": 2}


# --- a download from a server of our own ------------------------------------------------------------------


def serve(folder: Path) -> None:
    """Serve the files of `folder` on `PORT`, for ever."""
    handler = partial(QuietHandler, directory=str(folder))
    ThreadingHTTPServer(("127.0.0.1", PORT), handler).serve_forever()


class QuietHandler(SimpleHTTPRequestHandler):
    """Says nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PORT = free_port()


def _list(folder: Path) -> None:
    www = folder.parent / "www"
    rows = []
    for number in range(6):
        if number != 4:
            (www / f"{number}.jpg").write_bytes(jpeg(number, (40, 30)))
        rows.append({"url": f"http://127.0.0.1:{PORT}/{number}.jpg", "text": f"photo {number}"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")


def _download(folder: Path) -> None:
    settings = download.DownloadSettings(
        ImageSettings(image_size=16), FetchLimits(allow_private=True), samples_per_shard=3
    )
    plan = download.plan(folder / "pool", folder / "list.parquet", settings)
    download.download(plan, workers=0, connections=2).raise_failed()


def _download_with_gaps(folder: Path) -> None:
    _list(folder)
    www = folder.parent / "www"
    for number in (1, 5):
        (www / f"{number}.jpg").unlink()
    _download(folder)
    for number in (1, 4, 5):
        (www / f"{number}.jpg").write_bytes(jpeg(number, (40, 30)))


def _retry(folder: Path) -> None:
    planned = retry.plan(
        folder / "pool", ["http_404"], download.DownloadSettings(limits=FetchLimits(allow_private=True))
    )
    retry.retry(planned, workers=0, connections=2).raise_failed()


# --- the stages -------------------------------------------------------------------------------------------


def _fails(shard: int, row: int) -> str | None:
    return "http_404" if (shard, row) == (0, 1) else None


def _pool(folder: Path) -> None:
    make_pool(folder / "pool", fails=_fails)


def _selected(folder: Path) -> None:
    pool = make_pool(folder / "pool", fails=_fails)
    _filter_by(folder, "random:n=5", name="chosen")
    pool.forget()


def _filtered(folder: Path) -> None:
    _pool(folder)
    _filter_by(folder, "random:n=2", name="mine")


def _filter_by(folder: Path, *rules: str, name: str | None = None) -> None:
    request = filtering.Request(recipe.compose(rules, []), name, means=Means("cpu", 0))
    filtering.filter_pool(open_pool(folder / "pool"), request, allow=lambda work: None)


def _mixed_selections(folder: Path) -> list[str]:
    """Selections that can be loaded although their files are not all of one making."""
    found = []
    for path in folder.rglob("selection.json"):
        if path.parent.name == receipts.RECEIPTS:
            continue
        raw = json.loads(path.read_bytes())
        parts = {n: receipts.read_receipt(path.parent / "decisions", n) for n in raw["parts"]}
        whole = receipts.read_receipt(path.parent, selection.WHOLE)
        prints = {r.fingerprint if r else None for r in parts.values()}
        if whole:
            prints.add(whole.fingerprint)
        if len(prints) > 1 or len(np.load(path.parent / "uids.npy")) != raw["copies"]:
            found.append(f"{path.parent.name} is mixed")
    return found


def _subset(folder: Path) -> None:
    pool = open_pool(folder / "pool")
    chosen = selection.load(pool.layout, None)
    made = subset.subset(pool, chosen, scales.scale("debug"), folder / "subset", samples_per_shard=3)
    assert made.failure is None
    assert made.shards == 2


class Stub:
    """A model that takes no time: what stands on disk is the same for all models."""

    dim = 4
    device = SimpleNamespace(type="cpu")

    @staticmethod
    def prepare(image: Any) -> npt.NDArray[np.uint8]:
        return np.asarray(image.resize((2, 2)))

    def describe(self) -> dict[str, Any]:
        return {"name": "stub", "pretrained": "", "precision": "float32"}

    def encode_images(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.asarray(images.reshape(len(images), 4, 3).mean(axis=2), dtype=np.float32)

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([[len(t), 1, 2, 3] for t in texts], dtype=np.float32)


def _embed_stub(folder: Path) -> None:
    embed.load = lambda *_: Stub()  # type: ignore[assignment]
    _embed(folder)


def _embedded_then_replaced(folder: Path) -> None:
    """Shard 0 is another than the one whose vectors are there: it has the image that it lacked."""
    _pool(folder)
    _embed_stub(folder)
    make_pool(folder / "pool")


def _embed(folder: Path) -> None:
    embed.embed(open_pool(folder / "pool"), models.parse("tiny"), device="cpu", workers=0).raise_failed()


def _adopt(folder: Path) -> None:
    adopt.adopt(open_pool(folder / "pool"), workers=0)


@dataclass(frozen=True)
class Length(Scorer):
    """The caption's length."""

    name: ClassVar[str] = "length"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"length": "Float32"}

    def needs(self) -> Sequence[Need]:
        return [Column("caption")]

    def open(self, device: str) -> Callable[[Batch], Mapping[str, Any]]:
        return lambda batch: {"length": [len(c) for c in batch.columns["caption"]]}


def _score(folder: Path) -> None:
    score.score(open_pool(folder / "pool"), Length(), workers=0).raise_failed()


STAGES: Mapping[str, Stage] = {
    "plain": Stage(lambda folder: None, lambda folder: _run_tasks(folder, "new")),
    # what stands from other settings is never mixed with what replaces it
    "changed": Stage(lambda folder: _run_tasks(folder, "old"), lambda folder: _run_tasks(folder, "new")),
    "download": Stage(_list, _download),
    "retry": Stage(_download_with_gaps, _retry, frozenset({"attempts.json"})),
    "adopt": Stage(lambda folder: make_img2dataset(folder / "pool"), _adopt),
    "embed": Stage(_pool, _embed_stub, frozenset({"model.json"})),
    # what a second download pass brought, added to the vectors that stand
    "re-embed": Stage(_embedded_then_replaced, _embed_stub),
    "tiny": Stage(_pool, _embed, frozenset({"model.json"})),
    "score": Stage(_pool, _score),
    "filter": Stage(_pool, lambda folder: _filter_by(folder, "random:n=4", "dedup"), problems=_mixed_selections),
    # a new recipe under the name of another selection
    "refilter": Stage(
        _filtered,
        lambda folder: _filter_by(folder, "random:n=4", "dedup", name="mine"),
        problems=_mixed_selections,
    ),
    "subset": Stage(_selected, _subset, frozenset({"subset.json"})),
}
