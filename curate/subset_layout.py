"""What a subset's files are called, for those who write one and for those who train on it."""

from __future__ import annotations

MARK = "subset.json"
"""Marks the folder, and says what it is made of and whether that is done."""
INDEX = "index"
"""The folder in which a virtual subset has a table for each shard."""
TARS = "tars.parquet"
"""The tars of the pool that a virtual subset reads from."""
SIZES = "sizes.json"
"""Samples of each shard, beside the shards or in the index."""
LOOKS = 16
"""Tars that are looked at at once: on a network each look is a wait."""
