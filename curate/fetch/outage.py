"""Whether this machine's line is down: then a list must not burn through as failures of its hosts.

A failure that may be the line's own is held back until anybody gives a sign of life; then it is what it seemed.
Where many hosts fall silent and nobody else answers, those that answered last are knocked at: if none of them
can be connected to, the line is down, and what is held back is asked for again when it is up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from yarl import URL

from curate.errors import StopError
from curate.progress import span

if TYPE_CHECKING:
    from curate.fetch.http import Fetched

ROWS, HOSTS, SECONDS = 100, 8, 10.0
"""The line may be down when so many failures from so many hosts came since the last sign of life; where nobody
has answered yet who could be knocked at, it is so long after that."""
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
        if self.down_since is not None and self.clock() - self.down_since > self.patience:
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
        """Nothing else will come that could tell: the failures stand."""
        held, self.held = self.held, []
        self._hosts.clear()
        return held

    @property
    def likely(self) -> bool:
        """Whether too many hosts are silent to believe it of each of them."""
        return self.down_since is None and len(self.held) >= ROWS and len(self._hosts) >= HOSTS

    @property
    def long(self) -> bool:
        """Whether nobody has given a sign of life for a while."""
        return self.clock() - self._alive >= SECONDS

    def declare(self) -> None:
        """The line is down."""
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


class Acquaintances:
    """The last few addresses that answered; whether one can be connected to now says whether the line is up."""

    def __init__(self, most: int = 8) -> None:
        self.most = most
        self._known: dict[tuple[str, int], None] = {}

    def met(self, answer: Fetched) -> None:
        """Somebody answered so."""
        if not (answer.address and answer.final_url):
            return
        place = answer.address, URL(answer.final_url).port or 443
        self._known.pop(place, None)
        self._known[place] = None
        if len(self._known) > self.most:
            del self._known[next(iter(self._known))]

    async def answer(self, seconds: float) -> bool | None:
        """Whether any of them takes a connection in so many seconds; None where nobody is known yet."""
        if not self._known:
            return None
        knocks = [asyncio.ensure_future(connects(*place)) for place in self._known]
        try:
            for knock in asyncio.as_completed(knocks, timeout=seconds):
                if await knock:
                    return True
        except asyncio.TimeoutError:
            pass
        finally:
            for knock in knocks:
                knock.cancel()
            await asyncio.gather(*knocks, return_exceptions=True)
        return False


async def connects(address: str, port: int) -> bool:
    """Whether a connection can be made; nothing is sent over it."""
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)  # somebody is there who says so
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True
