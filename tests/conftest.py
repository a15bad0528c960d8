"""What all tests share: a clean environment, and no network."""

from __future__ import annotations

import os

import pytest

# before any test imports img2dataset or huggingface_hub: neither may ask the network
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """`CURATE_*` variables of whoever runs the tests change nothing."""
    for name in [n for n in os.environ if n.startswith("CURATE_")]:
        monkeypatch.delenv(name)
