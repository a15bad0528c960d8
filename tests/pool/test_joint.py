"""Several pools filtered as one: the same samples in one pool or in two give the same decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from curate import uids
from curate.errors import InputError, PartError
from curate.pool import open_pool
from curate.pool.joint import JointPool, open_pools
from curate.receipts import FORMAT, Output, write_json
from curate.selection import check_fresh, load
from curate.shards import write_table
from curate.stages import embed
from tests.commands.bad_input.outcomes import refused, succeeded
from tests.commands.cli import Ran, curate
from tests.pools import make_metadata, make_pool, uid_of

HERE = ("--workers", "0")


def uid(number: int) -> str:
    return f"{number:032x}"


def rows(numbers: range, **columns: Any) -> list[dict[str, Any]]:
    """Metadata of samples with these numbers; columns are values or functions of the number."""
    return [
        {"uid": uid(n), "url": f"http://x.test/{n}", "text": f"a photo of thing {n}"}
        | {name: value(n) if callable(value) else value for name, value in columns.items()}
        for n in numbers
    ]


def score(number: int) -> float:
    return (number * 37 % 50) / 100


def two(folder: Path, **columns: Any) -> tuple[Path, Path, Path]:
    """A pool of two files, and two pools with one of them each."""
    columns = columns or {"clip_l14_similarity_score": score}
    for name, part, numbers in (("one", "a", range(30)), ("one", "b", range(30, 50)), ("left", "a", range(30))):
        make_metadata(folder / name, rows(numbers, **columns), name=part)
    make_metadata(folder / "right", rows(range(30, 50), **columns), name="b")
    return folder / "one", folder / "left", folder / "right"


def filtered(*options: object, name: str = "x") -> Ran:
    ran = curate("filter", *options, "--name", name, *HERE, "--json")
    succeeded(ran)
    return ran


def decisions(ran: Ran) -> pl.DataFrame:
    """Every sample's decision, in the order of the parts."""
    folder = Path(ran.json["folder"]) / "decisions"
    return pl.concat([pl.read_parquet(folder / f"{part}.parquet") for part in ran.json["parts"]])


def kept(ran: Ran) -> bytes:
    return (Path(ran.json["folder"]) / "uids.npy").read_bytes()


RULES = [
    ("clipscore:model=ViT-L-14/openai,top=0.3",),
    ("clipscore:model=ViT-L-14/openai,top=0.3,ties=datacomp", "random:fraction=0.5"),
    ("random:fraction=0.4", "dedup"),
    ("basic:language=,min_side=0,max_aspect=0",),
]


@pytest.mark.parametrize("rules", RULES)
def test_two_pools_are_the_one_with_both_files(tmp_path: Path, rules: tuple[str, ...]) -> None:
    one, left, right = two(tmp_path)
    asked = [w for rule in rules for w in ("--rule", rule)]
    single = filtered("--pool", one, *asked)
    joint = filtered("--pool", left, "--pool", right, *asked)
    assert kept(joint) == kept(single)
    assert decisions(joint).equals(decisions(single))
    assert joint.json["counts"] == single.json["counts"]
    assert joint.json["funnel"] == single.json["funnel"]
    assert list(joint.json["parts"]) == ["left--a", "right--b"]
    told = {s["source"]: s for s in joint.json["sources"]}
    assert [s["samples"] for s in told.values()] == [30, 20]
    assert sum(s["kept"] for s in told.values()) == joint.json["counts"]["kept"]
    assert told["left"]["keep_rate"] == round(told["left"]["kept"] / 30, 6)
    assert "sources" not in single.json


def test_the_union_of_one_pool_is_that_pool(tmp_path: Path) -> None:
    one, _, _ = two(tmp_path)
    opened = open_pools([one])
    assert not isinstance(opened, JointPool)
    assert opened.identity() == open_pool(one).identity()


def test_what_is_written_and_what_is_read_again(tmp_path: Path) -> None:
    """The selection goes to the first pool; the same again is as before; a changed pool makes it stale."""
    _, left, right = two(tmp_path)
    asked = ("--pool", left, "--pool", right, "--rule", "random:fraction=0.5", *HERE)
    ran = curate("filter", *asked, "--name", "x")
    succeeded(ran)
    assert "source  samples  dropped  unjudged  kept  keep rate" in ran.out
    assert str(left / "selections" / "x") in ran.out
    assert not (right / "selections").exists()
    assert "(as before)" in curate("filter", *asked, "--name", "x").out
    pool = open_pools([left, right])
    chosen = load(pool.layout, None)
    check_fresh(pool, chosen)
    with pytest.raises(InputError, match=r"is a selection of several pools \(left, right\)") as error:
        check_fresh(open_pool(left), chosen)
    assert "--pool " in (error.value.hint or "")
    with pytest.raises(InputError, match="is a selection of several pools"):
        check_fresh(open_pools([right, left]), chosen)  # of one uid, another sample would stay
    make_metadata(right, rows(range(30, 51), clip_l14_similarity_score=score), name="b")
    with pytest.raises(InputError, match="was made of an older state of this pool"):
        check_fresh(open_pools([left, right]), chosen)
    assert "(as before)" not in curate("filter", *asked, "--name", "x").out


