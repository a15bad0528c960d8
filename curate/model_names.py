"""What the name of a model means, known without importing torch.

A name is checked while a command line is parsed, and an image is prepared in processes that never load a
model, so this module reads open_clip's tables from its files. `curate.models` is the face of both.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import json
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from curate.errors import InputError, UnknownName, no_such

TINY = "tiny"
TINY_WEIGHTS = Path(__file__).parent / "weights" / "tiny.safetensors"
CONFIG_KEY = "open_clip_config"
"""Where a safetensors header keeps what open_clip keeps in `open_clip_config.json`."""
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True)
class ModelSpec:
    """One model, named without loading it; `parse(spec.name) == spec`."""

    name: str
    arch: str
    """open_clip's architecture; the file's stem where the file brings its own."""
    pretrained: str
    """open_clip's tag, `random:SEED`, or empty where `path` holds the weights."""
    path: Path | None
    """The weights file, or None where open_clip knows where to get them."""
    slug: str
    """The name of the model's folder under `embeddings/`; of a file it holds 8 digits of its sha256."""
    self_described: bool = False
    """The file brings its architecture with it."""


def parse(name: str, pretrained: Path | None = None) -> ModelSpec:
    """The model that `name` stands for, `pretrained` being a file with weights for a named architecture.

    Raises UnknownName for an architecture or tag that is not there, InputError for a name without weights.
    """
    if name == TINY and pretrained is None:
        return ModelSpec(TINY, TINY, "", TINY_WEIGHTS, TINY, self_described=True)
    arch, slash, tag = name.partition("/")
    known = _architectures()
    if arch in known:
        if pretrained is not None:
            if tag:
                raise InputError(
                    f"model {name}", f"weights are named twice ({tag}, {pretrained})", hint=f"write {arch}"
                )
            return _arch_file(arch, pretrained)
        if not tag:
            found = sorted(tags(arch))
            example = f"{arch}/{found[0]}" if found else f"{arch}/FILE"
            raise InputError(f"model {name}", "no weights are named", hint=f"write for instance {example}")
        return _arch_tag(arch, tag)
    path = Path(name)
    if path.exists() and pretrained is None:
        return _own_file(name, path)
    if path.suffix in _WEIGHT_SUFFIXES:
        raise no_such(path, "file", like=_is_weights, hint="give a weights file or ARCH/PRETRAINED")
    if slash or pretrained is not None:
        raise UnknownName(f"model {name}", "architecture", arch, known)
    raise UnknownName(f"model {name}", "model", name, [TINY, *known], hint="write ARCH/PRETRAINED, tiny or a file")


def _arch_tag(arch: str, tag: str) -> ModelSpec:
    if random := re.fullmatch(r"random(?::(\d+))?", tag):
        seed = int(random[1] or 0)
        return ModelSpec(f"{arch}/random:{seed}", arch, f"random:{seed}", None, f"{arch}--random-{seed}")
    known = tags(arch)
    clean = tag.lower().replace("-", "_")
    if clean in known:
        return ModelSpec(f"{arch}/{clean}", arch, clean, None, f"{arch}--{clean}")
    if Path(tag).is_file():
        return _arch_file(arch, Path(tag))
    raise UnknownName(f"model {arch}/{tag}", f"weights for {arch}", tag, known)


def _arch_file(arch: str, path: Path) -> ModelSpec:
    if not path.is_file():
        raise no_such(path, "weights file", like=_is_weights, hint="give --pretrained FILE")
    return ModelSpec(f"{arch}/{path}", arch, "", path, f"{arch}--{_safe(path.stem)}-{digest(path)[:8]}")


def _own_file(name: str, path: Path) -> ModelSpec:
    weights = _weights_in(path) if path.is_dir() else path
    own_config(weights)
    stem = path.name if path.is_dir() else path.stem
    slug = f"{_safe(stem)}-{digest(weights)[:8]}"
    return ModelSpec(name, stem, "", weights, slug, self_described=True)


def _weights_in(folder: Path) -> Path:
    """The weights file of a folder in the form that open_clip writes to a hub."""
    found = sorted(p for p in folder.iterdir() if p.suffix in _WEIGHT_SUFFIXES)
    usual = [p for p in found if p.stem in ("open_clip_model", "open_clip_pytorch_model")]
    usual.sort(key=lambda p: p.suffix != ".safetensors")
    if usual or len(found) == 1:
        return (usual or found)[0]
    listed = ", ".join(p.name for p in found) or "none"
    raise InputError(f"model {folder}", f"not one weights file (found: {listed})", hint="name the file itself")


