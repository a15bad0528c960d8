"""DataComp's scales: how many samples a pool has, how many a training sees, and with which settings.

A scale says nothing of what to keep: the samples seen stay the same however small the subset is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curate.errors import UnknownName

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CHECKPOINTS = 5
"""DataComp trains in this many epochs, each of a fifth of the samples."""

REPEATS = 10
"""More passes than this over the kept samples are worth a warning."""


@dataclass(frozen=True)
class Scale:
    """One of DataComp's training budgets."""

    name: str
    pool_size: int | None
    """Samples of the pool to choose from; None where the scale has no pool."""
    samples_seen: int
    batch: int
    """Samples in a step, over all devices."""
    learning_rate: float
    warmup: int
    """Steps."""
    model: str
    """open_clip's name of the architecture."""
    beta2: float | None = None
    """Adam's; None leaves open_clip's default."""
    precision: str = "amp"

    @property
    def steps(self) -> int:
        """Optimiser steps, rounded up."""
        return -(-self.samples_seen // self.batch)

    def repeats(self, kept: int) -> float:
        """How often the training sees each of `kept` samples, on average."""
        return self.samples_seen / kept if kept else float("inf")


SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale("debug", None, 128_000, 1024, 1e-4, 500, "ViT-B-32"),
        Scale("small", 12_800_000, 12_800_000, 4096, 5e-4, 500, "ViT-B-32"),
        Scale("medium", 128_000_000, 128_000_000, 4096, 5e-4, 500, "ViT-B-32"),
        Scale("large", 1_280_000_000, 1_280_000_000, 8192, 5e-4, 500, "ViT-B-16"),
        Scale("xlarge", 12_800_000_000, 12_800_000_000, 90_112, 1e-3, 10_000, "ViT-L-14", 0.95, "amp_bfloat16"),
    )
}
"""DataComp's scale_configs.py and pool sizes; at xlarge its plain `amp` degrades, so bfloat16 stands there."""


def scale(name: str) -> Scale:
    """The scale of this name. Raises UnknownName."""
    if name not in SCALES:
        raise UnknownName("--scale", "scale", name, SCALES, hint="medium fits most pools of some millions")
    return SCALES[name]


def scale_ranks(pairs: npt.NDArray[np.void], seed: int) -> npt.NDArray[np.uint64]:
    """The place of each uid in the order in which scales take samples: smaller is taken first.

    The first 64 bits of sha256(seed in decimal digits, ":", the uid's 16 bytes): a function of the uid and the
    seed alone. Takes some 0.7 s for a million.
    """
    import numpy as np

    swapped = np.empty((len(pairs), 2), dtype=">u8")
    swapped[:, 0], swapped[:, 1] = pairs["f0"], pairs["f1"]
    raw, sha256, prefix = swapped.tobytes(), hashlib.sha256, b"%d:" % seed
    heads = b"".join([sha256(prefix + raw[i : i + 16]).digest()[:8] for i in range(0, len(raw), 16)])
    return np.frombuffer(heads, dtype=">u8").astype(np.uint64)


def scale_limit(ranks: Iterable[npt.NDArray[np.uint64]], size: int) -> np.uint64 | None:
    """The largest rank that is in a pool of `size`, given the ranks of all samples; None if all are in."""
    import numpy as np

    held = np.concatenate([np.empty(0, dtype=np.uint64), *ranks])
    return held[np.argpartition(held, size - 1)[size - 1]] if len(held) > size else None


def scale_pool(pairs: npt.NDArray[np.void], scale: Scale, seed: int) -> npt.NDArray[np.bool_]:
    """Which of a pool's samples are in the scale's pool: the `pool_size` uids of lowest rank.

    So a smaller scale's pool lies inside a larger one's. All are in where there are no more than that; rows that
    share a uid stand or fall together.
    """
    import numpy as np

    size = scale.pool_size
    if size is None or len(pairs) <= size:
        return np.ones(len(pairs), dtype=np.bool_)
    ranks = scale_ranks(pairs, seed)
    limit = scale_limit([ranks], size)
    assert limit is not None
    return np.asarray(ranks <= limit)


def training_command(scale: Scale, shards: str) -> str:
    """The open_clip command that trains as DataComp does at this scale, on `shards` (a brace pattern).

    The per-device batch is left to the shell: set GPUS to the number of devices.
    """
    options: list[tuple[str, object]] = [
        ("--train-data", f"'{shards}'"),
        ("--train-num-samples", scale.samples_seen // CHECKPOINTS),
        ("--epochs", CHECKPOINTS),
        ("--dataset-type", "webdataset"),
        ("--model", scale.model),
        ("--batch-size", f"$(({scale.batch} / GPUS))"),
        ("--lr", scale.learning_rate),
        ("--warmup", scale.warmup),
        ("--precision", scale.precision),
        ("--workers", 4),
        ("--seed", 0),
    ]
    if scale.beta2 is not None:
        options.append(("--beta2", scale.beta2))
    flags = ["--dataset-resampled", "--local-loss", "--gather-with-grad", "--grad-checkpointing"]
    flags += ["--ddp-static-graph", "--save-most-recent", "--resume latest"]
    lines = ["GPUS=8; torchrun --nproc_per_node $GPUS -m open_clip_train.main"]
    lines += [f"  {name} {value}" for name, value in options] + [f"  {' '.join(flags)}"]
    return " \\\n".join(lines)
