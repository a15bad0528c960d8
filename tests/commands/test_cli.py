"""The command line itself: exit codes, messages, variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import curate as package
from curate import plugins
from curate.errors import Busy, InputError, PartError, StopError, UnknownName
from tests.commands.cli import curate
from tests.pools import make_metadata


def raising(error: BaseException) -> object:
    def installed() -> Iterator[str]:
        raise error

    return installed


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            InputError("the list", "is empty (0 rows)", hint="add some"),
            2,
            "curate: the list: is empty (0 rows)\nhint: add some\n",
        ),
        (UnknownName("--rule", "rule", "clip", ["dedup"]), 2, "curate: --rule: no rule 'clip' (found: dedup)\n"),
        (Busy("a part", "is being written"), 2, "curate: a part: is being written\n"),
        (PartError("00000003", "is cut short"), 3, "curate: 00000003: is cut short\n"),
        (StopError("a file", "no space left on the device"), 1, "curate: a file: no space left on the device\n"),
    ],
)
def test_an_error_is_a_message_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str
) -> None:
    monkeypatch.setattr(plugins, "installed", raising(error))
    ran = curate("rules")
    assert (ran.code, ran.out, ran.err) == (code, "", said)


def test_an_interrupt_is_130_and_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "installed", raising(KeyboardInterrupt()))
    ran = curate("rules")
    assert ran.code == 130
    assert "the same command goes on where this one stopped" in ran.err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "installed", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        curate("rules")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fliter"], "fliter"),
        (["filter", "--rul", "basic"], "--rul"),
        (["filter", "--seed", "one"], "--seed"),
        (["filter", "--workers", "-1"], "--workers"),
        (["score"], "--rule"),
    ],
)
def test_what_cannot_be_parsed_is_2(arguments: list[str], said: str) -> None:
    ran = curate(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_without_a_command_there_is_help() -> None:
    assert "Turn a pool of image-text pairs into a training set" in (ran := curate()).out + ran.err
    assert "Turn a pool of image-text pairs into a training set" in curate("--help").out


@pytest.mark.parametrize("how", [["-m", "curate"], [str(Path(sys.executable).with_name("curate"))]])
def test_the_version_from_the_shell(how: list[str]) -> None:
    command = how if how[0] != "-m" else [sys.executable, *how]
    ran = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == package.__version__ + "\n"


def test_what_others_want_done_at_the_end_is_done() -> None:
    """The program ends without the interpreter's own end, but for this."""
    code = "import atexit, sys; atexit.register(print, 'bye'); from curate.cli import program; program()"
    good = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout) == (0, package.__version__ + "\nbye\n")
    bad = subprocess.run(
        [sys.executable, "-c", code, "rules", "nosuch"], capture_output=True, text=True, check=False
    )
    assert (bad.returncode, bad.stdout) == (2, "bye\n")
    assert "no rule 'nosuch'" in bad.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m curate rules | head -n 1"
    script = f"set -o pipefail; {command}"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("basic")
    assert ran.stderr == ""


def test_the_pool_is_the_flag_then_the_variable_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, name in enumerate(("flag", "variable", "pool"), 1):
        make_metadata(tmp_path / name, [{"uid": f"{i:032x}", "url": "u", "text": "t"} for i in range(n)])
    monkeypatch.chdir(tmp_path)
    rule = ("filter", "--rule", "random:fraction=1", "--json")
    assert curate(*rule).json["counts"]["samples"] == 3
    monkeypatch.setenv("CURATE_POOL", str(tmp_path / "variable"))
    assert curate(*rule).json["counts"]["samples"] == 2
    assert curate(*rule, "--pool", "flag").json["counts"]["samples"] == 1
    monkeypatch.setenv("CURATE_WORK", str(tmp_path / "work"))
    assert curate(*rule, "--pool", "pool").json["folder"].startswith(str(tmp_path / "work"))


def test_variables_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_metadata(tmp_path, [{"uid": "0" * 32, "url": "u", "text": "t"}])
    monkeypatch.setenv("CURATE_WORKERS", "many")
    ran = curate("filter", "--rule", "random:n=1", "--pool", tmp_path)
    assert ran.code == 2
    assert "$CURATE_WORKERS: must be a whole number (found 'many')" in ran.err
    monkeypatch.setenv("CURATE_LOG", "loud")
    ran = curate("rules")
    assert ran.code == 2
    assert "$CURATE_LOG: no level 'loud'" in ran.err


def test_an_interrupt_from_the_keyboard(tmp_path: Path) -> None:
    """A real SIGINT in the middle of a rule: exit 130, no traceback, no selection, and the next run is whole."""
    make_metadata(tmp_path / "pool", [{"uid": f"{i:032x}", "url": "u", "text": "t"} for i in range(4)])
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "curate", "filter", "--pool", "pool", "--rule", "slow.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "interrupted" in err
    assert not list((tmp_path / "pool").rglob("selection.json"))
    env = {**os.environ, "SLOW": "0"}
    subprocess.run(command, check=True, cwd=tmp_path, env=env, capture_output=True)
    assert len(list((tmp_path / "pool").rglob("selection.json"))) > 0


SLOW = '''
import os, time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import numpy as np
from curate.filter_api import Draw, Sampler

@dataclass(frozen=True)
class Slow(Sampler):
    """Take all, slowly."""

    reasons: ClassVar = {"no": "never"}

    def needs(self):
        return []

    def draw(self, left):
        Path("started").touch()
        time.sleep(float(os.environ.get("SLOW", "30")))
        return Draw(np.ones(left.n, np.uint16), "no")
'''
