"""What a pool was downloaded from: the entries of its sources.json, in the order in which they came.

An entry is a run of rows that was asked for at once, and the shards that they became. A list that grew, a larger
`--limit`, another selection of the same metadata: each continues the entry before it on the same list, and
leaves it as it is. So an entry says two things: the rows that are its own, and the list as it was then.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import receipts
from curate.errors import InputError, PartError
from curate.pool.layout import Layout

if TYPE_CHECKING:
    from curate.fetch.lists import SourceList

METADATA = "metadata"
"""The path of a pool's own metadata, wherever the pool is."""


@dataclass(frozen=True)
class Entry:
    """Rows of one list that were asked for together, and their shards."""

    kind: str
    """`list`, `sample`, `selection`, or `folder` for files of this machine."""
    path: str
    """Where the list lay, for people and for going on without being told; nothing else is made of it."""
    files: tuple[Mapping[str, Any], ...]
    """The list's files as they were: see fetch.growth.described."""
    list_digest: str
    list_rows: int
    digest: str
    """What the shards' receipts know the rows by; the list's, unless the rows were drawn from it."""
    rows: int
    first_row: int
    """Where the rows begin in the list; 0 where they were drawn from it and lie in a file of their own."""
    drawn: bool
    """Whether POOL/sources/NNNN.parquet holds the rows, NNNN being the entry's place in sources.json."""
    asked: Mapping[str, Any]
    """The selection, sample or limit that was asked for."""
    continues: int | None
    """The place of the entry before it on the same list."""
    settings: Mapping[str, Any]
    settings_digest: str
    columns: Mapping[str, Any]
    """What the list calls url, caption, boxes and hash; and `others`, the Arrow schema of all else, in base64."""
    first_shard: int
    shards: int

    @property
    def named(self) -> str:
        """The list, for people."""
        names = [str(file["name"]) for file in self.files]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    @property
    def last_shard(self) -> int:
        """The number after the last of its shards."""
        return self.first_shard + self.shards


def read(layout: Layout) -> tuple[Entry, ...]:
    """The entries of a pool; none where it has no sources.json. Raises InputError for one that cannot be read."""
    if not layout.sources.is_file():
        return ()
    try:
        entries = tuple(_entry(raw) for raw in receipts.read_json(layout.sources)["sources"])
        if not entries:
            raise ValueError
    except PartError as error:
        raise InputError(str(layout.sources), error.what, hint="another --pool") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(str(layout.sources), "names no list", hint="another --pool") from None
    return entries


def _entry(raw: Mapping[str, Any]) -> Entry:
    return Entry(**{**raw, "files": tuple(raw["files"])})


def write(layout: Layout, entries: Sequence[Entry]) -> None:
    """Make these the entries of a pool."""
    receipts.write_json(layout.sources, {"format": receipts.FORMAT, "sources": [asdict(e) for e in entries]})


def chains(entries: Sequence[Entry]) -> list[list[int]]:
    """The places of the entries, those of one list together, in order."""
    found: list[list[int]] = []
    for place, entry in enumerate(entries):
        home = next((chain for chain in found if chain[-1] == entry.continues), None)
        if home is None:
            found.append([place])
        else:
            home.append(place)
    return found


def covered(source: SourceList, entries: Sequence[Entry], chain: Sequence[int]) -> list[int]:
    """The places in `chain` whose rows `source` has: all of them where it has grown from what the list was last.

    Where it is what the list was once, those up to then.
    """
    from curate.fetch import growth

    same = [entries[place] for place in chain if entries[place].list_digest == source.digest]
    if same:
        return [place for place in chain if entries[place].list_rows <= same[0].list_rows]
    latest = max((entries[place] for place in chain), key=lambda entry: entry.list_rows, default=None)
    return list(chain) if latest and growth.grew(source.files, latest.files) else []


def as_then(source: SourceList, entry: Entry) -> SourceList:
    """`source` with the columns that it had when the entry was made."""
    told = entry.columns
    others = base64.b64decode(told["others"])
    columns = replace(source.columns, url=told["url"], caption=told["caption"], others=others)
    return replace(source, columns=columns)


def columns_of(source: SourceList, *, boxes: str | None, hashes: Sequence[str | None] | None) -> dict[str, Any]:
    """What an entry says of its list's columns; `hashes` are a column and the hash that it holds."""
    return {
        "url": source.columns.url,
        "caption": source.columns.caption,
        "boxes": boxes,
        "hash": list(hashes) if hashes else None,
        "others": base64.b64encode(source.columns.others).decode(),
    }


def check_settings(layout: Layout, entry: Entry, settings: Mapping[str, Any]) -> None:
    """Raise InputError unless `settings` are those that the pool was made with."""
    now = receipts.digest(settings)
    if entry.settings_digest != now:
        raise InputError(
            str(layout.root),
            f"was downloaded with other settings ({differences(entry.settings, settings)}; "
            f"{entry.settings_digest[:12]} then, {now[:12]} now)",
            hint="the settings as they were, or another --pool",
        )


def check_columns(layout: Layout, entry: Entry, columns: Mapping[str, Any]) -> None:
    """Raise InputError unless the list's columns are read as they were."""
    before = {name: value for name, value in entry.columns.items() if name != "others"}
    now = {name: columns[name] for name in before}
    if before != now:
        raise InputError(
            str(layout.root),
            f"was downloaded with other columns of this list ({differences(before, now)}; "
            f"{receipts.digest(before)[:12]} then, {receipts.digest(now)[:12]} now)",
            hint="--url-col, --caption-col, --bbox-col and --verify-hash as they were, or another --pool",
        )


def another_list(layout: Layout, entries: Sequence[Entry], source: SourceList, *, add: bool) -> InputError:
    """The error for a list that is none of the pool's and was not said to be added."""
    before = entries[-1]
    packed = any(file.path.suffix == ".gz" for file in source.files)
    return InputError(
        str(layout.root),
        f"was downloaded from another list (its sha256 is {before.list_digest}, {before.list_rows:,} rows; "
        f"this one's is {source.digest}, {source.rows:,} rows)",
        hint=None
        if add
        else "--add appends it after the last shard; or another --pool for another list"
        + (". That a gzipped list only grew cannot be seen" if packed else ""),
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two settings, in words."""
    found = []
    for name in sorted({*before, *now}):
        then, here = before.get(name), now.get(name)
        if isinstance(then, Mapping) and isinstance(here, Mapping):
            found.append(differences(then, here))
        elif then != here:
            found.append(f"{name.replace('_', '-')} was {then}, is {here}")
    return ", ".join(text for text in found if text)


def path_of(layout: Layout, entry: Entry) -> Path:
    """Where the entry's list lay."""
    return layout.root / METADATA if entry.path == METADATA else Path(entry.path)
