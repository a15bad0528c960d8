"""The live picture of a download: how fast, what fails and where, how much, how long, and what is the limit.

Counting (`Tally`), what can be said of it (`View`), and saying it (`Live`) are apart; only the last one draws.
"""

from __future__ import annotations

import threading
import time
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from curate import progress
from curate.progress import Progress, size, span

WINDOW = 30
"""Seconds that recent rates and the limit are taken over."""
HOSTS = 1000
"""Hosts whose failures are counted at least; up to twice as many are held."""
HOST_LENGTH = 60
CODES = 3
"""So many error codes are shown."""

_LIMIT = "seconds:"


@dataclass(frozen=True)
class View:
    """What can be said at one moment; rates are a second, `recent` ones over the last `WINDOW` seconds.

    `host` is the worst one and its failures, at least; `limit` is network, decode or disk; `left` is in seconds.
    """

    done: int
    failed: int
    total: int
    recent: float
    overall: float
    codes: tuple[tuple[str, int], ...]
    host: tuple[str, int] | None
    received: float
    received_rate: float
    limit: str | None
    left: float | None


class Hosts:
    """Counts by name in bounded memory: the rare ones are forgotten when there are too many.

    Space-saving counting in batches: one that comes, or comes again, takes the highest rank that was forgotten, so
    that a host that fails now and then for hours is not lost to thousands that fail once. What it is said to
    have is only what was seen since, never more than it had.
    """

    def __init__(self, most: int = HOSTS) -> None:
        self.most = most
        self._counts: dict[str, float] = {}
        self._ranks: dict[str, float] = {}
        self._floor = 0.0

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, name: str, count: float) -> None:
        """Count, or take back with a negative number."""
        if name not in self._counts:
            if count <= 0:
                return
            self._counts[name], self._ranks[name] = 0.0, self._floor
        self._counts[name] += count
        self._ranks[name] += count
        if len(self._counts) > 2 * self.most:
            self._forget()

    def worst(self) -> tuple[str, int] | None:
        """The name with the highest count, if any has one."""
        name = max(self._counts, key=self._counts.__getitem__, default=None)
        return None if name is None or self._counts[name] < 1 else (name, round(self._counts[name]))

    def _forget(self) -> None:
        ranked = sorted(self._ranks, key=self._ranks.__getitem__, reverse=True)
        self._floor = max(self._floor, self._ranks[ranked[self.most]])
        for name in ranked[self.most :]:
            del self._counts[name], self._ranks[name]


class Tally:
    """Numbers as they come, by second; a `now` is in seconds of any clock that does not go back."""

    def __init__(self, total: int, now: float) -> None:
        self.total, self.began = total, now
        self.done = self.failed = 0
        self.codes: Counter[str] = Counter()
        self.sums: dict[str, float] = defaultdict(float)
        self.hosts = Hosts()
        self._seconds: deque[tuple[int, dict[str, float]]] = deque()

    def tell(self, now: float, done: int, failed: int = 0, news: Mapping[str, float] | None = None) -> None:
        """Add what a part told, or take it back with negative numbers.

        `news`: `code:<error code>` samples, `host:<host>` failures, `received` bytes, and `seconds:<limit>`.
        """
        self.done += done
        self.failed += failed
        second = self._second(now)
        # the recent past is speed, and what is taken back was fast all the same
        second["done"] += max(done, 0)
        for name, count in (news or {}).items():
            kind, _, rest = name.partition(":")
            if kind == "code" and rest:
                self.codes[rest] += int(count)
            elif kind == "host" and rest:
                self.hosts.add(rest, count)
            elif name == "received" or name.startswith(_LIMIT):
                self.sums[name] += count
                second[name] += max(count, 0)

    def view(self, now: float, *, whole: bool = False) -> View:
        """The picture now; with `whole` the run itself is the recent past, as at its end."""
        elapsed = max(now - self.began, 1e-6)
        overall = max(self.done, 0) / elapsed
        if whole:
            past, length = self.sums, elapsed
            recent = overall
        else:
            past, length = self._recent(now)
            recent = past["done"] / length
        limits = {name.removeprefix(_LIMIT): s for name, s in past.items() if name.startswith(_LIMIT) and s > 0}
        left = self.total - self.done
        return View(
            done=self.done,
            failed=self.failed,
            total=self.total,
            recent=recent,
            overall=overall,
            codes=tuple((code, n) for code, n in self.codes.most_common(CODES) if n > 0),
            host=self.hosts.worst(),
            received=self.sums["received"],
            received_rate=past["received"] / length,
            limit=max(limits, key=limits.__getitem__, default=None),
            left=left / recent if left > 0 and recent else None,
        )

    def _second(self, now: float) -> dict[str, float]:
        if not self._seconds or self._seconds[-1][0] != int(now):
            self._seconds.append((int(now), defaultdict(float)))
            while self._seconds[0][0] < int(now) - WINDOW:
                self._seconds.popleft()
        return self._seconds[-1][1]

    def _recent(self, now: float) -> tuple[dict[str, float], float]:
        """Sums of the last seconds and how many they are."""
        first = int(now) - WINDOW
        sums: dict[str, float] = defaultdict(float)
        for second, counts in self._seconds:
            for name, count in counts.items() if second >= first else ():
                sums[name] += count
        return sums, max(now - max(self.began, first), 1.0)


