"""DataComp's files, damaged: each costs its part by name, with exit code 3, and the counts lose no sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import uids
from tests.commands.bad_input.outcomes import contents, refused, succeeded
from tests.commands.cli import Ran, curate
from tests.pool.datacomp_folder import files, make, streamed, vectors

HERE = ("--workers", "0")
COLUMN = "clipscore:model=ViT-L-14/openai,min=0.2"
VECTORS = "clipscore:model=ViT-L-14/openai,source=published,min=0.2"
NEAR = "dedup:model=ViT-L-14/openai"
BROKEN = files()[1][0]
"""The file that is damaged: the second of three, of 10 of 40 rows."""
PARQUET, NPZ = Path(f"pool/metadata/{BROKEN}.parquet"), Path(f"pool/metadata/{BROKEN}.npz")
ROWS, ALL = 10, 40


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rewrite(change: Callable[[pa.Table], pa.Table], path: Path = PARQUET) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def as_type(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = [None if v is None else str(v) for v in table[name].to_pylist()]
        made = pa.array(values).cast(kind) if kind == pa.string() else pa.array(range(len(table)), kind)
        return table.set_column(table.column_names.index(name), name, made)

    return change


def filtered(*rules: str) -> Ran:
    return curate("filter", *[w for r in rules for w in ("--rule", r)], "--name", "x", *HERE, "--json")


def costs_its_part(ran: Ran, says: str, *, counted: bool) -> None:
    """It names the part and why, exits 3, and the others are judged; the part's samples count if they are known."""
    assert ran.code == 3, ran
    assert "Traceback" not in ran.err
    error = next(line for line in ran.err.splitlines() if line.startswith("curate: "))
    assert f"parts failed: {BROKEN} (" in error
    assert says in error
    counts = ran.json["counts"]
    assert counts["samples"] == counts["kept"] + counts["dropped"] + counts["unjudged"]
    assert counts["samples"] == (ALL if counted else ALL - ROWS)
    assert counts["unjudged"] == (ROWS if counted else 0)
    assert ran.json["failed_parts"].keys() == {BROKEN}


def npz_with(**changed: Any) -> None:
    arrays = vectors(files()[1][1]) | changed
    streamed(NPZ, {name: array for name, array in arrays.items() if array is not None})


NPZS: dict[str, tuple[Callable[[], None], str]] = {
    "shorter": (lambda: npz_with(l14_img=np.ones((7, 768), np.float16)), "have 7 rows where the part has 10"),
    "longer": (lambda: npz_with(l14_img=np.ones((11, 768), np.float16)), "have 11 rows where the part has 10"),
    "of whole numbers": (
        lambda: npz_with(l14_img=np.ones((10, 768), np.int8)),
        "are no matrix of float16 or float32 (int8, shape (10, 768))",
    ),
    "of doubles": (
        lambda: npz_with(l14_img=np.ones((10, 768))),
        "are no matrix of float16 or float32 (float64, shape (10, 768))",
    ),
    "of one axis": (
        lambda: npz_with(l14_img=np.ones(10, np.float16)),
        "are no matrix of float16 or float32 (float16, shape (10,))",
    ),
    "of objects": (
        lambda: npz_with(l14_img=np.array([{}] * 10)),
        "array 'l14_img' holds objects, which are not read",
    ),
    "narrower": (lambda: npz_with(l14_img=np.ones((10, 512), np.float16)), "have 512 numbers where"),
    "a member missing": (
        lambda: npz_with(l14_img=None),
        "has no array 'l14_img' (found: b32_img, b32_txt, l14_txt, dedup)",
    ),
    "cut short": (lambda: cut(5000), "is not a readable npz"),
    "empty": (lambda: cut(0), "is not a readable npz"),
}


def cut(size: int) -> None:
    NPZ.write_bytes(NPZ.read_bytes()[:size])


@pytest.mark.parametrize("damage", NPZS)
@pytest.mark.parametrize("rule", [VECTORS, NEAR])
def test_an_npz_that_is_damaged(damage: str, rule: str) -> None:
    make(Path("pool"), npz=True, shards=False)
    spoil, says = NPZS[damage]
    spoil()
    before = contents(Path("pool/metadata"))
    ran = filtered(rule)
    costs_its_part(ran, says, counted=True)
    assert ran.json["funnel"][0]["unjudged"] == {"part_failed": ROWS}
    assert contents(Path("pool/metadata")) == before
    # what does not read it does not mind
    succeeded(filtered(COLUMN))
    npz_with()
    ran = filtered(rule)
    succeeded(ran)
    assert ran.json["counts"]["unjudged"] == 0


def test_the_first_npz_is_not_believed_more_than_the_others() -> None:
    make(Path("pool"), npz=True, shards=False)
    stem, rows = files()[0]
    streamed(Path(f"pool/metadata/{stem}.npz"), vectors(rows) | {"l14_img": np.ones((23, 512), np.float16)})
    for rule in (VECTORS, NEAR):
        ran = filtered(rule)
        assert (ran.code, list(ran.json["failed_parts"]), ran.json["counts"]["unjudged"]) == (3, [stem], 23)


