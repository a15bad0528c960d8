"""DataComp's scales: how many samples a pool has, how many a training sees, and with which settings.

A scale says nothing of what to keep: the samples seen stay the same however small the subset is.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curate.errors import InputError, UnknownName

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

    @property
    def samples_per_checkpoint(self) -> int:
        """Samples seen from one checkpoint to the next; open_clip calls that an epoch."""
        return self.samples_seen // CHECKPOINTS

    @property
    def experiment(self) -> str:
        """What train.py calls a run; without a name open_clip finds nothing to resume."""
        return f"{self.name}_scale"

    def repeats(self, kept: int) -> float:
        """How often the training sees each of `kept` samples, on average."""
        return self.samples_seen / kept if kept else float("inf")


def times(repeats: float) -> str:
    """A number of repeats for people: two digits where it is small, else a whole number."""
    return f"{repeats:,.0f}" if repeats >= 10 else f"{repeats:.2g}"


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


_BLOCK = 1 << 16
"""uids that are ranked at once: as Python's bytes each takes some 50."""


def scale_ranks(pairs: npt.NDArray[np.void], seed: int) -> npt.NDArray[np.uint64]:
    """The place of each uid in the order in which scales take samples: smaller is taken first.

    The first 64 bits of sha256(seed in decimal digits, ":", the uid's 16 bytes): a function of the uid and the
    seed alone. Takes some 0.7 s for a million.
    """
    import numpy as np

    ranks = np.empty(len(pairs), dtype=np.uint64)
    sha256, prefix = hashlib.sha256, b"%d:" % seed
    for start in range(0, len(pairs), _BLOCK):
        some = pairs[start : start + _BLOCK]
        swapped = np.empty((len(some), 2), dtype=">u8")
        swapped[:, 0], swapped[:, 1] = some["f0"], some["f1"]
        raw = swapped.tobytes()
        heads = b"".join([sha256(prefix + raw[i : i + 16]).digest()[:8] for i in range(0, len(raw), 16)])
        ranks[start : start + len(some)] = np.frombuffer(heads, dtype=">u8")
    return ranks


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


def training_command(scale: Scale, patterns: str | Sequence[str], weights: Sequence[float] | None = None) -> str:
    """The open_clip command that trains as DataComp's train.py does at this scale.

    `patterns` are brace patterns of shards, one for each source; `weights` how often each source is drawn from,
    relative to the others for a sample of the same shards (None: alike). The per-device batch is left to the
    shell: set GPUS to the number of devices.
    """
    sources = [patterns] if isinstance(patterns, str) else list(patterns)
    options: list[tuple[str, object]] = [
        ("--train-data", shlex.quote("::".join(sources))),
        *_weighted("--train-data-upsampling-factors", sources, weights),
        ("--train-num-samples", scale.samples_per_checkpoint),
        ("--epochs", CHECKPOINTS),
        ("--dataset-type", "webdataset"),
        ("--model", scale.model),
        ("--batch-size", f"$(({scale.batch} / GPUS))"),
        ("--lr", scale.learning_rate),
        ("--warmup", scale.warmup),
        ("--precision", scale.precision),
        ("--workers", 4),
        ("--seed", 0),
        ("--save-frequency", 0),
        ("--log-every-n-steps", 100),
        ("--name", scale.experiment),
    ]
    if scale.beta2 is not None:
        options.append(("--beta2", scale.beta2))
    flags = ["--dataset-resampled", "--local-loss", "--gather-with-grad", "--grad-checkpointing"]
    flags += ["--ddp-static-graph", "--save-most-recent", "--resume latest"]
    lines = ["GPUS=8; torchrun --nproc_per_node $GPUS -m open_clip_train.main"]
    lines += [f"  {name} {value}" for name, value in options] + [f"  {' '.join(flags)}"]
    return " \\\n".join(lines)


def datacomp_command(scale: Scale, folders: str | Sequence[str], weights: Sequence[float] | None = None) -> str:
    """The line that trains with DataComp's train.py on these folders (or tars); `weights` as in `training_command`.

    At xlarge it says the precision, which train.py leaves at plain `amp`.
    """
    sources = [folders] if isinstance(folders, str) else list(folders)
    options = [
        ("--scale", scale.name),
        ("--data_dir", shlex.quote("::".join(sources))),
        *_weighted("--data_weights", sources, weights),
        ("--output_dir", "logs"),
        ("--exp_name", scale.experiment),
    ]
    if scale.precision != Scale.precision:
        options.append(("--precision", scale.precision))
    return "torchrun --nproc_per_node 8 train.py " + " ".join(f"{name} {value}" for name, value in options)


def _weighted(option: str, sources: Sequence[str], weights: Sequence[float] | None) -> list[tuple[str, str]]:
    """The option that weighs sources, if they are weighed. Raises InputError where the weights are not theirs."""
    if weights is None:
        return []
    if len(weights) != len(sources) or not all(0 < w < float("inf") for w in weights):
        found = ", ".join(f"{w:g}" for w in weights)
        raise InputError("weights", f"must be one above 0 for each of {len(sources)} sources (found {found})")
    return [(option, "::".join(f"{w:.12g}" for w in weights))]
