"""How many fetches at once: as many as still make the crawl faster, and no more.

The right number lies between a few dozen and a thousand and depends on hosts, line and machine, so it is
found: raised while that brings more answers a second, taken back where it does not or where failures of our
own making (no answer from name servers, timeouts) rise with it.
"""

from __future__ import annotations

from dataclasses import dataclass

START, LEAST, MOST = 64, 8, 1024
INTERVAL = 2.0
"""Seconds between two looks."""

_GROWTH = 1.4
_WORTH = 1.05
"""A raise must bring so much more, else it is taken back."""
_REST = 5
"""Looks without a change after a raise that brought nothing."""
_TROUBLE = 0.1
"""So much more of all answers being trouble than before is too much."""


@dataclass(frozen=True)
class Look:
    """What was seen in one interval: answers a second, the share of them that were timeouts or silent name
    servers, whether all fetches allowed were under way, and whether decoding kept us waiting."""

    rate: float
    trouble: float
    saturated: bool
    held_up: bool


class Tuner:
    """The number of fetches at once, `limit`, from one `Look` after the other.

    With `fixed` it is that number for good.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed
        self.limit = fixed or START
        self._before: Look | None = None
        self._low = self.limit
        """What the last raise began from."""
        self._raised = False
        self._rest = 0

    def look(self, seen: Look) -> int:
        """The limit from now on."""
        before, self._before = self._before, seen
        if self.fixed:
            return self.limit
        calm = min(before.trouble, seen.trouble) if before else 0.0
        if seen.trouble - calm > _TROUBLE and self.limit > LEAST:
            self._set(max(LEAST, self.limit // 2))
            self._rest = _REST
        elif self._rest:
            self._rest -= 1
        elif self._raised and before and seen.rate < before.rate * _WORTH:
            self._set(self._low)
            self._rest = _REST
        elif seen.saturated and not seen.held_up and self.limit < MOST:
            self._low = self.limit
            self.limit = min(MOST, int(self.limit * _GROWTH) + 1)
            self._raised = True
        else:
            self._raised = False
        return self.limit

    def _set(self, limit: int) -> None:
        self.limit = self._low = limit
        self._raised = False
