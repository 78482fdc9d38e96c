"""The commands, a module each: `run(arguments, style)` parses its options, calls what computes, and answers. Nothing here prints.

A new command: a module here, its name in COMMANDS, a line in the help (`check.EPILOG`), a section in docs/cli.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from estimator.report import Style

COMMANDS = ("check", "plan", "plot", "diagnose", "calibrate", "watch", "gpus", "archs")

SAFE_STATUS, NOT_SAFE_STATUS, BAD_INPUT_STATUS, CANNOT_TELL_STATUS = 0, 1, 2, 3
INTERNAL_STATUS = 70
"""A bug of ours (EX_SOFTWARE of sysexits.h)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes to stdout as it stands, the exit status, and what goes to stderr because stdout is someone else's."""

    text: str
    status: int
    aside: str = ""


StyleOf = Callable[[bool], "Style"]
"""--no-color given or not -> how words may be set off on this screen."""
Command = Callable[[list[str], StyleOf], Answer]


def command(name: str) -> Command:
    """The command of that name in COMMANDS; imported only when asked for, because most need much that others do not."""
    run: Command = importlib.import_module(f"{__name__}.{name}").run
    return run


def status_of(verdict: str) -> int:
    """The exit status of a verdict."""
    from estimator.estimate import SAFE, UNKNOWN

    return {SAFE: SAFE_STATUS, UNKNOWN: CANNOT_TELL_STATUS}.get(verdict, NOT_SAFE_STATUS)