def test_work_takes_all_that_is_written(tmp_path: Path) -> None:
    _, left, right = two(tmp_path)
    before = sorted(p for f in (left, right) for p in f.rglob("*"))
    ran = filtered("--pool", left, "--pool", right, "--work", tmp_path / "work", "--rule", "dedup")
    assert Path(ran.json["folder"]) == tmp_path / "work" / "selections" / "x"
    assert sorted(p for f in (left, right) for p in f.rglob("*")) == before


def test_rules_read_where_a_sample_is_from(tmp_path: Path) -> None:
    _, left, right = two(tmp_path)
    rule = tmp_path / "rule.py"
    rule.write_text(ONLY)
    ran = filtered("--pool", left, "--pool", f"web={right}", "--rule", f"{rule}:of=web")
    assert [(s["source"], s["kept"]) for s in ran.json["sources"]] == [("left", 0), ("web", 20)]
    ran = curate("filter", "--pool", left, "--rule", f"{rule}:of=web", *HERE)
    refused(ran, "no column 'source'", "take a pool whose tables have it")


ONLY = '''
from dataclasses import dataclass
from typing import ClassVar
import polars as pl
from curate.filter_api import Column, Judge, setting

@dataclass(frozen=True)
class Only(Judge):
    """Keep the samples of one pool."""
    reasons: ClassVar[dict[str, str]] = {"elsewhere": "not of {of}"}
    of: str = setting("", "the source")
    def needs(self):
        return [Column("source")]
    def keep(self, pool):
        return {"elsewhere": pl.col("source") == self.of}
'''


def test_a_uid_in_two_pools_stays_in_the_first(tmp_path: Path) -> None:
    make_metadata(tmp_path / "a", rows(range(0, 10)))
    make_metadata(tmp_path / "b", rows(range(5, 15)))
    for first, second, kept_of in (("a", "b", [10, 5]), ("b", "a", [10, 5])):
        ran = filtered("--pool", tmp_path / first, "--pool", tmp_path / second, "--rule", "random:fraction=1.0")
        assert [(s["source"], s["kept"]) for s in ran.json["sources"]] == list(
            zip((first, second), kept_of, strict=True)
        )
        assert ran.json["funnel"][0]["dropped"] == {"same_uid": 5}
    ran = filtered("--pool", tmp_path / "a", "--pool", tmp_path / "b", "--recipe", "datacomp/no_filter")
    assert ran.json["counts"]["kept"] == 20


def test_a_column_that_one_pool_lacks_leaves_its_samples_unjudged(tmp_path: Path) -> None:
    make_metadata(tmp_path / "a", rows(range(10), original_width=lambda n: 100 + n, original_height=100))
    make_metadata(tmp_path / "b", rows(range(10, 15)))
    make_metadata(tmp_path / "c", rows(range(15, 20), original_width=105.0, original_height=200.5))
    pools = [w for name in "abc" for w in ("--pool", tmp_path / name)]
    ran = filtered(*pools, "--rule", "basic:language=,min_side=0,max_aspect=1.07,min_words=0,min_chars=0")
    assert [(s["source"], s["kept"], s["dropped"], s["unjudged"]) for s in ran.json["sources"]] == [
        ("a", 8, 2, 0),
        ("b", 0, 0, 5),
        ("c", 0, 5, 0),
    ]
    assert ran.json["funnel"][0]["unjudged"] == {"no_value": 5}


def published(folder: Path, numbers: range) -> None:
    """Vectors of the samples with these numbers, whose cosine is their score."""
    image = np.zeros((len(numbers), 64), np.float16)
    text = image.copy()
    for at, number in enumerate(numbers):
        image[at, number] = 1
        text[at, number], text[at, 63] = score(number), np.sqrt(1 - score(number) ** 2)
    np.savez(folder / "metadata" / f"{'0' * 32}.npz", l14_img=image, l14_txt=text)


