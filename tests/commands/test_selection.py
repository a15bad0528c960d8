"""`curate selection` and uid lists as commands: counts, overlap, what is written, what is told of foreign uids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from curate import selection, uid_files, uid_lists, uids
from curate.pool import open_pool
from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import curate
from tests.pools import make_metadata, make_pool, uid_of

WORDS = [f"{n:032x}" for n in range(10)]
FOREIGN = "f" * 32


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with a pool of two metadata files, uids 0 to 9, in `pool`."""
    for name, some in (("0", WORDS[::2]), ("1", WORDS[1::2])):
        rows = [{"uid": uid, "url": f"http://images.test/{uid}.jpg", "text": "one two three"} for uid in some]
        make_metadata(tmp_path / "pool", rows, name * 32)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(path: str, numbers: Sequence[int], *others: str) -> str:
    """A file with the uids of these numbers, as they stand, and others."""
    words = [*(WORDS[n] for n in numbers), *others]
    uid_files.write(Path(path), uids.to_pairs(pa.array(words)))
    return path


def imported(name: str, numbers: Sequence[int]) -> str:
    succeeded(curate("selection", "import", listed(f"{name}.npy", numbers), "--name", name))
    return name


def numbers_of(name_or_file: str) -> list[int]:
    """The uids of a selection or a list, as numbers, copies included."""
    return [int(uid, 16) for uid in uids.to_hex(selection.load(open_pool("pool").layout, name_or_file).uids())]


def decided(name: str) -> pl.DataFrame:
    """uid, copies and reason of every sample of the pool."""
    pool = open_pool("pool")
    chosen = selection.load(pool.layout, name)
    frames = [
        chosen.decisions(part.name).with_columns(pl.Series("uid", uids.to_hex(pool.uids(part))))
        for part in pool.parts
    ]
    return pl.concat(frames, how="vertical_relaxed").sort("uid")


# --- operations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "kept"), [("and", [2, 2, 3]), ("or", [0, 1, 2, 2, 2, 3, 3, 4]), ("minus", [0, 1])])
def test_an_operation_is_a_selection_with_a_decision_on_every_sample(here: Path, how: str, kept: list[int]) -> None:
    a, b = imported("a", [0, 1, 2, 2, 3]), listed("b.txt", [2, 2, 2, 3, 3, 4])
    ran = curate("selection", how, a, b, "--name", "made", "--json")
    succeeded(ran)
    told = ran.json
    assert [(o["name"], o["uids"], o["samples"]) for o in told["operands"]] == [("a", 4, 5), ("b.txt", 3, 6)]
    (shared,) = told["overlap"]
    assert (shared["both"], shared["only_a"], shared["only_b"], shared["jaccard"]) == (2, 2, 1, 0.4)
    assert (told["result"]["uids"], told["result"]["samples"]) == (len(set(kept)), len(kept))
    assert (told["foreign"], told["selection"]) == (0, "made")
    assert numbers_of("made") == kept
    table = decided("made")
    assert table["copies"].to_list() == [kept.count(n) for n in range(10)]
    dropped = table.filter(pl.col("copies") == 0)
    assert set(dropped["reason"].cast(pl.String)) == {"not_listed"}
    made = json.loads((here / "pool" / "selections" / "made" / "made_of.json").read_text())
    assert (made["operation"], [o["name"] for o in made["operands"]]) == (how, ["a", "b.txt"])
    succeeded(curate("verify"))
    assert "foreign" not in curate("status").out


def test_the_tables_for_people(here: Path) -> None:
    ran = curate("selection", "and", listed("a.npy", [0, 1, 2]), listed("b.npy", [1, 2, 3, 3]), "--name", "made")
    succeeded(ran)
    assert [line.split() for line in ran.out.splitlines() if line] == [
        ["list", "uids", "samples"],
        ["a.npy", "3", "3"],
        ["b.npy", "3", "4"],
        ["a.npy", "and", "b.npy", "2", "2"],
        ["A", "B", "both", "only", "A", "only", "B", "Jaccard"],
        ["a.npy", "b.npy", "2", "1", "1", "0.5000"],
        ["selection", "made:", "pool/selections/made"],
    ]
    assert "b.npy: 1 further copy of 1 uid: a uid counts as often as it stands" in ran.err


