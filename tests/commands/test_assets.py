"""`curate assets`, and `--asset NAME=FILE` where rules are applied."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate import assets
from curate.assets import Asset, PublishedFile
from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import Ran, curate
from tests.pools import make_pool

RULE = """
from dataclasses import dataclass, replace
import polars as pl
from curate.filter_api import Column, File, Judge, Score, Scorer, asset, setting

@dataclass(frozen=True)
class Listed(Scorer):
    "Whether the caption is in a list."
    name = "listed"
    version = 1
    columns = {"listed": "Boolean"}
    list: File

    def needs(self):
        return [Column("caption")]

    def open(self, device):
        lines = set(self.list.read_text().splitlines())
        return lambda batch: {"listed": [c in lines for c in batch.columns["caption"]]}

@dataclass(frozen=True)
class Mine(Judge):
    "Keep what is listed."
    reasons = {"unlisted": "the caption is not listed"}
    list: File | None = setting(None, "captions, one a line")

    def settle(self, pool):
        return replace(self, list=asset("imagenet21k-synsets"))

    def needs(self):
        return [Score(Listed(self.list))]

    def keep(self, pool):
        return {"unlisted": pl.col("listed")}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that commands run in, with a small pool in `pool` and a cache in `cache`."""
    make_pool(tmp_path / "pool", 1, 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("CURATE_ASSETS", raising=False)
    (tmp_path / "mine.py").write_text(RULE)
    yield tmp_path
    assets.give({})


def captions() -> list[str]:
    from tests.pools import caption_of

    return [caption_of(0, row) for row in range(3)]


def filtered(*words: str) -> Ran:
    return curate("filter", "--rule", "mine.py", "--workers", "0", "--json", *words)


def put(path: Path, body: bytes) -> tuple[Path, PublishedFile]:
    """A file, and what a publisher would say of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    return path, PublishedFile(path.name, "http://127.0.0.1:9/" + path.name, digest, 100)


# --- --asset ----------------------------------------------------------------------------------------------


def test_the_file_named_is_read_and_its_hash_recorded(here: Path) -> None:
    Path("two.txt").write_text("\n".join(captions()[:2]))
    Path("same.txt").write_bytes(Path("two.txt").read_bytes())
    Path("one.txt").write_text(captions()[2])
    first = filtered("--asset", "imagenet21k-synsets=two.txt")
    succeeded(first)
    assert first.json["counts"]["kept"] == 2
    assert hashlib.sha256(Path("two.txt").read_bytes()).hexdigest() in json.dumps(first.json)
    assert str(here / "two.txt") not in json.dumps(first.json["recipe"])
    same = filtered("--asset", "imagenet21k-synsets=same.txt", "--rule", "mine.py")
    assert same.json["counts"]["kept"] == 2
    other = filtered("--asset", f"imagenet21k-synsets={here / 'one.txt'}")
    assert other.json["counts"]["kept"] == 1
    scores = [p.name for p in (here / "pool" / "scores").iterdir()]
    assert len(scores) == 2, "one for each content, whatever its path"


def test_workers_get_the_file_too(here: Path) -> None:
    Path("one.txt").write_text(captions()[2])
    ran = curate("score", "--rule", "mine.py", "--workers", "1", "--json", "--asset", "imagenet21k-synsets=one.txt")
    succeeded(ran)
    assert [entry["ok"] for entry in ran.json["scores"]] == [3]
    assert filtered("--asset", "imagenet21k-synsets=one.txt").json["counts"]["kept"] == 1


def test_the_next_command_knows_nothing_of_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("one.txt").write_text(captions()[2])
    succeeded(filtered("--asset", "imagenet21k-synsets=one.txt"))
    monkeypatch.setattr(assets, "fetch", lambda asset, file, folder: pytest.fail("as it should, but not here"))
    with pytest.raises(pytest.fail.Exception):
        filtered()


@pytest.mark.parametrize("command", ["filter", "score"])
def test_a_file_that_no_rule_reads_is_named(here: Path, command: str) -> None:
    Path("one.txt").write_text(captions()[2])
    ran = curate(
        *(command, "--rule", "mine.py", "--workers", "0", "--asset", "imagenet21k-synsets=one.txt"),
        *("--asset", "wordnet=one.txt"),
    )
    assert ran.code == 0
    assert ran.err.count("--asset") == 1
    assert "warning: --asset wordnet: no rule of this command reads it" in ran.err