def test_each_pool_gives_what_it_has(tmp_path: Path) -> None:
    """A column here, published vectors there, and a third has neither and no pixels to make them of."""
    make_metadata(tmp_path / "column", rows(range(10), clip_l14_similarity_score=score))
    make_metadata(tmp_path / "vectors", rows(range(10, 20)))
    published(tmp_path / "vectors", range(10, 20))
    make_metadata(tmp_path / "neither", rows(range(20, 25)))
    pools = [w for name in ("column", "vectors", "neither") for w in ("--pool", tmp_path / name)]
    ran = filtered(*pools, "--rule", "clipscore:model=ViT-L-14/openai,top=0.2")
    best = sorted(range(20), key=lambda n: -score(n))[:5]  # 0.2 of all 25
    assert uids.to_hex(np.load(Path(ran.json["folder"]) / "uids.npy")) == sorted(map(uid, best))
    assert ran.json["sources"][2]["unjudged"] == 5
    assert ran.json["funnel"][0]["unjudged"] == {"not_downloaded": 5}
    assert ran.json["funnel"][0]["figures"]["similarity of"] == (
        "column: ViT-L-14/openai (column); vectors: ViT-L-14/openai (published)"
    )
    assert (tmp_path / "vectors" / "scores").is_dir()
    assert not (tmp_path / "column" / "scores").exists()
    refused(
        curate(
            "filter", *pools[4:], "--pool", tmp_path / "column", "--rule", "clipscore:model=ViT-B-32/openai", *HERE
        ),
        "has no shards, so no pixels",
        "curate download",
    )


def test_near_duplicates_are_found_across_pools(tmp_path: Path) -> None:
    for name, numbers in (("a", range(4)), ("b", range(10, 13))):
        make_metadata(tmp_path / name, rows(numbers))
        vectors = np.eye(4, 8, dtype=np.float16)[: len(numbers)]
        np.savez(tmp_path / name / "metadata" / f"{'0' * 32}.npz", l14_img=vectors, l14_txt=vectors)
    make_metadata(tmp_path / "bare", rows(range(20, 22)))
    pools = [w for name in ("a", "b", "bare") for w in ("--pool", tmp_path / name)]
    ran = filtered(*pools, "--rule", "dedup:model=ViT-L-14/openai")
    assert [(s["kept"], s["dropped"], s["unjudged"]) for s in ran.json["sources"]] == [
        (4, 0, 0),
        (0, 3, 0),
        (0, 0, 2),
    ]
    other = np.eye(3, 5, dtype=np.float16)
    np.savez(tmp_path / "b" / "metadata" / f"{'0' * 32}.npz", l14_img=other, l14_txt=other)
    refused(
        curate("filter", *pools, "--rule", "dedup:model=ViT-L-14/openai", *HERE),
        "have 5 numbers, others 8",
        "the same model",
    )


def embedded(folder: Path, values: list[float]) -> None:
    """A pool of one shard with vectors of ViT-L-14/openai as `curate embed` leaves them, of these cosines."""
    pool = make_pool(folder, 1, len(values))
    receipt = pool.shard_receipt(pool.shards[0])
    assert receipt
    own = pool.layout.embeddings("ViT-L-14--openai")
    output = Output("embed", embed.VERSION, "00000000", own, {"device": "cpu", "shard": receipt.identity})
    image, text = np.zeros((2, len(values), 64), np.float16)
    for at, value in enumerate(values):
        image[at, at] = 1
        text[at, at], text[at, 63] = value, np.sqrt(1 - value**2)
    np.save(output.open("00000000.image.npy"), image)
    np.save(output.open("00000000.text.npy"), text)
    codes = pl.Series([None] * len(values), dtype=pl.String)
    table = pl.DataFrame({"uid": pl.read_parquet(pool.shards[0].table)["uid"], "error_code": codes})
    table = table.with_columns(text_error_code=codes, similarity=pl.Series(values, dtype=pl.Float32))
    write_table(output, "00000000.parquet", table.to_arrow())
    output.commit({"samples": len(values)})
    write_json(own / "model.json", {"format": FORMAT, "model": "ViT-L-14/openai", "device": "cpu"})


