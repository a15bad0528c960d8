"""Every baseline of DataComp as a recipe, on every pool: the bytes of our uid list are those of its code."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.commands.cli import curate

from . import assets, expected
from .cases import CASES, POOLS, Case
from .metadata import MadePool
from .pools import MAKERS

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PUBLISHED = {
    "fasttext-lid": SHARED / "fasttext-lid" / "lid.176.ftz",
    "imagenet21k-synsets": SHARED / "imagenet-synsets" / "imagenet21k_goog_synsets.txt",
}
WORDNET = Path(os.environ.get("CURATE_ASSETS", SHARED / "wordnet")) / "wordnet.zip"
"""nltk_data's package, if somebody has put it there."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[MadePool, Path]]:
    """A pool by its name, and where it lies; made once."""
    folder = tmp_path_factory.mktemp("pools")
    pools: dict[str, MadePool] = {}

    def get(name: str) -> tuple[MadePool, Path]:
        if name not in pools:
            pools[name] = MAKERS[name]()
            pools[name].write(folder / name / "metadata")
        return pools[name], folder / name

    return get


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The made-up assets by the names that `--asset` takes."""
    folder = tmp_path_factory.mktemp("assets")
    np.save(folder / "centroids.npy", assets.centroids())
    np.save(folder / "targets.npy", np.concatenate(assets.imagenet()))
    return {
        "fasttext-lid": assets.language_model(folder / "language.bin"),
        "wordnet": assets.wordnet(folder / "wordnet.zip"),
        "imagenet21k-synsets": assets.synsets(folder / "synsets.txt"),
        "centroids": folder / "centroids.npy",
        "imagenet-targets": folder / "targets.npy",
    }


NEEDED: Mapping[str, tuple[str, ...]] = {
    "basic_filter": ("fasttext-lid",),
    "text_based": ("fasttext-lid", "wordnet", "imagenet21k-synsets"),
    "image_based": ("fasttext-lid", "centroids", "imagenet-targets"),
    "image_based_intersect_clip_score": ("fasttext-lid", "centroids", "imagenet-targets"),
}


def kept(case: Case, folder: Path, files: Mapping[str, Path]) -> bytes:
    """The uid list that `curate filter` writes for a case."""
    given = [f"--asset={name}={files[name]}" for name in NEEDED.get(case.baseline, ())]
    name = f"{case.baseline}-{len(list((folder / 'selections').glob('*')))}"
    ran = curate("filter", "--pool", folder, "--workers", 0, "--recipe", case.recipe, "--name", name, *given)
    assert ran.code == 0, ran.err
    return (folder / "selections" / name / "uids.npy").read_bytes()


def agree(case: Case, part: str, made: Callable[[str], tuple[MadePool, Path]], files: Mapping[str, Path]) -> None:
    """Assert that the two uid lists are the same file; `part` of the stored results says whose assets are meant."""
    pool, folder = made(case.pool)
    theirs = expected.kept(pool.uids, case.name, part)
    assert kept(case, folder, files) == expected.file_bytes(theirs)


@pytest.mark.parametrize("name", POOLS)
def test_the_pool_is_the_one_that_their_code_saw(name: str) -> None:
    for part, stored in expected.load().items():
        assert stored["pools"][name] == MAKERS[name]().digest, part


@pytest.mark.parametrize("case", [c for c in CASES if c.baseline != "laion2b"], ids=lambda c: c.name)
def test_kept_are_the_uids_that_their_code_keeps(
    case: Case, made: Callable[[str], tuple[MadePool, Path]], files: dict[str, Path]
) -> None:
    agree(case, "made_up", made, files)


@pytest.mark.skipif(importlib.util.find_spec("gcld3") is None, reason="gcld3 is not installed: laion2b's detector")
@pytest.mark.parametrize("case", [c for c in CASES if c.baseline == "laion2b"], ids=lambda c: c.name)
def test_laion2b_keeps_what_their_code_keeps(
    case: Case, made: Callable[[str], tuple[MadePool, Path]], files: dict[str, Path]
) -> None:
    agree(case, "made_up", made, files)


@pytest.mark.skipif(not PUBLISHED["fasttext-lid"].is_file(), reason="no published language model in ../shared")
@pytest.mark.parametrize("case", [c for c in CASES if c.asset and c.baseline != "text_based"], ids=lambda c: c.name)
def test_with_the_published_language_model(
    case: Case, made: Callable[[str], tuple[MadePool, Path]], files: dict[str, Path]
) -> None:
    agree(case, "published", made, {**files, **PUBLISHED})


@pytest.mark.skipif(
    not WORDNET.is_file() or not PUBLISHED["imagenet21k-synsets"].is_file(),
    reason="no wordnet.zip in $CURATE_ASSETS, or no list of synsets in ../shared",
)
@pytest.mark.parametrize("case", [c for c in CASES if c.baseline == "text_based"], ids=lambda c: c.name)
def test_with_the_published_wordnet(
    case: Case, made: Callable[[str], tuple[MadePool, Path]], files: dict[str, Path]
) -> None:
    agree(case, "published", made, {**files, **PUBLISHED, "wordnet": WORDNET})


def test_the_made_up_wordnet_is_read_as_the_real_one_is(files: dict[str, Path]) -> None:
    """Its lines begin where the index says, as WordNet's do."""
    with zipfile.ZipFile(files["wordnet"]) as packed:
        for suffix in ("noun", "verb", "adj", "adv"):
            data = packed.read(f"wordnet/data.{suffix}")
            for line in packed.read(f"wordnet/index.{suffix}").decode().splitlines():
                lemma, *_, offset = line.split()
                assert data[int(offset) :].startswith(offset.encode()), line
                assert f" {lemma} ".encode() in data[int(offset) :].split(b"\n")[0], line
