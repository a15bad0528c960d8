"""The values at which DataComp's baselines change their mind: captions, sizes and scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

SPACES = (
    *("\t", "\n", "\v", "\f", "\r", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2009"),
    *("\u2028", "\u2029", "\u202f", "\u205f", "\u3000"),
)
"""What Python splits at; fastText does at the first five only."""
NO_SPACES = ("\0", "\u200b", "\u180e", "\ufeff", "\u2060")
"""What Python does not split at, and fastText only at the first."""
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
"""One picture of 5 code points."""
TOKENS = tuple(
    " ".join(
        (
            'dog dogs Dogs DOG dog, dog. dog\'s (dog) "dog" dog-dog domestic_dog hot_dog',
            "geese goose womens ladieses dogss dogsss mens men lovings loving ran runs",
            "running blue Blue church churches bank banks k K \u212a dr. dr a.m. am",
            "quickly new newer newest old older olden hot hotter table tables tableses",
            "painted exists is are be bee bees caf\xe9 cafe\u0301 CAF\xc9 caf\xe9s cat",
            "\u0130 \u017f s men's ss \ufb00 d\u043eg \uff44\uff4f\uff47 dog\u200b \ufeffdog",
            "very 123 _ dog_ run woman women boxes knives love loved loveing the",
        )
    ).split(" ")
)
"""Words as WordNet is asked for them: inflected, in other cases, with punctuation, of one part of speech only."""
_LONG = ("a " * 10_000 + "dog", "is " * 400 + "hund " * 400, "the" * 1_000 + " of the", "\xe9" * 600 + " a dog")
CAPTIONS = (
    *("", " ", "\n", "\0", "   ", "a", "dog", "a a a", "a a an", "a an a", "a a  a", "a a a ", " a a a"),
    *("abc an", "abc a an", "abcde", "abcdef", "abcdef ", "abcdef\n", "\nabcdef", "abcdef\ndog", "dog\ndog\ndog"),
    *(f"a dog {FAMILY}", f"a a {FAMILY[:1]}", f"a a {FAMILY[:2]}", f"a {FAMILY}", FAMILY),
    *(FAMILY * 2, f"{FAMILY} dog", "a e\u0301 a", "a \xe9 a", "a \xe9 a.", "\U0001f1e9\U0001f1ea a dog"),
    *("a dog \U0001f469\U0001f3fd\u200d\U0001f680", "ein hund auf dem tisch", "un chien sur la table"),
    *("a dog ein hund", "dog hund", "dog hund chien", "the the hund"),
    *("ein dog mit dogs", "hund hund dog dog dog", "xyzzy plugh", "\u4e00\u53ea\u72d7\u5728\u684c\u5b50\u4e0a"),
    *("\u0441\u043e\u0431\u0430\u043a\u0430 \u043d\u0430 \u0441\u0442\u043e\u043b\u0435", "IMG_0001.JPG"),
    *("a photo of a", "12345 67890 12", "very old very old", "the of and in"),
    *(*_LONG, "A NEW DOG FOR SALE", "a\u0301 dog on a table", "<b>a dog</b> on a table &amp; a cat"),
    *(f"a{s}dog{s}table" for s in SPACES + NO_SPACES),
    *(f"a dog{s}is" for s in SPACES + NO_SPACES),
    *(f"photo{s}abc" for s in SPACES + NO_SPACES),
    *(f"{s}the of{s}" for s in SPACES + NO_SPACES),
    *(f"the{t} {t} of the" for t in ("\0", "\x1c", "\x85")),
    *(f"the {token} of the" for token in TOKENS),
    *(f"the\xa0{token}" for token in TOKENS[:12]),
)
SIZES = (
    *((199, 199), (199, 200), (200, 199), (200, 200), (199, 500), (201, 250), (200, 600), (600, 200), (601, 200)),
    *((200, 601), (602, 200), (300, 900), (900, 300), (901, 300), (1000, 333), (1002, 334), (1003, 334), (0, 0)),
    *((0, 300), (300, 0), (1, 1), (10_000, 3_333), (9_999, 3_333), (10_000, 3_334), (65_500, 21_833), (640, 480)),
)
"""Width and height about the least side of 200 and the greatest ratio of 3."""
CAPTION, SIZE = "a photo of a dog on a table", (640, 480)
"""Such as pass every condition."""


def about(score: float) -> Iterator[float]:
    """A score, what float32 makes of it, and the neighbours of both."""
    single = np.float32(score)
    for near in (single, np.nextafter(single, np.float32(0)), np.nextafter(single, np.float32(1))):
        yield float(near)
    yield from map(float, (score, np.nextafter(score, 0), np.nextafter(score, 1)))
    yield from (round(score, 2) + 1e-5, round(score, 2) - 1e-5)


SCORES = (*dict.fromkeys(itertools.chain(*map(about, (0.3, 0.28, 0.25)))), 0.0, -0.0, -0.1, 1.0, 0.5)
"""Scores about the thresholds that are used."""
