"""The parts in which attention kernels go through the keys, each with scratch memory or a result of its own (estimator.features)."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

import numpy as np

Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
IntOrInts = TypeVar("IntOrInts", int, Ints)

# Parts of the keys in memory-efficient attention's backward (ATen/native/transformers/cuda/attention_backward.cu, num_splits_key; block of
# keys: kernel_backward.h, kBlockSizeJ of the kernel for 16-bit inputs and heads of 65 to 128)
SPLIT_KEYS, SPLITS_OF_ALL_HEADS = 64, 200

# FlashAttention's forward for heads of 65 to 128 (ATen/native/transformers/cuda/flash_attn/flash_api.cpp: set_params_splitkv,
# num_splits_heuristic): blocks of rows and of keys, the share of two blocks a multiprocessor from which it does not split, and how near
# to the best use of them a smaller number of parts must come. Multiprocessors: those of the recording device.
FLASH_ROWS, FLASH_KEYS, FLASH_PLACES, FLASH_FULL, FLASH_NEAR, FLASH_MOST = 64, 128, 2 * 128, 0.8, 0.85, 128
# A block of keys for heads no wider than 64, as wide as 128, and wider
KEYS_OF = {"narrow": 256, "flash": FLASH_KEYS, "wide": 64}


def smaller(a: IntOrInts, b: IntOrInts) -> IntOrInts:
    """The smaller one, of each pair."""
    return a + (b - a) * (b < a)


def larger(a: IntOrInts, b: IntOrInts) -> IntOrInts:
    """The larger one, of each pair."""
    return a + (b - a) * (b > a)


def key_splits(heads: IntOrInts, keys: IntOrInts) -> IntOrInts:
    """Parts of the keys for so many heads of all samples together; 1 at least."""
    return larger(smaller(-(-keys // SPLIT_KEYS), SPLITS_OF_ALL_HEADS // heads), heads // heads)


def flash_splits(heads: int, rows: int, keys: int | None = None, block: int = FLASH_KEYS) -> int:
    """Parts of the keys (as many as rows, if not given) in FlashAttention's forward; 0 where there is one only."""
    work, blocks = heads * -(-rows // FLASH_ROWS), -(-(rows if keys is None else keys) // block)
    if min(work, blocks) < 1 or work >= FLASH_FULL * FLASH_PLACES:
        return 0
    possible = [n for n in range(1, min(FLASH_MOST, FLASH_PLACES, blocks) + 1) if n == 1 or -(-blocks // n) != -(-blocks // (n - 1))]
    used = {n: (work * n / FLASH_PLACES) / -(-work * n // FLASH_PLACES) for n in possible}
    best = next(n for n in possible if used[n] >= FLASH_NEAR * max(used.values()))
    return best if best > 1 else 0


_flash_splits_of_all = np.vectorize(flash_splits, otypes=[np.int64])


def flash_parts(*given: Any) -> Any:
    """The same of whole numbers or of arrays."""
    return flash_splits(*given) if all(isinstance(one, int) for one in given) else _flash_splits_of_all(*given)
