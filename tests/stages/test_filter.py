"""A recipe over a pool: every sample kept, dropped with a reason or unjudged with a code, and counted once."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import receipts, scales, uids
from curate.errors import InputError, PartError
from curate.pool import open_pool
from curate.recipe import Recipe, compose, parse
from curate.stages import filter as filtering
from curate.stages.filter import Outcome, Request
from curate.stages.needs import Means
from tests.pools import make_img2dataset, make_metadata, make_pool, uid_of

Row = Mapping[str, Any]


def run(folder: Path, *rules: str | Recipe, **request: Any) -> Outcome:
    """The outcome of `--rule` texts, or of a recipe, over the pool in a folder; no work over pixels is allowed."""
    recipes = [r for r in rules if isinstance(r, Recipe)]
    recipe = recipes[0] if recipes else compose([str(r) for r in rules], [])

    def allow(work: Any) -> None:
        raise AssertionError(f"wanted {work.what}")

    return filtering.filter_pool(open_pool(folder), Request(recipe, means=Means("cpu", 0), **request), allow=allow)


def ends(folder: Path, outcome: Outcome) -> list[str]:
    """What became of each sample, in the pool's order: `kept`, the reason of its drop, or `?` and a code."""
    said = []
    for part in open_pool(folder).parts:
        for row in outcome.selection.decisions(part.name).iter_rows(named=True):
            if row["rule"] is None:
                said.append("kept")
            else:
                said.append(row["reason"] or f"?{row['error_code']}")
    return said


def kept(outcome: Outcome) -> list[str]:
    """The uids of the selection."""
    return uids.to_hex(np.asarray(outcome.selection.uids()))


def uid(number: int) -> str:
    return f"{number:032x}"


def rows(scores: Sequence[float | None], start: int = 0) -> list[dict[str, Any]]:
    """Metadata rows with uids that count up and these values of ViT-L-14/openai's similarity."""
    return [
        {
            "uid": uid(start + i),
            "url": f"http://images.test/{start + i}.jpg",
            "text": f"photo {start + i}",
            "clip_l14_similarity_score": score,
        }
        for i, score in enumerate(scores)
    ]


def check(folder: Path, outcome: Outcome) -> None:
    """Everything that must hold of any selection."""
    selection = outcome.selection
    said, raw, counts = ends(folder, outcome), selection.raw, selection.counts
    assert counts["samples"] == len(said) == open_pool(folder).n
    assert counts["kept"] == said.count("kept")
    assert counts["unjudged"] == sum(s.startswith("?") for s in said)
    assert counts["samples"] == counts["kept"] + counts["dropped"] + counts["unjudged"]
    left = counts["samples"]
    booked: Counter[str] = Counter()
    for line in raw["funnel"]:
        assert line["in"] == left
        left -= sum(line["dropped"].values()) + sum(line["unjudged"].values())
        assert line["left"] == left
        booked.update(line["dropped"])
        booked.update({f"?{code}": n for code, n in line["unjudged"].items()})
    assert left == counts["kept"]
    assert booked == Counter(s for s in said if s != "kept")
    pairs = np.asarray(selection.uids())
    assert pairs.dtype == np.dtype("u8,u8")
    assert kept(outcome) == sorted(kept(outcome))
    assert len(pairs) == raw["copies"]


# --- uids -------------------------------------------------------------------------------------------------


def test_a_second_row_of_a_uid_is_dropped_and_the_first_stays(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.1, 0.2]), "a")
    make_metadata(tmp_path, rows([0.3, 0.4], start=1), "b")
    outcome = run(tmp_path, "random:fraction=1")
    check(tmp_path, outcome)
    assert ends(tmp_path, outcome) == ["kept", "kept", "same_uid", "kept"]
    assert outcome.selection.funnel[0] == {
        "rule": "same_uid",
        "text": "same_uid",
        "figures": {},
        "in": 4,
        "dropped": {"same_uid": 1},
        "unjudged": {},
        "left": 3,
    }


