"""What a computation may use: the cores of this process, a GPU if there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_NODES = ("/dev/nvidiactl", "/dev/nvhost-ctrl", "/dev/kfd", "/dev/dxg")
"""What the drivers of NVIDIA, its embedded boards, AMD, and Windows' Linux show where there is a GPU."""


def best() -> str:
    """`cuda` where torch can use a GPU, else `cpu`.

    torch takes seconds to be imported, so it is asked only where the system shows a GPU or it is here already.
    """
    if "torch" not in sys.modules and not any(Path(node).exists() for node in _NODES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
