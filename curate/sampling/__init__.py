"""For trainers: the samples of a virtual subset, streamed from the pool's own tars.

    from curate.sampling import VirtualSubset

    samples = VirtualSubset("subset")
    for sample in samples:  # {"__key__": ..., "jpg": b"...", "txt": b"...", "json": b"..."}
        ...

`VirtualSubset(...).torch()` is the same for a torch DataLoader or a webdataset pipeline, and
`python -m curate.sampling tar SUBSET SHARD` prints one shard as a tar, for what reads tars from a pipe. Only the
torch form imports torch.
"""

from __future__ import annotations

from curate.sampling.stream import VirtualSubset

__all__ = ["VirtualSubset"]