def test_a_recipe_may_keep_every_row_of_a_uid(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.5, 0.1]) + rows([0.5]))
    outcome = run(tmp_path, parse('keep_same_uid = true\n[[rule]]\nuse = "clipscore"\nmin = 0.3', "here"))
    assert ends(tmp_path, outcome) == ["kept", "below_min", "kept"]
    assert kept(outcome) == [uid(0), uid(0)]


def test_uids_are_as_numpy_saves_them(tmp_path: Path) -> None:
    shuffled = [f"{random.Random(i).getrandbits(128):032x}" for i in range(50)]
    make_metadata(tmp_path, [{"uid": u, "url": u, "text": ""} for u in shuffled])
    outcome = run(tmp_path, "random:n=30")
    path = outcome.selection.folder / "uids.npy"
    np.save(tmp_path / "again.npy", np.load(path))
    assert path.read_bytes() == (tmp_path / "again.npy").read_bytes()
    expected = uids.to_pairs(pa.array(sorted(kept(outcome))))
    assert (np.load(path) == expected).all()


def test_nothing_kept_is_a_selection_too(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.1, 0.2]))
    outcome = run(tmp_path, "clipscore:min=0.9")
    check(tmp_path, outcome)
    assert np.load(outcome.selection.folder / "uids.npy").shape == (0,)


def test_a_uid_that_is_none_costs_its_part(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"uid": "f00", "url": "u", "text": "t"}])
    with pytest.raises(PartError, match="column 'uid': row 0: 'f00' is not 32 hex digits"):
        run(tmp_path, "random:n=1")


# --- scales -----------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> scales.Scale:
    """A scale of a pool of 20 samples."""
    scale = scales.Scale("toy", 20, 100, 10, 1e-3, 5, "ViT-B-32")
    monkeypatch.setattr(scales, "SCALES", {"toy": scale})
    return scale


def test_a_scale_comes_before_any_rule(tmp_path: Path, toy: scales.Scale) -> None:
    make_metadata(tmp_path, rows([i / 50 for i in range(50)]))
    outcome = run(tmp_path, "clipscore:top=0.5", scale="toy", seed=3)
    check(tmp_path, outcome)
    inside = scales.scale_pool(uids.to_pairs(pa.array([uid(i) for i in range(50)])), toy, 3)
    best = [i for i in range(50) if inside[i]][-10:]
    assert kept(outcome) == [uid(i) for i in best]
    assert outcome.selection.funnel[0]["dropped"] == {"outside_scale": 30}
    assert outcome.selection.funnel[1]["in"] == 20


def test_a_scale_larger_than_the_pool_takes_all(tmp_path: Path, toy: scales.Scale) -> None:
    make_metadata(tmp_path, rows([0.1] * 10))
    outcome = run(tmp_path, "clipscore:min=0", scale="toy")
    assert [line["rule"] for line in outcome.selection.funnel] == ["clipscore"]
    assert outcome.selection.counts["kept"] == 10


@pytest.mark.parametrize("rule", ["random:fraction=0.25,of=pool", "clipscore:top=0.25,among=left,of=pool"])
def test_with_a_scale_fractions_of_the_pool_are_of_its_pool(tmp_path: Path, toy: scales.Scale, rule: str) -> None:
    make_metadata(tmp_path, rows([i / 50 for i in range(50)]))
    outcome = run(tmp_path, "random:n=18", rule, scale="toy")
    check(tmp_path, outcome)
    assert [line["left"] for line in outcome.selection.funnel] == [20, 18, 5]


def test_a_rule_file_may_be_called_as_what_the_machine_drops(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([i / 10 for i in range(10)]))
    rule = tmp_path / "scale.py"
    rule.write_text(
        """
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from curate.filter_api import Column, Judge


@dataclass(frozen=True)
class Long(Judge):
    reasons: ClassVar[Mapping[str, str]] = {"short": "the url is short"}

    def needs(self):
        return [Column("url")]

    def keep(self, pool):
        return {"short": pl.col("url") != "http://images.test/3.jpg"}
"""
    )
    outcome = run(tmp_path, str(rule), "clipscore:top=0.5,among=left,of=pool")
    check(tmp_path, outcome)
    assert [line["rule"] for line in outcome.selection.funnel] == ["scale#1", "clipscore"]
    assert outcome.selection.raw["sentences"]["scale#1"]["short"] == "the url is short"
    assert outcome.selection.counts["kept"] == 5  # of the 10 of the pool, not of the 9 that the rule left


