"""The command line: parse, call, print, exit. The only module that prints. Contract: docs/cli.md.

Everything slow is imported where it is used, so that `estimate --help` and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from estimator.errors import Problem
    from estimator.estimate import Advice, Estimate
    from estimator.gpus import Gpu
    from estimator.job import Job
    from estimator.report import Style

SAFE_STATUS, NOT_SAFE_STATUS, BAD_INPUT_STATUS, CANNOT_TELL_STATUS = 0, 1, 2, 3
INTERNAL_STATUS = 70
"""A bug of ours (EX_SOFTWARE of sysexits.h)."""
INTERRUPTED_STATUS, BROKEN_PIPE_STATUS = 130, 141
"""128 + SIGINT and 128 + SIGPIPE, as shells have it: neither is an answer about the job."""
OSES = ("linux", "windows")
COMMANDS = ("check", "gpus", "archs")
LATER_COMMANDS = ("plan", "plot", "diagnose", "calibrate")

_DESCRIPTION = """\
Will this training config fit on that GPU? Reads the config before anything
runs; needs no GPU.
"""
_EPILOG = """\
`estimate CONFIG --gpu NAME` is short for `estimate check CONFIG --gpu NAME`.
Other commands:
  estimate gpus      the cards it knows
  estimate archs     the architectures it knows

examples:
  estimate config.yaml --gpu RTX4090
  estimate config.yaml --gpu A100-40G --set train.batch_size=4
  estimate config.yaml --gpu 23.5GiB --json
  estimate config.yaml --gpu all

