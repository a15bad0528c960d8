"""image_based: tokens as fastText cuts them, each condition at its edge, and DataComp's rule on whole pools."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from curate import devices, scales
from curate import recipe as recipes
from curate.assets import REGISTRY
from curate.errors import InputError
from curate.filter_api import Column, File, Score, settings_of
from curate.filters._centroids import Centroid
from curate.filters._language import Language
from curate.filters._tokens import count_tokens
from curate.filters.image_based import _SCALES, ImageBased
from curate.pool import Pool, open_pool
from curate.stages import score
from curate.stages.filter import Outcome, Request, filter_pool
from curate.stages.needs import Means
from curate.vectors import reached as reached_module
from tests.commands.cli import curate
from tests.pools import make_metadata

from .fakes import FakeFacts, FakeFigures, batch, judged

SHARED = Path(__file__).resolve().parents[3] / "shared"
LID = SHARED / "data" / "fasttext-lid" / "lid.176.ftz"
needs_lid = pytest.mark.skipif(not LID.exists(), reason="no fastText model in ../shared")
MODEL = "ViT-L-14/openai"
DIM, CENTROIDS = 24, 60

Array = npt.NDArray[Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "curate" / "reached"


def unit(n: int, dim: int = DIM, seed: int = 0) -> Array:
    x = np.random.default_rng(seed).standard_normal((n, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def reached(files: Sequence[File], table: File) -> Array:
    return FakeFigures(pl.DataFrame()).reached(files, table)


def saved(path: Path, array: Array) -> File:
    np.save(path, array)
    return File.at(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[File, File]:
    """Centroids of several lengths, and targets that reach about half of them."""
    centroids = unit(CENTROIDS, seed=1) * np.random.default_rng(2).uniform(0.5, 0.9, (CENTROIDS, 1))
    near = centroids[: CENTROIDS // 2].repeat(2, axis=0) + 0.05 * unit(CENTROIDS, seed=3)
    return (
        saved(tmp_path / "centroids.npy", centroids.astype(np.float32)),
        saved(tmp_path / "targets.npy", near.astype(np.float16)),
    )


# --- tokens -----------------------------------------------------------------------------------------------


def test_tokens_are_fasttexts() -> None:
    fasttext = pytest.importorskip("fasttext")
    letters = [chr(i) for i in range(34)] + [
        *"ab\x7f\x85\xa0\u2003\u2028\u3000\u200b\ufeff\xff漢",
        "\N{GRINNING FACE}",
    ]
    letters += ["é", "</s>", "__label__x", "\r\n"]
    rng = random.Random(0)
    captions = ["", "\n", "\n\n", "a\n", "\na", "a\nb", "a\0b", "\0", " ", "a  b", "</s>", "\ta\x1cb"]
    captions += ["".join(rng.choices(letters, k=rng.randrange(12))) for _ in range(20_000)]
    counted = pl.DataFrame({"caption": captions}).select(count_tokens(pl.col("caption")))["caption"].to_list()
    assert counted == [len(fasttext.tokenize(caption)) for caption in captions]


# --- the judge --------------------------------------------------------------------------------------------


def samples(**columns: list[object]) -> pl.DataFrame:
    rows = len(next(iter(columns.values())))
    plain: dict[str, list[object]] = {
        "caption": ["a red circle"] * rows,
        "language": ["en"] * rows,
        "language_probability": [0.9] * rows,
        "centroid": [0] * rows,
        "vector_is_finite": [True] * rows,
    }
    return pl.DataFrame(plain | columns).with_columns(pl.col("centroid").cast(pl.Int32))


def judge(files: tuple[File, File], **settings: Any) -> ImageBased:
    return ImageBased(centroids=files[0], targets=(files[1],), **settings)


def test_captions_at_the_edge(files: tuple[File, File]) -> None:
    frame = samples(
        caption=["a bcd", "ab cd", "a bcde", "abcdef", "ab\xa0cde", "abcde\n", "ab\0cde", "漢漢漢 漢漢", None]
    )
    assert judged(judge(files), frame) == [
        "caption_chars",
        "caption_chars",
        "kept",
        "caption_tokens",
        "caption_tokens",
        "kept",
        "kept",
        "kept",
        None,
    ]


def test_the_language_is_the_first_label(files: tuple[File, File]) -> None:
    frame = samples(language=["en", "de", None], language_probability=[0.1, 0.9, None])
    assert judged(judge(files), frame) == ["kept", "caption_language", None]


def test_the_centroid_must_be_one_that_targets_reach(files: tuple[File, File]) -> None:
    near = reached([files[1]], files[0]).tolist()
    assert near == list(range(CENTROIDS // 2))
    frame = samples(centroid=[0, CENTROIDS // 2 - 1, CENTROIDS // 2, None])
    assert judged(judge(files), frame) == ["kept", "kept", "far_from_targets", None]
    assert judge(files).values()["far_from_targets"].meta.eq(pl.col("centroid"))
    sentence = ImageBased.reasons["far_from_targets"].format(value=30.0)
    assert sentence == "the image belongs to centroid 30, to which no target belongs"


def test_what_is_no_vector_is_unjudged_or_as_datacomp_has_it(files: tuple[File, File]) -> None:
    frame = samples(centroid=[0, 0, 59], vector_is_finite=[True, False, False])
    assert judged(judge(files), frame) == ["kept", None, None]
    assert judged(judge(files, nan="datacomp"), frame) == ["kept", "kept", "far_from_targets"]


def test_cheap_conditions_come_first_and_what_is_off_is_not_read(files: tuple[File, File]) -> None:
    whole = judge(files)
    frame = samples(caption=["x"])
    conditions = whole.keep(FakeFigures(frame))
    assert list(conditions) == [
        "caption_chars",
        "caption_tokens",
        "caption_language",
        "far_from_targets",
    ]
    assert set(whole.reasons) == set(conditions) == set(whole.values())
    assert whole.needs() == [Column("caption"), Score(Language(None)), Score(Centroid(MODEL, files[0]))]
    assert judged(whole, frame) == ["caption_chars"]
    pixels = judge(files, language="", min_tokens=0, min_chars=0)
    assert pixels.needs() == [Score(Centroid(MODEL, files[0]))]
    assert judged(pixels, frame) == ["kept"]
    captions = ImageBased(captions_only=True)
    assert captions.needs() == [Column("caption"), Score(Language(None))]
    assert judged(captions, samples(caption=["a red dot", "red"], centroid=[59, 0])) == ["kept", "caption_chars"]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"min_tokens": -1}, "min_tokens is 0"),
        ({"min_chars": -1}, "min_chars is 0"),
        ({"model": ""}, "model is ARCH/PRETRAINED"),
        ({"model": "ViT-B-32/openai"}, "for ViT-B-32/openai name files of both"),
        ({"captions_only": True, "language": "", "min_tokens": 0, "min_chars": 0}, "every condition is off"),
        ({"captions_only": True, "scale": "small"}, "looks at no image"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        ImageBased(**settings)


def test_a_scale_and_centroids_of_ones_own_exclude_each_other(files: tuple[File, File]) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        judge(files, scale="small")


def test_what_is_published_is_asked_for_when_it_settles(files: tuple[File, File], monkeypatch: Any) -> None:
    asked: list[tuple[str, str | None]] = []

    def asset(name: str, variant: str | None = None) -> File:
        asked.append((name, variant))
        return files[0]

    monkeypatch.setattr("curate.filters.image_based.asset", asset)
    monkeypatch.setattr("curate.filters.image_based.assets", lambda name: asked.append((name, None)) or (files[1],))
    for n, scale in [
        (5, "small"),
        (12_800_000, "small"),
        (12_800_001, "medium"),
        (10**10, "xlarge"),
        (10**11, "xlarge"),
    ]:
        settled = ImageBased().settle(FakeFacts(n=n))
        assert asked == [("fasttext-lid", None), ("centroids", scale), ("imagenet-targets", None)]
        assert (settled.centroids, settled.targets, settled.language_model) == (files[0], (files[1],), files[0])
        assert settled.settle(FakeFacts(n=n)) == settled
        asked.clear()
    ImageBased(scale="large", language="").settle(FakeFacts(n=5))
    assert asked == [("centroids", "large"), ("imagenet-targets", None)]
    asked.clear()
    ImageBased(captions_only=True).settle(FakeFacts(n=5))
    assert asked == [("fasttext-lid", None)]


# --- centroids and targets --------------------------------------------------------------------------------


def test_golden_centroids(tmp_path: Path) -> None:
    """Version 1: float16 vectors, products with centroids of any length, the lowest of equals."""
    table = np.array([[1, 0], [0, 2], [2, 0], [2, 0], [0, 0]], np.float32)
    scorer = Centroid(MODEL, saved(tmp_path / "c.npy", table))
    vectors = np.array([[1, 0], [0, 1], [-1, 0], [0, 0], [np.nan, 1]], np.float32)
    found = scorer.open("cpu")(batch(5, vectors={(MODEL, "image"): vectors}))
    assert found["centroid"].tolist() == [2, 1, 1, 0, 0]
    assert found["vector_is_finite"].tolist() == [True, True, True, True, False]
    assert (scorer.name, scorer.version, scorer.some_rows) == ("centroid", 1, True)
    assert settings_of(scorer) == {"model": MODEL, "centroids": {"sha256": scorer.centroids.sha256}}  # type: ignore[union-attr]


def test_a_gpu_is_taken_where_there_is_one(files: tuple[File, File], monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    scorer = Centroid(MODEL, files[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert score.device_for(scorer, "auto") == "cuda"
    assert score.device_for(scorer, "cpu") == "cpu"
    assert score.device_for(Language(None), "auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert score.device_for(scorer, "auto") == "cpu"


def test_centroids_of_another_width_are_refused(files: tuple[File, File]) -> None:
    compute = Centroid(MODEL, files[0]).open("cpu")
    with pytest.raises(InputError) as caught:
        compute(batch(2, vectors={(MODEL, "image"): unit(2, 16).astype(np.float32)}))
    assert caught.value.what == "its centroids have 24 values, vectors of ViT-L-14/openai 16"
    assert caught.value.hint == "centroids go with one model: curate centroids trains them for any"


def test_targets_of_another_width_are_refused(files: tuple[File, File], tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"its vectors have 16 values, those of .*centroids\.npy 24"):
        reached([files[1], saved(tmp_path / "wide.npy", unit(4, 16))], files[0])
    assert not cache.exists()


def test_targets_are_worked_out_once_for_their_contents(
    files: tuple[File, File], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[int] = []
    real = reached_module.closest

    def counted(*arguments: Any) -> Any:
        worked.append(1)
        return real(*arguments)

    monkeypatch.setattr(reached_module, "closest", counted)
    centroids, targets = files
    first = reached([targets], centroids)
    moved = File(targets.path.rename(tmp_path / "elsewhere.npy"), targets.sha256)
    assert np.array_equal(reached([moved], centroids), first)
    assert len(worked) == 1
    halves = np.split(np.load(moved.path), 2)
    parts = [saved(tmp_path / f"part{i}.npy", half) for i, half in enumerate(halves)]
    assert np.array_equal(reached(parts, centroids), first)
    assert len(worked) == 2
    kept = sorted(cache.glob("*.npy"))
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(b"\x93NUMPY, but cut")
    assert np.array_equal(reached([moved], centroids), first)
    assert len(worked) == 3


def test_targets_of_zeros_reach_nothing(files: tuple[File, File], tmp_path: Path) -> None:
    """`curate embed` leaves them for images that do not decode."""
    targets = np.load(files[1].path)[-4:]
    wanted = reached([saved(tmp_path / "few.npy", targets)], files[0])
    targets = np.concatenate([np.zeros((2, DIM), np.float16), targets])
    assert np.array_equal(reached([saved(tmp_path / "broken.npy", targets)], files[0]), wanted)
    assert 0 not in wanted


def test_a_cache_that_cannot_be_written_is_said(
    files: tuple[File, File], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(reached([files[1]], files[0])) == CENTROIDS // 2
    assert "is not kept for the next time" in caplog.text


# --- whole pools ------------------------------------------------------------------------------------------

CAPTIONS = (
    "a red bicycle leaning on a wall",
    "the old town seen from the river",
    "dog on",
    "a dog",
    "photograph",
    "two children playing in the park\nwith a ball",
    "eine alte Frau sitzt auf der Bank im Garten",
    "un chat noir dort sur le canapé du salon",
    "green\xa0apples",
    "",
    "\n\n\n\n\n\n\n",
    "large brown bear\x00in the forest",
)


def make_pool(folder: Path, rows: int, seed: int) -> Pool:
    """Metadata in DataComp's form, in two files: all captions, NaN and ties in the scores, vectors that are none,
    a uid that stands several times."""
    rng = np.random.default_rng(seed)
    for number in range(2):
        uids = [rng.bytes(16).hex() for _ in range(rows)]
        uids[5] = uids[6] = "f" * 32
        score = rng.integers(0, 40, rows).astype(np.float32) / 100
        score[::17] = np.nan
        table = [
            {"uid": uid, "url": f"u{i}", "text": CAPTIONS[(i * 7) % len(CAPTIONS)], "clip_l14_similarity_score": s}
            for i, (uid, s) in enumerate(zip(uids, score.tolist(), strict=True))
        ]
        name = f"{number:032x}"
        make_metadata(folder, table, name)
        image = unit(rows, seed=seed + number).astype(np.float16)
        image[3], image[::29], image[10, 2], image[11, 0] = 0, np.nan, np.inf, -np.inf
        arrays = {
            f"{m}_{side}": unit(rows, 8, seed).astype(np.float16) for m in ("b32", "l14") for side in ("img", "txt")
        }
        np.savez(folder / "metadata" / f"{name}.npz", **arrays | {"l14_img": image}, dedup=np.zeros(rows, np.int32))
    return open_pool(folder)


def datacomps(folder: Path, files: tuple[File, File], fraction: float | None) -> Array:
    """The uids that DataComp's image-based filtering keeps, sorted, with its arithmetic (float32, on the CPU)."""
    fasttext = pytest.importorskip("fasttext")
    torch = pytest.importorskip("torch")
    model = fasttext.load_model(str(LID))
    centroids = torch.from_numpy(np.load(files[0].path))

    def nearest(x: Array) -> Array:
        return torch.einsum("ik,jk->ij", torch.from_numpy(x).float(), centroids).argmax(1).numpy()

    targets = np.unique(nearest(np.load(files[1].path)))
    tables = {p: pl.read_parquet(p) for p in sorted((folder / "metadata").glob("*.parquet"))}
    cut = -np.inf
    if fraction is not None:
        scores = np.concatenate([t["clip_l14_similarity_score"].to_numpy() for t in tables.values()])
        cut = -np.sort(-scores)[int(len(scores) * fraction)]
    kept = []
    for path, table in tables.items():
        labels, _ = model.predict([text.replace("\n", " ") for text in table["text"]], k=1)
        texts = zip(labels, table["text"], strict=True)
        good = np.array(
            [lab[0] == "__label__en" and len(fasttext.tokenize(t)) > 1 and len(t) > 5 for lab, t in texts]
        )
        if fraction is not None:
            good &= table["clip_l14_similarity_score"].to_numpy() >= cut
        good &= np.isin(nearest(np.load(path.with_suffix(".npz"))["l14_img"]), targets)
        kept += table["uid"].filter(pl.Series(good)).to_list()
    return np.sort(np.array([(int(u[:16], 16), int(u[16:], 16)) for u in kept], np.dtype("u8,u8")))


