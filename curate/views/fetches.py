"""What became of the URLs that were asked for: by code and by host, what another attempt may mend, placeholders.

The shards' tables are read one at a time, and a few columns of each; what is kept of them does not grow with the
pool.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curate import receipts
from curate.errors import CurateError, PartError, is_transient
from curate.pool import Part, Pool, Shard
from curate.pool import foreign as others
from curate.progress import plural, size
from curate.receipts import Receipt
from curate.stages.retry import ATTEMPT, NEVER
from curate.views.inert import inert
from curate.views.tally import Tally

if TYPE_CHECKING:
    import polars as pl

WORST = 10
"""Hosts that are named, at most."""
FEWEST = 5
"""Failures from which a host is named."""
PICTURES = 5
"""Placeholders that are named, at most."""
HOST_CHARACTERS = 60
CODE_CHARACTERS = 40
DIGITS = 12
"""Of a sha256 that is shown."""
NOT_ASKED = NEVER | {"no_file"}
"""Codes of samples for which no host was asked."""

_COLUMNS = ("url", "error_code", "status", "error_message", "sha256", "placeholder", "hash_ok")
_FLAGS = frozenset({"placeholder", "hash_ok"})
_HOST = r"^\s*(?i:https?)://(?:[^/?#\\]*@)?(\[[^\]/?#\\]*\](?::\d+)?|[^/?#\\\s@]+)"
_OWN_PORT = r":(?:80|443)?$"
_LONGEST_HOST = 255


@dataclass
class Fetches:
    """What the tables of the shards that were read say, added up.

    `placeholders` and `mismatches` are None until a table has such a column.
    """

    codes: Counter[str] = field(default_factory=lambda: Counter({"": 0}))
    """Samples by error code; empty where the image was stored."""
    hosts: Tally = field(default_factory=Tally)
    """By host and error code."""
    pictures: Tally = field(default_factory=Tally)
    """Placeholders by sha256 and a host that sent them."""
    placeholders: int | None = None
    mismatches: int | None = None

    def read(self, pool: Pool, shard: Shard) -> bool:
        """Take in the table of `shard`; False where it has none yet. Raises PartError for one that is broken."""
        import polars as pl

        if shard.ours or shard.table.is_file():
            part = Part(shard.name, shard.table, shard=shard)
        elif shard.foreign_table is not None:
            part = Part(str(shard.foreign_table), shard.foreign_table)  # named as no part of the pool is
        else:
            return False
        with _readable(part):
            frame = pool.scan(part, _COLUMNS, optional=_COLUMNS)
            there = {name for name, kind in frame.collect_schema().items() if _is_kind(name, kind)}
            by_host = _by_code(frame) if "error_code" in there else _by_message(frame, there)
            counted, pictures, wrong = pl.collect_all([by_host, _pictures(frame, there), _mismatches(frame, there)])
        for code, samples in counted.group_by("label").agg(pl.col("samples").sum()).iter_rows():
            self.codes[code or ""] += samples
        asked = pl.col("label").is_null() | ~pl.col("label").is_in(list(NOT_ASKED))
        self.hosts.add(counted.filter(pl.col("key").is_not_null(), asked))
        if "placeholder" in there:
            self.placeholders = (self.placeholders or 0) + int(pictures["samples"].sum())
            self.pictures.add(pictures.drop_nulls("key"))
        if "hash_ok" in there:
            self.mismatches = (self.mismatches or 0) + int(wrong.item())
        return True


def _is_kind(name: str, kind: pl.DataType) -> bool:
    """Whether a column is what its name says; a table may lack it, or have one of its own that is called so."""
    import polars as pl

    return kind == pl.Boolean if name in _FLAGS else kind in (pl.String, pl.Categorical, pl.Enum)


@contextmanager
def _readable(part: Part) -> Iterator[None]:
    """What cannot be read inside becomes a PartError that names the file."""
    import polars as pl

    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        what = f"cannot be read ({str(error).splitlines()[0]})"
        raise PartError(str(part.path), what, hint="curate verify says what else is") from error


def _host() -> pl.Expr:
    """Who was asked for a URL: host and port, without what may be secret in it; null where it names none."""
    import polars as pl

    host = pl.col("url").cast(pl.String).str.extract(_HOST).str.to_lowercase().str.replace(_OWN_PORT, "")
    return host.str.slice(0, _LONGEST_HOST)


def _by_code(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Samples by host and error code."""
    import polars as pl

    keys = (_host().alias("key"), pl.col("error_code").cast(pl.String).alias("label"))
    return frame.group_by(keys).agg(pl.len().alias("samples"))


