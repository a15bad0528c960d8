"""Recipes: what `--rule` texts and TOML files say, how they are written back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate import recipe
from curate.errors import CurateError, InputError
from curate.recipe import Group, Recipe, Rule, compose, parse, parse_rule
from tests.commands.cli import curate


def settings(text: str) -> dict[str, object]:
    """The settings of a rule text that are not at their default."""
    rule = parse_rule(text)
    plain = parse_rule(rule.name) if rule.name != "random" else parse_rule("random:n=1")
    return {k: v for k, v in vars(rule.filter).items() if v != getattr(plain.filter, k)}


# --- on the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clipscore", {}),
        ("clipscore:", {}),
        ("clipscore:min=0.3", {"min": 0.3}),
        ("clipscore: min = 0.3 , model = tiny ", {"min": 0.3, "model": "tiny"}),
        ("clipscore:min=1e-1,", {"min": 0.1}),
        ('clipscore:model="a,b"', {"model": "a,b"}),
        ("clipscore:model=a:b=c", {"model": "a:b=c"}),
        ("dedup:keep=aesthetic+area", {"keep": ("aesthetic", "area")}),
        ("random:n=1_000,seed=7", {"n": 1000, "seed": 7}),
    ],
)
def test_only_the_first_colon_and_commas_divide(text: str, expected: dict[str, object]) -> None:
    assert settings(text) == expected


def test_a_judge_takes_the_settings_of_the_machine() -> None:
    rule = parse_rule("clipscore:top=0.5,among=left,of=pool")
    assert (rule.among, rule.of) == ("left", "pool")
    # of is a setting of random's own
    assert parse_rule("random:fraction=0.5,of=pool").of is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "--rule: no rule ''"),
        (":", "--rule: no rule ''"),
        ("clipscore:0.3", "--rule clipscore:0.3: '0.3' is not key=value"),
        ("clipscore:min=0.3,min=0.4", "min is given twice"),
        ("clipscore:maximum=1", "no setting 'maximum'"),
        ("clipscore:min=high", "min must be a number"),
        ("clipscore:min=2", "min is a cosine"),
        ("clipscore:min=0.3,top=0.3", "exclude each other"),
        ("clipscore:source=mine", "no source 'mine'"),
        ("random", "either fraction or n"),
        ("random:n=0", "n is 1 or more"),
        ("random:n=1,among=left", "no setting 'among' (found: fraction, n, of, seed)"),
    ],
)
def test_texts_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        compose([text], [])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "clipscore:min=0.3",
        "clipscore:top=0.5,among=left,of=pool",
        "dedup:model=tiny,keep=aesthetic+uid",
        'clipscore:model="a,b"',
        "basic:language=,min_words=5",
    ],
)
def test_a_rule_is_written_as_it_is_read(text: str) -> None:
    rule = parse_rule(text)
    assert parse_rule(rule.text) == rule
    assert parse_rule(rule.text).text == rule.text


# --- in TOML ----------------------------------------------------------------------------------------------

TOML = """
format = 1
about = "three steps"

[[rule]]
use = "clipscore"
min = 0.3
among = "left"

[[rule]]
any = [
    {use = "clipscore", model = "tiny", top = 0.5},
    {not = [{use = "basic", language = "", min_words = 10}]},
]

