"""Filters by name or file: found, built from settings, and blamed by name for whatever goes wrong in them."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curate import plugins
from curate.errors import CurateError, InputError, UnknownName
from curate.filter_api import File, Judge, Sampler, settings_of
from curate.plugins import ScorerRef
from tests.commands.cli import Ran, curate
from tests.pools import make_metadata, make_pool

FILTERS = Path(__file__).resolve().parents[1] / "filters"
NAMES = sorted(p.stem for p in FILTERS.glob("[!_]*.py"))

HEAD = """
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
import polars as pl
from curate.filter_api import *
from curate.filter_api import setting
"""

JUDGE = (
    HEAD
    + '''
@dataclass(frozen=True)
class Words(Judge):
    """Keep long captions."""

    reasons: ClassVar = {{"short": "{{value:.0f}} words are under {{least}}"}}
    least: int = setting(3, "fewest words")

    def needs(self):
        {needs}

    def keep(self, pool):
        {keep}

    def values(self):
        {values}
'''
)
NEEDS = 'return [Column("caption")]'
KEEP = 'return {"short": pl.col("caption").str.split(" ").list.len() >= self.least}'
VALUES = 'return {"short": pl.col("caption").str.split(" ").list.len()}'

SAMPLER = (
    HEAD
    + '''
@dataclass(frozen=True)
class Pick(Sampler):
    """Take the first."""

    reasons: ClassVar = {{"not_first": "is not the first"}}

    def needs(self):
        return []

    def draw(self, left):
        copies = np.zeros(left.n, np.uint16)
        copies[:1] = 1
        {draw}
'''
)

SCORER = (
    HEAD
    + '''
@dataclass(frozen=True)
class Length(Scorer):
    name: ClassVar[str] = "length"
    version: ClassVar[int] = 1
    columns: ClassVar[dict[str, str]] = {{"length": "{kind}"}}

    def needs(self):
        return [Column("caption")]

    def open(self, device):
        {open}

@dataclass(frozen=True)
class Long(Judge):
    """Keep long captions."""

    reasons: ClassVar = {{"short": "too short"}}

    def needs(self):
        return [Score(Length())]

    def keep(self, pool):
        return {{"short": pl.col("length") > 3}}
'''
)
OPEN = 'return lambda batch: {"length": [len(c) for c in batch.columns["caption"]]}'


def judge(*, needs: str = NEEDS, keep: str = KEEP, values: str = VALUES) -> str:
    return JUDGE.format(needs=needs, keep=keep, values=values)


def scorer(open: str = OPEN, kind: str = "Float32") -> str:
    return SCORER.format(open=open, kind=kind)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    make_metadata(
        tmp_path / "pool",
        [{"uid": f"{i:032x}", "url": f"u{i}", "text": " ".join("abcdefg"[: i + 1])} for i in range(6)],
    )
    return tmp_path / "pool"


def filtered(pool: Path, source: str, settings: str = "") -> Ran:
    """`curate filter` with a rule file of this source."""
    file = pool.parent / "mine.py"
    file.write_text(source)
    return curate("filter", "--pool", pool, "--rule", f"{file}{settings}", "--workers", 0, "--json")


# --- good ones --------------------------------------------------------------------------------------------


def test_the_filters_that_come_along() -> None:
    assert list(plugins.installed()) == NAMES
    for name in NAMES:
        cls = plugins.load(name)
        assert issubclass(cls, (Judge, Sampler))
        assert cls.reasons
        assert plugins.page(name).splitlines()[0].endswith(".")
        for setting in plugins.settings(cls):
            assert setting.help, f"{name}: {setting.name} has no help"
            assert (
                setting.kind in ("whole number", "number", "text", "file", "a+b", "file+file", "true|false")
                or setting.choices
            )


def test_a_judge_in_a_file(pool: Path) -> None:
    ran = filtered(pool, judge(), ":least=4")
    assert ran.code == 0, ran.err
    assert ran.json["counts"] == {"samples": 6, "kept": 3, "dropped": 3, "unjudged": 0}
    assert ran.json["name"].startswith("mine-")
    said = list(ran.json["sentences"].values())[-1]
    assert said["short"].format(value=2.0) == "2 words are under 4"


def test_a_sampler_in_a_file(pool: Path) -> None:
    ran = filtered(pool, SAMPLER.format(draw='return Draw(copies, "not_first")'))
    assert ran.code == 0, ran.err
    assert ran.json["counts"]["kept"] == 1


def test_a_scorer_in_a_file(pool: Path) -> None:
    ran = filtered(pool, scorer())
    assert ran.code == 0, ran.err
    assert ran.json["counts"]["kept"] == 4
    assert (pool / "scores" / "length-v1" / f"{'0' * 32}.parquet").is_file()


def test_a_changed_rule_file_is_another_rule(pool: Path) -> None:
    first = filtered(pool, judge())
    second = filtered(pool, judge(keep='return {"short": pl.col("caption").is_not_null()}'))
    assert first.json["counts"]["kept"] == 4
    assert second.json["counts"]["kept"] == 6
    assert first.json["name"] != second.json["name"]


def test_the_page_of_a_file(pool: Path) -> None:
    file = pool.parent / "mine.py"
    file.write_text(judge())
    ran = curate("rules", file)
    assert ran.code == 0
    assert "Keep long captions." in ran.out
    assert "least" in ran.out
    assert "fewest words" in ran.out


# --- bad ones ---------------------------------------------------------------------------------------------

BAD = {
    "not python": ("def (", 2, "mine.py: SyntaxError: invalid syntax"),
    "fails on import": ("import nothing_of_this_name", 2, "mine.py: ModuleNotFoundError: No module named"),
    "raises on import": ("1 / 0", 2, "mine.py: ZeroDivisionError: division by zero"),
    "no filter": ("x = 1", 2, "must define one judge or sampler (found: none)"),
    "two filters": (
        judge() + judge().replace("class Words", "class More"),
        2,
        "must define one judge or sampler (found: Words, More)",
    ),
    "no dataclass": (judge().replace("@dataclass(frozen=True)", ""), 2, "is not a dataclass"),
    "needs a column that is not there": (
        judge(needs='return [Column("captain")]'),
        2,
        "mine.py: no column 'captain' (found: caption, uid, url)",
    ),
    "reads what it does not need": (judge(needs="return []"), 2, "mine.py: ColumnNotFoundError"),
    "raises in needs": (judge(needs='raise ValueError("no idea")'), 2, "mine.py: ValueError: no idea"),
    "needs something else": (judge(needs='return ["caption"]'), 2, "mine.py: "),
    "needs nothing at all": (judge(needs="return None"), 2, "mine.py: "),
    "raises in keep": (judge(keep='raise ValueError("no idea")'), 2, "mine.py: ValueError: no idea"),
    "keeps by nothing": (judge(keep="return {}"), 2, "mine.py: it has no condition"),
    "returns nothing": (judge(keep="return None"), 2, "mine.py: "),
    "returns no expression": (judge(keep='return {"short": True}'), 2, "mine.py: "),
    "returns text": (judge(keep='return {"short": pl.col("caption") + "!"}'), 2, "mine.py: "),
    "fewer answers": (
        judge(keep='return {"short": (pl.col("caption") > "b").filter(pl.col("caption") > "b")}'),
        2,
        "mine.py: ",
    ),
    "a reason without a sentence": (
        judge(keep='return {"long": pl.col("caption").is_null()}'),
        2,
        "mine.py: reasons without a sentence: long",
    ),
    "raises in values": (judge(values="1 / 0"), 2, "mine.py: ZeroDivisionError"),
    "has no reasons": (judge().replace("    reasons:", "    causes:"), 2, "mine.py: "),
    "a sentence with an unknown field": (judge().replace("{least}", "{most.least}"), 2, "mine.py: "),
    "raises in draw": (SAMPLER.format(draw="1 / 0"), 2, "mine.py: ZeroDivisionError"),
    "draws too few": (
        SAMPLER.format(draw='return Draw(copies[1:], "not_first")'),
        2,
        "mine.py: gave 5 copies for 6 samples",
    ),
    "draws nothing": (SAMPLER.format(draw="return None"), 2, "mine.py: "),
    "draws for no reason": (SAMPLER.format(draw='return Draw(copies, "why")'), 2, "mine.py: drops for 'why'"),
    "draws into nowhere": (
        SAMPLER.format(draw='return Draw(copies, "not_first", of=np.full(left.n, 99))'),
        2,
        "mine.py: ",
    ),
    "a scorer that raises": (scorer("return lambda batch: 1 / 0"), 3, "length: ZeroDivisionError"),
    "a scorer that cannot open": (scorer("1 / 0"), 3, "length: ZeroDivisionError"),
    "a scorer of another column": (
        scorer('return lambda batch: {"width": [0]}'),
        3,
        "length: gave no column 'length'",
    ),
    "a scorer that gives too few": (
        scorer('return lambda batch: {"length": [1.0]}'),
        3,
        "length: gave 1 values of 'length' for 6 rows",
    ),
    "a scorer that gives nothing": (scorer("return lambda batch: None"), 3, "length: "),
    "a scorer of no type": (scorer(kind="Floating"), 3, "length: "),
}


@pytest.mark.parametrize(("source", "code", "said"), BAD.values(), ids=BAD)
def test_what_goes_wrong_in_a_rule_file_names_it(pool: Path, source: str, code: int, said: str) -> None:
    ran = filtered(pool, source)
    assert ran.code == code, ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err
    if code == 2:
        assert not list(pool.rglob("uids.npy"))


def test_a_scorer_of_pixels_that_raises(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    source = (
        scorer()
        .replace('Column("caption")', 'Images(), Column("caption")')
        .replace("def open", "def prepare(self, image):\n        1 / 0\n\n    def open")
    )
    ran = filtered(tmp_path / "pool", source)
    assert (ran.code, ran.err) == (2, "curate: rule length: ZeroDivisionError: division by zero\n")
    once = "if image.width == 384: return np.zeros((2, 2))  # what the rate is measured on"
    ran = filtered(tmp_path / "pool", source.replace("        1 / 0", f"        {once}\n        1 / 0"))
    assert ran.code == 3
    assert "Length.prepare failed (ZeroDivisionError: division by zero)" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (":leest=3", "mine.py: no setting 'leest' (found: least)"),
        (":least=few", "mine.py: least must be a whole number (found 'few')"),
        (":least", "'least' is not key=value"),
        (":least=1,least=2", "least is given twice"),
        (":among=right", "mine.py: no among 'right' (found: left, pool)"),
    ],
)
def test_settings_that_are_wrong(pool: Path, settings: str, said: str) -> None:
    ran = filtered(pool, judge(), settings)
    assert ran.code == 2
    assert said in ran.err
    assert "hint: " in ran.err


def test_names_that_are_wrong(pool: Path) -> None:
    ran = curate("filter", "--pool", pool, "--rule", "clipscor")
    assert ran.code == 2
    assert "no rule 'clipscor' (found: basic, clipscore, " in ran.err
    assert "hint: did you mean 'clipscore'?" in ran.err
    ran = curate("filter", "--pool", pool, "--rule", pool.parent / "nowhere.py")
    assert ran.code == 2
    assert "nowhere.py" in ran.err


class Point(importlib.metadata.EntryPoint):
    """An entry point that any test may make."""


def test_two_packages_may_not_claim_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [Point("mine", value, plugins.GROUP) for value in ("a:A", "b:B")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    plugins.installed.cache_clear()
    try:
        with pytest.raises(InputError, match=r"two packages claim this name \(a:A, b:B\)"):
            plugins.installed()
        plugins.installed.cache_clear()
        points[:] = [Point("mine", "json:JSONDecoder", plugins.GROUP)]
        with pytest.raises(InputError, match=r"is neither a judge nor a sampler \(json:JSONDecoder\)"):
            plugins.load("mine")
        plugins.installed.cache_clear()
        points[:] = [Point("mine", "json:Nothing", plugins.GROUP)]
        with pytest.raises(InputError, match=r"rule mine: AttributeError"):
            plugins.load("mine")
    finally:
        plugins.installed.cache_clear()


# --- settings ---------------------------------------------------------------------------------------------

SETTINGS = (
    HEAD
    + '''
@dataclass(frozen=True)
class All(Judge):
    """Has a setting of every kind."""

    reasons: ClassVar = {"no": "no"}
    number: int = setting(1, "a whole number")
    share: float = setting(0.5, "a number")
    word: str = setting("", "a text")
    maybe: float | None = setting(None, "a number or nothing")
    switch: bool = setting(False, "on or off")
    names: tuple[str, ...] = setting((), "several")
    parts: tuple[float, ...] = setting((), "several numbers")
    mode: str = setting("a", "one of two", choices=("a", "b"))
    file: File | None = setting(None, "a file")
'''
)


@pytest.fixture
def every_kind(tmp_path: Path) -> str:
    (tmp_path / "all.py").write_text(SETTINGS)
    return str(tmp_path / "all.py")


@pytest.mark.parametrize(
    ("values", "name", "parsed"),
    [
        ({"number": "1_000"}, "number", 1000),
        ({"number": 7}, "number", 7),
        ({"share": "1e-3"}, "share", 0.001),
        ({"share": 1}, "share", 1.0),
        ({"maybe": "0.25"}, "maybe", 0.25),
        ({"word": "a=b:c"}, "word", "a=b:c"),
        ({"switch": "yes"}, "switch", True),
        ({"switch": False}, "switch", False),
        ({"names": "a+b"}, "names", ("a", "b")),
        ({"names": ["a", "b"]}, "names", ("a", "b")),
        ({"parts": "1+2.5"}, "parts", (1.0, 2.5)),
        ({"mode": "b"}, "mode", "b"),
    ],
)
def test_values_become_what_the_field_says(every_kind: str, values: dict[str, Any], name: str, parsed: Any) -> None:
    found = getattr(plugins.build(every_kind, values), name)
    assert found == parsed
    assert type(found) is type(parsed)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"number": "1.5"}, r"number must be a whole number \(found '1.5'\)"),
        ({"number": True}, r"number must be a whole number \(found True\)"),
        ({"share": "nan"}, r"share must be a number \(found 'nan'\)"),
        ({"switch": "maybe"}, r"switch must be a true\|false \(found 'maybe'\)"),
        ({"parts": "1+x"}, r"parts must be a a\+b \(found '1\+x'\)"),
        ({"mode": "c"}, r"no mode 'c' \(found: a, b\)"),
        ({"file": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_values_that_are_none(every_kind: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        plugins.build(every_kind, values)


def test_a_file_counts_by_its_content(every_kind: str, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("words")
    (tmp_path / "two.txt").write_text("words")
    one, two = (plugins.build(every_kind, {"file": str(tmp_path / n)}) for n in ("one.txt", "two.txt"))
    file = one.file  # type: ignore[attr-defined]
    assert isinstance(file, File)
    assert file.read_text() == "words"
    assert settings_of(one) == settings_of(two)


def test_an_unknown_setting_names_the_nearest(every_kind: str) -> None:
    with pytest.raises(UnknownName) as error:
        plugins.build(every_kind, {"numbr": 1})
    assert error.value.hint == "did you mean 'number'?"


# --- across processes -------------------------------------------------------------------------------------


def test_a_scorer_of_a_file_is_loaded_in_another_process(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(scorer())
    module = plugins.load_file(file)
    assert plugins.load_file(file) is module
    ref = ScorerRef.of(module.Length())
    code = (
        f"from curate.plugins import ScorerRef; s = ScorerRef({ref.pickled!r}, {ref.path!r}).load();"
        "from curate.filter_api import Batch;"
        "print(s.name, s.open('cpu')(Batch(['u'], {'caption': ['four']}, {}, [])))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "length {'length': [4]}\n"


def test_blame_leaves_our_own_errors_alone() -> None:
    with pytest.raises(InputError, match="mine: wrong") as error, plugins.blamed("other", CurateError):
        raise InputError("mine", "wrong", hint="right")
    assert error.value.hint == "right"