def _by_message(frame: pl.LazyFrame, there: set[str]) -> pl.LazyFrame:
    """The same of a table that has img2dataset's status and messages, and no codes."""
    import polars as pl

    said = [name for name in ("status", "error_message") if name in there]
    keys = [_host().alias("key"), *(pl.col(name).cast(pl.String) for name in said)]
    found = frame.group_by(keys).agg(pl.len().alias("samples")).collect()
    codes = list(others.codes_of(found.to_arrow()))
    return found.lazy().with_columns(pl.Series("label", codes, pl.String))


def _pictures(frame: pl.LazyFrame, there: set[str]) -> pl.LazyFrame:
    """The samples that are marked as placeholders, by sha256, with one host."""
    import polars as pl

    marked = pl.col("placeholder") if "placeholder" in there else pl.lit(value=False)
    sha256 = pl.col("sha256") if "sha256" in there else pl.lit(None)
    by_picture = frame.filter(marked).group_by(sha256.cast(pl.String).alias("key"))
    return by_picture.agg(_host().min().alias("label"), pl.len().alias("samples"))


def _mismatches(frame: pl.LazyFrame, there: set[str]) -> pl.LazyFrame:
    import polars as pl

    wrong = ~pl.col("hash_ok") if "hash_ok" in there else pl.lit(value=False)
    return frame.select(wrong.sum())


# --- what is said -----------------------------------------------------------------------------------------


def told(found: Fetches, pool: Pool, made: Sequence[Receipt]) -> dict[str, Any]:
    """A download as JSON values; `made` are the receipts of its parts.

    `asked` are all samples of the shards. A host's `requests` are the samples that it was asked for.
    """
    asked = sum(found.codes.values())
    failed = {code: n for code, n in found.codes.items() if code}
    codes = [
        {"code": code, "samples": n, "share": n / asked, "transient": is_transient(code)}
        for code, n in sorted(failed.items(), key=lambda item: (-item[1], item[0]))
    ]
    attempts = _attempts(pool)
    again = any(ATTEMPT in receipt.what for receipt in made)  # then what came before is not in the counts
    return {
        "asked": asked,
        "stored": found.codes[""],
        "share": found.codes[""] / asked if asked else None,
        "codes": codes,
        "received_bytes": None if again else _bytes(made, "received_bytes"),
        "stored_bytes": _bytes(made, "stored_bytes"),
        "hosts": [
            {
                "host": inert(worst["key"], HOST_CHARACTERS),
                "failed": worst["failed"],
                "requests": worst["samples"],
                "code": worst["label"],
            }
            for worst in found.hosts.top("failed", WORST, FEWEST)
        ],
        "hosts_cut": found.hosts.cut,
        "again": _again(pool, codes, attempts),
        "attempts": attempts,
        "placeholders": found.placeholders,
        "pictures": [
            {
                "sha256": inert(picture["key"][:DIGITS]),
                "samples": picture["samples"],
                "host": None if picture["label"] is None else inert(picture["label"], HOST_CHARACTERS),
            }
            for picture in found.pictures.top("samples", PICTURES)
        ],
        "hash_mismatches": found.mismatches,
        "sources": _sources(pool),
    }


def _bytes(made: Sequence[Receipt], name: str) -> int | None:
    counted = [receipt.counts[name] for receipt in made if name in receipt.counts]
    return sum(counted) if counted else None


