"""The files that DataComp's baselines read, made up: small, the same on every machine, nothing published in them.

The language model and the WordNet are written in the formats of fastText and of WordNet 3.0, so that both their
code and ours read them with the usual libraries.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

DIM = 768
CENTROIDS = 50
PARTS = 5
"""Files that the ImageNet vectors come in, as DataComp's do."""

WORDS: Mapping[str, str] = {
    "en": "a an the of on in with and is are dog dogs dog's Dog Dogs DOG dog, (dog) cat cats woman womens lady "
    "ladies photo picture table geese goose blue red quickly ran runs running church churches box boxes knife "
    "knives bank hot_dog hot new old very love lovings painted for sale abc cafe man men mens a.m. dr. plant",
    "de": "ein eine der die das und ist hund katze auf dem tisch mit von bild foto frau alt neu sehr rot blau",
    "fr": "un une le la les et est chien chat sur avec image femme vieux nouveau tres rouge bleu",
}
"""What the language model knows. A word of one language outweighs the end of line, which is German."""
_END_OF_LINE = 0.25

_MAGIC, _VERSION = 793712314, 12
_SUPERVISED, _SOFTMAX = 3, 3
_WORD, _LABEL = 0, 1


def language_model(file: Path) -> Path:
    """A fastText model that counts the words it knows of three languages; without any, German."""
    labels = list(WORDS)
    words = [(word, label) for label in labels for word in WORDS[label].split()]
    vectors = np.zeros((1 + len(words), len(labels)), np.float32)
    vectors[0, labels.index("de")] = _END_OF_LINE
    for row, (_, label) in enumerate(words, 1):
        vectors[row, labels.index(label)] = 1
    entries = [("</s>", _WORD), *((word, _WORD) for word, _ in words), *((f"__label__{x}", _LABEL) for x in labels)]
    with file.open("wb") as out:
        out.write(struct.pack("<2i", _MAGIC, _VERSION))
        # dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate, t
        out.write(struct.pack("<12id", len(labels), 5, 1, 1, 5, 1, _SOFTMAX, _SUPERVISED, 0, 0, 0, 100, 1e-4))
        out.write(struct.pack("<3i2q", len(entries), 1 + len(words), len(labels), len(entries), -1))
        for text, kind in entries:
            out.write(text.encode() + b"\0" + struct.pack("<qb", 1, kind))
        for matrix in (vectors, 10 * np.eye(len(labels), dtype=np.float32)):
            out.write(struct.pack("<?2q", False, *matrix.shape) + matrix.tobytes())
    return file


@dataclass(frozen=True)
class _Synset:
    name: str
    words: str
    """Lemmas, divided by white space."""
    target: bool = False
    """Whether it is on the list of synsets."""


_NOUNS = (
    _Synset("dog", "dog domestic_dog", True),
    _Synset("cat", "cat", True),
    _Synset("goose", "goose", True),
    _Synset("woman", "woman", True),
    _Synset("lady", "lady", True),
    _Synset("blue", "blue"),
    _Synset("church", "church"),
    _Synset("bank_river", "bank"),
    _Synset("bank_money", "bank", True),
    _Synset("sausage", "hot_dog", True),
    _Synset("kelvin", "k", True),
    _Synset("table", "table", True),
    _Synset("workforce", "men"),
    _Synset("man", "man", True),
    _Synset("doctor", "dr.", True),
    _Synset("run_noun", "run"),
    _Synset("bee", "bee", True),
    _Synset("bees", "bees"),
    _Synset("cafe", "café", True),
)
_VERBS = (
    _Synset("run", "run", True),
    _Synset("love", "love", True),
    _Synset("paint", "paint"),
    _Synset("be", "be exist"),
)
_ADJECTIVES = (
    _Synset("blue_adjective", "blue", True),
    _Synset("new", "new", True),
    _Synset("old", "old"),
    _Synset("hot", "hot", True),
)
_SATELLITES = frozenset({"new"})
_ADVERBS = (_Synset("quickly", "quickly", True), _Synset("before_noon", "a.m.", True), _Synset("very", "very"))
_POS: Sequence[tuple[str, str, Sequence[_Synset], str]] = (
    ("noun", "n", _NOUNS, "geese goose\nknives knife\nmen man\n"),
    ("verb", "v", _VERBS, "are be\nis be\nran run\nwas be\n"),
    ("adj", "a", _ADJECTIVES, "older old\n"),
    ("adv", "r", _ADVERBS, ""),
)
_LEXNAMES = ("adj.all", "adj.pert", "adv.all", "noun.Tops")


