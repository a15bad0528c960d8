"""The live picture of a download: what is counted, what is said of it, and both ways of drawing it."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import pytest

from curate import progress, runner
from curate.engines import local
from curate.receipts import Output
from curate.stages.live import HOST_LENGTH, WINDOW, Hosts, Live, Tally, View, outcomes, printable, share, speed
from tests.test_progress import Clock, Terminal, terminal

__all__ = ["terminal"]  # a fixture

PART = {
    "code:dns": 30,
    "code:http_404": 40,
    "code:timeout": 20,
    "code:tls": 10,
    "host:slow.example": 70,
    "host:gone.example": 30,
    "received": 50_000_000,
    "stored": 20_000_000,
    "seconds:network": 0.2,
    "seconds:decode": 0.7,
    "seconds:disk": 0.1,
}
"""What 1,000 samples in a second may have told."""


def minute(tally: Tally, start: float, rate: int, seconds: int = 60) -> float:
    """`seconds` of `rate` samples a second, from `start` on; the end."""
    for n in range(seconds):
        tally.tell(start + n + 0.5, rate)
    return start + seconds


# --- counting ---------------------------------------------------------------------------------------------


def test_rates_are_recent_and_overall() -> None:
    tally = Tally(100_000, 0.0)
    now = minute(tally, 0.0, 100)
    assert (tally.view(now).recent, tally.view(now).overall) == (100.0, 100.0)
    now = minute(tally, now, 400)
    view = tally.view(now)
    assert (view.recent, view.overall) == (400.0, 250.0)
    assert view.left == (100_000 - 30_000) / 400
    # nothing more comes: the rate falls, and then there is no end to be foreseen
    assert 0 < tally.view(now + WINDOW / 2).recent < 220
    stalled = tally.view(now + WINDOW + 2)
    assert (stalled.recent, stalled.left) == (0.0, None)
    assert stalled.overall > 0


def test_a_rate_at_the_very_start_is_not_a_wild_one() -> None:
    tally = Tally(1000, 0.0)
    tally.tell(0.01, 5)
    assert tally.view(0.01).recent == 5.0
    assert Tally(1000, 0.0).view(0.0) == View(0, 0, 1000, 0.0, 0.0, (), None, 0, 0.0, None, None)


def test_what_is_told_adds_up() -> None:
    tally = Tally(50_000, 0.0)
    for second in range(10):
        tally.tell(second + 0.5, 1000, 100, PART)
    view = tally.view(10.0)
    assert (view.done, view.failed) == (10_000, 1000)
    assert view.codes == (("http_404", 400), ("dns", 300), ("timeout", 200))
    assert view.host == ("slow.example", 700)
    assert (view.received, view.received_rate) == (500e6, 50e6)
    assert view.limit == "decode"


def test_the_limit_is_that_of_the_last_seconds() -> None:
    tally = Tally(50_000, 0.0)
    tally.tell(1.0, 10, 0, {"seconds:network": 1000.0})
    assert tally.view(2.0).limit == "network"
    tally.tell(WINDOW + 5.0, 10, 0, {"seconds:disk": 2.0, "seconds:decode": 1.0})
    assert tally.view(WINDOW + 5.0).limit == "disk"
    assert tally.view(WINDOW + 5.0, whole=True).limit == "network"
    assert tally.view(WINDOW * 3.0).limit is None


def test_what_a_dead_worker_told_is_taken_back_but_was_fast() -> None:
    tally = Tally(50_000, 0.0)
    tally.tell(1.0, 1000, 100, PART)
    tally.tell(2.0, 3000, 0, {"received": 1e6, "host:other.example": 1})
    tally.tell(3.0, -1000, -100, {name: -count for name, count in PART.items()})
    view = tally.view(4.0)
    assert (view.done, view.failed, view.codes) == (3000, 0, ())
    assert view.host == ("other.example", 1)
    assert view.received == 1e6
    assert view.recent == 1000.0  # 4,000 in 4 seconds
    assert view.left == 47_000 / 1000


def test_news_of_other_kinds_is_not_ours() -> None:
    tally = Tally(10, 0.0)
    tally.tell(0.5, 1, 0, {"weather": 3, "code": 1, "host": 2})
    view = tally.view(1.0)
    assert (view.host, view.limit, view.received) == (None, None, 0)


# --- hosts ------------------------------------------------------------------------------------------------


def test_few_hosts_are_counted_exactly() -> None:
    hosts = Hosts(most=10)
    assert hosts.worst() is None
    for name, count in (("a", 3), ("b", 5), ("a", 4), ("c", 1)):
        hosts.add(name, count)
    assert hosts.worst() == ("a", 7)
    hosts.add("a", -7)
    hosts.add("unknown", -2)
    assert hosts.worst() == ("b", 5)


def test_memory_is_bounded_and_the_worst_are_not_lost() -> None:
    """100,000 hosts that fail once, and a few that fail now and then among them."""
    chance, hosts, truth = random.Random(0), Hosts(most=50), Counter[str]()
    for number in range(100_000):
        name = f"host{number}"
        if chance.random() < 0.05:
            name = chance.choice(["bad.example", "bad.example", "poor.example"])
        truth[name] += 1
        hosts.add(name, 1)
        assert len(hosts) <= 100
    worst = hosts.worst()
    assert worst is not None
    name, count = worst
    assert name == "bad.example"
    assert 0.95 * truth[name] <= count <= truth[name]


# --- in words ---------------------------------------------------------------------------------------------


def test_names_of_strangers_cannot_turn_a_line_over() -> None:
    assert printable("example.org") == "example.org"
    assert printable("xn--bcher-kva.example") == "xn--bcher-kva.example"
    assert printable("bücher.example") == "bücher.example"
    assert printable("user:secret@example.org:81/path?q=secret#x") == "example.org:81"
    assert (
        printable("a\x1b[31mb\nc\u202ed\u2066e\u200ff.example")
        == "a\ufffd[31mb\ufffdc\ufffdd\ufffde\ufffdf.example"
    )
    assert printable("\u05d0\u05d1.example") == "\ufffd\ufffd.example"  # Hebrew: would turn the numbers beside it
    long = printable("a" * 300)
    assert len(long) == HOST_LENGTH
    assert long.endswith("a...")


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 9, "0.0 %"), (9, 9, "100.0 %"), (1, 3, "33.3 %"), (1, 10**6, "<0.1 %"), (10**6 - 1, 10**6, ">99.9 %")],
)
def test_shares(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_speeds_and_outcomes() -> None:
    view = View(1000, 88, 5000, 430.2, 429.9, (("dns", 51), ("http_404", 20)), None, 0, 0.0, None, None)
    assert speed(view) == "430/s"
    assert outcomes(view) == ["91.2 % ok", "dns 5.1 %", "http_404 2.0 %"]
    slow = View(10, 0, 5000, 2.34, 42.0, (), None, 0, 0.0, None, None)
    assert speed(slow) == "2.3/s (42/s overall)"
    assert outcomes(View(0, 0, 5000, 0.0, 0.0, (), None, 0, 0.0, None, None)) == []


# --- drawing ----------------------------------------------------------------------------------------------


def test_a_plain_line_is_complete_in_itself() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress.progress("download", 50_000, kind=Live, stream=stream, clock=clock) as shown:
        for _ in range(30):
            clock.now += 1
            shown.advance(400, 40, {name: 0.4 * count for name, count in PART.items()})
    assert stream.getvalue() == (  # and none at the end of a run that was no longer than one takes to come
        "download: 12,000 of 50,000 samples, 400/s, 90.0 % ok, http_404 4.0 %, dns 3.0 %, timeout 2.0 %; "
        "worst host slow.example (840 failed, 70.0 % of all failures); "
        "600 MB at 20 MB/s; limit: decode; 2 min left\n"
    )


def test_a_long_run_ends_with_a_line_on_all_of_it() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = Live("download", 9000, stream=stream, clock=clock)
    shown.start()
    for step in (4000, 4000, 1000):
        clock.now += 60
        shown.advance(step, step // 10, {"code:dns": step // 10, "received": step * 1000, "seconds:disk": 60.0})
    clock.now += 1
    stream.truncate(0)
    stream.seek(0)
    shown.finish()
    assert stream.getvalue() == (
        "download: 9,000 of 9,000 samples, 50/s, 90.0 % ok, dns 10.0 %; "
        "9.0 MB at 50 kB/s; limit: disk; took 3 min\n"
    )


def test_the_bar_has_lines_beneath_it(terminal: Terminal) -> None:
    clock = Clock()
    with progress.progress("download", 50_000, kind=Live, stream=terminal, clock=clock) as shown:
        for _ in range(30):
            clock.now += 1
            shown.advance(400, 40, {name: 0.4 * count for name, count in PART.items()})
    text = terminal.text()
    assert "12000/50000 400/s, 2 min left" in text
    assert "  90.0 % ok, http_404 4.0 %, dns 3.0 %, timeout 2.0 %" in text
    assert "  worst host slow.example (840 failed, 70.0 % of all failures)" in text
    assert "  600 MB at 20 MB/s; limit: decode" in text
    assert "took" not in text


def test_a_host_is_no_markup(terminal: Terminal) -> None:
    clock = Clock()
    with progress.progress("download", 100, kind=Live, stream=terminal, clock=clock) as shown:
        clock.now += 1
        shown.advance(10, 1, {"host:[red]x[/].example": 1})
    assert "worst host [red]x[ (1 failed" in terminal.text()  # cut where a path would begin


# --- through the runner -----------------------------------------------------------------------------------


def fetch(output: Output, tick: local.Tick, part: str) -> dict[str, int]:
    """A part that tells what a download would."""
    output.write(f"{part}.txt", part.encode())
    tick(3, 1, {"code:dns": 1, "host:bad.example": 1, "received": 10})
    return {"samples": 3, "ok": 2, "failed": 1}


@pytest.mark.parametrize(("workers", "lanes"), [(0, 1), (1, 1), (2, 2)])
def test_the_runner_shows_it(tmp_path: Path, workers: int, lanes: int) -> None:
    made: list[Live] = []

    def shown(title: str, total: int) -> Live:
        made.append(Live(title, total, stream=io.StringIO()))
        return made[0]

    tasks = [runner.Task(n, tmp_path, {}, fetch, (n,), 3) for n in ("a", "b", "c", "d")]
    summary = runner.run("download", 1, tasks, workers=workers, lanes=lanes, shown=shown, quiet=60, dead=120)
    assert summary.counts["samples"] == 12
    (live,) = made
    view = live.view()
    assert (live.title, live.total) == ("download", 12)
    assert (view.done, view.failed, view.codes) == (12, 4, (("dns", 4),))
    assert (view.host, view.received) == (("bad.example", 4), 40)
