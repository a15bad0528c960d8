"""Names that are not there: each is refused with what is, and the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.bad_input.outcomes import contents, refused
from tests.commands.cli import curate
from tests.pools import make_img2dataset, make_pool

POOL_COMMANDS = (
    ("status",),
    ("verify",),
    ("embed", "--model", "tiny"),
    ("score", "--rule", "concepts"),
    ("filter", "--rule", "random:n=2"),
    ("subset", "--scale", "debug"),
    ("report",),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with a small pool in `pool`."""
    make_pool(tmp_path / "pool")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", POOL_COMMANDS, ids=lambda c: c[0])
def test_no_such_pool(here: Path, command: tuple[str, ...]) -> None:
    make_img2dataset(here / "crawl")
    before = contents(here)
    refused(
        curate(*command, "--pool", "pol"), "pol: no such pool (found there: crawl, pool)", "did you mean 'pool'?"
    )
    refused(curate(*command, "--pool", "a/b"), "a/b: no such pool (there is no folder a)", "curate download")
    refused(
        curate(*command, "--pool", "pool/sources.json"), "pool/sources.json: is not a folder", "curate download"
    )
    assert contents(here) == before


@pytest.mark.parametrize("command", POOL_COMMANDS, ids=lambda c: c[0])
def test_a_folder_that_is_no_pool(here: Path, command: tuple[str, ...]) -> None:
    (here / "empty").mkdir()
    refused(
        curate(*command, "--pool", "empty"), "empty: is not a pool (no shards, no metadata, no tars)", "Parquet"
    )
    assert contents(here / "empty") == {}


