"""`estimate watch`: the run's streams, signals and exit status are its own; it outlives us; its phases are found; rows are kept."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator import cli
from estimator.commands import watch
from estimator.diagnosis.lines import open_log
from estimator.diagnosis.story import read_story
from estimator.estimate import Interval
from estimator.gpus import GIB, find_gpu
from estimator.watching.outcome import Compared, compared, phase_rows
from estimator.watching.phases import Phases, Seen
from tests import made_estimates as made
from tests.stand_in_trainer import MIB as HELD_MIB
from tests.stand_in_trainer import TRAINING_MIB

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "tests" / "data" / "logs" / "emulated-finished.txt"
STAND_IN = [sys.executable, str(ROOT / "tests" / "stand_in_trainer.py"), str(LOG)]
WATCH = [sys.executable, "-m", "estimator", "watch"]


# --- phases ---------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, LOG.stat().st_size), max_size=30).map(sorted))
def test_output_cut_anywhere_tells_the_same_story(cuts: list[int]) -> None:
    data, phases, before = LOG.read_bytes(), Phases(), 0
    for cut in [*cuts, len(data)]:
        phases.printed(data[before:cut])
        before = cut
    (whole,) = read_story(open_log(str(LOG)))
    run = phases.run()
    assert (run.name, run.step, run.finished, run.phase) == (whole.name, whole.step, whole.finished, whole.phase)


def test_samples_belong_to_the_phase_that_was_printed_last() -> None:
    phases = Phases()
    printed = [(b"", 1), (b"Loading transformer\n", 5), (b"half a li", 9), (b"ne\nCaching latents to disk\n", 2), (b"", None)]
    for at, (line, size) in enumerate([*printed, (b"Loading T5\n", 7), (b"Caching latents for another\n", 3)]):
        phases.printed(line)
        phases.sampled(size, float(at))
    seen = {(one.phase, one.part): (one.most_bytes, one.samples, one.seconds) for one in phases.seen()}
    assert seen[("", "")] == (1, 1, 0.0)
    assert seen[("load", "transformer")] == (9, 2, 2.0)
    assert seen[("cache_latents", "")] == (3, 2, 3.0), "it came twice; once nothing was said"
    assert seen[("load", "text encoder")] == (7, 1, 1.0)


@given(st.integers(0, 40), st.integers(0, 20), st.integers(0, 20))
def test_what_was_seen_lies_within_above_or_below(seen: int, low: int, more: int) -> None:
    estimate = made.estimate(find_gpu("RTX4090"))
    phase = estimate.phases[0]
    device = Interval(low, low + more, low + 2 * more)
    object.__setattr__(phase, "device", device)
    row = Compared(Seen("x", "", seen, 1), phase)
    assert row.verdict == ("above" if seen > low + 2 * more else "below" if seen < low else "within")
    assert Compared(Seen("x", "", seen, 0), phase).verdict == "", "nothing was seen"


@pytest.mark.parametrize(
    ("options", "windows", "system"), [([], False, "linux"), ([], True, "windows"), (["--os", "linux"], True, "linux")]
)
def test_the_card_is_of_the_system_that_the_run_shows(options: list[str], windows: bool, system: str) -> None:
    (run,) = read_story(open_log(str(LOG)))
    given = watch.parser().parse_args(["--gpu", "RTX4090", *options])
    estimate, why = watch._estimate(given, [], SimpleNamespace(card=None), replace(run, windows=windows))  # type: ignore[arg-type]
    assert (estimate is not None, why) == (True, "")
    assert estimate is not None
    assert estimate.gpu.os == system


@pytest.mark.parametrize(("options", "name"), [(["--gpu", "3090"], "RTX3090"), ([], "an unknown card")])
def test_without_a_driver_the_card_is_the_one_that_was_named(options: list[str], name: str) -> None:
    assert watch._card_name(watch.parser().parse_args(options), SimpleNamespace(card=None)) == name  # type: ignore[arg-type]


def test_each_phase_stands_beside_the_highest_that_it_may_be() -> None:
    estimate = made.estimate(find_gpu("RTX4090"))
    for row in compared([Seen(phase.phase, phase.detail, GIB, 1) for phase in estimate.phases], estimate):
        assert row.expected is not None
        assert row.expected.phase == row.seen.phase
    (unknown,) = compared([Seen("", "", GIB, 1)], estimate)
    assert unknown.expected is None
    assert phase_rows([unknown])[0]["predicted_device_bytes"] is None


# --- the run is its own ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FAKECUDA_", "LD_"))}
    return kept | {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}


@pytest.mark.parametrize("options", [[], ["--errors"], ["--exit", "7"]])
def test_streams_and_status_are_those_of_the_run(options: list[str], environment: dict[str, str]) -> None:
    plain = subprocess.run([*STAND_IN, *options], env=environment, capture_output=True)
    watched = subprocess.run([*WATCH, "--", *STAND_IN, *options], env=environment, capture_output=True)
    assert watched.returncode == plain.returncode
    assert watched.stdout == plain.stdout
    assert watched.stderr.startswith(plain.stderr), "the table comes after it"
    assert b"GiB on the card, by phase" in watched.stderr[len(plain.stderr) :]


def test_both_streams_in_one_file_keep_their_order(environment: dict[str, str]) -> None:
    plain, watched = (
        subprocess.run([*command, "--errors"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
        for command in (STAND_IN, [*WATCH, "--", *STAND_IN])
    )
    assert watched.startswith(plain)


def through_terminal(command: list[str], environment: dict[str, str], kill_at: int | None = None) -> bytes:
    """What a terminal of 50 rows and 123 columns gets from a command, which is killed when so many bytes have come."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 123, 0, 0))
    process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    out = b""
    while True:
        ready, _, _ = select.select([ours], [], [], 60)
        try:
            data = os.read(ours, 65536) if ready else b""
        except OSError:
            break
        if not data:
            break
        out += data
        if kill_at is not None and len(out) >= kill_at and process.poll() is None:
            process.kill()
            process.wait()
    process.wait()
    os.close(ours)
    return out


