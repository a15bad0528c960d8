"""Names, preprocessing and vectors of CLIP models."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate import models
from curate.errors import InputError, UnknownName

TEXT = {"context_length": 16, "vocab_size": 512, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
CONFIG: dict[str, Any] = {
    "model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "preprocess_cfg": {"resize_mode": "longest", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    "tokenizer": "words",
}


def write_weights(path: Path, seed: int = 0, metadata: dict[str, str] | None = None) -> Path:
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    state = {k: v.contiguous() for k, v in CLIP(**CONFIG["model_cfg"]).state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, str(path), metadata=metadata)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small clip.safetensors"
    return write_weights(path, metadata={"open_clip_config": json.dumps(CONFIG)})


@pytest.fixture(scope="module")
def model(weights: Path) -> models.Model:
    return models.load(models.parse(str(weights)), device="cpu")


# names


@pytest.mark.parametrize(
    ("name", "canonical", "slug"),
    [
        ("tiny", "tiny", "tiny"),
        ("ViT-L-14/openai", "ViT-L-14/openai", "ViT-L-14--openai"),
        ("ViT-B-32/laion2b-s34b-b79k", "ViT-B-32/laion2b_s34b_b79k", "ViT-B-32--laion2b_s34b_b79k"),
        ("ViT-B-32/random", "ViT-B-32/random:0", "ViT-B-32--random-0"),
        ("RN50/random:7", "RN50/random:7", "RN50--random-7"),
    ],
)
def test_a_name_has_a_canonical_form_and_a_folder(name: str, canonical: str, slug: str) -> None:
    spec = models.parse(name)
    assert (spec.name, spec.slug) == (canonical, slug)
    assert models.parse(spec.name) == spec


@pytest.mark.parametrize(
    ("name", "kind", "what", "hint"),
    [
        ("vit-b-32/openai", UnknownName, "no architecture 'vit-b-32'", "did you mean 'ViT-B-32'?"),
        ("ViT-B-32/opnai", UnknownName, "no weights for ViT-B-32 'opnai'", "did you mean 'openai'?"),
        ("tinny", UnknownName, "no model 'tinny'", "did you mean 'tiny'?"),
        ("ViT-B-32", InputError, "no weights are named", "write for instance ViT-B-32/"),
        ("missing.safetensors", InputError, "no such file", "give a weights file or ARCH/PRETRAINED"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(name: str, kind: type, what: str, hint: str) -> None:
    with pytest.raises(kind) as raised:
        models.parse(name)
    assert raised.value.exit_code == 2
    assert what in str(raised.value)
    assert (raised.value.hint or "").startswith(hint)


def test_names_and_preprocessing_do_not_import_torch() -> None:
    code = (
        "import sys; from curate import models\n"
        "spec = models.parse('ViT-SO400M-14-SigLIP-384/webli')\n"
        "from PIL import Image; models.preprocess_of(spec)(Image.new('RGB', (50, 40)))\n"
        "models.parse('tiny')\n"
        "sys.exit(' '.join({'torch', 'open_clip', 'huggingface_hub'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_table_read_from_the_source_is_open_clips_own() -> None:
    import open_clip

    from curate import model_names

    read = model_names._pretrained_table()
    assert {(arch, tag) for arch, tags in read.items() for tag in tags} == set(open_clip.list_pretrained())
    assert read["ViT-L-14"]["openai"] == open_clip.get_pretrained_cfg("ViT-L-14", "openai")


# preprocessing


def pictures() -> dict[str, Image.Image]:
    rng = np.random.default_rng(5)

    def noise(*shape: int) -> np.ndarray[Any, Any]:
        return rng.integers(0, 256, shape, dtype=np.uint8)

    colour = Image.fromarray(noise(91, 133, 3))
    return {
        "wide": colour,
        "tall": Image.fromarray(noise(301, 57, 3)),
        "square": Image.fromarray(noise(64, 64, 3)),
        "one pixel": Image.fromarray(noise(1, 1, 3)),
        "line": Image.fromarray(noise(3, 400, 3)),
        "grey": Image.fromarray(noise(77, 50)),
        "alpha": Image.fromarray(noise(40, 90, 4)),
        "palette": colour.quantize(16),
        "bilevel": Image.fromarray(noise(83, 61)).convert("1"),
        "cmyk": colour.convert("CMYK"),
        "grey alpha": Image.fromarray(noise(30, 44)).convert("LA"),
    }


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_is_open_clips_bit_for_bit(
    mode: str, size: tuple[int, int], interpolation: str, model: models.Model
) -> None:
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    ours = models.Preprocess(size=size, resize_mode=mode, interpolation=interpolation, fill=7)
    theirs = image_transform_v2(
        PreprocessCfg(size=size, resize_mode=mode, interpolation=interpolation, fill_color=7), is_train=False
    )
    seen: list[torch.Tensor] = []

    class Watching(torch.nn.Module):
        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(pixels)
            return torch.ones(len(pixels), 2)

    watched = models.Model(model.spec, Watching(), model._tokenizer, model.device, "fp32", "")
    watched.prepare, watched.image_size = ours, size
    for name, picture in pictures().items():
        prepared = ours(picture)
        assert prepared.shape == (*size, 3), name
        assert prepared.dtype == np.uint8
        if (name, mode) == ("line", "longest"):  # open_clip would resize it to a height of zero
            continue
        watched.encode_images(prepared[None])
        assert torch.equal(seen.pop()[0], theirs(picture)), name


def test_preprocessing_travels_to_other_processes() -> None:
    prepare = models.preprocess_of(models.parse("ViT-L-14/openai"))
    assert pickle.loads(pickle.dumps(prepare)) == prepare


def test_preprocessing_of_a_model_is_what_open_clip_sets(model: models.Model) -> None:
    import open_clip

    cfg = open_clip.get_model_preprocess_cfg(model._network)
    prepare = model.prepare
    assert prepare.size == tuple(cfg["size"]) == (32, 32)
    assert prepare.resize_mode == cfg["resize_mode"] == "longest"
    assert prepare.mean == tuple(cfg["mean"])
    assert prepare.std == tuple(cfg["std"])


def test_a_tag_brings_its_own_preprocessing() -> None:
    prepare = models.preprocess_of(models.parse("ViT-SO400M-14-SigLIP-384/webli"))
    assert prepare.size == (384, 384)
    assert prepare.resize_mode == "squash"
    assert prepare.mean == (0.5, 0.5, 0.5)


# vectors


def test_vectors_are_unit_and_the_same_each_time(model: models.Model) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    texts = ["a", "b c", "", "d", "e"]
    for encode in (lambda: model.encode_images(images), lambda: model.encode_texts(texts)):
        vectors = encode()
        assert vectors.shape == (5, model.dim)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert vectors.tobytes() == encode().tobytes()


def test_texts_and_their_ids_give_the_same_vectors(model: models.Model) -> None:
    texts = ["two red squares", "a blue circle"]
    assert (model.encode_texts(texts) == model.encode_texts(model.tokenize(texts))).all()


def test_images_of_another_shape_are_a_bug_of_the_caller(model: models.Model) -> None:
    with pytest.raises(ValueError, match="not uint8"):
        model.encode_images(np.zeros((1, 33, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("text", ["", "\x00\n", "é 😀 \u202e", "word " * 250_000, "x" * 1_000_000])
def test_any_caption_has_a_vector(model: models.Model, text: str) -> None:
    import open_clip

    assert np.isfinite(model.encode_texts([text])).all()
    clip = models.Model(model.spec, model._network, open_clip.get_tokenizer("RN50"), model.device, "fp32", "")
    assert clip.tokenize([text]).shape == (1, 77)


def test_a_low_precision_stays_near(weights: Path, model: models.Model) -> None:
    low = models.load(models.parse(str(weights)), device="cpu", precision="bf16")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert (np.sum(low.encode_images(images) * model.encode_images(images), axis=1) > 0.999).all()
    assert (np.sum(low.encode_texts(["a b"]) * model.encode_texts(["a b"]), axis=1) > 0.999).all()
    assert low.describe()["precision"] == "bf16"


def test_a_vector_that_is_not_finite_is_refused(model: models.Model) -> None:
    import torch

    with pytest.raises(InputError, match="not finite in fp32"):
        model._unit(torch.tensor([[1.0, float("inf")]]))


# weights


def test_a_file_says_what_it_is(weights: Path, model: models.Model) -> None:
    spec = models.parse(str(weights))
    assert spec.slug.startswith("small-clip-")
    assert spec.slug.endswith(model.sha256[:8])
    assert models.parse(spec.name) == spec
    told = model.describe()
    assert told["weights_sha256"] == model.sha256
    assert told["architecture"] == CONFIG["model_cfg"]
    assert told["preprocessing"]["resize_mode"] == "longest"
    assert json.loads(json.dumps(told))


def test_a_folder_as_open_clip_writes_it(tmp_path: Path, model: models.Model) -> None:
    write_weights(tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG))
    images = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    for name in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        again = models.load(models.parse(str(name)), device="cpu")
        assert again.encode_images(images).tobytes() == model.encode_images(images).tobytes()


def test_a_file_that_does_not_say_its_architecture(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="does not say its architecture") as raised:
        models.parse(str(path))
    assert "ARCH/FILE" in (raised.value.hint or "")


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match="configuration cannot be read"):
        models.parse(str(path))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture of open_clip's, small enough for a test."""
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "Small-16", CONFIG["model_cfg"])
    return "Small-16"


