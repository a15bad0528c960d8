"""The small files of a subset: uid list, what trainers read, what is missing; and what is said of its size."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from curate import receipts, scales, uid_files
from curate.pool import FAILED, Pool
from curate.receipts import Receipt
from curate.scales import Scale
from curate.shards import read_table
from curate.stages.columns import texts
from curate.stages.placing import Pairs, Plan
from curate.subset_layout import SIZES
from curate.uids import sort_order, to_hex, to_pairs

SHARD_FORMAT = "{:08d}.tar"
STATS_FORMAT = "{:08d}_stats.json"


def files(plan: Plan, scale: Scale, sizes: Mapping[str, int], pattern: str) -> dict[str, bytes]:
    """Name to content of all files beside the shards but the card; `sizes` are samples by shard."""
    ids, samples = _npy(plan), plan.samples
    meta = {
        "output_shard_count": len(sizes),
        "output_shard_format": SHARD_FORMAT,
        "output_shard_stats_format": STATS_FORMAT,
        "output_count": samples,
        "shard_size": max(sizes.values()),
    }
    training = {
        "format": receipts.FORMAT,
        **asdict(scale),
        "samples": samples,
        "repeats": scale.repeats(samples),
        "steps": scale.steps,
        "command": scales.training_command(scale, pattern),
    }
    return {
        "uids.npy": ids,
        "shards/sample_ids.npy": ids,
        f"shards/{SIZES}": receipts.json_bytes({f"{name}.tar": n for name, n in sizes.items()}),
        "shards/meta.json": receipts.json_bytes(meta),
        "training.json": receipts.json_bytes(training),
        "missing.parquet": missing(plan),
    }


def trained_on(folder: Path, shards: int, *, virtual: bool) -> tuple[str, str]:
    """What open_clip's --train-data and train.py's --data_dir take of the subset in `folder`.

    Both read a virtual one from a pipe; train.py takes what ends in `.tar` for a tar, and hands it on as it is.
    """
    names = f"{{{0:08d}..{shards - 1:08d}}}.tar"
    if virtual:
        pipe = f"pipe:python -m curate.sampling tar {shlex.quote(str(folder))} {names}"
        return pipe, pipe
    return str(folder / "shards" / names), str(folder)


def _npy(plan: Plan) -> bytes:
    """The uids in the shards as DataComp's list: sorted, one entry a copy."""
    order = sort_order(plan.uids)
    return b"".join(uid_files.pieces("npy", np.repeat(plan.uids[order], plan.copies[order])))


def missing(plan: Plan) -> bytes:
    """uid and cause of each wanted sample without an image, sorted by uid."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    causes = [plan.codes[number] for number in plan.causes.tolist()]
    table = pa.table({"uid": texts(to_hex(plan.missing)), "cause": texts(causes)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def failed_rows(shards: Path, made: Mapping[str, Receipt]) -> tuple[Pairs, list[str]]:
    """The uids, sorted, of the samples that the new shards were to hold and could not; the error code of each."""
    found: dict[str, str] = {}
    for name, receipt in made.items():
        if receipt.counts.get("failed"):
            table = read_table(shards / f"{name}.parquet", ["uid", FAILED])
            rows = zip(table["uid"].to_pylist(), table[FAILED].to_pylist(), strict=True)
            found |= {uid: code for uid, code in rows if code}
    return to_pairs(texts(sorted(found))), [found[uid] for uid in sorted(found)]


def warnings(pool: Pool, scale: Scale, samples: int) -> list[str]:
    """What a user should know of so many samples at this scale."""
    said, repeats = [], scale.repeats(samples)
    times = f"each sample is seen about {repeats:,.0f} times"
    if scale.pool_size and pool.n < scale.pool_size:
        said.append(
            f"the pool has {pool.n:,} samples, the scale {scale.name} {scale.pool_size:,}: with "
            f"{scale.samples_seen:,} samples seen, {times}"
        )
    elif repeats > scales.REPEATS:
        said.append(f"{scale.samples_seen:,} samples seen of {samples:,} kept: {times}")
    if repeats > scales.REPEATS:
        said.append(
            f"more than {scales.REPEATS} passes over the same samples rarely help: keep more, or a smaller scale"
        )
    return said
