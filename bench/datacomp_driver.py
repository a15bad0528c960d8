"""Runs one of DataComp's baselines with files of here in place of its downloads; started by `bench.datacomp`.

A script, not a module: its processes import it again, and so get the same replacements. `FILES` (JSON) names the
files by the names that DataComp gives its assets.
"""

from __future__ import annotations

import argparse
import json
import os
from types import SimpleNamespace

import baselines.apply_filter as theirs
import fasttext
import numpy as np

FILES = json.loads(os.environ["FILES"])
theirs.download = lambda name, root=None: FILES[name]
theirs.nltk.download = lambda name: True
if np.lib.NumpyVersion(np.__version__) >= "2.0.0":  # fastText asks for what NumPy 2 no longer gives
    fasttext.FastText.np = SimpleNamespace(array=lambda values, copy: np.asarray(values))

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option in ("name", "metadata_dir", "save_path"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--num_workers", type=int, required=True)
    theirs.apply_filter(parser.parse_args())
