"""CLIP models: loading one, and the vectors that it gives.

A model is written `ARCH/PRETRAINED` in open_clip's names (`ViT-L-14/openai`), `ARCH/FILE` (weights of a named
architecture), `ARCH/random[:SEED]` (for benchmarks), `tiny` (the model shipped with this package) or as a
weights file or folder that carries its own `open_clip_config`. This module imports torch only to load one:
`parse`, `preprocess_of` and a `Preprocess` work in processes without it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curate import devices
from curate.errors import InputError, UnknownName
from curate.model_names import (
    CONFIG_KEY,
    TINY,
    TINY_WEIGHTS,
    ModelSpec,
    configs,
    digest,
    own_config,
    parse,
    tags,
)
from curate.preprocess import Preprocess, preprocess_of

if TYPE_CHECKING:
    import torch

__all__ = [
    "CONFIG_KEY",
    "PRECISIONS",
    "TINY",
    "TINY_WEIGHTS",
    "Model",
    "ModelSpec",
    "Preprocess",
    "WordTokenizer",
    "identity",
    "load",
    "parse",
    "preprocess_of",
]

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
_LONGEST_CAPTION = 8192
"""Characters of a caption that are read: more than a context holds, and a bound on the work."""


class WordTokenizer:
    """Captions to ids (n, context_length) with no vocabulary file: a word's id is its CRC-32, folded.

    Lower-cased runs of letters, single digits and single other signs are words. 0 pads; the two highest ids
    begin and end a caption, so that open_clip finds its end as the highest id. Two words may share an id:
    with 4,096 ids this is a tokenizer for the few hundred words that `tiny` knows, and for nothing else.
    """

    def __init__(self, vocab_size: int, context_length: int) -> None:
        self.begin, self.end = vocab_size - 2, vocab_size - 1
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        ids = np.zeros((len(texts), self.context_length), dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            words = re.findall(r"[^\W\d_]+|\d|[^\w\s]", text.casefold())[: self.context_length - 2]
            row[: len(words) + 2] = [self.begin, *map(self.word, words), self.end]
        return ids

    def word(self, word: str) -> int:
        """The id of one lower-cased word."""
        # started at 1, since at 0 two words of the scenes would meet in one id of 4,096
        return 1 + zlib.crc32(word.encode("utf-8", "replace"), 1) % (self.begin - 1)


def _shorten(text: str) -> str:
    """A caption whose length is bounded, the same to any tokenizer unless it is monstrous."""
    return text if len(text) <= _LONGEST_CAPTION else " ".join(text.split())[:_LONGEST_CAPTION]


class Model:
    """A loaded model on a device. `load` makes it."""

    def __init__(
        self,
        spec: ModelSpec,
        network: torch.nn.Module,
        tokenizer: Any,
        device: torch.device,
        precision: str,
        sha256: str,
    ) -> None:
        self._described = _description(spec, sha256)
        self.spec = spec
        self.sha256 = sha256
        """Digest of the weights file, or of the tensors in name order where there is no file."""
        self.prepare = preprocess_of(spec)
        self.precision = precision
        self.device = device
        self.dim = int(self._described["dim"])
        self.image_size = self.prepare.size
        self.context_length = int(tokenizer.context_length)
        self._network = network
        self._tokenizer = tokenizer
        self._dtype = _dtype(precision)

    def describe(self) -> dict[str, Any]:
        """What `model.json` keeps of the model: everything that its vectors depend on, as it is read back."""
        return {
            "name": self.spec.name,
            **self._described,
            "context_length": self.context_length,
            "precision": self.precision,
        }

    def tokenize(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Ids, (n, context_length); what is over the context is cut."""
        ids = self._tokenizer([_shorten(text) for text in texts])
        return np.asarray(ids, dtype=np.int64).reshape(len(texts), -1)

    def encode_images(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Unit vectors (n, dim) of prepared images (n, H, W, 3). The same batch gives the same bytes."""
        import torch

        if images.ndim != 4 or images.shape[1:] != (*self.image_size, 3) or images.dtype != np.uint8:
            raise ValueError(f"images are {images.shape} {images.dtype}, not uint8 (n, {self.image_size}, 3)")
        with torch.inference_mode():
            pixels = torch.from_numpy(_writeable(images)).to(self.device)
            pixels = pixels.permute(0, 3, 1, 2).contiguous().float()
            # a tensor on the device, since CUDA divides by a plain number less exactly than the CPU
            pixels.div_(torch.tensor(255.0, device=self.device))
            pixels.sub_(self._channels(self.prepare.mean)).div_(self._channels(self.prepare.std))
            return self._unit(self._network.encode_image(pixels.to(self._dtype)))  # type: ignore[operator]

    def encode_texts(self, texts: Sequence[str] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Unit vectors (n, dim) of captions or of their ids. The same batch gives the same bytes."""
        import torch

        ids = texts if isinstance(texts, np.ndarray) else self.tokenize(texts)
        with torch.inference_mode():
            tokens = torch.from_numpy(_writeable(ids)).to(self.device)
            return self._unit(self._network.encode_text(tokens))  # type: ignore[operator]

    def _channels(self, values: Sequence[float]) -> torch.Tensor:
        import torch

        return torch.tensor(values, dtype=torch.float32, device=self.device).view(3, 1, 1)

    def _unit(self, features: torch.Tensor) -> npt.NDArray[np.float32]:
        import torch

        unit = torch.nn.functional.normalize(features.float(), dim=-1)
        vectors: npt.NDArray[np.float32] = unit.cpu().numpy()
        if not np.isfinite(vectors).all():
            raise InputError(
                f"model {self.spec.name}",
                f"gave a vector that is not finite in {self.precision}",
                hint="use --precision fp32" if self.precision != "fp32" else "the weights may be damaged",
            )
        return vectors


def _description(spec: ModelSpec, sha256: str) -> dict[str, Any]:
    model, _ = configs(spec)
    preprocessing = asdict(preprocess_of(spec))
    return {
        "architecture": model,
        "pretrained": spec.pretrained or (spec.path.name if spec.path else ""),
        "weights_sha256": sha256,
        "dim": int(model["embed_dim"]),
        "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in preprocessing.items()},
    }


def identity(spec: ModelSpec) -> dict[str, Any] | None:
    """What `Model.describe` says of architecture, weights and preprocessing, without loading the model.

    The weights are hashed, and fetched first where they are not here. None for random ones, whose digest is
    that of what was made. Raises InputError where they cannot be had.
    """
    weights = spec.path or _fetched(spec)
    if weights is None or not weights.is_file():
        return None
    return _description(spec, digest(weights))


def _writeable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # torch warns of memory that it could not write to, though nothing here writes
    return array if array.flags.writeable else array.copy()


def _dtype(precision: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def load(spec: ModelSpec, device: str = "auto", precision: str = "auto") -> Model:
    """The model with its weights on `device` (`auto`: the GPU if there is one).

    `auto` precision is fp32 on a CPU and fp16 on a GPU. Weights that are not here are fetched by open_clip,
    which honours HF_ENDPOINT and its cache. Raises InputError where they cannot be had or do not fit the
    architecture.
    """
    import torch

    if precision not in PRECISIONS:
        raise UnknownName("precision", "precision", precision, PRECISIONS)
    where = _device(device)
    if precision == "auto":
        precision = "fp32" if where.type == "cpu" else "fp16"
    weights = spec.path or _fetched(spec)
    if weights is not None and not weights.is_file():
        raise InputError(f"model {spec.name}", f"no such weights file ({weights})")
    seed = int(spec.pretrained.partition(":")[2] or 0) if weights is None else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, tokenizer = _built(spec, weights, where, precision)
    network.eval()
    sha256 = digest(weights) if weights is not None else _state_digest(network)
    return Model(spec, network, tokenizer, where, precision, sha256)


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device(devices.best())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        what = str(error).splitlines()[0]
        raise InputError(f"device {name}", what, hint="use --device cpu, or auto") from error
    return device


def _fetched(spec: ModelSpec) -> Path | None:
    """The file of a tag's weights, from the cache or a hub as open_clip has it; None for random weights."""
    if spec.pretrained.startswith("random:"):
        return None
    from huggingface_hub import constants
    from open_clip.pretrained import download_pretrained

    settings = tags(spec.arch)[spec.pretrained]
    hub = bool(settings.get("hf_hub"))
    source = constants.ENDPOINT if hub else settings.get("url", "")
    try:
        if hub:
            if cached := _cached(settings["hf_hub"]):
                return cached
            _reach(source)
        return Path(download_pretrained(settings))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(getattr(error, "reason", error)).strip().splitlines()[-1:] or [type(error).__name__]
        raise InputError(
            f"model {spec.name}",
            f"its weights cannot be fetched from {source} ({reason[0]})",
            hint=f"with a file of them: --model {spec.arch} --pretrained FILE",
        ) from error


def _cached(location: str) -> Path | None:
    """The weights of a hub entry (`org/name/` or `org/name/file`) if the hub's cache has them."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, file = location.rpartition("/")
    usual = [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    for name in [str(Path(file).with_suffix(".safetensors")), file] if file else usual:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _reach(url: str) -> None:
    """Raises OSError where a host does not answer, at once: the hub's client would try for a minute."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=15):
            pass
    except urllib.error.HTTPError as answer:
        answer.close()


def _built(
    spec: ModelSpec, weights: Path | None, device: torch.device, precision: str
) -> tuple[torch.nn.Module, Any]:
    import open_clip

    common = {"device": device, "precision": precision, "weights_only": True, "pretrained_text": False}
    try:
        if spec.self_described and weights is not None:
            with _as_folder(weights) as folder:
                network = open_clip.create_model(f"local-dir:{folder}", **common)
                tokenizer = _tokenizer_of(spec) or open_clip.get_tokenizer(f"local-dir:{folder}")
            return network, tokenizer
        network = open_clip.create_model(
            spec.arch,
            pretrained=str(weights) if weights is not None else None,
            # open_clip only warns where a tag was trained with the other activation
            force_quick_gelu=bool(tags(spec.arch).get(spec.pretrained, {}).get("quick_gelu")),
            **common,
        )
        return network, open_clip.get_tokenizer(spec.arch)
    except (
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        ImportError,
        OSError,
        pickle.UnpicklingError,
    ) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = " ".join(lines[:3])
        if isinstance(error, pickle.UnpicklingError):  # whose text ends with the advice to run the pickle after all
            named = re.search(r"GLOBAL (\S+)", str(error))
            held = f"names {named[1]}" if named else "holds more than tensors"
            why = f"a pickle that {held}; nothing of it was run"
        raise InputError(
            f"model {spec.name}",
            f"cannot be loaded ({why})",
            hint="the weights must be a plain state dict of exactly this architecture",
        ) from error


def _tokenizer_of(spec: ModelSpec) -> WordTokenizer | None:
    """Our own tokenizer, where the weights ask for it."""
    if spec.path is None or own_config(spec.path).get("tokenizer") != "words":
        return None
    text = configs(spec)[0]["text_cfg"]
    return WordTokenizer(text["vocab_size"], text["context_length"])


@contextmanager
def _as_folder(weights: Path) -> Iterator[Path]:
    """A folder as open_clip loads one: the configuration, these weights alone, and the tokenizer's files."""
    with tempfile.TemporaryDirectory(prefix="curate-model-") as name:
        folder = Path(name)
        for other in weights.parent.iterdir():
            if other.is_file() and other.suffix in (".json", ".txt", ".model"):
                shutil.copyfile(other, folder / other.name)
        (folder / f"{CONFIG_KEY}.json").write_text(json.dumps(own_config(weights)), encoding="utf-8")
        suffix = ".safetensors" if weights.suffix == ".safetensors" else ".bin"
        (folder / f"open_clip_pytorch_model{suffix}").symlink_to(weights.resolve())
        yield folder


def _state_digest(network: torch.nn.Module) -> str:
    sha256 = hashlib.sha256()
    state: Mapping[str, torch.Tensor] = network.state_dict()
    for name in sorted(state):
        sha256.update(name.encode())
        sha256.update(state[name].detach().cpu().float().numpy().tobytes())
    return sha256.hexdigest()
