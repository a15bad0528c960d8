"""Whose turn it is: the URLs of a part, host by host."""

from __future__ import annotations

import heapq
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable


class Turns:
    """Numbers to be taken, one of each host in turn, so that no host is asked in bursts.

    A host that cannot be asked now is parked until it can.
    """

    def __init__(self, numbers: Iterable[tuple[int, str]]) -> None:
        self.waiting: dict[str, deque[int]] = defaultdict(deque)
        for number, host in numbers:
            self.waiting[host].append(number)
        self.hosts = deque(self.waiting)
        self._parked: set[str] = set()
        self._until: list[tuple[float, str]] = []

    def next(self, wait_for: Callable[[int, str], float]) -> tuple[int, str] | None:
        """The next number and its host; None where none is left, or none may be asked yet."""
        now = time.monotonic()
        while self._until and self._until[0][0] <= now:
            self.unpark(heapq.heappop(self._until)[1])
        while self.hosts:
            host = self.hosts.popleft()
            waits = wait_for(self.waiting[host][0], host)
            if waits > 0:
                self._parked.add(host)
                heapq.heappush(self._until, (now + waits, host))
                continue
            number = self.waiting[host].popleft()
            if self.waiting[host]:
                self.hosts.append(host)
            return number, host
        return None

    @property
    def soonest(self) -> float | None:
        """When the first of the parked hosts may be asked, on the monotonic clock."""
        return self._until[0][0] if self._parked else None

    def unpark(self, host: str) -> None:
        """Have the host looked at again: one of its requests has ended."""
        if host in self._parked:
            self._parked.remove(host)
            self.hosts.appendleft(host)

    def put_back(self, number: int, host: str) -> None:
        """Have this number be taken once more, after its host's others."""
        if not self.waiting[host]:
            self.hosts.append(host)
        self.waiting[host].append(number)

    def clear(self) -> None:
        """Nothing is to be taken any more."""
        self.waiting.clear()
        self.hosts.clear()
        self._parked.clear()
        self._until.clear()
