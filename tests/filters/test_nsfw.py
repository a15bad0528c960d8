from __future__ import annotations

import contextlib
import io
import math
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from curate.errors import InputError
from curate.filter_api import File, Score, Vectors, settings_of
from curate.filters import _savedmodel, _unsafe_head
from curate.filters.nsfw import Nsfw, Unsafe

from . import saved_model
from .fakes import FakeFacts, batch, judged

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HEADS = DATA / "laion-nsfw"
needs_heads = pytest.mark.skipif(not HEADS.exists(), reason="no LAION heads in ../shared")
PUBLISHED = ["clip_autokeras_binary_nsfw", "clip_autokeras_nsfw_b32"]

Arrays = dict[str, npt.NDArray[np.generic]]


def small_head(dim: int = 12, categories: tuple[int, ...] = (3, 7)) -> Arrays:
    """A head of two dense layers with vocabularies of float16 values, printed as TensorFlow prints them."""
    rng = np.random.default_rng(5)
    arrays: Arrays = {
        "mean": rng.normal(0, 0.1, dim).astype(np.float32),
        "variance": np.append(rng.uniform(0.01, 0.1, dim - 1), 0).astype(np.float32),
        "dense_0_kernel": rng.normal(0, 0.3, (dim, 5)).astype(np.float32),
        "dense_0_bias": rng.normal(0, 0.3, 5).astype(np.float32),
        "dense_1_kernel": rng.normal(0, 0.3, (5, 1)).astype(np.float32),
        "dense_1_bias": rng.normal(0, 0.3, 1).astype(np.float32),
        "categorical_dims": np.array(categories),
    }
    for dim_ in categories:
        values = rng.normal(0, 0.3, 9).astype(np.float16)
        arrays[f"vocab_{dim_}"] = np.array([f"{float(v):f}" for v in values])
    return arrays


def as_npz(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def as_saved_model(arrays: Arrays) -> bytes:
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    tensors = {
        f"layer_with_weights-1/mean{suffix}": arrays["mean"],
        f"layer_with_weights-1/variance{suffix}": arrays["variance"],
    }
    for i in range(2):
        for part in ("kernel", "bias"):
            tensors[f"layer_with_weights-{i + 2}/{part}{suffix}"] = arrays[f"dense_{i}_{part}"]
    dims = [int(dim) for dim in arrays["categorical_dims"]]
    lists = [[b"not", b"a vocabulary", b"\xff"]]
    lists += [[str(word).encode() for word in arrays[f"vocab_{dim}"]] for dim in dims]
    keys = [f"layer_with_weights-0/encoding_layers/{d}/token_counts/.ATTRIBUTES/table-keys" for d in dims]
    return saved_model.zipped(saved_model.files(tensors, lists, keys))  # type: ignore[arg-type]


def oracle(arrays: Arrays, vector: npt.NDArray[np.float32]) -> float:
    """The forward pass of the heads' README, one number at a time in double precision."""
    x = [float(v) for v in vector.astype(np.float16)]
    for dim in arrays["categorical_dims"]:
        words = [str(word) for word in arrays[f"vocab_{dim}"]]
        printed = f"{x[int(dim)]:f}"
        x[int(dim)] = words.index(printed) + 1 if printed in words else 0
    mean, variance = arrays["mean"].astype(float), arrays["variance"].astype(float)
    h = [(v - m) / max(math.sqrt(s), 1e-7) for v, m, s in zip(x, mean, variance, strict=True)]
    layers = sum(name.endswith("_kernel") for name in arrays)
    for i in range(layers):
        kernel, bias = arrays[f"dense_{i}_kernel"].astype(float), arrays[f"dense_{i}_bias"].astype(float)
        h = [float(np.dot(h, kernel[:, j]) + bias[j]) for j in range(len(bias))]
        if i < layers - 1:
            h = [max(v, 0.0) for v in h]
    return 1 / (1 + math.exp(-h[0]))


def file_of(tmp_path: Path, data: bytes) -> File:
    path = tmp_path / "head.zip"
    path.write_bytes(data)
    return File.at(path)


@pytest.mark.parametrize("form", [as_npz, as_saved_model])
def test_a_head_of_our_own_in_both_forms(tmp_path: Path, form: object) -> None:
    arrays = small_head()
    head = _unsafe_head.load(file_of(tmp_path, form(arrays)))  # type: ignore[operator]
    vectors = np.random.default_rng(0).normal(0, 0.3, (50, 12)).astype(np.float32)
    vectors[::2, 3] = [float(word) for word in np.resize(arrays["vocab_3"], 25)]  # in the vocabulary
    # where the variance is 0 the deviation is 1e-7: keep the value at its mean's nearest half
    vectors[:, -1] = arrays["mean"][-1]
    got = head(vectors)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [oracle(arrays, v) for v in vectors], rtol=2e-4, atol=1e-7)


