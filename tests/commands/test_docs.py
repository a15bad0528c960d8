"""Every command of README.md and docs/ is run, and what the manual lists is what is there.

The pages are run as `manual` says, in the folders and with the small web and hub of `sandbox`. To every
`curate download` that is run, `--allow-private-hosts` is added, for these are on 127.0.0.1; a proxy that is
not there keeps all commands from any other network. Of the output that a page shows, words are compared and
numbers are not, for these may differ from machine to machine.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from curate import plugins, recipe
from curate.cli import app
from curate.errors import ERROR_CODES
from tests.commands import manual
from tests.commands.manual import PAGES, ROOT, Block, Command
from tests.commands.sandbox import Sandbox, sandbox

LANGUAGES = {"console", "text", "toml", "python", "json", "sh"}
WITHOUT_NETWORK: dict[str, tuple[int, str]] = {
    "curate download": (2, "this wants a yes"),
    "curate filter --rule clipscore": (2, "no such pool"),
    "curate subset --scale medium": (2, "no such pool"),
    "curate embed --model ViT-L-14/openai": (2, "its weights cannot be fetched"),
    "curate filter --rule basic": (2, "lid.176.bin is not on this machine"),
    "curate filter --rule watermark": (2, "watermark_model_v1.pt is not on this machine"),
    "curate assets fetch wordnet centroids:small": (2, "wordnet.zip is not on this machine"),
}
"""What blocks of `text` show: each command, how it ends where there is no network, and what it says then."""

DATACOMPS = {
    *("--scale", "--data_dir", "--metadata_dir", "--download_npz", "--skip_shards", "--overwrite_metadata"),
    *("--skip_bbox_blurring", "--processes_count", "--thread_count", "--image_size", "--resize_mode"),
    *("--no_resize_only_if_bigger", "--encode_format", "--output_format", "--retries", "--enable_wandb"),
    "--wandb_project",
}
"""The options of DataComp's `download_upstream.py`."""

README = ROOT / "README.md"
DOCS = ROOT / "docs"


# --- pages as scenarios -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("web")) as served:
        yield served


@pytest.fixture(scope="module")
def scenarios(
    request: pytest.FixtureRequest, box: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[Path, Future[None]]]:
    """The run of each page that was asked for, longest first, two at a time: a command keeps one core busy."""
    items = [i for i in request.session.items if isinstance(i, pytest.Function) and i.module is request.module]
    asked = {i.callspec.params["page"] for i in items if hasattr(i, "callspec")}
    runs = {}
    with ThreadPoolExecutor(2) as threads:
        for page in sorted((p for p in PAGES if p in asked), key=lambda p: -p.stat().st_size):
            folder = tmp_path_factory.mktemp(page.stem) / "work"
            folder.mkdir()
            box.fill(folder)
            runs[page] = threads.submit(_run_page, page, folder, box)
        yield runs
        threads.shutdown(cancel_futures=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_page_runs_from_top_to_bottom(page: Path, scenarios: Mapping[Path, Future[None]]) -> None:
    scenarios[page].result()


def _run_page(page: Path, folder: Path, box: Sandbox) -> None:
    for block in manual.blocks(page):
        if name := block.attribute("title"):
            (folder / name).write_text(block.text, encoding="utf-8")
        elif block.language in ("console", "text"):
            for command in manual.commands(block):
                _run_one(page, block, command, folder, box)


def _run_one(page: Path, block: Block, command: Command, folder: Path, box: Sandbox) -> None:
    code, output = box.run(command.text, folder)
    where = f"{page.name}:{command.line}: $ {command.text}\nexit {code}\n{output}"
    if block.language == "text":
        assert command.text in WITHOUT_NETWORK, f"{where}\nsay in WITHOUT_NETWORK how it ends"
        wanted, said = WITHOUT_NETWORK[command.text]
        assert code == wanted, where
        assert said in output, where
        return
    assert code == int(block.attribute("exit") or 0), where
    assert "Traceback" not in output, where
    there = _words(output)
    for line in command.shown:
        lost = _words(line) - there
        assert not lost, f"{page.name} shows {line!r}; not in the output: {', '.join(sorted(lost))}\n{where}"


def _words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]{3,}", text))


