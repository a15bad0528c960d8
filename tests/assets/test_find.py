from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from curate import assets, filter_api
from curate.assets import check
from curate.errors import InputError, UnknownName
from tests.assets.conftest import BODY, Publish, Publisher

SHA256 = hashlib.sha256(BODY).hexdigest()


def put(folder: Path, name: str = "thing.bin", body: bytes = BODY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(body)
    return folder / name


# --- published files --------------------------------------------------------------------------------------


def test_the_given_folder_comes_first(
    cache: Path, tmp_path: Path, publisher: Publisher, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    put(cache)
    there = put(tmp_path / "given")
    monkeypatch.setenv("CURATE_ASSETS", str(tmp_path / "given"))
    assert assets.find("thing") == (there, SHA256)
    assert list(there.parent.iterdir()) == [there], "nothing is written there"
    assert publisher.asked == []


def test_a_given_folder_that_is_none_is_named(
    cache: Path, tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    for there in (tmp_path / "given", put(tmp_path, "file")):
        monkeypatch.setenv("CURATE_ASSETS", str(there))
        with pytest.raises(InputError, match=rf"\$CURATE_ASSETS: there is no folder {there}") as error:
            assets.find("thing")
        assert error.value.hint == "make it, or unset the variable"


def test_wrong_bytes_on_disk_are_refused(cache: Path, publish: Publish) -> None:
    publish()
    path = put(cache, body=BODY + b"!")
    found = hashlib.sha256(BODY + b"!").hexdigest()
    says = rf"thing\.bin: is not the published thing \(its sha256 is {found}, not {SHA256}\)"
    with pytest.raises(InputError, match=says) as error:
        assets.find("thing")
    assert error.value.exit_code == 2
    assert error.value.hint == "remove it to fetch the published file, or name one of your own: --asset thing=FILE"
    assert path.exists()


def test_a_git_blob_id_is_a_digest_too(cache: Path, publish: Publish) -> None:
    # `git hash-object` of the seven bytes "content"
    assert hashlib.sha1(b"blob 7\0content").hexdigest() == "6b584e8ece562ebffc15d38808cd6b98fc3d97ea"
    publish(digest="git:" + hashlib.sha1(b"blob %d\0" % len(BODY) + BODY).hexdigest())
    assert assets.find("thing")[1] == SHA256
    publish(digest="git:" + "0" * 40)
    with pytest.raises(InputError, match="its git blob id is"):
        assets.find("thing")


def test_a_cached_file_is_read_once_until_it_changes(
    cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    path = put(cache)
    assert assets.find("thing")[1] == SHA256
    reads: list[Path] = []
    compared = check.compared

    def read(file: assets.PublishedFile, path: Path) -> tuple[str, str]:
        reads.append(path)
        return compared(file, path)

    monkeypatch.setattr(check, "compared", read)
    monkeypatch.setattr(check, "_seen", {})  # as in another process
    assert assets.find("thing")[1] == SHA256
    assert reads == []
    times = path.stat()
    path.write_bytes(BODY[:-1] + b"!")  # as long, and said to be as old
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InputError, match="is not the published thing"):
        assets.find("thing")
    assert reads == [path]


def test_a_file_elsewhere_is_read_once_a_process(
    cache: Path, tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    mine = put(tmp_path, "mine")
    assets.give({"thing": [mine]})
    assert assets.find("thing")[1] == SHA256
    monkeypatch.setattr(check, "file_sha256", lambda path: "read again")
    assert assets.find("thing")[1] == SHA256
    put(tmp_path, "mine")
    assert assets.find("thing")[1] == "read again"
    mine.unlink()
    with pytest.raises(InputError, match="mine: no such file"):
        assets.find("thing")


@pytest.mark.parametrize("note", [b"", b"[]", b"\xff", b'{"sha256": "00"}'])
def test_a_note_that_says_something_else_counts_for_nothing(cache: Path, publish: Publish, note: bytes) -> None:
    publish()
    put(cache)
    (cache / ".thing.bin.checked").write_bytes(note)
    check._seen.clear()
    assert assets.find("thing")[1] == SHA256
    assert json.loads((cache / ".thing.bin.checked").read_text())["sha256"] == SHA256


def test_the_note_goes_with_the_publication(cache: Path, publish: Publish) -> None:
    publish()
    put(cache)
    assets.find("thing")
    publish(digest="sha256:" + "0" * 64)
    with pytest.raises(InputError, match="is not the published thing"):
        assets.find("thing")


def test_variants_are_chosen_by_name(cache: Path, publish: Publish) -> None:
    publish(variants=("small", "large"))
    assert assets.find("thing", "large") == (cache / "large.bin", SHA256)
    assert filter_api.asset("thing", "small").path == cache / "small.bin"
    with pytest.raises(UnknownName, match=r"asset thing: no variant 'lage' \(found: large, small\)") as error:
        assets.find("thing", "lage")
    assert error.value.hint == "did you mean 'large'?"
    with pytest.raises(UnknownName) as error:
        assets.find("thing")
    assert error.value.hint == "name one, as in thing:small"


def test_files_that_count_as_one_come_in_their_order(
    cache: Path, tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(names=("b.bin", "a.bin"))
    there = put(tmp_path / "given", "a.bin")
    monkeypatch.setenv("CURATE_ASSETS", str(there.parent))
    assert [file.path for file in filter_api.assets("thing")] == [cache / "b.bin", there]
    with pytest.raises(ValueError, match="thing is 2 files"):
        assets.find("thing")
    publish(variants=("x",))
    with pytest.raises(ValueError, match="thing has variants"):
        assets.find_all("thing")


# --- files that the user names ----------------------------------------------------------------------------


def test_a_file_given_is_taken_as_it_is(
    cache: Path, tmp_path: Path, publisher: Publisher, publish: Publish
) -> None:
    publish(variants=("small", "large"))
    mine = put(tmp_path, "mine", b"other")
    assets.give({"thing": [mine]})
    assert assets.not_asked_for() == ["thing"]
    for variant in ("small", "large", None):
        found = filter_api.asset("thing", variant)
        assert (found.path, found.sha256) == (mine, hashlib.sha256(b"other").hexdigest())
    assert assets.not_asked_for() == []
    assert publisher.asked == []
    assert not cache.exists()
    assets.give({})
    assert assets.find("thing", "small")[0] == cache / "small.bin"


def test_several_given_for_files_that_count_as_one(cache: Path, tmp_path: Path, publish: Publish) -> None:
    publish(names=("a.bin", "b.bin"))
    paths = [put(tmp_path, name, name.encode()) for name in "xyz"]
    assets.give({"thing": paths})
    assert [file.path for file in filter_api.assets("thing")] == paths


def test_what_cannot_be_given(cache: Path, tmp_path: Path, publish: Publish) -> None:
    publish()
    mine = put(tmp_path, "mine.npy")

    def refused(given: dict[str, list[Path]], says: str, hint: str | None) -> None:
        with pytest.raises(InputError, match=re.escape(says)) as error:
            assets.give(given)
        assert error.value.exit_code == 2
        assert error.value.hint == hint

    refused(
        {"thin": [mine]},
        "--asset: no published asset 'thin' (found: centroids, fasttext-lid, ",
        "did you mean 'thing'?",
    )
    refused({"zzz": [mine]}, "--asset: no published asset 'zzz'", "curate assets lists them")
    refused({"thing": [tmp_path]}, f"--asset thing: {tmp_path} is a folder, not a file", "--asset thing=FILE")
    refused(
        {"thing": [tmp_path / "mine.np"]},
        "mine.np: no such file (found there: mine.npy)",
        f"did you mean '{mine}'?",
    )
    refused({"thing": [mine, mine]}, f"--asset thing: is one file (2 given: {mine}, {mine})", None)
    refused({"thing": [mine / "x"]}, "x: cannot be read (Not a directory)", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, publish: Publish) -> None:
    publish()
    mine = put(tmp_path, "mine.npy")
    mine.chmod(0)
    with pytest.raises(InputError, match=r"mine\.npy: cannot be read \(Permission denied\)"):
        assets.give({"thing": [mine]})


# --- the registry -----------------------------------------------------------------------------------------


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UnknownName) as error:
        assets.find("watermarks")
    assert error.value.hint == "did you mean 'watermark'?"


def test_every_published_asset_is_pinned_and_fetched_encrypted() -> None:
    for name, entry in assets.REGISTRY.items():
        assert name == entry.name
        assert entry.licence
        assert entry.source
        for file in entry.files:
            kind, _, hexdigits = file.digest.partition(":")
            assert file.url.startswith("https://")
            assert len(bytes.fromhex(hexdigits)) == {"sha256": 32, "git": 20}[kind]
            assert 0 < file.most <= 2_000_000_000
    files = [file.file for entry in assets.REGISTRY.values() for file in entry.files]
    assert len(files) == len(set(files)), "they share a folder"


def test_the_assets_of_datacomps_baselines_are_there() -> None:
    registry = assets.REGISTRY
    assert [f.file for f in registry["imagenet-targets"].files] == [f"in1k_clip_vit_l14_{i}.pt" for i in range(5)]
    assert registry["centroids"].variants == ("small", "medium", "large", "xlarge")
    assert {"fasttext-lid", "imagenet21k-synsets", "wordnet"} <= set(registry)
    shared = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet-synsets"
    listed = shared / "imagenet21k_goog_synsets.txt"
    if not listed.is_file():
        pytest.skip(f"no {listed}")
    asset = registry["imagenet21k-synsets"]
    assert check.checked(asset, asset.files[0], listed)
