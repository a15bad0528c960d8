"""A virtual subset as torch's DataLoader and webdataset's pipelines take it; this module alone needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

if TYPE_CHECKING:
    from curate.sampling.stream import Sample, VirtualSubset


class TorchSubset(IterableDataset["Sample"]):
    """The samples of a virtual subset as an IterableDataset.

    The epoch is the one that `set_epoch` was given last, in all workers, persistent ones too; as with torch's
    DistributedSampler, without it every epoch has the order of the first.
    """

    def __init__(self, subset: VirtualSubset) -> None:
        self.subset = subset
        # shared memory: workers that stay see the epoch that is set while they live
        self._epoch = torch.tensor(subset.epoch).share_memory_()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Sample]:
        self.subset.set_epoch(int(self._epoch))
        return iter(self.subset)

    def __len__(self) -> int:
        return len(self.subset)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch's."""
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `VirtualSubset.state_dict`."""
        return self.subset.state_dict()

    def state_after(self, batches: int, *, batch_size: int = 1, workers: int = 0) -> dict[str, Any]:
        """See `VirtualSubset.state_after`."""
        self.subset.set_epoch(int(self._epoch))
        return self.subset.state_after(batches, batch_size=batch_size, workers=workers)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `VirtualSubset.load_state_dict`."""
        self.subset.load_state_dict(state)
        self._epoch.fill_(self.subset.epoch)
