"""What a process and its children hold on the cards, by the driver. No CUDA context is made: the run does not notice."""

from __future__ import annotations

import time
from pathlib import Path

from estimator import nvml

_FAMILY_SECONDS = 5.0
"""How often the process's children are looked up."""


class Sampler:
    """Asks each card what it holds. Made before the run starts, so that what was there already can be told from it.

    The driver's figure of the run's own processes is taken where it gives one (not on Windows, and not in a container, where it counts
    processes by the host's numbers); else what a card has in use beyond what it had before. `by_process`: which of the two it was.
    """

    def __init__(self) -> None:
        self.cards = nvml.cards()
        self.before = {card.index: _used(card) for card in self.cards}
        self.by_process = False
        self._pids: set[int] = set()
        self._looked_up = float("-inf")
        self._highest: dict[int, int] = {}

    def sample(self, pid: int) -> int | None:
        """Bytes now, of the card that holds most; None where no driver says anything."""
        if time.monotonic() - self._looked_up > _FAMILY_SECONDS:
            self._pids, self._looked_up = family(pid), time.monotonic()
        found = {}
        for card in self.cards:
            own = card.bytes_of(self._pids)
            if own is not None:
                self.by_process = True
            used = own if own is not None else 0 if self.by_process else max(0, _used(card) - self.before[card.index])
            found[card.index] = used
            self._highest[card.index] = max(used, self._highest.get(card.index, 0))
        return max(found.values(), default=None)

    @property
    def card(self) -> nvml.Card | None:
        """The card that held most in the end."""
        return max(self.cards, key=lambda card: self._highest.get(card.index, 0), default=None)


def _used(card: nvml.Card) -> int:
    memory = card.memory()
    return 0 if memory is None else memory.used_bytes


def family(pid: int) -> set[int]:
    """A process and those that it started, and they; where /proc does not say, itself alone."""
    found, todo = set(), [pid]
    while todo:
        one = todo.pop()
        found.add(one)
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                todo += [child for child in map(int, path.read_text().split()) if child not in found]
            except OSError:  # it ended meanwhile
                continue
    return found
