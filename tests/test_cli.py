"""The command line: commands, options, exit statuses, streams. The engine and the config reader are stood in for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from estimator import cli, trainers
from estimator.errors import CannotTell, InputError, Problem
from estimator.estimate import BORDERLINE, OOM, SAFE, UNKNOWN, Estimate
from estimator.gpus import Gpu, all_gpus
from estimator.job import Job, Place
from tests import made_estimates as made

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30


class Stage:
    """What the stand-ins answer with, and what they were asked."""

    def __init__(self) -> None:
        self.jobs: tuple[Job, ...] = (made.job(),)
        self.verdict: Callable[[Job, Gpu], str] = lambda job, gpu: SAFE
        self.read: list[tuple[object, ...]] = []
        self.asked: list[tuple[str, bool, bool]] = []
        self.fails_with: BaseException | None = None

    def read_jobs(self, path: str, overrides: Sequence[str] = (), arch_override: str | None = None) -> tuple[Job, ...]:
        self.read.append((path, tuple(overrides), arch_override))
        return self.jobs

    def estimate_job(self, job: Job, gpu: Gpu, *, fast: bool = False, required: bool = False) -> Estimate:
        if self.fails_with is not None:
            raise self.fails_with
        self.asked.append((gpu.name, fast, required))
        return made.estimate(gpu, self.verdict(job, gpu), job=job, lower_bound=fast, warnings=job.warnings)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    made_up = Stage()
    engine = ModuleType("estimator.engine")
    engine.estimate_job = made_up.estimate_job  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "estimator.engine", engine)
    monkeypatch.setattr(trainers, "read_jobs", made_up.read_jobs)
    return made_up


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


@pytest.mark.parametrize(("verdict", "status"), [(SAFE, 0), (BORDERLINE, 1), (OOM, 1), (UNKNOWN, 3)])
def test_exit_status_is_the_verdict(stage: Stage, verdict: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    stage.verdict = lambda job, gpu: verdict
    assert run("config.yaml", "--gpu", "RTX4090") == status
    streams = capsys.readouterr()
    assert streams.out.startswith(f"{verdict.upper()}: ")
    assert streams.err == ""


def test_check_may_be_left_out(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    run("check", "config.yaml", "--gpu", "RTX4090")
    first = capsys.readouterr().out
    run("--gpu", "RTX4090", "config.yaml")
    assert capsys.readouterr().out == first
    assert [path for path, *_ in stage.read] == ["config.yaml", "config.yaml"]


@pytest.mark.parametrize("how", ["--fast", "--required"])
def test_options_reach_the_reader_and_the_engine(stage: Stage, how: str) -> None:
    run("c.yaml", "--gpu", "4090", "--set", "train.batch_size=4", "--set", "a=b=c", "--arch", "flex1", how)
    assert stage.read == [("c.yaml", ("train.batch_size=4", "a=b=c"), "flex1")]
    assert stage.asked[0] == ("RTX4090", how == "--fast", how == "--required")


def test_os_changes_the_card(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    run("c.yaml", "--gpu", "4090", "--os", "windows")
    assert "(23.99 GiB)" in capsys.readouterr().out


@pytest.mark.parametrize("folder", [r"C:\data\cat", "D:/data/cat", r"\\nas\cats"])
def test_paths_of_windows_change_the_card_and_are_named(folder: str, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    entry = made.job().datasets[0]
    stage.jobs = (made.job(datasets=(replace(entry, folder=folder),)),)
    run("c.yaml", "--gpu", "4090")
    assert "(23.99 GiB)" in (text := capsys.readouterr().out)
    assert "is a path of Windows" in " ".join(text.split())
    run("c.yaml", "--gpu", "4090", "--os", "linux")
    assert "(23.51 GiB)" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["/data/c:/cat", "data/cat", "~/cat", "http://cat", "/mnt/c/cat"])
def test_other_paths_do_not(folder: str, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    entry = made.job().datasets[0]
    stage.jobs = (made.job(datasets=(replace(entry, folder=folder),)),)
    run("c.yaml", "--gpu", "4090")
    assert "(23.51 GiB)" in capsys.readouterr().out


def test_a_piped_report_has_no_escape_sequences(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    run("c.yaml", "--gpu", "4090")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "environment", "coloured"),
    [
        ([], {}, True),
        (["--no-color"], {}, False),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        ([], {"TERM": "dumb"}, False),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="terminals are told by their Windows handle there")
def test_colour_on_a_terminal_unless_the_user_says_no(
    stage: Stage,
    arguments: list[str],
    environment: dict[str, str],
    coloured: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run("c.yaml", "--gpu", "4090", *arguments)
    assert ("\x1b[" in capsys.readouterr().out) is coloured


def test_advice_is_looked_for_where_a_job_is_not_safe(stage: Stage) -> None:
    run("c.yaml", "--gpu", "4090")
    assert len(stage.asked) == 1
    stage.verdict = lambda job, gpu: OOM
    run("c.yaml", "--gpu", "4090")
    tried = stage.asked[2:]
    assert tried
    assert all(fast for _, fast, _ in tried), "edits are tried the fast way"


def test_what_was_assumed_of_the_card_is_said(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    run("c.yaml", "--gpu", "24GB", "--json")
    assumptions = json.loads(capsys.readouterr().out)["assumptions"]
    assert any("decimal" in text for text in assumptions)
    assert any("99 % bounds" in text and "published rows" in text for text in assumptions)


# --- several jobs, several cards ---


def test_all_cards_smallest_first(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.verdict = lambda job, gpu: SAFE if gpu.total_bytes > 23 * GIB else OOM
    assert run("c.yaml", "--gpu", "all") == 0
    out = capsys.readouterr().out
    assert out.index("RTX3080-10G") < out.index("  RTX4090 ") < out.index("A100-80G") < out.index("B200")
    assert "the smallest is RTX4090" in out
    assert len(stage.asked) == len(all_gpus()), "one estimate a card, no advice"


@pytest.mark.parametrize(("verdict", "status"), [(OOM, 1), (BORDERLINE, 1), (UNKNOWN, 3)])
def test_all_cards_and_none_is_safe(stage: Stage, verdict: str, status: int) -> None:
    stage.verdict = lambda job, gpu: verdict
    assert run("c.yaml", "--gpu", "ALL") == status


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [((SAFE, SAFE), 0), ((SAFE, OOM), 1), ((BORDERLINE, SAFE), 1), ((SAFE, UNKNOWN), 3), ((OOM, UNKNOWN), 1), ((UNKNOWN, BORDERLINE), 1)],
)
def test_of_several_jobs_the_worst_counts_and_each_is_reported(
    stage: Stage, verdicts: tuple[str, ...], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.jobs = (made.job(name="first"), made.job(name="second"))
    stage.verdict = lambda job, gpu: dict(zip(("first", "second"), verdicts, strict=True))[job.name]
    assert run("c.yaml", "--gpu", "4090") == status
    out = capsys.readouterr().out
    assert out.index("Job 1 of 2") < out.index("first") < out.index("Job 2 of 2") < out.index("second")
    assert run("c.yaml", "--gpu", "4090", "--json") == status
    document = json.loads(capsys.readouterr().out)
    assert [each["config"] for each in document["estimates"]] == ["first", "second"]
    assert document["exit_status"] == status


# --- what is wrong ---


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    streams = capsys.readouterr()
    assert streams.out == "", "errors belong on stderr"
    assert "Traceback" not in streams.err
    return streams.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["c.yaml"], "--gpu"),
        (["--gpu", "4090"], "CONFIG"),
        (["c.yaml", "--gpu"], "--gpu"),
        (["c.yaml", "--gpu", "4090", "--bogus"], "--bogus"),
        (["c.yaml", "--gpu", "4090", "--jsn"], "did you mean --json?"),
        (["c.yaml", "--gpu", "4090,a100-40g"], "one card"),
        (["c.yaml", "--gpu", "4090", "--ram", "9" * 400 + "GiB", "--fast"], "--ram"),
        (["c.yaml", "--gpu", "4090", "--fast", "--required"], "not allowed with"),
        (["calibrate", "--minutes", "soon"], "a number of minutes"),
        (["calibrate", "--steps", "0"], "a number of steps"),
        (["c.yaml", "--gpu", "4090", "--req"], "--req"),
        (["c.yaml", "d.yaml", "--gpu", "4090"], "d.yaml"),
        (["c.yaml", "--gpu", "4090", "--os", "macos"], "macos"),
        (["c.yaml", "--gpu", "rtx409"], "did you mean RTX4090"),
        (["c.yaml", "--gpu", "a100"], "A100-40G (39.37 GiB) or A100-80G"),
        (["gpus", "extra"], "extra"),
        (["check"], "CONFIG"),
        (["archs", "--gpu"], "--gpu"),
    ],
)
def test_bad_usage(stage: Stage, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    message = complaint(capsys)
    assert words in message
    assert "fix: " in message


def test_nothing_at_all_shows_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "usage: estimate" in complaint(capsys)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (
            InputError(Problem("no such optimizer", Place("c.yaml", "train.optimizer", 31), "it is adamw9", "did you mean adamw?")),
            2,
            "input",
        ),
        (CannotTell(Problem("not modelled: model.arch", Place("c.yaml", "model.arch", 12), "sdxl")), 3, "cannot_tell"),
        (ZeroDivisionError("division by zero"), 70, "internal"),
        (RecursionError("maximum recursion depth exceeded"), 70, "internal"),
        (MemoryError(), 70, "internal"),
    ],
)
def test_errors_have_a_status_a_message_and_a_document(
    stage: Stage, error: Exception, status: int, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.fails_with = error
    assert run("c.yaml", "--gpu", "4090") == status
    text = complaint(capsys)
    assert text.startswith("estimate: ")
    assert run("c.yaml", "--gpu", "4090", "--json") == status
    streams = capsys.readouterr()
    assert streams.err == text, "the message is the same with --json"
    document = json.loads(streams.out)
    assert document["schema"] == 1
    assert document["error"]["kind"] == kind
    assert document["error"]["exit_status"] == status
    assert document["error"]["problems"][0]["what"] in text


def test_the_place_of_a_problem_is_shown(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.fails_with = InputError(
        Problem("no such optimizer", Place("c.yaml", "train.optimizer", 31), fix="did you mean adamw?"), Problem("and one more")
    )
    run("c.yaml", "--gpu", "4090")
    assert complaint(capsys) == (
        "estimate: c.yaml:31: train.optimizer: no such optimizer\n  fix: did you mean adamw?\nestimate: and one more\n"
    )


def test_an_internal_error_says_it_is_a_bug_and_where(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.fails_with = KeyError("flux1-dev")
    run("c.yaml", "--gpu", "4090")
    message = complaint(capsys)
    assert "KeyError: 'flux1-dev'" in message
    assert "test_cli.py:" in message
    assert "bug" in message
    assert "report" in message


def test_messages_cannot_move_the_cursor(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.fails_with = InputError(Problem("bad value '\x1b[2J\r'"))
    run("c.yaml", "--gpu", "4090")
    assert complaint(capsys) == "estimate: bad value '?[2J?'\n"


def test_interrupted(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.fails_with = KeyboardInterrupt()
    assert run("c.yaml", "--gpu", "4090") == 130
    assert complaint(capsys) == ""


# --- as a process ---


def process(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    return subprocess.run([sys.executable, "-m", "estimator", *arguments], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "estimator", "gpus"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
@pytest.mark.parametrize("arguments", [("gpus",), ("no_such.yaml", "--gpu", "4090", "--json")])
def test_a_full_disk_is_no_bug_of_ours(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "estimator", *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 74
    assert "could not be written" in done.stderr
    assert "bug" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
def test_a_message_that_cannot_be_written_leaves_the_status() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "estimator", "no_such.yaml", "--gpu", "4090"]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=full, stdout=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")
def test_closed_streams_are_no_error() -> None:
    command = f"'{sys.executable}' -m estimator gpus >&- 2>&-"
    assert subprocess.run(command, shell=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60).returncode == 0


def test_a_narrow_console_cannot_break_it() -> None:
    done = process("no_such_文件.yaml", "--gpu", "4090", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 2
    assert "\\u6587\\u4ef6" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_version() -> None:
    shown = process("--help", COLUMNS="80")
    assert shown.returncode == 0
    assert max(map(len, shown.stdout.split("\n"))) <= 80
    for option in ("--gpu", "--set", "--json", "--fast", "--required", "--arch", "--os", "--details", "--no-color", "exit status"):
        assert option in shown.stdout
    assert process("--version").stdout.startswith("estimate ")


def test_catalogues_as_text_and_json() -> None:
    assert "RTX4090" in process("gpus").stdout
    cards = json.loads(process("gpus", "--json").stdout)["gpus"]
    assert [card["name"] for card in cards] == [gpu.name for gpu in all_gpus()]
    windows = {card["name"]: card for card in json.loads(process("gpus", "--json", "--os", "windows").stdout)["gpus"]}
    assert windows["RTX4090"]["total_bytes"] == 24563 * 2**20
    archs = json.loads(process("archs", "--json").stdout)["archs"]
    assert {arch["key"] for arch in archs if arch["modelled"]} >= {"flux1-dev", "flux1-schnell", "flex1", "zimage", "zimage-turbo"}
    text = process("archs").stdout
    assert text.index("zimage-turbo") < text.index("not modelled yet")


def test_two_estimates_of_one_job_are_the_same_text(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.jobs = (replace(made.job(), warnings=("b", "a")),)
    run("c.yaml", "--gpu", "4090", "--json")
    first = capsys.readouterr().out
    run("c.yaml", "--gpu", "4090", "--json")
    assert capsys.readouterr().out == first


def test_a_misspelt_command_is_no_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plann", "config.yaml", "--gpu", "T4"]) == 2
    assert "did you mean `estimate plan`?" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "usage"), [(["help"], "usage: estimate [-h]"), (["help", "plan"], "usage: estimate plan [-h]")])
def test_help_is_no_config(arguments: list[str], usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Was: "the following arguments are required: --gpu"."""
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith(usage)


def test_two_configs_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["a.yaml", "b.yaml", "--gpu", "T4"]) == 2
    assert "fix: one CONFIG at a time" in capsys.readouterr().err
    assert cli.main(["gpus", "T4"]) == 2
    assert "at a time" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["check"], ["plan"], ["plot", "-o", "headroom.png"]])
def test_mistakes_of_the_config_and_of_the_card_come_together(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Was: the card's only once the config was mended."""
    config = tmp_path / "config.yaml"
    config.write_text("job: extension\nconfig: {name: x, process: [{type: sd_trainer, train: {batch_size: two}}]}\n")
    assert cli.main([*command, str(config), "--gpu", "RTX4909"]) == 2
    said = capsys.readouterr().err
    assert "train.batch_size" in said
    assert "did you mean RTX4090?" in said


def test_a_config_may_be_called_nearly_like_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plann").write_text("[]")
    assert cli.main(["plann", "--gpu", "T4"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["a.yaml"], ["plan", "a.yaml"], ["plan", "a.yaml", "--gpu"], ["plot", "a.yaml"], ["plan"]])
def test_without_a_card_it_says_what_to_write(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "--gpu RTX4090; `estimate gpus` lists them" in capsys.readouterr().err
