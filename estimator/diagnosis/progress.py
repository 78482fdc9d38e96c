"""tqdm's progress bars, and step times: where a driver moves memory to system RAM, steps take many times longer, and stay so."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from statistics import median

from estimator.crash import Slowdown

_BAR = re.compile(rb"(.*?):? *\d+%\|[^|]*\| *([\d.]+)([kMG]?)/([\d.]+)([kMG]?) \[([\d:]+)<[^,\]]*, *[^,\]]*(.?.?.?.?)")
_SCALE = {b"": 1, b"k": 1000, b"M": 10**6, b"G": 10**9}

BASE_STEPS = 3
"""Steps from which the usual time is taken at least, after the first, which also warms up."""
MOST_BASE_STEPS = 20
STAYS_STEPS = 5
"""A jump counts when this many steps on end are slow: single ones are a larger bucket, a save or a download."""
JUMP_FACTOR = 4.0
"""How much slower. Buckets of 512 and 1024 pixels differ by about this factor and take turns, so all of STAYS_STEPS must be."""
CRAWL_FACTOR, CRAWL_SECONDS, CRAWL_WEIGHT = 20.0, 60.0, 3
"""A step this slow is no large bucket: it counts for several, since nobody waits for five of them."""
JUMP_SECONDS = 2.0
"""And by how much at least: fast steps jitter."""


def parse_bar(line: bytes) -> tuple[bytes, int, int, int, bool] | None:
    """(name, done, total, seconds elapsed, whether learning rate and loss follow) of the bar that a line shows, None if it shows none."""
    found = _BAR.match(line)
    if found is None:
        return None
    name, done, done_unit, total, total_unit, elapsed, extra = found.groups()
    seconds = 0
    try:
        for part in elapsed.split(b":"):
            seconds = seconds * 60 + int(part or 0)
        if done_unit or total_unit or b"." in done or b"." in total:
            return name.strip(), round(float(done) * _SCALE[done_unit]), round(float(total) * _SCALE[total_unit]), seconds, extra == b", lr"
        return name.strip(), int(done), int(total), seconds, extra == b", lr"
    except (ValueError, OverflowError):
        return None


@dataclass
class StepTimes:
    """Fed with (steps done, seconds elapsed) of the training bar; notes the first lasting jump. Constant memory."""

    base: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    jump: Slowdown | None = None
    _last: tuple[int, int] | None = None
    _limit: float = float("inf")

    def update(self, done: int, seconds: int, line: int) -> None:
        """One update of the bar. Time that passes before the next step is part of that step."""
        last = self._last
        if last is None or done < last[0] or seconds < last[1]:
            self._last = (done, seconds)
            return
        steps, took = done - last[0], seconds - last[1]
        if steps == 0 or self.jump is not None:
            return
        self._last = (done, seconds)
        if last[0] == 0:
            return  # the first step warms up
        each = took / steps
        if each <= self._limit:
            self.recent.clear()
            if len(self.base) < MOST_BASE_STEPS:
                self.base.extend([each] * min(steps, MOST_BASE_STEPS - len(self.base)))
                self._set_limit()
            return
        weight = CRAWL_WEIGHT if each > max(CRAWL_FACTOR * median(self.base), CRAWL_SECONDS) else 1
        self.recent.extend([each] * min(steps * weight, STAYS_STEPS))
        if len(self.recent) >= STAYS_STEPS:
            slow_steps = steps if weight > 1 or steps >= STAYS_STEPS else STAYS_STEPS
            self.jump = Slowdown(max(done - slow_steps, 0), median(self.base), median(self.recent), line)

    def _set_limit(self) -> None:
        """Seconds above which a step is slow, once enough are known."""
        if len(self.base) >= BASE_STEPS:
            usual = median(self.base)
            self._limit = max(JUMP_FACTOR * usual, usual + JUMP_SECONDS)
