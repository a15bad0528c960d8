from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from curate import shards
from curate.errors import InputError, PartError
from curate.sampling import VirtualSubset, folder
from curate.sampling.for_torch import TorchSubset
from tests.sampling.subsets import KEYS, LEFT_OUT, PLACES, TWICE, content, made, make_chosen

N = len(KEYS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("virtual")
    made(make_chosen(base / "pool"), base / "subset")
    return base / "subset"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A subset that a test may hurt."""
    made(make_chosen(tmp_path / "pool"), tmp_path / "subset")
    return tmp_path / "subset"


def keys(samples: Iterable[dict[str, Any]]) -> list[str]:
    return [sample["__key__"] for sample in samples]


# --- the samples ------------------------------------------------------------------------------------------


def test_samples_are_the_pools_bytes_in_the_subsets_order(path: Path) -> None:
    found = list(VirtualSubset(path, shuffle=False))
    assert keys(found) == KEYS
    places = [at for at in PLACES for _ in range(2 if at == TWICE else 1)]
    for sample, at in zip(found, places, strict=True):
        assert sample.pop("__url__") == str(path.parent / f"pool/shards/{at[0]:08d}.tar")
        sample.pop("__key__")
        assert sample == content(*at)
    assert len(VirtualSubset(path)) == N == len(PLACES) + 1


def test_an_epoch_has_each_sample_once_and_the_next_has_another_order(path: Path) -> None:
    subset = VirtualSubset(path, seed=1)
    first, second = keys(subset), keys(subset)
    assert sorted(first) == sorted(second) == sorted(KEYS)
    assert first != KEYS
    assert first != second
    again = VirtualSubset(path, seed=1)
    again.set_epoch(1)
    assert keys(again) == second
    assert keys(VirtualSubset(path, seed=2)) != first


@pytest.mark.parametrize("world", [2, 3, 50])
def test_ranks_share_an_epoch_out(path: Path, world: int) -> None:
    whole = keys(VirtualSubset(path))
    ranks = [VirtualSubset(path, rank=rank, world_size=world) for rank in range(world)]
    assert [key for rank in ranks for key in keys(rank)] == whole
    assert sum(len(rank) for rank in ranks) == N
    equal = [VirtualSubset(path, rank=rank, world_size=world, equal=True) for rank in range(world)]
    given = [keys(rank) for rank in equal]
    assert {len(g) for g in given} == {len(e) for e in equal} == {N // world}
    assert len({key for g in given for key in g}) == N // world * world


def test_the_rank_is_the_environments(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    inherited = keys(VirtualSubset(path))
    monkeypatch.undo()
    assert inherited == keys(VirtualSubset(path, rank=1, world_size=3))


def test_resampling_never_ends(path: Path) -> None:
    subset = VirtualSubset(path, resampled=True, window=6)
    drawn = keys(islice(subset, 5 * N))
    assert len(drawn) == 5 * N
    assert set(drawn) == set(KEYS)
    assert max(map(drawn.count, drawn)) > 5
    subset.set_epoch(1)
    assert keys(islice(subset, N)) != drawn[:N]
    with pytest.raises(TypeError, match="never end"):
        len(subset)


def test_breaking_off_begins_the_epoch_again(path: Path) -> None:
    subset = VirtualSubset(path)
    begun = keys(islice(subset, 4))
    assert keys(subset)[:4] == begun


def test_few_tars_are_held_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "OPEN", 2)
    subset = VirtualSubset(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert sorted(keys(subset)) == sorted(KEYS)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_torch_is_not_imported(path: Path) -> None:
    code = (
        "import sys\nfrom curate.sampling import VirtualSubset\n"
        f"print(len(list(VirtualSubset({str(path)!r}))), 'torch' in sys.modules, 'polars' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(N), "False", "False"]


# --- going on where one stopped ---------------------------------------------------------------------------


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 7, 20])
def test_a_state_goes_on_with_the_next_sample(path: Path, taken: int, resampled: bool) -> None:
    options: dict[str, Any] = {"seed": 5, "window": 8, "resampled": resampled}
    subset = VirtualSubset(path, **options)
    subset.set_epoch(3)
    whole = keys(islice(subset, N))
    subset.set_epoch(3)
    running = iter(subset)
    assert keys(islice(running, taken)) == whole[:taken]
    state = json.loads(json.dumps(subset.state_dict() if taken else subset.state_after(0)))
    again = VirtualSubset(path, **options)
    again.load_state_dict(state)
    assert again.state_dict()["epoch"] == 3
    again.set_epoch(3)  # what a training loop says at the top of each epoch
    assert keys(islice(again, N - taken)) == whole[taken:]


def test_a_finished_epochs_state_is_the_next_ones_beginning(path: Path) -> None:
    subset = VirtualSubset(path)
    keys(subset)
    state = subset.state_dict()
    assert (state["epoch"], state["given"]) == (1, 0)
    again = VirtualSubset(path)
    again.load_state_dict(state)
    assert keys(again) == keys(subset)


def test_another_epoch_drops_a_loaded_place(path: Path) -> None:
    subset = VirtualSubset(path)
    keys(islice(subset, 5))
    subset.load_state_dict(subset.state_dict())
    subset.set_epoch(1)
    assert len(keys(subset)) == N


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"seed": 9}, "is of another seed"),
        ({"window": 3}, "is of another window"),
        ({"subset": "0" * 64}, "is of another subset"),
        ({"format": 2}, "is of another format"),
        ({"consumers": 2}, "is of 2 readers .* here are 1"),
        ({"consumer": 1}, "is of reader 1, not of reader 0"),
    ],
)
def test_a_state_of_something_else_is_refused(path: Path, state: dict[str, Any], match: str) -> None:
    subset = VirtualSubset(path)

    def go_on() -> None:
        subset.load_state_dict(subset.state_dict() | state)
        next(iter(subset))

    with pytest.raises(InputError, match=match) as e:
        go_on()
    assert e.value.exit_code == 2
    assert "set_epoch" in str(e.value.hint)


# --- torch and webdataset ---------------------------------------------------------------------------------


# the machine may have fewer cores than a test has workers
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def loader(dataset: TorchSubset, **options: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, collate_fn=keys, **options)


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 3}], ids=str)
def test_a_dataloaders_workers_share_an_epoch_out(path: Path, options: dict[str, Any]) -> None:
    dataset = VirtualSubset(path).torch()
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append([key for batch in loader(dataset, batch_size=4, **options) for key in batch])
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(KEYS)
    assert epochs[0] != epochs[1]
    assert len(dataset) == N


def test_ranks_and_workers_that_stay_and_are_started_anew(path: Path) -> None:
    epochs: list[list[str]] = [[], []]
    for rank in range(2):
        dataset = VirtualSubset(path, rank=rank, world_size=2).torch()
        batches = loader(
            dataset, batch_size=2, num_workers=2, multiprocessing_context="spawn", persistent_workers=True
        )
        for epoch, found in enumerate(epochs):
            dataset.set_epoch(epoch)
            found += [key for batch in batches for key in batch]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(KEYS)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("taken", [1, 3, 5])
def test_a_dataloader_goes_on_after_so_many_batches(path: Path, workers: int, taken: int) -> None:
    options: dict[str, Any] = {"batch_size": 3, "num_workers": workers}
    dataset = VirtualSubset(path, seed=1).torch()
    dataset.set_epoch(2)
    whole = list(loader(dataset, **options))
    state = dataset.state_after(taken, batch_size=3, workers=workers)
    again = VirtualSubset(path, seed=1).torch()
    again.load_state_dict(json.loads(json.dumps(state)))
    rest = list(loader(again, **options))
    assert sorted(map(sorted, rest)) == sorted(map(sorted, whole[taken:]))


def test_other_workers_than_the_states_are_refused(path: Path) -> None:
    dataset = VirtualSubset(path).torch()
    dataset.load_state_dict(dataset.state_after(2, batch_size=3, workers=2))
    with pytest.raises(InputError, match="is of 2 readers"):
        list(loader(dataset, batch_size=3))


@pytest.mark.filterwarnings("ignore")
def test_webdatasets_stages_take_it(path: Path) -> None:
    import webdataset as wds

    dataset = VirtualSubset(path, shuffle=False).torch()
    pipeline = wds.DataPipeline(dataset, wds.decode("pil"), wds.to_tuple("__key__", "jpg;png", "txt", "json"))
    found = list(pipeline)
    assert [key for key, *_ in found] == KEYS
    assert found[0][1].size == (24, 16)
    assert found[0][3]["caption"] == found[0][2]


def test_it_can_be_sent_to_another_process(path: Path) -> None:
    subset = VirtualSubset(path, seed=3)
    expected = keys(VirtualSubset(path, seed=3))
    keys(islice(subset, 3))
    assert keys(pickle.loads(pickle.dumps(subset))) == expected


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seed": -1}, "seed: must be 0 or more"),
        ({"window": 0}, "window: must be 1 or more"),
        ({"resampled": True, "equal": True}, "equal: has no meaning"),
        ({"rank": 1}, "rank: comes with world_size"),
        ({"world_size": 2}, "rank: comes with world_size"),
        ({"rank": 2, "world_size": 2}, "rank: must be 0 to 1"),
    ],
)
def test_settings_are_checked(path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        VirtualSubset(path, **options)


def test_other_folders_are_refused(own: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no virtual subset") as e:
        VirtualSubset(tmp_path)
    assert "curate subset --virtual" in str(e.value.hint)
    mark = json.loads((own / "subset.json").read_text())
    (own / "subset.json").write_text(json.dumps(mark | {"done": False}))
    with pytest.raises(InputError, match="is not finished"):
        VirtualSubset(own)


def test_a_real_subset_is_refused(tmp_path: Path) -> None:
    made(make_chosen(tmp_path / "pool"), tmp_path / "real", virtual=False)
    with pytest.raises(InputError, match="no virtual one") as e:
        VirtualSubset(tmp_path / "real")
    assert "shards/*.tar" in str(e.value.hint)


def tar_of(own: Path, shard: int) -> Path:
    return own.parent / f"pool/shards/{shard:08d}.tar"


def cut(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("hurt", "said"), [(Path.unlink, "cannot be read: No such file"), (cut, "has 3,000 bytes, not the ")]
)
def test_a_changed_pool_is_noticed_when_it_is_opened(own: Path, hurt: Any, said: str) -> None:
    for shard in (1, 2):
        hurt(tar_of(own, shard))
    with pytest.raises(PartError, match="2 of its 4 tars are not as they were") as e:
        VirtualSubset(own)
    assert f"{tar_of(own, 1)} {said}" in str(e.value)
    assert e.value.exit_code == 3


def test_tars_of_the_same_size_are_known_by_their_ends(own: Path) -> None:
    subset = VirtualSubset(own, shuffle=False)
    tar = tar_of(own, 2)
    tar.write_bytes(tar.read_bytes().replace(b"table 2", b"table X"))
    running: Iterator[dict[str, Any]] = iter(subset)
    with pytest.raises(PartError, match=r"00000002.tar: .* it begins or ends otherwise than then"):
        list(running)


def renamed(data: bytes, key: str) -> bytes:
    """A tar with one sample under another key."""
    changed = bytearray(data)
    for member in shards.members(data):
        if member.name.startswith(key):
            head = shards.header(member.name.replace(key, "other"), member.size)
            changed[member.start : member.start + len(head)] = head
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[: len(data) // 2], "is cut short"),
        (lambda data: data.replace(b"000000020003.", b"000000020009."), "is not a tar"),
        (lambda data: renamed(data, "000000020003"), "holds 'other' at byte"),
        (lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2), "does not hold the whole of"),
    ],
    ids=["cut", "other name", "other key", "zeros"],
)
def test_what_changes_during_an_epoch_is_named_and_not_passed_over(own: Path, change: Any, said: str) -> None:
    subset = VirtualSubset(own, shuffle=False)
    running = iter(subset)
    keys(islice(running, KEYS.index(next(k for k in KEYS if k.startswith(_first_of(2)))) + 1))
    tar = tar_of(own, 2)
    tar.write_bytes(change(tar.read_bytes()))
    with pytest.raises(PartError, match=said) as e:
        list(running)
    assert str(tar) in str(e.value)


def _first_of(shard: int) -> str:
    from tests.pools import uid_of

    return uid_of(shard, next(r for r in range(6) if (shard, r) not in LEFT_OUT))


def test_a_broken_tar_ends_a_dataloader(own: Path) -> None:
    dataset = VirtualSubset(own).torch()
    cut(tar_of(own, 3))
    with pytest.raises(Exception, match=r"00000003.tar"):
        list(loader(dataset, batch_size=2, num_workers=1))


def test_a_broken_index_is_named(own: Path) -> None:
    (own / "index/00000001.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(PartError, match=r"00000001.parquet: is not a readable Parquet file"):
        list(VirtualSubset(own))


def test_a_pool_that_has_moved_is_named(own: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").rename(tmp_path / "elsewhere")
    with pytest.raises(PartError, match="4 of its 4 tars") as e:
        VirtualSubset(own)
    assert "pool=DIR" in str(e.value.hint)
    assert keys(VirtualSubset(own, pool=tmp_path / "elsewhere", shuffle=False)) == KEYS