def wordnet(file: Path) -> Path:
    """A WordNet of a few synsets as a zip with one folder `wordnet`, as NLTK publishes the real one."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, text in _database().items():
            out.writestr(zipfile.ZipInfo(f"wordnet/{name}", (1980, 1, 1, 0, 0, 0)), text)
    return file


def synsets(file: Path) -> Path:
    """The list of synsets that a caption has to name one of, a WordNet id (`n` and 8 digits) a line."""
    found = [
        f"n{offset:08d}\n"
        for suffix, pos, entries, _ in _POS
        for synset, offset in zip(entries, _data(suffix, pos, entries)[1], strict=True)
        if synset.target
    ]
    file.write_text("".join(found))
    return file


def _database() -> dict[str, str]:
    files = {"lexnames": "".join(f"{n:02d}\t{name}\t{1}\n" for n, name in enumerate(_LEXNAMES)), "cntlist.rev": ""}
    senses = []
    for suffix, pos, entries, exceptions in _POS:
        files[f"data.{suffix}"], offsets = _data(suffix, pos, entries)
        where: dict[str, list[int]] = {}
        for synset, offset in zip(entries, offsets, strict=True):
            for word in synset.words.split():
                where.setdefault(word, []).append(offset)
        files[f"index.{suffix}"] = "".join(
            f"{word} {pos} {len(at)} 0 {len(at)} 0 {' '.join(f'{o:08d}' for o in at)}  \n"
            for word, at in sorted(where.items())
        )
        number = "nvar".index(pos) + 1
        senses += [f"{w}%{number}:03:00:: {o:08d} {n} 0\n" for w, at in where.items() for n, o in enumerate(at, 1)]
        files[f"{suffix}.exc"] = exceptions
    return {**files, "index.sense": "".join(sorted(senses))}


def _data(suffix: str, pos: str, entries: Iterable[_Synset]) -> tuple[str, list[int]]:
    """The lines of a part of speech, and where each synset's begins, which is its number."""
    # heads of different length, so that no two parts of speech share a number
    text = f"  1 WordNet 3.0 Copyright of nobody: made up for tests{'.' * ord(pos)}\n"
    offsets = []
    for synset in entries:
        offsets.append(len(text.encode()))
        kind = "s" if synset.name in _SATELLITES else pos
        words = synset.words.split()
        listed = " ".join(f"{word} 0" for word in words)
        # a satellite has to name an adjective that it is like: the first
        likes = f"001 & {offsets[0]:08d} a 0000" if kind == "s" else "000"
        frames = " 00" if pos == "v" else ""
        text += (
            f"{offsets[-1]:08d} 03 {kind} {len(words):02x} {listed} {likes}{frames} | {synset.name}, {suffix}  \n"
        )
    return text, offsets


def sparse(rng: np.random.Generator, rows: int) -> npt.NDArray[np.float16]:
    """Vectors of length 1 whose products with `centroids` are exact in float32, in any order of summing."""
    vectors = np.zeros((rows, DIM), np.float16)
    for row in vectors:
        row[rng.permutation(DIM)[:16]] = rng.choice(np.array([-0.25, 0.25], np.float16), 16)
    return vectors


def centroids() -> npt.NDArray[np.float32]:
    """Centroids (50, 768) of unlike lengths: the nearest by inner product is often not the nearest by distance.

    Two are the same, one is zero.
    """
    rng = np.random.default_rng(1)
    steps = rng.integers(-16, 17, (CENTROIDS, DIM)) * rng.integers(1, 5, (CENTROIDS, 1))
    found = (steps / 64).astype(np.float32)
    found[31] = found[7]
    found[12] = 0
    return found


def imagenet() -> list[npt.NDArray[np.float16]]:
    """The vectors that stand for ImageNet's, in as many files as DataComp's; they hit part of the centroids."""
    return np.array_split(sparse(np.random.default_rng(2), 17), PARTS)