exit status: 0 safe, 1 not safe (borderline or out of memory), 2 bad input or
usage, 3 cannot tell (architecture or setting not modelled), 70 a bug here
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        from estimator.errors import InputError, Problem

        raise InputError(Problem(message, fix=f"{self.prog} --help shows how it is used"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Never raises, never shows a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    gc.disable()  # a short life, and a replay makes a million small objects: collecting them took a fifth of the time
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name in the config must not break a narrow console
    try:
        status = _guarded(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _silence(sys.stdout)
        return BROKEN_PIPE_STATUS
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS


def _silence(stream: IO[str]) -> None:
    """Let the interpreter's last flush go nowhere: the reader of the pipe is gone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _guarded(arguments: list[str]) -> int:
    from estimator.errors import CannotTell, InputError

    as_json = "--json" in arguments
    try:
        return _run(arguments)
    except SystemExit as done:  # argparse, after --help and --version
        return int(done.code or 0)
    except InputError as error:
        return _fail("input", BAD_INPUT_STATUS, error.problems, as_json)
    except CannotTell as error:
        return _fail("cannot_tell", CANNOT_TELL_STATUS, error.problems, as_json)
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        return _fail("internal", INTERNAL_STATUS, [_bug(error)], as_json)


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


def _fail(kind: str, status: int, problems: Sequence[Problem], as_json: bool) -> int:
    from estimator.report import clean  # messages quote the user's files

    for problem in problems:
        print("\n".join(clean(line) for line in f"estimate: {problem}".split("\n")), file=sys.stderr)
    if as_json:
        from estimator.jsonout import dumps, error_document

        print(dumps(error_document(kind, status, problems)))
    return status


# --- commands ---------------------------------------------------------------------------------------------------------


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in LATER_COMMANDS:
        from estimator.errors import InputError, Problem

        fix = f"this version has {', '.join(COMMANDS)}; a config file of that name: estimate check {arguments[0]}"
        raise InputError(Problem(f"{arguments[0]}: not in this version", fix=fix))
    command: Callable[[list[str]], int] = _check
    if arguments and arguments[0] in COMMANDS:
        command = {"check": _check, "gpus": _gpus, "archs": _archs}[arguments.pop(0)]
    elif not arguments:
        _check_parser().print_help(sys.stderr)
        return BAD_INPUT_STATUS
    return command(arguments)


def _check_parser() -> argparse.ArgumentParser:
    parser = _Parser("estimate", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", metavar="CONFIG", help="a training config of AI Toolkit (YAML or JSON), or an explicit run file")
    parser.add_argument("--gpu", required=True, metavar="NAME", help="a card (see `estimate gpus`), a size such as 23.5GiB, or all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config; may be repeated")
    parser.add_argument("--os", choices=OSES, default="linux", help="where it will train (windows: also WSL2); default linux")
    parser.add_argument("--arch", metavar="KEY", help="take the model for this architecture (see `estimate archs`)")
    parser.add_argument("--fast", action="store_true", help="peak rows only, without the allocator's replay: a lower bound")
    parser.add_argument("--required", action="store_true", help="also find the smallest capacity at which the job is safe")
    parser.add_argument("--details", action="store_true", help="all phases, with the ledger of each")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    return _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, and nothing else")
    parser.add_argument("--no-color", "--no-colour", action="store_true", help="no colour (also: NO_COLOR, or a pipe)")
    return parser


class _Version(argparse.Action):
    """Looks the installed version up only when asked, because importlib.metadata is slow to import."""

    def __call__(self, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"estimate {version('vram-preflight')}")
        except PackageNotFoundError:
            print("estimate (not installed: run from its source)")
        raise SystemExit(SAFE_STATUS)


def _check(arguments: list[str]) -> int:
    options = _check_parser().parse_args(arguments)
    from estimator.gpus import all_gpus, find_gpu

    every_card = options.gpu.strip().lower() == "all"
    gpus = all_gpus(options.os) if every_card else (find_gpu(options.gpu, options.os),)
    from estimator.trainers import read_jobs

    jobs = read_jobs(options.config, tuple(options.set), options.arch)
    results = [_estimates(job, gpus, options) for job in jobs]
    status = _status([_best(each) if every_card else each[0].verdict for each in results])
    if options.json:
        _print_json([estimate for each in results for estimate in each], status)
        return status
    style = _style(options.no_color)
    texts = [_text(each, style, options.details) for each in results]
    if len(texts) > 1:
        texts = [f"Job {number} of {len(texts)}, one after the other on the same card:\n{text}" for number, text in enumerate(texts, 1)]
    print("\n".join(texts), end="")
    return status


def _estimates(job: Job, gpus: Sequence[Gpu], options: argparse.Namespace) -> list[Estimate]:
    """The job on each card, with what the user should know; on a single card also what to change."""
    from dataclasses import replace

    from estimator.engine import estimate_job
    from estimator.estimate import PROVISIONAL

    estimates = []
    for gpu in gpus:
        estimate = estimate_job(job, gpu, fast=options.fast, required=options.required)
        if len(gpus) == 1 and estimate.phases:
            estimate = replace(estimate, advice=_advice(job, gpu, estimate))
        assumptions = dict.fromkeys((*estimate.assumptions, *gpu.notes, PROVISIONAL))
        estimates.append(replace(estimate, assumptions=tuple(assumptions)))
    return estimates


def _advice(job: Job, gpu: Gpu, estimate: Estimate) -> tuple[Advice, ...]:
    from estimator.advice import advise
    from estimator.engine import estimate_job

    return advise(job, gpu, estimate, lambda changed: estimate_job(changed, gpu, fast=True))


def _best(estimates: Sequence[Estimate]) -> str:
    """Of one job on many cards: safe if any card is safe."""
    from estimator.estimate import SAFE, worst_verdict

    verdicts = [estimate.verdict for estimate in estimates]
    return SAFE if SAFE in verdicts else worst_verdict(verdicts)


def _status(verdicts: Sequence[str]) -> int:
    """The exit status of several jobs: that of the worst."""
    from estimator.estimate import SAFE, UNKNOWN, worst_verdict

    worst = worst_verdict(verdicts)
    return {SAFE: SAFE_STATUS, UNKNOWN: CANNOT_TELL_STATUS}.get(worst, NOT_SAFE_STATUS)


def _print_json(estimates: Sequence[Estimate], status: int) -> None:
    from estimator.jsonout import dumps, estimate_document, several_document

    documents = [estimate_document(estimate) for estimate in estimates]
    print(dumps(documents[0] if len(documents) == 1 else several_document(documents, status)))


def _text(estimates: Sequence[Estimate], style: Style, details: bool) -> str:
    from estimator import report, report_lists

    return report.render(estimates[0], style, details) if len(estimates) == 1 else report_lists.render_cards(estimates, style)


def _gpus(arguments: list[str]) -> int:
    parser = _Parser("estimate gpus", description="The cards that --gpu knows, smallest first.", allow_abbrev=False)
    parser.add_argument("--os", choices=OSES, default="linux", help="capacities on this system; default linux")
    options = _add_output(parser).parse_args(arguments)
    from estimator import gpus, jsonout, report_lists

    cards = gpus.all_gpus(options.os)
    return _show(options, lambda: jsonout.gpus_document(cards), lambda style: report_lists.render_gpus(cards, style))


def _archs(arguments: list[str]) -> int:
    parser = _Parser("estimate archs", description="The architectures that can be estimated.", allow_abbrev=False)
    options = _add_output(parser).parse_args(arguments)
    from estimator import jsonout, report_lists
    from estimator.archs import load_archs

    archs = [(arch.key, arch.name, arch.modelled, arch.checked_runs) for arch in load_archs().archs.values()]
    return _show(options, lambda: jsonout.archs_document(archs), lambda style: report_lists.render_archs(archs, style))


def _show(options: argparse.Namespace, document: Callable[[], dict[str, Any]], text: Callable[[Style], str]) -> int:
    if options.json:
        from estimator.jsonout import dumps

        print(dumps(document()))
    else:
        print(text(_style(options.no_color)), end="")
    return SAFE_STATUS


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
