"""Files that were cut, zeroed or lost: named by `status` and `verify`, and the other parts go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import Ran, curate
from tests.pools import make_img2dataset, make_metadata, make_pool, sample_of

HERE = ("--workers", "0")
TAR = "shards/00000001.tar"
TABLE = "shards/00000001.parquet"
INDEX = "shards/00000001.index.parquet"

Harm = Callable[[Path], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def lost(path: Path) -> None:
    path.unlink()


def garbage(path: Path) -> None:
    path.write_bytes(b"{")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 3 shards of 3 samples, embedded, with a selection of all samples."""
    folder = tmp_path_factory.mktemp("whole") / "pool"
    make_pool(folder, 3, 3)
    succeeded(curate("embed", "--model", "tiny", "--pool", folder, *HERE))
    succeeded(curate("filter", "--rule", "clipscore:min=-1", "--pool", folder, *HERE, "--name", "all"))
    return folder


@pytest.fixture
def pool(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "pool")
    return Path("pool")


def failed(ran: Ran, *says: str) -> None:
    """The command ended with 3, its result printed, and all of this in what it says."""
    assert ran.code == 3, ran
    assert ran.out
    assert "Traceback" not in ran.err
    assert ran.err.splitlines()[-2].startswith("curate: ")
    assert ran.err.splitlines()[-1].startswith("hint: ")
    for text in says:
        assert text in ran.out + ran.err


def named(path: Path) -> None:
    """`status` and `verify` name the file, and write nothing."""
    before = contents(Path("pool"))
    for command in (("status",), ("verify", *HERE)):
        failed(curate(*command), str(path))
        told = curate(*command, "--json")
        assert str(path) in told.out
        assert told.json["format"] == 1
    assert contents(Path("pool")) == before


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        (TAR, cut),
        (TAR, lost),
        (TABLE, zeros),
        (TABLE, cut),
        (TABLE, lost),
        (INDEX, zeros),
        (INDEX, lost),
        ("shards/_receipts/00000001.json", garbage),
        ("embeddings/tiny/00000001.image.npy", cut),
        ("embeddings/tiny/00000001.image.npy", zeros),
        ("embeddings/tiny/00000001.text.npy", lost),
        ("embeddings/tiny/00000001.parquet", zeros),
        ("embeddings/tiny/00000001.parquet", lost),
        ("embeddings/tiny/_receipts/00000001.json", zeros),
        ("embeddings/tiny/model.json", garbage),
        ("selections/all/uids.npy", zeros),
        ("selections/all/selection.json", garbage),
        ("selections/all/decisions/00000001.parquet", zeros),
        ("selections/latest.json", garbage),
        ("sources.json", garbage),
    ],
)
def test_damage_is_named(pool: Path, name: str, harm: Harm) -> None:
    harm(pool / name)
    named(pool / name)


def test_a_flipped_byte_is_found_by_verify(pool: Path) -> None:
    data = bytearray((pool / TAR).read_bytes())
    data[data.index(b"\xff\xd8") + 300] ^= 1
    (pool / TAR).write_bytes(data)
    succeeded(curate("status"))
    failed(
        curate("verify", *HERE), f"{TAR}: bytes changed", "1 images are not those that were stored (000000010000)"
    )


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        (TAR, cut),
        (TAR, lost),
        (TABLE, zeros),
        (TABLE, lost),
        (INDEX, zeros),
        ("shards/_receipts/00000001.json", garbage),
    ],
)
def test_the_other_parts_go_on(pool: Path, name: str, harm: Harm) -> None:
    harm(pool / name)
    shutil.rmtree(pool / "embeddings")
    ran = curate("embed", "--model", "tiny", *HERE, "--json")
    failed(ran, "embed: 1 of 3 parts failed (00000001)")
    assert (ran.json["ok"], list(ran.json["failed_parts"])) == (6, ["00000001"])

    ran = curate("filter", "--rule", "clipscore:min=-1", *HERE, "--json")
    failed(ran, "parts failed: 00000001")
    counts = ran.json["counts"]
    assert counts["kept"] == 6
    assert counts["samples"] == counts["kept"] + counts["unjudged"]

    ran = curate("subset", "--scale", "debug", "--selection", "all", "--allow-stale", *HERE, "--json")
    failed(ran, "3 selected samples should be in the pool and are not (shards 00000001)")
    assert (ran.json["kept"], ran.json["missing"]) == (6, {"part_failed": 3})
    succeeded(curate("verify", "--pool", "subset", *HERE))
    kept = np.load("subset/uids.npy")
    assert len(kept) == 6


