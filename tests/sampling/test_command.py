from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from curate.sampling import __main__ as command
from tests.sampling.subsets import KEYS, PLACES, TWICE, content, made, make_chosen


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool, its virtual subset and its real one."""
    base = tmp_path_factory.mktemp("both")
    pool = make_chosen(base / "the pool")
    made(pool, base / "virtual")
    made(pool, base / "real", virtual=False)
    return base


def run(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "curate.sampling", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, check=False)


def test_a_shard_is_printed_as_the_tar_that_a_real_subset_has(both: Path) -> None:
    tars = sorted((both / "real/shards").glob("*.tar"))
    assert len(tars) == 4
    for tar in tars:
        ran = run("tar", both / "virtual", tar.name)
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert ran.stdout == tar.read_bytes()
    assert run("tar", both / "virtual", "00000003").stdout == tars[3].read_bytes()


def test_a_shard_that_is_not_there(both: Path) -> None:
    ran = run("tar", both / "virtual", "00000004.tar")
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert b"no shard '00000004' (found: 00000000, " in ran.stderr
    assert b"hint: did you mean" in ran.stderr
    assert b"Traceback" not in ran.stderr


def test_a_changed_tar_is_named_on_stderr(tmp_path: Path) -> None:
    made(make_chosen(tmp_path / "pool"), tmp_path / "virtual")
    tar = tmp_path / "pool/shards/00000003.tar"
    tar.write_bytes(tar.read_bytes()[:4096])
    assert run("tar", tmp_path / "virtual", "00000000").returncode == 0
    ran = run("tar", tmp_path / "virtual", "00000003")
    assert ran.returncode == 3
    assert f"{tar}: is not as it was when the virtual subset was made: it has 4,096 bytes" in ran.stderr.decode()


def test_a_pool_that_has_moved(tmp_path: Path) -> None:
    made(make_chosen(tmp_path / "pool"), tmp_path / "virtual")
    expected = run("tar", tmp_path / "virtual", "00000001").stdout
    (tmp_path / "pool").rename(tmp_path / "moved")
    assert run("tar", tmp_path / "virtual", "00000001").returncode == 3
    assert run("tar", tmp_path / "virtual", "00000001", "--pool", tmp_path / "moved").stdout == expected


def test_whoever_reads_may_stop_early(both: Path) -> None:
    line = shlex.join([sys.executable, "-m", "curate.sampling", "tar", str(both / "virtual"), "00000000"])
    ran = subprocess.run(
        ["bash", "-c", f"{line} | head -c 100 > /dev/null; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        check=False,
    )
    assert ran.returncode in (0, command.PIPE_CLOSED)
    assert ran.stderr == b""


def test_a_closed_pipe_is_no_error(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(command, "write_tar", closed)
    with Path("/dev/null").open("w") as nowhere:
        monkeypatch.setattr(sys, "stdout", nowhere)
        assert command.main(["tar", str(both / "virtual"), "00000000"]) == command.PIPE_CLOSED


def pipe(both: Path) -> str:
    """What `curate subset --virtual` prints for --train-data, with this Python."""
    folder = shlex.quote(str(both / "virtual"))
    return f"pipe:{shlex.quote(sys.executable)} -m curate.sampling tar {folder} {{00000000..00000003}}.tar"


def told_by(script: str, *arguments: str) -> list[str]:
    """The lines that a Python script prints; in a process of its own, because webdataset leaves its pipes open."""
    line = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()


WEBDATASET = """
import sys
import webdataset as wds

for sample in wds.WebDataset(sys.argv[1], shardshuffle=False):
    print(sample["__key__"], len(sample["jpg"]))
"""

OPEN_CLIP = """
import sys
from open_clip_train import data
from open_clip_train.params import parse_args

data._SAMPLE_SHUFFLE_INITIAL = 5  # for a thousand it starts two hundred processes
args = parse_args(["--train-data", sys.argv[1], "--train-num-samples", "10", "--batch-size", "5", "--workers", "0",
                   "--dataset-type", "webdataset", "--dataset-resampled"])
args.world_size = 1
info = data.get_wds_dataset(args, lambda image: image.size[0], is_train=True, tokenizer=lambda text: [text])
for sizes, texts in info.dataloader:
    print(*texts, sep="\\n")
"""


def test_webdataset_reads_the_pipe(both: Path) -> None:
    expected = [len(content(*at)["jpg"]) for at in PLACES for _ in range(2 if at == TWICE else 1)]
    assert told_by(WEBDATASET, pipe(both)) == [f"{key} {size}" for key, size in zip(KEYS, expected, strict=True)]


def test_open_clips_own_loader_reads_the_pipe(both: Path) -> None:
    texts = told_by(OPEN_CLIP, pipe(both))
    assert len(texts) == 10
    assert set(texts) <= {content(*at)["txt"].decode() for at in PLACES}
