"""`centroids`: k-means over a pool's image vectors, for rules that ask which centroid an image belongs to.

As DataComp trains its own (squared distances, 20 iterations, all points that were sampled, nothing normalised),
but what is sampled is seeded, without replacement, and depends on no order of files. Only the sampled vectors are
ever in memory.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curate import __version__, receipts
from curate.disk import nearest
from curate.errors import InputError
from curate.filter_api import Scorer, chance, fraction_of
from curate.pool import Pool, vectors
from curate.progress import plural, progress, size
from curate.recipe import Recipe
from curate.stages import decide, needs, score
from curate.stages.filter import Allow, settle
from curate.stages.needs import Means
from curate.stages.samples import DEFAULT_MODEL, Mask, Samples, checked_vectors
from curate.vectors.blocks import BLOCK_ROWS, Blocks

log = logging.getLogger("curate.centroids")

VERSION = 1
FEWEST = 39
"""Points a centroid that faiss asks for."""
EVERY = Recipe((), keep_same_uid=True)
"""The recipe that leaves all samples."""

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """What `curate centroids` was asked for. Raises InputError for numbers that cannot be."""

    out: Path
    """The .npy file to write; a .json of the same stem goes beside it."""
    recipe: Recipe = EVERY
    """Only what it keeps is trained on."""
    model: str | None = None
    """ARCH/PRETRAINED; None takes ViT-L-14/openai where the pool has it, else its only one."""
    k: int = 100_000
    sample: int | None = None
    """Train on so many samples, at most."""
    ratio: float | None = None
    """Or on this share of those that the recipe keeps."""
    iterations: int = 20
    seed: int = 0
    means: Means = field(default_factory=Means)

    def __post_init__(self) -> None:
        if self.out.suffix != ".npy":
            raise InputError("--out", f"centroids are written as .npy (found {self.out.name!r})")
        for name, number in (("--k", self.k), ("--sample", self.sample), ("--iterations", self.iterations)):
            if number is not None and number < 1:
                raise InputError(name, f"is 1 or more (found {number})")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise InputError("--sample-ratio", f"is over 0 and at most 1 (found {self.ratio})")
        if self.ratio is not None and self.sample is not None:
            raise InputError("--sample", "and --sample-ratio exclude each other")


@dataclass(frozen=True)
class Trained:
    """Centroids on disk."""

    path: Path
    about: Mapping[str, Any]
    """What the .json beside them says."""
    reused: bool


def train(pool: Pool, request: Request, *, allow: Allow) -> Trained:
    """The centroids that were asked for; where the file holds just these, nothing is done.

    What the recipe's rules need is made first, where `allow` lets it. Raises InputError for a model without
    vectors, fewer points than centroids, more points than this machine can hold, or another file at `out`;
    PartError where a part cannot be read, for centroids of the others would be other centroids.
    """
    pool, recipe = settle(pool, request.recipe, request.means)
    source = _source(pool, request.model)
    samples = Samples(pool)
    _whole(samples, source)
    what = _what(samples, source, recipe, request)
    beside = request.out.with_suffix(".json")
    if (there := _there(request.out, beside, what)) is not None:
        return Trained(request.out, there, reused=True)
    kept = _kept(pool, samples, recipe, request.means, allow)
    rows, view = _with_vectors(samples, source, kept)
    chosen = _sampled(samples.uids[rows], request)
    _check(len(chosen), view.dim, request, len(rows), pool)
    points = _gathered(view, rows, chosen)
    _few(len(points), request.k, pool)
    centroids, objective = _kmeans(points, request)
    counts = {
        "samples": samples.n,
        "kept_by_rules": int(kept.sum()),
        "with_vectors": len(rows),
        "not_finite": len(chosen) - len(points),
        "points": len(points),
    }
    return _written(request.out, beside, centroids, what, {"counts": counts, "objective": objective})


# --- what is asked for, and whether it is there -----------------------------------------------------------


def _source(pool: Pool, model: str | None) -> vectors.VectorSource:
    """Where the image vectors lie that are trained on."""
    known = [m for m in pool.models if vectors.find(pool, m, "image")]
    if model is None and len(known) > 1 and DEFAULT_MODEL not in known:
        raise InputError(
            "curate centroids", f"the pool has several models ({', '.join(known)})", hint=f"--model {known[0]}"
        )
    model = model or (known[0] if len(known) == 1 else DEFAULT_MODEL)
    source = vectors.find(pool, model, "image")
    if source is None:
        raise InputError(
            str(pool.layout.root),
            f"has no image vectors of {model} (found: {', '.join(known) or 'none'})",
            hint=f"curate embed --pool {pool.layout.root} --model {model}",
        )
    return source


def _whole(samples: Samples, source: vectors.VectorSource) -> None:
    """Raise the PartError of the first part that cannot be read."""
    for error in samples.pool.unreadable.values():
        raise error
    for name in source.names:
        if source.per == "part":
            checked_vectors(source, name, samples.pool.rows[name])
        else:
            source.array(name)


def _what(samples: Samples, source: vectors.VectorSource, recipe: Recipe, request: Request) -> dict[str, Any]:
    return {
        "version": VERSION,
        "pool": samples.pool.identity(),
        "model": source.model,
        "vectors": receipts.digest({name: source.identity(name) for name in source.names}),
        "recipe": recipe.describe() if recipe.steps else None,
        "k": request.k,
        "sample": request.sample,
        "sample_ratio": request.ratio,
        "iterations": request.iterations,
        "seed": request.seed,
    }


def _there(path: Path, beside: Path, what: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is said of the centroids that are there, if they are those; None where nothing is, and can be."""
    if not path.exists():
        above = nearest(path.parent)
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise InputError(str(above), "cannot be written to", hint="name a file elsewhere: --out")
        return None
    about = receipts.read_json(beside) if beside.is_file() else {}
    changed = receipts.changed(about.get("what", {}), what)
    if not changed and about.get("sha256") == receipts.file_sha256(path):
        return about
    raise InputError(
        str(path),
        "is there already, " + (f"made with another {', '.join(changed)}" if about.get("what") else "not by this"),
        hint="name another file, or remove it",
    )


