"""`curate explain`: where a sample is, and what every rule says of it, also below the one that took it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from curate import uid_files, uids
from curate.views import verdicts
from tests.commands.bad_input.outcomes import contents, refused
from tests.commands.cli import curate
from tests.pools import caption_of, make_metadata, make_pool, uid_of

COLUMN = "clip_l14_similarity_score"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scored_pool(n_shards: int = 2, rows: int = 6) -> None:
    """Similarities 0.00, 0.01, ... in the first shard and 0.10, 0.11, ... in the second; (1, 0) is a 404."""
    extra = {COLUMN: lambda shard, row: None if (shard, row) == (1, 0) else shard / 10 + row / 100}
    make_pool(
        Path("pool"), n_shards, rows, extra=extra, fails=lambda s, r: "http_404" if (s, r) == (1, 0) else None
    )


def filtered(*rules: str, name: str = "mine") -> None:
    ran = curate("filter", *(word for rule in rules for word in ("--rule", rule)), "--name", name)
    assert ran.code == 0, ran.err


def explained(shard: int, row: int, *more: object) -> dict[str, Any]:
    """What is said of the one row of this sample."""
    ran = curate("explain", uid_of(shard, row), "--json", *more)
    assert ran.code == 0, ran.err
    (told,) = ran.json["rows"]
    assert isinstance(told, dict)
    return told


def conditions(rule: dict[str, Any]) -> dict[str, tuple[str, Any, Any]]:
    return {c["reason"]: (c["says"], c["value"], c["margin"]) for c in rule["conditions"]}


# --- where ------------------------------------------------------------------------------------------------


def test_where_a_sample_is(here: Path) -> None:
    scored_pool()
    before = contents(here)
    told = explained(1, 2)
    assert (told["part"], told["row"], told["caption"]) == ("00000001", 2, caption_of(1, 2))
    image = told["image"]
    assert (image["shard"], image["key"], image["error_code"]) == ("00000001", "000000010002", None)
    run = (here / image["tar"]).read_bytes()[image["offset"] :][: image["length"]]
    assert run.startswith(b"000000010002.jpg")
    assert (told["columns"]["width"], told["columns"][COLUMN]) == (24, pytest.approx(0.12))
    assert (told["selection"], told["scores"]) == (None, [])
    assert contents(here) == before  # a verb that reads never writes


def test_a_sample_whose_image_is_not_here(here: Path) -> None:
    scored_pool()
    told = explained(1, 0)
    assert told["image"]["error_code"] == "http_404"
    assert "offset" not in told["image"]
    assert "http_404" in curate("explain", uid_of(1, 0)).out


def test_the_first_digits_will_do(here: Path) -> None:
    scored_pool()
    ran = curate("explain", uid_of(0, 3)[:8].upper(), "--json")
    assert (ran.code, ran.json["uid"]) == (0, uid_of(0, 3))


def test_every_row_with_the_uid_is_shown(here: Path) -> None:
    rows = [{"uid": "a" * 32, "url": f"u{n}", "text": f"caption {n}"} for n in range(2)]
    for name in ("0", "1"):
        make_metadata(Path("pool"), [*rows, {"uid": name * 32, "url": "u", "text": "x"}], name * 32)
    ran = curate("explain", "a" * 32, "--json")
    assert [(r["part"], r["row"], r["caption"]) for r in ran.json["rows"]] == [
        (name * 32, row, f"caption {row}") for name in "01" for row in range(2)
    ]
    assert "4 rows have it" in curate("explain", "aaaaaa").out


def test_metadata_and_shards_are_joined(here: Path) -> None:
    make_pool(Path("pool"), 3, 3)
    both = [{"uid": uid_of(2, 1), "url": "u", "text": "theirs"}, {"uid": "f" * 32, "url": "u", "text": "gone"}]
    make_metadata(Path("pool"), both)
    assert curate("score", "--rule", "clipscore:model=tiny", "--workers", 0).code == 0
    filtered("clipscore:model=tiny,min=-1")
    (told,) = curate("explain", uid_of(2, 1), "--json").json["rows"]
    assert (told["row"], told["image"]["shard"], told["image"]["shard_row"]) == (0, "00000002", 1)
    assert (told["columns"]["width"], told["caption"]) == (24, "theirs")
    (score,) = told["scores"]
    assert score["embedding"] == "tiny"
    similarity = score["values"]["similarity"]
    (rule,) = told["selection"]["rules"]
    assert conditions(rule)["below_min"] == ("keeps", pytest.approx(similarity), pytest.approx(similarity + 1))
    (gone,) = curate("explain", "f" * 32, "--json").json["rows"]
    assert (gone["image"], gone["selection"]["error_code"]) == (None, "not_downloaded")


def test_a_part_that_is_damaged_inside_is_said_and_the_others_are_read(here: Path) -> None:
    for name in "01":
        rows = [{"uid": name * 31 + f"{n:x}", "url": "u", "text": "x"} for n in range(16)]
        make_metadata(Path("pool"), rows, name * 32)
    path = Path("pool/metadata") / f"{'0' * 32}.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:40] = b"\xff" * 36  # pages, not the footer
    path.write_bytes(whole)
    ran = curate("explain", "1" * 32)
    assert ran.code == 0
    assert f"{path}: cannot be read" in ran.err
    ran = curate("explain", "2" * 32)
    assert ran.code == 2
    assert "no sample of pool has this uid (32 looked at; 1 part cannot be read)" in ran.err


def test_what_others_wrote_is_harmless(here: Path) -> None:
    row = {"uid": "a" * 32, "text": "red\x1b[31m\u202egnp\n\x07x", "url": "https://u:p@images.test/a?token=s#f"}
    make_metadata(Path("pool"), [row | {"page_url": "https://h.test/p?key=1", "note": "\x1b]0;t\x07"}])
    for ran in (curate("explain", "a" * 32), curate("explain", "a" * 32, "--json")):
        assert ran.code == 0
        assert not {"\x1b", "\x07", "\u202e"} & set(ran.out)
        assert not [word for word in ("token", "u:p@", "key=1") if word in ran.out]
        assert "images.test/a" in ran.out
        assert "h.test/p" in ran.out


def test_of_what_is_blocked_nothing_is_shown(here: Path) -> None:
    make_pool(Path("pool"), 1, 2, fails=lambda shard, row: "blocked" if row else None)
    ran = curate("explain", uid_of(0, 1))
    assert "blocked" in ran.out
    assert "images.test" not in ran.out
    assert caption_of(0, 1) not in ran.out


# --- rules ------------------------------------------------------------------------------------------------


def test_every_rule_is_asked_also_below_the_one_that_took_it(here: Path) -> None:
    scored_pool()
    filtered(
        "clipscore:min=0.05", "random:n=5", "basic:language=,min_side=40,max_aspect=0,min_chars=29,min_words=9"
    )
    told = explained(0, 2)["selection"]
    assert (told["verdict"], told["by"], told["reason"]) == ("dropped", "clipscore:min=0.05", "below_min")
    assert told["why"] == "the image-text similarity 0.0200 is under 0.05"
    score, draw, basic = told["rules"]
    assert conditions(score) == {"below_min": ("drops", pytest.approx(0.02), pytest.approx(-0.03))}
    assert (draw["says"], draw["asked"]) == ("not asked", False)
    assert (basic["says"], basic["asked"]) == ("drops", False)
    assert conditions(basic) == {
        "image_side": ("drops", 32.0, -8.0),
        "caption_chars": ("keeps", 29.0, 0.0),
        "caption_words": ("drops", 8.0, -1.0),
    }
    text = curate("explain", uid_of(0, 2)).out
    assert "dropped by clipscore:min=0.05: the image-text similarity 0.0200 is under 0.05" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["below_min", "drops", "0.02", "min", "0.05", "-0.03"] in rows
    assert ["image_side", "drops", "32", "min_side", "40", "-8"] in rows
    assert [row[-2:] for row in rows if row and row[0].startswith("basic:")] == [["would", "drop"]]


@pytest.mark.parametrize("rule", ["clipscore:top=0.5", "clipscore:top=0.5,ties=datacomp", "clipscore:min=0.04"])
def test_what_is_said_agrees_with_what_was_decided(here: Path, rule: str) -> None:
    ties = {COLUMN: lambda shard, row: [0.02, 0.04, 0.04, 0.04, None, 0.01][row]}
    pool = make_pool(Path("pool"), 1, 6, extra=ties)
    filtered(rule, name="alone")
    filtered("random:n=1", rule, name="below")
    for shard, part in enumerate(pool.parts):
        decided = pl.read_parquet(f"pool/selections/alone/decisions/{part.name}.parquet")
        for row, decision in enumerate(decided.iter_rows(named=True)):
            said = {False: "cannot judge", True: "drops"}[decision["reason"] is not None]
            said = "keeps" if decision["rule"] is None else said
            told = explained(shard, row, "--selection", "alone")["selection"]
            assert told["rules"][0]["says"] == told["rules"][0]["conditions"][0]["says"] == said
            below = explained(shard, row, "--selection", "below")["selection"]["rules"][1]
            assert below["says"] == said, (shard, row, below)


def test_what_is_kept_and_what_cannot_be_judged(here: Path) -> None:
    scored_pool()
    filtered("clipscore:min=0.1")
    told = explained(1, 3)["selection"]
    assert (told["verdict"], told["copies"], told["by"], told["why"]) == ("kept", 1, None, "")
    assert conditions(told["rules"][0]) == {"below_min": ("keeps", pytest.approx(0.13), pytest.approx(0.03))}
    told = explained(1, 0)["selection"]
    assert (told["verdict"], told["error_code"], told["rules"][0]["says"]) == (
        "unjudged",
        "http_404",
        "cannot judge",
    )
    assert conditions(told["rules"][0]) == {"below_min": ("cannot judge", None, None)}
    assert "unjudged by clipscore:min=0.1: http_404" in curate("explain", uid_of(1, 0)).out


def test_groups_show_their_members(here: Path) -> None:
    scored_pool()
    Path("any.toml").write_text(
        "[[rule]]\nany = [{use = 'clipscore', min = 0.5},"
        " {use = 'basic', language = '', min_side = 40, max_aspect = 0, min_chars = 0, min_words = 3}]\n"
        "[[rule]]\nnot = [{use = 'clipscore', min = 0.02}]\n"
    )
    assert curate("filter", "--recipe", "any.toml", "--name", "mine").code == 0
    group, other = explained(0, 2)["selection"]["rules"]
    assert (group["says"], group["why"]) == ("drops", "none of the group's rules keeps it")
    assert [(m["says"], m["rule"].partition(":")[0]) for m in group["members"]] == [
        ("drops", "clipscore"),
        ("drops", "basic"),
    ]
    assert conditions(group["members"][1])["image_side"][:2] == ("drops", 32.0)
    assert (other["says"], other["members"][0]["says"]) == ("drops", "keeps")


def test_groups_in_groups_stand_apart(here: Path) -> None:
    scored_pool()
    Path("any.toml").write_text(
        "[[rule]]\nany = [{use = 'clipscore', min = 0.5},"
        " {not = [{use = 'basic', language = '', min_words = 2}]}]\n"
    )
    assert curate("filter", "--recipe", "any.toml", "--name", "mine").code == 0
    (group,) = explained(0, 2)["selection"]["rules"]
    plain, inner = group["members"]
    assert (plain["says"], inner["says"], inner["how"], len(inner["members"])) == ("drops", "keeps", "not", 1)
    assert (inner["members"][0]["says"], inner["rule"]) == ("drops", "not(basic:language=,min_words=2)")
    shown = curate("explain", uid_of(0, 2)).out.splitlines()
    at = next(n for n, line in enumerate(shown) if line.startswith("  not of "))
    assert shown[at].split()[-1] == "keeps"
    assert shown[at + 1].startswith("    basic:language=,min_words=2 ")
    assert shown[at + 2].startswith("      image_side ")


def test_of_several_pools_those_are_named_that_have_the_uid(here: Path) -> None:
    for name, uids_ in (("one", "ab"), ("two", "bc")):
        make_metadata(Path(name), [{"uid": u * 32, "url": "u", "text": "x"} for u in uids_], name)
    both = ("--pool", "one", "--pool", "two")
    for uid, pools in (("a", "one"), ("b", "one, two"), ("c", "two")):
        assert f"uid {uid * 32} in {pools}\n" in curate("explain", uid * 32, *both).out
    ran = curate("explain", "d" * 32, *both)
    assert (ran.code, "no sample of one, two has this uid (4 looked at)" in ran.err) == (2, True)


def test_a_sampler_tells_what_it_decided(here: Path) -> None:
    make_metadata(Path("pool"), [{"uid": n * 32, "url": "u", "text": "the same"} for n in "ab"])
    filtered("dedup", "random:n=1")
    (told,) = curate("explain", "b" * 32, "--json").json["rows"]
    rule, draw = told["selection"]["rules"]
    assert (rule["says"], rule["reason"], rule["of"]) == ("drops", "same_url_caption", "a" * 32)
    assert "aaaaaaaa" in rule["why"]
    assert draw["says"] == "not asked"
    (told,) = curate("explain", "a" * 32, "--json").json["rows"]
    assert [r["says"] for r in told["selection"]["rules"]] == ["keeps", "keeps"]


def test_copies(here: Path) -> None:
    scored_pool()
    uid_files.write(Path("list.npy"), uids.to_pairs(pa.array([uid_of(0, 0)] * 3)))
    assert curate("selection", "import", "list.npy", "--name", "mine").code == 0
    assert "selection mine: kept (3 copies)" in curate("explain", uid_of(0, 0)).out
    # a list in the place of a selection
    told = curate("explain", uid_of(0, 0), "--selection", "list.npy", "--json").json
    assert (told["listed"], told["rows"][0]["selection"]) == ({"name": "list.npy", "copies": 3}, None)
    assert "list list.npy: not in it" in curate("explain", uid_of(0, 1), "--selection", "list.npy").out


def test_a_rule_file_inside_the_pool_is_not_run(here: Path) -> None:
    scored_pool()
    rule = Path("outside.py")
    rule.write_text(
        "from dataclasses import dataclass\nimport polars as pl\nfrom curate.filter_api import Judge\n"
        "@dataclass(frozen=True)\nclass Made(Judge):\n    '''x'''\n    reasons = {'bad': 'it is bad'}\n"
        "    def needs(self):\n        return []\n"
        "    def keep(self, pool):\n        return {'bad': pl.lit(False)}\n"
    )
    filtered(str(rule))
    assert explained(0, 0)["selection"]["rules"][0]["conditions"][0]["says"] == "drops"
    inside = Path("pool") / "rule.py"
    rule.rename(inside)
    filtered("random:n=1", str(inside), name="second")
    told = explained(0, 0)["selection"]
    assert told["rules"][1]["conditions"] == []
    assert "is a rule file inside the pool, which is not run" in " ".join(told["notes"])


def test_only_the_samples_part_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored_pool(4)
    filtered("clipscore:top=0.5")
    from curate.pool import Part, Pool

    read: list[tuple[str, tuple[str, ...]]] = []
    scan = Pool.scan

    def noted(self: Pool, part: Part, columns: Any, **more: Any) -> pl.LazyFrame:
        read.append((part.name, tuple(columns)))
        return scan(self, part, columns, **more)

    monkeypatch.setattr(Pool, "scan", noted)
    assert curate("explain", uid_of(2, 1)).code == 0
    assert {part for part, columns in read if columns != ("uid",)} == {"00000002"}


def test_a_score_that_was_not_asked_for_is_not_known(here: Path) -> None:
    """Of what a rule above dropped nobody computes what is costly."""
    Path("costly.py").write_text(
        "from dataclasses import dataclass\nimport polars as pl\n"
        "from curate.filter_api import Column, Judge, Score\nfrom tests.stages.scorers import Costly\n"
        "@dataclass(frozen=True)\nclass Cost(Judge):\n    '''x'''\n"
        "    reasons = {'row': 'row {value}', 'cost': 'cost {value}'}\n"
        "    def needs(self):\n        return [Column('row'), Score(Costly())]\n"
        "    def keep(self, pool):\n        return {'row': pl.col('row') > 1, 'cost': pl.col('cost') > 5}\n"
        "    def values(self):\n        return {'cost': pl.col('cost')}\n"
    )
    make_pool(Path("pool"), 2, 4, extra={"row": lambda shard, row: row if shard else -row})
    filtered("costly.py")
    for shard, row, says in ((1, 3, "keeps"), (1, 0, "not known"), (0, 3, "not known")):
        (rule,) = explained(shard, row)["selection"]["rules"]
        assert [c["says"] for c in rule["conditions"]] == ["keeps" if says == "keeps" else "drops", says]
        assert rule["says"] == ("keeps" if says == "keeps" else "drops")
    assert re.search(r"^score costly-\S+: not_asked\n\n", curate("explain", uid_of(1, 0)).out, re.MULTILINE)


# --- figures that were noted ------------------------------------------------------------------------------


def test_a_figure_that_stands_for_two_is_not_recalled() -> None:
    figures = verdicts.Recalled(10, {"mean": 2.0, "threshold": "inf"})
    assert figures.mean(pl.col("a")) == 2.0
    assert figures.nth_largest(pl.col("a"), 3) == float("inf")
    assert figures.quantile(pl.col("a"), 0.5) is None
    for ask in (figures.mean, lambda value: figures.top(value, 1)):
        with pytest.raises(verdicts.NotAtHand):
            ask(pl.col("a"))
    with pytest.raises(verdicts.NotAtHand):
        verdicts.Recalled(10, None).mean(pl.col("a"))


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (["xyz"], "xyz: is not a uid", "32 hex digits"),
        (["abcde"], "abcde: is not a uid", "6 or more"),
        (["a" * 33], "is not a uid", "32 hex digits"),
        (["f" * 32], "no sample of pool has this uid (12 looked at)", "--pool DIR"),
        (["ffffff"], "ffffff: no sample of pool has this uid", "--pool DIR"),
        ([uid_of(0, 0), "--selection", "mien"], "no selection 'mien' (found: mine)", "did you mean 'mine'?"),
        ([uid_of(0, 0), "--selection", "no.npy"], "no.npy: no such uid list", "u8,u8"),
        ([uid_of(0, 0), "--pool", "pol"], "pol: no such pool", "did you mean 'pool'?"),
    ],
)
def test_what_cannot_be_explained(here: Path, words: list[str], says: str, hint: str) -> None:
    scored_pool()
    filtered("random:n=2")
    before = contents(here)
    refused(curate("explain", *words), says, hint)
    assert contents(here) == before


def test_digits_that_several_have(here: Path) -> None:
    make_metadata(Path("pool"), [{"uid": f"aaaaaa{n:026x}", "url": "u", "text": "x"} for n in range(7)])
    refused(curate("explain", "aaaaaa"), "aaaaaa: is how 7 uids begin (aaaaaa00", "give more digits")


def test_a_selection_of_an_older_pool(here: Path) -> None:
    scored_pool()
    filtered("random:n=2")
    scored_pool(3)
    refused(curate("explain", uid_of(0, 0)), "was made of an older state of this pool", "--allow-stale")
    assert curate("explain", uid_of(0, 0), "--allow-stale").code == 0