# --- judges -----------------------------------------------------------------------------------------------


def test_nan_and_null_are_unjudged_and_never_dropped(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.5, float("nan"), None, 0.1]))
    outcome = run(tmp_path, "clipscore:min=0.3")
    check(tmp_path, outcome)
    assert ends(tmp_path, outcome) == ["kept", "?no_value", "?no_value", "below_min"]
    assert outcome.selection.funnel[0]["unjudged"] == {"no_value": 2}


def test_a_failed_download_is_the_cause_of_what_cannot_be_judged(tmp_path: Path) -> None:
    make_pool(tmp_path, fails=lambda shard, row: {(0, 1): "http_404", (1, 2): "timeout"}.get((shard, row)))
    outcome = run(tmp_path, "basic:language=,min_side=1")
    check(tmp_path, outcome)
    assert outcome.selection.funnel[0]["unjudged"] == {"http_404": 1, "timeout": 1}
    assert outcome.selection.counts["kept"] == 4


def test_a_failed_download_can_still_be_dropped(tmp_path: Path) -> None:
    """One condition that is false decides, although another cannot be judged."""
    make_pool(tmp_path, fails=lambda shard, row: "dns" if row == 0 else None)
    outcome = run(tmp_path, "basic:language=,min_side=1,min_words=99")
    assert set(ends(tmp_path, outcome)) == {"caption_words"}


@pytest.mark.parametrize("seed", range(8))
def test_top_keeps_exactly_the_floor_with_ties_by_uid(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    n = chance.randrange(1, 120)
    values = [
        chance.choice([None, float("nan"), *(v / 16 for v in range(chance.randrange(1, 12)))]) for _ in range(n)
    ]
    numbers = chance.sample(range(10 * n), n)
    table = [{**row, "uid": uid(number)} for row, number in zip(rows(values), numbers, strict=True)]
    cut = chance.randrange(n)
    for name, piece in (("a", table[:cut]), ("b", table[cut:])):
        if piece:
            make_metadata(tmp_path, piece, name)
    top = chance.choice([0.01, 0.29, 0.3, 0.5, 0.7, 0.999, 1])
    outcome = run(tmp_path, f"clipscore:top={top}")
    check(tmp_path, outcome)
    known = [(row["clip_l14_similarity_score"], row["uid"]) for row in table]
    known = [(v, u) for v, u in known if v is not None and v == v]
    best = sorted(known, key=lambda vu: (-vu[0], vu[1]))[: int(Fraction(str(top)) * n)]
    assert kept(outcome) == sorted(u for _, u in best)
    assert outcome.selection.counts["unjudged"] == n - len(known)


def test_figures_are_of_the_pool_unless_it_says_left(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([i / 100 for i in range(100)]))
    low = "clipscore:min=0.5"  # leaves 50..99
    over_pool = run(tmp_path, low, "clipscore:top=0.6")  # ranks are over all: 40..99
    assert over_pool.selection.counts["kept"] == 50
    among_left = run(tmp_path, low, "clipscore:top=0.6,among=left")
    assert kept(among_left) == [uid(i) for i in range(70, 100)]
    of_pool = run(tmp_path, low, "clipscore:top=0.3,among=left,of=pool")
    assert kept(of_pool) == [uid(i) for i in range(70, 100)]
    of_left = run(tmp_path, low, "clipscore:top=0.6,of=left")  # 0.6 * 50 samples, ranked over the pool
    assert kept(of_left) == [uid(i) for i in range(70, 100)]


def test_judges_commute(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([i / 30 for i in range(30)]))
    two = ["clipscore:top=0.4", "clipscore:min=0.8"]
    assert kept(run(tmp_path, *two)) == kept(run(tmp_path, *reversed(two))) == [uid(i) for i in range(24, 30)]


def test_a_drop_is_booked_on_the_first_rule(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.1, 0.4, 0.9]))
    outcome = run(tmp_path, "clipscore:min=0.3", "clipscore:min=0.5")
    check(tmp_path, outcome)
    assert [line["rule"] for line in outcome.selection.funnel] == ["clipscore", "clipscore#2"]
    assert [line["dropped"] for line in outcome.selection.funnel] == [{"below_min": 1}] * 2
    table = outcome.selection.decisions("0" * 32)
    assert table["rule"].to_list() == ["clipscore", "clipscore#2", None]
    assert table["value"].to_list() == [pytest.approx(0.1), pytest.approx(0.4), None]
    assert table["copies"].to_list() == [0, 0, 1]
    assert outcome.selection.raw["sentences"]["clipscore#2"]["below_min"].format(value=0.4) == (
        "the image-text similarity 0.4000 is under 0.5"
    )


