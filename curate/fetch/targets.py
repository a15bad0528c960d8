"""What a crawl is asked for, what became of it, and the part of a download that both belong to."""

from __future__ import annotations

import concurrent.futures
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from curate.fetch.converted import Converted
from curate.fetch.decoders import Boxes
from curate.fetch.http import Fetched
from curate.fetch.local_file import LocalFile
from curate.fetch.turns import Turns
from curate.fetch.urls import host_of


@dataclass(frozen=True)
class Target:
    """A URL to fetch, or a file to read; `expected` is the hash that its bytes should have.

    `boxes` are faces to blur: x0, y0, x1, y1 as fractions of the width and height of the stored picture.
    """

    url: str
    expected: str | None = None
    boxes: Boxes = ()
    file: LocalFile | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a target: an image in the spool at `offset`, or an error code.

    `fetched` and `image` have lost their bytes; `received` counts those of the body. `repeat`: the answer to an
    earlier row with the same URL, which was not asked for twice.
    """

    fetched: Fetched
    received: int | None = None
    image: Converted | None = None
    offset: int = 0
    length: int = 0
    error_code: str | None = None
    error_message: str | None = None
    repeat: bool = False

    @classmethod
    def failed(cls, fetched: Fetched) -> Outcome:
        """Of what could not be fetched."""
        return cls(fetched, error_code=fetched.error_code, error_message=fetched.error_message)

    def shared(self, rows: Sequence[int], first: int) -> dict[int, Outcome]:
        """This one for all these rows; for all but the `first` it is the answer to another's URL."""
        again = replace(self, repeat=True)
        return {row: self if row == first else again for row in rows}


News = Callable[[int, int, Mapping[str, float]], None]
"""Samples done, those of them that failed, and figures that add up by name; called from the station's thread."""


class Part:
    """The targets of one call, grouped by what has to be fetched once."""

    def __init__(self, targets: Mapping[int, Target], spool: BinaryIO, news: News) -> None:
        self.targets, self.spool, self.news = targets, spool, news
        self.position = spool.tell()
        self.outcomes: dict[int, Outcome] = {}
        self.done: concurrent.futures.Future[dict[int, Outcome]] = concurrent.futures.Future()
        self.rows: dict[str | LocalFile, list[int]] = defaultdict(list)
        for number, target in targets.items():
            self.rows[target.file or target.url.strip()].append(number)
        self.turns = Turns(
            (numbers[0], host_of(what) if isinstance(what, str) else "") for what, numbers in self.rows.items()
        )

    def numbers(self, number: int) -> list[int]:
        """All rows that ask for what row `number`, the first of them, asks for."""
        target = self.targets[number]
        return self.rows[target.file or target.url.strip()]

    def keep(self, image: Converted, fetched: Fetched, received: int) -> Outcome:
        """An image goes to the spool."""
        self.spool.write(image.data)
        offset, length = self.position, len(image.data)
        self.position += length
        return Outcome(fetched, received, replace(image, data=b""), offset, length)

    def settle(self, outcomes: Mapping[int, Outcome], host: str) -> None:
        """These rows have ended."""
        self.outcomes.update(outcomes)
        told: Counter[str] = Counter()
        failed = 0
        for outcome in outcomes.values():
            told["received"] += 0 if outcome.repeat else outcome.received or 0
            told["stored"] += outcome.length
            if outcome.error_code:
                failed += 1
                told[f"code:{outcome.error_code}"] += 1
                if host and outcome.error_code != "blocked":
                    told[f"host:{host}"] += 1
        self.news(len(outcomes), failed, told)
        if len(self.outcomes) == len(self.targets) and not self.done.done():
            self.done.set_result(self.outcomes)
