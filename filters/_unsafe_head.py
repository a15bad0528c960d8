"""LAION's NSFW heads: small networks over CLIP image embeddings, evaluated exactly, in NumPy."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from curate.filter_api import File, InputError

from . import _savedmodel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_EPSILON = 1e-7
_CATEGORY_DIM = re.compile(r"layer_with_weights-0/encoding_layers/(\d+)/")
_LAYER = re.compile(r"layer_with_weights-(\d+)/(kernel|bias|mean|variance)/")
_CATEGORY = re.compile(rb"-?\d+\.\d{6}")


@dataclass(frozen=True)
class Head:
    """A trained head; call it with embeddings (rows x dim) for the probability of unsafe content a row.

    AutoKeras took a few dimensions for categories: there the value, printed as `%f`, is replaced by its place
    in a vocabulary counted from 1, or 0. Then (x - mean) / max(sqrt(variance), 1e-7), dense layers with ReLU,
    the last one with a sigmoid. All vocabulary entries are float16 values, as the embeddings that LAION
    trained on were, so embeddings are rounded to float16 first.
    """

    mean: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]
    layers: tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...]
    places: Mapping[int, npt.NDArray[np.float32]]
    """Category dimension to the place of every float16, by its 16 bits."""

    @property
    def dim(self) -> int:
        """The length of the embeddings that it reads."""
        return len(self.mean)

    def __call__(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """p_unsafe, 0..1, of each row."""
        import numpy as np

        halves = np.ascontiguousarray(embeddings, dtype=np.float16)
        x = halves.astype(np.float32)
        bits = halves.view(np.uint16)
        for dim, place in self.places.items():
            x[:, dim] = place[bits[:, dim]]
        x = (x - self.mean) / self.deviation
        for kernel, bias in self.layers[:-1]:
            x = np.maximum(x @ kernel + bias, np.float32(0))
        kernel, bias = self.layers[-1]
        logit = (x @ kernel + bias)[:, 0].astype(np.float64)
        return np.exp(-np.logaddexp(0, -logit)).astype(np.float32)


def load(file: File) -> Head:
    """The head in `file`: a zipped SavedModel as LAION published it, or an npz of its arrays.

    The npz holds mean, variance, dense_I_kernel, dense_I_bias, categorical_dims and vocab_DIM.
    Raises InputError where the file is neither.
    """
    try:
        files = _savedmodel.members(file.read_bytes())
        if any(name.endswith("saved_model.pb") for name in files):
            return _from_saved_model(_savedmodel.parse(files))
        return _from_arrays(files)
    except ValueError as error:
        raise InputError(
            str(file.path),
            f"is not an NSFW head ({error})",
            hint="give the zip as LAION-AI/CLIP-based-NSFW-Detector publishes it, or an npz of its arrays",
        ) from error


def _from_saved_model(model: _savedmodel.SavedModel) -> Head:
    found: dict[tuple[int, str], npt.NDArray[np.float32]] = {}
    for key, tensor in model.tensors.items():
        if match := _LAYER.match(key):
            found[int(match[1]), match[2]] = tensor
    dims = sorted({int(match[1]) for key in model.keys if (match := _CATEGORY_DIM.match(key))})
    # one vocabulary a dimension, in the order of dimensions, among other lists of strings
    vocabularies = [words for words in model.strings if all(map(_CATEGORY.fullmatch, words))]
    if len(vocabularies) != len(dims):
        raise ValueError(f"{len(dims)} category dimensions with {len(vocabularies)} vocabularies")
    numbers = sorted(number for number, part in found if part == "kernel")
    norm = min((number for number, part in found if part == "mean"), default=-1)
    try:
        layers = [(found[number, "kernel"], found[number, "bias"]) for number in numbers]
        mean, variance = found[norm, "mean"], found[norm, "variance"]
    except KeyError as error:
        raise ValueError(f"layer {error.args[0][0]} has no {error.args[0][1]}") from error
    words = {
        dim: [word.decode() for word in vocabulary] for dim, vocabulary in zip(dims, vocabularies, strict=True)
    }
    return _checked(mean, variance, layers, words)


def _from_arrays(files: Mapping[str, bytes]) -> Head:
    arrays = {name.removesuffix(".npy"): _array(data) for name, data in files.items() if name.endswith(".npy")}
    try:
        count = sum(name.endswith("_kernel") for name in arrays)
        layers = [(arrays[f"dense_{i}_kernel"], arrays[f"dense_{i}_bias"]) for i in range(count)]
        words = {int(dim): list(arrays[f"vocab_{dim}"]) for dim in arrays["categorical_dims"].tolist()}
        return _checked(arrays["mean"], arrays["variance"], layers, words)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no array, or not as it should be: {error}") from error


def _array(data: bytes) -> npt.NDArray[Any]:
    """The array in a .npy file's bytes. Raises ValueError for whatever is no array of numbers or text."""
    import numpy as np

    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # its header goes through Python's tokenizer, which raises a dozen kinds
        raise ValueError(f"an array that cannot be read ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiuU":
        raise ValueError("an array of neither numbers nor text")
    return array


@cache
def _printed_halves() -> tuple[str, ...]:
    """Every float16 as `%f` prints it, in the order of its 16 bits."""
    import numpy as np

    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return tuple(f"{half:f}" for half in halves.astype(np.float64).tolist())


def _checked(
    mean: npt.NDArray[np.float32],
    variance: npt.NDArray[np.float32],
    layers: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]],
    words: Mapping[int, list[str]],
) -> Head:
    """The head of these parts. Raises ValueError where their shapes do not fit each other."""
    import numpy as np

    for array in (mean, variance, *(part for layer in layers for part in layer)):
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError("weights that are not finite float32 numbers")
    if mean.ndim != 1 or variance.shape != mean.shape or (variance < 0).any() or not layers:
        raise ValueError("no normalisation, or no dense layer")
    width = len(mean)
    for kernel, bias in layers:
        if kernel.ndim != 2 or kernel.shape[0] != width or bias.shape != kernel.shape[1:]:
            raise ValueError(f"a dense layer of shape {kernel.shape} after a width of {width}")
        width = kernel.shape[1]
    if width != 1:
        raise ValueError(f"{width} outputs, not one")
    if any(not 0 <= dim < len(mean) for dim in words):
        raise ValueError("a category dimension outside of the embedding")
    places = {}
    for dim, vocabulary in words.items():
        place_of = {word: place for place, word in enumerate(vocabulary, start=1)}
        places[dim] = np.array([place_of.get(text, 0) for text in _printed_halves()], np.float32)
    return Head(mean, np.maximum(np.sqrt(variance), np.float32(_EPSILON)), tuple(layers), places)