def test_a_tar_of_zeros_is_no_source(pool: Path) -> None:
    zeros(pool / TAR)
    failed(curate("verify", *HERE), f"{pool / TAR}: bytes changed", "lacks 3 samples")
    ran = curate("subset", "--scale", "debug", "--samples-per-shard", "3", *HERE)
    failed(ran, f"{TAR}: does not hold", "1 of 3 shards could not be made (00000001)")
    assert sorted(p.name for p in Path("subset/shards").glob("*.tar")) == ["00000000.tar", "00000002.tar"]


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("00000001.image.npy", cut),
        ("00000001.text.npy", zeros),
        ("00000001.parquet", zeros),
        ("00000001.parquet", lost),
        ("_receipts/00000001.json", garbage),
    ],
)
def test_what_was_computed_is_computed_again(pool: Path, name: str, harm: Harm) -> None:
    before = contents(pool / "embeddings")
    path = pool / "embeddings" / "tiny" / name
    harm(path)
    succeeded(curate("embed", "--model", "tiny", *HERE))
    after = contents(pool / "embeddings")
    receipt = "tiny/_receipts/00000001.json"  # holds clock readings
    assert {k: v for k, v in after.items() if k != receipt} == {k: v for k, v in before.items() if k != receipt}
    succeeded(curate("verify", *HERE))


@pytest.mark.parametrize("harm", [zeros, garbage])
def test_a_selection_that_cannot_be_read(pool: Path, harm: Harm) -> None:
    folder = pool / "selections" / "all"
    harm(folder / "selection.json")
    for command in (("subset", "--scale", "debug", *HERE), ("report",)):
        refused(curate(*command), "all/selection.json: cannot be read (", "run the same curate filter again", 3)
    succeeded(curate("filter", "--rule", "clipscore:min=-1", *HERE, "--name", "all"))
    harm(folder / "decisions" / "00000001.parquet")
    ran = curate("report")
    assert ran.code == 0
    assert "A part is not shown: pool/selections/all/decisions/00000001.parquet: cannot be read (" in ran.err
    succeeded(curate("filter", "--rule", "clipscore:min=-1", *HERE, "--name", "all"))
    harm(folder / "uids.npy")
    ran = curate("subset", "--scale", "debug", *HERE)
    refused(ran, "all/uids.npy: cannot be read (", "run the same curate filter again", 3)
    assert not Path("subset").exists()
    harm(pool / "selections" / "latest.json")
    refused(curate("report"), "selections/latest.json: cannot be read (", "--selection NAME", 3)


@pytest.fixture
def crawl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What img2dataset left, in `pool`, where commands run."""
    monkeypatch.chdir(tmp_path)
    make_img2dataset(Path("pool"), 3, 3)
    return Path("pool")


@pytest.mark.parametrize(("name", "harm"), [("00001.tar", cut), ("00001.parquet", zeros)])
def test_damage_of_what_others_made(crawl: Path, name: str, harm: Harm) -> None:
    harm(crawl / name)
    named(crawl / name)
    ran = curate("embed", "--model", "tiny", *HERE, "--json")
    failed(ran, str(crawl / name), "embed: 1 of 3 parts failed (00001)")
    assert ran.json["ok"] == 6
    ran = curate("filter", "--rule", "clipscore:min=-1", *HERE, "--json")
    failed(ran, "parts failed: 00001")
    assert ran.json["counts"]["kept"] == 6


def test_damage_of_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for shard, name in enumerate("ab"):
        rows = [{k: sample_of(shard, row)[k] for k in ("uid", "url", "caption")} for row in range(3)]
        make_metadata(Path("pool"), rows, name * 32)
    whole = curate("filter", "--rule", "dedup", *HERE, "--json")
    succeeded(whole)
    assert whole.json["counts"]["samples"] == 6
    path = Path("pool/metadata") / ("b" * 32 + ".parquet")
    zeros(path)
    named(path)
    ran = curate("filter", "--rule", "dedup", *HERE, "--json")
    failed(ran, f"parts failed: {'b' * 32}")
    assert ran.json["counts"]["samples"] == 3
    assert list(ran.json["parts"]) == ["a" * 32]
    assert len(np.load(Path(ran.json["folder"]) / "uids.npy")) == 3
