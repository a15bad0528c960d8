"""What a download will do: which list, which of its rows, which shards; nothing is written.

The same list and settings go on where they stopped, a list that grew goes on after the last shard, others are
refused or, where that is asked for, added, so that no pool is ever a mixture that nobody asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import receipts
from curate.disk import nearest
from curate.errors import InputError
from curate.pool.layout import Layout, metadata_files
from curate.pool.names import ALIASES
from curate.stages import drawn, sources
from curate.stages.download_settings import DownloadSettings
from curate.stages.sources import METADATA, Entry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from curate.fetch.lists import SourceList

log = logging.getLogger("curate.download")


@dataclass(frozen=True)
class Work:
    """One entry of sources.json: the list that its rows are read from, if it was found, and the shards to make."""

    place: int
    entry: Entry
    source: SourceList | None
    """None for drawn rows, which are in a file of the pool, and where no list was found."""
    root: Path | None = None
    """The folder of the files that the rows stand for, if they do."""
    shards: Sequence[int] | None = None
    """Counted in the entry; None for all."""

    @property
    def numbers(self) -> list[int]:
        """The shards to make, counted in the entry."""
        return list(range(self.entry.shards) if self.shards is None else self.shards)

    @property
    def size(self) -> int:
        """Rows of a shard, but for the last."""
        return int(self.entry.settings["samples_per_shard"])

    def span(self, shard: int) -> tuple[int, int]:
        """The first row of one of its shards, and the row after its last, in the list."""
        first, rows = shard * self.size, self.entry.rows
        return self.entry.first_row + first, self.entry.first_row + min(first + self.size, rows)


@dataclass(frozen=True)
class Plan:
    """A download that may begin: its lists were looked through, and fit what the pool holds already."""

    layout: Layout
    settings: DownloadSettings
    before: tuple[Entry, ...]
    works: tuple[Work, ...]
    """What goes on and, last, what is new; some of no shard, whose URLs a new one may repeat."""
    drawn: npt.NDArray[np.int64] | None = None
    """Where the new entry's rows stand in its list, if they are drawn from it."""

    @property
    def new(self) -> Work | None:
        """The entry that sources.json does not have yet, if any."""
        return self.works[-1] if self.works and self.works[-1].place >= len(self.before) else None

    @property
    def shards(self) -> int:
        """How many shards this download is about, those that are done included."""
        return sum(len(work.numbers) for work in self.works)

    @property
    def rows(self) -> int:
        """How many rows they hold."""
        spans = (work.span(shard) for work in self.works for shard in work.numbers)
        return sum(last - first for first, last in spans)


def plan(
    root: Path,
    source: Path | None,
    settings: DownloadSettings,
    *,
    add: bool = False,
    selection: str | None = None,
    limit: int | None = None,
    sample: float | None = None,
) -> Plan:
    """What `download` will do for the pool at `root`; nothing is written.

    Without `source` the pool's own metadata is the list, else every list that it was downloaded from goes on.
    `add` lets another list follow after the last shard. Of a list, `selection` asks for what a selection of the
    pool kept, `sample` for each row by chance, `limit` for the first rows of what these leave.

    Raises InputError for a list that is wrong, one that is not what the pool was downloaded from, other
    settings than before, or a selection that is not there or is out of date.
    """
    layout = Layout(root, root)
    check_folder(root)
    check_part(limit, sample)
    before = sources.read(layout)
    if before:
        sources.check_settings(layout, before[0], settings.described())
    else:
        check_foreign(layout)
    own = has_metadata(layout)
    if selection is not None and not own:
        raise InputError(
            str(root),
            "has no metadata: its samples are what was downloaded, and all of a selection was attempted",
            hint="--retry-failed goes over what failed; --metadata-only makes a list the metadata of a pool",
        )
    if source is None and not own:
        if not before:
            raise InputError(str(root), "has no metadata to download from", hint="--source FILE_OR_FOLDER")
        if limit is not None or sample is not None:
            raise InputError("--limit" if limit else "--sample", "is of a list", hint="--source FILE_OR_FOLDER")
        works = [work for chain in sources.chains(before) for work in _going_on(layout, before, chain, settings)]
        return Plan(layout, settings, before, tuple(sorted(works, key=lambda work: work.place)))
    listed, path = open_source(layout, source, settings)
    kept = None if selection is None else _kept(layout, selection)
    chain = next((c for c in sources.chains(before) if sources.covered(listed, before, c)), [])
    if before and not chain and not add:
        raise sources.another_list(layout, before, listed, add=own)
    made = _planned(layout, settings, before, chain, listed, path, kept, selection, sample, limit)
    if source is None and selection is None and sample is None and limit is None:
        others = [c for c in sources.chains(before) if not chain or c[0] != chain[0]]
        works = [work for other in others for work in _going_on(layout, before, other, settings)]
        return replace(made, works=(*works, *made.works))
    return made


