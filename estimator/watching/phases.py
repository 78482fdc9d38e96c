"""Samples of the card beside what the run prints: which phase each belongs to, and the highest of each. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from estimator.crash import LoggedRun
from estimator.diagnosis.lines import MOST_LINE_BYTES, clean
from estimator.diagnosis.story import Reader

_ENDS = re.compile(rb"[\r\n]")


@dataclass
class Seen:
    """What was seen of one phase: the most bytes on the card, from how many samples, and for how long."""

    phase: str
    part: str
    most_bytes: int = 0
    samples: int = 0
    seconds: float = 0.0


class Phases:
    """Fed with pieces of output and with samples as they come. A phase that comes again is the same phase."""

    def __init__(self) -> None:
        self._reader, self._done = Reader(), list[LoggedRun]()
        self._rest, self._number = b"", 0
        self._seen: dict[tuple[str, str], Seen] = {}
        self._last: float | None = None

    def printed(self, data: bytes) -> None:
        """More output, cut anywhere."""
        *lines, rest = _ENDS.split(self._rest + data)
        self._rest = rest[-MOST_LINE_BYTES:]
        for line in lines:
            self._number += 1
            text = clean(line)
            if self._reader.begins_another(text):
                self._done.append(self._reader.finish())
                self._reader = Reader(self._number, self._reader.carried)
            self._reader.feed(self._number, text)

    def sampled(self, size_bytes: int | None, at: float) -> None:
        """What is on the card at a time in seconds; None: the driver did not say."""
        phase, part = self._reader.at
        seen = self._seen.setdefault((phase, part), Seen(phase, part))
        seen.seconds += at - self._last if self._last is not None else 0.0
        self._last = at
        if size_bytes is not None:
            seen.most_bytes = max(seen.most_bytes, size_bytes)
            seen.samples += 1

    @property
    def now(self) -> tuple[str, str]:
        """Phase and part that the last line belongs to; ("", "") before the first."""
        return self._reader.at

    def seen(self) -> list[Seen]:
        """The phases in the order in which they first came; what came before the first as well, under no name."""
        return list(self._seen.values())

    def run(self) -> LoggedRun:
        """The run as its output tells it; of several jobs the last."""
        if self._rest:
            self.printed(b"\n")
        return self._reader.finish()
