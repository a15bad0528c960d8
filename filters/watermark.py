"""Watermarked images, by LAION's detector over pixels."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from curate.filter_api import (
    Batch,
    Facts,
    Figures,
    File,
    Images,
    InputError,
    Judge,
    Need,
    Score,
    Scorer,
    asset,
    setting,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt
    import polars as pl
    import torch
    from PIL.Image import Image

_SIDE = 256
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)

_HINT = "give watermark_model_v1.pt of LAION-AI/LAION-5B-WatermarkDetection, or one of its form"


@dataclass(frozen=True)
class WatermarkScore(Scorer):
    """The probability that the image carries a visible watermark, 0..1, by LAION's EfficientNet-B3."""

    name: ClassVar[str] = "watermark"
    version: ClassVar[int] = 1
    columns: ClassVar[Mapping[str, str]] = {"p_watermark": "Float32"}
    rows: ClassVar[int] = 64

    weights: File | None
    """A state dict, watermark_model_v1.pt as published or one of its form; None until it is settled."""

    def needs(self) -> list[Need]:
        return [Images()]

    def prepare(self, image: Image) -> npt.NDArray[np.uint8]:
        """The whole image squeezed to 256 x 256 RGB, as in training: bilinear, no crop."""
        import numpy as np
        from PIL.Image import Resampling

        return np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Resampling.BILINEAR))

    def open(self, device: str) -> Any:
        import torch

        assert self.weights is not None
        network = load_network(self.weights).to(device)
        mean = torch.tensor(_MEAN, device=device).view(3, 1, 1)
        deviation = torch.tensor(_DEVIATION, device=device).view(3, 1, 1)

        def compute(batch: Batch) -> dict[str, Any]:
            pixels = torch.tensor(batch.images, device=device).permute(0, 3, 1, 2)
            with torch.inference_mode():
                logits = network((pixels.float() / 255 - mean) / deviation)
                return {"p_watermark": logits.softmax(dim=1)[:, 0].float().cpu().numpy()}

        return compute


def load_network(weights: File) -> torch.nn.Module:
    """The detector with these weights, on the CPU, in evaluation mode: N x 3 x 256 x 256 to N x 2 logits.

    The first logit is for a watermark, the second for none. Nothing that the file pickles is run.
    Raises InputError where it is not a state dict of exactly this network.
    """
    import torch

    network = build_network()
    try:
        state = torch.load(io.BytesIO(weights.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # a restricted unpickler raises whatever its bytes lead it to
        # torch's own sentences end with the advice to run the pickle after all
        named = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it names {named[1]}" if named else type(error).__name__
        what = f"is not a file of tensors alone ({why}); nothing of it was run"
        raise InputError(str(weights.path), what, hint=_HINT) from error
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            str(weights.path),
            f"is not a state dict of LAION's watermark detector ({_brief(error)})",
            hint=_HINT,
        ) from error
    return network.eval()


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def build_network() -> torch.nn.Module:
    """The detector's architecture, untrained: EfficientNet-B3 with a head of three dense layers."""
    import timm
    from torch import nn

    network = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
    network.classifier = nn.Sequential(
        nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
    )
    assert isinstance(network, nn.Module)
    return network


@dataclass(frozen=True)
class Watermark(Judge):
    """Keep samples whose image probably has no visible watermark: p_watermark at most `max` (0..1).

    p_watermark is LAION's watermark detector (LAION-5B, arXiv 2210.08402) on the image squeezed to 256 x 256
    pixels. LAION tagged 6.1 % of LAION-2B-en above 0.8; lower thresholds also take images with much text.
    """

    reasons: ClassVar[Mapping[str, str]] = {
        "watermark": "the image has a watermark with probability {value:.3f}, over {max}"
    }

    max: float = setting(0.8, "greatest p_watermark to keep, 0..1")
    weights: File | None = setting(None, "the detector's state dict; default: LAION's watermark_model_v1.pt")

    def __post_init__(self) -> None:
        if not 0 <= self.max <= 1:
            raise ValueError(f"max is a probability, 0..1 (found {self.max})")

    def settle(self, pool: Facts) -> Watermark:
        return self if self.weights is not None else replace(self, weights=asset("watermark"))

    def needs(self) -> list[Need]:
        return [Score(WatermarkScore(self.weights))]

    def keep(self, pool: Figures) -> dict[str, pl.Expr]:
        import polars as pl

        return {"watermark": pl.col("p_watermark") <= pl.lit(self.max, pl.Float32)}

    def values(self) -> dict[str, pl.Expr]:
        import polars as pl

        return {"watermark": pl.col("p_watermark")}
