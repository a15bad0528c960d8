"""The planted list and the table of what was found."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from curate.demo import languages, plant, scenes, truth
from curate.demo.server import BEHAVIOURS

COUNT = 160


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[plant.Candidate]]:
    folder = tmp_path_factory.mktemp("site")
    return folder, plant.plant(folder, COUNT, workers=1)


def test_shares_are_kept() -> None:
    planned = plant.plan(2000)
    counts = Counter(item.defect for item in planned)
    assert {name: counts[name] for name in plant.SHARES} == {
        name: round(share * 2000) for name, share in plant.SHARES.items()
    }
    assert counts[""] > 1000
    assert len({item.path for item in planned}) == 2000
    assert {item.host for item in planned} == set(range(len(plant.HOSTS)))


def test_a_plan_follows_its_seed() -> None:
    assert plant.plan(COUNT) == plant.plan(COUNT) != plant.plan(COUNT, seed=1)
    with pytest.raises(ValueError, match="too few"):
        plant.plan(20)


def test_every_file_shows_its_defect(site: tuple[Path, list[plant.Candidate]]) -> None:
    folder, planned = site
    originals = {item.seed: item for item in planned if not item.defect}
    for item in planned:
        file = folder / item.path.lstrip("/")
        if item.defect == "dead link":
            assert not file.exists()
            continue
        body = file.read_bytes()
        if item.defect == "HTML for an image":
            assert body.startswith(b"<!doctype html>")
            continue
        image = Image.open(io.BytesIO(body))
        image.load()
        if item.defect == "small image":
            assert min(image.size) < 200
        elif item.defect == "stretched image":
            assert max(image.size) / min(image.size) > 3
            assert min(image.size) >= 200
        else:
            assert min(image.size) >= 200
            assert max(image.size) / min(image.size) < 3
        if item.defect in plant.COPIES:
            original = (folder / originals[item.seed].path.lstrip("/")).read_bytes()
            assert (body == original) is (item.defect == "exact copy")
    assert (folder / BEHAVIOURS).is_file()


def test_captions_say_what_the_defect_says() -> None:
    for item in plant.plan(500):
        true = scenes.compose(item.seed).caption
        if item.defect in plant.COPIES:
            continue
        changed = item.defect in ("wrong caption", "foreign caption", "short caption")
        assert (item.caption != true) is changed
        if item.defect == "short caption":
            assert len(item.caption.split()) < 3


def test_the_list_and_the_truth_are_written_apart(tmp_path: Path) -> None:
    planned = plant.plan(COUNT)
    plant.write_list(planned, ["http://one:1", "http://two:2"], tmp_path / "list.parquet")
    plant.write_truth(planned, tmp_path / "truth.parquet")
    listed = pl.read_parquet(tmp_path / "list.parquet")
    assert listed.columns == ["url", "caption"]
    assert listed["url"].str.starts_with("http://two:2/images/").sum() == COUNT // 2
    assert pl.read_parquet(tmp_path / "truth.parquet").columns == ["path", "caption", "defect", "seed"]


def decisions(planned: list[plant.Candidate], perfect: bool) -> pl.DataFrame:
    """What a pipeline would say that finds everything, or nothing."""
    signs = {
        "wrong caption": ("clipscore", "below_min", None),
        **dict.fromkeys(plant.COPIES, ("dedup:model=tiny", "near_duplicate", None)),
        "watermark": ("watermark", "watermark", None),
        "foreign caption": ("basic", "caption_language", None),
        "short caption": ("basic", "caption_words", None),
        "small image": ("basic", "image_side", None),
        "stretched image": ("basic", "image_aspect", None),
        "dead link": (None, None, "http_404"),
        "HTML for an image": (None, None, "not_an_image"),
        "silent host": (None, None, "timeout"),
    }
    kept = (None, None, None)
    rows = [("http://h:1" + p.path, *(signs.get(p.defect, kept) if perfect else kept)) for p in planned]
    schema = dict.fromkeys(("url", "rule", "reason", "error_code"), pl.String)
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_a_perfect_run_finds_everything(tmp_path: Path) -> None:
    planned = plant.plan(COUNT)
    plant.write_truth(planned, tmp_path / "truth.parquet")
    table = truth.compare(pl.read_parquet(tmp_path / "truth.parquet"), decisions(planned, perfect=True))
    assert [line.defect for line in table] == list(plant.SHARES)
    for line in table:
        assert line.found == line.planted > 0
        assert line.recall == 1
        assert line.precision == (None if line.defect in plant.HARMLESS else 1), line


def test_a_blind_run_finds_nothing(tmp_path: Path) -> None:
    planned = plant.plan(COUNT)
    plant.write_truth(planned, tmp_path / "truth.parquet")
    for line in truth.compare(pl.read_parquet(tmp_path / "truth.parquet"), decisions(planned, perfect=False)):
        if line.defect not in plant.HARMLESS:
            assert (line.found, line.flagged, line.precision, line.recall) == (0, 0, None, 0)


def test_an_original_may_go_in_the_place_of_its_copy(tmp_path: Path) -> None:
    planned = plant.plan(COUNT)
    plant.write_truth(planned, tmp_path / "truth.parquet")
    known = pl.read_parquet(tmp_path / "truth.parquet")
    copy = next(item for item in planned if item.defect == "cropped copy")
    original = next(item for item in planned if item.seed == copy.seed and not item.defect)
    once = [item for item in planned if Counter(other.seed for other in planned)[item.seed] == 1]
    stranger = next(item for item in once if not item.defect)
    said = decisions(planned, perfect=False).with_columns(
        rule=pl.when(pl.col("url").str.ends_with(original.path) | pl.col("url").str.ends_with(stranger.path)).then(
            pl.lit("dedup")
        )
    )
    line = next(line for line in truth.compare(known, said) if line.defect == "cropped copy")
    assert (line.found, line.flagged, line.precision) == (1, 2, 0.5)


def test_a_candidate_without_a_decision_is_an_error(tmp_path: Path) -> None:
    planned = plant.plan(COUNT)
    plant.write_truth(planned, tmp_path / "truth.parquet")
    with pytest.raises(ValueError, match="3 planted candidates have no decision"):
        truth.compare(pl.read_parquet(tmp_path / "truth.parquet"), decisions(planned, perfect=True)[3:])


def test_the_language_model_knows_the_planted_languages(tmp_path: Path) -> None:
    import fasttext

    path = tmp_path / "lid.bin"
    languages.train_language_model(path)
    assert path.stat().st_size < 500_000
    first = path.read_bytes()
    languages.train_language_model(path)
    assert path.read_bytes() == first
    model = fasttext.load_model(str(path))
    wrong = 0
    for seed in range(plant.HELD_OUT, plant.HELD_OUT + 200):
        scene = scenes.compose(seed)
        said = {"en": scene.caption, **{code: languages.said_in(code, scene, seed) for code in languages.LANGUAGES}}
        labels, _ = model.predict(list(said.values()))
        wrong += sum(label[0] != f"__label__{code}" for label, code in zip(labels, said, strict=True))
    assert wrong <= 5