# --- groups -----------------------------------------------------------------------------------------------

HIGH, LOW, OPEN = 0.9, 0.1, None
"""Values that the rule `clipscore:min=0.5` keeps, drops and cannot judge."""


def grouped(how: str) -> Recipe:
    """Two judges, over the similarities of L/14 and of B/32."""
    models = ("ViT-L-14/openai", "ViT-B-32/openai")
    members = ", ".join(f'{{use = "clipscore", model = "{m}", min = 0.5}}' for m in models)
    return parse(f"[[rule]]\n{how} = [{members}]", "here")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        # of HIGH, LOW, OPEN in the first judge with HIGH, LOW, OPEN in the second
        ("any", ["kept", "kept", "kept", "kept", "no_member_keeps", "?", "kept", "?", "?"]),
        ("all", ["kept", "below_min", "?", "below_min", "below_min", "below_min", "?", "below_min", "?"]),
        ("not", ["members_keep", "kept", "?", "kept", "kept", "kept", "?", "kept", "?"]),
    ],
)
def test_groups_know_three_values(tmp_path: Path, how: str, expected: list[str]) -> None:
    values = (HIGH, LOW, OPEN)
    table = rows([a for a in values for _ in values])
    for row, second in zip(table, values * 3, strict=True):
        row["clip_b32_similarity_score"] = second
    make_metadata(tmp_path, table)
    outcome = run(tmp_path, grouped(how))
    check(tmp_path, outcome)
    assert [s.removesuffix("no_value") for s in ends(tmp_path, outcome)] == expected
    assert outcome.selection.funnel[0]["rule"] == f"{how}(clipscore, clipscore)"


def test_groups_nest(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.1, 0.4, 0.6, 0.9]))
    between = parse(
        '[[rule]]\nall = [{use = "clipscore", min = 0.3}, {not = [{use = "clipscore", min = 0.8}]}]', "here"
    )
    outcome = run(tmp_path, between)
    check(tmp_path, outcome)
    assert ends(tmp_path, outcome) == ["below_min", "kept", "kept", "members_keep"]


# --- samplers ---------------------------------------------------------------------------------------------


def test_a_sampler_acts_at_its_place(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([i / 40 for i in range(40)]))
    first = run(tmp_path, "random:n=20", "clipscore:min=0.5")
    check(tmp_path, first)
    assert first.selection.funnel[0]["left"] == 20
    assert first.selection.counts["kept"] < 20
    last = run(tmp_path, "clipscore:min=0.5", "random:n=10")
    check(tmp_path, last)
    assert [line["left"] for line in last.selection.funnel] == [20, 10]
    # luck is the sample's own: of those that both leave to chance, the same are lucky
    assert set(kept(last)) & set(kept(first))


def test_a_drop_names_the_copy_that_stayed(tmp_path: Path) -> None:
    make_pool(tmp_path, n_shards=2, rows=2, extra={"priority": lambda shard, row: shard})
    for shard in ("00000000", "00000001"):  # the same image everywhere
        path = tmp_path / "shards" / f"{shard}.parquet"
        pl.read_parquet(path).with_columns(sha256=pl.lit("a" * 64)).write_parquet(path)
    outcome = run(tmp_path, "dedup:keep=priority+uid")
    check(tmp_path, outcome)
    stayed = min(uid_of(1, 0), uid_of(1, 1))
    assert kept(outcome) == [stayed]
    told = [outcome.selection.decisions(s)["of"].to_list() for s in ("00000000", "00000001")]
    assert sorted([of.hex() if of else None for part in told for of in part], key=str) == sorted(
        [stayed] * 3 + [None], key=str
    )


