"""The house as it was planned: who imports whom, what start-up costs, what is written down and what is not."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import typer

import curate
from curate import cli, filter_api
from curate.errors import ERROR_CODES
from tests.commands import cli as command

ROOT = Path(__file__).resolve().parents[1]
CURATE, FILTERS = ROOT / "curate", ROOT / "filters"
MACHINE, POLICY = sorted(CURATE.rglob("*.py")), sorted(FILTERS.rglob("*.py"))

FLOORS: Sequence[frozenset[str]] = (
    # from the ground up; a name is a module or a folder of `curate`
    frozenset({"curate", "devices", "disk", "errors", "progress", "sink", "uids"})
    | {"baselines", "scales", "subset_layout"},
    frozenset({"engines", "receipts", "shards", "vectors", "captions", "models", "assets"})
    | {"model_names", "preprocess", "decoding", "arrays", "stored", "torch_file"}
    | {"uid_files", "uid_lists"},
    frozenset({"filter_api"}),
    frozenset({"recipe", "plugins", "runner", "pool", "fetch", "selection", "pixels"}),
    frozenset({"stages", "views"}),
    frozenset({"demo", "sampling"}),
    frozenset({"cli", "__main__"}),
)


def room_of(path: Path) -> str:
    """The room that a file of `curate` stands in."""
    parts = path.relative_to(CURATE).with_suffix("").parts
    return "curate" if parts == ("__init__",) else parts[0]


def floor_of(room: str) -> int:
    return next(n for n, floor in enumerate(FLOORS) if room in floor)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (f"{node.module}." if node.module else "")
            yield from ((node.lineno, base + alias.name) for alias in node.names)


def rooms(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of all that a file of `curate` imports from other rooms."""
    for line, name in imports(path):
        parts = name.split(".")
        assert parts[0] != "", f"{path}:{line}: a relative import"
        if parts[0] == "curate":
            there = len(parts) > 1 and ((CURATE / parts[1]).is_dir() or (CURATE / f"{parts[1]}.py").is_file())
            room = parts[1] if there else "curate"
            if room != room_of(path):
                yield line, room


# --- who imports whom -------------------------------------------------------------------------------------


def test_every_room_has_a_floor() -> None:
    assert {room_of(p) for p in MACHINE} <= frozenset.union(*FLOORS)


def test_imports_run_downwards() -> None:
    for path in MACHINE:
        here = room_of(path)
        for line, room in rooms(path) if here != "curate" else ():
            assert floor_of(room) <= floor_of(here), f"{path}:{line}: {here} is below {room}"


def test_no_two_rooms_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for path in MACHINE:
        if room_of(path) != "curate":  # the package's front names what it loads late
            graph.setdefault(room_of(path), set()).update(room for _, room in rooms(path))
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")


def test_stages_know_no_views_and_nobody_knows_the_demo() -> None:
    for path in MACHINE:
        known = {room for _, room in rooms(path)}
        if room_of(path) not in ("cli", "__main__"):
            assert "demo" not in known, path
            assert "sampling" not in known, path
        if room_of(path) == "stages":
            assert "views" not in known, path


@pytest.mark.parametrize("path", POLICY, ids=lambda p: p.name)
def test_filters_see_the_machine_through_its_face(path: Path) -> None:
    for line, name in imports(path):
        if name.startswith("."):
            assert not name.startswith(".."), f"{path}:{line}: {name} is outside of the filters"
        elif name.split(".")[0] == "curate":
            assert name.startswith("curate.filter_api."), f"{path}:{line}: {name}"


def test_nobody_writes_where_the_filters_are_installed() -> None:
    """They are found through their entry points, as a stranger's are."""
    for path in MACHINE + POLICY:
        assert not [n for _, n in imports(path) if n.startswith("curate.filters")], path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.fullmatch(r"curate\.filters[.:\w]*", node.value), f"{path}:{node.lineno}"


def test_click_is_typers_own_affair() -> None:
    for path in MACHINE + POLICY:
        assert "click" not in {name.split(".")[0] for _, name in imports(path)}, path