def test_weights_for_a_named_architecture(tmp_path: Path, small: str) -> None:
    path = write_weights(tmp_path / "w.pt")
    spec = models.parse(small, pretrained=path)
    assert models.parse(f"{small}/{path}") == spec == models.parse(spec.name)
    assert spec.slug.startswith("Small-16--w-")
    model = models.load(spec, device="cpu")
    assert model.encode_images(np.zeros((1, 32, 32, 3), dtype=np.uint8)).shape == (1, 24)
    with pytest.raises(InputError, match="no such weights file"):
        models.parse(small, pretrained=tmp_path / "nothing.pt")


def test_weights_of_another_architecture_are_refused(tmp_path: Path, small: str) -> None:
    import torch

    path = tmp_path / "other.pt"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"cannot be loaded .*Missing key") as raised:
        models.load(models.parse(small, pretrained=path), device="cpu")
    assert raised.value.exit_code == 2


def test_a_pickle_is_never_executed(tmp_path: Path, small: str) -> None:
    import torch

    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    path = tmp_path / "evil.pt"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(InputError, match=r"cannot be loaded \(a pickle that names \S+; nothing of it was run\)"):
        models.load(models.parse(small, pretrained=path), device="cpu")
    assert not mark.exists()


def test_random_weights_follow_the_seed(small: str) -> None:
    first, again, other = (models.load(models.parse(f"{small}/random:{seed}"), device="cpu") for seed in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256


def test_an_unknown_precision_or_device(weights: Path) -> None:
    spec = models.parse(str(weights))
    with pytest.raises(UnknownName, match="no precision 'fp8'"):
        models.load(spec, precision="fp8")
    with pytest.raises(InputError, match="device gpu") as raised:
        models.load(spec, device="gpu")
    assert "--device cpu" in (raised.value.hint or "")


# the hub


def test_no_network_names_the_host(small: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants
    from open_clip import pretrained

    monkeypatch.setitem(pretrained._PRETRAINED, small, {"web": pretrained._pcfg(hf_hub="org/small/")})
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot be fetched from http://127\.0\.0\.1:9") as raised:
        models.load(models.parse(f"{small}/web"), device="cpu")
    assert "--pretrained FILE" in (raised.value.hint or "")


def test_the_activation_is_the_one_of_the_tag(small: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from open_clip import pretrained
    from open_clip.transformer import QuickGELU

    path = write_weights(tmp_path / "w.safetensors")
    tags = {
        "quick": {**pretrained._pcfg(quick_gelu=True), "file": str(path)},
        "plain": {**pretrained._pcfg(), "file": str(path)},
    }
    monkeypatch.setitem(pretrained._PRETRAINED, small, tags)
    for tag, expected in (("quick", True), ("plain", False)):
        network = models.load(models.parse(f"{small}/{tag}"), device="cpu")._network
        assert any(isinstance(part, QuickGELU) for part in network.modules()) is expected


HUB_CLIENT = """
import json, sys
from open_clip import factory, pretrained
from curate import models
factory._MODEL_CONFIGS["Small-16"] = json.loads(sys.argv[1])
pretrained._PRETRAINED["Small-16"] = {"web": pretrained._pcfg(hf_hub="org/small/")}
print(models.load(models.parse("Small-16/web"), device="cpu").sha256)
"""


def test_weights_come_from_the_hub_that_is_named_and_then_from_its_cache(tmp_path: Path) -> None:
    body = write_weights(tmp_path / "w.safetensors").read_bytes()
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(f"{self.command} {self.path}")
            known = self.path.endswith("/org/small/resolve/main/open_clip_model.safetensors")
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body) if known else 0))
            if known:
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if known and self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    def client(endpoint: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
        }
        command = [sys.executable, "-c", HUB_CLIENT, json.dumps(CONFIG["model_cfg"])]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        fetched = client(f"http://127.0.0.1:{hub.server_port}")
        hub.shutdown()
    assert fetched.stdout.strip() == hashlib.sha256(body).hexdigest(), fetched.stderr
    assert any(line.startswith("GET /org/small/resolve/") for line in asked)
    cached = client("http://127.0.0.1:9")
    assert cached.stdout == fetched.stdout, cached.stderr


# words


def test_word_ids_are_fixed() -> None:
    words = models.WordTokenizer(vocab_size=4096, context_length=8)
    ids = words(["Two RED squares!", "", "a b c d e f g h i j"])
    assert ids.shape == (3, 8)
    assert ids[0].tolist() == [4094, 652, 3371, 240, 3041, 4095, 0, 0]
    assert ids[1].tolist() == [4094, 4095, 0, 0, 0, 0, 0, 0]
    assert ids[2, -1] == 4095


def test_a_spec_is_plain_data() -> None:
    spec = models.parse("tiny")
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert replace(spec, name="other") != spec


def test_a_palette_image_survives_jpeg_and_gif(model: models.Model) -> None:
    buffer = io.BytesIO()
    pictures()["palette"].save(buffer, "GIF")
    assert model.prepare(Image.open(buffer)).shape == (32, 32, 3)