def test_every_command_without_network_is_on_some_page() -> None:
    shown = {
        c.text for page in PAGES for b in manual.blocks(page) if b.language == "text" for c in manual.commands(b)
    }
    assert shown == set(WITHOUT_NETWORK)


def test_no_command_hides_in_another_kind_of_block() -> None:
    for page in PAGES:
        for block in manual.blocks(page):
            where = f"{page.name}:{block.line}"
            assert block.language in LANGUAGES, f"{where}: what is a block of {block.info!r}?"
            if block.language not in ("console", "text"):
                assert not re.search(r"^(\$ )?curate ", block.text, re.MULTILINE), where


# --- what the prose names ---------------------------------------------------------------------------------


def test_commands_and_options_in_the_prose_exist() -> None:
    known = {
        name: {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        for name, command in _commands().items()
    }
    for page in PAGES:
        for text in manual.inline(page):
            words = text.split()
            if len(words) < 2 or words[0] != "curate" or not words[1][0].islower():
                continue
            assert words[1] in known, f"{page.name}: `{text}`"
            options = {w.split("=")[0] for w in words[2:] if w.startswith("--")}
            assert options <= known[words[1]] | {"--help"}, f"{page.name}: `{text}`"


def test_make_targets_in_the_prose_exist() -> None:
    named = {
        target
        for page in PAGES
        for text in [*manual.inline(page), *(line for b in manual.blocks(page) for line in b.text.splitlines())]
        for target in re.findall(r"^(?:\$ )?make ([a-z-]+)", text)
    }
    assert {"demo", "test"} <= named
    for target in sorted(named):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_relative_links_resolve() -> None:
    for page in PAGES:
        for target in manual.links(page):
            if not target.startswith(("http://", "https://")):
                path, _, anchor = target.partition("#")
                there = (page.parent / path).resolve()
                assert there.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in _anchors(there), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


# --- the lists of the manual ------------------------------------------------------------------------------


def _commands() -> dict[str, Any]:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {name: command for name, command in group.commands.items() if not command.hidden}


def test_readme_lists_every_command() -> None:
    listed = {re.findall(r"`curate (\w+)`", row[0])[0] for row in manual.table(README, "command")}
    assert listed == set(_commands())


def test_readme_lists_every_rule() -> None:
    assert [row[0].strip("`") for row in manual.table(README, "rule")] == list(plugins.installed())


def test_readme_links_every_page() -> None:
    linked = {(README.parent / t.partition("#")[0]).resolve() for t in manual.links(README)}
    assert set(DOCS.glob("*.md")) <= linked


def test_error_codes_are_those_of_the_program() -> None:
    rows = manual.table(DOCS / "errors.md", "code")
    assert {row[0].strip("`"): row[1] for row in rows} == ERROR_CODES


def test_filters_page_tells_of_every_shipped_recipe_and_every_reason() -> None:
    told = set(manual.inline(DOCS / "filters.md"))
    assert set(recipe.shipped()) <= told
    reasons = {reason for name in plugins.installed() for reason in plugins.load(name).reasons}
    assert reasons <= told


def test_assets_page_tells_of_every_asset() -> None:
    from curate.assets import REGISTRY

    rows = manual.table(DOCS / "assets.md", "asset")
    told = {row[0].strip("`"): row[1].replace("`", "").split(", ") for row in rows}
    assert told == {a.name: [f.file for f in a.files] for a in REGISTRY.values()}
    assert {row[0].strip("`"): row[3] for row in rows} == {a.name: a.licence for a in REGISTRY.values()}


def test_scales_page_has_the_numbers_of_the_program() -> None:
    from curate.scales import SCALES

    rows = {row[0].strip("`"): row[1:] for row in manual.table(DOCS / "scales.md", "scale")}
    assert set(rows) == set(SCALES)
    for name, scale in SCALES.items():
        pool = f"{scale.pool_size:,}" if scale.pool_size else "none"
        assert rows[name] == [
            pool,
            f"{scale.samples_seen:,}",
            scale.model,
            f"{scale.batch:,}",
            f"{scale.learning_rate:g}",
            f"{scale.warmup:,}",
        ]


def test_pool_page_has_the_columns_of_the_program() -> None:
    from curate.stages.shard_files import LEDGER, TABLE

    page = DOCS / "pool.md"
    for head, columns in (("column", TABLE), ("ledger", LEDGER)):
        assert [row[0].strip("`") for row in manual.table(page, head)] == [name for name, _ in columns]


def test_download_page_has_every_option() -> None:
    shown = [option for row in manual.table(DOCS / "download.md", "option") for option in _options(row[0])]
    assert len(shown) == len(set(shown))
    assert set(shown) == _download_options() - {"--help"}


def test_download_page_has_every_option_of_datacomps_script() -> None:
    rows = manual.table(DOCS / "download.md", "`download_upstream.py`")
    assert {option for row in rows for option in _options(row[0])} == DATACOMPS
    assert {option for row in rows for option in _options(row[1])} <= _download_options()


def _options(text: str) -> list[str]:
    return re.findall(r"--[a-z][a-z_-]+", text)


def _download_options() -> set[str]:
    parameters = _commands()["download"].params
    return {option for p in parameters for option in p.opts + p.secondary_opts if option.startswith("--")}


def test_pool_page_has_what_an_entry_of_sources_json_says() -> None:
    from curate.stages.sources import Entry

    rows = manual.table(DOCS / "pool.md", "entry")
    assert [n for row in rows for n in re.findall(r"`(\w+)`", row[0])] == [f.name for f in fields(Entry)]


def test_errors_page_sorts_the_codes_as_the_program_does() -> None:
    from curate.errors import TRANSIENT
    from curate.stages.retry import NEVER

    told = {row[0]: set(re.findall(r"`(\w+)`", row[1])) for row in manual.table(DOCS / "errors.md", "sort")}
    assert told["transient"] == TRANSIENT | {"http_5NN"}
    assert told["never"] == NEVER


def test_pool_page_has_every_kind_of_pool() -> None:
    from curate.views.status import KINDS

    assert [row[0] for row in manual.table(DOCS / "pool.md", "kind")] == list(KINDS.values())


def test_benchmarks_page_names_measurements_that_there_are() -> None:
    from bench.__main__ import NAMES

    rows = manual.table(DOCS / "benchmarks.md", "figure")
    assert {name for row in rows for name in re.findall(r"python -m bench (\w+)", row[3])} == set(NAMES)


def test_filters_page_has_a_line_for_every_rule() -> None:
    rows = {row[0].strip("`"): row[1] for row in manual.table(DOCS / "filters.md", "rule")}
    told = {name: set(re.findall(r"`(\w+)`", reasons)) for name, reasons in rows.items()}
    assert told == {name: set(plugins.load(name).reasons) for name in plugins.installed()}


def test_errors_page_has_every_exit_code() -> None:
    from curate import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.CurateError)]
    codes = {k.exit_code for k in kinds} | {0, 130}
    assert {int(row[0]) for row in manual.table(DOCS / "errors.md", "exit")} == codes


@pytest.mark.slow
def test_the_demo_ends_with_planted_against_found(box: Sandbox, tmp_path: Path) -> None:
    code, output = box.run("curate demo --out demo --scenes 400", tmp_path)
    assert code == 0, output
    from curate.demo.plant import SHARES

    table = output[output.index("defect ") :]
    assert all(defect in table for defect in SHARES), output
    assert (tmp_path / "demo" / "subset" / "README.md").is_file()
