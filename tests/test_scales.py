from __future__ import annotations

import hashlib
import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from curate.errors import InputError, UnknownName
from curate.scales import CHECKPOINTS, SCALES, datacomp_command, scale, scale_pool, scale_ranks, training_command
from curate.uids import UID_DTYPE, to_hex


def some_uids(n: int, seed: int = 1) -> npt.NDArray[np.void]:
    pairs = np.empty(n, dtype=UID_DTYPE)
    draw = np.random.default_rng(seed)
    pairs["f0"], pairs["f1"] = (draw.integers(0, 2**64, n, dtype=np.uint64) for _ in range(2))
    return pairs


def test_scales_are_datacomps() -> None:
    assert [
        (s.name, s.samples_seen, s.batch, s.learning_rate, s.warmup, s.model, s.beta2) for s in SCALES.values()
    ] == [
        ("debug", 128_000, 1024, 1e-4, 500, "ViT-B-32", None),
        ("small", 12_800_000, 4096, 5e-4, 500, "ViT-B-32", None),
        ("medium", 128_000_000, 4096, 5e-4, 500, "ViT-B-32", None),
        ("large", 1_280_000_000, 8192, 5e-4, 500, "ViT-B-16", None),
        ("xlarge", 12_800_000_000, 90_112, 1e-3, 10_000, "ViT-L-14", 0.95),
    ]
    assert all(s.pool_size == s.samples_seen for s in SCALES.values() if s.name != "debug")
    assert scale("debug").pool_size is None
    assert scale("small").steps == 3125
    assert scale("small").repeats(1_280_000) == 10
    assert scale("small").repeats(0) == float("inf")


def test_unknown_scale_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no scale 'meduim' \(found: debug, large, medium, small, xlarge\)") as e:
        scale("meduim")
    assert e.value.hint == "did you mean 'medium'?"
    assert e.value.exit_code == 2


def test_ranks_follow_the_documented_hash() -> None:
    pairs = some_uids(5)
    expected = [
        int.from_bytes(hashlib.sha256(b"7:" + bytes.fromhex(uid)).digest()[:8], "big") for uid in to_hex(pairs)
    ]
    assert scale_ranks(pairs, 7).tolist() == expected


def test_scale_pools_nest_and_depend_on_no_order() -> None:
    pairs = some_uids(1000)
    large, little = (replace(scale("small"), pool_size=n) for n in (400, 100))
    inner, outer = scale_pool(pairs, little, 0), scale_pool(pairs, large, 0)
    assert (inner.sum(), outer.sum()) == (100, 400)
    assert not (inner & ~outer).any()
    turned = np.random.default_rng(2).permutation(1000)
    assert (scale_pool(pairs[turned], large, 0) == outer[turned]).all()
    assert (scale_pool(pairs, large, 1) != outer).any()


def test_no_hash_is_taken_where_all_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("hashed for nothing")

    monkeypatch.setattr("curate.scales.scale_ranks", fail)
    pairs = some_uids(10)
    assert scale_pool(pairs, scale("debug"), 0).all()
    assert scale_pool(pairs, replace(scale("small"), pool_size=10), 0).all()
    assert len(scale_pool(pairs[:0], scale("small"), 0)) == 0


def test_rows_of_one_uid_stand_or_fall_together() -> None:
    pairs = some_uids(50).repeat(2)
    mask = scale_pool(pairs, replace(scale("small"), pool_size=11), 0)
    assert (mask[0::2] == mask[1::2]).all()
    assert mask.sum() == 12


# --- the commands -----------------------------------------------------------------------------------------


def parsed(command: str) -> Any:
    """What open_clip understands of a training command."""
    from open_clip_train.params import parse_args

    words = shlex.split(command.replace("\\\n", " ").replace("$((", "").replace(" / GPUS))", ""))
    return parse_args(words[words.index("open_clip_train.main") + 1 :])


@pytest.mark.parametrize("name", SCALES)
def test_open_clip_is_told_what_datacomps_train_py_tells_it(name: str) -> None:
    chosen = scale(name)
    args = parsed(training_command(chosen, "shards/{00000000..00000003}.tar"))
    assert args.train_data == "shards/{00000000..00000003}.tar"
    assert args.train_num_samples == chosen.samples_per_checkpoint == chosen.samples_seen / CHECKPOINTS
    assert (args.epochs, args.dataset_type) == (5, "webdataset")
    assert (args.batch_size, args.lr, args.warmup) == (chosen.batch, chosen.learning_rate, chosen.warmup)
    assert (args.model, args.precision, args.seed, args.workers) == (chosen.model, chosen.precision, 0, 4)
    assert args.beta2 == (chosen.beta2 or 0.98)  # what open_clip takes for a ViT
    assert args.dataset_resampled
    assert args.local_loss
    assert args.gather_with_grad
    assert args.grad_checkpointing
    assert args.ddp_static_graph
    assert (args.save_most_recent, args.save_frequency, args.accum_freq) == (True, 0, 1)
    assert (args.resume, args.name, args.log_every_n_steps) == ("latest", f"{name}_scale", 100)
    assert (args.train_data_upsampling_factors, args.grad_clip_norm, args.imagenet_val) == (None, None, None)


def test_precision_is_datacomps_but_at_xlarge() -> None:
    assert {name: s.precision for name, s in SCALES.items() if s.precision != "amp"} == {"xlarge": "amp_bfloat16"}
    assert datacomp_command(scale("xlarge"), "subset").endswith("--precision amp_bfloat16")
    assert "--precision" not in datacomp_command(scale("large"), "subset")


def test_sources_have_weights() -> None:
    patterns = ["a/{0..3}.tar", "it's b/{0..1}.tar"]
    args = parsed(training_command(scale("small"), patterns, [1, 0.25]))
    assert args.train_data == "a/{0..3}.tar::it's b/{0..1}.tar"
    assert args.train_data_upsampling_factors == "1::0.25"
    words = shlex.split(datacomp_command(scale("small"), ["one", "the other"], [1 / 3, 2]))
    assert words[words.index("--data_dir") + 1] == "one::the other"
    assert words[words.index("--data_weights") + 1] == "0.333333333333::2"
    assert "--data_weights" not in datacomp_command(scale("small"), ["a", "b"])


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [1.0, float("inf")], []])
def test_weights_are_one_for_each_source(weights: list[float]) -> None:
    with pytest.raises(InputError, match="must be one above 0 for each of 2 sources") as e:
        training_command(scale("small"), ["a.tar", "b.tar"], weights)
    assert e.value.exit_code == 2
