"""Parsing that all commands share: errors as Problems, the options of every output, --version."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from estimator.gpus import Gpu
    from estimator.job import Job

T = TypeVar("T")
OSES = LINUX, WINDOWS = "linux", "windows"
LEAST_RAM_BYTES, MOST_RAM_BYTES = 2**30, 2**50
_UNKNOWN_OPTIONS, _MISSING = "unrecognized arguments: ", "the following arguments are required: "  # how argparse's messages begin
_NO_CARD = ("--gpu", "argument --gpu: expected one argument")
NAME_A_CARD = "say which card, for instance --gpu RTX4090; `estimate gpus` lists them, and a size such as --gpu 24GiB will do"


class Parser(argparse.ArgumentParser):
    """No abbreviations, help as written, and mistakes raise InputError instead of leaving the program."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False, formatter_class=kind)

    def error(self, message: str) -> NoReturn:
        """Raises InputError, with the nearest option for one that there is not."""
        from difflib import get_close_matches

        from estimator.errors import InputError, Problem

        unknown = message.removeprefix(_UNKNOWN_OPTIONS).split("=")[0].split(" ")[0] if message.startswith(_UNKNOWN_OPTIONS) else ""
        near = get_close_matches(unknown, self._option_string_actions, n=1) if unknown.startswith("-") else ()
        second = unknown and not unknown.startswith("-") and any(action.metavar == "CONFIG" for action in self._get_positional_actions())
        fix = f"did you mean {near[0]}? " if near else "one CONFIG at a time; " if second else ""
        missing = message.removeprefix(_MISSING).split(", ") if message.startswith(_MISSING) else [message]
        if any(each in _NO_CARD for each in missing):
            fix = f"{NAME_A_CARD}; "
        raise InputError(Problem(message, fix=f"{fix}{self.prog} --help shows how it is used"))


class VersionAsked(Exception):
    """--version: carries the line to print."""


class _Version(argparse.Action):
    """Looks the installed version up only when asked, because importlib.metadata is slow to import."""

    def __call__(self, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            raise VersionAsked(f"estimate {version('vram-preflight')}")
        except PackageNotFoundError:
            raise VersionAsked("estimate (not installed: run from its source)") from None


def add_version(parser: argparse.ArgumentParser) -> None:
    """--version."""
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")


WHERE = "where it will train (windows: also WSL2); default: as the config's paths say, else linux"


def add_job(parser: argparse.ArgumentParser, os_help: str = WHERE) -> None:
    """How a config is read: --set, --os, --arch."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config; may be repeated")
    add_os(parser, os_help)
    parser.add_argument("--arch", metavar="KEY", help="take the model for this architecture (see `estimate archs`)")


def add_trainer_version(parser: argparse.ArgumentParser) -> None:
    """--trainer-version."""
    parser.add_argument("--trainer-version", metavar="V", help="of the trainer that will run it, where another than was recorded")


def add_overlay(parser: argparse.ArgumentParser) -> None:
    """--overlay and --no-overlay: of a card as `estimate calibrate` measured it."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--overlay", metavar="FILE", help="the card as this calibration overlay has it; default: your own")
    either.add_argument("--no-overlay", action="store_true", help="the card as the catalogue has it, even where it was calibrated")


def add_os(parser: argparse.ArgumentParser, help: str) -> None:
    """--os."""
    parser.add_argument("--os", type=str.lower, choices=OSES, help=help)


def add_output(parser: argparse.ArgumentParser) -> None:
    """--json and --no-color."""
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, and nothing else")
    parser.add_argument("--no-color", "--no-colour", action="store_true", help="no colour (also: NO_COLOR, or a pipe)")


def ram(given: argparse.Namespace) -> int | None:
    """Bytes of --ram; None where it is not given. Raises InputError for what is no size."""
    from estimator.errors import InputError, Problem
    from estimator.gpus import size_bytes

    if given.ram is None:
        return None
    size = size_bytes(given.ram)
    if size is None:
        raise InputError(Problem(f"--ram {given.ram[:80]}: no size", fix="write its unit, for example --ram 32GiB"))
    if not LEAST_RAM_BYTES <= size <= MOST_RAM_BYTES:
        raise InputError(Problem(f"--ram {given.ram[:80]}: no machine has that", fix="give what the system shows, for example --ram 32GiB"))
    return size


def is_several(text: str) -> bool:
    """Whether --gpu names more than one card."""
    return text.strip().lower() == "all" or "," in text


def _system(given: argparse.Namespace, jobs: Iterable[Job]) -> tuple[str, tuple[str, ...]]:
    """The operating system: --os, or Windows where a config's paths are of it, else Linux; and what is to be said of that."""
    path = next((job.windows_path for job in jobs if job.windows_path is not None), None)
    if given.os is not None or path is None:
        return given.os or LINUX, ()
    return WINDOWS, (f"{path} is a path of Windows, so its capacity and desktop are assumed; --os linux if it runs elsewhere",)


def cards(given: argparse.Namespace, jobs: Iterable[Job] = ()) -> tuple[Gpu, ...]:
    """The cards of --gpu as calibrated: one, several with commas between, or all, smallest first; on the system that `jobs` are for.

    Raises InputError with every unknown name, for an overlay that cannot be used, and for --overlay with several cards.
    """
    from dataclasses import replace

    from estimator.errors import InputError, Problem
    from estimator.gpus import all_gpus, find_gpu
    from estimator.overlays import with_overlay

    os, notes = _system(given, jobs)
    if given.overlay is not None and is_several(given.gpu):
        raise InputError(Problem("--overlay takes one card", None, "an overlay is of one", "name the card that it was made on"))
    found: dict[str, Gpu] = {}
    problems: list[Problem] = []
    if given.gpu.strip().lower() == "all":
        found = {card.name: card for card in all_gpus(os)}
    else:
        for name in given.gpu.split(","):
            try:
                card = find_gpu(name, os)
                found[card.name] = card
            except InputError as error:
                problems += error.problems
    if problems:
        raise InputError(*problems)
    every = found.values() if given.no_overlay else [with_overlay(card, given.overlay) for card in found.values()]
    noted = (replace(card, notes=(*card.notes, *notes)) for card in every)
    return tuple(sorted(noted, key=lambda card: (card.total_bytes, card.name)))


def one_card(given: argparse.Namespace, jobs: Iterable[Job] = ()) -> Gpu:
    """The card of --gpu as calibrated, where only one makes sense. Raises InputError."""
    from estimator.errors import InputError, Problem

    if is_several(given.gpu):
        fix = "name one; `estimate CONFIG --gpu all` compares every card, `estimate plan` plans for several"
        raise InputError(Problem(f"--gpu {given.gpu[:80]}: one card is wanted here", None, "", fix))
    return cards(given, jobs)[0]


def read_beside(given: argparse.Namespace, read: Callable[[], T]) -> T:
    """What `read` makes of the config. Where that raises InputError, with what is wrong with --gpu beside it: all mistakes at once."""
    from estimator.errors import InputError

    try:
        return read()
    except InputError as error:
        try:
            cards(given)
        except InputError as unknown:
            raise InputError(*error.problems, *unknown.problems, warnings=error.warnings) from None
        raise


def without_threads() -> None:
    """No threads for numpy's linear algebra, of which there is little: to start them and let them wait takes a fifth of the time."""
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
