"""The model hub over HTTP: what a repository holds at one revision, and its files, each whole and right.

huggingface_hub gives the session (proxies, certificates, offline mode) and the token. The bytes come through
here, since its own downloads begin a file again when their process has died, wait as long as a Retry-After
says, and compare sizes alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import curate
from curate.disk import disk, fsync_folder
from curate.errors import CurateError, StopError
from curate.fetch.urls import retry_after
from curate.progress import span

log = logging.getLogger("curate.fetch")

TRIES = 10
"""Requests in a row that may fail without a byte arriving, some four minutes, before the hub is given up."""
LONGEST_WAIT = 60.0
"""Seconds, at most, between two tries of our own choosing."""
LONGEST_ASKED = 300.0
"""Seconds, at most, that a Retry-After is obeyed for: the length of the hub's windows."""
_IDLE = 10.0
"""Seconds without a byte; also how long, at most, an interrupt waits for a silent hub."""
_WINDOW, _LEAST = 60.0, 64 << 10
"""A body that brings fewer bytes in so many seconds is asked for again."""
_BLOCK = 1 << 20
_ELSEWHERE = "a list of your own needs no hub: curate download --source FILE_OR_FOLDER"
_CLIENTS = frozenset({"httpx", "httpx2", "httpcore", "httpcore2"})
_RESETS_IN = re.compile(r";\s*t\s*=\s*(\d+)")
_STARTS_AT = re.compile(r"bytes (\d+)-")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; `digest` is `sha256:HEX`, or `git:HEX` (the blob id) of one that git itself keeps."""

    path: str
    bytes: int
    digest: str

    @property
    def name(self) -> str:
        """Its name without the folders that the repository has it in."""
        return PurePosixPath(self.path).name

    def damage(self, path: Path) -> str | None:
        """What is wrong with the file at `path`, with expected and found, as a clause; None if it is this one."""
        found = path.stat().st_size if path.is_file() else 0
        if found != self.bytes:
            return f"has {found:,} bytes, {self.bytes:,} on the hub"
        kind, _, wanted = self.digest.partition(":")
        hashed = hashlib.sha256()
        if kind == "git":
            hashed = hashlib.sha1(b"blob %d\0" % self.bytes, usedforsecurity=False)
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                hashed.update(block)
        if hashed.hexdigest() == wanted:
            return None
        return f"has the {'git blob id' if kind == 'git' else kind} {hashed.hexdigest()}, {wanted} on the hub"


class NotThere(StopError):
    """The hub has no such file, revision or repository; `code` is its own word for it."""

    def __init__(self, where: str, what: str, code: str, *, hint: str | None = None) -> None:
        super().__init__(where, what, hint=hint)
        self.code = code


class _Passing(Exception):
    """Something that another try may mend; `after` seconds where the server asks for a wait."""

    def __init__(self, what: str, *, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


class _Stopped(Exception):
    """Another file has failed for good, or the user wants to go."""


class Hub:
    """One repository of data on the hub at `endpoint`; any number of threads may fetch from it."""

    def __init__(self, repository: str, endpoint: str) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is first imported
        self.repository = repository
        self.endpoint = endpoint.rstrip("/")
        self._stop = threading.Event()
        self._reached = False
        self._asks: dict[str, str] | None = None

    @property
    def host(self) -> str:
        """The hub's name, for messages."""
        return urlsplit(self.endpoint).netloc.rpartition("@")[2] or self.endpoint

    @property
    def page(self) -> str:
        """The repository's page, for people."""
        return f"{self.endpoint}/datasets/{self.repository}"

    def stop(self) -> None:
        """End all fetches of other threads, as soon as their next bytes arrive."""
        self._stop.set()

    def newest(self) -> str:
        """The commit that the repository is at now."""
        told = self._json(f"{self.endpoint}/api/datasets/{self.repository}")[0]
        if not (isinstance(told, dict) and isinstance(told.get("sha"), str)):
            raise self._strange()
        return str(told["sha"])

    def files(self, revision: str) -> list[HubFile]:
        """All files at a revision, in the hub's order."""
        url: str | None = f"{self.endpoint}/api/datasets/{self.repository}/tree/{revision}?recursive=true"
        found: list[HubFile] = []
        while url is not None:
            page, url = self._json(url)
            try:
                found += [_listed(entry) for entry in page if entry["type"] == "file"]
            except (KeyError, TypeError):
                raise self._strange() from None
        return found

    def fetch(self, revision: str, file: HubFile, target: Path, part: Path, came: Callable[[int], None]) -> None:
        """The file at `target`, checked; `part` is where it arrives, and what is there already is gone on with.

        `came` is told the bytes as they arrive (fewer than 0: given up again). Raises StopError for bytes that
        are wrong twice, NotThere, and where the hub cannot be reached.
        """
        for last in (False, True):
            self._patiently(file.path, lambda: self._take(revision, file, part, came), lambda: _size(part))
            with disk(part):
                damage = file.damage(part)
                if damage is None:
                    _settle(part, target)
                    return
                came(-_size(part))
                part.unlink(missing_ok=True)
            if not last:
                log.warning("%s: %s; fetching it again", file.path, damage)
        raise StopError(
            self.host,
            f"{file.path} of {self.repository} {damage}, and did when it was fetched again",
            hint=_ELSEWHERE,
        )

    def _take(self, revision: str, file: HubFile, part: Path, came: Callable[[int], None]) -> None:
        """Add to `part` what it lacks. Returns with all bytes, or with those that can be had; else _Passing."""
        have = _size(part)
        if have >= file.bytes > 0:
            return
        url = f"{self.page}/resolve/{revision}/{quote(file.path)}"
        # compressed on the way, a range would be one of other bytes
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with self._answer(url, headers) as response:
            if response.status_code == 416:
                return
            starts = _STARTS_AT.match(response.headers.get("Content-Range", ""))
            if have and (response.status_code != 206 or starts is None or int(starts[1]) != have):
                came(-have)
                have = 0
            with disk(part), part.open("ab" if have else "wb") as sink:
                since, then = time.monotonic(), have
                for block in response.iter_bytes():
                    if self._stop.is_set():
                        raise _Stopped
                    sink.write(block)
                    came(len(block))
                    have += len(block)
                    if have > file.bytes:
                        return
                    if time.monotonic() - since > _WINDOW:
                        if have - then < _LEAST:
                            raise _Passing(f"{have - then:,} bytes in {span(_WINDOW)}")
                        since, then = time.monotonic(), have
        if have < file.bytes:
            raise _Passing(f"the body ended after {have:,} of {file.bytes:,} bytes")

    def _json(self, url: str) -> tuple[Any, str | None]:
        """What the hub's API answers, and the address of the next page."""

        def ask() -> tuple[Any, str | None]:
            with self._answer(url, {}) as response:
                response.read()
                try:
                    return response.json(), response.links.get("next", {}).get("url")
                except ValueError:
                    raise self._strange() from None

        return self._patiently(self.repository, ask)

    @contextmanager
    def _answer(self, url: str, headers: Mapping[str, str]) -> Iterator[Any]:
        """An answer of success (or 416), its body not read yet. Raises StopError, or _Passing."""
        from huggingface_hub import get_session
        from huggingface_hub.errors import OfflineModeIsEnabled

        if self._asks is None:
            self._asks = _identity()
        try:
            with get_session().stream(
                "GET", url, headers={**self._asks, **headers}, timeout=_IDLE, follow_redirects=True
            ) as response:
                self._reached = True
                self._check(response)
                yield response
        except OfflineModeIsEnabled as error:
            raise StopError(
                self.host, "is not asked: $HF_HUB_OFFLINE is set", hint=f"unset it; or {_ELSEWHERE}"
            ) from error
        except Exception as error:
            if isinstance(error, CurateError) or type(error).__module__.partition(".")[0] not in _CLIENTS:
                raise
            raise _Passing(" ".join(str(error).split())[:200] or type(error).__name__) from error

    def _check(self, response: Any) -> None:
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        if 200 <= status < 300 or (status == 416 and "Range" in response.request.headers):
            return
        from_hub = urlsplit(str(response.url)).netloc == urlsplit(self.endpoint).netloc
        if status in (408, 425, 429) or status >= 500 or not from_hub:
            # elsewhere the signature of an address has run out, say; the hub signs another
            raise _Passing(f"it answers {status}", after=_asked_wait(response.headers, status))
        if code == "GatedRepo" or status == 403:
            raise StopError(
                self.host,
                f"{self.repository} is gated, and not open to {self._who()} ({status})",
                hint=f"accept its terms at {self.page}, then log in with `hf auth login` or set $HF_TOKEN",
            )
        if status == 401 or code == "RepoNotFound":
            raise StopError(
                self.host,
                f"shows no {self.repository} to {self._who()} ({status}: private, or not there)",
                hint=f"`hf auth login` or $HF_TOKEN where it is private; {_ELSEWHERE}",
            )
        if status == 404:
            path = urlsplit(str(response.request.url)).path
            raise NotThere(self.host, f"has no {path} (404 {code})".replace(" )", ")"), code, hint=_ELSEWHERE)
        raise StopError(self.host, f"refuses {self.repository} (it answers {status})", hint=_ELSEWHERE)

    def _strange(self) -> StopError:
        return StopError(
            self.host, "does not answer as a model hub does", hint=f"is $HF_ENDPOINT right? Else, {_ELSEWHERE}"
        )

    def _who(self) -> str:
        return "the account of your token" if self._asks and "Authorization" in self._asks else "a visitor"

    def _patiently(self, what: str, ask: Callable[[], Answer], progress: Callable[[], int] = lambda: 0) -> Answer:
        """The answer, after as many tries as it takes while `progress` grows, and TRIES where it does not."""
        failed = 0
        while True:
            before = progress()
            try:
                return ask()
            except _Passing as error:
                failed = 1 if progress() > before else failed + 1
                if failed >= TRIES or not self._reached:  # a hub that was never there is not waited for
                    raise StopError(
                        self.host,
                        f"{what} cannot be had from there ({error})",
                        hint=f"the same command goes on where this one stopped; {_ELSEWHERE}",
                    ) from error
                wait = min(2.0 ** (failed - 1), LONGEST_WAIT)
                if error.after is not None:
                    wait = min(error.after, LONGEST_ASKED)
                log.warning("%s: %s: %s; again in %s", self.host, what, error, span(wait))
                if self._stop.wait(wait):
                    raise _Stopped from None


def _listed(entry: Mapping[str, Any]) -> HubFile:
    lfs = entry.get("lfs")
    digest = f"sha256:{lfs['oid']}" if lfs else f"git:{entry['oid']}"
    return HubFile(entry["path"], (lfs or entry)["size"], digest)


def _identity() -> dict[str, str]:
    """Who asks: our name, and the user's token where there is one; nothing about this machine."""
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    agent = {"User-Agent": f"curate/{curate.__version__}"}
    return agent | ({"Authorization": f"Bearer {token}"} if token else {})


def _asked_wait(headers: Mapping[str, str], status: int) -> float | None:
    """Seconds that a server asks to wait: Retry-After as seconds or date, else the hub's own RateLimit."""
    if value := headers.get("Retry-After", "").strip():
        return retry_after(value)
    resets = _RESETS_IN.search(headers.get("RateLimit", "")) if status == 429 else None
    return float(resets[1]) if resets else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _settle(part: Path, target: Path) -> None:
    """Give a whole file its name, for good."""
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(target)
    fsync_folder(target.parent)
