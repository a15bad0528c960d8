"""What a recipe needs and the pool has not: found, timed, announced, and made.

What columns, captions and vectors give is computed at once. A pass over pixels is announced with its rows and
time; over ten minutes it wants a yes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from curate import models, runner
from curate.errors import InputError
from curate.filter_api import Need, Neighbours, Score, Scorer, Similarity, Vectors
from curate.plugins import blamed
from curate.pool import Pool, need_shards, vectors
from curate.pool.names import PUBLISHED
from curate.progress import span
from curate.recipe import Recipe, Rule
from curate.stages import embed, joint, score
from curate.stages.samples import similarity_source
from curate.stages.score_rows import over_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("curate.filter")

ASK_FROM = 600.0
"""Seconds of work over pixels from which `filter` asks first."""
CALIBRATION = 8
"""Images that a rate is measured on."""


@dataclass(frozen=True)
class Work:
    """One thing to compute before the rules can run."""

    what: str
    where: Path
    """The folder that it fills: what two works have in common if they are one."""
    rows: int
    """Samples that are computed; where a shard was replaced, the others keep what they have."""
    pixels: bool
    command: str
    run: Callable[[], runner.Summary]
    measure: Callable[[], float]
    """Seconds that it will take, measured on a few samples."""
    prefix: str = ""
    """What stands before the names of its parts where there are several pools."""

    def describe(self) -> str:
        """For the terminal."""
        return f"{self.what} on {self.rows:,} samples"


@dataclass(frozen=True)
class Means:
    """What work may use."""

    device: str = "auto"
    workers: int = 1


def plan(pool: Pool, recipe: Recipe, means: Means, *, whole: bool = True) -> Iterator[Work]:
    """The work that the recipe's rules need, each once, in order: embeddings before what is computed from them.

    A generator: what comes later is found when the earlier is done, because it may be computed from it. Unless
    `whole`, without the scores that are computed for some rows only, when rules come to them.
    """
    done: set[Path] = set()
    for step in recipe:
        for rule in step.rules:
            for share in joint.shares(pool, rule.needs):
                for need in share.needs:
                    for work in _for_need(share.pool, rule, need, means, whole):
                        if work.where not in done:
                            done.add(work.where)
                            yield replace(work, what=work.what + share.of, prefix=share.prefix)


def _for_need(pool: Pool, rule: Rule, need: Need, means: Means, whole: bool) -> Iterator[Work]:
    if isinstance(need, Similarity):
        source = similarity_source(pool, need)
        if source in (None, "own"):
            yield from _embed(pool, need.model, means)
        elif source == "published":
            yield from _score(pool, rule, score.PairSimilarity(need.model), means)
    elif isinstance(need, (Vectors, Neighbours)):
        if need.model not in pool.published:
            for part, why in vectors.lacking(pool, need.model).items():
                log.warning("%s has no published vectors of %s: %s", part, need.model, why)
            yield from _embed(pool, need.model, means)
    elif isinstance(need, Score):
        for inner in need.scorer.needs():
            yield from _for_need(pool, rule, inner, means, whole)
        if whole or not score.of_some_rows(pool, need.scorer):
            yield from _score(pool, rule, need.scorer, means)


def _embed(pool: Pool, model: str, means: Means) -> Iterator[Work]:
    if not pool.shards and model in PUBLISHED:
        raise _no_vectors(pool, model)
    need_shards(pool)
    spec = models.parse(model)
    todo = embed.pending(pool, spec, means.device)
    if todo:
        yield Work(
            f"embed {spec.name}",
            pool.layout.embeddings(spec.slug),
            todo.rows,
            todo.rows > 0,
            f"curate embed --pool {pool.layout.root} --model {spec.name}",
            lambda: embed.embed(pool, spec, device=means.device, workers=means.workers),
            lambda: todo.rows * _embed_seconds(pool, spec, means) if todo.rows else 0.0,
        )


def _no_vectors(pool: Pool, model: str) -> InputError:
    """The refusal of metadata alone, of which the model's vectors might have been published."""
    part, why = next(iter(vectors.absent(pool, model).items()), ("", "no parts"))
    return InputError(
        str(pool.layout.root),
        f"has no shards, so no pixels, and lacks published vectors of {model} ({part}: {why})",
        hint="curate download --pool DIR fetches the images, and with --embeddings DataComp's vectors",
    )


def _embed_seconds(pool: Pool, spec: models.ModelSpec, means: Means) -> float:
    import numpy as np

    try:
        model = embed.load(spec, means.device, "auto")
    except InputError as error:
        hint = (
            f"curate embed --pool {pool.layout.root} --model {spec.arch} --pretrained FILE, then filter again; "
            "or name another model in the rule: model=ARCH/PRETRAINED (model=tiny is for trials)"
        )
        raise InputError(error.where, error.what, hint=hint) from error
    height, width = np.asarray(model.prepare(_picture())).shape[:2]
    images = np.full((CALIBRATION, height, width, 3), 127, dtype=np.uint8)
    texts = ["a photo of a red bicycle"] * CALIBRATION

    def forward() -> None:
        model.encode_images(images)
        model.encode_texts(texts)

    return _timed(forward) / CALIBRATION + _DECODE / max(means.workers, 1)


def _picture() -> Image:
    from PIL import Image

    return Image.new("RGB", (384, 288), (120, 90, 60))


_DECODE = 0.004
"""Seconds one core takes to decode and resize an image of 512 px."""


def _score(pool: Pool, rule: Rule, scorer: Scorer, means: Means) -> Iterator[Work]:
    todo = score.pending(pool, scorer)
    if todo:
        pixels = over_pixels(scorer) and todo.rows > 0
        yield Work(
            f"score {scorer.name}",
            score.results(pool, scorer).folder,
            todo.rows,
            pixels,
            f"curate score --pool {pool.layout.root} --rule {quote(rule.text)}",
            lambda: score.score(pool, scorer, device=means.device, workers=means.workers),
            lambda: todo.rows * (_score_seconds(pool, scorer, means) if pixels else 0.0),
        )


def _score_seconds(pool: Pool, scorer: Scorer, means: Means) -> float:
    with blamed(scorer.name, InputError):
        image = scorer.prepare(_picture())
        compute = scorer.open(score.device_for(scorer, means.device))
        batch = score.trial(pool, scorer, image, CALIBRATION)
        seconds = _timed(lambda: compute(batch)) / len(batch) if len(batch) else 0.0
    return seconds + _DECODE / max(means.workers, 1)


def _timed(call: Callable[[], Any]) -> float:
    call()  # the first one also warms up
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def refuse(work: Work, seconds: float | None) -> InputError:
    """The refusal of work over pixels that was not allowed, with the command that does it."""
    takes = f", about {span(seconds)}" if seconds is not None else ""
    return InputError("curate filter", f"needs {work.describe()}{takes}", hint=f"{work.command}, or --yes")
