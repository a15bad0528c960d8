"""img2dataset's messages as error codes: they are texts of exceptions, and no table can be grouped by them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_MESSAGES: Sequence[tuple[str, str]] = (
    (r"private address", "private_address"),
    (r"timed? ?out", "timeout"),
    (r"infinite loop|too many redirects", "too_many_redirects"),
    (r"x-robots-tag", "opted_out"),
    (r"hash mismatch", "hash_mismatch"),
    (r"name or service not known|nodename|no address associated", "no_such_host"),
    (r"name resolution|getaddrinfo", "dns"),
    (r"ssl|certificate|tls", "tls"),
    (r"reset|incompleteread|remote end closed|broken pipe|connection aborted", "reset"),
    (r"refused|unreachable|no route to host", "refused"),
    (r"badstatusline|bad status|got more than", "bad_response"),
    (r"urlopen error unknown url type|redirection to url .* is not allowed", "bad_scheme"),
    (r"unknown url type|control characters|invalid url|no host given|nonnumeric port|'ascii' codec", "bad_url"),
    (r"image too small", "too_small"),
    (r"aspect ratio too large", "bad_aspect"),
    (r"image area too large", "too_many_pixels"),
    (r"!buf\.empty\(\)", "empty"),
    (r"imencode|encode", "encode_failed"),
    (r"decod", "bad_image"),
)
"""What they say, most telling first."""

_STAGES = {"failed_to_download": "download_failed", "failed_to_resize": "bad_image"}


@lru_cache(maxsize=10_000)
def code_of(status: str | None, message: str | None) -> str:
    """The error code for img2dataset's status and message of a sample that it did not store."""
    text = (message or "").lower()
    redirected = "infinite loop" in text or "is not allowed" in text
    if not redirected and (status_code := http_status(text)):
        return f"http_{status_code}"
    known = (code for pattern, code in _MESSAGES if re.search(pattern, text))
    return next(known, None) or _STAGES.get(status or "", "download_failed")


def http_status(message: str | None) -> int | None:
    """The server's status in a message of urllib, or None where it tells none."""
    found = re.search(r"http error (\d{3})", message or "", re.IGNORECASE)
    return int(found[1]) if found else None
