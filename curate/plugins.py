"""Filters by name or file: found through the entry-point group, built from typed settings, checked on the way.

The machine knows no filter by name. A stranger's package adds one by an entry point of the same group; a file
is given as `--rule path/to/file.py`. Whatever goes wrong inside a plug-in names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import pickle
import sys
import threading
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import MISSING, dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from curate.errors import CurateError, InputError, PartError, UnknownName, no_such
from curate.filter_api import File, Filter, Judge, Sampler, Scorer

GROUP = f"{__package__}.filters"
_FILE = "_curate_rule_"
"""What the name of a rule file's module begins with; digits of the file's sha256 follow."""


# --- finding and loading ----------------------------------------------------------------------------------


@cache
def installed() -> Mapping[str, EntryPoint]:
    """The filters that are installed, by name. Raises InputError where two packages claim one name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise InputError(
                f"rule {point.name}",
                f"two packages claim this name ({other.value}, {point.value})",
                hint="uninstall one of them",
            )
    return dict(sorted(found.items()))


def load(name: str) -> type[Filter]:
    """The filter class of this name, or in this `.py` file. Raises InputError naming the plug-in."""
    if name.endswith(".py"):
        return _whole(_only_filter(load_file(Path(name)), name), name)
    points = installed()
    if name not in points:
        raise UnknownName("--rule", "rule", name, points, hint="curate rules lists them")
    with blamed(name, InputError):
        found = points[name].load()
    if not (isinstance(found, type) and issubclass(found, (Judge, Sampler))):
        raise InputError(f"rule {name}", f"is neither a judge nor a sampler ({points[name].value})")
    return _whole(found, name)


def _whole(cls: type[Filter], name: str) -> type[Filter]:
    if "__dataclass_fields__" not in vars(cls):
        raise InputError(f"rule {name}", f"{cls.__name__} is not a dataclass")
    said = getattr(cls, "reasons", None)
    if not isinstance(said, Mapping) or not all(isinstance(text, str) for text in said.values()):
        raise InputError(f"rule {name}", "has no `reasons`, a sentence for each reason of a drop")
    return cls


def load_file(path: Path) -> types.ModuleType:
    """The module in a file, imported once under a name made of its bytes, so that workers find it too."""
    try:
        source = path.read_bytes()
    except OSError as error:
        if path.exists():
            raise InputError(str(path), f"cannot be read ({error.strerror})") from error
        hint = "curate rules lists the rules that need no file"
        raise no_such(path, "rule file", like=lambda p: p.suffix == ".py", hint=hint) from error
    name = f"{_FILE}{hashlib.sha256(source).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(str(path), "is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with blamed(str(path), InputError):
            spec.loader.exec_module(module)
    except CurateError:
        del sys.modules[name]
        raise
    return module


def _only_filter(module: types.ModuleType, path: str) -> type[Filter]:
    classes = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, (Judge, Sampler)) and c.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(c.__name__ for c in classes) or "none"
        raise InputError(path, f"must define one judge or sampler (found: {names})")
    return classes[0]


@contextmanager
def blamed(name: str, kind: type[CurateError]) -> Iterator[None]:
    """An exception of a plug-in inside becomes `kind`, naming the plug-in; what it prints goes to stderr."""
    try:
        with _stdout_to_stderr:
            yield
    except CurateError:
        raise
    except (Exception, SystemExit) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise kind(f"rule {name}", f"{type(error).__name__}: {first}".rstrip(": ")) from error


