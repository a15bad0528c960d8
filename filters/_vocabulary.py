"""Concept vocabularies, and the search for their entries in captions as MetaCLIP defines it.

Substring matching of Xu et al., "Demystifying CLIP Data" (arXiv 2309.16671): the caption is put between
spaces, `, . ; : ? ! `` and the backtick get a space on either side, tabs and line ends become spaces, and an
entry is found where it stands between two spaces. So an entry that holds one of these marks is never found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curate.filter_api import File, InputError

_SPACED = str.maketrans({mark: f" {mark} " for mark in ",.;:?!`"} | dict.fromkeys("\t\r\n", " "))


@dataclass(frozen=True)
class Vocabulary:
    """Concepts in the file's order; each is found by any of its forms, the first of which is its name."""

    forms: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts' names."""
        return tuple(forms[0] for forms in self.forms)

    @classmethod
    def read(cls, file: File) -> Vocabulary:
        """The vocabulary in `file`: one concept a line, further forms of it (plurals, synonyms) after tabs;
        or a JSON list of entries, as MetaCLIP's metadata. Raises InputError where it holds none."""
        text = file.read_text()
        lines = _json_lines(file, text) if text.lstrip().startswith("[") else text.splitlines()
        concepts: dict[str, tuple[str, ...]] = {}
        for line in lines:
            forms = tuple(dict.fromkeys(form.strip() for form in line.split("\t") if form.strip()))
            if forms:
                concepts[forms[0]] = tuple(dict.fromkeys(concepts.get(forms[0], ()) + forms))
        if not concepts:
            raise InputError(str(file.path), "holds no concept", hint="write one a line")
        return cls(tuple(concepts.values()))

    def finder(self, *, fold: bool) -> Callable[[str], list[str]]:
        """A function from a caption to the names of the concepts in it, each once, in the vocabulary's order.

        With `fold` captions and entries are compared without regard to case; MetaCLIP regards it.
        """
        import ahocorasick

        of_key: dict[str, list[int]] = {}
        for concept, forms in enumerate(self.forms):
            for form in forms:
                key = f" {form.casefold() if fold else form} "
                if concept not in of_key.setdefault(key, []):
                    of_key[key].append(concept)
        automaton = ahocorasick.Automaton()
        for key, concepts in of_key.items():
            automaton.add_word(key, concepts)
        automaton.make_automaton()
        names = self.names

        def find(caption: str) -> list[str]:
            text = spaced(caption.casefold() if fold else caption)
            found = {concept for _, concepts in automaton.iter(text) for concept in concepts}
            return [names[concept] for concept in sorted(found)]

        return find


def spaced(caption: str) -> str:
    """The caption as entries are searched in it: words and marks between spaces."""
    return f" {caption.translate(_SPACED)} "


def _json_lines(file: File, text: str) -> Sequence[str]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise InputError(str(file.path), f"starts as a JSON list but is none ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise InputError(str(file.path), "is JSON, but not a list of strings")
    return [entry.replace("\t", " ") for entry in entries]
