"""The report: what the page says, that it is inert, and that it comes of pools in any state."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate import selection as selections
from curate.errors import InputError
from curate.pool import Pool, open_pool
from curate.recipe import compose
from curate.selection import Selection
from curate.stages.filter import Request, filter_pool
from curate.views import report as view
from tests.pools import make_metadata, make_pool, uid_of, url_of

SIMILARITY = "clip_l14_similarity_score"
VOID = {"meta", "link", "img", "br", "input", "wbr"}


def similarity(shard: int, row: int) -> float:
    """0.105 in the first row, a hundredth more in each further one."""
    return round(0.105 + row / 100, 3)


def choose(pool: Pool, *rules: str, name: str = "chosen", **settings: Any) -> Selection:
    return filter_pool(pool, Request(compose(rules, []), name, **settings), allow=lambda work: None).selection


class Page(HTMLParser):
    """A page read back: it must be well-formed, and have nothing that acts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(self.raw)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())
        for tag, attributes in self.tags:
            assert tag not in ("script", "iframe", "object", "embed", "form", "base", "video", "audio")
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href", "xlink:href", "srcset", "action"):
                assert attributes.get(name, "#").startswith(("#", "data:"))
        assert "url(" not in self.raw
        assert "@import" not in self.raw

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def images(self) -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == "img"]

    def charts(self) -> list[ElementTree.Element]:
        return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", self.raw, re.DOTALL)]

    def group(self, rule: str, title: str) -> list[str]:
        """The texts of the tiles under a rule and a heading, in their order."""
        section = next(s for s in self.raw.split('<section class="rule"')[1:] if f"<code>{rule}" in s)
        groups = {re.split(r" <span|, at random", g)[0]: g for g in section.split("<summary>")[1:]}
        tiles = groups[title].split('<li class="tile')[1:]
        return [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", tile)).split()) for tile in tiles]


def page(pool: Pool, chosen: Selection, out: Path, **settings: Any) -> tuple[Page, view.Result]:
    made = view.report(pool, chosen, out, **settings)
    assert made.bytes == out.stat().st_size
    return Page(out), made


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return make_pool(
        tmp_path / "pool",
        2,
        20,
        fails=lambda shard, row: "http_404" if row == 19 else None,
        extra={SIMILARITY: similarity},
    )


RULES = ("basic:language=,min_side=0,max_aspect=0,min_words=1", "clipscore:min=0.2", "random:fraction=0.5")


def test_funnel_charts_examples_and_repeats(pool: Pool, tmp_path: Path) -> None:
    chosen = choose(pool, *RULES)
    shown, made = page(pool, chosen, tmp_path / "report.html")
    assert (made.samples, made.kept, made.charted, made.notes) == (40, 10, 40, [])
    assert "came in 40 samples, 38 images here kept 10 25 % dropped, with a reason 30 75 %" in shown.text
    assert "clipscore:min=0.2,model=ViT-L-14/openai" in shown.text
    assert "below_min 20 50 % of what came in" in shown.text
    assert "total 40 30 0 10" in shown.text
    assert "http_404 the server answered with this status 2" in shown.text
    assert "Every sample was judged." in shown.text
    # samples seen at DataComp's small scale over those kept
    assert "small ViT-B-32 12,800,000 12,800,000 10 1,280,000 (over 10)" in shown.text
    assert chosen.pool_identity in shown.text
    assert "<0.1" not in shown.text
    assert shown.raw.count('<section class="rule"') == len(chosen.funnel) == 3
    assert made.examples > 60
    assert len(shown.images()) == made.pictures > 50


def test_pictures_are_small_data_uris_with_alternatives(pool: Pool, tmp_path: Path) -> None:
    shown, made = page(pool, choose(pool, *RULES), tmp_path / "report.html")
    for picture in shown.images():
        head, _, data = picture["src"].partition(",")
        assert head == "data:image/webp;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.size == (int(picture["width"]), int(picture["height"])) == (24, 16)
        assert re.match(r"(kept|dropped|unjudged): a photo of thing", picture["alt"])
    assert made.bytes < 500_000


def test_equal_bytes_for_equal_pools(pool: Pool, tmp_path: Path) -> None:
    chosen = choose(pool, *RULES)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        view.report(pool, chosen, tmp_path / f"{name}.html", seed=seed)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert (tmp_path / "one.html").read_bytes() != (tmp_path / "three.html").read_bytes()


def test_thresholds_are_drawn_where_the_rules_cut(pool: Pool, tmp_path: Path) -> None:
    shown, _ = page(pool, choose(pool, "clipscore:min=0.2", "random:n=5"), tmp_path / "report.html")
    (chart,) = shown.charts()
    assert chart.get("role") == "img"
    assert chart.get("aria-label") == (
        "Histogram of similarity (ViT-L-14/openai): 40 values before, 5 after; thresholds: min 0.2."
    )
    (line,) = [e for e in chart.iter("line") if e.get("class") == "mark"]
    left, right = 8, 480 - 8  # the axis runs from the least value, 0.105, to the greatest, 0.295
    assert float(line.attrib["x1"]) == pytest.approx(left + (right - left) * (0.2 - 0.105) / 0.19, abs=0.2)
    shown, _ = page(pool, choose(pool, "clipscore:top=0.25"), tmp_path / "report.html")
    (chart,) = shown.charts()
    # ten of forty stay: the least of them is the tie-broken 0.255
    assert str(chart.get("aria-label")).endswith("thresholds: threshold 0.255.")


def test_nearest_to_the_threshold_come_first(pool: Pool, tmp_path: Path) -> None:
    shown, _ = page(pool, choose(pool, "clipscore:min=0.2"), tmp_path / "report.html")
    dropped = shown.group("clipscore", "Dropped, nearest to the threshold")
    values = [float(found[1]) for tile in dropped if (found := re.search(r"similarity ([\d.]+) ", tile))]
    assert values == [v for v in (0.195, 0.185, 0.175, 0.165, 0.155, 0.145) for _ in range(2)]
    assert "dropped : the image-text similarity 0.1950 is under 0.2" in dropped[0]
    assert "a photo of thing 9 on table" in dropped[0]
    left = shown.group("clipscore", "Left, nearest to the threshold")
    values = [float(found[1]) for tile in left if (found := re.search(r"similarity ([\d.]+) ", tile))]
    assert values == [v for v in (0.205, 0.215, 0.225, 0.235, 0.245, 0.255) for _ in range(2)]
    assert all("kept" in tile for tile in left)
    assert len(shown.group("clipscore", "Dropped")) == 6


def test_what_a_later_rule_took_is_said(pool: Pool, tmp_path: Path) -> None:
    shown, _ = page(pool, choose(pool, "clipscore:min=0.28", "random:n=1"), tmp_path / "report.html")
    tiles = shown.group("clipscore", "Left, nearest to the threshold")
    assert len(tiles) == 4
    assert len([t for t in tiles if "dropped later by random: not drawn under seed 0" in t]) == 3


def test_copies_are_shown_beside_the_one_that_stayed(tmp_path: Path) -> None:
    for part in make_pool(tmp_path / "pool", 2, 3).parts:
        table = pq.read_table(part.path)
        at = table.column_names.index("sha256")
        column = pa.array([f"{row // 2:064d}" for row in range(3)])
        pq.write_table(table.set_column(at, "sha256", column), part.path)
    pool = open_pool(tmp_path / "pool")
    shown, _ = page(pool, choose(pool, "dedup"), tmp_path / "report.html")
    tiles = shown.group("dedup", "Dropped")
    assert len(tiles) == 4
    stays = min(uid_of(s, r) for s in (0, 1) for r in (0, 1))
    assert len([t for t in tiles if f"the group of {stays[:8]}, which stays" in t]) == 3
    assert len([t for t in tiles if f"stayed: {stays[:8]} · 48 × 32 px" in t]) == 3
    assert len([i for i in shown.images() if i["alt"].startswith("stayed: a photo")]) == 4


# --- hostile and broken samples ---------------------------------------------------------------------------

HOSTILE = {
    0: "<script>alert(1)</script><img src=x onerror=alert(2)>",
    1: "\u202egnp.live\u2069\u202c tail",
    2: "nul\x00 bell\x07 esc\x1b[31m\nline",
    3: "x" * 1_000_000,
    4: "\"><svg onload=alert(3)> & {{ 7*7 }} {% raw %} ' '",
    5: None,
    6: "",
    7: "עברית مرحبا",
}


def test_hostile_captions_are_inert(tmp_path: Path) -> None:
    pool = make_pool(
        tmp_path / "pool",
        1,
        len(HOSTILE),
        extra={SIMILARITY: similarity, "text": lambda shard, row: HOSTILE[row]},
    )
    part = pool.parts[0]
    table = pq.read_table(part.path)
    table = table.drop_columns(["caption"]).rename_columns(
        ["caption" if n == "text" else n for n in table.column_names if n != "caption"]
    )
    urls = [f"https://user:secret@h.test/{row}.jpg?token=secret#secret" for row in range(len(HOSTILE))]
    pq.write_table(table.set_column(table.column_names.index("url"), "url", pa.array(urls)), part.path)
    pool = open_pool(tmp_path / "pool")
    shown, made = page(pool, choose(pool, "clipscore:min=0.15"), tmp_path / "report.html")
    assert made.bytes < 200_000
    assert "<script" not in shown.raw
    assert "<img src=x" not in shown.raw
    assert "<svg onload" not in shown.raw
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in shown.text
    assert '"><svg onload=alert(3)> & {{ 7*7 }} {% raw %}' in shown.text
    assert "⟨U+202E⟩gnp.live⟨U+2069⟩⟨U+202C⟩ tail" in shown.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f]", shown.raw)
    assert "nul\ufffd bell\ufffd esc\ufffd[31m line" in shown.text
    assert "x" * 280 + "…" in shown.text
    assert "x" * 281 not in shown.raw
    assert "(1,000,000 characters)" in shown.text
    assert "<bdi>עברית مرحبا</bdi>" in shown.raw
    assert "no caption" in shown.text
    assert "an empty caption" in shown.text
    assert "secret" not in shown.raw
    assert "h.test/0.jpg" in shown.text


