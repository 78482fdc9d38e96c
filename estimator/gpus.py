"""The catalogue of cards: capacity, compute capability, what lies outside torch's allocator. (Written by the CLI's helper.)"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card. `total_bytes`: capacity as torch reports it (total_memory). The bytes outside the allocator come as low, likely, high.

    `context_*_bytes`: CUDA context, kernels and library handles of the process. `desktop_*_bytes`: other processes' share (0 on a headless machine).
    `os`: "linux" | "windows". `source`: where `total_bytes` was read.
    """

    name: str
    total_bytes: int
    compute_capability: str
    context_low_bytes: int
    context_bytes: int
    context_high_bytes: int
    desktop_low_bytes: int = 0
    desktop_bytes: int = 0
    desktop_high_bytes: int = 0
    aliases: tuple[str, ...] = ()
    os: str = "linux"
    source: str = ""

    @property
    def usable_bytes(self) -> int:
        """What is left for torch's allocator in the likely case: total - context - desktop."""
        return self.total_bytes - self.context_bytes - self.desktop_bytes
