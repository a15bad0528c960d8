"""The real command and its processes: killed, interrupted, out of room, in company. It ends, and ends right.

The rows are those of a probe of img2dataset 1.47 (a killed worker hangs the run for ever, orphans write on, Ctrl-C
exits 0 and leaves truncated tars, a full disk too). Some pictures are served only when a test says so: it strikes
while the command has whole shards, begun ones and others to come. What a strike at any moment does is in
tests/faults.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from curate.fetch import decoders
from curate.fetch.settings import ImageSettings
from curate.stages import download as stage
from tests.fetch import flaky, servers
from tests.fetch.servers import HostileServer, answer, running
from tests.hostile.web import LIMITS, Case, books, crawl, descendants, jpeg, settings
from tests.programs import PATIENCE, command, environment, living
from tests.stages.test_download import stored

ROWS, PER_SHARD = 24, 4
FIRST_GATED = 8
"""Of the rows from this one on, every other waits at the gate."""
OPTIONS = (
    *("--allow-private-hosts", "--image-size", "64", "--samples-per-shard", str(PER_SHARD), "--workers", "2"),
    *("--concurrency", "16", "--idle-seconds", "20", "--total-seconds", "40"),
)


class Gate:
    """Pictures that are held back until the gate is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.served = 0

    def behind(self, body: bytes) -> servers.Reply:
        async def reply(writer: Any) -> None:
            while not self.opened.is_set():
                await asyncio.sleep(0.01)
            await answer(body)(writer)
            self.served += 1

        return reply


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[HostileServer, Gate]]:
    gate = Gate()
    routes: dict[str, Any] = {}
    for n in range(ROWS):
        body = jpeg(n, (200, 150))
        routes[f"/{n}.jpg"] = gate.behind(body) if n >= FIRST_GATED and n % 2 else body
    routes["/5.jpg"] = b"<html>"
    with running(HostileServer(routes)) as server:
        yield server, gate


