"""The command line: find the command, run it, print its answer, exit. The only module that prints. Contract: docs/cli.md.

Everything slow is imported where it is used, so that `estimate --help` and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from estimator.commands import (
    BAD_INPUT_STATUS,
    CANNOT_TELL_STATUS,
    COMMANDS,
    INTERNAL_STATUS,
    SAFE_STATUS,
    Answer,
    command,
)

if TYPE_CHECKING:
    from estimator.errors import Problem
    from estimator.report import Style

INTERRUPTED_STATUS, BROKEN_PIPE_STATUS = 130, 141
"""128 + SIGINT and 128 + SIGPIPE, as shells have it: neither is an answer about the job."""
HELP = "help"  # as a command: the same as --help, of the command behind it
UNWRITTEN_STATUS = 74
"""The answer could not be written, such as on a full disk (EX_IOERR of sysexits.h)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Never raises, never shows a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    gc.disable()  # a short life, and a replay makes a million small objects: collecting them took a fifth of the time
    # A stream that the caller has closed is None
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name in the config must not break a narrow console
    try:
        answer = _answer(arguments)
        _say(answer.aside)
        print(answer.text, end="", flush=True)
        return answer.status
    except BrokenPipeError:
        _silence(sys.stdout)
        return BROKEN_PIPE_STATUS
    except OSError as error:
        _say(f"estimate: the answer could not be written: {error.strerror or error}\n")
        _silence(sys.stdout)
        return UNWRITTEN_STATUS
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS


def _say(text: str) -> None:
    """To stderr, if that can be written to: the status says the rest."""
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: IO[str]) -> None:
    """Let the interpreter's last flush go nowhere: the reader of the pipe is gone, or the disk is full."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _answer(arguments: list[str]) -> Answer:
    """What the command answers, or what is wrong. Raises KeyboardInterrupt alone."""
    from estimator.commands.options import VersionAsked
    from estimator.errors import CannotTell, InputError

    as_json = "--json" in arguments
    try:
        return _run(arguments)
    except SystemExit as done:  # argparse, after --help
        return Answer("", int(done.code or 0))
    except VersionAsked as version:
        return Answer(f"{version}\n", SAFE_STATUS)
    except InputError as error:
        return _failure("input", BAD_INPUT_STATUS, error.problems, as_json, error.warnings)
    except CannotTell as error:
        return _failure("cannot_tell", CANNOT_TELL_STATUS, error.problems, as_json, error.warnings)
    except Exception as error:
        return _failure("internal", INTERNAL_STATUS, [_bug(error)], as_json)


def _bug(error: Exception) -> Problem:
    """An internal error in a few words: what and where, for a report. The config is not to blame."""
    from estimator.errors import Problem

    where, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        where, trace = f"{os.path.basename(code.co_filename)}:{trace.tb_lineno} in {code.co_name}", trace.tb_next
    what = f"internal error: {type(error).__name__}: {error}"
    why = f"{where}; a bug of this program, not of your config"
    return Problem(what, why=why, fix="please report it with this line, the version (estimate --version) and the config")


def _failure(kind: str, status: int, problems: Sequence[Problem], as_json: bool, warnings: Sequence[str] = ()) -> Answer:
    from estimator.report import clean  # messages quote the user's files

    said = [*map(str, problems), *(f"warning: {warning}" for warning in warnings)]
    lines = [clean(line) for each in said for line in f"estimate: {each}".split("\n")]
    document = ""
    if as_json:
        from estimator.jsonout import dumps, error_document

        document = dumps(error_document(kind, status, problems, warnings)) + "\n"
    return Answer(document, status, "".join(f"{line}\n" for line in lines))


def _run(arguments: list[str]) -> Answer:
    if not arguments:
        from estimator.commands.check import parser

        return Answer("", BAD_INPUT_STATUS, parser().format_help())
    if arguments[0] == HELP and not os.path.exists(HELP):
        arguments = [*arguments[1:], "--help"]
    _refuse_misspelt(arguments)
    name = arguments.pop(0) if arguments[0] in COMMANDS else "check"
    return command(name)(arguments, _style)


def _refuse_misspelt(arguments: Sequence[str]) -> None:
    """Raises InputError for a word that is nearly a command, and no file: it would be taken for a config."""
    first, *rest = arguments
    if first in COMMANDS or first.startswith("-") or not rest or os.path.exists(first):
        return
    from difflib import get_close_matches

    near = get_close_matches(first.lower(), COMMANDS, n=1)
    if near:
        from estimator.errors import InputError, Problem

        raise InputError(Problem(f"{first}: neither a command nor a file", fix=f"did you mean `estimate {near[0]}`?"))


def _style(no_colour: bool) -> Style:
    """Colour on a terminal that can show it, unless the user says no (--no-color, NO_COLOR)."""
    from estimator.report import Style

    wanted = not no_colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Style(colour=wanted and sys.stdout.isatty() and _understands_ansi())


def _understands_ansi() -> bool:
    """True but for a Windows console that cannot be switched to escape sequences."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle, mode = kernel.GetStdHandle(-11), ctypes.c_ulong()  # -11: STD_OUTPUT_HANDLE; 4: ENABLE_VIRTUAL_TERMINAL_PROCESSING
        return bool(kernel.GetConsoleMode(handle, ctypes.byref(mode)) and kernel.SetConsoleMode(handle, mode.value | 4))
    return True
