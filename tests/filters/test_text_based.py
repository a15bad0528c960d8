"""text_based: nltk's first synset of each token as DataComp asks for it, on made-up data and on WordNet's own."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from curate.errors import InputError
from curate.filter_api import Column, File, Score, settings_of
from curate.filters import _synsets
from curate.filters._language import Language
from curate.filters._synsets import ListedSynset, database, first_synset, listed
from curate.filters.text_based import TextBased

from .fakes import FakeFacts, FakeFigures, batch, judged
from .wordnet import make_wordnet

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def wordnet(tmp_path: Path) -> File:
    make_wordnet(tmp_path / "wordnet.zip")
    return File.at(tmp_path / "wordnet.zip")


def synsets(path: Path, *ids: int | str) -> File:
    path.write_text("".join(f"{i if isinstance(i, str) else f'n{i:08d}'}\n" for i in ids))
    return File.at(path)


# --- one word ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "part", "base"),
    [
        ("dog", "n", "dog"),
        ("DOG", "n", "dog"),
        ("hound", "n", "dog"),
        ("dogs", "n", "dog"),
        ("mice", "n", "mouse"),
        ("ice_cream", "n", "ice_cream"),
        # nouns before verbs, whichever is commoner
        ("run", "n", "run"),
        ("ran", "v", "run"),
        ("leaning", "v", "lean"),
        ("gladly", "r", "gladly"),
        ("reddest", None, ""),
        ("redest", "a", "red"),
        # endings are undone until a form is known, a part of speech at a time
        ("glasseses", "n", "glass"),
        ("less", "n", "le"),
        ("discusses", "v", "discuss"),
        ("leanings", "v", "lean"),
        ("ssss", "n", "s"),
        # an irregular form is undone as it is listed, or not at all
        ("elves", None, ""),
        ("dog,", None, ""),
        ("dog's", None, ""),
        ("zebra", None, ""),
        ("", None, ""),
        ("\0", None, ""),
        ("\u0130", None, ""),
    ],
)
def test_the_first_synset_of_a_word(tmp_path: Path, word: str, part: str | None, base: str) -> None:
    offsets = make_wordnet(tmp_path / "w.zip")
    assert first_synset(File.at(tmp_path / "w.zip"))(word) == (offsets[part][base] if part else -1)


def test_nltk_reads_the_same_synsets_from_the_zip(wordnet: File) -> None:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    archive, folder = database(wordnet)
    with archive:
        reader = _synsets._reader(archive, folder)
        for word in ("dog", "run", "mice", "gladly"):
            [offset, *_] = reader.synsets(word)
            part = next(p for p in "nvar" if reader.synsets(word, p))
            synset = WordNetCorpusReader.synset_from_pos_and_offset(reader, part, offset)
            assert (synset.offset(), synset.pos()) == (offset, part)


@pytest.mark.parametrize("folder", ["", "wordnet/", "corpora/wordnet/"])
def test_the_files_may_be_in_any_folder_of_the_zip(tmp_path: Path, folder: str) -> None:
    offsets = make_wordnet(tmp_path / "w.zip", folder=folder)
    assert first_synset(File.at(tmp_path / "w.zip"))("cats") == offsets["n"]["cat"]


# --- a caption --------------------------------------------------------------------------------------------


def test_golden_values_of_version_1(tmp_path: Path, wordnet: File) -> None:
    offsets = make_wordnet(tmp_path / "w.zip")["n"]
    scorer = ListedSynset(wordnet, synsets(tmp_path / "ids", offsets["dog"], offsets["mouse"]))
    captions = [
        "a dog",
        "two mice and a DOG",
        "dog, cat",
        "the\u00a0hounds\u2003ran",
        "the\u200bdog",
        "",
        " \n ",
        "a cat",
        "adog",
        "\x1cdog\x1f",
        "x" * 2000,
        "s" * 2000 + " dog",
    ]
    assert (ListedSynset.name, ListedSynset.version) == ("synset", 1)
    got = scorer.open("cpu")(batch(len(captions), {"caption": captions}))
    assert got["synset_word"] == ["dog", "mice", "", "hounds", "", "", "", "", "", "dog", "", "dog"]
    dog, mouse = offsets["dog"], offsets["mouse"]
    assert got["synset_offset"] == [dog, mouse, -1, dog, -1, -1, -1, -1, -1, dog, -1, dog]
    assert set(got) == set(scorer.columns)
    assert scorer.needs() == [Column("caption")]


def test_punctuation_is_taken_off_only_where_asked(tmp_path: Path, wordnet: File) -> None:
    ids = synsets(tmp_path / "ids", make_wordnet(tmp_path / "w.zip")["n"]["dog"])
    captions = ["dog,", "(dog)", "\u201cdog\u201d", "...", "dog's", "hot-dog"]
    as_they_are, stripped = (
        ListedSynset(wordnet, ids, strip).open("cpu")(batch(len(captions), {"caption": captions}))["synset_word"]
        for strip in (False, True)
    )
    assert as_they_are == [""] * 6
    assert stripped == ["dog,", "(dog)", "\u201cdog\u201d", "", "", ""]


def test_only_the_number_is_compared(tmp_path: Path) -> None:
    """A verb's synset meets the noun of that offset in the list, as in DataComp's code."""
    offsets = make_wordnet(tmp_path / "w.zip", {"n": [["dog"]], "v": [["jump"]]})
    assert offsets["v"]["jump"] == offsets["n"]["dog"]
    scorer = ListedSynset(File.at(tmp_path / "w.zip"), synsets(tmp_path / "ids", offsets["n"]["dog"]))
    assert scorer.open("cpu")(batch(1, {"caption": ["they jumped"]}))["synset_word"] == ["jumped"]


def test_every_token_is_looked_up_once_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_synsets, "_MEMO", 3)
    asked: list[str] = []

    def first(word: str) -> int:
        asked.append(word)
        return 7 if word == "dog" else 5

    find = _synsets._finder(first, frozenset([7]), strip=False)
    assert [find(c) for c in ("a dog", "a a dog", "a cat")] == [("dog", 7), ("dog", 7), ("", -1)]
    assert asked == ["a", "dog", "cat"]
    assert find("one more dog") == ("dog", 7)
    assert find("a") == ("", -1)
    assert asked == ["a", "dog", "cat", "one", "more", "dog", "a"]


# --- files ------------------------------------------------------------------------------------------------


def test_a_list_of_ids_is_read_and_checked(tmp_path: Path) -> None:
    assert listed(synsets(tmp_path / "ids", 1740, 2084071, "", "v00001740")) == {1740, 2084071}
    for text, says in [("2084071\n", "line 1 is no WordNet id"), ("n1\nn\u0661\n", "line 2"), ("\n", "holds no")]:
        (tmp_path / "bad").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=rf"bad: .*{says}"):
            listed(File.at(tmp_path / "bad"))


def test_a_zip_that_is_no_wordnet_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    ids = synsets(tmp_path / "ids", 1740)
    (tmp_path / "no.zip").write_bytes(b"PK but no zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "x")
    make_wordnet(tmp_path / "part.zip", without=["adj.exc", "data.verb"])
    for name, says in [
        ("no.zip", "is not a zip"),
        ("other.zip", r"no lexnames, index.noun, data.noun, ..."),
        ("part.zip", r"no data.verb, adj.exc"),
    ]:
        with pytest.raises(InputError, match=rf"{name}: .*{says}") as error:
            TextBased(language="", synsets=ids, wordnet=File.at(tmp_path / name)).settle(FakeFacts())
        assert "nltk_data" in (error.value.hint or "")


@pytest.mark.parametrize("line", ["dog n x\n", "dog n 1 0 2 0 00000001\n", "dog n\n", "\xff\n"])
def test_a_broken_database_is_named(tmp_path: Path, line: str) -> None:
    make_wordnet(tmp_path / "w.zip", without=["index.noun"])
    with zipfile.ZipFile(tmp_path / "w.zip", "a") as archive:
        archive.writestr("wordnet/index.noun", line.encode("latin-1"))
    with pytest.raises(InputError, match=r"w\.zip: is not a WordNet database \("):
        first_synset(File.at(tmp_path / "w.zip"))


# --- the rule ---------------------------------------------------------------------------------------------


def test_the_rule_asks_for_the_word_before_the_language(tmp_path: Path, wordnet: File) -> None:
    ids = synsets(tmp_path / "ids", 1740)
    rule = TextBased(synsets=ids, wordnet=wordnet, language_model=ids).settle(FakeFacts())
    assert rule.needs() == [Score(ListedSynset(wordnet, ids)), Score(Language(ids))]
    frame = pl.DataFrame(
        {
            "synset_offset": pl.Series([1740, -1, 0, None, -1], dtype=pl.Int32),
            "language": ["en", "de", "de", "en", None],
            "language_probability": [0.9, 0.9, 0.9, 0.9, None],
        }
    )
    assert judged(rule, frame) == ["kept", "caption_synset", "caption_language", None, "caption_synset"]
    assert list(rule.keep(FakeFigures(frame))) == list(rule.reasons)
    said = rule.reasons["caption_language"].format(**settings_of(rule), value=0.25)
    assert said == "the caption's likeliest language is not 'en' (probability 0.25)"


def test_without_a_language_nothing_of_fasttext_is_needed(tmp_path: Path, wordnet: File) -> None:
    rule = TextBased(language="", synsets=synsets(tmp_path / "ids", 1), wordnet=wordnet).settle(FakeFacts())
    assert rule.language_model is None
    assert rule.needs() == [Score(ListedSynset(wordnet, rule.synsets))]
    assert rule.values() == {}
    assert ListedSynset.some_rows
    assert Language.some_rows


# --- WordNet itself ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first() -> Callable[[str], int]:
    path = Path(os.environ.get("CURATE_ASSETS", "")) / "wordnet.zip"
    if not path.is_file():
        pytest.skip("no wordnet.zip in $CURATE_ASSETS")
    return first_synset(File.at(path))


def test_look_ups_agree_with_a_table_of_first_senses(first: Callable[[str], int]) -> None:
    """The nouns, which are what ImageNet lists. The table's order of senses is Open English WordNet's, and it has
    words that WordNet 3.0 has not, so that one or two of a hundred differ; see its README."""
    table = SHARED / "wordnet-lemma-first-sense" / "lemma_first_sense_pwn30.tsv"
    if not table.is_file():
        pytest.skip(f"no {table}")
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    nouns = [(lemma.replace(" ", "_"), int(synset[:8])) for lemma, synset in rows if synset.endswith("n")]
    same = sum(first(word) == offset for word, offset in nouns)
    assert len(nouns) > 90_000
    assert same / len(nouns) > 0.97


@pytest.mark.parametrize(
    ("word", "offset"),
    [("dog", 2084071), ("Cats", 2121620), ("tench", 1440764), ("cars", 2958343), ("less", 14221138)],
)
def test_well_known_offsets_of_wordnet_3_0(first: Callable[[str], int], word: str, offset: int) -> None:
    assert first(word) == offset


def test_imagenets_list_has_the_things_it_should() -> None:
    path = SHARED / "imagenet-synsets" / "imagenet21k_goog_synsets.txt"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found = listed(File.at(path))
    assert len(found) == 21_843
    assert {2084071, 2121620, 1440764, 2958343} <= found