def test_an_npz_that_is_not_there() -> None:
    """The vectors are then not the pool's: a choice among some files only must not pass for one of all."""
    make(Path("pool"), npz=True, shards=False)
    NPZ.unlink()
    ran = filtered(NEAR)
    assert f"warning: {BROKEN} has no published vectors of ViT-L-14/openai: no npz" in ran.err
    says = f"has no shards, so no pixels, and lacks published vectors of ViT-L-14/openai ({BROKEN}: no npz)"
    refused(ran, says, "--embeddings")
    assert not Path("pool/selections").exists()
    succeeded(filtered(COLUMN))


@pytest.mark.parametrize(
    ("column", "kind", "says"),
    [
        ("uid", pa.int64(), "column 'uid': row 0: '0' is not 32 hex digits"),
        ("uid", pa.float64(), "column 'uid': row 0: "),
        (
            "clip_l14_similarity_score",
            pa.string(),
            "column 'clip_l14_similarity_score' holds string where numbers are wanted",
        ),
        ("original_width", pa.string(), "column 'original_width' holds string where numbers are wanted"),
        ("original_height", pa.bool_(), "column 'original_height' holds bool where numbers are wanted"),
    ],
)
def test_a_column_of_another_type(column: str, kind: pa.DataType, says: str) -> None:
    make(Path("pool"), shards=False)
    change = (lambda t: t.set_column(4, column, pa.array([True] * len(t)))) if kind == pa.bool_() else None
    rewrite(change or as_type(column, kind))
    rules = ("basic:language=,min_side=200,max_aspect=3", COLUMN)
    ran = filtered(*rules)
    costs_its_part(ran, f"{PARQUET}: {says}", counted=False)
    uids_of = uids.to_hex(np.load("pool/selections/x/uids.npy"))
    make(Path("whole"), shards=False)
    whole = curate("filter", "--pool", "whole", *[w for r in rules for w in ("--rule", r)], *HERE, "--json")
    kept = set(uids.to_hex(np.load(Path(whole.json["folder"]) / "uids.npy")))
    assert set(uids_of) == kept - {row.uid for row in files()[1][1]}
    # a rule that does not read it is not hurt, unless no sample can be told from another
    ran = filtered("random:fraction=1.0")
    assert ran.code == (3 if column == "uid" else 0)


def test_every_file_with_a_column_of_another_type() -> None:
    make(Path("pool"), as_type("clip_l14_similarity_score", pa.string()), shards=False)
    ran = filtered(COLUMN)
    assert (ran.code, ran.out) == (3, "")
    assert "column 'clip_l14_similarity_score' holds string where numbers are wanted" in ran.err
    assert "hint: write it again as whole numbers or floats" in ran.err
    assert not Path("pool/selections/x/selection.json").exists()


def test_captions_that_are_numbers_are_their_digits() -> None:
    make(Path("pool"), as_type("text", pa.int64()), shards=False)
    ran = filtered("basic:language=,min_side=0,max_aspect=0,min_words=1,min_chars=2")
    succeeded(ran)
    # of the files of 23, 10 and 7 rows the numbers from 10 on have two digits
    assert ran.json["counts"] == {"samples": 40, "kept": 13, "dropped": 27, "unjudged": 0}


@pytest.mark.parametrize(
    ("column", "rule", "code"),
    [
        ("clip_l14_similarity_score", COLUMN, "no_value"),
        ("text", "basic:language=,min_side=0,max_aspect=0", "no_value"),
        ("original_width", "basic:language=,min_side=200", "no_value"),
    ],
)
def test_a_column_that_one_file_lacks(column: str, rule: str, code: str) -> None:
    """Its samples are unjudged, and it is said aloud; nothing has failed."""
    make(Path("pool"), shards=False)
    rewrite(lambda table: table.drop_columns([column]))
    ran = filtered(rule)
    succeeded(ran)
    ours = "caption" if column == "text" else column
    assert f"warning: no column {ours!r} in {BROKEN}: rules that read it leave their samples unjudged" in ran.err
    assert ran.json["funnel"][0]["unjudged"] == {code: ROWS}
    assert ran.json["counts"]["samples"] == ALL


@pytest.mark.parametrize("column", ["clip_l14_similarity_score", "original_width"])
def test_a_column_that_every_file_lacks(column: str) -> None:
    make(Path("pool"), lambda table: table.drop_columns([column]), shards=False)
    before = contents(Path("pool"))
    rule = COLUMN if column.startswith("clip") else "basic:language="
    says = "has no shards, so no pixels" if column.startswith("clip") else f"no column {column!r} (found: "
    refused(filtered(rule), says, "")
    assert {k: v for k, v in contents(Path("pool")).items() if not k.startswith("logs")} == before


