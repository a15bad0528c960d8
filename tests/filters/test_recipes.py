"""The shipped recipes: each parses, says what it is for, and runs on a small pool."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import assets, models, receipts, recipe
from curate.pool import Pool
from curate.shards import write_table
from curate.stages.filter import Outcome, Request, filter_pool
from curate.stages.needs import Means
from tests.pools import make_pool

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SHARDS, ROWS = 2, 10
N = SHARDS * ROWS


def embedded(pool: Pool, model: str, dim: int) -> Pool:
    """The pool with vectors as `curate embed` leaves them; the cosine of global row i of n is i / n."""
    spec = models.parse(model)
    folder = pool.layout.embeddings(spec.slug)
    receipts.write_json(folder / "model.json", {"format": receipts.FORMAT, "model": spec.name, "dim": dim})
    start = 0
    for shard in pool.shards:
        table = pq.read_table(shard.table, columns=["uid"])
        rows = len(table)
        receipt = pool.shard_receipt(shard)
        assert receipt is not None
        cosine = np.arange(start, start + rows) / pool.n
        start += rows
        image, text = (np.zeros((rows, dim), np.float16) for _ in range(2))
        image[:, 0] = 1
        text[:, 0], text[:, 1] = cosine, np.sqrt(1 - cosine**2)
        output = receipts.Output("embed", 1, shard.name, folder, {"shard": receipt.identity})
        for side, array in (("image", image), ("text", text)):
            held = io.BytesIO()
            np.save(held, array)
            output.write(f"{shard.name}.{side}.npy", held.getvalue())
        yes, none = pa.array([True] * rows), pa.nulls(rows, pa.string())
        said = {
            "uid": table["uid"],
            "image_ok": yes,
            "text_ok": yes,
            "error_code": none,
            "text_error_code": none,
            "similarity": pa.array(cosine, pa.float32()),
        }
        write_table(output, f"{shard.name}.parquet", pa.table(said))
        output.commit({"samples": rows, "ok": rows, "failed": 0})
    pool.forget()
    return pool


def run(pool: Pool, name: str) -> Outcome:
    return filter_pool(pool, Request(recipe.read(name), means=Means()), allow=lambda work: None)


def kept(outcome: Outcome, pool: Pool) -> list[int]:
    """The global rows that a recipe kept."""
    copies = [outcome.selection.decisions(p.name)["copies"].to_numpy() for p in pool.parts]
    return np.flatnonzero(np.concatenate(copies)).tolist()


@pytest.mark.parametrize("name", recipe.shipped())
def test_says_what_it_is_for_and_reads_back_the_same(name: str) -> None:
    found = recipe.read(name)
    text = recipe.shipped()[name].read_text(encoding="utf-8")
    assert 'about = """' in text
    assert "format = 1" in text
    assert recipe.parse(text, "a copy").digest == found.digest
    assert found.describe() == json.loads(json.dumps(found.describe()))


def test_quick_keeps_the_best_third_of_the_pool(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, SHARDS, ROWS, size=(240, 200))
    outcome = run(embedded(pool, "tiny", 8), "quick")
    assert kept(outcome, pool) == [14, 15, 16, 17, 18, 19]
    assert [line["rule"] for line in outcome.selection.funnel] == ["basic", "dedup", "clipscore"]


def test_quick_drops_what_is_small(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, SHARDS, ROWS, size=(80, 90))  # twice that as published, 160 pixels
    outcome = run(embedded(pool, "tiny", 8), "quick")
    assert outcome.selection.counts["kept"] == 0
    assert outcome.selection.funnel[0]["dropped"] == {"image_side": N}


def test_balanced_thins_what_is_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["a photo of a dog", "a photo of a horse"]
    monkeypatch.setattr("tests.pools.caption_of", lambda shard, row: said[row == 9])
    pool = make_pool(tmp_path, SHARDS, ROWS, size=(240, 200))
    outcome = run(embedded(pool, "tiny", 8), "balanced")
    rows = kept(outcome, pool)
    assert set(rows) < set(range(10, 20))
    assert 19 in rows, "the rare one stays"
    assert outcome.selection.funnel[-1]["dropped"]["common_concepts"] == 10 - len(rows)


def test_safe_runs_with_the_published_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {
        "fasttext-lid": SHARED / "fasttext-lid" / "lid.176.ftz",
        "nsfw-vit-l-14": SHARED / "laion-nsfw" / "clip_autokeras_binary_nsfw.zip",
    }
    if missing := [str(p) for p in needed.values() if not p.is_file()]:
        pytest.skip(f"no {', '.join(missing)}")
    needed["watermark"] = tmp_path / "watermark.pt"
    _watermark_weights(needed["watermark"])
    monkeypatch.setattr(assets, "_given", {name: (path,) for name, path in needed.items()})
    pool = make_pool(tmp_path / "pool", 1, 3, size=(240, 200))
    outcome = run(embedded(pool, "ViT-L-14/openai", 768), "safe")
    assert not outcome.failed_parts
    funnel = outcome.selection.funnel
    assert [line["rule"] for line in funnel] == ["basic", "nsfw", "watermark"]
    assert sum(outcome.selection.counts[k] for k in ("kept", "dropped", "unjudged")) == 3
    assert [line["unjudged"] for line in funnel] == [{}, {}, {}]


def _watermark_weights(path: Path) -> None:
    import torch

    from curate.filters.watermark import build_network

    torch.manual_seed(0)
    torch.save(build_network().state_dict(), path)