@pytest.mark.parametrize(
    ("command", "says", "hint"),
    [
        # rules, settings, recipes
        ("filter --rule clipscor", "no rule 'clipscor' (found: basic, clipscore, ", "did you mean 'clipscore'?"),
        ("score --rule watermak", "no rule 'watermak' (found: ", "did you mean 'watermark'?"),
        ("rules dedupe", "no rule 'dedupe' (found: ", "did you mean 'dedup'?"),
        ("filter --rule xyz", "no rule 'xyz' (found: ", "curate rules lists them"),
        ("filter", "has no rule", "curate filter --rule clipscore"),
        (
            "filter --rule random:frac=0.5",
            "rule random: no setting 'frac' (found: fraction, n, ",
            "did you mean 'fraction'?",
        ),
        ("filter --rule random:zzz=0.5", "rule random: no setting 'zzz' (found: ", "curate rules random"),
        ("filter --rule random:n", "--rule random:n: 'n' is not key=value", "curate rules random"),
        (
            "filter --rule random:n=few",
            "rule random: n must be a whole number (found 'few')",
            "curate rules random",
        ),
        ("filter --rule random:n=1,n=2", "n is given twice", "a+b"),
        ("filter --rule random", "rule random: wants either fraction or n", "curate rules random"),
        ("filter --rule clipscore:source=colum", "source 'colum' (found: column, ", "did you mean 'column'?"),
        (
            "filter --recipe qick",
            "no recipe 'qick' (found: balanced, datacomp/basic_filter, ",
            "did you mean 'quick'?",
        ),
        ("filter --recipe mine.tml.toml", "no such recipe (found there: mine.toml)", "did you mean 'mine.toml'?"),
        ("filter --rule mine.pyy.py", "no such rule file (found there: mine.py)", "did you mean 'mine.py'?"),
        ("rules sub/mine.py", "no such rule file (there is no folder sub)", "curate rules lists"),
        # columns
        (
            "filter --rule dedup:keep=hight",
            "rule dedup: no column 'hight' (found: caption, content_type, ",
            "did you mean 'height'?",
        ),
        # models
        ("embed --model tinny", "no model 'tinny' (found: ", "did you mean 'tiny'?"),
        ("embed --model ViT-B-32/opnai", "no weights for ViT-B-32 'opnai' (found: ", "did you mean 'openai'?"),
        ("embed --model ViT-B-33/openai", "no architecture 'ViT-B-33' (found: ", "did you mean 'ViT-B-"),
        ("embed --model ViT-B-32", "model ViT-B-32: no weights are named", "write for instance ViT-B-32/"),
        ("embed --model gone.pt", "no such file (found there: some.pt)", "did you mean 'some.pt'?"),
        (
            "embed --model ViT-B-32 --pretrained som.pt",
            "no such weights file (found there: some.pt)",
            "did you mean 'some.pt'?",
        ),
        ("filter --rule clipscore:model=tinny", "no model 'tinny' (found: ", "did you mean 'tiny'?"),
        ("filter --rule dedup:model=tinny", "no model 'tinny' (found: ", "did you mean 'tiny'?"),
        ("embed --model tiny --precision fp17", "no precision 'fp17' (found: auto, ", "did you mean 'fp16'?"),
        ("embed --model tiny --device cdua", "device cdua: ", "--device cpu"),
        # scales and selections
        ("subset --scale medum", "no scale 'medum' (found: debug, large, medium, ", "did you mean 'medium'?"),
        ("filter --rule random:n=2 --scale smal", "no scale 'smal' (found: ", "did you mean 'small'?"),
        ("download --scale smal --pool new --yes", "no scale 'smal' (found: ", "did you mean 'small'?"),
        ("subset --scale debug", "pool: has no selection yet", "curate filter --rule clipscore"),
        ("report", "pool: has no selection yet", "curate filter --rule clipscore"),
        ("subset --scale debug --selection x", "no selection 'x' (found: none)", "curate filter makes one"),
        ("report --selection ../../x", "no selection '../../x' (found: none)", "curate filter makes one"),
        ("filter --rule random:n=2 --name ../x", "--name: a selection cannot be called '../x'", "no /"),
        ("filter --rule random:n=2 --name x.NPY", "--name: a selection cannot be called 'x.NPY'", "letters"),
        # lists
        (
            "download --source lst.csv --pool new",
            "no such file or folder (found there: ",
            "did you mean 'list.csv'?",
        ),
        (
            "download --source list.csv --pool new --url-col ulr",
            "has no column 'ulr' (found: url, text)",
            "--url-col url",
        ),
        (
            "download --source list.csv --pool new --caption-col txt",
            "has no column 'txt' (found: url, text)",
            "--caption-col text",
        ),
        (
            "download --source list.csv --pool new --verify-hash sha256 md6",
            "no verify hash 'md6' (found: md5, ",
            "did you mean 'md5'?",
        ),
        (
            "download --source list.csv --pool new --verify-hash sha sha256",
            "has no column 'sha' (found: none besides url and caption)",
            "--verify-hash",
        ),
        (
            "download --source list.csv --pool new --resize-mode keep",
            "no resize mode 'keep' (found: ",
            "keep_ratio",
        ),
    ],
)
def test_no_such_name(here: Path, command: str, says: str, hint: str) -> None:
    (here / "mine.toml").write_text('[[rule]]\nuse = "random"\nn = 2\n')
    (here / "mine.py").write_text("")
    (here / "some.pt").write_bytes(b"")
    (here / "list.csv").write_text("url,text\nhttp://images.test/1.jpg,one\n")
    before = contents(here)
    refused(curate(*command.split()), says, hint)
    assert contents(here) == before


def test_a_selection_is_found_by_its_nearest_name(here: Path) -> None:
    assert curate("filter", "--rule", "random:n=2", "--name", "halves").code == 0
    before = contents(here)
    for command in (["subset", "--scale", "debug"], ["report"]):
        ran = curate(*command, "--selection", "halfes")
        refused(ran, "pool: no selection 'halfes' (found: halves)", "did you mean 'halves'?")
    assert contents(here) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["statuss"], "Did you mean 'status'?"),
        (["filter", "--rul", "basic"], "--rule"),
        (["subset"], "Missing option '--scale'"),
        (["filter", "--workers", "-1"], "'--workers'"),
        (["filter", "--seed", "x"], "'--seed'"),
    ],
)
def test_what_is_not_an_option(here: Path, words: list[str], says: str) -> None:
    before = contents(here)
    ran = curate(*words)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert "-h' for help" in ran.err
    assert contents(here) == before
