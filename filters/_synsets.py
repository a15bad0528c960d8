"""WordNet's first sense of each word of a caption: a scorer that finds one of a list of synsets.

nltk reads the database and knows its look-up; what is written here is how DataComp uses it.
"""

from __future__ import annotations

import io
import string
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

from curate.filter_api import Batch, Column, File, InputError, Need, Scorer

PUNCTUATION = string.punctuation + "\u2018\u2019\u201c\u201d\u2026\u2013\u2014\u00ab\u00bb"
"""What `strip` takes off both ends of a token: ASCII's, and typographic quotes, dots and dashes."""

_PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
"""Parts of speech in the order in which nltk lists senses."""
_FILES = ("lexnames", *(f"{kind}.{p}" for p in _PARTS.values() for kind in ("index", "data")))
_EXCEPTIONS = {part: f"{name}.exc" for part, name in _PARTS.items()}
_LONGEST = 1000
"""Characters from which a token is no word: cutting its endings one by one takes time by their square."""
_MOST_BYTES = 1 << 28
_HINT = "give wordnet.zip as nltk_data publishes it"
_MEMO = 1 << 20
"""Distinct tokens that a process remembers, some 100 MB at most."""


@dataclass(frozen=True)
class ListedSynset(Scorer):
    """The first token of a caption whose first WordNet synset is in a list, and that synset's offset.

    Tokens are what `str.split()` gives. A token's first synset is nltk's: nouns before verbs, adjectives, adverbs;
    lower-cased, with irregular forms and endings undone. Only the number of the offset is compared, so that a
    verb can meet a noun's. Without one: an empty word and -1. Tokens over 1,000 characters are no words.
    """

    name: ClassVar[str] = "synset"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"synset_word": "String", "synset_offset": "Int32"}
    rows: ClassVar[int] = 8192
    some_rows: ClassVar[bool] = True

    wordnet: File | None
    """A zip of WordNet's database files, as nltk_data publishes it; None until it is settled."""
    synsets: File | None
    """Lines of WordNet ids, a letter and the offset: n02084071."""
    strip: bool = False
    """Whether punctuation around a token is taken off first."""

    def needs(self) -> list[Need]:
        return [Column("caption")]

    def open(self, device: str) -> Any:
        assert self.wordnet is not None
        assert self.synsets is not None
        find = _finder(first_synset(self.wordnet), listed(self.synsets), strip=self.strip)

        def compute(batch: Batch) -> dict[str, Any]:
            found = [find(caption) for caption in batch.columns["caption"]]
            return {
                "synset_word": [word for word, _ in found],
                "synset_offset": [offset for _, offset in found],
            }

        return compute


def _finder(
    first: Callable[[str], int], wanted: frozenset[int], *, strip: bool
) -> Callable[[str], tuple[str, int]]:
    """A function from a caption to its first token with a listed synset; every distinct token is looked up once."""
    memo: dict[str, int] = {}

    def look_up(token: str) -> int:
        offset = first(token.strip(PUNCTUATION) if strip else token)
        if len(memo) >= _MEMO:
            memo.clear()
        memo[token] = offset = offset if offset in wanted else -1
        return offset

    def find(caption: str) -> tuple[str, int]:
        for token in caption.split():
            offset = memo.get(token)
            if offset is None:
                offset = look_up(token) if len(token) <= _LONGEST else -1
            if offset >= 0:
                return token, offset
        return "", -1

    return find


def listed(file: File) -> frozenset[int]:
    """The offsets of a list of WordNet ids. Raises InputError naming the line that is none."""
    found = set()
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if word := line.strip():
            if word[0] not in "nvars" or not (word[1:].isascii() and word[1:].isdecimal()):
                what = f"line {number} is no WordNet id such as n02084071 (found {word[:40]!r})"
                raise InputError(str(file.path), what)
            found.add(int(word[1:]))
    if not found:
        raise InputError(str(file.path), "holds no WordNet id", hint="write one a line, such as n02084071")
    return frozenset(found)


