"""The config as the trainer prints it when it starts a job: JSON over many lines, one brace on the first and one on the last."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from estimator.diagnosis import marks

MOST_LINES = 5000
MOST_TRIES = 200
"""Lines of a single closing brace that are tried as the last: with their indent lost there is one for every section."""


class PrintedConfig:
    """Fed with lines until it is whole or something else is printed. Bounded: MOST_LINES of at most lines.MOST_LINE_BYTES."""

    def __init__(self, first: str) -> None:
        self.config: dict[str, object] | None = None
        self._lines = [first]
        self._tries = 0

    def takes(self, text: str) -> bool:
        """Whether the line belongs to it; `config` is set once it is whole."""
        if text.startswith(marks.AFTER_CONFIG) or len(self._lines) > MOST_LINES or self._tries > MOST_TRIES:
            return False
        self._lines.append(text)
        if text == "}":
            self._tries += 1
            with contextlib.suppress(ValueError, RecursionError):  # not whole yet, or something is in between
                found: Any = json.loads("\n".join(self._lines))
                self.config = found if isinstance(found, dict) else {}
        return True
