"""Values that a class reads back from the device where they decide a size or a branch: the emulated device has none, so they are said here.

As calibration.trainer.patches does for the trainer. Nothing else of a forward is changed. Imports torch.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch


@contextlib.contextmanager
def answering(lists: Sequence[int] = (), masked: Sequence[int] = (), all_true: bool = False, rounds: int = 1) -> Iterator[None]:
    """Inside, a CUDA tensor's `tolist()` gives `lists`; indexing by a CUDA boolean mask gives so many rows, `masked` in turn, over and
    over; `torch.all` of a CUDA tensor is true (`all_true`). Each only where it is given.

    `rounds`: how often all of `masked` come for each sample. What is made between is labelled with the sample's number, so that recordings
    of batches of two, three and four are laid on top of each other sample by sample.
    """
    kept, calls = (torch.Tensor.tolist, torch.Tensor.__getitem__, torch.all), itertools.count()

    def tolist(self: Any) -> Any:
        return list(lists) if self.is_cuda and lists else kept[0](self)

    def getitem(self: Any, index: Any) -> Any:
        if masked and torch.is_tensor(index) and index.dtype == torch.bool and index.is_cuda:
            sample, place = divmod(next(calls), rounds * len(masked))
            torch._C._cuda_setMemoryMetadata(f"transformer|sample {sample}")
            index.nonzero()  # its scratch memory
            found = kept[1](self, torch.zeros(masked[place % len(masked)], dtype=torch.int64, device=self.device))
            if place == rounds * len(masked) - 1:
                torch._C._cuda_setMemoryMetadata("transformer|forward")
            return found
        return kept[1](self, index)

    def all_of(given: Any, *a: Any, **k: Any) -> Any:
        found = kept[2](given, *a, **k)
        return torch.tensor(True) if given.is_cuda and all_true else found

    torch.Tensor.tolist, torch.Tensor.__getitem__, torch.all = tolist, getitem, all_of
    try:
        yield
    finally:
        torch.Tensor.tolist, torch.Tensor.__getitem__, torch.all = kept
