"""Manners towards each host: how many requests at once, when to wait, and when to stop asking.

- At most `per_host` requests run at once; who comes later waits for a turn, in order.
- After 429 or 503 the whole host pauses: for as long as Retry-After says, else `backoff_seconds`, doubled with
  every such answer in a row, with jitter. It then gets one request at first and one more with each success.
- A host is given up for a while (its URLs fail at once, with the code and the words of the last failure) after
  MOST_SILENT requests in a row without a sign of life, after MOST_PAUSES pauses in a row, or when it asks for
  a longer pause than `patience_seconds`. One URL then tries again; if that fails, the while is doubled.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from curate.fetch.faults import Failed, NotAsked

MOST_SILENT = 20
MOST_PAUSES = 8
LONGEST_BACKOFF = 60.0
"""Seconds; a Retry-After may be longer."""
SHUT_SECONDS = (30.0, 600.0)
"""A host is given up for so long at first, and at most."""
MOST_HOSTS = 1 << 16
"""So many hosts are remembered; idle ones are forgotten beyond that."""
FULL_SECONDS = 0.02
"""What `ready` answers for a host whose turns are all taken."""


@dataclass(eq=False, slots=True)
class Host:
    """What is known of a host; times are the loop's. `room` is how many requests may run at once now.

    `since` is when its last pause began: an answer to an older request tells nothing new.
    """

    key: str
    room: int
    running: int = 0
    silent: int = 0
    pauses: int = 0
    paused_until: float = 0.0
    shut_until: float = 0.0
    shut_seconds: float = 0.0
    since: float = 0.0
    last: tuple[str, str, bool] = ("", "", False)
    queue: list[tuple[asyncio.Future[None], float]] = field(default_factory=list)
    alarm: asyncio.TimerHandle | None = None


class Hosts:
    """Turns with hosts, by `urls.host_of`; `probe_seconds` is how long one request may take."""

    def __init__(
        self, *, per_host: int, backoff_seconds: float, patience_seconds: float, probe_seconds: float
    ) -> None:
        self._per_host = per_host
        self._backoff = backoff_seconds
        self._patience = patience_seconds
        self._probe = probe_seconds
        self._hosts: dict[str, Host] = {}
        self._promised: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._hosts)

    def ready(self, key: str) -> float:
        """Seconds until a request to the host would begin; 0 also where it would be refused at once.

        Who is told 0 is expected in the next round of the loop: until then the turn counts as taken.
        """
        loop = asyncio.get_running_loop()
        host = self._hosts.get(key)
        taken, room = self._promised.get(key, 0), self._per_host
        if host is not None:
            now = loop.time()
            if host.shut_until > now:
                return 0.0
            if host.paused_until > now:
                return host.paused_until - now
            taken, room = taken + host.running + len(host.queue), host.room
        if taken >= room:
            return FULL_SECONDS
        if not self._promised:
            loop.call_soon(self._promised.clear)
        self._promised[key] += 1
        return 0.0

    async def enter(self, key: str, patience: float) -> Host:
        """A turn with the host, to be given back with `leave`.

        Raises NotAsked where the host is given up, or pauses for longer than `patience` seconds.
        """
        host = self._hosts.get(key)
        if host is None:
            host = self._remember(key)
        elif host.shut_until or host.paused_until or host.running >= host.room or host.queue:
            now = asyncio.get_running_loop().time()
            refusal = self._refusal(host, now, patience)
            if refusal is not None:
                raise refusal
            if host.shut_until:
                # given up until now: this one tries, and the others are refused until it has
                host.shut_until = now + self._probe
            if host.paused_until > now or host.running >= host.room or host.queue:
                await self._wait(host, patience)
                return host
        host.running += 1
        return host

    def leave(self, host: Host) -> None:
        """Give a turn back; a host of which there is nothing to remember is forgotten."""
        host.running -= 1
        if host.queue:
            self._grant(host)
        elif not (host.running or host.silent or host.pauses or host.shut_until) and host.room == self._per_host:
            self._hosts.pop(host.key, None)

    def answered(self, host: Host, status: int, after: float | None, began: float) -> None:
        """Take note of an answer to a request that began at `began`; `after` is what Retry-After says."""
        host.silent = 0
        if status in (429, 503):
            if began >= host.since or after is not None:
                self._pause(host, status, after, fresh=began >= host.since)
        elif began >= host.since:
            host.pauses, host.shut_until, host.shut_seconds = 0, 0.0, 0.0
            host.room = min(self._per_host, host.room + 1)

    def silent(self, host: Host, failed: Failed, began: float) -> None:
        """Take note that a request that began at `began` got no sign of life."""
        host.silent += 1
        host.last = (failed.code, failed.what, failed.offline)
        if host.silent >= MOST_SILENT and began >= host.since:
            self._shut(host)

    def forgive(self) -> None:
        """Forget which hosts gave no sign of life: it was not for them."""
        for host in self._hosts.values():
            if host.silent:
                host.silent, host.shut_until, host.shut_seconds, host.room = 0, 0.0, 0.0, self._per_host

    def pause_left(self, host: Host) -> float:
        """Seconds until the host's pause is over."""
        return max(0.0, max(host.paused_until, host.shut_until) - asyncio.get_running_loop().time())

    # --- pauses -------------------------------------------------------------------------------------------

    def _pause(self, host: Host, status: int, after: float | None, *, fresh: bool) -> None:
        now = asyncio.get_running_loop().time()
        host.last = (f"http_{status}", f"the server answered {status}", False)
        if fresh:
            host.pauses += 1
            host.room = 1
        backoff = min(LONGEST_BACKOFF, self._backoff * 2 ** (max(1, host.pauses) - 1)) * random.uniform(0.5, 1.5)
        # 503 is of one page as often as of the host, which is not given up on that page's word alone
        if after is None or (after > self._patience and status == 503 and host.pauses < 3):
            after = backoff
        if after > self._patience:
            self._shut(host, after)
        elif host.pauses >= MOST_PAUSES:
            self._shut(host)
        else:
            host.paused_until, host.since = max(host.paused_until, now + after), now
            self._turn_away(host, now)

    def _shut(self, host: Host, seconds: float = 0.0) -> None:
        first, most = SHUT_SECONDS
        now = asyncio.get_running_loop().time()
        host.shut_seconds = min(most, 2 * host.shut_seconds) if host.shut_seconds else first
        host.shut_until, host.since = now + max(seconds, host.shut_seconds), now
        host.paused_until, host.room = 0.0, 1
        self._turn_away(host, now)

    def _refusal(self, host: Host, now: float, patience: float) -> NotAsked | None:
        code, what, offline = host.last
        if host.shut_until > now:
            why = (
                f"given up after {host.silent} requests in a row"
                if host.silent
                else "the host asks to be left alone"
            )
            return NotAsked(code, f"{what} (not asked again: {why})", offline=offline)
        if host.paused_until - now > patience:
            return NotAsked(code, f"{what} (not asked: the host pauses for longer than this URL may take)")
        return None

    # --- the queue ----------------------------------------------------------------------------------------

    async def _wait(self, host: Host, patience: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        host.queue.append((turn, patience))
        self._grant(host)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(host)  # it was granted in the very moment
            raise

    def _grant(self, host: Host) -> None:
        """Give free turns to those who wait, or set the alarm for the end of the pause."""
        loop = asyncio.get_running_loop()
        if host.alarm is not None:
            host.alarm.cancel()
            host.alarm = None
        if host.paused_until > loop.time():
            host.alarm = loop.call_at(host.paused_until, partial(self._grant, host)) if host.queue else None
            return
        while host.queue and host.running < host.room:
            turn, _ = host.queue.pop(0)
            if not turn.done():
                host.running += 1
                turn.set_result(None)

    def _turn_away(self, host: Host, now: float) -> None:
        """Refuse those who wait and will not be served in time."""
        staying: list[tuple[asyncio.Future[None], float]] = []
        for turn, patience in host.queue:
            refusal = self._refusal(host, now, patience)
            if refusal is None:
                staying.append((turn, patience))
            elif not turn.done():
                turn.set_exception(refusal)
        host.queue = staying
        if staying:
            self._grant(host)

    def _remember(self, key: str) -> Host:
        if len(self._hosts) >= MOST_HOSTS:
            now = asyncio.get_running_loop().time()
            idle = [h for h in self._hosts.values() if not h.running and not h.queue]
            idle.sort(key=lambda h: max(h.shut_until, h.paused_until) > now)
            for host in idle[: MOST_HOSTS // 4]:
                del self._hosts[host.key]
        host = self._hosts[key] = Host(key, self._per_host)
        return host