[[rule]]
use = "dedup"
keep = ["area", "uid"]
"""


def test_a_file_says_the_same_as_rules() -> None:
    made = parse(TOML, "here")
    first, group, last = made.steps
    assert first == parse_rule("clipscore:min=0.3,among=left")
    assert last == parse_rule("dedup")
    assert isinstance(group, Group)
    assert group.label == "any(clipscore, not(basic))"
    assert [type(m) for m in group.members] == [Rule, Group]
    assert recipe.parse_step(group.text) == group
    assert made.describe()["steps"][0] == {
        "rule": "clipscore",
        "settings": first.describe()["settings"],
        "among": "left",
        "of": "left",
    }


def test_the_digest_is_of_what_is_said() -> None:
    one = parse(TOML, "here")
    assert one.digest == parse(TOML.replace("three steps", "3 steps"), "there").digest
    assert one.digest != parse(TOML.replace("0.3", "0.31"), "here").digest
    assert one.digest != Recipe(one.steps, keep_same_uid=True).digest
    assert one.digest != Recipe(tuple(reversed(one.steps))).digest
    assert one.default_name == f"clipscore-basic-dedup-{one.digest[:6]}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "here: has no [[rule]]"),
        ("rule = 3", "here: has no [[rule]]"),
        ("rule = [3]", "here, rule 1: is not a table (found 3)"),
        ("[[rule]", "here: is not TOML that can be read ("),
        ("x = " + "[" * 3000, "here: is not TOML that can be read ("),
        (
            "format = 2\n[[rule]]\nuse = 'random'",
            "here: was written in a newer form (format 2, this version reads up to 1)",
        ),
        ("rules = []", "here: no entry 'rules'"),
        ("[[rule]]\nmin = 3", "here, rule 1: names no rule (found: min)"),
        ("[[rule]]\nuse = 'clipscor'", "here, rule 1: --rule: no rule 'clipscor'"),
        (
            "[[rule]]\nuse = 'clipscore'\nmin = 'x'",
            "here, rule 1: rule clipscore: min must be a number (found 'x')",
        ),
        (
            "[[rule]]\nuse = 'clipscore'\nmin = true",
            "here, rule 1: rule clipscore: min must be a number (found True)",
        ),
        ("[[rule]]\nuse = 'clipscore'\n[[rule]]\nuse = 'random'", "here, rule 2: rule random: "),
        ("[[rule]]\nany = []", "here, rule 1: any takes a list of judges and nothing else"),
        ("[[rule]]\nany = 3", "here, rule 1: any takes a list of judges and nothing else"),
        ("[[rule]]\nany = 'clipscore'", "here, rule 1: any takes a list of judges and nothing else"),
        ("[[rule]]\nany = [{use = 'dedup'}]", "here, rule 1: any takes judges, and dedup is a sampler: it chooses"),
        (
            "[[rule]]\nany = [{use = 'clipscore'}]\nuse = 'x'",
            "here, rule 1: any takes a list of judges and nothing",
        ),
        ("[[rule]]\nany = [{all = [{use = 'clip'}]}]", "here, rule 1, any 1, all 1: --rule: no rule 'clip'"),
        (
            "keep_same_uid = 'no'\n[[rule]]\nuse = 'clipscore'",
            "here: keep_same_uid must be true or false (found 'no')",
        ),
    ],
)
def test_files_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(CurateError) as error:
        parse(text, "here")
    assert said in str(error.value)
    assert error.value.exit_code == 2


TWO = """
[[rule]]
use = "clipscore"
model = "tiny"

[[rule]]
any = [{use = "basic", language = ""}, {not = [{use = "language"}]}]

