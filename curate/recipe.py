"""Recipes: an ordered list of rules, or of groups of judges, from `--rule` texts and TOML files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from curate import plugins, receipts
from curate.errors import InputError, UnknownName, no_such
from curate.filter_api import Facts, Filter, Judge, Need, Sampler, settings_of

GROUPS = ("any", "all", "not")
_DIVIDING = frozenset(",;()")
"""Characters that divide a rule's text outside of quotes."""

MACHINE_SETTINGS = {"among": ("pool", "left"), "of": ("pool", "left")}
"""Settings that every judge takes, and that the machine carries out."""
_HINT = "a recipe is a .toml file, or the name of one that comes with curate"


def label_of(name: str) -> str:
    """What the rule of this name is called in results: its name, or the stem of its file."""
    return Path(name).stem if name.endswith(".py") else name


@dataclass(frozen=True)
class Rule:
    """A filter with its settings."""

    name: str
    filter: Filter
    among: str = "pool"
    """What a judge's figures are taken over."""
    of: str | None = None
    """What a judge's fractions are of; None is the same as `among`."""

    @property
    def label(self) -> str:
        """What the rule is called in results."""
        return label_of(self.name)

    def describe(self) -> dict[str, Any]:
        """The rule as JSON values; files, a rule's own too, by their sha256."""
        said: dict[str, Any] = {"rule": self.label, "settings": settings_of(self.filter)}
        if self.label != self.name:
            said["file"] = receipts.file_sha256(Path(self.name))
        if isinstance(self.filter, Judge) and (self.among, self.of) != ("pool", None):
            said |= {"among": self.among, "of": self.of or self.among}
        return said

    @property
    def text(self) -> str:
        """The rule as it is written on the command line, settings that are at their default left out."""
        said = []
        for setting in plugins.settings(type(self.filter)):
            value = getattr(self.filter, setting.name)
            if value != setting.default and value is not None:
                said.append(f"{setting.name}={_text(value)}")
        if isinstance(self.filter, Judge):
            said += ["among=left"] if self.among == "left" else []
            said += [f"of={self.of}"] if self.of else []
        return self.name + (":" + ",".join(said) if said else "")

    def sentences(self) -> dict[str, str]:
        """Reason to sentence with the settings filled in; `{value}` and `{of}` stay to be filled."""
        with plugins.blamed(self.name, InputError):
            return {reason: _filled(text, self.filter) for reason, text in self.filter.reasons.items()}

    @property
    def needs(self) -> list[Need]:
        """What its filter reads. Raises InputError, naming it, where that is anything else."""
        with plugins.blamed(self.name, InputError):
            found = list(self.filter.needs())
        for need in found:
            if not isinstance(need, Need):
                raise InputError(f"rule {self.name}", f"needs {need!r}, which is no Column, Score, Vectors, ...")
        return found

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Itself: a rule is a group of one."""
        return (self,)

    def settle(self, pool: Facts) -> Rule:
        """The rule with what depends on the pool filled in."""
        with plugins.blamed(self.name, InputError):
            settled = replace(self, filter=self.filter.settle(pool))
            settled.sentences()  # one that cannot be filled in is refused before anything is computed
        return settled


@dataclass(frozen=True)
class Group:
    """Judges taken together: `any`, `all` or `not` of them."""

    how: str
    members: tuple[Rule | Group, ...]

    @property
    def label(self) -> str:
        """For tables: `any(clipscore, basic)`."""
        return f"{self.how}({', '.join(m.label for m in self.members)})"

    @property
    def text(self) -> str:
        """The members as they would be written alone."""
        return f"{self.how}({'; '.join(m.text for m in self.members)})"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """All rules inside."""
        return tuple(r for m in self.members for r in m.rules)

    def describe(self) -> dict[str, Any]:
        """The group as JSON values."""
        return {self.how: [m.describe() for m in self.members]}

    def settle(self, pool: Facts) -> Group:
        """The group with what depends on the pool filled in."""
        return replace(self, members=tuple(m.settle(pool) for m in self.members))


Step = Rule | Group


@dataclass(frozen=True)
class Recipe:
    """Rules in order; each sees what those above left."""

    steps: tuple[Step, ...]
    keep_same_uid: bool = False
    """Whether further rows with one uid are kept, as DataComp does, instead of dropped as `same_uid`."""
    name: str = ""
    """What was asked for with `--recipe`, where that is all of it. Says nothing of what is done."""

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @property
    def digest(self) -> str:
        """sha256 of all that the recipe says."""
        return receipts.digest(self.describe())

    @property
    def default_name(self) -> str:
        """The name of its selection unless the user gives one: the rules and six digits of the digest."""
        names = "-".join(dict.fromkeys(r.label for s in self.steps for r in s.rules))
        return f"{names[:60]}-{self.digest[:6]}"

    def describe(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        said: dict[str, Any] = {"steps": [s.describe() for s in self.steps]}
        return said | ({"keep_same_uid": True} if self.keep_same_uid else {})

    def settle(self, pool: Facts) -> Recipe:
        """The recipe with what depends on the pool filled in. Raises InputError where a rule cannot be."""
        return replace(self, steps=tuple(s.settle(pool) for s in self.steps))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(_text(v) for v in value)
    if isinstance(value, bool):
        return str(value).lower()
    path = getattr(value, "path", None)
    text = str(path if path is not None else value)
    return f'"{text}"' if _DIVIDING & set(text) else text


class _Values(dict[str, Any]):
    """Fields of a sentence: settings are filled in, `value` and `of` come back as they stand."""

    def __missing__(self, key: str) -> Any:
        return _Later(key)


class _Later:
    def __init__(self, name: str) -> None:
        self.name = name

    def __format__(self, form: str) -> str:
        return "{" + self.name + (f":{form}" if form else "") + "}"


def _filled(text: str, filter_: Filter) -> str:
    held = {s.name: getattr(filter_, s.name) for s in plugins.settings(type(filter_))}
    values = {name: v if isinstance(v, (int, float, str)) else _text(v) for name, v in held.items()}
    return text.format_map(_Values(values))


# --- from the command line --------------------------------------------------------------------------------


def parse_rule(text: str) -> Rule:
    """A rule as written after `--rule`: NAME or NAME:key=value,key=value.

    Only the first colon and unquoted commas divide. Raises InputError naming what is wrong.
    """
    name, _, rest = text.partition(":")
    return make_rule(name.strip(), _pairs(rest, f"--rule {text}", f"curate rules {name}"))


def _pairs(text: str, where: str, hint: str) -> dict[str, str]:
    """The settings of `key=value,key=value`. Raises InputError for what is none, and for a key given twice."""
    values: dict[str, str] = {}
    for item in _split(text):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(where, f"{item!r} is not key=value", hint=hint)
        if key.strip() in values:
            raise InputError(where, f"{key.strip()} is given twice", hint="a list is a+b")
        values[key.strip()] = value.strip().strip('"')
    return values


def _split(text: str) -> list[str]:
    items, quoted, item = [], False, ""
    for character in text:
        if character == '"':
            quoted = not quoted
        if character == "," and not quoted:
            items.append(item)
            item = ""
        else:
            item += character
    return [i for i in [*items, item] if i.strip()]


def make_rule(name: str, values: Mapping[str, Any]) -> Rule:
    """The rule `name` with these settings; `among` and `of` go to the machine where the filter is a judge."""
    own = {s.name for s in plugins.settings(plugins.load(name))} if values else set()
    machine = {k: v for k, v in values.items() if k in MACHINE_SETTINGS and k not in own}
    for key, value in machine.items():
        if value not in MACHINE_SETTINGS[key]:
            raise UnknownName(f"rule {name}", key, str(value), MACHINE_SETTINGS[key], hint=f"curate rules {name}")
    built = plugins.build(name, {k: v for k, v in values.items() if k not in machine})
    if machine and isinstance(built, Sampler):
        raise UnknownName(f"rule {name}", "setting", next(iter(machine)), own, hint=f"curate rules {name}")
    return Rule(name, built, **machine)


def parse_step(text: str) -> Step:
    """The step whose `text` this is: a rule, or a group with its members. Raises InputError."""
    how, parenthesis, rest = text.partition("(")
    if how not in GROUPS or not parenthesis or not rest.endswith(")"):
        return parse_rule(text)
    return Group(how, tuple(parse_step(member) for member in _members(rest[:-1])))


def rule_names(text: str) -> list[str]:
    """The names, or paths, of the rules in the `text` of a step, none of which is loaded."""
    how, parenthesis, rest = text.partition("(")
    if how in GROUPS and parenthesis and rest.endswith(")"):
        return [name for member in _members(rest[:-1]) for name in rule_names(member)]
    return [text.partition(":")[0].strip()]


def _members(text: str) -> list[str]:
    """The texts of a group's members: only semicolons outside quotes and inner groups divide."""
    members, quoted, depth = [""], False, 0
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character == "(") - (character == ")")
        if character == ";" and not quoted and not depth:
            members.append("")
        else:
            members[-1] += character
    return [m.strip() for m in members]


