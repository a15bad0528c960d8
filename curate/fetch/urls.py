"""What URLs, redirects and polite headers mean; no connection is made here."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import timezone
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from yarl import URL

from curate.errors import SampleError
from curate.fetch.settings import AGENT_TOKEN

OPT_OUT_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
MAX_URL = 16_384
"""Characters; a longer URL is refused."""

_HOST = re.compile(r"(?=.{1,254}$)([A-Za-z0-9_-]{1,63}(\.|$))+|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%\w+)?")
_PLAIN = re.compile(r"\s*(https?|HTTPS?)://([A-Za-z0-9.-]+\.[A-Za-z0-9-]+)(:[1-9]\d{0,3})?(?=[/?#]|\s*$)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(r"[^:/?#]+://[^/?#]*")
_UNSAFE = re.compile(r"%(?![0-9A-Fa-f]{2})|[^%!$&'()*+,\-./0-9:;=?@A-Z_a-z~]+")
_VALUED_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def parse_url(raw: str) -> URL:
    """`raw` as a URL to ask for: blanks around it cut, unsafe characters percent-encoded, fragment dropped.

    What is percent-encoded already stays as it is, for some servers sign their URLs letter by letter. Raises
    SampleError with no_url, bad_scheme or bad_url.
    """
    text = raw.strip()
    if not text:
        raise SampleError("no_url", "no URL")
    if len(text) > MAX_URL:
        raise SampleError("bad_url", f"a URL of {len(text)} characters")
    if _CONTROL.search(text):
        raise SampleError("bad_url", "a control character in the URL")
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise SampleError("bad_url", "no http:// or https:// in front")
    if scheme[1].lower() not in ("http", "https"):
        raise SampleError("bad_scheme", f"the scheme is {scheme[1][:20].lower()!r}")
    text = text.partition("#")[0]
    authority = _AUTHORITY.match(text)
    if authority is None:
        raise SampleError("bad_url", "no valid host in the URL")
    try:
        front = URL(authority[0])
        host = front.raw_host
        url = _joined(front, text[authority.end() :])
    except ValueError as error:
        raise SampleError("bad_url", f"the URL cannot be parsed: {error}") from None
    if not host or not _HOST.fullmatch(host):
        raise SampleError("bad_url", "no valid host in the URL")
    if front.user is not None or front.password is not None:
        raise SampleError("bad_url", "a user name or password in the URL")
    return url


def _joined(front: URL, rest: str) -> URL:
    """The scheme and host of `front` with a path and query that are quoted where they must be, and only there."""
    path, mark, query = rest.partition("?")
    if "/." in path:
        path = _without_dots(path)
    quoted = _UNSAFE.sub(lambda found: quote(found[0]), path + mark + query)
    return URL(f"{front.scheme}://{front.raw_authority}{quoted}", encoded=True)


def _without_dots(path: str) -> str:
    """`path` with its `.` and `..` resolved."""
    kept: list[str] = []
    names = path.split("/")[1:]
    for name in names:
        if name == "..":
            del kept[-1:]
        elif name != ".":
            kept.append(name)
    return "/".join(["", *kept, *([""] if names[-1] in (".", "..") else [])])


def host_of(raw: str) -> str:
    """Who is asked for the URL `raw`: its host in lower case, with a port that is not the scheme's own.

    URLs with one answer share a host's limits and pauses. Empty where the URL is not one to ask for.
    """
    plain = _PLAIN.match(raw)
    if plain is not None:
        host, port = plain[2].lower(), plain[3]
        return host if port in (None, ":80" if plain[1] in ("http", "HTTP") else ":443") else host + port
    try:
        return host_key(parse_url(raw))
    except SampleError:
        return ""


def host_key(url: URL) -> str:
    """`host_of` for a URL that is parsed already."""
    host = url.raw_host or ""
    return host if url.is_default_port() else f"{host}:{url.port}"


def opted_out(tags: Iterable[str]) -> bool:
    """Whether X-Robots-Tag header values ask not to be used: for everybody, or for us by name.

    `agent: directive, ...` binds that agent only; a directive with a value of its own, such as
    max-image-preview, is not an agent.
    """
    for tag in tags:
        agent = None
        for item in tag.lower().split(","):
            name, colon, rest = item.partition(":")
            directive = name.strip()
            if colon and directive not in _VALUED_DIRECTIVES:
                agent, directive = directive, rest.strip()
            if directive in OPT_OUT_DIRECTIVES and agent in (None, AGENT_TOKEN):
                return True
    return False


def redirect(base: URL, location: str) -> URL:
    """The URL that `location` means when it is answered by `base`, held to the rules of any other."""
    raw = location.encode("utf-8", "surrogateescape")
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = raw.decode("latin-1").strip()
    if not _SCHEME.match(text) and not _CONTROL.search(text):
        try:
            text = str(base.join(URL(text, encoded=True)))
        except ValueError as error:
            raise SampleError("bad_url", f"the redirect cannot be parsed: {error}") from None
    return parse_url(text)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait according to a Retry-After header: a number, or a date; None where it says nothing."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:12])
    try:
        at = parsedate_to_datetime(value)
        return max(0.0, at.replace(tzinfo=at.tzinfo or timezone.utc).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