class Live(Progress):
    """A `Progress` that knows what a download tells beside its samples; see `Tally.tell`."""

    def __init__(
        self,
        title: str,
        total: int,
        *,
        unit: str = "samples",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(title, total, unit=unit, stream=stream, clock=clock)
        self.tally = Tally(total, clock())
        self._lock = threading.Lock()  # a thread draws while another counts

    def advance(self, done: int, failed: int = 0, news: Mapping[str, float] | None = None) -> None:
        """As `Progress` has it, with the news."""
        with self._lock:
            self.tally.tell(self._clock(), done, failed, news)
        super().advance(done, failed)

    def finish(self) -> None:
        """Take the bar away; where there was none, a long run ends with a line on all of it."""
        super().finish()
        if not self.terminal and self.elapsed > progress.INTERVAL:
            self.say("; ".join([*self._plain(self.view(whole=True)), f"took {span(self.elapsed)}"]))

    def view(self, *, whole: bool = False) -> View:
        """The picture now."""
        with self._lock:
            return self.tally.view(self._clock(), whole=whole)

    def line(self) -> str:
        """All of it as one plain line."""
        view = self.view()
        return "; ".join([*self._plain(view), *_left(view)])

    def beside(self) -> str:
        """Rate and time left."""
        view = self.view()
        return ", ".join([speed(view), *_left(view)])

    def beneath(self) -> Sequence[str]:
        """Success by code; the worst host; bytes and the limit."""
        view = self.view()
        lines = [", ".join(outcomes(view)), "; ".join(_host(view)), "; ".join([*_bytes(view), *_limit(view)])]
        return [f"  {line}" for line in lines if line]

    def _plain(self, view: View) -> list[str]:
        of = f" of {self.total:,}" if self.total else ""
        counted = ", ".join([f"{self.title}: {view.done:,}{of} {self.unit}", speed(view), *outcomes(view)])
        return [counted, *_host(view), *_bytes(view), *_limit(view)]


# --- in words ---------------------------------------------------------------------------------------------


def speed(view: View) -> str:
    """`430/s`, and the rate since the start where that is another: `430/s (390/s overall)`."""
    recent, overall = _rate(view.recent), _rate(view.overall)
    return recent if recent == overall else f"{recent} ({overall} overall)"


def outcomes(view: View) -> list[str]:
    """`91.2 % ok` and the most frequent codes with their shares of the samples done."""
    if view.done <= 0:
        return []
    shares = [("ok", view.done - view.failed, "{1} {0}"), *((code, n, "{0} {1}") for code, n in view.codes)]
    return [form.format(printable(name), share(n, view.done)) for name, n, form in shares]


def share(part: float, whole: float) -> str:
    """A share for people: `5.1 %`; what is neither none nor all is not rounded to it."""
    if 0 < part < whole * 0.001:
        return "<0.1 %"
    if whole * 0.999 < part < whole:
        return ">99.9 %"
    return f"{100 * part / whole:.1f} %"


def printable(name: str) -> str:
    """A host that a stranger named, fit for a terminal: nothing but the host, nothing that moves or turns text."""
    host = name.rsplit("@", 1)[-1]
    for mark in "/?#\\":
        host = host.split(mark, 1)[0]
    turned = ("R", "AL", "AN")
    shown = "".join(c if c.isprintable() and unicodedata.bidirectional(c) not in turned else "\ufffd" for c in host)
    return shown if len(shown) <= HOST_LENGTH else shown[: HOST_LENGTH - 3] + "..."


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 or rate == 0 else f"{rate:.1f}/s"


def _left(view: View) -> list[str]:
    return [] if view.left is None else [f"{span(view.left)} left"]


def _host(view: View) -> list[str]:
    if view.host is None:
        return []
    name, count = view.host
    part = f", {share(min(count, view.failed), view.failed)} of all failures" if view.failed > 0 else ""
    return [f"worst host {printable(name)} ({count:,} failed{part})"]


def _bytes(view: View) -> list[str]:
    return [f"{size(view.received)} at {size(view.received_rate)}/s"] if view.received > 0 else []


def _limit(view: View) -> list[str]:
    return [f"limit: {view.limit}"] if view.limit else []