# --- from TOML --------------------------------------------------------------------------------------------


def read(text: str) -> Recipe:
    """The recipe in a TOML file, or the shipped one of this name, with the settings after its first colon.

    `NAME:key=value` goes to the rule that has this setting, `NAME:rule.key=value` to that of the rule named.
    Raises InputError naming file and entry.
    """
    name, _, rest = (text, "", "") if text.endswith(".toml") else text.partition(":")
    settings = _pairs(rest, f"--recipe {text}", f"curate filter --recipe {name}:KEY=VALUE")
    path = Path(name)
    if name.endswith(".toml") or path.is_file():
        try:
            held = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise no_such(path, "recipe", like=lambda p: p.suffix == ".toml", hint=_HINT) from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(name, f"cannot be read ({error})") from error
        return parse(held, name, settings)
    known = shipped()
    if name not in known:
        raise UnknownName("--recipe", "recipe", name, known, hint=_HINT)
    return parse(known[name].read_text(encoding="utf-8"), name, settings)


def shipped() -> dict[str, Path]:
    """The recipes that come with the filters, by name (`folder/stem`)."""
    root = Path(str(files(plugins.GROUP))) / "recipes"
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.toml"))}


def parse(text: str, where: str, settings: Mapping[str, str] | None = None) -> Recipe:
    """A recipe from TOML text: `[[rule]]` tables with `use = NAME` and settings, or `any`/`all`/`not` lists.

    `settings` take the place of the rules' own.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(where, f"is not TOML that can be read ({error})") from error
    receipts.check_format(raw, Path(where))
    known = {"format", "about", "keep_same_uid", "rule"}
    for key in raw:
        if key not in known:
            raise UnknownName(where, "entry", key, known)
    entries = raw.get("rule", [])
    if not isinstance(entries, list) or not entries:
        raise InputError(where, "has no [[rule]]")
    for key, value in (settings or {}).items():
        _set(entries, key, value, where)
    steps = tuple(_step(e, f"{where}, rule {i}") for i, e in enumerate(entries, 1))
    keep = raw.get("keep_same_uid", False)
    if not isinstance(keep, bool):
        raise InputError(where, f"keep_same_uid must be true or false (found {keep!r})")
    return checked(Recipe(steps, keep), where)


def _step(entry: Any, where: str) -> Step:
    if not isinstance(entry, Mapping):
        raise InputError(where, f"is not a table (found {entry!r})")
    groups = [k for k in GROUPS if k in entry]
    if groups:
        listed = entry[groups[0]] if isinstance(entry[groups[0]], list) else []
        members = tuple(_step(e, f"{where}, {groups[0]} {i}") for i, e in enumerate(listed, 1))
        if len(entry) > 1 or not members:
            raise InputError(where, f"{groups[0]} takes a list of judges and nothing else")
        samplers = [r.name for m in members for r in m.rules if isinstance(r.filter, Sampler)]
        if samplers:
            raise InputError(
                where,
                f"{groups[0]} takes judges, and {samplers[0]} is a sampler: it chooses among what is left",
                hint=f"give {samplers[0]} a [[rule]] of its own",
            )
        return Group(groups[0], members)
    if "use" not in entry:
        raise InputError(
            where, f"names no rule (found: {', '.join(entry) or 'nothing'})", hint='write use = "NAME"'
        )
    try:
        return make_rule(str(entry["use"]), {k: v for k, v in entry.items() if k != "use"})
    except InputError as error:
        raise InputError(where, str(error), hint=error.hint) from error


def _set(entries: Sequence[Any], key: str, value: str, where: str) -> None:
    """Give the one rule among `entries` that has the setting `key`, or `RULE.KEY`, this value.

    Where several have it, the one for which the recipe itself sets it.
    """
    held = [(label_of(str(e["use"])), _settable(str(e["use"])), e) for e in _uses(entries)]
    rule, _, own = key.rpartition(".")
    found = [(label, entry) for label, keys, entry in held if own in keys and rule in ("", label)]
    if not found:
        named = any(label == rule for label, *_ in held)
        known = {k if not rule else f"{label}.{k}" for label, keys, _ in held for k in keys}
        known = {k for k in known if not named or k.startswith(f"{rule}.")}
        raise UnknownName(f"--recipe {where}", "setting", key, known)
    found = [(label, entry) for label, entry in found if own in entry] or found
    if len(found) > 1:
        labels = list(dict.fromkeys(label for label, _ in found))
        hint = f"write {' or '.join(f'{label}.{own}=' for label in labels)}"
        if len(labels) == 1:
            hint = "copy the recipe to a TOML file of your own, and set it there"
        raise InputError(f"--recipe {where}", f"several rules have {own} ({', '.join(labels)})", hint=hint)
    found[0][1][own] = value


def _uses(entries: Any) -> Iterator[dict[str, Any]]:
    """The entries that name a rule, inside groups too."""
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and "use" in entry:
            yield entry
        elif isinstance(entry, dict):
            for how in GROUPS:
                yield from _uses(entry.get(how))


def _settable(name: str) -> set[str]:
    """What can be set of a rule; of a judge also what the machine carries out."""
    filter_ = plugins.load(name)
    machine = MACHINE_SETTINGS if issubclass(filter_, Judge) else ()
    return {s.name for s in plugins.settings(filter_)} | set(machine)


def checked(recipe: Recipe, where: str) -> Recipe:
    """The recipe, refused where it has no rule."""
    if not recipe.steps:
        raise InputError(where, "has no rule", hint="curate filter --rule clipscore")
    return recipe


def compose(rules: Sequence[str], recipes: Sequence[str]) -> Recipe:
    """One recipe of shipped or written recipes, then `--rule` texts, in that order."""
    parts = [read(r) for r in recipes]
    steps = tuple(s for r in parts for s in r.steps) + tuple(parse_rule(r) for r in rules)
    name = recipes[0] if len(recipes) == 1 and not rules else ""
    return checked(Recipe(steps, any(r.keep_same_uid for r in parts), name), "curate filter")
