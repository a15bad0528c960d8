"""The wheel: built from the project, unpacked elsewhere, run with nothing of the checkout in reach."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["basic", "clipscore", "concepts", "dedup", "image_based", "language", "nsfw", "random"]
NAMES += ["text_based", "uids", "watermark"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the project, so that nothing is built in the checkout."""
    pytest.importorskip("setuptools", minversion="77", reason="without network, wheels are built by what is here")
    folder = tmp_path_factory.mktemp("project")
    for name in ("curate", "filters"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    # as pip does it, without the network that its isolated environment wants
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "dist"], cwd=folder, check=True, capture_output=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as an installation leaves it."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(site: Path, *arguments: str, cwd: Path) -> str:
    """The output of Python that finds this wheel and, of the environment, the libraries alone."""
    libraries = json.dumps([p for p in sys.path if p.endswith("site-packages")])
    start = (
        "import sys, runpy\n"
        f"sys.path[:0] = [{str(site)!r}]\n"
        f"sys.path += {libraries}\n"
        "import importlib.metadata as m\n"
        "assert m.distribution('curate').locate_file('') == __import__('pathlib').Path(sys.path[0])\n"
        f"sys.argv = {['curate', *arguments]!r}\n"
        "runpy.run_module(sys.argv.pop(1), run_name='__main__')\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSTARTUP")}
    # -S: the environment's own .pth files would bring the checkout back
    ran = subprocess.run(
        [sys.executable, "-S", "-c", start], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_wheel_holds_all_that_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for source in [*(ROOT / "curate").rglob("*.py"), *(ROOT / "filters").rglob("*.py")]:
        inside = source.relative_to(ROOT).as_posix()
        assert (
            inside.replace("filters/", "curate/filters/", 1) in names
            if inside.startswith("filters")
            else inside in names
        )
    for data in (
        "curate/py.typed",
        "curate/filters/py.typed",
        "curate/weights/tiny.safetensors",
        "curate/filters/vocabularies/common.txt",
    ):
        assert data in names
    recipes = {
        f"curate/filters/{p.relative_to(ROOT / 'filters').as_posix()}" for p in (ROOT / "filters").rglob("*.toml")
    }
    assert recipes
    assert recipes <= names
    templates = {p.relative_to(ROOT).as_posix() for p in (ROOT / "curate" / "views").glob("*.html")}
    assert templates <= names
    packages = {name.split("/")[0] for name in names}
    assert packages <= {"curate", next(n for n in packages if n.endswith(".dist-info"))}
    assert not [n for n in names if "test" in n or n.startswith(("bench", "docs"))]


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folder = next(n for n in archive.namelist() if n.endswith("/METADATA")).rpartition("/")[0]
        metadata = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        licences = [n for n in archive.namelist() if n.endswith("LICENSE")]
    assert metadata["Name"] == "curate"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"].replace(" ", "") == "<3.13,>=3.10"
    assert licences
    assert "curate = curate.cli:program" in entry_points
    for name in NAMES:
        assert f"\n{name} = curate.filters.{name}:" in entry_points


def test_it_runs_outside_of_the_checkout(site: Path, tmp_path: Path) -> None:
    listed = python(site, "curate", "rules", cwd=tmp_path)
    assert [line.split()[0] for line in listed.splitlines()] == NAMES
    (tmp_path / "where.py").write_text(WHERE)
    told = json.loads(python(site, "where", cwd=tmp_path))
    assert all(Path(p).is_relative_to(site) for p in told["files"]), told["files"]
    folder = ROOT / "filters" / "recipes"
    shipped = (p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.toml"))
    assert told["recipes"] == sorted(shipped)
    assert told["norm"] == pytest.approx(1, abs=1e-5)


WHERE = """
import json
import sys
import numpy as np
import curate
from curate import models, plugins, recipe

classes = [plugins.load(name) for name in plugins.installed()]
for name in recipe.shipped():
    recipe.read(name)
vector = models.load(models.parse("tiny"), device="cpu").encode_texts(["a red circle"])[0]
print(json.dumps({
    "files": [
        curate.__file__,
        *(sys.modules[c.__module__].__file__ for c in classes),
        *map(str, recipe.shipped().values()),
    ],
    "recipes": sorted(recipe.shipped()),
    "norm": float(np.linalg.norm(vector)),
}))
"""