# --- which points -----------------------------------------------------------------------------------------


def _kept(pool: Pool, samples: Samples, recipe: Recipe, means: Means, allow: Allow) -> Mask:
    """The samples that the recipe leaves."""
    if not recipe.steps:
        return np.ones(samples.n, np.bool_)
    for todo in needs.plan(pool, recipe, means, whole=False):
        if todo.pixels:
            allow(todo)
        todo.run().raise_failed()
        pool.forget()

    def compute(scorer: Scorer, rows: Mapping[str, Mask]) -> None:
        score.score_some(pool, scorer, rows, device=means.device, workers=means.workers).raise_failed()

    return decide.decide(samples, recipe, compute=compute, device=means.device).left


def _with_vectors(samples: Samples, source: vectors.VectorSource, kept: Mask) -> tuple[Int64, Blocks]:
    """The rows that are kept and have a vector, in uid order, and a view of these vectors."""
    rows = samples.order[kept[samples.order]].astype(np.int64)
    ok, view = samples.blocks(source.model, source.side, rows)
    return rows[ok], view.take(np.flatnonzero(ok))


def _sampled(pairs: npt.NDArray[np.void], request: Request) -> Int64:
    """Which of the samples with these uids are trained on, ascending: those of the lowest chance."""
    n = len(pairs)
    wanted = n if request.sample is None else min(request.sample, n)
    if request.ratio is not None:
        wanted = fraction_of(n, request.ratio)
    if wanted == n:
        return np.arange(n)
    order = np.argsort(chance(pairs["f0"], pairs["f1"], request.seed), kind="stable")
    return np.sort(order[:wanted])


