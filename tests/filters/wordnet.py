"""A little database in WordNet's own file format, made for tests; no word of it is anybody's data."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

NAMES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}

HEADER = "".join(f"  {n} a database made for tests, with nothing of WordNet in it\n" for n in range(1, 30))
"""Indented lines as at the start of WordNet's files, so that no synset lies at offset 0."""

Senses = Mapping[str, Sequence[Sequence[str]]]
"""Part of speech to synsets, each its words; a word's senses are in this order."""

SENSES: Senses = {
    "n": [["dog", "hound"], ["cat"], ["run"], ["s"], ["le"], ["glass"], ["ice_cream"], ["mouse"]],
    "v": [["run"], ["dog"], ["lean"], ["discuss"]],
    "a": [["red"], ["little"]],
    "r": [["gladly"]],
}
IRREGULAR = {"n": {"mice": "mouse", "elves": "elf"}, "v": {"ran": "run"}, "a": {"less": "little"}, "r": {}}


def make_wordnet(
    path: Path,
    senses: Senses = SENSES,
    irregular: Mapping[str, Mapping[str, str]] = IRREGULAR,
    *,
    folder: str = "wordnet/",
    without: Sequence[str] = (),
) -> dict[str, dict[str, int]]:
    """Write the zip `path`; part of speech to each synset's first word to its offset."""
    files = {"lexnames": "".join(f"{n:02d}\tlex.{n}\t1\n" for n in range(45)), "cntlist.rev": "", "index.sense": ""}
    offsets: dict[str, dict[str, int]] = {}
    for part, name in NAMES.items():
        data, index, offsets[part] = HEADER, {}, {}
        for words in senses.get(part, ()):
            offset = len(data)
            offsets[part][words[0]] = offset
            listed = " ".join(f"{word} 0" for word in words)
            frames = " 00" if part == "v" else ""
            data += f"{offset:08d} 03 {part} {len(words):02x} {listed} 000{frames} | made for tests\n"
            for word in words:
                index.setdefault(word, []).append(offset)
        lines = [
            f"{word} {part} {len(found)} 0 {len(found)} 0 {' '.join(f'{o:08d}' for o in found)}\n"
            for word, found in sorted(index.items())
        ]
        files[f"data.{name}"], files[f"index.{name}"] = data, HEADER + "".join(lines)
        files[f"{name}.exc"] = "".join(f"{form} {base}\n" for form, base in irregular.get(part, {}).items())
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            if name not in without:
                archive.writestr(folder + name, text)
    return offsets