def test_missing_and_broken_images_are_grey_tiles_with_the_reason(tmp_path: Path) -> None:
    pool = make_pool(
        tmp_path / "pool", 3, 3, fails=lambda s, r: "timeout" if r == 2 else None, extra={SIMILARITY: similarity}
    )
    chosen = choose(pool, "clipscore:min=0.11")
    pool.shards[0].tar.unlink()
    tar = pool.shards[1].tar.read_bytes()
    index = pq.read_table(pool.shards[1].index).to_pylist()
    start = index[0]["offset"] + 512
    pool.shards[1].tar.write_bytes(tar[:start] + b"not a jpeg at all" + tar[start + 17 :])
    shown, made = page(open_pool(pool.layout.root), chosen, tmp_path / "report.html")
    assert made.examples == 9
    assert made.pictures == 3
    assert shown.text.count("shard 00000000: cannot be read (No such file or directory)") == 2
    assert shown.text.count("not_an_image: no image format known to the decoder") == 1
    assert shown.text.count("timeout: a connect, idle or total deadline passed") == 3


def test_an_index_or_part_that_cannot_be_read_costs_itself(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", 2, 3, extra={SIMILARITY: similarity})
    chosen = choose(pool, "clipscore:min=0.11")
    pool.shards[0].index.write_bytes(b"no parquet")
    (chosen.folder / "decisions" / "00000001.parquet").unlink()
    shown, made = page(open_pool(pool.layout.root), chosen, tmp_path / "report.html")
    assert made.charted == 3
    assert "A part is not shown" in made.notes[0]
    assert "00000001.parquet" in made.notes[0]
    assert shown.text.count("shard 00000000: its table or index cannot be read") == 3


# --- pools in any state -----------------------------------------------------------------------------------


def test_an_empty_selection(pool: Pool, tmp_path: Path) -> None:
    shown, made = page(pool, choose(pool, "clipscore:min=0.9", "random:n=3"), tmp_path / "report.html")
    assert made.kept == 0
    assert shown.text.count("nothing to train on") == 5
    assert "No sample came to this rule." in shown.text
    assert "40 values before, 0 after" in shown.charts()[0].attrib["aria-label"]


def test_a_pool_of_one_sample(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", 1, 1, extra={SIMILARITY: similarity})
    shown, made = page(pool, choose(pool, "clipscore:min=0", "dedup"), tmp_path / "report.html")
    assert (made.kept, made.examples) == (1, 2)
    assert "kept 1 100 %" in shown.text
    assert "Every sample of the shards has its image." in shown.text
    (chart,) = [c for c in shown.charts() if "similarity" in c.attrib["aria-label"]]
    assert chart.attrib["aria-label"].endswith("thresholds: min 0.")


def test_no_score_at_all(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", 1, 4)
    shown, made = page(pool, choose(pool, "random:n=2"), tmp_path / "report.html")
    assert made.charts == 0
    assert "Scores before and after" not in shown.text
    assert "none yet: nothing was embedded" in shown.text
    assert made.pictures == 4


def metadata(rows: int) -> list[Mapping[str, Any]]:
    return [
        {"uid": f"{row:032x}", "url": url_of(0, row), "text": f"thing {row}", SIMILARITY: 0.1 + row / 1000}
        for row in range(rows)
    ]


def test_metadata_alone(tmp_path: Path) -> None:
    make_metadata(tmp_path / "pool", [*metadata(30), {**metadata(31)[30], SIMILARITY: float("nan")}])
    pool = open_pool(tmp_path / "pool")
    shown, made = page(pool, choose(pool, "clipscore:top=0.5"), tmp_path / "report.html")
    assert (made.kept, made.pictures) == (15, 0)
    assert "nothing was fetched yet" in shown.text
    assert shown.text.count("no image: the pool is metadata alone") == made.examples
    assert "no_value the column is null or NaN for this sample 1" in shown.text
    assert len(shown.group("clipscore", "Unjudged")) == 1
    assert "thing 14" in shown.group("clipscore", "Dropped, nearest to the threshold")[0]


def test_metadata_with_shards_shows_what_was_downloaded(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", 1, 2)
    rows = [{"uid": uid_of(0, r), "url": url_of(0, r), "text": "t", SIMILARITY: 0.2} for r in range(3)]
    make_metadata(tmp_path / "pool", rows)
    pool = open_pool(tmp_path / "pool")
    shown, made = page(pool, choose(pool, "random:n=2"), tmp_path / "report.html")
    assert made.pictures == 2
    assert "samples, 2 images here" in shown.text
    assert shown.text.count("no image: the image is not in this pool") == 1


@pytest.mark.parametrize("pictures", [True, False])
def test_nothing_leads_to_what_is_blocked(tmp_path: Path, pictures: bool) -> None:
    make_pool(tmp_path / "pool", 1, 2, fails=lambda _, row: "blocked" if row else None)
    rows = [{"uid": uid_of(0, r), "url": url_of(0, r), "text": f"it is {r}", SIMILARITY: 0.2} for r in range(2)]
    make_metadata(tmp_path / "pool", rows)
    pool = open_pool(tmp_path / "pool")
    shown, _ = page(pool, choose(pool, "random:n=2"), tmp_path / "report.html", pictures=pictures)
    assert "it is 0" in shown.text
    assert "it is 1" not in shown.text
    text = (tmp_path / "report.html").read_text()
    assert url_of(0, 0).partition("://")[2] in text
    assert url_of(0, 1).partition("://")[2] not in text


def test_a_large_pool_is_sampled_and_says_so(tmp_path: Path) -> None:
    for part in range(6):
        rows = [{**r, "uid": f"{part:016x}{row:016x}"} for row, r in enumerate(metadata(20))]
        make_metadata(tmp_path / "pool", rows, f"{part:032x}")
    pool = open_pool(tmp_path / "pool")
    chosen = choose(pool, "clipscore:min=0.11", "dedup")
    shown, made = page(pool, chosen, tmp_path / "report.html", rows=30)
    assert (made.samples, made.charted) == (120, 40)
    assert "Counts are of all 120 samples. Charts and examples are of 40 of them, drawn as 2 whole parts of 6." in (
        shown.text
    )
    # copies stay in parts that were not drawn, and are found there
    assert all("stayed: 00000000" in tile for tile in shown.group("dedup", "Dropped"))
    again, _ = page(pool, chosen, tmp_path / "again.html", rows=30, seed=1)
    assert again.raw != shown.raw


def test_groups_of_rules(pool: Pool, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[[rule]]\nany = [{use = "clipscore", min = 0.25}, {use = "basic", language = "", min_side = 0, '
        "max_aspect = 0, min_words = 9, min_chars = 0}]\n"
    )
    chosen = filter_pool(pool, Request(compose([], [str(recipe)])), allow=lambda work: None).selection
    shown, made = page(pool, chosen, tmp_path / "report.html")
    assert made.notes == []
    labels = [c.attrib["aria-label"] for c in shown.charts()]
    assert any("caption_words: 40 values before, 10 after; thresholds: min_words 9." in label for label in labels)
    assert any("thresholds: min 0.25." in label for label in labels)
    assert "none of the group's rules keeps it" in shown.text


def test_scores_of_a_rule_that_is_gone_are_left_out_and_named(pool: Pool, tmp_path: Path) -> None:
    rule = tmp_path / "mine.py"
    rule.write_text(MINE)
    chosen = choose(pool, str(rule))
    assert len(page(pool, chosen, tmp_path / "report.html")[0].charts()) == 1
    rule.unlink()
    shown, made = page(pool, chosen, tmp_path / "report.html")
    assert "The scores that" in made.notes[0]
    assert "mine.py" in made.notes[0]
    assert shown.charts() == []
    assert "the caption is too short" in shown.text


MINE = """
from dataclasses import dataclass
import polars as pl
from curate.filter_api import Column, Judge

@dataclass(frozen=True)
class Mine(Judge):
    reasons = {"short": "the caption is too short"}

    def needs(self):
        return [Column("caption")]

    def keep(self, pool):
        return {"short": pl.col("caption").str.len_chars() > 29}

    def values(self):
        return {"short": pl.col("caption").str.len_chars()}
"""


def test_a_rule_file_inside_the_pool_is_not_run(pool: Pool, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    rule = pool.layout.root / "evil.py"
    chosen = choose(pool, "random:n=3")
    rule.write_text(f"open({str(ran)!r}, 'w')\n")
    raw = json.loads((chosen.folder / "selection.json").read_bytes())
    raw["rules"] = [f"any({rule}; basic)"]
    _, made = page(pool, Selection(chosen.folder, raw), tmp_path / "report.html")
    assert not ran.exists()
    assert "is a rule file inside the pool, which is not run" in made.notes[0]


# --- what is refused --------------------------------------------------------------------------------------


def test_a_selection_of_an_older_pool(pool: Pool, tmp_path: Path) -> None:
    chosen = choose(pool, "random:n=3")
    make_pool(tmp_path / "pool", 3, 20, extra={SIMILARITY: similarity})
    newer = open_pool(tmp_path / "pool")
    with pytest.raises(InputError, match="was made of an older state of this pool") as caught:
        view.report(newer, chosen, tmp_path / "report.html")
    assert caught.value.exit_code == 2
    assert "--allow-stale" in (caught.value.hint or "")
    assert not (tmp_path / "report.html").exists()
    shown, made = page(newer, chosen, tmp_path / "report.html", allow_stale=True)
    assert "was made of an older state of the pool" in shown.text
    assert made.charted == 40  # the third shard has no decisions


Spoil = Callable[[Path], Path]


def _folder(root: Path) -> Path:
    return root


def _other_file(root: Path) -> Path:
    (root / "notes.html").write_text("<!doctype html> my notes")
    return root / "notes.html"


REFUSED: Sequence[tuple[Spoil, str]] = [
    (_folder, "is a folder"),
    (lambda root: root / "no" / "report.html", "its folder does not exist"),
    (lambda root: root / "pool" / "report.html", "lies in the pool"),
    (_other_file, "is there already and is no report"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_places_that_are_refused(pool: Pool, tmp_path: Path, spoil: Spoil, message: str) -> None:
    chosen = choose(pool, "random:n=3")
    out = spoil(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        view.report(pool, chosen, out)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_written_but_the_page(pool: Pool, tmp_path: Path) -> None:
    chosen = choose(pool, *RULES)

    def state() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in pool.layout.root.rglob("*")}

    before = state()
    for _ in range(2):  # the second time over the first's page
        view.report(pool, chosen, tmp_path / "report.html")
    assert state() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pool", "report.html"]


def test_without_pictures(pool: Pool, tmp_path: Path) -> None:
    shown, made = page(pool, choose(pool, *RULES), tmp_path / "report.html", pictures=False)
    assert shown.images() == []
    assert made.pictures == 0
    assert "no thumbnails were asked for" in shown.text
    assert "Blur pictures" not in shown.text


# --- the command ------------------------------------------------------------------------------------------


def curate(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", "from curate.cli import main; main()", *map(str, words)]
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command(pool: Pool, tmp_path: Path) -> None:
    done = curate("report", cwd=tmp_path)
    assert done.returncode == 2
    assert "has no selection yet" in done.stderr
    assert "hint: make one with: curate filter" in done.stderr
    choose(pool, "random:n=3", name="first")
    choose(pool, "random:n=4", name="second")
    done = curate("report", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["format"] == 1
    assert (said["selection"], said["kept"], said["out"]) == ("second", 4, "report.html")
    done = curate("report", "--selection", "first", "--out", "first.html", cwd=tmp_path)
    assert done.stdout.startswith("first.html: selection first, 3 of 40 samples kept, ")
    assert Page(tmp_path / "first.html").text
    assert selections.names(pool.layout) == ["first", "second"]
