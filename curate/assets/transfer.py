"""A published file brought into the cache: once, by one process, going on where a broken fetch stopped."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from curate.assets.check import compared
from curate.assets.registry import Asset, PublishedFile
from curate.disk import disk, fsync_folder, lock
from curate.errors import Busy, InputError
from curate.progress import Progress

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 30.0
_BLOCK = 1 << 20
_BREAKS = 8
"""So often an answer may break off, as long as each brings something."""


def fetch(asset: Asset, file: PublishedFile, folder: Path) -> Path:
    """The path in `folder` of the published file, which appears there only whole and checked.

    What a broken fetch brought stays beside it as `.FILE.part`, and this or a later process goes on with it; in
    the end the digest decides. Raises InputError where the host does not give the file, or gives another.
    """
    path, held = folder / file.file, folder / f".{file.file}.lock"
    try:
        with lock(held):
            return _fetch(asset, file, path)
    except Busy as busy:
        _LOG.info("%s %s; waiting", file.file, busy.what)
    with lock(held, wait=True):
        return _fetch(asset, file, path)


def _fetch(asset: Asset, file: PublishedFile, path: Path) -> Path:
    if path.is_file():  # another process was faster
        return path
    part = _Part(path, file.digest)
    host = urlsplit(file.url).hostname
    old = part.size
    where = f", from byte {old:,} on" if old else ""
    _LOG.info("fetching %s (licence: %s) from %s%s", file.file, asset.licence, host, where)
    try:
        _bring(file, part)
        wrong = compared(file, part.path)[1]
        if wrong and old:  # what an earlier fetch left was of something else
            part.drop()
            _bring(file, part)
            wrong = compared(file, part.path)[1]
    except (_Broken, _Refused) as error:
        raise InputError(
            f"asset {asset.name}",
            f"{file.file} is not on this machine, and {host} did not give it ({error})",
            hint=_ways(asset, file, path.parent),
        ) from error
    if wrong:
        part.drop()
        raise InputError(
            f"asset {asset.name}",
            f"what {file.url} sent is not the published file ({wrong})",
            hint=_ways(asset, file, path.parent),
        )
    part.become(path)
    return path


def _ways(asset: Asset, file: PublishedFile, cache: Path) -> str:
    """The three ways to give the file by hand."""
    return (
        f"get {file.url} elsewhere, then put it into the folder that $CURATE_ASSETS names, "
        f"or into {cache}, or name it: --asset {asset.name}=FILE"
    )


# --- what has come so far ---------------------------------------------------------------------------------


class _Part:
    """The bytes that have come, and what their server calls the version that they are of."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path.with_name(f".{path.name}.part")
        self._note = path.with_name(f".{path.name}.part.json")
        self._digest = digest
        if self.size and self._said().get("digest") != digest:  # of another publication
            self.drop()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def validator(self) -> str | None:
        """A strong ETag or a date, for If-Range."""
        found = self._said().get("validator")
        return found if isinstance(found, str) else None

    def _said(self) -> dict[str, Any]:
        try:
            said = json.loads(self._note.read_bytes())
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    @contextmanager
    def writing(self, begin: int, validator: str | None) -> Iterator[IO[bytes]]:
        """The stream for the bytes from `begin` on: 0, which throws away what was there, or the size."""
        with disk(self.path):
            if begin == 0:
                said = {"digest": self._digest, "validator": validator}
                self._note.write_text(json.dumps(said), encoding="utf-8")
            with self.path.open("ab" if begin else "wb") as out:
                yield out

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def become(self, path: Path) -> None:
        with disk(path):
            with self.path.open("rb") as stream:
                os.fsync(stream.fileno())
            self.path.replace(path)
            fsync_folder(path.parent)
            self._note.unlink(missing_ok=True)


# --- asking for the rest ----------------------------------------------------------------------------------


class _Broken(Exception):
    """The answer ended early; what came is kept."""


class _Refused(Exception):
    """The answer cannot be the file; nothing of it is kept."""


def _bring(file: PublishedFile, part: _Part) -> None:
    """Ask for what `part` lacks until it is whole, as long as each answer brings something."""
    for turn in range(_BREAKS):
        before = part.size
        try:
            if _answer(file, part):
                return
        except _Broken:
            if turn == _BREAKS - 1 or part.size <= before:
                raise
            _LOG.info("fetching %s: broke off at byte %s; going on", file.file, f"{part.size:,}")
    raise _Broken("its answers do not fit together")


def _answer(file: PublishedFile, part: _Part) -> bool:
    """Pour one answer into `part`. False where what is there cannot be gone on with, and was thrown away."""
    have = part.size
    headers = {"User-Agent": "curate"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if part.validator:
            headers["If-Range"] = part.validator
    try:
        answer = urllib.request.build_opener(_NoDowngrade).open(
            urllib.request.Request(file.url, headers=headers), timeout=_TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
                raise _Broken(f"{error.code} {error.reason}") from error
            if error.headers.get("Content-Range", "").endswith(f"*/{have}"):
                return True  # all had come
        part.drop()
        return False
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error
    with answer:
        begin = _first_byte(answer)
        if begin not in (0, have):
            part.drop()
            return False
        length = answer.headers.get("Content-Length", "")
        total = begin + int(length) if length.isdecimal() else None
        try:
            _pour(answer, part, begin, total, file)
        except _Refused:
            part.drop()
            raise
    return True


def _first_byte(answer: Any) -> int:
    """The place in the file of the answer's first byte: 0 unless it is a part; -1 where that is not said."""
    if answer.status != http.client.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _pour(answer: Any, part: _Part, begin: int, total: int | None, file: PublishedFile) -> None:
    if (total or 0) > file.most:
        raise _Refused(f"more than {file.most} bytes")
    have = begin
    shown = _Bytes(file.file, total or 0, begin)
    shown.start()
    try:
        with part.writing(begin, _validator(answer)) as out:
            while block := _read(answer):
                have += len(block)
                if have > file.most:
                    raise _Refused(f"more than {file.most} bytes")
                out.write(block)
                shown.advance(len(block))
    finally:
        shown.finish()
    if total is not None and have < total:
        raise _Broken(f"it broke off at byte {have:,} of {total:,}")


def _read(answer: Any) -> bytes:
    try:
        return bytes(answer.read1(_BLOCK))  # what is there, so that a break costs nothing of what had come
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _validator(answer: Any) -> str | None:
    """What If-Range may hold: a strong ETag, else the date of the last change."""
    etag, date = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    found = etag if etag and not etag.startswith("W/") else date
    return str(found) if found else None


class _Bytes(Progress):
    """Megabytes, of which some were there before."""

    def __init__(self, title: str, total: int, begin: int) -> None:
        super().__init__(title, total, unit="bytes")
        self.done = self._begin = begin

    @property
    def rate(self) -> float:
        return (self.done - self._begin) / max(self.elapsed, 1e-6)

    def beside(self) -> str:
        return ", ".join([f"{self.rate / 1e6:.1f} MB/s", *self._left()])

    def line(self) -> str:
        share = f" of {self.total / 1e6:.1f}" if self.total else ""
        return f"fetching {self.title}: {self.done / 1e6:.1f}{share} MB, {self.beside()}"


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError("redirected away from https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
