"""DataComp's pools as they come: whatever its files look like, the same samples give the same selection."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curate import uids
from curate.pool import open_pool
from tests.commands.bad_input.outcomes import contents, succeeded
from tests.commands.cli import curate
from tests.pool.datacomp_folder import DEAD, Form, Row, files, make, vectors
from tests.pools import jpeg

RULES = ("--rule", "basic:language=,min_side=200,max_aspect=3", "--rule", "clipscore:model=ViT-L-14/openai,min=0.2")
HERE = ("--workers", "0")


def expected(rows: list[Row]) -> list[str]:
    """The uids that `RULES` keep."""
    return sorted(r.uid for r in rows if r.number > 0 and r.score >= np.float32(0.2))


def kept(folder: Path, *options: str) -> list[str]:
    """The uids that `RULES` keep of the pool in a folder, as uids.npy has them."""
    ran = curate("filter", "--pool", folder, *(options or RULES), *HERE, "--json")
    succeeded(ran)
    return uids.to_hex(np.load(Path(ran.json["folder"]) / "uids.npy"))


def cast(**kinds: pa.DataType) -> Form:
    """The table with some columns in another type."""

    def form(table: pa.Table) -> pa.Table:
        return table.cast(pa.schema([f.with_type(kinds.get(f.name, f.type)) for f in table.schema]))

    return form


def texts(kind: pa.DataType) -> Form:
    return cast(uid=kind, url=kind, text=kind, sha256=kind)


def coded(table: pa.Table) -> pa.Table:
    """Its texts as words that are listed once."""
    for at, name in enumerate(table.column_names):
        if table[name].type == pa.string():
            table = table.set_column(at, name, table[name].combine_chunks().dictionary_encode())
    return table


def turned(table: pa.Table) -> pa.Table:
    """The columns the other way round, with others among them."""
    n = len(table)
    odd = {
        "language": pa.array(["en"] * n).dictionary_encode(),
        "tags": pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int32())),
        "when": pa.array([0] * n, pa.timestamp("ns", "UTC")),
        "nothing": pa.nulls(n),
        "half": pa.array(np.ones(n, np.float16)),
    }
    table = table.select(table.column_names[::-1])
    for at, (name, column) in enumerate(odd.items()):
        table = table.add_column(2 * at, name, column)
    return table


def upper(table: pa.Table) -> pa.Table:
    at = table.column_names.index("uid")
    return table.set_column(at, "uid", pa.array([u.upper() for u in table["uid"].to_pylist()]))


def octets(kind: pa.DataType) -> Form:
    """uids as the 16 bytes that their digits stand for."""

    def change(table: pa.Table) -> pa.Table:
        found = pa.array([bytes.fromhex(u) for u in table["uid"].to_pylist()], kind)
        return table.set_column(table.column_names.index("uid"), "uid", found)

    return change


FORMS: dict[str, Form] = {
    "as published": lambda table: table,
    "int32, double": cast(
        original_width=pa.int32(),
        original_height=pa.int32(),
        clip_b32_similarity_score=pa.float64(),
        clip_l14_similarity_score=pa.float64(),
    ),
    "sizes as floats": cast(original_width=pa.float64(), original_height=pa.float32()),
    "large strings": texts(pa.large_string()),
    "views of strings": texts(pa.string_view()),
    "bytes": texts(pa.binary()),
    "dictionaries": coded,
    "other columns, another order": turned,
    "upper-case uids": upper,
    "uids of 16 bytes": octets(pa.binary(16)),
    "uids of bytes": octets(pa.binary()),
    "as others call them": lambda table: table.rename_columns(
        ["uid", "URL", "TEXT", "WIDTH", "HEIGHT", *table.column_names[5:8], "SHA256"]
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row_group", [1, 5, 1_000_000])
def test_whatever_the_files_look_like(tmp_path: Path, form: str, row_group: int) -> None:
    rows = make(tmp_path, FORMS[form], shards=False, row_group=row_group)
    pool = open_pool(tmp_path)
    assert (pool.kind, pool.n) == ("metadata", len(rows))
    assert kept(tmp_path) == expected(rows)
    # ties that only the uid decides, at each place of them
    best = sorted(rows, key=lambda r: (-r.score, r.uid))
    for n, top in ((1, 0.025), (20, 0.5), (33, 0.825)):
        found = kept(tmp_path, "--rule", f"clipscore:model=ViT-L-14/openai,top={top}")
        assert found == sorted(r.uid for r in best[:n])


def test_files_of_one_pool_that_differ(tmp_path: Path) -> None:
    forms = iter([FORMS["int32, double"], FORMS["dictionaries"], FORMS["other columns, another order"]])
    rows = make(tmp_path, lambda table: next(forms)(table), shards=False)
    assert kept(tmp_path) == expected(rows)
    assert len(kept(tmp_path, "--rule", "dedup")) == len(rows)


def test_the_order_of_the_files_is_nothing(tmp_path: Path) -> None:
    rows = make(tmp_path / "a", shards=False)
    make(tmp_path / "b", shards=False)
    for stem, _ in files():
        path = tmp_path / "b" / "metadata" / f"{stem}.parquet"
        path.rename(path.with_name(hashlib.md5(stem.encode()).hexdigest() + ".parquet"))
    assert kept(tmp_path / "a") == kept(tmp_path / "b") == expected(rows)
    for rule in ("random:fraction=0.4", "clipscore:model=ViT-L-14/openai,top=0.3"):
        assert kept(tmp_path / "a", "--rule", rule) == kept(tmp_path / "b", "--rule", rule)


def images(folder: Path) -> dict[str, bytes]:
    """The image of every sample in the tars of a subset, by uid."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            held = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        for name, data in held.items():
            if name.endswith(".json"):
                found[json.loads(data)["uid"]] = held[name.removesuffix("json") + "jpg"]
    return found