@pytest.mark.parametrize("command", ["filter", "score"])
@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        ("mine.py", "--asset: wants NAME=FILE (found 'mine.py')", "--asset centroids=mine.npy"),
        ("=mine.py", "--asset: wants NAME=FILE (found '=mine.py')", "--asset centroids=mine.npy"),
        ("wordnet=", "--asset: wants NAME=FILE (found 'wordnet=')", "--asset centroids=mine.npy"),
        ("wrdnet=mine.py", "--asset: no published asset 'wrdnet' (found: centroids, ", "did you mean 'wordnet'?"),
        ("xyz=mine.py", "--asset: no published asset 'xyz' (found: centroids, ", "curate assets lists them"),
        ("wordnet=min.py", "min.py: no such file (found there: mine.py)", "did you mean 'mine.py'?"),
        ("wordnet=pool", "--asset wordnet: pool is a folder, not a file", "--asset wordnet=FILE"),
        ("wordnet=mine.py/x", "mine.py/x: cannot be read (Not a directory)", None),
    ],
)
def test_what_asset_cannot_take(here: Path, command: str, given: str, says: str, hint: str | None) -> None:
    before = contents(here)
    refused(curate(command, "--rule", "random:n=1", "--asset", given), says, hint)
    assert contents(here) == before


def test_two_files_where_one_is_wanted(here: Path) -> None:
    two = ("--asset", "wordnet=mine.py", "--asset", "wordnet=mine.py")
    refused(curate("filter", "--rule", "random:n=1", *two), "--asset wordnet: is one file (2 given: ", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(here: Path) -> None:
    Path("mine.py").chmod(0)
    ran = curate("filter", "--rule", "random:n=1", "--asset", "wordnet=mine.py")
    refused(ran, "mine.py: cannot be read (Permission denied)", None)


def test_a_published_file_with_wrong_bytes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_ASSETS", str(here / "given"))
    path, _ = put(here / "given" / "imagenet21k_wordnet_ids.txt", b"n01440764\n")
    before = contents(here)
    found = hashlib.sha256(b"n01440764\n").hexdigest()
    ran = filtered()
    says = f"{path}: is not the published imagenet21k-synsets (its sha256 is {found}, not 66362bde"
    refused(ran, says, "or name one of your own: --asset imagenet21k-synsets=FILE")
    assert contents(here) == before


# --- curate assets ----------------------------------------------------------------------------------------


def test_the_list_says_where_each_lies(here: Path) -> None:
    path, _ = put(here / "cache" / "curate" / "assets" / "small_centroids_l14.pt", b"12345")
    told = {row["asset"]: row for row in curate("assets", "--json").json["assets"]}
    assert told["centroids:small"]["path"] == str(path)
    assert told["centroids:small"]["bytes"] == 5
    assert told["centroids:large"]["path"] is None
    assert told["wordnet"]["licence"]
    ran = curate("assets")
    succeeded(ran)
    lines = ran.out.splitlines()
    assert lines[0].split() == ["asset", "file", "bytes", "licence", "where"]
    assert len(lines) == 1 + sum(len(asset.files) for asset in assets.REGISTRY.values())
    assert [line.split()[0] for line in lines if str(path) in line] == ["centroids:small"]


def test_fetch_checks_what_is_here(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = here / "cache" / "curate" / "assets"
    one, published = put(cache / "one.bin", b"one")
    two, another = put(cache / "two.bin", b"two")
    monkeypatch.setitem(assets.REGISTRY, "pair", Asset("pair", (published, another), "MIT", "a test"))
    ran = curate("assets", "fetch", "pair", "--json")
    succeeded(ran)
    sha256 = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, two)]
    assert [(row["path"], row["sha256"]) for row in ran.json["assets"]] == list(
        zip(map(str, (one, two)), sha256, strict=True)
    )
    assert sha256[0] in curate("assets", "fetch", "pair").out
    two.write_bytes(b"too")
    refused(curate("assets", "fetch", "pair"), f"{two}: is not the published pair (its sha256 is", "remove it")
    two.unlink()
    ran = curate("assets", "fetch", "pair")
    refused(ran, "asset pair: two.bin is not on this machine, and 127.0.0.1 did not give it", "$CURATE_ASSETS")


@pytest.mark.parametrize(
    ("name", "says", "hint"),
    [
        ("wrdnet", "curate assets fetch: no published asset 'wrdnet'", "did you mean 'wordnet'?"),
        ("centroids", "asset centroids: no variant '' (found: large, medium, ", "name one, as in centroids:small"),
        ("centroids:smal", "asset centroids: no variant 'smal'", "did you mean 'small'?"),
        ("wordnet:small", "curate assets fetch: wordnet has no variants (found 'small')", None),
    ],
)
def test_fetch_of_what_there_is_not(here: Path, name: str, says: str, hint: str | None) -> None:
    refused(curate("assets", "fetch", name), says, hint)


@pytest.mark.parametrize("words", [("assets",), ("assets", "fetch")])
def test_help_has_an_example(words: tuple[str, ...]) -> None:
    ran = curate(*words, "--help")
    assert ran.code == 0
    assert "curate assets" in ran.out.split("Example:")[1]