# --- the selection ----------------------------------------------------------------------------------------


def test_the_same_again_is_read_back(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.2, 0.4]))
    first = run(tmp_path, "clipscore:min=0.3")
    assert not first.reused
    stamp = (first.selection.folder / "selection.json").stat().st_mtime_ns
    again = run(tmp_path, "clipscore:min=0.3")
    assert again.reused
    assert (again.selection.folder / "selection.json").stat().st_mtime_ns == stamp
    assert again.selection.raw == first.selection.raw


def test_the_default_name_is_the_rules_and_the_digest(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.2, 0.4]))
    one = run(tmp_path, "clipscore:min=0.3", "random:n=1").selection.name
    other = run(tmp_path, "clipscore:min=0.31", "random:n=1").selection.name
    assert one.startswith("clipscore-random-")
    assert len(one) == len("clipscore-random-") + 6
    assert one != other
    latest = json.loads((tmp_path / "selections" / "latest.json").read_text())
    assert latest == {"format": 1, "name": other}
    assert run(tmp_path, "clipscore:min=0.3", "random:n=1").reused
    assert json.loads((tmp_path / "selections" / "latest.json").read_text())["name"] == one


def test_another_recipe_under_the_name_replaces_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_metadata(tmp_path, rows([0.2, 0.4]))
    run(tmp_path, "clipscore:min=0.3", name="mine")
    with caplog.at_level(logging.WARNING):
        outcome = run(tmp_path, "clipscore:min=0.1", name="mine")
    assert not outcome.reused
    assert outcome.selection.counts["kept"] == 2
    assert "redone, because these changed: recipe" in caplog.text


def test_a_pool_that_grew_is_filtered_again(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.2, 0.4]), "a")
    run(tmp_path, "clipscore:min=0.3")
    make_metadata(tmp_path, rows([0.5], start=2), "b")
    outcome = run(tmp_path, "clipscore:min=0.3")
    assert not outcome.reused
    check(tmp_path, outcome)
    assert kept(outcome) == [uid(1), uid(2)]
    (tmp_path / "metadata" / "a.parquet").unlink()
    outcome = run(tmp_path, "clipscore:min=0.3")
    check(tmp_path, outcome)
    assert not (outcome.selection.folder / "decisions" / "a.parquet").exists()


def test_decisions_that_were_lost_are_made_again(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.2, 0.4]))
    outcome = run(tmp_path, "clipscore:min=0.3")
    path = outcome.selection.folder / "decisions" / f"{'0' * 32}.parquet"
    path.unlink()
    with pytest.raises(PartError, match="is missing") as lost:
        outcome.selection.decisions("0" * 32)
    assert lost.value.hint == "run the same curate filter again"
    check(tmp_path, run(tmp_path, "clipscore:min=0.3"))


def test_the_work_folder_takes_all_that_is_written(tmp_path: Path) -> None:
    make_metadata(tmp_path / "pool", rows([0.2, 0.4]))
    before = sorted((tmp_path / "pool").rglob("*"))
    pool = open_pool(tmp_path / "pool", tmp_path / "work")
    request = Request(compose(["clipscore:min=0.3"], []), means=Means("cpu", 0))
    outcome = filtering.filter_pool(pool, request, allow=lambda work: None)
    assert outcome.selection.folder.parent == tmp_path / "work" / "selections"
    assert sorted((tmp_path / "pool").rglob("*")) == before


def test_a_part_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.2, 0.4]), "a")
    (tmp_path / "metadata" / "b.parquet").write_bytes(bytes(300))
    outcome = run(tmp_path, "clipscore:min=0.3")
    assert outcome.selection.counts["samples"] == 2
    assert list(outcome.failed_parts) == ["b"]
    assert "is not a readable Parquet file" in outcome.failed_parts["b"]
    assert list(outcome.selection.raw["failed_parts"]) == ["b"]