def test_on_a_terminal_the_run_has_one_of_the_same_size(environment: dict[str, str]) -> None:
    code = "import os, sys; print([os.isatty(n) for n in range(3)], os.get_terminal_size()); sys.stderr.write('a\\rb\\n')"
    command = [sys.executable, "-c", code]
    plain, watched = through_terminal(command, environment), through_terminal([*WATCH, "--", *command], environment)
    assert b"[True, True, True]" in plain
    assert b"columns=123" in plain
    assert watched.startswith(plain), "the same bytes, line ends too"


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    return true()


def test_killed_the_run_lives_on_and_its_output_goes_on(environment: dict[str, str], tmp_path: Path) -> None:
    alive, out = tmp_path / "alive", tmp_path / "out.txt"
    command = [*WATCH, "--", *STAND_IN, "--seconds", "6", "--alive", str(alive)]
    with out.open("wb") as file:
        watch = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    assert eventually(lambda: alive.exists() and out.stat().st_size > 0)
    os.killpg(watch.pid, signal.SIGKILL)  # its whole group
    watch.wait()
    assert out.stat().st_size < LOG.stat().st_size, "killed too late to tell anything"
    assert eventually(lambda: out.stat().st_size == LOG.stat().st_size), "the whole log must still arrive"
    assert out.read_bytes() == LOG.read_bytes()


def test_killed_on_a_terminal_the_run_still_reaches_it(environment: dict[str, str]) -> None:
    command = [*STAND_IN, "--seconds", "3"]
    plain, watched = through_terminal(STAND_IN, environment), through_terminal([*WATCH, "--", *command], environment, kill_at=1000)
    assert len(plain) > 2000
    assert watched == plain, "to the last byte, and no table"