class _Redirect:
    """Sends stdout to stderr while anybody is inside, in whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._stack.enter_context(redirect_stdout(sys.stderr))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stack.close()


_stdout_to_stderr = _Redirect()


# --- settings ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One setting of a filter, for its page and for parsing."""

    name: str
    type: Any
    default: Any
    help: str
    choices: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Its type for people: `number`, `text`, `file`, `a+b`, `file+file`, ..."""
        names = {int: "whole number", float: "number", str: "text", bool: "true|false", File: "file"}
        if self.choices:
            return "|".join(self.choices)
        base = _without_none(self.type)
        if typing.get_origin(base) is tuple:
            return "file+file" if typing.get_args(base)[0] is File else "a+b"
        return names.get(base, str(base))


def settings(cls: type[Filter]) -> list[Setting]:
    """The settings of a filter class, in the order of its fields."""
    if "__dataclass_fields__" not in vars(cls):
        raise InputError(f"rule {cls.__name__}", "is not a dataclass")
    hints = _field_types(cls)
    return [
        Setting(
            f.name,
            hints[f.name],
            None if f.default is MISSING else f.default,
            f.metadata.get("help", ""),
            f.metadata.get("choices", ()),
        )
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]  # it is one: checked above
    ]


def _field_types(cls: type[Filter]) -> dict[str, Any]:
    """The types of the fields alone: class variables may name what only a type checker imports."""

    def probe() -> None: ...

    probe.__annotations__ = {f.name: f.type for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return typing.get_type_hints(probe, vars(sys.modules[cls.__module__]))


def build(name: str, values: Mapping[str, Any]) -> Filter:
    """The filter `name` with these settings, given as text or as TOML values.

    Raises InputError for an unknown key (naming the nearest), a value of the wrong kind, or one that the
    filter refuses.
    """
    cls = load(name)
    with blamed(name, InputError):
        known = {s.name: s for s in settings(cls)}
    for key in values:
        if key not in known:
            raise UnknownName(f"rule {name}", "setting", key, known, hint=f"curate rules {name}")
    parsed = {key: _parse(name, known[key], value) for key, value in values.items()}
    try:
        with blamed(name, InputError):
            return cls(**parsed)
    except InputError as error:
        if isinstance(error.__cause__, (ValueError, TypeError)):
            what = str(error.__cause__)
            raise InputError(f"rule {name}", what, hint=f"curate rules {name}") from error.__cause__
        raise


_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        if len(kinds) == 1:
            return kinds[0]
    return hint


def _parse(rule: str, setting: Setting, value: Any) -> Any:
    kind = _without_none(setting.type)
    try:
        parsed = _convert(kind, value)
    except (ValueError, TypeError):
        what = f"{setting.name} must be a {setting.kind} (found {value!r})"
        raise InputError(f"rule {rule}", what, hint=f"curate rules {rule}") from None
    if setting.choices and parsed not in setting.choices:
        raise UnknownName(f"rule {rule}", setting.name, str(parsed), setting.choices, hint=f"curate rules {rule}")
    return parsed


def _convert(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        items = value.split("+") if isinstance(value, str) else list(value)
        return tuple(_convert(inner, v) for v in items)
    if kind is bool:
        word = str(value).lower()
        return _TRUTH[word] if word in _TRUTH else _refuse(value)
    if kind is File:
        return File.at(value)
    if isinstance(value, bool) and kind in (int, float):
        return _refuse(value)
    if kind is int:
        return int(str(value).replace("_", ""))
    if kind is float:
        number = float(value)
        return number if number == number else _refuse(value)
    if kind is str:
        return str(value)
    return _refuse(value)


def _refuse(value: Any) -> Any:
    raise ValueError(value)


def page(name: str) -> str:
    """What a filter says of itself: the docstring of its class, cleaned."""
    return inspect.getdoc(load(name)) or ""


def source_of(plugin: object) -> dict[str, str]:
    """What a plug-in of a rule file adds to a fingerprint: the file's digest. Others go by their version."""
    module = type(plugin).__module__
    return {"file": module.removeprefix(_FILE)} if module.startswith(_FILE) else {}


# --- across processes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScorerRef:
    """A scorer on its way to another process: pickled, with the rule file that must be loaded first."""

    pickled: bytes
    path: str | None

    @classmethod
    def of(cls, scorer: Scorer) -> ScorerRef:
        """The reference to a scorer of an installed or a file's plug-in."""
        module = sys.modules[type(scorer).__module__]
        file = module.__file__ if module.__name__.startswith(_FILE) else None
        return cls(pickle.dumps(scorer), file)

    def load(self) -> Scorer:
        """The scorer itself."""
        if self.path:
            load_file(Path(self.path))
        scorer: Scorer = pickle.loads(self.pickled)
        return scorer


def blame_part(scorer: Scorer) -> Any:
    """Exceptions of a scorer inside the block become a PartError that names it."""
    return blamed(scorer.name, PartError)