def test_a_part_with_a_damaged_column_of_error_codes_is_left_out_and_named(tmp_path: Path) -> None:
    make_pool(tmp_path, fails=lambda shard, row: "http_404" if row == 1 else None)
    path = tmp_path / "shards" / "00000001.parquet"
    group = pq.read_metadata(path).row_group(0)
    (column,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "error_code")
    raw, start = bytearray(path.read_bytes()), column.dictionary_page_offset or column.data_page_offset
    raw[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(raw)
    outcome = run(tmp_path, "basic:language=,min_side=1")
    assert list(outcome.failed_parts) == ["00000001"]
    assert "00000001.parquet: cannot be read" in outcome.failed_parts["00000001"]
    assert outcome.selection.funnel[0]["unjudged"] == {"http_404": 1}


def test_a_pool_without_samples_is_refused(tmp_path: Path) -> None:
    make_pool(tmp_path, n_shards=0)
    with pytest.raises(InputError, match="has no samples"):
        run(tmp_path, "random:n=1")


def test_a_pool_of_which_no_part_can_be_read_is_named(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.2]), "a")
    for name in "ab":
        (tmp_path / "metadata" / f"{name}.parquet").write_bytes(b"")
    with pytest.raises(PartError, match=r"no part of it can be read \(.*a.parquet: is not a .*, and 1 more\)"):
        run(tmp_path, "random:n=1")


# --- pools of others --------------------------------------------------------------------------------------


def test_a_part_in_another_precision_is_judged_alike(tmp_path: Path) -> None:
    """DataComp's later files hold float64 where earlier ones hold float32."""
    single = pl.DataFrame(rows([0.3, 0.3000001, 0.2])).cast({"clip_l14_similarity_score": pl.Float32})
    make_metadata(tmp_path, single.to_dicts(), "a")
    single.write_parquet(tmp_path / "metadata" / "a.parquet")
    make_metadata(tmp_path, rows([0.3, 0.29, None], start=10), "b")
    outcome = run(tmp_path, "clipscore:min=0.3,source=column")
    check(tmp_path, outcome)
    assert ends(tmp_path, outcome) == ["kept", "kept", "below_min", "kept", "below_min", "?no_value"]
    best = run(tmp_path, "clipscore:top=0.5")
    check(tmp_path, best)
    assert kept(best) == [uid(0), uid(1), uid(10)]


def test_a_part_without_the_column_is_unjudged(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.5]), "a")
    make_metadata(tmp_path, [{"uid": uid(9), "url": "u", "text": "t"}], "b")
    outcome = run(tmp_path, "clipscore:min=0.3")
    check(tmp_path, outcome)
    assert ends(tmp_path, outcome) == ["kept", "?no_value"]


def test_metadata_without_uids_gets_them(tmp_path: Path) -> None:
    make_metadata(tmp_path, [{"URL": "http://a.test/1", "TEXT": "one"}, {"URL": "http://a.test/2", "TEXT": None}])
    outcome = run(tmp_path, "random:fraction=1")
    check(tmp_path, outcome)
    expected = [uids.derive_uid("http://a.test/1", "one"), uids.derive_uid("http://a.test/2", None)]
    assert kept(outcome) == sorted(expected)


def test_metadata_is_judged_also_where_shards_are_there(tmp_path: Path) -> None:
    """Samples are the rows of the metadata; a score made per shard is joined to them by uid."""
    make_img2dataset(tmp_path / "shards", n_shards=2, rows=3, columns=["uid"], digits=8)
    order = [(1, 2), (0, 0), (7, 7), (1, 0)]
    make_metadata(
        tmp_path,
        [{"uid": uid_of(s, r), "url": f"u{s}{r}", "text": "far too short"[: 3 + r]} for s, r in order],
    )
    file = tmp_path / "brightness.py"
    file.write_text(PER_SHARD)
    scored = filtering.filter_pool(
        open_pool(tmp_path),
        Request(compose([f"{file}:min=0"], []), means=Means("cpu", 0)),
        allow=lambda work: None,
    )
    check(tmp_path, scored)
    assert ends(tmp_path, scored) == ["kept", "kept", "?not_downloaded", "kept"]
    told = filtering.filter_pool(
        open_pool(tmp_path),
        Request(compose([f"{file}:min=300"], []), means=Means("cpu", 0)),
        allow=lambda work: None,
    )
    values = told.selection.decisions("0" * 32)["value"].to_list()
    direct = {u: v for part in ("00000000", "00000001") for u, v in scores_of(tmp_path, part).items()}
    assert values == [direct[uid_of(s, r)] if (s, r) != (7, 7) else None for s, r in order]


