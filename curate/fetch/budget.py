"""Memory for what is under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable


class Budget:
    """Bytes that growing bodies may hold together; the one that began first may always go on.

    So it is exceeded by at most one body, and nobody waits for ever.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0
        self._held: dict[Hashable, int] = {}
        self._waiting: deque[tuple[Hashable, int, asyncio.Future[None]]] = deque()

    async def grow(self, holder: Hashable, size: int) -> None:
        """Take `size` more bytes for `holder`, when there is room."""
        self._held.setdefault(holder, 0)
        if self._may(holder, size):
            self._take(holder, size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((holder, size, turn))
        await turn

    def release(self, holder: Hashable) -> None:
        """Give back all that `holder` took."""
        self.used -= self._held.pop(holder, 0)
        for _ in range(len(self._waiting)):
            waiting, size, turn = self._waiting.popleft()
            if turn.done():
                continue  # given up
            if self._may(waiting, size):
                self._take(waiting, size)
                turn.set_result(None)
            else:
                self._waiting.append((waiting, size, turn))

    def _may(self, holder: Hashable, size: int) -> bool:
        return self.used + size <= self.most or next(iter(self._held)) == holder

    def _take(self, holder: Hashable, size: int) -> None:
        self.used += size
        self._held[holder] = self._held.get(holder, 0) + size