def test_the_folder_that_download_upstream_leaves(tmp_path: Path) -> None:
    """metadata/ is what the samples are, shards/ what is here of them; nothing of either is touched."""
    folder = tmp_path / "pool"
    rows = make(folder, npz=True)
    before = contents(folder)
    assert sorted(p.name for p in (folder / "shards").glob("*.tar"))[-1] == "00000004.tar"
    told = curate("status", "--pool", folder, "--json").json
    assert told["kind"] == "datacomp"
    keeps = expected(rows)
    assert kept(folder) == keeps
    ran = curate("subset", "--pool", folder, "--scale", "debug", "--out", tmp_path / "out", *HERE, "--json")
    succeeded(ran)
    wanted = {r.uid: r for r in rows if r.uid in keeps}
    here = {uid: row for uid, row in wanted.items() if not row.dead}
    assert 0 < len(here) < len(wanted)
    assert ran.json["missing"] == {"http_404": len(wanted) - len(here)}
    assert images(tmp_path / "out" / "shards") == {uid: jpeg(row.number) for uid, row in here.items()}
    assert {name: data for name, data in contents(folder).items() if name in before} == before
    succeeded(curate("verify", "--pool", folder, *HERE))


def test_what_only_the_shards_say_is_joined_by_uid(tmp_path: Path) -> None:
    """`width` is the stored image's, which only the tables of the shards have: of the dead there is none."""
    rows = make(tmp_path)
    path = tmp_path / "rule.py"
    path.write_text(WIDE)
    ran = curate("filter", "--pool", tmp_path, "--rule", path, *HERE, "--json")
    succeeded(ran)
    dead = sum(r.number % DEAD == 3 for r in rows)
    assert ran.json["counts"] == {"samples": len(rows), "kept": len(rows) - dead, "dropped": 0, "unjudged": dead}
    assert ran.json["funnel"][0]["unjudged"] == {"http_404": dead}


WIDE = '''
from dataclasses import dataclass
from typing import ClassVar
import polars as pl
from curate.filter_api import Column, Judge

@dataclass(frozen=True)
class Stored(Judge):
    """Keep what is stored with 24 px."""
    reasons: ClassVar[dict[str, str]] = {"other": "not 24 px wide"}
    def needs(self):
        return [Column("width")]
    def keep(self, pool):
        return {"other": pl.col("width") == 24}
'''


def test_published_vectors_are_read_member_by_member(tmp_path: Path) -> None:
    rows = make(tmp_path, npz=True, shards=False)
    for stem, _ in files():  # a member that nobody asks for is none of our business
        data = bytearray((tmp_path / "metadata" / f"{stem}.npz").read_bytes())
        data[:2000] = bytes(2000)
        (tmp_path / "metadata" / f"{stem}.npz").write_bytes(data)
    found = kept(tmp_path, "--rule", "clipscore:model=ViT-L-14/openai,source=published,top=0.5")
    best = sorted(rows, key=lambda r: (-_dot(r), r.uid))
    assert found == sorted(r.uid for r in best[:20])


def _dot(row: Row) -> float:
    made = vectors([row])
    return float(made["l14_img"][0].astype(np.float32) @ made["l14_txt"][0].astype(np.float32))
