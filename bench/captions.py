"""Captions like those of the web, made up: what words cost to look up and languages to tell apart."""

from __future__ import annotations

import numpy as np

ENGLISH = (
    "the of and a in to for with on by from at is new white black women men home red blue photo free best set "
    "dog cat house car old wood table wedding girl garden kitchen dress vintage design large small green leather "
    "shoes gold flowers map poster print art book silver summer winter kids cotton chair cake stock image how "
    "your our this that more about 2019 sale online hotel room city street view beach park mountain river sunset"
)
OTHER = (
    "der die das und mit von auf ein eine haus hund rot alt neu bild le la les de des un une avec pour maison "
    "chien rouge vieux el los con para casa perro rojo viejo nuevo foto il gli per cane rosso och med hus "
    "\u0438 \u0432 \u043d\u0430 \u0434\u043e\u043c \u0441\u043e\u0431\u0430\u043a\u0430"
)
ENGLISH_SHARE, RARE, INFLECTED = 0.55, 0.2, 0.1
"""Of captions; of words that hardly repeat (names, numbers of goods); of words with an ending or a comma."""
ENDINGS = ("s", ",", "ing", "'s", ".")


def captions(rng: np.random.Generator, count: int) -> list[str]:
    """`count` captions of 3 to 16 words; the more frequent the word, the earlier it stands in its list."""
    lists = [ENGLISH.split(), OTHER.split()]
    made = []
    for english in (rng.random(count) < ENGLISH_SHARE).tolist():
        known = lists[0 if english else 1]
        n = int(rng.integers(3, 17))
        places = (len(known) * rng.random(n) ** 2).astype(int).tolist()
        words = [known[place] for place in places]
        for at, chance in enumerate(rng.random(n).tolist()):
            if chance < RARE:
                words[at] = _rare(int(rng.integers(1 << 40)))
            elif chance < RARE + INFLECTED:
                words[at] += ENDINGS[at % len(ENDINGS)]
        made.append(" ".join(words).capitalize())
    return made


def _rare(number: int) -> str:
    """A word that is likely to stand nowhere else: half of them look like names, half like numbers of goods."""
    if number % 2:
        return f"{number % 100_000}-{chr(65 + number % 26)}"
    letters = []
    while number:
        number, place = divmod(number, 100)
        letters.append("bcdfghklmnprstvwz"[place % 17] + "aeiou"[place % 5])
    return "".join(letters[:4]).capitalize()
