"""The shipped recipes: each parses, says what it is for, and runs on a small pool.

That `datacomp/*` keep what DataComp's code keeps, byte for byte, is shown in tests/datacomp.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import assets, models, receipts, recipe
from curate.pool import Pool, open_pool
from curate.shards import write_table
from curate.stages.filter import Outcome, Request, filter_pool
from curate.stages.needs import Means
from tests.pools import make_metadata, make_pool

from .fakes import uids
from .wordnet import make_wordnet

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


# --- DataComp's -------------------------------------------------------------------------------------------

CAPTIONS = [
    "a photo of two dogs",
    "zwei Hunde und ein dog stehen auf der Wiese",
    "a photo of a cat on the mat",
    "dogs",
    "the very best offers",
]


def metadata(folder: Path) -> tuple[Pool, list[str]]:
    """A pool of ten rows and their uids: CAPTIONS with rising scores, then the first five once more."""
    names = uids(5)
    rows = [
        {
            "uid": names[i % 5],
            "url": f"https://images.example/{i}.jpg",
            "text": CAPTIONS[i % 5],
            "original_width": 300,
            "original_height": 200 - (i == 2),
            "clip_b32_similarity_score": np.float32(0.26 + i / 100),
            "clip_l14_similarity_score": np.float32(i / 100),
        }
        for i in range(10)
    ]
    make_metadata(folder, rows)
    return open_pool(folder), names


def chosen(pool: Pool, name: str) -> list[str]:
    """The sorted uid list of a recipe's selection, as hex digits."""
    stored = np.load(run(pool, name).selection.folder / "uids.npy")
    return [f"{high:016x}{low:016x}" for high, low in stored.tolist()]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The assets of the text baselines: a real language model, a made-up WordNet with a dog on the list."""
    model = SHARED / "fasttext-lid" / "lid.176.ftz"
    if not model.is_file():
        pytest.skip(f"no {model}")
    offsets = make_wordnet(tmp_path / "wordnet.zip")
    (tmp_path / "synsets.txt").write_text(f"n{offsets['n']['dog']:08d}\n")
    monkeypatch.setattr(assets, "_given", {})
    assets.give(
        {
            "fasttext-lid": [model],
            "wordnet": [tmp_path / "wordnet.zip"],
            "imagenet21k-synsets": [tmp_path / "synsets.txt"],
        }
    )


@pytest.mark.parametrize("name", [n for n in recipe.shipped() if n.startswith("datacomp/")])
def test_datacomps_recipes_keep_copies(name: str) -> None:
    assert recipe.read(name).keep_same_uid


def test_no_filter_keeps_all_and_copies_too(tmp_path: Path) -> None:
    pool, names = metadata(tmp_path)
    assert chosen(pool, "datacomp/no_filter") == sorted(names * 2)


def test_clip_score_keeps_one_more_than_a_fraction(tmp_path: Path) -> None:
    pool, names = metadata(tmp_path)
    assert chosen(pool, "datacomp/clip_score") == sorted(names[1:])
    assert chosen(pool, "datacomp/clip_score:top=0.1") == sorted(names[3:])
    assert chosen(pool, "datacomp/clip_score:model=ViT-B-32/openai,min=0.33") == sorted(names[2:])


def test_random_subset_is_a_quarter_under_a_seed(tmp_path: Path) -> None:
    pool, _ = metadata(tmp_path)
    assert len(chosen(pool, "datacomp/random_subset")) == 2
    half = chosen(pool, "datacomp/random_subset:fraction=0.5,seed=1")
    assert len(half) == 5
    assert half == chosen(pool, "datacomp/random_subset:fraction=0.5,seed=1")


@pytest.mark.usefixtures("given")
def test_text_baselines(tmp_path: Path) -> None:
    pool, names = metadata(tmp_path / "pool")
    assert set(chosen(pool, "datacomp/text_based")) == {names[0], names[3]}
    assert set(chosen(pool, "datacomp/text_based:language=")) == {names[0], names[1], names[3]}
    assert set(chosen(pool, "datacomp/basic_filter")) == {names[0], names[2], names[4]}
    assert chosen(pool, "datacomp/basic_filter").count(names[2]) == 1


@pytest.mark.usefixtures("given")
def test_laion2b_says_who_said_the_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcld3", None)
    pool, names = metadata(tmp_path / "pool")
    outcome = run(pool, "datacomp/laion2b")
    assert outcome.selection.raw["rules"][1].startswith("language:language_model=")
    [_, language] = outcome.selection.raw["recipe"]["steps"]
    assert language["settings"]["detector"] == "fasttext"
    assert set(chosen(pool, "datacomp/laion2b")) <= {names[0], names[2], names[3], names[4]}
    assert names[0] in chosen(pool, "datacomp/laion2b")


def _watermark_weights(path: Path) -> None:
    import torch

    from curate.filters.watermark import build_network

    torch.manual_seed(0)
    torch.save(build_network().state_dict(), path)