@pytest.fixture(scope="module")
def source(site: tuple[HostileServer, Gate], tmp_path_factory: pytest.TempPathFactory) -> Path:
    server, _ = site
    path = tmp_path_factory.mktemp("list") / "list.csv"
    rows = [f"{server.url(f'/{n}.jpg')},photo {n}\n" for n in range(ROWS)]
    path.write_text("url,text\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def whole(site: tuple[HostileServer, Gate], source: Path) -> dict[str, str]:
    """The shards of an unbroken run."""
    site[1].opened.set()
    pool = source.with_name("whole")
    finish(pool, source)
    books(pool, ROWS)
    return stored(pool)


@pytest.fixture
def gate(site: tuple[HostileServer, Gate], whole: dict[str, str]) -> Gate:
    """The gate, closed, after the unbroken run."""
    _, gate = site
    gate.opened.clear()
    gate.served = 0
    return gate


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    """What a test that failed leaves running is ended."""
    yield
    while Run.running:
        process = Run.running.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class Run:
    """The command at work, in a process group of its own."""

    running: ClassVar[list[subprocess.Popen[str]]] = []

    def __init__(self, pool: Path, source: Path, *options: str, **started: Any) -> None:
        words = command("download", "--source", source, "--pool", pool, *OPTIONS, *options)
        self.pool, self.said = pool, ""
        self.process = subprocess.Popen(
            words,
            cwd=source.parent,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **started,
        )
        self.running.append(self.process)

    def until(self, reached: Callable[[], object]) -> None:
        """Wait until it has come so far."""
        patience = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < patience
            time.sleep(0.01)

    def midway(self) -> None:
        """Wait until the shards without gated pictures are whole, others are begun, and both decoders are up."""
        receipts = self.pool / "shards" / "_receipts"
        self.until(lambda: len(list(receipts.glob("*.json"))) >= FIRST_GATED // PER_SHARD)
        self.until(lambda: len([pid for pid in self.pictures() if "cv2" in mapped(pid)]) == 2)

    def fetcher(self) -> int:
        """The process that fetches: the one that has children of its own."""
        (found,) = (pid for pid in children(self.process.pid) if children(pid))
        return found

    def pictures(self) -> list[int]:
        """The processes that decode."""
        return [pid for child in children(self.process.pid) for pid in children(child)]

    def end(self) -> str:
        """What it said, when it has ended."""
        out, _ = self.process.communicate(timeout=PATIENCE)
        self.said += out
        return self.said

    def check_all_ended(self) -> None:
        """No process outlives the command for long."""
        patience = time.monotonic() + 10
        while (left := living(self.process.pid)) and time.monotonic() < patience:
            time.sleep(0.01)
        if left:
            os.killpg(self.process.pid, signal.SIGKILL)
        assert not left


def children(pid: int) -> list[int]:
    """The processes that one has started with multiprocessing, its resource tracker left out."""
    found = []
    for child in descendants(pid):
        try:
            parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
            words = Path(f"/proc/{child}/cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in words:
            found.append(child)
    return found


def mapped(pid: int) -> str:
    """What a process has loaded."""
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def finish(pool: Path, source: Path, *options: str) -> str:
    """The same command, to a good end; what it said."""
    run = Run(pool, source, *options)
    said = run.end()
    assert run.process.returncode == 0, said
    run.check_all_ended()
    return said


def check_nothing_half(pool: Path, whole: dict[str, str]) -> None:
    """What stands under a final name is final, also before any other command comes by."""
    for name, digest in stored(pool).items():
        if not name.endswith((".tmp", ".lock")):
            assert digest == whole[name], name


# --- blows ------------------------------------------------------------------------------------------------


def test_a_fetch_worker_killed_costs_its_parts_a_retry(
    gate: Gate, source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    run = Run(tmp_path / "pool", source)
    run.midway()
    orphans = run.pictures()
    os.kill(run.fetcher(), signal.SIGKILL)
    run.until(lambda: not set(orphans) & set(living(run.process.pid)))  # none decodes for nobody
    gate.opened.set()
    said = run.end()
    assert run.process.returncode == 0, said
    assert "its worker died (signal SIGKILL); trying again" in said
    assert "Traceback" not in said
    run.check_all_ended()
    assert stored(run.pool) == whole
    books(run.pool, ROWS)


def test_a_decode_process_killed_costs_its_picture_a_retry(
    gate: Gate, source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """Both are stopped, so that both have a picture in hand when one is killed and the other goes on."""
    run = Run(tmp_path / "pool", source)
    run.midway()
    first, second = run.pictures()
    # one that is stopped before it has said that it is ready is given no picture
    run.until(lambda: all("cv2" in Path(f"/proc/{pid}/maps").read_text() for pid in (first, second)))
    time.sleep(0.5)
    for pid in (first, second):
        os.kill(pid, signal.SIGSTOP)
    gate.opened.set()
    run.until(lambda: gate.served >= 4)
    time.sleep(0.3)  # for the pictures to be handed on
    os.kill(first, signal.SIGKILL)
    os.kill(second, signal.SIGCONT)
    said = run.end()
    assert run.process.returncode == 0, said
    assert "a decode process died (signal SIGKILL); its image is tried again" in said
    assert "worker died" not in said
    assert "Traceback" not in said
    run.check_all_ended()
    assert stored(run.pool) == whole
    books(run.pool, ROWS)


@pytest.mark.parametrize("blow", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_killed_leaves_no_orphan_and_goes_on(
    gate: Gate, source: Path, whole: dict[str, str], tmp_path: Path, blow: signal.Signals
) -> None:
    run = Run(tmp_path / "pool", source)
    run.midway()
    run.process.send_signal(blow)
    run.end()
    assert run.process.returncode == -blow
    run.check_all_ended()
    check_nothing_half(run.pool, whole)
    gate.opened.set()
    finish(run.pool, source)
    assert stored(run.pool) == whole
    books(run.pool, ROWS)


@pytest.mark.parametrize("everybody", [False, True], ids=["the command alone", "all its processes"])
def test_interrupted(gate: Gate, source: Path, whole: dict[str, str], tmp_path: Path, everybody: bool) -> None:
    """`kill -INT`, and a terminal's Ctrl-C: 130, at once, and not even a temporary file stays."""
    run = Run(tmp_path / "pool", source)
    run.midway()
    (os.killpg if everybody else os.kill)(run.process.pid, signal.SIGINT)
    struck = time.monotonic()
    said = run.end()
    assert time.monotonic() - struck < 10
    assert run.process.returncode == 130, said
    assert "curate: interrupted; the same command goes on where this one stopped" in said
    assert "Traceback" not in said
    run.check_all_ended()
    check_nothing_half(run.pool, whole)
    shards = run.pool / "shards"
    assert not [p for p in shards.rglob("*") if p.suffix in (".tmp", ".lock", ".replaced")]
    made = {p.name.split(".")[0].split("_")[0] for p in shards.iterdir() if p.is_file()}
    assert made == {p.stem for p in (shards / "_receipts").glob("*.json")}


# --- no room ----------------------------------------------------------------------------------------------


def test_a_file_that_may_not_grow_stops_the_run(
    gate: Gate, source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """A limit on the size of files is met in the middle of one, like the end of a disk."""
    gate.opened.set()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    run = Run(tmp_path / "pool", source, preexec_fn=limited)
    said = run.end()
    assert run.process.returncode == 1, said
    assert "Traceback" not in said
    assert "a file may not grow as large there" in said
    assert "hint: raise the limit" in said
    run.check_all_ended()
    check_nothing_half(run.pool, whole)
    finish(run.pool, source)
    assert stored(run.pool) == whole


# --- company ----------------------------------------------------------------------------------------------


def test_two_runs_on_one_folder(gate: Gate, source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """The second comes in the middle of the first: it waits, or refuses; what comes out is whole."""
    first = Run(tmp_path / "pool", source)
    first.midway()
    second = Run(tmp_path / "pool", source)
    time.sleep(0.5)
    gate.opened.set()
    for run in (first, second):
        said = run.end()
        assert "Traceback" not in said
        if run.process.returncode == 2:
            assert "is being written by process" in said
        else:
            assert run.process.returncode == 0, said
        run.check_all_ended()
    assert 0 in (first.process.returncode, second.process.returncode)
    assert stored(tmp_path / "pool") == whole
    books(tmp_path / "pool", ROWS)


def test_other_files_in_the_folder(gate: Gate, source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    """A `dataset_info.json` and its kin are nobody's shard: nothing minds them, and they stay."""
    pool = tmp_path / "pool"
    mine = {
        "dataset_info.json": b"{}",
        "shards/dataset_info.json": b'{"splits": []}',
        "shards/notes_stats.json": b"no JSON",
        "shards/_receipts/mine.json": b'{"mine": 1}',
        "shards/00000099_stats.json": b"{}",
    }
    for name, data in mine.items():
        (pool / name).parent.mkdir(parents=True, exist_ok=True)
        (pool / name).write_bytes(data)
    gate.opened.set()
    finish(pool, source)
    assert {name: (pool / name).read_bytes() for name in mine} == mine
    ours = {name: digest for name, digest in stored(pool).items() if f"shards/{name}" not in mine}
    assert ours == whole


# --- the end ----------------------------------------------------------------------------------------------


def test_servers_that_never_end_do_not_keep_the_command(tmp_path: Path) -> None:
    """They drip, keep silent and flood: the run ends a deadline later, with a word on every row."""
    hangs: dict[str, Any] = {
        "/drip": servers.drip(0.05),
        "/silent": servers.silent(),
        "/headers": servers.drip(0.05, in_headers=True),
    }
    slow, endless = HostileServer(hangs), HostileServer({"/": servers.flood(1 << 30, announce=False)})
    with running(slow), running(endless), running(HostileServer({"/": jpeg()})) as sound:
        urls = [slow.url(f"{path}?{n}") for path in hangs for n in range(5)]
        urls = [sound.url("/?first"), *urls, *(endless.url(f"/?{n}") for n in range(8)), sound.url("/?last")]
        (tmp_path / "list.csv").write_text("url,text\n" + "".join(f"{url},x\n" for url in urls))
        words = ("--idle-seconds", "0.5", "--total-seconds", "1.5", "--max-bytes", "1000000", "--json")
        run = Run(tmp_path / "pool", tmp_path / "list.csv", *words)
        began = time.monotonic()
        said = run.end()
        assert time.monotonic() - began < 30
    assert run.process.returncode == 0, said
    told = json.loads(said[said.index("{\n") : said.rindex("}") + 1])
    assert (told["samples"], told["ok"], told["codes"]) == (25, 2, {"timeout": 15, "too_large": 8})
    run.check_all_ended()
    books(tmp_path / "pool", 25)


def test_a_picture_that_decodes_on_one_try_of_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two decode processes die on it and a third has it; one that kills three is the only one lost."""
    monkeypatch.setattr(decoders, "serve", flaky.serve)
    effort = {"limits": LIMITS, "connections": 8, "processes": 2, "body_bytes": 64 << 20}
    monkeypatch.setattr(stage, "shares", lambda *_: (0, effort))  # fetch here, decode there
    head = jpeg()[:2]
    cases = [
        *(Case(f"sound {n}", jpeg(n)) for n in range(12)),
        Case("third time", head + flaky.die(2, tmp_path / "deaths", jpeg(50))),
        Case("never", head + flaky.die(99, tmp_path / "more", jpeg(51)), "decoder_died"),
    ]
    with running(HostileServer()) as server:
        given = settings(ImageSettings(), LIMITS)
        web = crawl(tmp_path / "pool", server, cases, given, workers=0)
    for case in cases:
        case.check(web.found[case.name])
    assert (tmp_path / "deaths").read_text() == (tmp_path / "more").read_text() == "xxx"
    assert web.found["third time"].pixels.shape == (64, 96, 3)