def test_what_only_the_shards_tell_is_read_from_them(tmp_path: Path) -> None:
    """Metadata without sizes or hashes: a rule over them reads the shards' tables, joined by uid."""
    sizes = make_pool(tmp_path, n_shards=2, rows=3, fails=lambda s, r: "http_404" if (s, r) == (1, 1) else None)
    assert sizes.n == 6
    order = [(1, 2), (0, 0), (7, 7), (1, 1), (1, 0)]
    metadata = [{"uid": uid_of(s, r), "url": f"u{s}{r}", "text": "long enough a caption"} for s, r in order]
    make_metadata(tmp_path, metadata)
    wide = run(tmp_path, "basic:language=,min_side=10")
    check(tmp_path, wide)
    assert ends(tmp_path, wide) == ["kept", "kept", "?not_downloaded", "?http_404", "kept"]
    narrow = run(tmp_path, "basic:language=,min_side=500")
    assert ends(tmp_path, narrow).count("image_side") == 3
    # the shards' tables are inputs: without one, its samples' sizes are not known
    assert run(tmp_path, "basic:language=,min_side=500").reused
    (tmp_path / "shards/_receipts/00000001.json").unlink()
    again = run(tmp_path, "basic:language=,min_side=500")
    assert not again.reused
    assert ends(tmp_path, again) == ["?not_downloaded", "image_side", *["?not_downloaded"] * 3]
    with pytest.raises(InputError, match="no column 'aesthetics'"):
        run(tmp_path, "dedup:keep=aesthetics")


def test_one_scorer_in_two_settings_is_computed_twice(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", n_shards=2, rows=3)
    for name, word in (("things", "thing"), ("tables", "table")):
        (tmp_path / name).write_text(word + "\n")
    rules = [f"concepts:vocabulary={tmp_path / 'things'},cap=5", f"concepts:vocabulary={tmp_path / 'tables'},cap=2"]
    outcome = run(tmp_path / "pool", *rules)
    check(tmp_path / "pool", outcome)
    assert [line["left"] for line in outcome.selection.funnel] == [5, 2]
    assert outcome.selection.counts["unjudged"] == 0
    assert len(list((tmp_path / "pool/scores").iterdir())) == 2


def test_a_refusal_leaves_no_folder(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.1, 0.2]))
    file = tmp_path / "wrong.py"
    file.write_text(
        PER_SHARD.replace("needs(self):\n        return [Score(Brightness())]", "needs(self):\n        return []")
    )
    with pytest.raises(InputError, match="brightness"):
        run(tmp_path, str(file), name="wrong")
    assert not (tmp_path / "selections" / "wrong").exists()


def published(folder: Path, part: str, vectors: Sequence[Sequence[float]]) -> None:
    """ViT-L-14/openai's vectors of a metadata file, as DataComp publishes them."""
    array = np.array(vectors, dtype=np.float16)
    np.savez(folder / "metadata" / f"{part}.npz", l14_img=array, l14_txt=array)


def test_vectors_that_others_changed_are_read_again(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.1, 0.2, 0.3]))
    rule = "dedup:model=ViT-L-14/openai"
    published(tmp_path, "0" * 32, [[1, 0], [0, 1], [-1, 0]])
    assert run(tmp_path, rule).selection.counts["kept"] == 3
    assert run(tmp_path, rule).reused
    published(tmp_path, "0" * 32, [[1, 0], [0, 1], [0, 1]])
    again = run(tmp_path, rule)
    assert not again.reused
    assert again.selection.counts["kept"] == 2


