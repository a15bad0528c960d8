"""A deadline that costs one timer, and does not run while somebody else is waited for."""

from __future__ import annotations

import asyncio
from typing import Any


class Clock:
    """`left` seconds, used up between `start` and `stop`; at their end the task that started it is cancelled.

    Between `hold` and `go_on` no time passes. A cancellation that `rang` is the clock's own, not a caller's.
    """

    __slots__ = ("_cancelling", "_ends", "_handle", "_held", "_loop", "_rung", "_task", "left")

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._cancelling = 0
        self._ends = 0.0
        self._held: float | None = None
        self._rung = False

    def start(self) -> None:
        """Begin to run, in the task that is to be cancelled."""
        self._task = task = asyncio.current_task()
        # a task of Python 3.10 does not count its cancellations
        self._cancelling = task.cancelling() if hasattr(task, "cancelling") and task is not None else 0
        self._ends = self._loop.time() + self.left
        self._handle = self._loop.call_at(self._ends, self._ring)

    def stop(self) -> None:
        """Stand still until the next start."""
        self.left = max(0.0, self.left_now())
        self._held = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def left_now(self) -> float:
        """The seconds left, while it runs."""
        return self._ends - (self._loop.time() if self._held is None else self._held)

    def spend(self, seconds: float) -> bool:
        """Use up `seconds` while it stands still, if there are more than that."""
        if seconds >= self.left:
            return False
        self.left -= seconds
        return True

    def hold(self) -> None:
        """Let no time pass from here on."""
        self._held = self._loop.time()

    def go_on(self) -> None:
        """Let time pass again."""
        if self._held is not None:
            self._ends += self._loop.time() - self._held
            self._held = None
            if self._handle is None:
                self._handle = self._loop.call_at(self._ends, self._ring)

    def rang(self, error: BaseException) -> bool:
        """Whether `error` ended what was going on because the time was up; to be asked once."""
        if not self._rung:
            return False
        self._rung = False
        uncancel = getattr(self._task, "uncancel", None)
        others = uncancel is not None and uncancel() > self._cancelling
        return not (others and isinstance(error, asyncio.CancelledError))

    def _ring(self) -> None:
        self._handle = None
        if self._held is not None:
            return  # set again when time goes on
        if self._loop.time() < self._ends - 0.001:
            self._handle = self._loop.call_at(self._ends, self._ring)
        elif self._task is not None:
            self._rung = True
            self._task.cancel()
