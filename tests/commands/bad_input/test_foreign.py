"""Files and folders that are not curate's: named by `status` and `verify`, otherwise nobody minds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.bad_input.outcomes import contents, succeeded
from tests.commands.cli import curate
from tests.pools import make_img2dataset, make_pool

HERE = ("--workers", "0")
FOREIGN = (
    "notes.txt",
    "my folder/deep/file.bin",
    "shards/00000009.tar",
    "shards/readme.md",
    "embeddings/mine.npy",
    "embeddings/other-model/x.npy",
    "scores/mine.parquet",
    "selections/draft/list.txt",
    "selections/empty/",
    "na\u00efve \U0001f600.csv",
    "escape\x1b[31m.txt",
)


def leave(pool: Path) -> dict[str, bytes | None]:
    """Put the foreign files into a pool; what they are."""
    for name in FOREIGN:
        path = pool / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"mine\n")
    (pool / "dangling").symlink_to("nowhere")
    return {name.rstrip("/"): None if name.endswith("/") else b"mine\n" for name in FOREIGN}


def test_foreign_files_are_named_and_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("pool", "plain"):
        make_pool(Path(folder), 2, 3)
    mine = leave(Path("pool"))
    shown = [name.rstrip("/").replace("\x1b", "\ufffd") for name in FOREIGN if not name.startswith("my folder")]
    for command in (("status",), ("verify", *HERE)):
        ran = curate(*command)
        succeeded(ran)
        for name in [*shown, "my folder", "dangling"]:
            assert f"pool/{name}" in ran.out, name
        assert "\x1b" not in ran.out + ran.err
        assert f"pool/{FOREIGN[-1]}".replace("\x1b", "\\u001b") in curate(*command, "--json").out
    results = []
    for folder in ("pool", "plain"):
        words = ("--pool", folder, *HERE, "--json")
        succeeded(curate("embed", "--model", "tiny", *words))
        succeeded(curate("filter", "--rule", "clipscore:top=0.5", "--name", "x", *words))
        subset = curate("subset", "--scale", "debug", "--out", f"subset of {folder}", *words)
        succeeded(subset)
        results.append(contents(Path(f"subset of {folder}") / "shards"))
    same = [{k: v for k, v in r.items() if not k.startswith("_receipts")} for r in results]
    assert same[0] == same[1]
    left = contents(Path("pool"))
    assert {name: left[name] for name in mine} == mine
    assert Path("pool/dangling").is_symlink()


def test_foreign_files_beside_the_shards_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_img2dataset(Path("pool"))
    Path("pool/notes.txt").write_text("mine")
    Path("pool/old").mkdir()
    for command in (("status",), ("verify", *HERE)):
        ran = curate(*command)
        succeeded(ran)
        assert "pool/notes.txt" in ran.out
        assert "pool/old" in ran.out
    ran = curate("embed", "--model", "tiny", *HERE, "--json")
    succeeded(ran)
    assert ran.json["ok"] == 6
