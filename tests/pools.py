"""Small pools for tests, as `curate download`, img2dataset and DataComp leave them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate import uids
from curate.pool import Pool, open_pool
from curate.receipts import FORMAT, Output, json_bytes, write_json
from curate.shards import TarWriter, write_table

Failure = Callable[[int, int], "str | None"]
"""(shard, row) to the error code of a sample that failed, or None."""

SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("exif", pa.string()),
        ("sha256", pa.string()),
        ("uid", pa.string()),
        ("error_code", pa.string()),
        ("stored_sha256", pa.string()),
        ("stored_bytes", pa.int64()),
        ("final_url", pa.string()),
        ("content_type", pa.string()),
        ("original_bytes", pa.int64()),
    ]
)


def none_fails(shard: int, row: int) -> str | None:
    """The failure rule of a pool in which every fetch succeeded."""
    return None


def jpeg(seed: int = 0, size: tuple[int, int] = (24, 16)) -> bytes:
    """A JPEG that differs from those of other seeds; size is width, height."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize(size).save(out, "JPEG", quality=90)
    return out.getvalue()


def url_of(shard: int, row: int) -> str:
    """The URL of a sample of `make_pool`."""
    return f"http://images.test/{shard}/{row}.jpg"


def caption_of(shard: int, row: int) -> str:
    """The caption of a sample of `make_pool`."""
    return f"a photo of thing {row} on table {shard}"


def uid_of(shard: int, row: int) -> str:
    """The uid of a sample of `make_pool`."""
    return uids.derive_uid(url_of(shard, row), caption_of(shard, row))


def sample_of(shard: int, row: int, size: tuple[int, int] = (24, 16), code: str | None = None) -> dict[str, Any]:
    """The table row of a sample, and its image under `image` (None where it failed with `code`)."""
    values: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    values |= {
        "url": url_of(shard, row),
        "caption": caption_of(shard, row),
        "key": f"{shard:08d}{row:04d}",
        "uid": uid_of(shard, row),
        "status": "failed_to_download" if code else "success",
        "error_code": code,
        "error_message": f"it is {code}" if code else None,
        "image": None if code else jpeg(shard * 10_000 + row, size),
    }
    if not code:
        image = values["image"]
        values |= {
            "width": size[0],
            "height": size[1],
            "original_width": size[0] * 2,
            "original_height": size[1] * 2,
            "exif": "{}",
            "sha256": hashlib.sha256(b"original of " + image).hexdigest(),
            "stored_sha256": hashlib.sha256(image).hexdigest(),
            "stored_bytes": len(image),
            "final_url": values["url"],
            "content_type": "image/jpeg",
            "original_bytes": len(image) * 4,
        }
    return values