def test_the_category_changes_the_answer(tmp_path: Path) -> None:
    arrays = small_head()
    head = _unsafe_head.load(file_of(tmp_path, as_npz(arrays)))
    for place, word in enumerate(arrays["vocab_3"], start=1):
        assert head.places[3][np.float16(word).view(np.uint16)] == place
    assert (head.places[3] > 0).sum() == len(set(arrays["vocab_3"]))


@needs_heads
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_zip_is_the_converted_npz(name: str) -> None:
    head = _unsafe_head.load(File.at(HEADS / f"{name}.zip"))
    other = _unsafe_head.load(File.at(HEADS / f"{name}.npz"))
    np.testing.assert_array_equal(head.mean, other.mean)
    np.testing.assert_array_equal(head.deviation, other.deviation)
    assert len(head.layers) == len(other.layers)
    for (kernel, bias), (kernel_, bias_) in zip(head.layers, other.layers, strict=True):
        np.testing.assert_array_equal(kernel, kernel_)
        np.testing.assert_array_equal(bias, bias_)
    assert list(head.places) == list(other.places)
    for dim, places in head.places.items():
        np.testing.assert_array_equal(places, other.places[dim])


@needs_heads
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_heads_as_their_readme_says(name: str) -> None:
    head = _unsafe_head.load(File.at(HEADS / f"{name}.zip"))
    arrays = dict(np.load(HEADS / f"{name}.npz"))
    vectors = np.random.default_rng(1).normal(size=(20, head.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(head(vectors), [oracle(arrays, v) for v in vectors], rtol=1e-3, atol=1e-9)


@needs_heads
def test_golden_values_of_version_1() -> None:
    assert Unsafe.version == 1
    head = _unsafe_head.load(File.at(HEADS / "clip_autokeras_nsfw_b32.zip"))
    coco = np.load(DATA / "clip-features" / "coco_val2014_328_image_embeddings.npz")["image_embs"]
    p = head(coco)
    assert p.mean() == pytest.approx(0.018, abs=1e-3)
    assert (p > 0.5).sum() == 5
    photos = np.load(DATA / "clip-retrieval-tests" / "image_embeddings_vitb32.npz")
    [seven] = [photos[key] for key in photos.files if photos[key].ndim == 2]
    p = head(seven)
    assert p.min() == pytest.approx(1e-10, rel=2)
    assert p.max() == pytest.approx(0.024, abs=1e-3)


def test_garbage_is_an_input_error_that_names_the_file(tmp_path: Path) -> None:
    whole = as_saved_model(small_head())
    members = _savedmodel.members(whole)
    index, data = "head/variables/variables.index", "head/variables/variables.data-00000-of-00001"
    wrong_layers = small_head()
    wrong_layers["dense_1_kernel"] = np.zeros((4, 1), np.float32)
    objects = as_npz({"mean": np.array([{}], dtype=object)})  # type: ignore[dict-item]
    bad = [
        b"",
        b"garbage",
        whole[:-30],
        saved_model.zipped({}),
        saved_model.zipped({"head/saved_model.pb": b""}),
        saved_model.zipped(members | {"second/saved_model.pb": b""}),
        saved_model.zipped(members | {index: b"\0" * 100}),
        saved_model.zipped(members | {data: b""}),
        saved_model.zipped(members | {"head/saved_model.pb": b""}),
        saved_model.zipped(members | {"head/saved_model.pb": b"\xff" * 20}),
        as_npz(wrong_layers),
        as_npz({name: array for name, array in small_head().items() if name != "mean"}),
        as_npz(small_head() | {"categorical_dims": np.array([99]), "vocab_99": np.array(["0.1"])}),
        objects,
    ]
    for i, content in enumerate(bad):
        with pytest.raises(InputError, match=r"head\.zip: is not an NSFW head") as error:
            _unsafe_head.load(file_of(tmp_path, content))
        assert error.value.exit_code == 2, i
        assert "LAION" in (error.value.hint or "")


def test_flipped_bytes_never_do_worse_than_an_input_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    for form in (as_saved_model, as_npz):
        members = _savedmodel.members(form(small_head()))
        for _ in range(150):
            name = rng.choice(list(members))
            content = bytearray(members[name])
            for _ in range(rng.randrange(1, 4)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            if rng.random() < 0.2:
                del content[rng.randrange(len(content)) :]
            damaged = saved_model.zipped(members | {name: bytes(content)})
            with contextlib.suppress(InputError):
                _unsafe_head.load(file_of(tmp_path, damaged))


def test_a_zip_that_unpacks_to_too_much(tmp_path: Path) -> None:
    bomb = saved_model.zipped({"head/saved_model.pb": bytes(65 << 20)})
    assert len(bomb) < 1 << 20
    with pytest.raises(InputError, match="unpacks to more than 64 MiB"):
        _unsafe_head.load(file_of(tmp_path, bomb))


def test_scorer_reads_one_models_images(tmp_path: Path) -> None:
    scorer = Unsafe("any/model", file_of(tmp_path, as_npz(small_head())))
    assert scorer.needs() == [Vectors("any/model", "image")]
    compute = scorer.open("cpu")
    vectors = np.zeros((3, 12), np.float32)
    got = compute(batch(3, vectors={("any/model", "image"): vectors}))
    assert list(got) == list(scorer.columns)
    assert got["p_unsafe"].shape == (3,)
    with pytest.raises(InputError, match=r"reads embeddings of 12 numbers \(any/model makes 7\)"):
        compute(batch(1, vectors={("any/model", "image"): vectors[:1, :7]}))


def test_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame({"p_unsafe": pl.Series([0.5, 0.500001, 0.1, None], dtype=pl.Float32)})
    assert judged(Nsfw(), frame) == ["kept", "unsafe", "kept", None]
    said = Nsfw.reasons["unsafe"].format(**settings_of(Nsfw()), value=0.75)
    assert said == "the image is unsafe with probability 0.750, over 0.5"
    head = file_of(tmp_path, as_npz(small_head()))
    assert Nsfw(model="my/model", head=head).settle(FakeFacts()).needs() == [Score(Unsafe("my/model", head))]
    with pytest.raises(InputError, match="published no head for my/model"):
        Nsfw(model="my/model").settle(FakeFacts())
    with pytest.raises(ValueError, match="max is a probability"):
        Nsfw(max=50)


@needs_heads
def test_settles_on_the_pools_model_and_its_published_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURATE_ASSETS", str(HEADS))
    for models, name, model in (
        (("tiny", "ViT-B-32/openai"), "clip_autokeras_nsfw_b32.zip", "ViT-B-32/openai"),
        ((), "clip_autokeras_binary_nsfw.zip", "ViT-L-14/openai"),
    ):
        settled = Nsfw().settle(FakeFacts(models))
        assert settled.model == model
        assert settled.head is not None
        assert settled.head.path == HEADS / name
