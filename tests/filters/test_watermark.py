from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torchvision import transforms

from curate.errors import InputError
from curate.filter_api import File, Images, Score, settings_of
from curate.filters.watermark import Watermark, WatermarkScore, build_network, load_network

from .fakes import FakeFacts, batch, judged

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> File:
    """Random weights in the form of LAION's checkpoint: a plain state dict."""
    torch.manual_seed(0)
    network = build_network()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics of their own, so that eval mode is seen
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[operator, union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[operator, union-attr]
    path = tmp_path_factory.mktemp("weights") / "watermark.pt"
    torch.save(network.state_dict(), path)
    return File.at(path)


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(300, 200), (256, 256), (31, 700)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


def test_as_laions_example_computes_it(weights: File) -> None:
    scorer = WatermarkScore(weights)
    images = pictures()
    prepared = [scorer.prepare(image) for image in images]
    got = scorer.open("cpu")(batch(3, images=prepared))["p_watermark"]

    reference = build_network()
    reference.load_state_dict(torch.load(weights.path, weights_only=True))
    reference.eval()
    preprocess = transforms.Compose(
        [
            transforms.Resize((256, 256)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with torch.no_grad():
        logits = reference(torch.stack([preprocess(image) for image in images]))
    want = torch.softmax(logits, dim=1)[:, 0].numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert len(set(got.tolist())) == 3


def test_the_head_is_three_dense_layers() -> None:
    names = {name: tuple(t.shape) for name, t in build_network().state_dict().items() if "classifier" in name}
    assert names == {
        "classifier.0.weight": (625, 1536),
        "classifier.0.bias": (625,),
        "classifier.3.weight": (256, 625),
        "classifier.3.bias": (256,),
        "classifier.5.weight": (2, 256),
        "classifier.5.bias": (2,),
    }


def test_prepare_is_the_whole_picture_in_small() -> None:
    scorer = WatermarkScore(File(Path("none"), ""))
    left = Image.new("RGB", (1000, 100))
    left.paste((255, 0, 0), (0, 0, 500, 100))
    small = scorer.prepare(left)
    assert small.shape == (256, 256, 3)
    assert small.dtype == np.uint8
    assert (small[:, :126] == (255, 0, 0)).all()
    assert (small[:, 130:] == 0).all()
    grey = scorer.prepare(Image.new("L", (5, 5), 7))
    assert (grey == 7).all()
    assert scorer.needs() == [Images()]


def saved(tmp_path: Path, thing: Any) -> File:
    path = tmp_path / "w.pt"
    torch.save(thing, path)
    return File.at(path)


def test_a_checkpoint_of_another_form_is_refused(weights: File, tmp_path: Path) -> None:
    state = torch.load(weights.path, weights_only=True)
    less = dict(list(state.items())[1:])
    for thing in (less, state | {"more": torch.zeros(1)}, [1, 2], {"model": state}):
        with pytest.raises(InputError, match=r"w\.pt: is not a state dict of LAION's watermark detector"):
            load_network(saved(tmp_path, thing))


class Trap:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was run",)


def test_nothing_pickled_is_run(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"w\.pt: is not a file of tensors alone \(it names \S+\); nothing of"
    ) as got:
        load_network(saved(tmp_path, {"a": Trap()}))
    assert "weights_only" not in str(got.value)
    for content in (b"", b"garbage", pickle.dumps({"a": Trap()}), bytes(100)):
        path = tmp_path / "x.pt"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.pt: is not a file of tensors alone"):
            load_network(File.at(path))


def test_judge(weights: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame({"p_watermark": pl.Series([0.8, 0.801, 0.1, None], dtype=pl.Float32)})
    assert judged(Watermark(), frame) == ["kept", "watermark", "kept", None]
    said = Watermark.reasons["watermark"].format(**settings_of(Watermark()), value=0.91)
    assert said == "the image has a watermark with probability 0.910, over 0.8"
    assert Watermark(weights=weights).settle(FakeFacts()).needs() == [Score(WatermarkScore(weights))]
    monkeypatch.setenv("CURATE_ASSETS", str(tmp_path))
    (tmp_path / "watermark_model_v1.pt").write_bytes(b"other")
    with pytest.raises(InputError, match="is not the published watermark"):
        Watermark().settle(FakeFacts())
    with pytest.raises(ValueError, match="max is a probability"):
        Watermark(max=-1)


def test_prepare_on_laions_examples_is_torchvisions() -> None:
    folder = SHARED / "data" / "watermark-examples"
    if not folder.exists():
        pytest.skip("no watermark examples in ../shared")
    resize = transforms.Resize((256, 256))
    for path in folder.glob("*.png"):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        want = np.asarray(resize(image))
        np.testing.assert_array_equal(WatermarkScore(File(path, "")).prepare(image), want)


def test_prepare_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from PIL import Image\n"
        "from curate.filter_api import File\n"
        "from curate.filters.watermark import WatermarkScore\n"
        "WatermarkScore(File(Path('none'), '')).prepare(Image.new('RGB', (9, 9)))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