def _check(points: int, dim: int, request: Request, candidates: int, pool: Pool) -> None:
    """Refuse what cannot end well before anything is read."""
    if not candidates:
        raise InputError(
            str(pool.layout.root),
            "has no sample to train on: none is kept by the rules and has an image vector",
            hint="curate status says what is there; --all leaves the rules out",
        )
    _few(points, request.k, pool)
    wanted, memory = 4 * points * dim, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > 0.9 * memory:
        raise InputError(
            "curate centroids",
            f"{points:,} vectors are {size(wanted)}, and this machine has {size(memory)} of memory",
            hint=f"--sample {memory // 2 // (4 * dim)}",
        )


def _few(points: int, k: int, pool: Pool) -> None:
    if points < k:
        raise InputError(
            str(pool.layout.root),
            f"has fewer points than centroids ({points:,} for {k:,})",
            hint=f"at most --k {max(points // FEWEST, 1)}, or a larger sample",
        )


def _gathered(view: Blocks, rows: Int64, chosen: Int64) -> Float32:
    """The vectors of the `chosen` rows of a view, in that order but read in the pool's; finite ones alone."""
    points = np.empty((len(chosen), view.dim), np.float32)
    as_stored = np.argsort(rows[chosen], kind="stable")
    finite = np.empty(len(chosen), np.bool_)
    with progress("read vectors", len(chosen)) as shown:
        for start in range(0, len(chosen), BLOCK_ROWS):
            at = as_stored[start : start + BLOCK_ROWS]
            block = view.gather(chosen[at])
            points[at], finite[at] = block, np.isfinite(block).all(axis=1)
            shown.advance(len(at))
    if finite.all():
        return points
    log.warning("%s left out: the vector holds NaN or infinity", plural(int((~finite).sum()), "sample"))
    return points[finite]


# --- training and writing ---------------------------------------------------------------------------------


def _kmeans(points: Float32, request: Request) -> tuple[Float32, float]:
    """faiss's k-means: k x dim, and the sum of squared distances that the last iteration began with."""
    import faiss

    n, dim = points.shape
    if n < FEWEST * request.k:
        log.warning("%s for %s centroids: faiss asks for %d each", plural(n, "point"), f"{request.k:,}", FEWEST)
    index: Any = faiss.IndexFlatL2(dim)
    if request.means.device != "cpu" and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    elif request.means.device not in ("auto", "cpu"):
        log.warning("k-means: this faiss finds no GPU, so --device %s is not for it", request.means.device)
    clustering: Any = faiss.Clustering(dim, request.k)
    clustering.seed = request.seed
    clustering.spherical = False
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = n  # else faiss takes a sample of its own
    clustering.niter = 1  # each call goes on from the centroids of the one before
    with progress("k-means", request.iterations, unit="iterations") as shown:
        for _ in range(request.iterations):
            clustering.train(points, index)
            shown.advance(1)
    centroids: Float32 = faiss.vector_to_array(clustering.centroids).reshape(request.k, dim)
    stats = clustering.iteration_stats
    return centroids, float(stats.at(stats.size() - 1).obj)


def _written(
    path: Path, beside: Path, centroids: Float32, what: Mapping[str, Any], more: Mapping[str, Any]
) -> Trained:
    """The .json, then the file, without which it says nothing: a kill between the two leaves no centroids."""
    import faiss

    buffer = io.BytesIO()
    np.save(buffer, centroids)
    data = buffer.getvalue()
    about = {
        "format": receipts.FORMAT,
        "what": dict(what),
        "rows": len(centroids),
        "dim": centroids.shape[1],
        **more,
        "sha256": hashlib.sha256(data).hexdigest(),
        "versions": {"curate": __version__, "faiss": faiss.__version__},
    }
    receipts.write_json(beside, about)
    receipts.write_file(path, data)
    return Trained(path, about, reused=False)
