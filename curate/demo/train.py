"""Trains `tiny`, the model in the package: `python -m curate.demo.train`.

An open_clip architecture of some 4 million parameters (a small ResNet for 64 x 64 pixels, a small text transformer)
learns from rendered scenes and their captions with CLIP's loss. Minutes on two cores; the same seed, thread count
and versions give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate.demo import blemishes, scenes
from curate.models import CONFIG_KEY, TINY_WEIGHTS, Model, Preprocess, WordTokenizer

if TYPE_CHECKING:
    import torch

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 192,
        "vision_cfg": {"image_size": 64, "layers": [2, 2, 1, 1], "width": 24, "patch_size": None},
        "text_cfg": {"context_length": 28, "vocab_size": 4096, "width": 128, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {"size": 64, "resize_mode": "squash", "interpolation": "bicubic"},
    "tokenizer": "words",
}
HELD_OUT = 1 << 40
"""Seeds from here on are for tests and demos; training uses those below."""
_BLOCK = 250


def train(
    scene_count: int, epochs: int, seed: int, workers: int, threads: int, batch: int = 128, lr: float = 2e-3
) -> torch.nn.Module:
    """The trained network, in evaluation mode, its progress told on stderr."""
    # threads that wait give up their core: spinning, they would be many times slower beside anything else
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from open_clip.model import CLIP

    start = time.monotonic()
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    images = _rendered(scene_count, workers)
    _say(start, f"rendered {scene_count} scenes")
    network = CLIP(**CONFIG["model_cfg"]).to(memory_format=torch.channels_last)
    text = CONFIG["model_cfg"]["text_cfg"]
    tokenizer = WordTokenizer(text["vocab_size"], text["context_length"])
    steps = epochs * (scene_count // batch)
    decayed = [p for p in network.parameters() if p.ndim >= 2]
    other = [p for p in network.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}],
        lr=2e-3,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    network.train()
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(scene_count)
        losses = []
        for rows in order[: scene_count // batch * batch].reshape(-1, batch):
            captions = [scenes.caption(scenes.compose(int(row)), int(row) + epoch * HELD_OUT) for row in rows]
            pixels = _jittered(images[rows], np.random.default_rng((seed, epoch, int(rows[0]))))
            tokens = torch.from_numpy(tokenizer(captions))
            loss = _loss(network, pixels, tokens)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                network.logit_scale.clamp_(0, math.log(100))
            losses.append(loss.item())
            if len(losses) % 50 == 0:
                _say(start, f"epoch {epoch + 1} of {epochs}, step {len(losses)}: loss {np.mean(losses[-50:]):.3f}")
    trained: torch.nn.Module = network.eval()
    return trained


def _rate(step: int, steps: int) -> float:
    """Learning rate as a fraction of the highest: a short rise, then half a cosine."""
    rise = min(1.0, (step + 1) / (0.06 * steps + 1))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def _loss(network: Any, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn.functional import cross_entropy

    image = network.encode_image(pixels, normalize=True)
    text = network.encode_text(tokens, normalize=True)
    logits = network.logit_scale.exp() * image @ text.T
    target = torch.arange(len(logits))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def _jittered(images: npt.NDArray[np.uint8], rng: np.random.Generator) -> torch.Tensor:
    """Normalised pixels with another exposure and contrast for each image."""
    import torch

    prepare = Preprocess(size=(64, 64))
    shape = (len(images), 1, 1, 1)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, shape).astype(np.float32))
    lift = torch.from_numpy(rng.uniform(-0.06, 0.06, shape).astype(np.float32))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 * gain + lift
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (prepare.mean, prepare.std))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


# pictures


def _rendered(count: int, workers: int) -> npt.NDArray[np.uint8]:
    """The training pictures of the seeds 0 ... count, prepared, in order."""
    blocks = [range(first, min(count, first + _BLOCK)) for first in range(0, count, _BLOCK)]
    # spawned, since a fork of a process in which torch has threads may hang
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return np.concatenate(list(pool.map(_block, blocks)))


def _block(seeds: range) -> npt.NDArray[np.uint8]:
    prepare = Preprocess(size=(64, 64), resize_mode="squash")
    return np.stack([prepare(_blemished(seed)) for seed in seeds])


def _blemished(seed: int) -> Any:
    """A scene as the web might show it: some cropped, watermarked, recompressed or all three."""
    rng = random.Random(seed * 3 + 1)
    image, _ = scenes.render(seed, (80, 150))
    if rng.random() < 0.25:
        image = blemishes.cropped(image, rng, most=0.06)
    if rng.random() < 0.2:
        image = blemishes.watermarked(image, rng)
    if rng.random() < 0.4:
        image = blemishes.recompressed(image, rng)
    return image


# quality


def held_out_auc(model: Model, count: int, first: int = HELD_OUT) -> float:
    """AUC of matched against shuffled captions over fresh scenes, 0.5 being chance.

    Pairs whose captions are equal are left out. Pictures are of the demo's size, not of training's.
    """
    pairs = [scenes.render(first + k) for k in range(count)]
    images = model.encode_images(np.stack([model.prepare(image) for image, _ in pairs]))
    captions = [scene.caption for _, scene in pairs]
    texts = model.encode_texts(captions)
    scores = images @ texts.T
    matched = np.diag(scores)
    shuffled = np.array([[one != other for other in captions] for one in captions])
    return auc(matched, scores[shuffled])


def auc(high: npt.NDArray[Any], low: npt.NDArray[Any]) -> float:
    """The chance that a draw from `high` is above one from `low`, ties counting half."""
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")
    return float(below.mean() / 2 / len(low))


def save(network: torch.nn.Module, path: Path) -> None:
    """Writes float16 weights with their configuration in the header."""
    from safetensors.torch import save_file

    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    temporary = path.with_name(path.name + ".tmp")
    save_file(state, str(temporary), metadata={CONFIG_KEY: json.dumps(CONFIG, sort_keys=True)})
    temporary.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Trains, writes the weights and measures them; 0 if they are as good as promised."""
    from curate import models

    parser = argparse.ArgumentParser(prog="python -m curate.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=TINY_WEIGHTS)
    parser.add_argument("--scenes", type=int, default=40_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--threads", type=int, default=2, help="threads that train")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    save(
        train(given.scenes, given.epochs, given.seed, given.workers, given.threads, given.batch, given.lr),
        given.out,
    )
    quality = held_out_auc(models.load(models.parse(str(given.out)), device="cpu"), 1000)
    _say(start, f"{given.out}: AUC {quality:.4f} on held-out pairs")
    return 0 if quality >= 0.99 else 1


def _say(start: float, what: str) -> None:
    print(f"[{time.monotonic() - start:5.0f} s] {what}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
