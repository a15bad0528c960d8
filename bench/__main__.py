"""`python -m bench [NAME ...] [--out results.json] [--dir DIR]`: run the measurements, print a table.

Exits 1 where a promise is not kept, 0 otherwise. Wants a machine with nothing else to do: the load before each
measurement is printed beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
from importlib import metadata, util
from pathlib import Path
from typing import Any

from bench import Figure

GROUPS = ("cli", "download", "filter", "datacomp", "image_based", "subset", "embed")
NAMES = [n for n in GROUPS if util.find_spec(f"bench.{n}")]
LIBRARIES = (
    *("curate", "numpy", "polars", "pyarrow", "torch", "open_clip_torch", "faiss-cpu", "pillow"),
    *("opencv-python-headless", "aiohttp", "img2dataset"),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure what is named, print, and say by the exit code whether all promises are kept."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure the figures of docs/benchmarks.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(NAMES)}; all without")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    parser.add_argument("--dir", type=Path, help="where to make the data: the disk that is measured")
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.names) - set(NAMES)):
        parser.error(f"no measurement {', '.join(unknown)} (there are: {', '.join(NAMES)})")
    about = machine()
    show(f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB; {about['system']}")
    show(", ".join(f"{name} {version}" for name, version in about["versions"].items()) + "\n")
    show(f"{'figure':<40}{'median':>12}{'range':>18}{'target':>14}   load  command")
    figures: list[dict[str, Any]] = []
    for name in chosen.names or NAMES:
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", dir=chosen.dir) as folder:
            for figure in importlib.import_module(f"bench.{name}").measure(Path(folder)):
                show(line(figure, load))
                figures.append({**figure.as_json(), "load_before": load})
    if chosen.out:
        chosen.out.write_text(json.dumps({"machine": about, "figures": figures}, indent=1) + "\n")
    return int(any(f["met"] is False for f in figures))


def show(text: str) -> None:
    """A line of the table, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def line(figure: Figure, load: float) -> str:
    """One figure as a row of the table."""
    runs = figure.runs or (figure.value,)
    spread = f"{min(runs):.3g} to {max(runs):.3g}"
    target = ""
    if figure.target is not None:
        target = f"{'>=' if figure.at_least else '<='} {figure.target:g} {'ok' if figure.met else 'NOT'}"
    value = f"{figure.value:.3g} {figure.unit}"
    note = f" ({figure.note})" if figure.note else ""
    return f"{figure.name:<40}{value:>12}{spread:>18}{target:>14}   {load:4.1f}  {figure.command}{note}"


def machine() -> dict[str, Any]:
    """Processor, memory, system and the versions of what the figures depend on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
