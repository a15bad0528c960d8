"""`curate subset`, `status` and `verify` as commands: what they print, and what they exit with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from curate.cli import app
from curate.errors import CurateError
from tests.pools import make_pool, make_selection, uid_of

Run = Callable[..., Result]


def some_fail(shard: int, row: int) -> str | None:
    return "http_404" if (shard, row) == (0, 1) else None


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Commands in a folder where ./pool has 2 shards of 4 samples and a selection of 3 with an image, 1 without."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CURATE_POOL", raising=False)
    pool = make_pool(tmp_path / "pool", 2, 4, fails=some_fail)
    make_selection(pool, [uid_of(0, 0), uid_of(0, 1), uid_of(1, 2), uid_of(1, 3)])
    return lambda *words: CliRunner().invoke(app, list(words))


def failed(result: Result) -> CurateError:
    assert isinstance(result.exception, CurateError), result.output
    return result.exception


def test_subset(run: Run, tmp_path: Path) -> None:
    result = run("subset", "--scale", "debug", "--workers", "0")
    assert result.exit_code == 0, result.output
    assert [" ".join(line.split()) for line in result.stdout.splitlines()[:6]] == [
        "selection chosen",
        "selected 4",
        "without an image here 1",
        "http_404 1",
        "kept 3",
        "shards 1",
    ]
    assert "debug sees 128,000 samples, each of these about 42,667 times" in result.stdout
    assert (tmp_path / "subset/shards/00000000.tar").is_file()


def test_subset_as_json(run: Run) -> None:
    result = run("subset", "--scale", "debug", "--workers", "0", "--json", "--out", "other")
    told = json.loads(result.stdout)
    assert (told["format"], told["out"], told["kept"], told["missing"]) == (1, "other", 3, {"http_404": 1})


def test_subset_with_require_all_prints_and_fails(run: Run) -> None:
    result = run("subset", "--scale", "debug", "--workers", "0", "--require-all")
    assert "without an image here" in result.stdout
    error = failed(result)
    assert (error.exit_code, error.what) == (3, "1 selected samples have no image here (http_404 1)")


def test_subset_of_what_is_not_there(run: Run) -> None:
    error = failed(run("subset", "--scale", "debug", "--selection", "chosn"))
    assert (error.exit_code, error.what) == (2, "no selection 'chosn' (found: chosen)")
    error = failed(run("subset", "--scale", "mediun"))
    assert (error.exit_code, error.hint) == (2, "did you mean 'medium'?")
    error = failed(run("subset", "--scale", "debug", "--pool", "nowhere"))
    assert (error.exit_code, error.where) == (2, "nowhere")


def test_status_and_verify_of_a_whole_pool(run: Run) -> None:
    result = run("status")
    assert result.exit_code == 0
    assert "shards    2: 7 images stored, 1 failed" in result.stdout
    assert json.loads(run("status", "--json").stdout)["stored"] == 7
    result = run("verify", "--workers", "0")
    assert result.exit_code == 0
    assert result.stdout.startswith("clean: 8 samples")
    assert json.loads(run("verify", "--workers", "0", "--json").stdout)["clean"]


def test_status_and_verify_of_a_broken_pool(run: Run, tmp_path: Path) -> None:
    tar = tmp_path / "pool/shards/00000001.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    result = run("status")
    assert failed(result).exit_code == 3
    assert "00000001.tar has 2,000 of " in result.stdout
    result = run("verify", "--workers", "0")
    assert failed(result).exit_code == 3
    assert "damaged  pool/shards/00000001.tar: has 2,000 bytes, " in result.stdout


def test_a_foreign_file_leaves_the_exit_code(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pool/notes.txt").write_text("mine")
    for command in (["status"], ["verify", "--workers", "0"]):
        result = run(*command)
        assert result.exit_code == 0
        assert "notes.txt" in result.stdout
