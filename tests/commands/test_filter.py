"""`curate filter`, `score` and `rules` as commands: the funnel, the JSON, the plan, the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.cli import curate
from tests.pools import make_metadata, make_pool


def metadata(folder: Path, scores: list[float | None], name: str = "0" * 32, start: int = 0) -> None:
    make_metadata(
        folder,
        [
            {
                "uid": f"{start + i:032x}",
                "url": f"u{i}",
                "text": "one two three four",
                "clip_l14_similarity_score": score,
            }
            for i, score in enumerate(scores)
        ],
        name,
    )


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    metadata(tmp_path / "pool", [0.1, 0.2, 0.3, 0.4, None])
    return tmp_path / "pool"


def test_the_funnel(pool: Path) -> None:
    ran = curate("filter", "--pool", pool, "--rule", "clipscore:min=0.15", "--rule", "random:n=2", "--name", "mine")
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0] == ["rule", "in", "dropped", "unjudged", "left"]
    body = [line for line in lines[1:] if line and not line[0].startswith("(")]
    assert body == [
        ["clipscore:min=0.15", "5", "1", "1", "3"],
        ["below_min", "1"],
        ["no_value", "1"],
        ["random:n=2", "3", "1", "0", "2"],
        ["not_drawn", "1"],
        ["total", "5", "2", "1", "2"],
        ["selection", "mine:", str(pool / "selections" / "mine")],
    ]
    assert "ViT-L-14/openai" in ran.out  # which model's numbers they were, and where from
    assert "column" in ran.out
    again = curate(
        "filter", "--pool", pool, "--rule", "clipscore:min=0.15", "--rule", "random:n=2", "--name", "mine"
    )
    assert "selection mine (as before): " in again.out


def test_the_json(pool: Path) -> None:
    ran = curate("filter", "--pool", pool, "--rule", "clipscore:top=0.4", "--json")
    told = ran.json
    assert told["format"] == 1
    assert told["counts"] == {"samples": 5, "kept": 2, "dropped": 2, "unjudged": 1}
    assert told["funnel"][0]["dropped"] == {"below_top": 2}
    assert told["funnel"][0]["unjudged"] == {"no_value": 1}
    folder = Path(told["folder"])
    assert json.loads((folder / "selection.json").read_text())["funnel"] == told["funnel"]
    assert len(np.load(folder / "uids.npy")) == 2
    assert folder.name == told["name"]


def test_a_recipe_of_a_file(pool: Path) -> None:
    file = pool.parent / "strict.toml"
    file.write_text('[[rule]]\nuse = "clipscore"\nmin = 0.35\n')
    ran = curate("filter", "--pool", pool, "--recipe", file, "--json")
    assert ran.json["counts"]["kept"] == 1


def test_parts_that_fail_are_named_and_the_others_go_on(pool: Path) -> None:
    (pool / "metadata" / "broken.parquet").write_bytes(bytes(200))
    ran = curate("filter", "--pool", pool, "--rule", "clipscore:min=0.15")
    assert ran.code == 3
    assert "total" in ran.out
    assert "curate: curate filter: parts failed: broken (" in ran.err
    assert "hint: " in ran.err


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["--rule", "clipscore", "--name", "../out"], "../out", None),
        (["--rule", "clipscore", "--scale", "smal"], "no scale 'smal'", "did you mean 'small'?"),
        (
            ["--rule", "clipscore:model=ViT-B-32/openai,source=column"],
            "no column similarity of ViT-B-32/openai",
            None,
        ),
        (
            ["--rule", "dedup:keep=size"],
            "no column 'size' (found: caption, clip_l14_similarity_score, uid, url)",
            None,
        ),
        (["--rule", "dedup:model=tiny"], "has no shards, so no pixels", "curate download"),
        ([], "has no rule", "curate filter --rule clipscore"),
    ],
)
def test_input_that_is_wrong(pool: Path, arguments: list[str], said: str, hint: str | None) -> None:
    ran = curate("filter", "--pool", pool, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert hint is None or f"hint: {hint}" in ran.err
    assert not list(pool.rglob("uids.npy"))


def test_a_pool_that_is_not_there(tmp_path: Path) -> None:
    ran = curate("filter", "--pool", tmp_path / "nowhere", "--rule", "clipscore")
    assert ran.code == 2
    assert f"{tmp_path / 'nowhere'}" in ran.err
    assert "hint: " in ran.err


@pytest.mark.parametrize("command", [("filter", "--rule", "random:n=1"), ("status",), ("embed", "--model", "tiny")])
def test_a_pool_without_a_name_is_not_the_folder_that_a_command_runs_in(
    pool: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """So it would be of a shell variable that is not set."""
    monkeypatch.chdir(pool)
    before = sorted(pool.rglob("*"))
    for words in (("--pool", ""), ("--pool", pool, "--work", "")):
        ran = curate(*command, *words)
        assert (ran.code, ran.out) == (2, "")
        option = words[-2]
        assert f"curate: {option}: names no folder (found '')\nhint: {option} . is this folder" in ran.err
    assert sorted(pool.rglob("*")) == before


# --- what a rule needs ------------------------------------------------------------------------------------

TINY = "clipscore:model=tiny,top=0.5"


def test_filter_makes_what_its_rules_need(tmp_path: Path) -> None:
    make_pool(tmp_path, n_shards=2, rows=4, fails=lambda shard, row: "http_404" if row == 3 else None)
    planned = curate("filter", "--pool", tmp_path, "--rule", TINY, "--dry-run", "--json", "--workers", 0)
    assert planned.code == 0, planned.err
    (work,) = planned.json["plan"]
    assert (work["work"], work["samples"], work["pixels"]) == ("embed tiny", 8, True)
    assert work["command"] == f"curate embed --pool {tmp_path} --model tiny"
    assert 0 < work["seconds"] < 60
    assert not (tmp_path / "embeddings").exists()

    refused = curate("filter", "--pool", tmp_path, "--rule", TINY, "--no-compute", "--workers", 0)
    assert refused.code == 2
    assert "needs embed tiny on 8 samples" in refused.err
    assert f"hint: curate embed --pool {tmp_path} --model tiny" in refused.err

    ran = curate("filter", "--pool", tmp_path, "--rule", TINY, "--json", "--workers", 0)
    assert ran.code == 0, ran.err
    assert "curate filter: embed tiny on 8 samples, about " in ran.err
    assert ran.json["counts"] == {"samples": 8, "kept": 4, "dropped": 2, "unjudged": 2}
    assert ran.json["funnel"][0]["unjudged"] == {"http_404": 2}

    planned = curate("filter", "--pool", tmp_path, "--rule", TINY, "--dry-run", "--workers", 0)
    assert planned.out == "nothing to compute: the rules can run at once\n"


def test_long_work_wants_a_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate.stages import needs

    make_pool(tmp_path, n_shards=1, rows=2)
    monkeypatch.setattr(needs, "ASK_FROM", 0.0)
    ran = curate("filter", "--pool", tmp_path, "--rule", TINY, "--workers", 0)
    assert ran.code == 2
    assert "this wants a yes" in ran.err
    assert "--yes" in ran.err
    ran = curate("filter", "--pool", tmp_path, "--rule", TINY, "--workers", 0, "--yes")
    assert ran.code == 0, ran.err


def test_score_computes_ahead(tmp_path: Path) -> None:
    make_pool(tmp_path, n_shards=1, rows=2)
    ran = curate("score", "--pool", tmp_path, "--rule", TINY, "--workers", 0)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[1].split() == ["embed", "tiny", "2", "2", "0"]
    assert curate("score", "--pool", tmp_path, "--rule", TINY, "--workers", 0).out == "nothing to compute\n"
    assert not (tmp_path / "selections").exists()


# --- rules ------------------------------------------------------------------------------------------------


def test_rules_lists_them_all() -> None:
    ran = curate("rules")
    assert [line.split()[0] for line in ran.out.splitlines()] == [
        "basic",
        "clipscore",
        "concepts",
        "dedup",
        "image_based",
        "language",
        "nsfw",
        "random",
        "text_based",
        "uids",
        "watermark",
    ]
    assert list(curate("rules", "--json").json["rules"]) == [line.split()[0] for line in ran.out.splitlines()]


def test_the_page_of_a_rule() -> None:
    ran = curate("rules", "clipscore")
    for word in ("settings", "reasons", "below_min", "least cosine, -1..1", "top=0.3"):
        assert word in ran.out
    told: dict[str, Any] = curate("rules", "random", "--json").json
    assert told["rule"] == "random"
    assert [s["name"] for s in told["settings"]] == ["fraction", "n", "seed", "of"]
    assert told["reasons"] == {"not_drawn": "not drawn under seed {seed}"}
    ran = curate("rules", "clipscor")
    assert ran.code == 2
    assert "hint: did you mean 'clipscore'?" in ran.err