def database(file: File) -> tuple[zipfile.ZipFile, str]:
    """The zip of WordNet's files, opened, and the folder of it that they are in.

    Raises InputError where it is no zip or lacks one of them.
    """
    try:
        archive = zipfile.ZipFile(file.path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(str(file.path), f"is not a zip ({error})", hint=_HINT) from error
    there = {info.filename: info.file_size for info in archive.infolist()}
    folder = next((n.removesuffix("index.noun") for n in there if n.split("/")[-1] == "index.noun"), "")
    wanted = (*_FILES, *_EXCEPTIONS.values())
    if lacking := [name for name in wanted if folder + name not in there]:
        what = f"is not a WordNet database (no {', '.join(lacking[:3])}{', ...' * (len(lacking) > 3)})"
        raise InputError(str(file.path), what, hint=_HINT)
    if sum(there[folder + name] for name in wanted) > _MOST_BYTES:
        raise InputError(str(file.path), "unpacks to more than 256 MiB, eight times WordNet", hint=_HINT)
    return archive, folder


def first_synset(file: File) -> Callable[[str], int]:
    """A function from a word to the offset of its first synset over all parts of speech, -1 where it has none.

    The look-up of nltk 3.8, which DataComp pins: later ones undo one ending alone, 3.8 goes on until a form is
    in the database (`less`, `les`, `le`) unless the word is in the list of irregular forms.
    """
    from nltk.corpus.reader.wordnet import WordNetError

    archive, folder = database(file)
    try:
        with archive:
            reader = _reader(archive, folder)
            irregular = {part: _first_words(archive.read(folder + n)) for part, n in _EXCEPTIONS.items()}
    except (ValueError, LookupError, AssertionError, StopIteration, WordNetError, zipfile.BadZipFile) as error:
        what = f"is not a WordNet database ({type(error).__name__}: {error})"
        raise InputError(str(file.path), what, hint=_HINT) from error
    endings = {part: reader.MORPHOLOGICAL_SUBSTITUTIONS[part] for part in _PARTS}
    inflected = {part: tuple(old for old, _ in found) for part, found in endings.items()}
    every_ending = tuple({old for found in inflected.values() for old in found})
    every_irregular = frozenset().union(*irregular.values())
    lemmas = frozenset(reader.all_lemma_names())

    def first(word: str) -> int:
        form = word.lower()
        known = form in lemmas
        if not (known or form in every_irregular or form.endswith(every_ending)):
            return -1  # most tokens of the web
        for part in _PARTS:
            if not (known or form in irregular[part] or form.endswith(inflected[part])):
                continue
            found = reader.synsets(form, part)
            forms = [] if found or form in irregular[part] else [form]
            while forms and not found:
                forms = [f[: -len(old)] + new for f in forms for old, new in endings[part] if f.endswith(old)]
                # none of these is in the database: what is found are the forms with one more ending undone
                found = list(chain.from_iterable(reader.synsets(f, part, check_exceptions=False) for f in forms))
            if found:
                return int(found[0])
        return -1

    return first


def _first_words(text: bytes) -> frozenset[str]:
    return frozenset(line.split()[0] for line in text.decode().splitlines() if line.strip())


def _reader(archive: zipfile.ZipFile, folder: str) -> Any:
    """nltk's reader of the database, whose synsets are their offsets alone: nothing else of them is asked."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.data import ZipFilePathPointer

    class Offsets(WordNetCorpusReader):  # type: ignore[misc]  # nltk has no types
        def open(self, file: str) -> Any:
            """From the zip that was hashed; nltk opens by itself only what lies in its own folders."""
            return io.TextIOWrapper(io.BytesIO(archive.read(folder + file)), encoding="utf-8")

        def map_wn(self, version: str = "wordnet") -> None:
            """None: maps to other versions are for other languages."""

        def synset_from_pos_and_offset(self, pos: str, offset: int) -> int:
            return offset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no other languages
        return Offsets(ZipFilePathPointer(archive), None)
