from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path

import polars as pl
import pytest

from curate.errors import InputError
from curate.filter_api import Column, File, Score, settings_of
from curate.filters._captions import count_chars, count_words
from curate.filters._language import Language
from curate.filters.basic import Basic

from .fakes import FakeFacts, FakeFigures, batch, judged

SHARED = Path(__file__).resolve().parents[3] / "shared"
LID = SHARED / "data" / "fasttext-lid" / "lid.176.ftz"
needs_lid = pytest.mark.skipif(not LID.exists(), reason="no fastText model in ../shared")


def samples(**columns: list[object]) -> pl.DataFrame:
    rows = len(next(iter(columns.values())))
    plain: dict[str, list[object]] = {
        "caption": ["a red circle"] * rows,
        "original_width": [640] * rows,
        "original_height": [480] * rows,
        "language": ["en"] * rows,
        "language_probability": [0.9] * rows,
    }
    return pl.DataFrame(plain | columns)


def test_words_and_characters_are_pythons() -> None:
    spaces = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000 and chr(c).isspace()]
    letters = [*"abc\N{LATIN SMALL LETTER E WITH ACUTE}", "\0", "\x1b", "\N{ZERO WIDTH SPACE}", "\ufeff", "漢"]
    letters += ["\N{GRINNING FACE}", "\N{MONGOLIAN VOWEL SEPARATOR}", "\N{COMBINING ACUTE ACCENT}"]
    rng = random.Random(0)
    captions = ["", " ", "\n\n", "a", *spaces]
    captions += ["".join(rng.choices(spaces + letters, k=rng.randrange(15))) for _ in range(20_000)]
    table = pl.DataFrame({"caption": captions}).select(
        words=count_words(pl.col("caption")), chars=count_chars(pl.col("caption"))
    )
    assert table["words"].to_list() == [len(caption.split()) for caption in captions]
    assert table["chars"].to_list() == [len(caption) for caption in captions]


def test_datacomps_boundaries() -> None:
    frame = samples(
        caption=["a bc", "a b c", "a b cd", "ab cd e", "\x1fa\x1fb\x1fcd", "a b cd", "a b cd", "a b cd", "a b cd"],
        original_width=[640, 640, 640, 640, 640, 199, 200, 600, 601],
        original_height=[480, 480, 480, 480, 480, 900, 200, 200, 200],
    )
    assert judged(Basic(), frame) == [
        "caption_chars",
        "caption_chars",
        "kept",
        "kept",
        "kept",
        "image_side",
        "kept",
        "kept",
        "image_aspect",
    ]


def test_two_long_words_are_too_few() -> None:
    assert judged(Basic(), samples(caption=["extraordinary circumstances"])) == ["caption_words"]


def test_language_is_the_first_label_whatever_its_probability() -> None:
    frame = samples(language=["en", "de", None], language_probability=[0.1, 0.9, None])
    assert judged(Basic(), frame) == ["kept", "caption_language", None]


def test_what_is_unknown_is_unjudged_unless_another_condition_is_false() -> None:
    frame = samples(
        caption=[None, None, "a b", "a red circle"],
        original_width=[640, 10, None, None],
        original_height=[480, 10, 480, 480],
    )
    assert judged(Basic(), frame) == [None, "image_side", "caption_chars", None]


def test_values_are_what_the_sentences_show() -> None:
    rule = Basic()
    frame = samples(original_width=[300], original_height=[900])
    shown = frame.select(**rule.values()).row(0, named=True)
    assert list(rule.keep(FakeFigures(frame))) == list(shown) == list(rule.reasons)
    said = {
        reason: sentence.format(**settings_of(rule), value=shown[reason])
        for reason, sentence in rule.reasons.items()
    }
    assert said["image_aspect"] == "the image's longer side is 3.00 times the shorter, over 3.0"
    assert said["caption_words"] == "the caption has 3 words, under 3"


def test_a_condition_that_is_off_reads_nothing() -> None:
    rule = Basic(language="", min_side=0, max_aspect=0)
    assert rule.settle(FakeFacts()) == rule
    assert rule.needs() == [Column("caption")]
    assert judged(rule, samples(original_width=[1]).select("caption")) == ["kept"]
    assert Basic(language="", min_words=0, min_chars=0).needs() == [
        Column("original_width"),
        Column("original_height"),
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"min_words": -1},
        {"max_aspect": 0.5},
        {"max_aspect": float("nan")},
        {"language": "", "min_words": 0, "min_chars": 0, "min_side": 0, "max_aspect": 0},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"\(found|exclude|every"):
        Basic(**settings)  # type: ignore[arg-type]


def test_settle_takes_the_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lid.176.bin").write_bytes(b"not it")
    monkeypatch.setenv("CURATE_ASSETS", str(tmp_path))
    with pytest.raises(InputError, match="is not the published fasttext-lid"):
        Basic().settle(FakeFacts())
    mine = File.at(tmp_path / "lid.176.bin")
    settled = Basic(language_model=mine).settle(FakeFacts())
    assert Score(Language(mine)) in settled.needs()


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"no model at all")
    with pytest.raises(InputError, match=r"x\.bin: is not a fastText model"):
        Language(File.at(tmp_path / "x.bin")).open("cpu")


@needs_lid
def test_languages_as_fasttext_says_one_by_one() -> None:
    import fasttext

    captions = [
        "A man in an orange hat starring at something.",
        "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
        "Un homme avec un chapeau orange regardant\nquelque chose.",
        "何かを見つめているオレンジ色の帽子の男。",
        "",
        "\0\x1f \N{GRINNING FACE}",
        "x" * 100_000,
    ]
    scorer = Language(File.at(LID))
    got = scorer.open("cpu")(batch(7, {"caption": captions}))
    assert got["language"][:4] == ["en", "de", "fr", "ja"]
    model = fasttext.load_model(str(LID))
    for caption, language, probability in zip(captions, got["language"], got["language_probability"], strict=True):
        [(best, label)] = model.f.predict(caption.replace("\n", " ") + "\n", 1, 0.0, "strict")
        assert f"__label__{language}" == label
        assert probability == pytest.approx(min(best, 1.0))
        assert 0 <= probability <= 1
    assert set(got) == set(scorer.columns)


@needs_lid
def test_english_among_four_languages() -> None:
    folder = SHARED / "data" / "multi30k-captions"
    if not folder.exists():
        pytest.skip("no Multi30k captions in ../shared")
    compute = Language(File.at(LID)).open("cpu")
    for language in ("en", "de", "fr"):
        packed = (folder / f"test_2016_flickr.{language}.gz").read_bytes()
        captions = gzip.decompress(packed).decode().splitlines()[:500]
        labels = compute(batch(len(captions), {"caption": captions}))["language"]
        assert labels.count(language) / len(labels) > 0.95
