from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from curate.errors import InputError
from curate.filter_api import Column, Draw, File, Score, Vectors, settings_of
from curate.filters import _concept_scores
from curate.filters._concept_scores import CaptionConcepts, ImageConcepts
from curate.filters._vocabulary import Vocabulary, spaced
from curate.filters.concepts import Concepts

from .fakes import FakeFacts, FakeLeft, batch, uids

SHARED = Path(__file__).resolve().parents[3] / "shared"


def vocabulary(tmp_path: Path, text: str) -> File:
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    return File.at(path)


# --- finding concepts in captions -----------------------------------------------------------------------


def metaclip_finds(caption: str, entries: Sequence[str]) -> list[str]:
    """The published definition, spelled out: an entry between spaces in the spaced caption."""
    text = f" {caption} "
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    for end in "\t\n\r":
        text = text.replace(end, " ")
    return [entry for entry in entries if f" {entry} " in text]


def test_substring_matching_is_metaclips() -> None:
    rng = random.Random(0)
    alphabet = ["cat", "dog", "cat dog", "Cat", "e.g", "a", " ", "  ", ",", ".", "`", "\n", "\t", "(", "漢字", "'"]
    entries = ["cat", "dog", "cat dog", "a", "Cat", "e.g", "dog cat dog", "漢字", ",", "(", "cat  dog"]
    find = Vocabulary(tuple((entry,) for entry in entries)).finder(fold=False)
    for _ in range(3000):
        caption = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        assert find(caption) == metaclip_finds(caption, entries), repr(caption)


def test_what_the_definition_implies() -> None:
    find = Vocabulary((("cat",), ("dog",), ("cat dog",), ("e.g",), ("Paris",))).finder(fold=False)
    assert find("cat dog") == ["cat", "dog", "cat dog"]
    assert find("dog, cat.") == ["cat", "dog"]
    assert find("cats and Dog, e.g this") == []
    assert find("(cat) cat's") == []
    assert find("") == find(" ") == []
    assert spaced("a,b") == " a , b "


def test_folding_disregards_case_but_keeps_the_entrys_spelling() -> None:
    find = Vocabulary((("Paris",), ("STRASSE",))).finder(fold=True)
    assert find("PARIS, straße paris") == ["Paris", "STRASSE"]


def test_vocabulary_files(tmp_path: Path) -> None:
    read = Vocabulary.read(vocabulary(tmp_path, "dog\tdogs\tpuppy\n\n cat \r\ndog\thound\n"))
    assert read.forms == (("dog", "dogs", "puppy", "hound"), ("cat",))
    assert read.names == ("dog", "cat")
    assert read.finder(fold=True)("Two Dogs and a puppy") == ["dog"]
    listed = Vocabulary.read(vocabulary(tmp_path, json.dumps(["dog", "ice cream", "a, b"])))
    assert listed.names == ("dog", "ice cream", "a, b")
    shared_form = Vocabulary.read(vocabulary(tmp_path, "seal\tseals\nstamp\tseals\n"))
    assert shared_form.finder(fold=False)("two seals") == ["seal", "stamp"]


@pytest.mark.parametrize("text", ["", "\n \n\t\n", "[]", "[1]", "[not json", '["a" 1'])
def test_a_vocabulary_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"words\.txt: ") as error:
        Vocabulary.read(vocabulary(tmp_path, text))
    assert error.value.exit_code == 2


def test_the_default_vocabulary() -> None:
    settled = Concepts().settle(FakeFacts())
    assert settled.vocabulary is not None
    read = Vocabulary.read(settled.vocabulary)
    assert len(read.forms) > 300
    forms = [form for concept in read.forms for form in concept]
    assert len(set(forms)) == len(forms)
    assert all(form == form.casefold() and metaclip_finds(form, [form]) for form in forms)
    assert read.finder(fold=True)("Two red circles, children on a Beach") == ["child", "beach", "circle"]


def test_caption_scorer(tmp_path: Path) -> None:
    scorer = CaptionConcepts(vocabulary(tmp_path, "dog\ncat"), True)
    assert scorer.needs() == [Column("caption")]
    got = scorer.open("cpu")(batch(2, {"caption": ["Cat, dog", "none"]}))
    assert got == {"concepts": [["dog", "cat"], []]}
    assert set(got) == set(scorer.columns)