def _is_weights(path: Path) -> bool:
    return path.suffix in _WEIGHT_SUFFIXES


def _safe(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-") or "model"


def digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_of(path: Path, size: int, mtime_ns: int) -> str:
    # size and mtime are there for the cache: a file that changed is read again
    with path.open("rb") as file:
        sha256 = hashlib.sha256()
        while block := file.read(1 << 22):
            sha256.update(block)
    return sha256.hexdigest()


def _architectures() -> list[str]:
    """Every architecture's name: those registered if open_clip is loaded, else those of its folder."""
    if "open_clip" in sys.modules:
        import open_clip

        return list(open_clip.list_models())
    return sorted(p.stem for p in (_open_clip_folder() / "model_configs").glob("*.json"))


def _model_config(arch: str) -> dict[str, Any]:
    if "open_clip" in sys.modules:
        import open_clip

        config: dict[str, Any] = open_clip.get_model_config(arch)
        return config
    text = (_open_clip_folder() / "model_configs" / f"{arch}.json").read_text(encoding="utf-8")
    return _json(text)


def tags(arch: str) -> dict[str, dict[str, Any]]:
    """Tag to settings (where the weights are, mean, std, resize mode, quick_gelu) of one architecture."""
    if "open_clip" in sys.modules:
        from open_clip import pretrained

        table = pretrained._PRETRAINED
    else:
        table = _pretrained_table()
    found: dict[str, dict[str, Any]] = table.get(arch, {})
    return found


def _open_clip_folder() -> Path:
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise InputError("open_clip", "is not installed", hint="pip install open_clip_torch")
    return Path(found.submodule_search_locations[0])


@lru_cache(maxsize=1)
def _pretrained_table() -> dict[str, dict[str, dict[str, Any]]]:
    """open_clip's table of weights, run from its source without what it would import.

    Importing `open_clip.pretrained` costs seconds for torch, and a name must be checked in milliseconds.
    Where the file is not as expected, the import is made after all.
    """
    folder = _open_clip_folder()

    def run(file: str) -> dict[str, Any]:
        scope = {"__name__": f"{__name__}.{file}", "__builtins__": {**vars(builtins), "__import__": lend}}
        exec(compile((folder / f"{file}.py").read_text(encoding="utf-8"), file, "exec"), scope)
        return scope

    def lend(name: str, *scope: Any, **rest: Any) -> Any:
        level = scope[3] if len(scope) > 3 else rest.get("level", 0)
        if level:
            return SimpleNamespace(**run(name))
        if name.split(".")[0] in ("safetensors", "huggingface_hub", "torch"):
            raise ImportError(name)
        return __import__(name, *scope, **rest)

    try:
        table: dict[str, dict[str, dict[str, Any]]] = run("pretrained")["_PRETRAINED"]
    except (OSError, ImportError, KeyError):
        from open_clip import pretrained

        table = pretrained._PRETRAINED
    return table


def _json(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def own_config(weights: Path) -> dict[str, Any]:
    """What a weights file says of itself: `model_cfg`, `preprocess_cfg` and, for ours, `tokenizer`."""
    where = f"model {weights}"
    hint = f"give ARCH/FILE, or put {CONFIG_KEY} into the file's metadata or {CONFIG_KEY}.json beside it"
    beside = weights.with_name(f"{CONFIG_KEY}.json")
    text: str | None = None
    try:
        if weights.suffix == ".safetensors":
            text = _header(weights).get(CONFIG_KEY)
        if text is None and beside.is_file():
            text = beside.read_text(encoding="utf-8")
        config = _json(text) if text is not None else {}
    except FileNotFoundError:
        raise InputError(where, "no such file", hint="give a weights file or ARCH/PRETRAINED") from None
    except (ValueError, OSError) as error:
        raise InputError(where, f"its configuration cannot be read ({error})", hint=hint) from error
    if not isinstance(config.get("model_cfg"), dict):
        raise InputError(where, "does not say its architecture", hint=hint)
    return config


def _header(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file, read without the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(100_000_000, path.stat().st_size):
            raise ValueError("not a safetensors file")
        metadata = _json(file.read(length).decode("utf-8")).get("__metadata__", {})
    return {str(k): str(v) for k, v in metadata.items()}


def configs(spec: ModelSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Architecture and preprocessing settings, both as open_clip writes them."""
    if spec.self_described and spec.path is not None:
        own = own_config(spec.path)
        return own["model_cfg"], own.get("preprocess_cfg", {})
    return _model_config(spec.arch), tags(spec.arch).get(spec.pretrained, {})
