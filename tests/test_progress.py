"""Progress without and with a terminal: plain lines by a fake clock, a bar on a stream that says it is one."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest

from curate.progress import INTERVAL, Progress, progress, size, span


class Clock:
    """Seconds as the test wants them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """What was written, without the sequences that move and colour."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_a_plain_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    with progress("embed", 4000, stream=stream, clock=clock) as shown:
        shown.advance(500)
        assert stream.getvalue() == ""
        clock.now += INTERVAL
        shown.advance(1000, 20, {"what others": 1})
        shown.advance(100)
        clock.now += INTERVAL
        shown.advance(0)
    assert stream.getvalue().splitlines() == [
        "embed: 1,500 of 4,000 samples, 50/s, 20 failed, 50 s left",
        "embed: 1,600 of 4,000 samples, 27/s, 20 failed, 2 min left",
    ]


def test_a_line_of_what_has_no_total_or_no_speed() -> None:
    clock = Clock()
    shown = Progress("list", 0, unit="rows", stream=io.StringIO(), clock=clock)
    assert shown.line() == "list: 0 rows, 0/s, 0 failed"
    clock.now += 10
    shown.advance(20)
    assert shown.line() == "list: 20 rows, 2/s, 0 failed"


def test_a_bar_at_a_terminal(terminal: Terminal) -> None:
    clock = Clock()
    with progress("embed", 40, stream=terminal, clock=clock) as shown:
        clock.now += INTERVAL * 2
        shown.advance(30, 2)
    assert "embed" in terminal.text()
    assert "30/40" in terminal.text()
    assert "0/s, 2 failed, 20 s left" in terminal.text()
    assert "samples" not in terminal.text()  # no plain line beside the bar


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_draw_gets_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    clock = Clock()
    with progress("embed", 40, stream=terminal, clock=clock) as shown:
        clock.now += INTERVAL
        shown.advance(30)
    assert terminal.getvalue() == "embed: 30 of 40 samples, 1/s, 0 failed, 10 s left\n"


def test_records_are_written_above_the_bar(terminal: Terminal) -> None:
    """Each on a line of its own, as it is; afterwards they go where they went."""
    handler = logging.StreamHandler(terminal)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root, stderr = logging.getLogger(), sys.stderr
    root.addHandler(handler)
    try:
        with progress("embed", 40, stream=terminal) as shown:
            shown.advance(10)
            logging.getLogger("curate").warning("part [bold]7[/] of 12 is broken")
            assert "\npart [bold]7[/] of 12 is broken\n" in terminal.text().replace("\r", "\n")
        assert handler.stream is terminal
        assert sys.stderr is stderr
        logging.getLogger("curate").warning("afterwards")
        assert terminal.getvalue().endswith("afterwards\n")
    finally:
        root.removeHandler(handler)


def test_the_bar_is_taken_away_whatever_happens(terminal: Terminal) -> None:
    with pytest.raises(ZeroDivisionError), progress("embed", 40, stream=terminal):
        raise ZeroDivisionError
    assert terminal.getvalue().rstrip().endswith(("\x1b[2K", "\x1b[?25h"))


def test_another_kind_is_shown() -> None:
    class Kind(Progress):
        def line(self) -> str:
            return "my own"

    stream, clock = io.StringIO(), Clock()
    with progress("embed", 40, kind=Kind, stream=stream, clock=clock) as shown:
        clock.now += INTERVAL
        shown.advance(1)
    assert stream.getvalue() == "my own\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (0.6, "0.6 s"),
        (3.4, "3 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3599, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1200, "1.2 kB"), (8_000_000, "8.0 MB"), (12e9, "12 GB"), (5e15, "5000 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