# --- start-up ---------------------------------------------------------------------------------------------

HEAVY = ("torch", "faiss", "fasttext", "img2dataset", "ray", "polars", "pyarrow", "numpy", "cv2", "PIL", "aiohttp")


@pytest.mark.parametrize(
    "arguments",
    [
        *("--help", "--version"),
        *(f"{name} --help" for name in ("download", "filter", "subset", "rules", "explain", "centroids")),
        *("assets fetch --help", "selection and --help"),
    ],
)
def test_help_imports_nothing_heavy(arguments: str) -> None:
    code = (
        "import sys\n"
        "from curate.cli import main\n"
        f"sys.argv = ['curate', *{arguments.split()!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('loaded:', *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "loaded:"


def test_importing_the_package_loads_none_of_it() -> None:
    code = "import sys, curate; print([m for m in sys.modules if m.startswith('curate.')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


# --- what is promised by name -----------------------------------------------------------------------------


def test_public_names_are_there() -> None:
    assert sorted(curate.__all__) == [
        "CurateError",
        "Pool",
        "Selection",
        "__version__",
        "load_filter",
        "open_pool",
    ]
    for name in curate.__all__:
        assert getattr(curate, name) is not None
    for name in filter_api.__all__:
        assert getattr(filter_api, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = curate.nothing


def commands(app: typer.Typer = cli.app, group: str = "") -> list[str]:
    """Every command, those of groups with their group's name."""
    own = [f"{group}{info.name or info.callback.__name__}" for info in app.registered_commands if info.callback]
    groups = [(info.typer_instance, info.name or info.typer_instance.info.name) for info in app.registered_groups]
    return own + [name for sub, of in groups if sub for name in commands(sub, f"{group}{of} ")]


def test_the_commands() -> None:
    promised = {"download", "embed", "score", "filter", "subset", "report", "status", "verify", "rules"}
    promised |= {"explain", "centroids", "assets fetch", *(f"selection {n}" for n in ("and", "or", "minus"))}
    assert promised <= set(commands())
    assert isinstance(cli.app, typer.Typer)


@pytest.mark.parametrize("name", commands())
def test_help_has_an_example(name: str) -> None:
    ran = command.curate(*name.split(), "--help")
    assert ran.code == 0
    assert re.search(r"Examples?:", ran.out), f"{name} has no example"
    assert f"curate {name}" in ran.out.split("Example")[1]
    assert ran.err == ""


def test_error_codes_in_the_code_are_those_that_are_explained() -> None:
    known = set(ERROR_CODES)
    for path in MACHINE + POLICY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            first = node.args[0]
            if node.func.id == "SampleError" and isinstance(first, ast.Constant):
                assert first.value in known, f"{path}:{node.lineno}: {first.value!r}"
    assert all(re.fullmatch(r"[a-z_]+|http_NNN", code) for code in known)


# --- what is never written --------------------------------------------------------------------------------

TEXTS = [p for p in [*MACHINE, *POLICY, *sorted((ROOT / "tests").rglob("*.py"))] if p != Path(__file__).resolve()]


def test_no_path_of_a_machine_and_nothing_left_to_do() -> None:
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        found = re.search(r"(?<![\w.])/(?:work|root|home)/\w|\b(?:TODO|FIXME|XXX)\b", text)
        assert not found, f"{path}: {found}"


def test_every_file_says_what_it_is() -> None:
    for path in MACHINE + POLICY:
        source = path.read_text(encoding="utf-8")
        parsed = ast.parse(source)
        assert ast.get_docstring(parsed) or not parsed.body, f"{path} has no docstring"
        assert len(parsed.body) < 2 or "from __future__ import annotations" in source, path


def test_modules_stay_small() -> None:
    long = {str(p.relative_to(ROOT)): n for p in MACHINE + POLICY if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def test_every_module_can_be_imported() -> None:
    for path in MACHINE:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        importlib.import_module(name)