def test_three_operands(here: Path) -> None:
    names = [imported("a", [0, 1, 2, 3]), imported("b", [1, 2, 3]), listed("c.npy", [3])]
    assert len(curate("selection", "minus", *names, "--name", "made", "--json").json["overlap"]) == 3
    assert numbers_of("made") == [0]
    assert curate("selection", "or", *names, "--out", "all.npy").code == 0
    assert numbers_of("all.npy") == [0, 1, 2, 3]


def test_the_same_again_is_read_back_and_another_replaces_it(here: Path) -> None:
    a, b = listed("a.npy", [0, 1, 2]), listed("b.npy", [1, 2, 3])
    succeeded(curate("selection", "and", a, b, "--name", "made"))
    before = contents(here / "pool" / "selections" / "made" / "decisions")
    succeeded(curate("selection", "and", a, b, "--name", "made"))
    assert contents(here / "pool" / "selections" / "made" / "decisions") == before
    succeeded(curate("selection", "or", a, b, "--name", "made"))
    assert numbers_of("made") == [0, 1, 2, 3]
    assert len(list((here / "pool" / "selections" / "made").glob("list-*.npy"))) == 1
    succeeded(curate("verify"))


def test_a_name_is_made_of_the_operands(here: Path) -> None:
    told = curate("selection", "and", imported("mine", [1, 2]), listed("some list.npy", [2]), "--json").json
    assert told["selection"].startswith("mine-and-some_list-")
    assert "latest" in curate("selection", "list").out.splitlines()[-1]


def test_a_file_alone_needs_no_pool(here: Path) -> None:
    a, b = listed("a.npy", [0, 1], FOREIGN), listed("b.parquet", [1], FOREIGN)
    ran = curate("selection", "and", a, b, "--out", "both.bin", "--json")
    succeeded(ran)
    assert (ran.json["foreign"], "selection" in ran.json) == (None, False)
    assert uids.to_hex(uid_lists.read("both.bin").pairs) == [WORDS[1], FOREIGN]
    # with a pool named, what it has not is left out
    ran = curate("selection", "and", a, b, "--out", "both.bin", "--pool", "pool", "--json")
    assert (ran.code, ran.json["foreign"]) == (0, 1)
    assert numbers_of("both.bin") == [1]
    assert not (here / "pool" / "selections").exists()


# --- foreign uids -----------------------------------------------------------------------------------------


def test_foreign_uids_are_counted_listed_and_left_out(here: Path) -> None:
    ran = curate("selection", "import", listed("a.npy", [4, 4], FOREIGN), "--name", "a", "--foreign", "gone.txt")
    succeeded(ran)
    assert "warning: a.npy: 1 of its 2 uids are not in pool: left out; gone.txt lists them" in ran.err
    assert Path("gone.txt").read_text() == FOREIGN + "\n"
    assert numbers_of("a") == [4, 4]
    funnel = selection.load(open_pool("pool").layout, "a").funnel
    assert funnel[0]["figures"] == {"listed": 2, "not here": 1, "copies": 3}


def test_strict_refuses_foreign_uids(here: Path) -> None:
    path = listed("a.npy", [4], FOREIGN)
    before = contents(here)
    ran = curate("selection", "import", path, "--name", "a", "--strict")
    refused(ran, "a.npy: 1 of its 2 uids are not in pool", "without --strict")
    assert {k: v for k, v in contents(here).items() if "logs" not in k} == before


# --- in and out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".bin", ".memmap", ".parquet", ".txt"])
def test_export_and_import(here: Path, suffix: str) -> None:
    imported("mine", [1, 5, 5, 7])
    ran = curate("selection", "export", "mine", "--out", f"out{suffix}")
    assert ran.out == f"out{suffix}: 3 uids, 4 with copies\n"
    assert numbers_of(f"out{suffix}") == [1, 5, 5, 7]
    succeeded(curate("selection", "import", f"out{suffix}", "--name", "again"))
    assert numbers_of("again") == [1, 5, 5, 7]
    own = [here / "pool" / "selections" / name / "uids.npy" for name in ("mine", "again")]
    assert own[0].read_bytes() == own[1].read_bytes()


