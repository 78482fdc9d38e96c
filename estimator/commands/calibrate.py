"""`estimate calibrate`: measure this machine's card. Hands over to calibration.oncard, which alone may need torch."""

from __future__ import annotations

import importlib
from argparse import ArgumentTypeError

from estimator.commands import Answer, StyleOf, options

MOST_MINUTES, MOST_STEPS = 10_000, 10_000  # more is a slip of the pen
DESCRIPTION = """\
Measure this machine's card: what a training process takes outside torch, and how
far real memory is from the prediction, in small cells with random weights (no
downloads). Writes an overlay that `estimate` then uses for this card.
"""
EPILOG = """\
examples:
  estimate calibrate
  estimate calibrate --arch flux1-dev,zimage --minutes 10
  estimate calibrate --python ~/ai-toolkit/venv/bin/python
  estimate calibrate --trainer ~/ai-toolkit --config config.yaml

Interrupted or killed, the same command goes on where it was. It fills the card
once, at the end: close what else needs it.

exit status: 0 done, 2 bad input, no card or something not installed, 3 no cells
can be made of the architecture
"""


def parser() -> options.Parser:
    """The options of `calibrate`."""
    made = options.Parser("estimate calibrate", DESCRIPTION, EPILOG)
    made.add_argument("--gpu", default="auto", metavar="NAME", help="auto (default): the card that torch finds; or the name it is to have")
    made.add_argument("--arch", action="append", metavar="KEY", help="architectures to make cells of, commas between; default: all")
    made.add_argument("--minutes", type=_minutes, default=20.0, metavar="N", help="no new cell after so many minutes; default 20")
    made.add_argument("--out", metavar="FILE", help="the overlay; default: in your config folder, where estimate finds it")
    made.add_argument("--python", metavar="PYTHON", help="a python with torch and diffusers; default: the trainer's, or this one")
    made.add_argument("--trainer", metavar="PATH", help="a checkout of AI Toolkit: its python; with --config its own run is recorded")
    made.add_argument("--config", metavar="CONFIG", help="with --trainer: run a few steps of this config and record its phases")
    made.add_argument("--steps", type=_steps, default=4, metavar="N", help="with --config: how many; default 4")
    made.add_argument("--weights", choices=("real", "untouched"), default="real", help="with --config: real, or never filled memory")
    made.add_argument("--json", action="store_true", help="print the overlay as JSON on stdout")
    return made


def _minutes(text: str) -> float:
    """Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < MOST_MINUTES:
        raise ArgumentTypeError(f"{text[:80]!r} is not a number of minutes above 0 and below {MOST_MINUTES:,}")
    return value


def _steps(text: str) -> int:
    """Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 0 < int(text) < MOST_STEPS):
        raise ArgumentTypeError(f"{text[:80]!r} is not a number of steps from 1 to {MOST_STEPS - 1:,}")
    return int(text)


def run(arguments: list[str], style: StyleOf) -> Answer:
    """Calibrate this machine's card."""
    given = parser().parse_args(arguments)
    from estimator.errors import InputError, Problem

    if given.config is not None and given.trainer is None:
        raise InputError(Problem("--config needs --trainer", None, "the config is run by your own trainer", "add --trainer PATH"))
    handed = importlib.import_module("calibration.oncard.command")
    return Answer(*handed.run(given))
