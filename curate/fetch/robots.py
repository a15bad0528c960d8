"""robots.txt, as RFC 9309 has it: asked for once an origin, obeyed for the name AGENT_TOKEN.

No robots.txt (4xx, too many redirects, nothing in it) allows everything. A server that fails (5xx) or has no
time (429) allows nothing for now. Where the host itself cannot be reached, its URLs fail with that very code,
since it says nothing of what is allowed. Crawl-delay is no part of the standard and is not read.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yarl import URL

from curate.fetch.faults import NotAsked
from curate.fetch.settings import AGENT_TOKEN
from curate.fetch.urls import host_key

if TYPE_CHECKING:
    from protego import Protego

MOST_BYTES = 512 << 10
"""So much of a robots.txt is read; what follows is ignored."""
KEPT_SECONDS = 86_400.0
RETRIED_SECONDS = 60.0
"""After so long a robots.txt that could not be had is asked for again."""
MOST_ORIGINS = 1 << 12
_HEAVY = 1 << 15

Ask = Callable[[URL], Awaitable["Answer"]]


@dataclass(frozen=True)
class Answer:
    """What came of asking for a robots.txt: its first MOST_BYTES, or an error code and its message."""

    body: bytes | None
    code: str | None = None
    what: str | None = None


@dataclass(frozen=True)
class _Rules:
    """`parsed` decides; without it everything is allowed, or all is refused with `refusal`."""

    until: float
    parsed: Protego | None = None
    refusal: tuple[str, str] | None = None


class Robots:
    """The rules of the origins met so far; `ask` fetches a robots.txt."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._rules: dict[str, _Rules] = {}
        self._asking: dict[str, asyncio.Task[_Rules]] = {}
        self._hosts: Counter[str] = Counter()

    def busy(self, host: str) -> bool:
        """Whether a robots.txt of the host (`urls.host_key`) is being asked for, so that its URLs would wait."""
        return host in self._hosts

    async def check(self, url: URL) -> None:
        """Pass where `url` may be fetched; raises NotAsked where its origin forbids it or cannot be asked."""
        origin = f"{url.scheme}://{url.raw_host}:{url.port}"
        rules = self._rules.get(origin)
        if rules is None or rules.until < asyncio.get_running_loop().time():
            task = self._asking.get(origin)
            if task is None:
                task = self._asking[origin] = asyncio.ensure_future(self._get(origin, url))
            rules = await asyncio.shield(task)
        if rules.refusal is not None:
            raise NotAsked(*rules.refusal)
        if rules.parsed is not None and not rules.parsed.can_fetch(str(url), AGENT_TOKEN):
            raise NotAsked("robots", "robots.txt asks not to fetch it")

    async def close(self) -> None:
        """Stop what is being asked for."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _get(self, origin: str, url: URL) -> _Rules:
        host = host_key(url)
        self._hosts[host] += 1
        try:
            rules = await self._rules_of(await self._ask(url.with_path("/robots.txt")))
        finally:
            del self._asking[origin]
            self._hosts -= Counter([host])
        if len(self._rules) >= MOST_ORIGINS:
            del self._rules[next(iter(self._rules))]
        self._rules[origin] = rules
        return rules

    async def _rules_of(self, answer: Answer) -> _Rules:
        loop = asyncio.get_running_loop()
        code = answer.code or ""
        if answer.body is not None:
            text = answer.body.decode("utf-8-sig", "replace")
            heavy = len(text) > _HEAVY
            parsed = await loop.run_in_executor(None, _parse, text) if heavy else _parse(text)
            return _Rules(loop.time() + KEPT_SECONDS, parsed)
        if code == "blocked":
            refusal = ("robots", "robots.txt cannot be had")
        elif code == "http_429" or code.startswith("http_5"):
            refusal = ("robots", f"robots.txt cannot be had: {answer.what}")
        elif code.startswith("http_") or code in ("empty", "too_many_redirects"):
            return _Rules(loop.time() + KEPT_SECONDS)
        else:
            refusal = (code, f"robots.txt: {answer.what}")
        return _Rules(loop.time() + RETRIED_SECONDS, refusal=refusal)


def _parse(text: str) -> Protego:
    from protego import Protego

    return Protego.parse(text)
