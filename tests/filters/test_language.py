"""language: which detector says it, and what the result says of that."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from curate import assets
from curate.errors import InputError
from curate.filter_api import File, Score, settings_of
from curate.filters import _language
from curate.filters._language import Language, LanguageByGcld3
from curate.filters.language import InLanguage
from curate.recipe import parse_rule
from tests.datacomp.assets import language_model

from .fakes import FakeFacts, FakeFigures, batch, judged

SHARED = Path(__file__).resolve().parents[3] / "shared"
LID = SHARED / "data" / "fasttext-lid" / "lid.176.ftz"


GOLDEN = [0.995827, 0.998905, 0.689617, 0.858991, 0.858991, 0.941499, 0.858991, 0.858991]


@dataclass(frozen=True)
class Guess:
    language: str
    probability: float
    is_reliable: bool = False


class Identifier:
    """Stands in for gcld3's: English where the text has `the`."""

    made: list[tuple[int, int]]
    asked: list[str]

    def __init__(self, *, min_num_bytes: int, max_num_bytes: int) -> None:
        self.made.append((min_num_bytes, max_num_bytes))

    def FindLanguage(self, *, text: str) -> Guess:  # noqa: N802 - gcld3's name
        self.asked.append(text)
        return Guess("en", 0.5) if "the" in text else Guess("und", 0.0)


@pytest.fixture
def gcld3(monkeypatch: pytest.MonkeyPatch) -> type[Identifier]:
    module = ModuleType("gcld3")
    Identifier.made, Identifier.asked = [], []
    module.NNetLanguageIdentifier = Identifier  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gcld3", module)
    return Identifier


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> File:
    """What the asset of fastText's model is taken from."""
    (tmp_path / "lid.bin").write_bytes(b"a model")
    found = File.at(tmp_path / "lid.bin")
    monkeypatch.setattr(assets, "find", lambda name, variant=None: (found.path, found.sha256))
    return found


@pytest.fixture
def no_gcld3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcld3", None)


def test_gcld3_is_asked_as_laion2b_asks_it(gcld3: type[Identifier]) -> None:
    assert (LanguageByGcld3.name, LanguageByGcld3.version) == ("language-gcld3", 1)
    got = LanguageByGcld3().open("cpu")(batch(3, {"caption": ["the\ndog\r\n", "", "ein hund"]}))
    assert gcld3.made == [(0, 1000)]
    assert gcld3.asked == ["the dog\r ", "", "ein hund"]
    assert got == {"language": ["en", "und", "und"], "language_probability": [0.5, 0.0, 0.0]}
    assert set(got) == set(LanguageByGcld3.columns)


def test_gcld3_itself_where_it_is_installed() -> None:
    pytest.importorskip("gcld3", reason="gcld3 is not installed")
    captions = ["This is a photo of a dog on the beach", "Dies ist ein Foto von einem Hund am Strand", ""]
    got = LanguageByGcld3().open("cpu")(batch(3, {"caption": captions}))
    assert got["language"][:2] == ["en", "de"]
    assert got["language"][2] not in ("en", "de")


def test_auto_takes_gcld3_where_it_loads(gcld3: type[Identifier], caplog: pytest.LogCaptureFixture) -> None:
    settled = InLanguage(detector="auto").settle(FakeFacts())
    assert settled == InLanguage(detector="gcld3")
    assert settled.needs() == [Score(LanguageByGcld3())]
    assert not caplog.records


def test_auto_without_gcld3_is_fasttext_and_says_so(
    no_gcld3: None, model: File, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        settled = InLanguage(detector="auto").settle(FakeFacts())
    assert (settled.detector, settled.language_model) == ("fasttext", model)
    assert settled.needs() == [Score(Language(model))]
    [record] = caplog.records
    assert "gcld3 is not installed, so fastText says the languages" in record.message
    assert settings_of(settled)["detector"] == "fasttext", "the recipe that is stored says it"
    caplog.clear()
    named = InLanguage(detector="auto", language_model=model).settle(FakeFacts())
    assert (named, caplog.records) == (settled, [])


def test_gcld3_that_is_not_there_is_refused(no_gcld3: None) -> None:
    assert not _language.has_gcld3()
    with pytest.raises(
        InputError, match=r"^rule language: detector=gcld3 wants the package gcld3, which does not load here"
    ):
        parse_rule("language:detector=gcld3").settle(FakeFacts())


def test_the_default_is_fasttext_without_a_word(model: File, caplog: pytest.LogCaptureFixture) -> None:
    assert InLanguage().settle(FakeFacts()).needs() == [Score(Language(model))]
    assert not caplog.records


def test_the_first_guess_counts_whatever_its_probability() -> None:
    frame = pl.DataFrame({"language": ["de", "en", None], "language_probability": [0.1, 0.99, None]})
    rule = InLanguage("de")
    assert judged(rule, frame) == ["kept", "caption_language", None]
    assert list(rule.keep(FakeFigures(frame))) == list(rule.values()) == list(rule.reasons)
    said = rule.reasons["caption_language"].format(**settings_of(rule), value=0.987)
    assert said == "the caption's likeliest language by fasttext is not 'de' (probability 0.99)"


def test_settings_that_make_no_sense(model: File) -> None:
    with pytest.raises(ValueError, match="language is a code such as en"):
        InLanguage("")
    with pytest.raises(ValueError, match="language_model goes with detector=fasttext"):
        InLanguage(detector="gcld3", language_model=model)


def test_golden_values_of_version_1(tmp_path: Path) -> None:
    """By a made-up model that counts the words it knows, and gives the end of a line to German."""
    scorer = Language(File.at(language_model(tmp_path / "lid.bin")))
    assert (Language.name, Language.version) == ("language", 1)
    captions = ["the dog", "der hund", "the\nhund", "", "xyzzy", "the dog the cat le chat", "\0", " \t "]
    got = scorer.open("cpu")(batch(len(captions), {"caption": captions}))
    assert got["language"] == ["en", "de", "de", "de", "de", "en", "de", "de"]
    assert np.array(got["language_probability"]) == pytest.approx(GOLDEN, abs=2e-6)


def test_a_process_loads_a_model_once_for_all_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    if not LID.exists():
        pytest.skip("no fastText model in ../shared")
    import fasttext

    loaded: list[str] = []
    load = fasttext.load_model
    monkeypatch.setattr(fasttext, "load_model", lambda path: (loaded.append(path), load(path))[1])
    _language._fasttext.cache_clear()
    for _ in range(3):
        Language(File.at(LID)).open("cpu")
    assert loaded == [str(LID)]
