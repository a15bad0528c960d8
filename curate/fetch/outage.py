"""Whether this machine's line is down: then a list must not burn through as failures of its hosts.

A failure that may be the line's own is held back until anybody gives a sign of life; then it is what it seemed.
Where nobody does for a while, and many hosts fell silent at once, the line is taken to be down: what is held
back is asked for again when it is up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from curate.errors import StopError
from curate.progress import span

ROWS, HOSTS, SECONDS = 100, 8, 10.0
"""The line is down when so many failures from so many hosts came since the last sign of life, so long ago."""
PROBES = 4
"""Requests at once while it is down: the first one that is answered ends it."""
PROBE_SECONDS = 5.0
"""A probe that fails at once is not repeated sooner."""

Held = TypeVar("Held")

log = logging.getLogger("curate.fetch")


@dataclass
class Outage(Generic[Held]):
    """Keeps failures back (`held`) as long as it is open whose they are.

    `patience` is how many seconds it may be down; 0 holds nothing back.
    """

    patience: float
    clock: Callable[[], float] = time.monotonic
    held: list[Held] = field(default_factory=list)
    down_since: float | None = None

    def __post_init__(self) -> None:
        self._alive = self.clock()
        self._hosts: set[str] = set()

    @property
    def down(self) -> bool:
        """Whether the line is taken to be down."""
        return self.down_since is not None

    def alive(self) -> list[Held]:
        """Somebody gave a sign of life: the failures that stand, none if they were for the line."""
        self._alive = self.clock()
        held, self.held = self.held, []
        self._hosts.clear()
        if self.down_since is None:
            return held
        log.warning("the network is back after %s; what failed meanwhile is asked for again", self._for())
        self.down_since = None
        return []

    def silent(self, host: str, failure: Held) -> bool:
        """Whether the failure is kept back. Raises StopError where it has been down for longer than `patience`."""
        if not self.patience:
            return False
        self.held.append(failure)
        self._hosts.add(host)
        now = self.clock()
        if self.down_since is None:
            if self._many and now - self._alive >= SECONDS:
                self._declare()
        elif now - self.down_since > self.patience:
            raise StopError(
                "the network",
                f"no host and no name server has answered for {self._for()}",
                hint="run the same command again when it is back; --outage-minutes says how long to wait",
            )
        return True

    def again(self) -> list[Held]:
        """What is to be asked for once more while it is down: all that was kept back."""
        held, self.held = self.held, []
        return held

    def rest(self) -> list[Held]:
        """Nothing else is under way that could tell: the failures stand, unless there are too many to believe."""
        if self._many:
            self._declare()
            return []
        held, self.held = self.held, []
        self._hosts.clear()
        return held

    @property
    def _many(self) -> bool:
        return len(self.held) >= ROWS and len(self._hosts) >= HOSTS

    def _declare(self) -> None:
        if self.down_since is None:
            self.down_since = self._alive
            log.warning(
                "no host and no name server has answered for %s: is the network down? Waiting for it, up to %s; "
                "Ctrl-C is safe",
                self._for(),
                span(self.patience),
            )

    def _for(self) -> str:
        return span(self.clock() - (self._alive if self.down_since is None else self.down_since))
