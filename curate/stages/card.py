"""The dataset card of a subset: README.md in the form that dataset hosts read, with what it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate.baselines import RECIPES, SOURCE, URL, nearest
from curate.scales import Scale, datacomp_command, training_command
from curate.scales import times as said

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGER = ((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"))

SAME = frozenset({"scale", "language_model", "synsets", "wordnet"})
"""Settings of a recipe that say where its published files are, and leave it what it is."""

VIRTUAL = (
    " They are not here: `index` says where each lies in the pool's own tars, which must stay as they are, and "
    "`curate.sampling` streams them."
)


@dataclass(frozen=True)
class Facts:
    """What a card tells; counts are of samples."""

    scale: Scale
    seed: int
    pool_kind: str
    pool_samples: int
    pool_identity: str
    selection: str
    recipe: Any
    rules: Sequence[str]
    funnel: Sequence[Mapping[str, Any]]
    selected: int
    outside: int
    kept: int
    copies: int
    shards: int
    missing: Mapping[str, int]
    pattern: str
    """The new shards as a brace pattern, relative to the card."""
    recipe_name: str = ""
    """What the selection was asked for with `--recipe`."""
    shuffled: bool = False
    faces: str = ""
    """What was done with faces, where something was, in sentences."""
    virtual: bool = False
    """Whether the shards are an index of the pool's own tars."""

    @property
    def share(self) -> float:
        """The part of the pool, as far as the scale takes it, that was selected."""
        size = self.scale.pool_size or self.pool_samples
        return (self.selected - self.outside) / max(min(self.pool_samples, size), 1)


def card(facts: Facts) -> str:
    """The text of README.md, front matter first; the same facts give the same bytes."""
    scale = facts.scale
    repeats = scale.repeats(facts.copies)
    told = [
        ("samples of the pool", facts.pool_samples),
        ("selected", facts.selected),
        *([("of these outside of the scale's pool", facts.outside)] if facts.outside else []),
        *([("of these without an image here", sum(facts.missing.values()))] if facts.missing else []),
        ("kept", facts.kept),
        *([("written, copies counted", facts.copies)] if facts.copies != facts.kept else []),
        ("shards", facts.shards),
    ]
    pieces = [
        _front(facts),
        f"# {facts.selection} at {scale.name}\n",
        "Image-text pairs for training CLIP-like models, chosen from a larger pool by `curate`. "
        + (facts.faces or "The bytes of an image are those that the pool holds.")
        + (VIRTUAL if facts.virtual else "")
        + (" The samples are in an order by chance, over all shards." if facts.shuffled else "")
        + "\n",
        "## Counts\n",
        _table(("", "number"), told),
        f"\nMade of a {facts.pool_kind} pool, identity `{facts.pool_identity[:16]}`, by the selection "
        f"`{facts.selection}`; seed {facts.seed}.\n",
        "## How the samples were chosen\n",
        *([f"{i}. `{rule}`" for i, rule in enumerate(facts.rules, 1)]),
        "",
        _table(("rule", "in", "dropped", "unjudged", "left"), [_line(entry) for entry in facts.funnel]),
        "\nThe recipe, as it was read:\n",
        "```json\n" + json.dumps(facts.recipe, indent=1, ensure_ascii=False, sort_keys=True) + "\n```\n",
    ]
    if facts.missing:
        pieces += [
            "## Selected, but without an image here\n",
            _table(("cause", "samples"), facts.missing.items()),
            "\nTheir uids and causes are in `missing.parquet`.\n",
        ]
    times = said(repeats)
    pieces += [
        "## Training\n",
        f"The scale `{scale.name}` sees {scale.samples_seen:,} samples, so each of these about "
        f"{times} {'time' if times == '1' else 'times'}. With open_clip, in this folder:\n",
        "```bash\n" + training_command(scale, facts.pattern) + "\n```\n",
        "With DataComp's scripts:\n",
        "```bash\n" + datacomp_command(scale, facts.pattern if facts.virtual else ".") + "\n```\n",
        *_published(facts),
        "## Licence\n",
        "The list of URLs and captions is under its publisher's licence. Each image stays under its own: what its "
        "owner permits was not checked.\n",
    ]
    return "\n".join(pieces)


def _front(facts: Facts) -> str:
    size = next((name for limit, name in (*_SIZES, *_LARGER) if facts.copies < limit), "n>1T")
    data = "index/*.parquet" if facts.virtual else "shards/*.tar"
    lines = [
        "license: other",
        "license_name: per-image",
        "task_categories:\n- zero-shot-image-classification\n- image-to-text",
        "tags:\n- webdataset\n- clip\n- curate",
        f"size_categories:\n- {size}",
        f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {data}",
    ]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _published(facts: Facts) -> list[str]:
    """What the nearest of DataComp's baselines reached, with the source."""
    found = nearest(facts.scale.name, _baseline(facts.recipe_name), facts.share)
    if found is None:
        return []
    model, smaller = found.baseline, facts.pool_samples < (facts.scale.pool_size or 0)
    return [
        "## Published scores\n",
        f"The nearest of DataComp's baselines at `{model.scale}` is `{RECIPES}{model.recipe}`: {found.by}. "
        f"Trained on it, `{model.model}` reaches\n",
        "| zero-shot | score |\n| --- | ---: |\n"
        f"| ImageNet-1k, accuracy | {model.imagenet:.4f} |\n"
        f"| average over DataComp's 38 data sets | {model.average:.4f} |\n",
        f"Source: [{SOURCE}]({URL}). They are the scores of that training, no forecast for this one"
        + (
            f": its pool had {facts.scale.pool_size:,} samples, this one has {facts.pool_samples:,}."
            if smaller
            else "."
        )
        + "\n",
    ]


def _baseline(asked: str) -> str:
    """The shipped recipe in what was asked for with `--recipe`; nothing where settings make another of it."""
    name, _, settings = asked.partition(":")
    keys = {setting.partition("=")[0].rpartition(".")[2] for setting in settings.split(",") if setting}
    return name if keys <= SAME else ""


def _line(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        "`" + str(entry["text"]).replace("|", "\\|") + "`",
        entry["in"],
        sum(entry["dropped"].values()),
        sum(entry["unjudged"].values()),
        entry["left"],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