def test_a_selection_with_rows_of_one_uid_comes_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"uid": WORDS[n], "url": f"u{i}", "text": "x"} for i, n in enumerate([0, 1, 1, 2])]
    make_metadata(tmp_path / "pool", rows)
    monkeypatch.chdir(tmp_path)
    recipe = "keep_same_uid = true\n[[rule]]\nuse = 'random'\nn = 4\n"
    Path("all.toml").write_text(recipe)
    succeeded(curate("filter", "--recipe", "all.toml", "--name", "mine"))
    succeeded(curate("selection", "export", "mine", "--out", "mine.npy"))
    succeeded(curate("selection", "import", "mine.npy", "--name", "again"))
    assert numbers_of("again") == [0, 1, 1, 2]
    assert decided("again")["copies"].to_list() == [1, 1, 1, 1]


def test_list_names_them_all(here: Path) -> None:
    assert curate("selection", "list").out == "no selection yet: curate filter makes one\n"
    imported("a", [1])
    imported("b", [1, 2])
    assert [line.split() for line in curate("selection", "list").out.splitlines()[1:]] == [
        ["a", "1", "9", "0"],
        ["b", "2", "8", "0", "latest"],
    ]
    assert [s["selection"] for s in curate("selection", "list", "--json").json["selections"]] == ["a", "b"]


# --- the rule, and lists where a selection is named ---------------------------------------------------------


def test_the_rule_keeps_what_stands_in_a_list(here: Path) -> None:
    np.save("theirs.npy", uids.to_pairs(pa.array([WORDS[7], WORDS[2], WORDS[2]])))  # not in order
    ran = curate("filter", "--rule", "uids:file=theirs.npy", "--rule", "random:n=5", "--name", "mine")
    assert ran.code == 0, ran.err
    assert "warning: theirs.npy: is not in uid order; it was sorted here" in ran.err
    assert numbers_of("mine") == [2, 7]  # a sampler below it takes each once
    ran = curate("filter", "--rule", "uids:file=theirs.npy", "--name", "mine")
    assert numbers_of("mine") == [2, 2, 7]
    listed("short.txt", [2], FOREIGN)
    refused(
        curate("filter", "--rule", "uids:file=short.txt,missing=refuse"),
        "short.txt: 1 of its 2 uids are not among the 10 samples left",
        "missing=count",
    )


def test_a_list_in_the_place_of_a_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pool = make_pool(Path("pool"), 2, 3)
    mine = uids.to_hex(pool.uids(pool.parts[0]))[:2]
    uid_files.write(Path("mine.txt"), uids.to_pairs(pa.array([mine[0], mine[1], mine[1], FOREIGN])))
    ran = curate("subset", "--scale", "debug", "--selection", "mine.txt", "--out", "sub", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["selection"], ran.json["selected"], ran.json["kept"]) == ("mine.txt", 3, 2)
    assert (ran.json["samples"], ran.json["missing"]) == (3, {"not_in_pool": 1})
    told = pl.read_parquet("sub/missing.parquet").rows()
    assert told == [(FOREIGN, "not_in_pool")]
    refused(curate("report", "--selection", "mine.txt"), "is a uid list, which holds no decisions", "import")


def test_what_a_list_names_is_told_apart_from_what_is_not_downloaded(here: Path) -> None:
    make_pool(here / "pool", 1, 2)  # beside the metadata, of which no image is here
    listed("mine.txt", [4], FOREIGN, uid_of(0, 0))
    make_metadata(here / "pool", [{"uid": uid_of(0, 0), "url": "u", "text": "x"}], "2" * 32)
    ran = curate("subset", "--scale", "debug", "--selection", "mine.txt", "--out", "sub", "--json")
    assert (ran.json["kept"], ran.json["missing"]) == (1, {"not_downloaded": 1, "not_in_pool": 1})


def test_several_pools(here: Path) -> None:
    make_pool(here / "other", 1, 2)
    pools = ("--pool", "pool", "--pool", "other", "--work", "work")
    path = listed("mine.npy", [1], uid_of(0, 1), FOREIGN)
    assert curate("selection", "import", path, "--name", "mine", "--json", *pools).json["foreign"] == 1
    ran = curate("explain", uid_of(0, 1), *pools)
    assert "part other--00000000, row 1" in ran.out
    assert "selection mine: kept" in ran.out
    assert "selection mine: dropped by uids" in curate("explain", WORDS[2], *pools).out


def test_help_of_every_command_has_an_example() -> None:
    for name in ("list", "and", "or", "minus", "import", "export"):
        ran = curate("selection", name, "--help")
        assert ran.code == 0
        assert f"curate selection {name}" in ran.out.split("Example")[1]
    assert "and" in curate("selection", "-h").out