@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGUSR1, False)])
def test_signals_reach_the_run_once(number: signal.Signals, whole_group: bool, environment: dict[str, str], tmp_path: Path) -> None:
    """SIGINT, as a keyboard sends it, reaches the run's own children as well."""
    got = tmp_path / "got"
    code = f"""
import os, signal, sys, time
def heard(n, _):
    with open({str(got)!r}, "a") as file: file.write(f"{{'child' if os.getpid() == child else 'run'}} ")
    if os.getpid() != child: time.sleep(1)
    sys.exit(5)
signal.signal({int(number)}, heard)
child = 0
child = os.fork() or os.getpid()
print("ready", flush=True)
time.sleep(30 if os.getpid() != child else 4)
"""
    watch = subprocess.Popen([*WATCH, "--", sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert watch.stdout is not None
    assert watch.stdout.readline() + watch.stdout.readline() == b"ready\nready\n"
    watch.send_signal(number)
    assert watch.wait(30) == 5
    watch.stdout.close()
    assert sorted(got.read_text().split()) == (["child", "run"] if whole_group else ["run"])


def test_a_run_that_a_signal_ends_has_the_shells_status(environment: dict[str, str]) -> None:
    done = subprocess.run([*WATCH, "--", "sh", "-c", "kill -9 $$"], env=environment, capture_output=True, text=True)
    assert done.returncode == 128 + 9
    assert re.search(r"its output is kept in \S+: estimate diagnose", " ".join(done.stderr.split()))


def test_a_log_of_its_own_is_read_and_the_streams_left_alone(environment: dict[str, str], tmp_path: Path) -> None:
    log, rows = tmp_path / "log.txt", tmp_path / "rows.jsonl"
    log.write_text("Running 1 job\nof an earlier run\n")
    code = f"open({str(log)!r}, 'ab').write(open({str(LOG)!r}, 'rb').read()); print(os.fstat(1))"
    command = [*WATCH, "--log", str(log), "--rows", str(rows), "--", sys.executable, "-c", "import os; " + code]
    with (tmp_path / "out").open("wb") as out:
        assert subprocess.run(command, env=environment, stdout=out, stderr=subprocess.DEVNULL).returncode == 0
    assert f"st_ino={(tmp_path / 'out').stat().st_ino}" in (tmp_path / "out").read_text(), "stdout is the very file"
    assert json.loads(rows.read_text())["steps"] > 0
    assert log.exists()


def test_without_a_driver_there_is_nothing_to_keep(environment: dict[str, str], tmp_path: Path) -> None:
    """Was: a row without a figure in the user's own rows, for each run of any command."""
    code = "import sys; from estimator import cli, nvml; nvml.cards = lambda: (); sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "watch", "--", sys.executable, "-c", ""]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "no row was kept" in done.stderr
    assert not list(tmp_path.rglob("watched.jsonl"))


@pytest.mark.parametrize("options", [["--gpu", "RTX409"], ["--config", "/nowhere/config.yaml"]])
def test_mistakes_are_told_before_the_run(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = tmp_path / "ran"
    assert cli.main(["watch", *options, "--", sys.executable, "-c", f"open({str(ran)!r}, 'w')"]) == 2
    assert options[1] in capsys.readouterr().err
    assert not ran.exists()


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in ((["--"], "no command to run"), (["--", "/no/such/program"], "cannot be started"), (["--speed"], "--speed")):
        assert cli.main(["watch", *options]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("words", [["python", "run.py", "a b.yaml"], ["--rows", "rows.jsonl", "python", "run.py", "--", "a b.yaml"]])
def test_a_command_without_the_dashes_is_shown_with_them(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", *words]) == 2
    assert "estimate watch -- python run.py 'a b.yaml'" in capsys.readouterr().err


# --- on the emulated device -----------------------------------------------------------------------------------------------------------


@pytest.mark.emulated
def test_phases_and_rows_of_a_run_on_the_card(environment: dict[str, str], tmp_path: Path, needs_on_device: Callable[..., None]) -> None:
    """The run's memory is another process's: the emulated driver shows it to `watch` as a card's would."""
    needs_on_device("yaml", "rich")
    context = 400
    environment |= {"FAKECUDA_PYTHON": os.environ["EMULATED_CUDA_PYTHON"], "FAKECUDA_CC": "8.9", "FAKECUDA_TOTAL_MIB": "24080",
                    "FAKECUDA_CONTEXT_MIB": str(context), "FAKECUDA_SHARED": str(tmp_path / "card")}  # fmt: skip
    run = [str(ROOT / "calibration" / "emulated_cuda" / "run.sh"), "-m", "estimator", "watch", "--rows", str(tmp_path / "rows.jsonl"), "--"]
    stand_in = [os.environ["EMULATED_CUDA_PYTHON"], *STAND_IN[1:], "--card", "--seconds", "2"]
    done = subprocess.run([*run, *stand_in], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    row: dict[str, Any] = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["card"] == "NVIDIA GeForce RTX 4090"
    assert row["source"] == "process"
    seen = {(one["phase"], one["part"]): one["device_bytes"] for one in row["phases"]}
    expected = {("train", ""): TRAINING_MIB, ("load", "transformer"): HELD_MIB["Loading transformer"]}
    assert {key: (seen[key] >> 20) - context for key in expected} == expected
    train = next(one for one in row["phases"] if one["phase"] == "train")
    assert train["predicted_low_bytes"] <= train["predicted_device_bytes"] <= train["predicted_high_bytes"]
    assert re.search(r"training +6\.\d\d +\d+\.\d\d +\d+\.\d\d-\d+\.\d\d +below", done.stderr), done.stderr