def test_vectors_of_another_number_of_rows_cost_their_part(tmp_path: Path) -> None:
    """Not one row of the parts behind it is judged by a neighbour's vector."""
    for part in range(3):
        make_metadata(tmp_path, rows([0.1, 0.2], start=2 * part), name=str(part) * 32)
        published(tmp_path, str(part) * 32, [[1, part], [-part, 1]][: 1 if part == 0 else 2])
    outcome = run(tmp_path, "dedup:model=ViT-L-14/openai,threshold=0.999")
    check(tmp_path, outcome)
    assert ends(tmp_path, outcome) == ["?part_failed"] * 2 + ["kept"] * 4
    assert list(outcome.failed_parts) == ["0" * 32]
    assert "have 1 rows where the part has 2" in outcome.failed_parts["0" * 32]


def test_a_part_without_the_vectors_that_others_have_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in range(3):
        make_metadata(tmp_path, rows([0.1], start=part), name=str(part) * 32)
        published(tmp_path, str(part) * 32, [[1, part]])
    (tmp_path / "metadata" / f"{'0' * 32}.npz").write_bytes(b"PK")
    (tmp_path / "metadata" / f"{'1' * 32}.npz").unlink()
    with pytest.raises(InputError, match="has no shards, so no pixels"):
        run(tmp_path, "dedup:model=ViT-L-14/openai")
    said = [r.getMessage() for r in caplog.records if "published vectors" in r.getMessage()]
    assert len(said) == 2
    assert said[0].startswith(f"{'0' * 32} has no published vectors of ViT-L-14/openai: ")
    assert "is not a readable npz" in said[0]
    assert said[1].endswith(": no npz")
    (tmp_path / "metadata" / f"{'2' * 32}.npz").unlink()
    caplog.clear()
    with pytest.raises(InputError, match="has no shards, so no pixels"):
        run(tmp_path, "dedup:model=ViT-L-14/openai")
    assert not caplog.records


def scores_of(folder: Path, part: str) -> dict[str, float]:
    """uid to the brightness that was stored for a shard."""
    table = pl.read_parquet(folder / "scores" / "brightness-v1" / f"{part}.parquet")
    return dict(zip(table["uid"], table["brightness"], strict=True))


PER_SHARD = '''
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
import polars as pl
from curate.filter_api import Images, Judge, Score, Scorer, setting

@dataclass(frozen=True)
class Brightness(Scorer):
    name: ClassVar[str] = "brightness"
    version: ClassVar[int] = 1
    columns: ClassVar[dict[str, str]] = {"brightness": "Float32"}

    def needs(self):
        return [Images()]

    def prepare(self, image):
        return np.asarray(image.resize((8, 8)))

    def open(self, device):
        return lambda batch: {"brightness": batch.images.mean(axis=(1, 2, 3))}

@dataclass(frozen=True)
class Bright(Judge):
    """Keep bright images."""

    reasons: ClassVar = {"dark": "brightness {value:.0f} is under {min}"}
    min: float = setting(128.0, "least mean of the pixels, 0..255")

    def needs(self):
        return [Score(Brightness())]

    def keep(self, pool):
        return {"dark": pl.col("brightness") >= self.min}

    def values(self):
        return {"dark": pl.col("brightness")}
'''


def test_a_score_of_changed_shards_is_made_again(tmp_path: Path) -> None:
    make_img2dataset(tmp_path, n_shards=1, rows=3)
    file = tmp_path / "brightness.py"
    file.write_text(PER_SHARD)
    works: list[str] = []

    def filtered() -> Outcome:
        request = Request(compose([f"{file}:min=0"], []), means=Means("cpu", 0))
        return filtering.filter_pool(open_pool(tmp_path), request, allow=lambda work: works.append(work.describe()))

    filtered()
    filtered()
    assert works == ["score brightness on 3 samples"]
    make_img2dataset(tmp_path, n_shards=1, rows=4)
    assert not filtered().reused
    assert works[1:] == ["score brightness on 4 samples"]


def test_the_receipts_prove_the_selection(tmp_path: Path) -> None:
    make_metadata(tmp_path, rows([0.2, 0.4]))
    folder = run(tmp_path, "clipscore:min=0.3").selection.folder
    found = receipts.read_receipt(folder, "selection")
    assert found is not None
    assert sorted(found.outputs) == ["selection.json", "uids.npy"]
    assert found.outputs["uids.npy"].sha256 == receipts.file_sha256(folder / "uids.npy")
    assert list(receipts.receipts(folder / "decisions")) == ["0" * 32]
