"""`curate`: from a pool of image-text pairs to a training set, with a reason for every pair.

The public names load on first use, so that `import curate` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["CurateError", "Pool", "Selection", "__version__", "load_filter", "open_pool"]

_HOMES = {
    "CurateError": ("curate.errors", "CurateError"),
    "Pool": ("curate.pool", "Pool"),
    "Selection": ("curate.selection", "Selection"),
    "load_filter": ("curate.plugins", "load"),
    "open_pool": ("curate.pool", "open_pool"),
}

if TYPE_CHECKING:
    from curate.errors import CurateError
    from curate.plugins import load as load_filter
    from curate.pool import Pool, open_pool
    from curate.selection import Selection


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