def _planned(
    layout: Layout,
    settings: DownloadSettings,
    before: tuple[Entry, ...],
    chain: Sequence[int],
    listed: SourceList,
    path: str,
    kept: npt.NDArray[np.void] | None,
    selection: str | None,
    sample: float | None,
    limit: int | None,
) -> Plan:
    """What is asked for of one list, part of which the entries of `chain` may have already."""
    columns = settings.columns(listed, before[chain[-1]].columns if chain else None)
    for place in chain:
        sources.check_columns(layout, before[place], columns)
    want = drawn.wanted(listed, kept=kept, sample=sample, limit=limit)
    covered = sources.covered(listed, before, chain)
    works = []
    for place in chain:
        entry, of, source = before[place], None, None
        if place not in covered or not isinstance(want, int) or want < listed.rows:
            of = drawn.shards_with(layout, place, entry, settings.samples_per_shard, want)
        if place in covered and not entry.drawn:
            source = sources.as_then(listed, entry)
        works.append(Work(place, entry, source, listed.root, of))
    rows = drawn.left(want, drawn.taken(layout, before, chain, listed.rows))
    if len(rows):
        contiguous = isinstance(rows, range)
        entry = Entry(
            kind="folder" if listed.root else "selection" if selection else "sample" if sample else "list",
            path=path,
            files=_files(listed, path, before, chain),
            list_digest=listed.digest,
            list_rows=listed.rows,
            digest=listed.digest if isinstance(rows, range) else drawn.digest(listed, rows),
            rows=len(rows),
            first_row=rows[0] if isinstance(rows, range) else 0,
            drawn=not contiguous,
            asked={"selection": selection, "sample": sample, "limit": limit},
            continues=chain[-1] if chain else None,
            settings=settings.described(),
            settings_digest=receipts.digest(settings.described()),
            columns=columns,
            first_shard=max((e.last_shard for e in before), default=0),
            shards=-(-len(rows) // settings.samples_per_shard),
        )
        works.append(Work(len(before), entry, listed, listed.root))
    elif not any(work.numbers for work in works):
        what = f"the selection {selection!r} keeps" if selection else f"a sample of {sample} leaves"
        raise InputError(str(layout.root), f"{what} no row of its list")
    return Plan(layout, settings, before, tuple(works), None if isinstance(rows, range) else rows)


def _files(
    listed: SourceList, path: str, before: Sequence[Entry], chain: Sequence[int]
) -> tuple[Mapping[str, Any], ...]:
    from curate.fetch import growth

    for place in reversed(chain):
        if before[place].list_digest == listed.digest:
            return before[place].files
    files = growth.described(listed.files)
    if listed.root is not None:  # the name of a temporary file says nothing
        files = [{**files[0], "name": Path(path).name}]
    return tuple(files)


def _going_on(
    layout: Layout, before: tuple[Entry, ...], chain: Sequence[int], settings: DownloadSettings
) -> list[Work]:
    """The entries of one list, which is looked for where it was."""
    last = max((before[place] for place in chain), key=lambda entry: entry.list_rows)  # the list as it grew
    told = last.columns
    path = sources.path_of(layout, last)
    listed: SourceList | None = None
    wanted = {"url": settings.url_col, "caption": settings.caption_col, "boxes": settings.bbox_col}
    if settings.verify_column:
        wanted["hash"] = [settings.verify_column, settings.images.verify_hash]  # type: ignore[assignment]
    sources.check_columns(layout, last, {**told, **{k: v for k, v in wanted.items() if v is not None}})
    if path.exists() and (last.kind == "folder" or not all(before[place].drawn for place in chain)):
        try:
            listed = open_given(path, replace(settings, url_col=told["url"], caption_col=told["caption"]))
        except InputError as error:
            log.warning("%s", error)
    covered = sources.covered(listed, before, chain) if listed else []
    works = []
    for place in chain:
        entry = before[place]
        source = sources.as_then(listed, entry) if listed and place in covered and not entry.drawn else None
        works.append(Work(place, entry, source, listed.root if listed else None))
    return works


def open_source(layout: Layout, source: Path | None, settings: DownloadSettings) -> tuple[SourceList, str]:
    """The list that is meant by `source`, and what sources.json calls its place.

    That is the pool's metadata where it has any: then `source` is that folder, or the list it was made of.
    """
    own = layout.root / METADATA
    if has_metadata(layout):
        from curate.stages import metadata

        if source is not None and not (source.exists() and source.samefile(own)):
            metadata.check_made_of(layout, open_given(source, settings).digest)
            settings = replace(settings, url_col=None, caption_col=None)
        return open_given(own, settings), METADATA
    assert source is not None
    return open_given(source, settings), str(source.absolute())


def open_given(source: Path, settings: DownloadSettings) -> SourceList:
    """The list, or the folder of images or tars, at a path."""
    from curate.fetch.folder import holds_images, open_folder
    from curate.fetch.lists import open_list

    if holds_images(source):
        return open_folder(source)
    return open_list(source, url_col=settings.url_col, caption_col=settings.caption_col, usual=ALIASES)


def _kept(layout: Layout, name: str) -> npt.NDArray[np.void]:
    """The uids that a selection kept, sorted. Raises InputError where it is not there or not of this pool."""
    import numpy as np

    from curate import selection
    from curate.pool import open_pool

    chosen = selection.load(layout, name)
    selection.check_fresh(open_pool(layout.root), chosen)
    return np.asarray(chosen.uids())


def has_metadata(layout: Layout) -> bool:
    """Whether the samples of the pool are rows of metadata."""
    return (layout.root / METADATA).is_dir() and bool(metadata_files(layout))


def check_part(limit: int | None, sample: float | None) -> None:
    """Raise InputError for a limit or a fraction that means nothing."""
    if limit is not None and limit < 1:
        raise InputError("--limit", f"must be above 0 (found {limit})")
    if sample is not None and not 0 < sample <= 1:
        raise InputError("--sample", f"is a fraction, above 0 and at most 1 (found {sample})")


def check_folder(root: Path) -> None:
    """Raise InputError where a file is in the place of a pool, or of a folder above it."""
    there = nearest(root)
    if not there.is_dir():
        raise InputError(str(there), "is not a folder", hint="--pool DIR, one that is there or is to be made")


def check_foreign(layout: Layout) -> None:
    """Raise InputError for a pool whose shards others made."""
    foreign = [*layout.shards.glob("*.tar"), *layout.root.glob("*.tar")]
    if foreign and not (layout.shards / receipts.RECEIPTS).is_dir():
        raise InputError(
            str(layout.root), f"holds shards that others made ({foreign[0].name})", hint="another --pool"
        )
