"""Progress on stderr: a bar at a terminal, one plain line now and then where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

INTERVAL = 30.0
"""Seconds between plain lines."""


class Progress:
    """Counts samples done and failed of a known total; knows rate and time left."""

    def __init__(self, title: str, total: int, *, unit: str = "samples", stream: TextIO | None = None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.failed = 0
        self._stream = stream or sys.stderr
        self._began = self._spoke = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def start(self) -> None:
        """Show the bar, at a terminal."""
        if not (self._stream.isatty() and self.total):
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.title, total=self.total, note="")

    def advance(self, done: int, failed: int = 0, news: Mapping[str, float] | None = None) -> None:
        """`done` more samples are through, `failed` of them with an error code; `news` is for those who show it."""
        self.done += done
        self.failed += failed
        if self._bar is not None and self._task is not None:
            note = f"{self.rate:,.0f}/s" + (f", {self.failed:,} failed" if self.failed else "")
            self._bar.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._spoke >= INTERVAL:
            self._spoke = time.monotonic()
            self._say()

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def rate(self) -> float:
        """Samples a second since the start."""
        return self.done / max(time.monotonic() - self._began, 1e-6)

    def _say(self) -> None:
        left = (self.total - self.done) / self.rate if self.rate else 0.0
        share = f" of {self.total:,}" if self.total else ""
        print(
            f"{self.title}: {self.done:,}{share} {self.unit}, {self.rate:,.0f}/s, {self.failed:,} failed"
            + (f", {span(left)} left" if self.total else ""),
            file=self._stream,
            flush=True,
        )


@contextmanager
def progress(
    title: str, total: int, *, kind: Callable[..., Progress] = Progress, **options: Any
) -> Iterator[Progress]:
    """A `Progress`, or one of another kind, that is shown inside the block."""
    shown = kind(title, total, **options)
    shown.start()
    try:
        yield shown
    finally:
        shown.finish()


def span(seconds: float) -> str:
    """A length of time for people: `3 s`, `12 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """A number of bytes for people: `8 MB`, `1.2 TB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def plural(count: int, one: str, many: str | None = None) -> str:
    """A number of things for people: `1 problem`, `1,200 problems`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