def members_of(sample: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """The tar members of a sample that `sample_of` made."""
    shown = {k: v for k, v in sample.items() if k != "image"}
    return [
        ("jpg", sample["image"]),
        ("txt", (sample["caption"] or "").encode()),
        ("json", json.dumps(shown, indent=4).encode()),
    ]


def make_pool(
    folder: Path,
    n_shards: int = 2,
    rows: int = 3,
    *,
    fails: Failure = none_fails,
    size: tuple[int, int] = (24, 16),
    extra: Mapping[str, Callable[[int, int], Any]] | None = None,
) -> Pool:
    """A pool as `curate download` leaves it: `n_shards` shards of `rows` samples, receipts and all.

    `extra` names further columns of the list, each a function of (shard, row).
    """
    for shard in range(n_shards):
        name = f"{shard:08d}"
        output = Output("download", 1, name, folder / "shards", {"test": [shard, rows]})
        samples = [sample_of(shard, row, size, fails(shard, row)) for row in range(rows)]
        for column, value in (extra or {}).items():
            for row, sample in enumerate(samples):
                sample[column] = value(shard, row)
        tar = TarWriter(output.open(f"{name}.tar"))
        stored = [s for s in samples if s["image"] is not None]
        for sample in stored:
            tar.add(sample["key"], members_of(sample))
        tar.finish()
        table = pa.table({f.name: pa.array([s[f.name] for s in samples], f.type) for f in SCHEMA})
        for column in extra or {}:
            table = table.append_column(column, pa.array([s[column] for s in samples]))
        write_table(output, f"{name}.parquet", table)
        write_table(output, f"{name}.index.parquet", tar.index())
        stats = {"count": rows, "successes": len(stored), "start_time": 0.0, "end_time": 1.0}
        output.write(f"{name}_stats.json", json.dumps(stats).encode(), varies=True)
        output.commit({"samples": rows, "ok": len(stored), "failed": rows - len(stored)})
    write_json(folder / "sources.json", {"format": FORMAT, "sources": []})
    return open_pool(folder)


def make_img2dataset(
    folder: Path,
    n_shards: int = 2,
    rows: int = 3,
    *,
    fails: Failure = none_fails,
    columns: Sequence[str] = (),
    digits: int = 5,
    size: tuple[int, int] = (24, 16),
) -> None:
    """Shards as img2dataset leaves them in `folder`: tars in arrival order, tables without uid or error_code.

    `columns` adds columns of the list, for example `uid` as DataComp's download does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    messages = {"http_404": "HTTP Error 404: Not Found", "timeout": "<urlopen error timed out>"}
    kept = ["caption", "url", *SCHEMA.names[2:11], *columns]
    for shard in range(n_shards):
        name = f"{shard:0{digits}d}"
        samples = []
        for row in reversed(range(rows)):  # arrival order is not the list's
            sample = sample_of(shard, row, size, code := fails(shard, row))
            sample |= {"key": f"{name}{row:04d}", "error_message": messages.get(code or "", code)}
            samples.append(sample)
        with (folder / f"{name}.tar").open("wb") as sink:
            tar = TarWriter(sink)
            for sample in samples:
                if sample["image"] is not None:
                    tar.add(sample["key"], members_of({k: sample[k] for k in [*kept, "image"]}))
            tar.finish()
        table = pa.table({c: pa.array([s[c] for s in samples], SCHEMA.field(c).type) for c in kept})
        pq.write_table(table, folder / f"{name}.parquet")
        stats = {"count": rows, "successes": sum(s["image"] is not None for s in samples)}
        (folder / f"{name}_stats.json").write_text(json.dumps(stats))


def make_metadata(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "0" * 32) -> None:
    """One metadata file `folder`/metadata/`name`.parquet with these rows."""
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(r) for r in rows]), folder / "metadata" / f"{name}.parquet")


def make_selection(pool: Pool, kept: Sequence[str], name: str = "chosen") -> None:
    """A selection of these uids (a uid that stands n times is wanted n times), and the latest one.

    It has no decisions: for what reads the uid list and the counts alone.
    """
    folder = pool.layout.selection(name)
    pairs = uids.to_pairs(pa.array(list(kept), pa.string()))
    n, left = pool.n, len(set(kept))
    funnel = [
        {"rule": "none", "text": "rule none", "in": n, "dropped": {"x": n - left}, "unjudged": {}, "left": left}
    ]
    counts = {"samples": n, "kept": left, "dropped": n - left, "unjudged": 0}
    raw = {
        "format": FORMAT,
        "name": name,
        "pool": pool.identity(),
        "recipe": {"name": name, "rules": [{"rule": "none"}]},
        "counts": counts,
        "funnel": funnel,
    }
    output = Output("filter", 1, "selection", folder, {"kept": uids.to_hex(pairs)})
    np.save(output.open("uids.npy"), pairs[uids.sort_order(pairs)])
    output.write("selection.json", json_bytes(raw))
    output.commit(counts)
    write_json(pool.layout.selections / "latest.json", {"format": FORMAT, "name": name})
