"""The whole job on a small web: everything planted is found, every sample is accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.demo import plant, run
from curate.errors import InputError
from curate.pool import open_pool
from curate.selection import load


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    found = {line.defect: line for line in run.run(folder, 160, seed=1, workers=1)}
    assert set(found) == set(plant.SHARES)
    for defect in ("dead link", "HTML for an image", "silent host", "slow host", "exact copy"):
        assert found[defect].recall == 1, defect
    for defect in ("foreign caption", "short caption", "small image", "stretched image"):
        assert (found[defect].recall, found[defect].precision) == (1, 1), defect
    for defect in ("wrong caption", "watermark", "recompressed copy", "resized copy"):
        assert (found[defect].recall or 0) >= 0.7, found[defect]
        assert (found[defect].precision or 0) >= 0.7, found[defect]
    counts = load(open_pool(folder / "pool").layout, None).counts
    assert counts["samples"] == 160 == counts["kept"] + counts["dropped"] + counts["unjudged"]
    assert (folder / "report.html").is_file()
    assert list((folder / "subset" / "shards").glob("*.tar"))
    rows = run.table(list(found.values()))
    assert rows[0] == ("defect", "planted", "found", "precision", "recall")
    assert len(rows) == len(plant.SHARES) + 1


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "mine").write_text("precious")
    with pytest.raises(InputError, match="is not empty and not the demo's") as raised:
        run.run(tmp_path, 160, seed=0, workers=1)
    assert "--out" in (raised.value.hint or "")
    assert (tmp_path / "pool" / "mine").read_text() == "precious"


def test_too_few_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few") as raised:
        run.run(tmp_path / "demo", 5, seed=0, workers=1)
    assert raised.value.exit_code == 2
