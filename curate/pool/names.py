"""Other people's names for what a sample has, and what their columns and arrays stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ALIASES: Mapping[str, tuple[str, ...]] = {
    "uid": ("uid",),
    "url": ("url", "URL", "image_url", "img_url"),
    "caption": ("caption", "text", "TEXT", "alt", "alt_text", "top_caption"),
    "original_width": ("original_width", "WIDTH"),
    "original_height": ("original_height", "HEIGHT"),
    "sha256": ("sha256", "SHA256"),
}
"""The machine's names, and the names that files have for them, in order of preference."""


@dataclass(frozen=True)
class Published:
    """Where DataComp's metadata holds one model's work: a similarity column, and two arrays of the npz."""

    similarity: str
    image: str
    text: str


PUBLISHED: Mapping[str, Published] = {
    "ViT-L-14/openai": Published("clip_l14_similarity_score", "l14_img", "l14_txt"),
    "ViT-B-32/openai": Published("clip_b32_similarity_score", "b32_img", "b32_txt"),
}


def machine_names(columns: Iterable[str]) -> dict[str, str]:
    """The machine's name of each column of a file, to the file's own; a column without one keeps its name."""
    there = list(columns)
    renamed = {source: name for name in ALIASES if (source := column_in(there, name))}
    return {renamed.get(column, column): column for column in there}


def column_in(columns: Iterable[str], name: str) -> str | None:
    """The column of a file that holds what the machine calls `name`, or None."""
    there = set(columns)
    return next((c for c in ALIASES.get(name, (name,)) if c in there), None)