def recipe_file(path: Path, rules: Sequence[str]) -> Path:
    entries = "\n".join(f"[[rule]]\n{text}" for text in rules)
    path.write_text(f"format = 1\nkeep_same_uid = true\n{entries}\n")
    return path


def run(pool: Pool, recipe: Path) -> Outcome:
    def never(work: object) -> None:
        raise AssertionError(work)

    return filter_pool(pool, Request(recipes.compose([], [str(recipe)]), "chosen"), allow=never)


def image_rule(files: tuple[File, File]) -> str:
    return (
        f'use = "image_based"\nnan = "datacomp"\ncentroids = "{files[0].path}"\ntargets = ["{files[1].path}"]\n'
        f'language_model = "{LID}"'
    )


@needs_lid
@pytest.mark.parametrize("fraction", [None, 0.3, 0.6])
def test_datacomps_uids_to_the_bit(tmp_path: Path, files: tuple[File, File], fraction: float | None) -> None:
    pool = make_pool(tmp_path / "pool", 600, 11)
    clip = [f'use = "clipscore"\nmodel = "{MODEL}"\ntop = {fraction}\nties = "datacomp"'] if fraction else []
    outcome = run(pool, recipe_file(tmp_path / "recipe.toml", [*clip, image_rule(files)]))
    wanted = datacomps(tmp_path / "pool", files, fraction)
    assert 20 < len(wanted) < 600
    assert outcome.selection.uids().tobytes() == wanted.tobytes()
    assert not outcome.failed_parts
    line = outcome.selection.funnel[-1]
    assert set(line["dropped"]) == {"caption_chars", "caption_tokens", "caption_language", "far_from_targets"}
    assert line["figures"] == {"vectors of": MODEL, "centroids with targets": CENTROIDS // 2}


@needs_lid
def test_centroids_are_found_only_for_rows_that_are_still_in(tmp_path: Path, files: tuple[File, File]) -> None:
    pool = make_pool(tmp_path / "pool", 300, 5)
    selection = run(pool, recipe_file(tmp_path / "recipe.toml", [image_rule(files)])).selection
    left = {reason: n for reason, n in selection.funnel[-1]["dropped"].items() if reason != "far_from_targets"}
    scores = pl.concat(pl.read_parquet(p) for p in (tmp_path / "pool" / "scores").glob("centroid-v1-*/*.parquet"))
    assert scores["centroid"].count() == 600 - sum(left.values())
    assert scores.filter(pl.col("centroid").is_null())["error_code"].unique().to_list() == ["not_asked"]


@needs_lid
def test_two_sets_of_centroids_are_two_scores(tmp_path: Path, files: tuple[File, File]) -> None:
    pool = make_pool(tmp_path / "pool", 60, 5)
    run(pool, recipe_file(tmp_path / "recipe.toml", [image_rule(files)]))
    other = saved(tmp_path / "other.npy", np.load(files[0].path)[::-1])
    run(open_pool(tmp_path / "pool"), recipe_file(tmp_path / "recipe.toml", [image_rule((other, files[1]))]))
    assert len(list((tmp_path / "pool" / "scores").glob("centroid-v1-*"))) == 2


def test_vectors_that_others_changed_are_read_again(tmp_path: Path, files: tuple[File, File]) -> None:
    make_pool(tmp_path / "pool", 60, 5)
    recipe = recipe_file(
        tmp_path / "recipe.toml", [image_rule(files).replace("language_model", "language = ''\n#")]
    )
    before = run(open_pool(tmp_path / "pool"), recipe).selection.uids().copy()
    assert run(open_pool(tmp_path / "pool"), recipe).reused
    npz = tmp_path / "pool" / "metadata" / f"{0:032x}.npz"
    with np.load(npz) as held:
        arrays = dict(held)
    np.savez(npz, **arrays | {"l14_img": arrays["l14_img"][::-1]})
    after = run(open_pool(tmp_path / "pool"), recipe)
    assert not after.reused
    assert after.selection.uids().tobytes() != before.tobytes()
    fresh = Path(shutil.copytree(tmp_path / "pool", tmp_path / "fresh", ignore=lambda *_: ["scores", "selections"]))
    assert after.selection.uids().tobytes() == run(open_pool(fresh), recipe).selection.uids().tobytes()


@needs_lid
def test_what_is_kept_is_explained_and_what_is_not_kept_is_not_worked_out(
    tmp_path: Path, files: tuple[File, File], cache: Path
) -> None:
    pool = make_pool(tmp_path / "pool", 60, 5)
    rule = f"image_based:centroids={files[0].path},targets={files[1].path},language_model={LID}"
    assert curate("filter", "--pool", tmp_path / "pool", "--rule", rule).code == 0
    taken = pl.concat(
        pool.scan(part, ["uid"]).collect().with_columns(pl.read_parquet(path))
        for part, path in zip(
            pool.parts, sorted((tmp_path / "pool").glob("selections/*/decisions/*.parquet")), strict=True
        )
    )
    uid, number = taken.filter(pl.col("reason") == "far_from_targets").select("uid", "value").row(0)
    told = curate("explain", uid, "--pool", tmp_path / "pool", "--json").json["rows"][0]["selection"]["rules"][-1]
    assert told["says"] == "drops"
    assert [c["value"] for c in told["conditions"]][-1] == number
    assert told["why"] == f"the image belongs to centroid {number:.0f}, to which no target belongs"
    for path in cache.iterdir():
        path.unlink()
    told = curate("explain", uid, "--pool", tmp_path / "pool", "--json").json["rows"][0]["selection"]["rules"][-1]
    assert told["conditions"] == []
    assert not list(cache.iterdir())


@pytest.mark.parametrize(("device", "used"), [("cpu", "cpu"), ("auto", "cuda")])
def test_targets_are_worked_out_on_the_commands_device(
    tmp_path: Path, files: tuple[File, File], device: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def closest(table: Array, device: str) -> Any:
        seen.append(device)
        return exact(table)

    exact = reached_module.closest
    monkeypatch.setattr(reached_module, "closest", closest)
    monkeypatch.setattr(reached_module, "_device", lambda products: "cuda")
    pool = make_pool(tmp_path / "pool", 30, 5)
    rule = f"image_based:language=,centroids={files[0].path},targets={files[1].path}"
    request = Request(recipes.compose([rule], []), means=Means(device))
    monkeypatch.setattr(devices, "best", lambda: "cpu")
    filter_pool(pool, request, allow=lambda work: None)
    assert seen == [used]


def test_its_scales_are_those_of_the_machine_and_of_the_published_centroids() -> None:
    sizes = {name: scale.pool_size for name, scale in scales.SCALES.items() if scale.pool_size}
    assert sizes == _SCALES
    assert tuple(_SCALES) == REGISTRY["centroids"].variants