def _again(pool: Pool, codes: Sequence[Mapping[str, Any]], attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What another attempt may mend, what is dead, and the commands; None where there is nothing for them to do.

    `code` is that of most samples which may be mended, where others may too.
    """
    transient = [c for c in codes if c["transient"]]
    samples = sum(c["samples"] for c in transient)
    main = transient[0] if len(transient) > 1 and 2 * transient[0]["samples"] > samples else None
    ours = any(shard.ours for shard in pool.shards)
    broken_off = ours and bool(attempts) and not attempts[-1]["done"]
    return {
        "transient": samples,
        "dead": sum(c["samples"] for c in codes) - samples,
        "command": _command(pool) if ours and samples else None,
        "code": main and main["code"],
        "code_command": _command(pool, [main["code"]]) if ours and main else None,
        "go_on_command": _command(pool, attempts[-1]["codes"]) if broken_off else None,
    }


def _command(pool: Pool, codes: Sequence[str] = ()) -> str:
    some = ["--codes", ",".join(codes)] if codes else []
    return shlex.join(["curate", "download", "--retry-failed", *some, "--pool", str(pool.layout.root)])


def _attempts(pool: Pool) -> list[dict[str, Any]]:
    """The attempts made since the download; a file that cannot be read is told as broken elsewhere."""
    if not pool.layout.attempts.is_file():
        return []
    try:
        listed = receipts.read_json(pool.layout.attempts)["attempts"]
        return [
            {"number": int(a["number"]), "codes": [str(c) for c in a["codes"]], "done": bool(a["done"])}
            for a in listed
        ]
    except (CurateError, KeyError, TypeError, ValueError):
        return []


def _sources(pool: Pool) -> list[dict[str, Any]]:
    """The lists that were downloaded from, in order of arrival."""
    if not pool.layout.sources.is_file():
        return []
    try:
        listed = receipts.read_json(pool.layout.sources)["sources"]
        return [{name: entry.get(name) for name in ("kind", "rows", "shards")} for entry in listed]
    except (CurateError, KeyError, TypeError, AttributeError):
        return []


def lines(said: Mapping[str, Any]) -> Iterator[str]:
    """What `told` said, for people, from the codes on."""
    for code in said["codes"]:
        fate = "transient" if code["transient"] else "dead"
        name = inert(code["code"], CODE_CHARACTERS)
        yield f"  {name:<20} {code['samples']:>12,} {code['share']:>7.1%}  {fate}"
    if said["stored_bytes"] is not None:
        received = "" if said["received_bytes"] is None else f"; {size(said['received_bytes'])} were received"
        yield f"bytes     {size(said['stored_bytes'])} of images{received}"
    if len(said["sources"]) > 1:
        rows = [source["rows"] for source in said["sources"]]
        total = f", {sum(rows):,} rows" if all(isinstance(n, int) for n in rows) else ""
        yield f"lists     {len(said['sources']):,}{total}"
    if said["hosts"]:
        yield "hosts     that fail most: failures, samples asked for, most frequent cause"
    for host in said["hosts"]:
        cause = inert(host["code"], CODE_CHARACTERS)
        yield f"  {host['host']:<40} {host['failed']:>10,} of {host['requests']:>10,}  {cause}"
    yield from _second_pass(said)
    if said["placeholders"]:
        marked = plural(said["placeholders"], "sample is marked", "samples are marked")
        yield f"pictures  {marked} as placeholders: the same bytes under many URLs"
    for picture in said["pictures"]:
        yield f"  {picture['sha256']:<40} {picture['samples']:>10,}  {picture['host'] or ''}".rstrip()
    if said["hash_mismatches"]:
        yield f"hashes    {plural(said['hash_mismatches'], 'image is', 'images are')} not what the list's hash says"


def _second_pass(said: Mapping[str, Any]) -> Iterator[str]:
    again, attempts = said["again"], said["attempts"]
    failed = again["transient"] + again["dead"]
    if again["transient"]:
        mended, dead = f"{again['transient']:,} of {failed:,} failures", f"{again['dead']:,} are dead"
        yield f"again     another attempt may mend {mended}; {dead}"
    elif failed:
        yield "again     no failure is transient: another attempt would mend nothing"
    if attempts:
        yield f"attempts  {len(attempts):,} since the download"
    if again["go_on_command"]:
        yield f"  number {attempts[-1]['number']} was broken off and goes on with: {again['go_on_command']}"
    elif again["command"]:
        yield f"  {again['command']}"
        if again["code_command"]:
            yield f"  for {again['code']} alone, the most of them: {again['code_command']}"