# --- and in images --------------------------------------------------------------------------------------


def test_image_scorer_is_zero_shot_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    text = rng.normal(size=(5, 8)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    asked: list[object] = []

    def encoder(model: str, device: str) -> object:
        def encode(prompts: Sequence[str]) -> npt.NDArray[np.float32]:
            asked.append((model, device, list(prompts)))
            return text

        return encode

    monkeypatch.setattr(_concept_scores, "text_encoder", encoder)
    monkeypatch.setattr(_concept_scores, "_MOST_LOGITS", 35)  # seven rows at a time
    words = ["ant", "bee", "cow", "dog", "elk"]
    scorer = ImageConcepts(vocabulary(tmp_path, "\n".join(words)), "tiny", 2, 0.2)
    assert scorer.needs() == [Vectors("tiny", "image")]
    images = text[rng.integers(0, 5, 40)] + rng.normal(0, 0.35, (40, 8)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    got = scorer.open("cpu")(batch(40, vectors={("tiny", "image"): images}))["image_concepts"]
    assert asked == [("tiny", "cpu", [f"a photo of a {word}" for word in words])]
    for vector, found in zip(images.astype(float), got, strict=True):
        logits = 100 * (text.astype(float) @ vector)
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert found == [words[i] for i in np.argsort(-p)[:2] if p[i] >= 0.2]
    assert 1 in map(len, got)


def test_real_images_get_sensible_concepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = SHARED / "data" / "clip-features" / "coco_val2014_328_image_embeddings.npz"
    prompts = SHARED / "data" / "clip-text-embeddings" / "coco_clip_a+cname.npy"
    if not (images.exists() and prompts.exists()):
        pytest.skip("no CLIP embeddings in ../shared")
    text = np.load(prompts).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    monkeypatch.setattr(_concept_scores, "text_encoder", lambda model, device: lambda prompts: text)
    words = vocabulary(tmp_path, "\n".join(f"class {i:02}" for i in range(len(text))))
    scorer = ImageConcepts(words, "ViT-B-32/openai", 3, 0.1)
    vectors = np.load(images)["image_embs"]
    rows = batch(len(vectors), vectors={("ViT-B-32/openai", "image"): vectors})
    found = scorer.open("cpu")(rows)["image_concepts"]
    # COCO photos show COCO classes: nearly all are recognised, and person (class 00) is no exception
    assert sum(map(bool, found)) > 0.95 * len(found)
    assert len({name for names in found for name in names}) > 50


# --- balancing ------------------------------------------------------------------------------------------


def pool(n: int = 3000, seed: int = 0) -> FakeLeft:
    """Concepts of Zipf-like frequency, none to five a sample."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, 61)
    names = np.array([f"c{i:02}" for i in range(60)])
    lists = [sorted(set(rng.choice(names, rng.integers(0, 6), p=p / p.sum()))) for _ in range(n)]
    return FakeLeft(pl.DataFrame({"uid": uids(n, seed), "concepts": lists}))


def counts(left: FakeLeft, draw: Draw | None = None) -> Counter[str]:
    lists = left.table["concepts"].to_list()
    kept = np.ones(left.n, bool) if draw is None else draw.copies > 0
    return Counter(name for names, k in zip(lists, kept, strict=True) if k for name in names)


def kept_uids(left: FakeLeft, draw: Draw) -> set[str]:
    return set(left.table.filter(pl.Series(draw.copies > 0))["uid"])


def sample_chances(left: FakeLeft, rule: Concepts) -> npt.NDArray[np.float64]:
    from curate.filters.concepts import _SALT

    return left.chance(rule.seed + _SALT)


@pytest.mark.parametrize("cap", [1, 20, 100, 10_000])
def test_cap_keeps_the_lowest_chances_of_each_concept(cap: int) -> None:
    left, rule = pool(), Concepts(cap=cap, unmatched="drop", seed=4)
    draw = rule.draw(left)
    chance = sample_chances(left, rule)
    lists = left.table["concepts"].to_list()
    want = np.zeros(left.n, bool)
    for name in counts(left):
        having = [row for row, names in enumerate(lists) if name in names]
        want[sorted(having, key=lambda row: chance[row])[:cap]] = True
    np.testing.assert_array_equal(draw.copies, want)
    before, after = counts(left), counts(left, draw)
    assert all(after[name] >= min(cap, before[name]) for name in before)
    assert all(after[name] == before[name] for name in before if before[name] <= cap)


def test_beyond_the_cap_only_what_another_concept_keeps() -> None:
    cap, left = 30, pool()
    rule = Concepts(cap=cap, unmatched="drop")
    draw = rule.draw(left)
    chance = sample_chances(left, rule)
    lists = left.table["concepts"].to_list()

    def rank(row: int, name: str) -> int:
        return sum(chance[other] < chance[row] for other, names in enumerate(lists) if name in names)

    common = counts(left).most_common(1)[0][0]
    extra = [row for row in np.nonzero(draw.copies)[0] if common in lists[row] and rank(row, common) >= cap]
    assert extra
    assert all(any(rank(row, name) < cap for name in lists[row] if name != common) for row in extra)
    single = [row for row, names in enumerate(lists) if names == [common]]
    assert sum(int(draw.copies[row]) for row in single) <= cap


@pytest.mark.parametrize("target", [1, 25, 400.5])
def test_target_is_metaclips_probability(target: float) -> None:
    left, rule = pool(), Concepts(target=target, unmatched="drop", seed=9)
    draw = rule.draw(left)
    have = counts(left)
    chance = sample_chances(left, rule)
    for row, names in enumerate(left.table["concepts"].to_list()):
        missed = 1.0
        for name in names:
            missed *= 1 - min(1.0, target / have[name])
        if abs(chance[row] - (1 - missed)) > 1e-12:
            assert draw.copies[row] == (chance[row] < 1 - missed)
    after = counts(left, draw)
    assert all(after[name] == have[name] for name in have if have[name] <= target)


def test_target_keeps_about_that_many_of_a_concept_that_stands_alone() -> None:
    n, target = 20_000, 500
    left = FakeLeft(pl.DataFrame({"uid": uids(n), "concepts": [["only"]] * n}))
    kept = int(Concepts(target=target).draw(left).copies.sum())
    assert abs(kept - target) < 4 * np.sqrt(target)


@pytest.mark.parametrize("setting", ["cap", "target"])
def test_nested_and_of_no_order(setting: str) -> None:
    left = pool()
    shuffled = FakeLeft(left.table.sample(fraction=1, shuffle=True, seed=3))
    last: set[str] = set()
    for value in (5, 50, 200):
        rule = Concepts(**{setting: value}, unmatched="drop")  # type: ignore[arg-type]
        kept = kept_uids(left, rule.draw(left))
        assert kept == kept_uids(shuffled, rule.draw(shuffled))
        assert last < kept
        last = kept
    other = Concepts(**{setting: 50}, unmatched="drop", seed=1)  # type: ignore[arg-type]
    assert kept_uids(left, other.draw(left)) != kept_uids(left, Concepts(**{setting: 50}).draw(left))  # type: ignore[arg-type]


def test_after_a_draw_with_the_same_seed_chance_is_fresh() -> None:
    left = FakeLeft(pl.DataFrame({"uid": uids(4000), "concepts": [["only"]] * 4000}))
    half = FakeLeft(left.table.filter(pl.Series(left.chance(0) < 0.5)))
    kept = int(Concepts(target=half.n / 2).draw(half).copies.sum())
    assert abs(kept - half.n / 2) < 100


def test_tail_chooses_the_target_by_the_share_below_it() -> None:
    # counts 1, 2, 3, 4 and 90: shares from the rarest up .01 .03 .06 .10 1
    lists = [[name] for name, n in zip("abcde", (1, 2, 3, 4, 90), strict=True) for _ in range(n)]
    left = FakeLeft(pl.DataFrame({"uid": uids(100), "concepts": lists}))
    assert kept_uids(left, Concepts(tail=0.055).draw(left)) == kept_uids(left, Concepts(target=3).draw(left))
    assert kept_uids(left, Concepts(tail=0.99).draw(left)) == kept_uids(left, Concepts(target=90).draw(left))
    settled = Concepts().settle(FakeFacts())
    assert (settled.tail, settled.cap, settled.target) == (0.06, None, None)
    assert kept_uids(left, settled.draw(left)) == kept_uids(left, Concepts(target=3).draw(left))
    assert Concepts(cap=3).settle(FakeFacts()).tail is None


def test_samples_without_a_concept() -> None:
    table = pl.DataFrame({"uid": uids(4), "concepts": [["a"], [], None, ["a"]]}).sort("uid")
    known = table["concepts"].is_not_null().to_numpy()
    empty = (table["concepts"].list.len() == 0).fill_null(False).to_numpy()
    for unmatched in ("keep", "drop"):
        draw = Concepts(cap=1, unmatched=unmatched).draw(FakeLeft(table))
        assert list(draw.copies[empty]) == [unmatched == "keep"]
        assert draw.unjudged is not None
        np.testing.assert_array_equal(draw.unjudged, ~known)
        assert not draw.copies[~known].any()
        assert draw.copies.sum() == 1 + (unmatched == "keep")
        named = (
            [draw.reason] * 4 if isinstance(draw.reason, str) else [list(Concepts.reasons)[r] for r in draw.reason]
        )
        reasons = np.array(named)
        assert set(reasons[known & ~empty]) == {"common_concepts"}
        if unmatched == "drop":
            assert list(reasons[empty]) == ["no_concept"]
    nothing = FakeLeft(pl.DataFrame({"uid": uids(2), "concepts": pl.Series([[], []], dtype=pl.List(pl.String))}))
    for rule in (Concepts(cap=1), Concepts(target=1), Concepts(tail=0.5)):
        assert list(rule.draw(nothing).copies) == [1, 1]


def test_image_and_caption_concepts_count_together() -> None:
    table = pl.DataFrame(
        {
            "uid": sorted(uids(4)),
            "concepts": [["a", "b"], None, [], None],
            "image_concepts": [["b"], ["b"], None, None],
        }
    )
    draw = Concepts(cap=1, images="tiny", unmatched="drop").draw(FakeLeft(table))
    assert draw.value is not None
    np.testing.assert_array_equal(draw.value[:2], [1, 2])  # "a" once, "b" in two samples
    assert draw.unjudged is not None
    assert list(draw.unjudged) == [False, False, False, True]
    assert draw.copies[0] == 1


def test_needs_and_sentences(tmp_path: Path) -> None:
    words = vocabulary(tmp_path, "dog")
    assert Concepts(vocabulary=words).needs() == [Score(CaptionConcepts(words, True))]
    both = Concepts(vocabulary=words, images="tiny", fold=False, image_top=2, image_min=0.5)
    assert both.needs() == [
        Score(CaptionConcepts(words, False)),
        Score(ImageConcepts(words, "tiny", 2, 0.5)),
    ]
    said = Concepts.reasons["common_concepts"].format(**settings_of(both), value=120.0)
    assert said == "its rarest concept has 120 samples, and the draw left this one out"


@pytest.mark.parametrize(
    "settings",
    [
        {"cap": 1, "target": 1},
        {"cap": 0},
        {"target": 0},
        {"tail": 1.0},
        {"target": float("nan")},
        {"image_top": 0},
        {"image_min": 2},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"\(found|exclude|every"):
        Concepts(**settings)  # type: ignore[arg-type]


def test_half_a_million_samples_take_no_time() -> None:
    n = 500_000
    rng = np.random.default_rng(0)
    p = 1 / np.arange(1, 5001)
    names = pl.Series([f"concept {i}" for i in range(5000)])
    lists = names[rng.choice(5000, 3 * n, p=p / p.sum())].reshape((n, 3)).cast(pl.List(pl.String))
    left = FakeLeft(pl.DataFrame({"uid": np.arange(n), "concepts": lists}))
    left.chance = lambda seed: rng.random(n)  # type: ignore[method-assign]
    for rule in (Concepts(cap=100), Concepts(target=100)):
        started = time.process_time()
        rule.draw(left)
        assert time.process_time() - started < 3