[[rule]]
use = "random"
fraction = 0.5
"""


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ("", {}),
        ("min=0.3", {0: "clipscore:min=0.3,model=tiny"}),
        ("model=a:b/c,source=own", {0: "clipscore:model=a:b/c,source=own"}),
        ("clipscore.among=left", {0: "clipscore:model=tiny,among=left"}),
        # of several, the one that the recipe sets it for
        ("language=de", {1: "any(basic:language=de; not(language))"}),
        ("language.language=de", {1: "any(basic:language=; not(language:language=de))"}),
        ("fraction=0.1, seed = 3", {2: "random:fraction=0.1,seed=3"}),
    ],
)
def test_settings_after_a_recipes_name(tmp_path: Path, settings: str, changed: dict[int, str]) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    texts = [step.text for step in recipe.read(f"{tmp_path / 'two.toml'}" + (settings and f":{settings}"))]
    plain = ["clipscore:model=tiny", "any(basic:language=; not(language))", "random:fraction=0.5"]
    assert texts == [changed.get(i, text) for i, text in enumerate(plain)]


@pytest.mark.parametrize(
    ("settings", "said", "hint"),
    [
        ("tpo=0.1", "no setting 'tpo'", "did you mean 'top'?"),
        ("clipscore.tpo=0.1", "no setting 'clipscore.tpo'", "did you mean 'clipscore.top'?"),
        ("clipscor.top=0.1", "no setting 'clipscor.top'", "did you mean 'clipscore.top'?"),
        ("basic.top=0.1", "no setting 'basic.top'", None),
        ("among=left", "several rules have among (clipscore, basic, language)", "write clipscore.among= or "),
        ("top", "'top' is not key=value", "curate filter --recipe "),
        ("top=0.1,top=0.2", "top is given twice", "a list is a+b"),
        ("top=abc", "rule 1: rule clipscore: top must be a number (found 'abc')", "curate rules clipscore"),
        ("top=0.1,min=0.1", "rule 1: rule clipscore: min and top exclude each other", "curate rules clipscore"),
        ("n=5", "rule 3: rule random: wants either fraction or n", "curate rules random"),
    ],
)
def test_settings_of_a_recipe_that_are_refused(tmp_path: Path, settings: str, said: str, hint: str | None) -> None:
    (tmp_path / "two.toml").write_text(TWO)
    with pytest.raises(InputError) as error:
        recipe.read(f"{tmp_path / 'two.toml'}:{settings}")
    assert said in str(error.value)
    assert (error.value.hint or "").startswith(hint or "")


def test_a_setting_of_two_rules_of_one_name_has_no_way_to_say_which() -> None:
    twice = "[[rule]]\nuse = 'clipscore'\nmin = 0.1\n[[rule]]\nuse = 'clipscore'\nmin = 0.2"
    with pytest.raises(InputError, match=r"several rules have min \(clipscore\)") as error:
        parse(twice, "here", {"min": "0.3"})
    assert error.value.hint == "copy the recipe to a TOML file of your own, and set it there"


def test_the_same_settings_make_the_same_recipe() -> None:
    shipped = recipe.read("datacomp/clip_score:model=ViT-B-32/openai,min=0.28")
    assert shipped.digest == Recipe(shipped.steps, keep_same_uid=True).digest
    assert shipped.steps == (parse_rule("clipscore:model=ViT-B-32/openai,min=0.28,ties=datacomp"),)
    with pytest.raises(InputError, match="no recipe 'datacomp/clip_scor'") as error:
        recipe.read("datacomp/clip_scor:min=0.3")
    assert error.value.hint == "did you mean 'datacomp/clip_score'?"


def test_recipes_and_rules_follow_one_another(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("[[rule]]\nuse = 'clipscore'\nmin = 0.2")
    (tmp_path / "two.toml").write_text("keep_same_uid = true\n[[rule]]\nuse = 'dedup'")
    made = compose(["random:n=3"], [str(tmp_path / "one.toml"), str(tmp_path / "two.toml")])
    assert [r.label for s in made for r in s.rules] == ["clipscore", "dedup", "random"]
    assert made.keep_same_uid


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "strict.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"strict\.toml: cannot be read"):
        compose([], [str(tmp_path / "strict.toml")])
    with pytest.raises(InputError, match=r"strct\.toml") as error:
        compose([], [str(tmp_path / "strct.toml")])
    assert "strict.toml" in (error.value.hint or "")
    with pytest.raises(InputError, match="no recipe 'nothing-like-it'"):
        compose([], ["nothing-like-it"])
    with pytest.raises(InputError, match="has no rule"):
        compose([], [])


def test_the_recipes_that_come_along_can_be_read() -> None:
    found = recipe.shipped()
    assert found
    for name, path in found.items():
        assert path.is_file()
        made = recipe.read(name)
        assert made.steps, name
        for step in made:
            for rule in step.rules:
                assert rule.needs is not None


def test_the_command_says_what_a_recipe_lacks(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[[rule]]\nuse = 'clipscor'\n")
    (tmp_path / "pool").mkdir()
    ran = curate("filter", "--pool", tmp_path / "pool", "--recipe", tmp_path / "mine.toml")
    assert ran.code == 2
    assert "mine.toml, rule 1: --rule: no rule 'clipscor'" in ran.err
    assert "hint: did you mean 'clipscore'?" in ran.err
