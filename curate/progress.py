"""Progress on stderr: a bar at a terminal, one plain line now and then where there is none."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

INTERVAL = 30.0
"""Seconds between plain lines."""
REFRESH = 4
"""How often a second the bar is drawn."""


class Progress:
    """Counts samples done and failed of a known total; knows rate and time left.

    A kind of its own is made by saying otherwise what stands beside the bar, beneath it, and in the plain line;
    those three are asked from a thread that draws.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: str = "samples",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.failed = 0
        self.terminal = False
        """Whether a bar is shown, once started."""
        self._stream, self._clock = stream or sys.stderr, clock
        self._began = self._spoke = clock()
        self._bar = ExitStack()

    def start(self) -> None:
        """Show the bar, at a terminal."""
        able = self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self.terminal = able and self.total > 0
        if self.terminal:
            self._bar.enter_context(_bar(self, self._stream))

    def advance(self, done: int, failed: int = 0, news: Mapping[str, float] | None = None) -> None:
        """`done` more samples are through, `failed` of them with an error code; `news` is for those who show it."""
        self.done += done
        self.failed += failed
        if not self.terminal and self._clock() - self._spoke >= INTERVAL:
            self._spoke = self._clock()
            self.say(self.line())

    def finish(self) -> None:
        """Take the bar away."""
        self._bar.close()

    @property
    def rate(self) -> float:
        """Samples a second since the start."""
        return self.done / max(self.elapsed, 1e-6)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    def beside(self) -> str:
        """What stands at the right of the bar."""
        return ", ".join(
            [f"{self.rate:,.0f}/s", *([f"{self.failed:,} failed"] if self.failed else []), *self._left()]
        )

    def beneath(self) -> Sequence[str]:
        """The lines under the bar."""
        return ()

    def line(self) -> str:
        """All of it as one plain line."""
        share = f" of {self.total:,}" if self.total else ""
        counted = f"{self.title}: {self.done:,}{share} {self.unit}"
        return ", ".join([counted, f"{self.rate:,.0f}/s", f"{self.failed:,} failed", *self._left()])

    def say(self, line: str) -> None:
        """Write a plain line."""
        print(line, file=self._stream, flush=True)

    def _left(self) -> list[str]:
        if not self.total or not self.rate:
            return []
        return [f"{span(max(self.total - self.done, 0) / self.rate)} left"]


@contextmanager
def _bar(shown: Progress, stream: TextIO) -> Iterator[None]:
    """The bar on a terminal's last lines; log records that go to the same stream are written above it."""
    from rich.console import Console, RenderableType
    from rich.file_proxy import FileProxy
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Bar(RichProgress):
        def get_renderables(self) -> Iterator[RenderableType]:
            for task in self.tasks:
                self.update(task.id, completed=shown.done, beside=shown.beside())
            yield self.make_tasks_table(self.tasks)
            for line in shown.beneath():
                yield Text(line, no_wrap=True, overflow="ellipsis")

    console = Console(file=stream)
    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[beside]}", markup=False),
        console=console,
        transient=True,
        refresh_per_second=REFRESH,
        redirect_stdout=False,
    )
    bar.add_task(shown.title, total=shown.total, beside="")
    handlers = [h for h in logging.getLogger().handlers if getattr(h, "stream", None) is stream]
    with bar:
        for handler in handlers:
            handler.setStream(FileProxy(console, stream))  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for handler in handlers:
                handler.setStream(stream)  # type: ignore[attr-defined]


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