@pytest.mark.parametrize("shards", [False, True])
def test_a_file_without_uids_among_files_with(shards: bool) -> None:
    """uids of another kind are not made for it: they would name samples that no list of DataComp's knows."""
    make(Path("pool"), shards=shards)
    rewrite(lambda table: table.drop_columns(["uid"]))
    ran = filtered("random:fraction=1.0")
    costs_its_part(ran, f"{PARQUET}: has no column 'uid'", counted=False)
    assert not list(Path("pool").glob("derived/*.uids.parquet"))


def test_files_without_uids_get_them_once() -> None:
    make(Path("pool"), lambda table: table.drop_columns(["uid"]), shards=False)
    ran = filtered("random:fraction=1.0")
    succeeded(ran)
    assert ran.json["counts"]["kept"] == ALL
    assert len(list(Path("pool").glob("derived/*.uids.parquet"))) == 3
    again = filtered("random:fraction=1.0")
    succeeded(again)
    assert again.json["pool"] == ran.json["pool"]


def test_upper_case_uids_are_the_same_uids() -> None:
    rows = make(Path("pool"), shards=False)
    rewrite(lambda t: t.set_column(0, "uid", pa.array([u.upper() for u in t["uid"].to_pylist()])))
    ran = filtered("random:fraction=1.0")
    succeeded(ran)
    assert uids.to_hex(np.load("pool/selections/x/uids.npy")) == sorted(r.uid for r in rows)


@pytest.mark.parametrize(
    ("uid", "says"),
    [
        ("abc", "row 4: 'abc' is not 32 hex digits"),
        ("g" * 32, f"row 4: '{'g' * 32}' is not 32 hex digits"),
        ("0" * 33, f"row 4: '{'0' * 33}' is not 32 hex digits"),
        ("", "row 4: '' is not 32 hex digits"),
        (None, "row 4 has no uid"),
        ("é" * 16, "row 4: "),
    ],
)
def test_a_uid_that_is_none(uid: str | None, says: str) -> None:
    make(Path("pool"), shards=False)

    def change(table: pa.Table) -> pa.Table:
        given = table["uid"].to_pylist()
        given[4] = uid
        return table.set_column(0, "uid", pa.array(given))

    rewrite(change)
    costs_its_part(filtered("random:fraction=1.0"), f"{PARQUET}: column 'uid': {says}", counted=False)


def test_uids_of_one_file_in_another() -> None:
    """A further row with a uid is dropped, but by DataComp's own recipes, which keep it as their code does."""
    make(Path("pool"), shards=False)
    first = pq.read_table(f"pool/metadata/{files()[0][0]}.parquet")
    rewrite(lambda table: pa.concat_tables([table, first.slice(2, 3), table.slice(0, 1)]))
    ran = filtered("random:fraction=1.0")
    succeeded(ran)
    assert ran.json["funnel"][0] | {"rule": "same_uid", "dropped": {"same_uid": 4}} == ran.json["funnel"][0]
    assert ran.json["counts"] == {"samples": 44, "kept": 40, "dropped": 4, "unjudged": 0}
    ran = curate("filter", "--recipe", "datacomp/no_filter", "--name", "all", *HERE, "--json")
    succeeded(ran)
    assert ran.json["counts"]["kept"] == 44
    assert len(np.load("pool/selections/all/uids.npy")) == 44


@pytest.mark.parametrize("rule", [COLUMN, "clipscore:model=ViT-L-14/openai,top=0.3"])
def test_scores_that_are_all_nan(rule: str) -> None:
    """Every sample is unjudged and none is kept: that is said aloud, and is no failure."""

    def nan(table: pa.Table) -> pa.Table:
        at = table.column_names.index("clip_l14_similarity_score")
        scores = pa.array(np.full(len(table), np.nan, np.float32))
        return table.set_column(at, "clip_l14_similarity_score", scores)

    make(Path("pool"), nan, shards=False)
    ran = filtered(rule)
    succeeded(ran)
    assert ran.json["counts"] == {"samples": ALL, "kept": 0, "dropped": 0, "unjudged": ALL}
    assert ran.json["funnel"][0]["unjudged"] == {"no_value": ALL}
    assert "warning: clipscore could judge none of the 40 samples that it saw (no_value)" in ran.err
    assert len(np.load("pool/selections/x/uids.npy")) == 0
    # one whole file of them is not said: it is in the funnel
    make(Path("other"), shards=False)
    rewrite(nan, Path("other") / PARQUET.relative_to("pool"))
    ran = curate("filter", "--pool", "other", "--rule", rule, *HERE, "--json")
    succeeded(ran)
    assert "warning" not in ran.err
    assert ran.json["counts"]["unjudged"] == ROWS


def test_a_file_without_rows() -> None:
    make(Path("pool"), npz=True, shards=False)
    rewrite(lambda table: table.slice(0, 0))
    streamed(NPZ, vectors([]))
    for rule in (COLUMN, VECTORS, NEAR):
        ran = filtered(rule)
        succeeded(ran)
        assert ran.json["counts"]["samples"] == ALL - ROWS