def test_a_pool_with_vectors_of_its_own_and_one_with_published_ones(tmp_path: Path) -> None:
    embedded(tmp_path / "ours", [0.1, 0.9, 0.2, 0.3])
    make_metadata(tmp_path / "theirs", rows(range(6)))  # their scores: 0, 0.37, 0.24, 0.11, 0.48, 0.35
    published(tmp_path / "theirs", range(6))
    pools = ("--pool", tmp_path / "ours", "--pool", tmp_path / "theirs")
    ran = filtered(*pools, "--rule", "clipscore:model=ViT-L-14/openai,top=0.4")
    told = [(s["source"], s["kept"], s["unjudged"]) for s in ran.json["sources"]]
    assert told == [("ours", 1, 0), ("theirs", 3, 0)]
    assert set(uids.to_hex(np.load(Path(ran.json["folder"]) / "uids.npy"))) == {
        uid_of(0, 1),
        uid(1),
        uid(4),
        uid(5),
    }
    assert ran.json["funnel"][0]["figures"]["similarity of"] == (
        "ours: ViT-L-14/openai (own); theirs: ViT-L-14/openai (published)"
    )
    # an image of ours points where one of theirs does: of four such pairs one each stays
    ran = filtered(*pools, "--rule", "dedup:model=ViT-L-14/openai")
    assert ran.json["counts"] == {"samples": 10, "kept": 6, "dropped": 4, "unjudged": 0}


def test_what_is_missing_is_made_in_its_own_pool(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_pool(tmp_path / name, 1, 3)
    asked = ("--pool", tmp_path / "a", "--pool", tmp_path / "b", "--rule", "clipscore:model=tiny,min=-1", *HERE)
    plan = curate("filter", *asked, "--dry-run", "--json").json["plan"]
    assert [(p["work"], p["samples"]) for p in plan] == [("embed tiny of a", 3), ("embed tiny of b", 3)]
    assert [p["command"].split("--pool ")[1].split()[0] for p in plan] == [str(tmp_path / n) for n in "ab"]
    succeeded(curate("filter", *asked))
    assert (tmp_path / "a" / "embeddings" / "tiny").is_dir()
    assert (tmp_path / "b" / "embeddings" / "tiny").is_dir()


def test_a_broken_part_is_named_with_its_pool(tmp_path: Path) -> None:
    _, left, right = two(tmp_path)
    path = right / "metadata" / "c.parquet"
    table = pq.read_table(right / "metadata" / "b.parquet").to_pydict()
    table["uid"] = ["none"] * 20
    pl.DataFrame(table).write_parquet(path)
    ran = curate("filter", "--pool", left, "--pool", right, "--rule", "random:fraction=1.0", *HERE, "--json")
    assert ran.code == 3
    assert f"parts failed: right--c ({path}: column 'uid': row 0: 'none' is not 32 hex digits)" in ran.err
    assert [s["kept"] for s in ran.json["sources"]] == [30, 20]
    with pytest.raises(PartError):
        open_pools([left, right]).uids(open_pools([left, right]).parts[2])


@pytest.mark.parametrize("command", ["status", "verify", "embed", "score", "report", "download"])
def test_other_commands_take_one_pool(tmp_path: Path, command: str) -> None:
    more = {"score": ("--rule", "random"), "download": ("--source", "x.csv")}.get(command, ())
    ran = curate(command, "--pool", tmp_path / "a", "--pool", tmp_path / "b", *more)
    refused(
        ran, f"--pool: this command takes one pool (found 2: {tmp_path / 'a'}, {tmp_path / 'b'})", "curate filter"
    )


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        (("left", "left"), "is given twice, as left and left-2"),
        (("x=left", "x=right"), "two pools are called 'x'"),
        (("a--b=left", "right"), "a source cannot be called 'a--b'"),
        (("=left", "right"), "a source cannot be called ''"),
        (("x=left",), "names a source, and there is one pool"),
        (("",), "--pool: names no folder (found '')"),
        (("left", "y="), "--pool: names no folder (found 'y=')"),
        (("left", "gone"), "no such pool"),
    ],
)
def test_pools_that_cannot_be_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools: tuple[str, ...], says: str
) -> None:
    two(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    ran = curate("filter", *[w for p in pools for w in ("--pool", p)], "--rule", "random:fraction=1.0", *HERE)
    refused(ran, says, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_sources_get_names_of_their_own(tmp_path: Path) -> None:
    for folder in ("x/pool", "y/pool", "z/a=b"):
        make_metadata(tmp_path / folder, rows(range(3)))
    opened = open_pools([tmp_path / "x/pool", tmp_path / "y/pool", f"c={tmp_path / 'z' / 'a=b'}"])
    assert isinstance(opened, JointPool)
    assert list(opened.members) == ["pool", "pool-2", "c"]
    assert opened.members["c"].layout.root == tmp_path / "z" / "a=b"
