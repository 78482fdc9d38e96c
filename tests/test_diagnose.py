"""`estimate diagnose` as users have it: the log beside the prediction, changes and their effect, exit statuses, JSON, measurement rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from estimator import cli
from estimator.crash import Failure
from estimator.diagnosis.compare import LOG_CONFIG, candidates
from estimator.diagnosis.diagnose import Question, diagnose
from estimator.diagnosis.lines import open_log
from estimator.diagnosis.progress import StepTimes, parse_bar
from estimator.diagnosis.story import read_story
from estimator.engine import estimate_job
from estimator.estimate import BORDERLINE, OOM, SAFE, Estimate
from estimator.gpus import find_gpu
from estimator.job import Job
from estimator.trainers import read_jobs

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "tests" / "data" / "logs"
MIB, GIB = 2**20, 2**30


def log(name: str) -> str:
    return str(LOGS / f"{name}.txt")


@pytest.fixture
def document(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*arguments: str) -> dict[str, Any]:
        status = cli.main(["diagnose", *arguments, "--json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found.get("exit_status", status) == status
        return found

    return run


# --- the prediction beside the log ---

BY_LITTLE = ("emulated-cache-text-in-pieces", "emulated-load-while-fusing")
"""They failed by a few hundred MiB, so that the interval reaches below the card."""


def test_config_and_card_come_from_the_log(document: Callable[..., dict[str, Any]]) -> None:
    prediction = document(log("emulated-load-text-encoder"))["prediction"]
    assert prediction["config"] == LOG_CONFIG
    assert prediction["gpu"]["total_bytes"] == pytest.approx(11.99 * GIB, abs=MIB)
    assert (prediction["phase"]["phase"], prediction["phase"]["detail"]) == ("load", "text encoder")


@pytest.mark.parametrize("path", sorted(LOGS.glob("emulated-*.txt")), ids=lambda path: path.stem)
def test_the_trainers_own_failures_are_predicted_where_they_happened(path: Path, document: Callable[..., dict[str, Any]]) -> None:
    """On the emulated device: the job does not fit, and what it had and asked for is at most what its phase is predicted to need."""
    found = document(str(path))
    if found["kind"] is None:
        return
    prediction, failure = found["prediction"], found["failure"]
    assert prediction["verdict"] in ((BORDERLINE, OOM) if path.stem in BY_LITTLE else (OOM,))
    assert prediction["phase"]["phase"] == failure["phase"]
    assert prediction["phase"]["verdict"] in ((BORDERLINE, OOM) if path.stem in BY_LITTLE else (OOM,))
    numbers = failure["numbers"]
    if numbers["allocated_bytes"] is not None:
        assert numbers["allocated_bytes"] + numbers["tried_bytes"] <= prediction["phase"]["allocated_bytes"] * 1.01
    assert not any("too low" in reason for reason in found["reasons"])


def test_sizes_that_the_log_lists_are_predicted(document: Callable[..., dict[str, Any]]) -> None:
    """The dataset is not at hand, but the log says which sizes it has."""
    found = document(log("train-some-batches"), "--gpu", "36GiB")
    sizes = next(reason for reason in found["reasons"] if reason.startswith("predicted not to fit"))
    failing, fitting = sizes.split("; to fit: ")
    assert "832x1248" in failing
    assert "512x512" in fitting


def test_the_sizes_that_failed_are_the_ones_named(tmp_path: Path, document: Callable[..., dict[str, Any]]) -> None:
    """A run of the trainer on two resolutions without checkpointing: every second batch was skipped, those of the larger one."""
    process = read_story(open_log(log("emulated-train-two-sizes")))[0].processes[0]
    for number, size in enumerate([(1024, 1024), (1200, 800), (1024, 1024)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a photo of p3rs0n")
    process["datasets"][0]["folder_path"] = str(tmp_path)  # type: ignore[index]
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"job": "extension", "config": {"name": "lora-two-sizes", "process": [process]}}))
    found = document(log("emulated-train-two-sizes"), "--config", str(config))
    assert found["skipped_batches"] == 20
    assert "predicted not to fit: 1200x800, 1024x1024; to fit: 624x416, 512x512" in found["reasons"]
    assert found["outcome"]["verdict"] == SAFE


def test_not_your_config(document: Callable[..., dict[str, Any]]) -> None:
    found = document(log("others-listed"))
    assert (found["kind"], found["timing"], found["because"]) == ("E", "A", "others")
    assert found["prediction"]["verdict"] == SAFE
    assert found["changes"] == found["general"] == []
    assert found["actions"][0] == "not your config: start on a fresh worker; the card had 19.03 GiB taken by others"
    assert any("17653" in action for action in found["actions"])


def test_a_config_that_should_fit_points_to_the_worker(tmp_path: Path, document: Callable[..., dict[str, Any]]) -> None:
    """No number shows anything, but the prediction is safe with much to spare."""
    text = Path(log("cublas-in-training")).read_text().replace('"gradient_checkpointing": false', '"gradient_checkpointing": true')
    (tmp_path / "log.txt").write_text(text)
    found = document(str(tmp_path / "log.txt"), "--gpu", "RTX4090")
    assert (found["kind"], found["timing"], found["because"]) == ("E", "B", "dirty")
    assert "fresh worker" in found["actions"][0]
    assert document(log("cublas-in-training"), "--gpu", "RTX4090")["kind"] == "B"


def test_more_than_predicted_is_no_fault_of_the_worker(tmp_path: Path, document: Callable[..., dict[str, Any]]) -> None:
    text = (
        Path(log("later-preview")).read_text().replace("15.55 GiB", "23.51 GiB").replace("13.87 GiB", "21.87 GiB").replace("14.74", "22.74")
    )
    (tmp_path / "log.txt").write_text(text)
    found = document(str(tmp_path / "log.txt"))
    assert found["prediction"]["verdict"] == SAFE
    assert found["kind"] == "C"
    assert any("the prediction is too low" in reason for reason in found["reasons"])
    assert found["general"]


def test_a_single_line_is_held_against_the_whole_prediction(tmp_path: Path, document: Callable[..., dict[str, Any]]) -> None:
    """Was: "nothing in the log contradicts it", of 22 GiB in torch's hands where 14.3 are the most that is predicted anywhere."""
    line = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.51 GiB of which 210.38 "
        "MiB is free. Including non-PyTorch memory, this process has 23.20 GiB memory in use. Of the allocated memory 22.00 GiB is "
        "allocated by PyTorch, and 500.00 MiB is reserved by PyTorch but unallocated.\n"
    )
    (tmp_path / "log.txt").write_text(line)
    example = Path(__file__).resolve().parent.parent / "examples" / "zimage_turbo_ui.yaml"
    found = document(str(tmp_path / "log.txt"), "--config", str(example), "--gpu", "RTX4090")
    assert (found["kind"], found["because"], found["prediction"]["verdict"]) == (None, None, SAFE)
    assert any("24.00 GiB where 14." in reason for reason in found["reasons"])


def test_what_the_config_given_has_already_is_not_proposed(tmp_path: Path, document: Callable[..., dict[str, Any]]) -> None:
    """A log without its config: what is set is in the one that --config names (checkpointing on, batch 1)."""
    numbers = "(GPU 0; 23.69 GiB total capacity; 20.10 GiB already allocated; 1.20 GiB free; 21.50 GiB reserved in total by PyTorch)"
    steps = "corgi: 12%|# | 240/2000 [10:00<1:00:00, 2.5s/it, lr: 1.0e-04 loss: 3.2e-01]"
    (tmp_path / "log.txt").write_text(f"{steps}\ntorch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB {numbers}\n")
    config = Path(__file__).resolve().parent.parent / "examples" / "flux_dev_24gb.yaml"
    found = document(str(tmp_path / "log.txt"), "--config", str(config), "--gpu", "RTX4090")
    assert found["general"]
    assert not [line for line in found["general"] if "gradient_checkpointing" in line or line.startswith("train.batch_size")]


def test_another_card_than_the_one_named(document: Callable[..., dict[str, Any]]) -> None:
    """Predicted is what the log's card would do; on the named one it would have fitted."""
    found = document(log("emulated-load-transformer"), "--gpu", "RTX5090")
    assert (found["kind"], found["because"]) == ("E", "wrong_device")
    assert found["prediction"]["gpu"]["total_bytes"] < 16 * GIB
    assert "run it on the card you mean" in found["actions"][0]
    assert found["changes"], "or on this one, with changes"
    found = document(log("emulated-load-transformer"), "--gpu", "RTX3090")
    assert found["kind"] == "A", "it would not be safe there either"
    assert any("which is not RTX3090" in note for note in found["notes"])


def test_a_config_of_an_architecture_without_a_model(document: Callable[..., dict[str, Any]]) -> None:
    found = document(log("pinned-host-memory"), "--gpu", "RTX4090")
    assert found["prediction"] is None or found["prediction"]["gpu"]["name"] == "RTX4090"
    found = document(log("emulated-load-text-encoder"), "--arch", "no-such-arch")
    assert found["prediction"] is None
    assert any("no prediction" in note for note in found["notes"])
    assert found["general"]


# --- changes and what they do ---


def walked(name: str, gpu: str | None = None) -> tuple[Estimate, Failure, Any]:
    found = diagnose(read_story(open_log(log(name))), Question(gpu=gpu), lambda job, card, fast: estimate_job(job, card, fast=fast))
    assert found.prediction is not None
    assert found.failure is not None
    return found.prediction.estimate, found.failure, found


CASES = [
    ("emulated-load-transformer", None),
    ("emulated-prepare-chained", None),
    ("train-first-steps", "RTX4090"),
    ("train-some-batches", "RTX5090"),
    ("windows-refused", None),
]


@pytest.mark.parametrize(("name", "gpu"), CASES)
def test_savings_are_the_difference_of_the_estimates(name: str, gpu: str | None) -> None:
    """Of the phase that failed; the last step's need is what a fresh estimate of the changed job says."""
    estimate, failure, found = walked(name, gpu)

    def need(job: Job) -> int:
        phases = candidates(estimate_job(job, estimate.gpu, fast=True), failure)
        return max((phase.allocated_bytes for phase in phases), default=0)

    assert found.remedies
    assert found.outcome is not None
    before, after = need(estimate.job), need(found.outcome.job)
    assert sum(remedy.saves_bytes for remedy in found.remedies) == before - after
    assert found.remedies[-1].needs_bytes == after


@pytest.mark.parametrize(("name", "gpu"), CASES)
def test_every_change_changes_something(name: str, gpu: str | None) -> None:
    estimate, _, found = walked(name, gpu)
    assert found.outcome.job != estimate.job
    assert found.outcome.verdict != OOM
    for remedy in found.remedies:
        assert remedy.advice.before != remedy.advice.after
    keys = [remedy.advice.key for remedy in found.remedies]
    assert len(keys) == len(set(keys))


def test_checkpointing_first_in_training_and_the_user_gets_what_was_promised(
    tmp_path: Path, document: Callable[..., dict[str, Any]]
) -> None:
    found = document(log("train-first-steps"), "--gpu", "RTX4090")
    change = found["changes"][0]
    assert (change["key"], change["from"], change["to"], change["verdict"]) == ("train.gradient_checkpointing", False, True, SAFE)
    assert found["outcome"]["verdict"] == SAFE
    process = read_story(open_log(log("train-first-steps")))[0].processes[0]
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"job": "extension", "config": {"name": "cat", "process": [process]}}))
    (job,) = read_jobs(config, ("train.gradient_checkpointing=true",))
    assert estimate_job(job, find_gpu("RTX4090")).verdict == SAFE


def test_expandable_segments_where_they_are_enough(document: Callable[..., dict[str, Any]]) -> None:
    found = document(log("emulated-cache-text-in-pieces"))
    assert found["actions"][0].startswith("set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True")
    job, gpu = (walked("emulated-cache-text-in-pieces")[0].job, walked("emulated-cache-text-in-pieces")[0].gpu)
    plain, expandable = estimate_job(job, gpu), estimate_job(replace(job, expandable_segments=True), gpu)
    assert plain.verdict != SAFE
    assert expandable.verdict != OOM
    assert expandable.peak_phase.device.high_bytes < plain.peak_phase.device.high_bytes
    assert not any("expandable" in action for action in document(log("train-first-steps"), "--gpu", "RTX4090")["actions"])


def test_previews_first_where_they_failed() -> None:
    """Although caching text comes before in the order of what hurts least."""
    _, _, found = walked("later-preview")
    keys = [remedy.advice.key for remedy in found.remedies]
    assert not keys or keys[0].startswith(("sample.", "train.disable_sampling"))


def test_where_no_change_is_enough_a_card_is_named(document: Callable[..., dict[str, Any]]) -> None:
    found = document(log("emulated-cache-text"))
    assert found["changes"] == []
    (action,) = found["actions"]
    name = action.split("unchanged is ")[1].split(" (")[0]
    job = walked("emulated-cache-text")[0].job
    assert estimate_job(job, find_gpu(name)).verdict == SAFE


# --- the screen, statuses, options ---


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_the_screen_has_80_columns_and_no_escape_sequences(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["diagnose", str(path)])
    shown = capsys.readouterr().out
    assert max(map(len, shown.split("\n"))) <= 80
    assert shown.isascii() or path.stem == "latin-1"
    assert "\x1b" not in shown
    failed = "KIND" in shown
    assert status == (1 if failed else 0 if "it finished" in shown or "it was stopped" in shown else 3)
    assert failed == ("What to" in shown)
    assert "\n\n\n" not in shown


def test_a_config_that_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str], document: Callable[..., dict[str, Any]]) -> None:
    process = read_story(open_log(log("train-first-steps")))[0].processes[0]
    assert isinstance(process["train"], dict)
    process["train"]["batch_size"] = 4
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"job": "extension", "config": {"name": "cat", "process": [process]}}))
    found = document(log("train-first-steps"), "--gpu", "RTX4090", "--config", str(config))
    assert found["prediction"]["config"] == str(config)
    assert any("train.batch_size: 1 in the log, 4 given" in note for note in found["notes"])
    assert cli.main(["diagnose", log("killed"), "--config", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["none.txt"], [log("killed"), "--gpu", "rtx409"], [log("killed"), "--bogus"]):
        assert cli.main(["diagnose", *arguments]) == 2
        streams = capsys.readouterr()
        assert streams.out == ""
        assert "fix: " in streams.err


# --- measurement rows ---


def test_a_row_is_appended_once(tmp_path: Path, document: Callable[..., dict[str, Any]]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "mine"}')
    found = document(log("others-listed"), "--record", str(rows))
    assert any("recorded as log-" in note for note in found["notes"])
    again = document(log("others-listed"), "--record", str(rows))
    assert any("already" in note for note in again["notes"])
    mine, row = [json.loads(line) for line in rows.read_text().splitlines()]
    assert mine == {"id": "mine"}
    assert (row["outcome"], row["phase"], row["arch"], row["capacity_gib"]) == ("oom", "load", "zimage", 23.64)
    observed = {key: row["observed"][key] for key in ("oom_tried_gib", "oom_allocated_by_torch_gib", "oom_in_use_gib", "oom_others_gib")}
    assert observed == {"oom_tried_gib": 0.0781, "oom_allocated_by_torch_gib": 4.0, "oom_in_use_gib": 4.53, "oom_others_gib": 19.0316}
    assert row["config"]["gradient_checkpointing"] is True
    assert len(row["quote"]) <= 160
    assert "/workspace" not in json.dumps(row), "no path of the user's machine"


def test_a_row_has_no_rank_of_an_adapter_that_has_none(tmp_path: Path, document: Callable[..., dict[str, Any]]) -> None:
    config = Path(__file__).resolve().parent.parent / "examples" / "zimage_turbo_ui.yaml"
    for kind, rank in (("lora", 32), ("lokr", None)):
        rows = tmp_path / f"{kind}.jsonl"
        document(log("others-listed"), "--config", str(config), "--set", f"network.type={kind}", "--record", str(rows))
        assert json.loads(rows.read_text())["config"]["network_rank"] == rank


def test_rows_of_runs_that_say_nothing_of_the_card_are_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    cli.main(["diagnose", log("killed"), "--record", str(rows)])
    assert "nothing was recorded" in " ".join(capsys.readouterr().out.split())
    assert not rows.exists()
    assert cli.main(["diagnose", log("emulated-finished"), "--record", str(rows)]) == 0
    assert json.loads(rows.read_text())["outcome"] == "fits"
    assert cli.main(["diagnose", log("others-listed"), "--record", str(tmp_path / "no" / "rows")]) == 2


# --- what comes from outside ---


def test_a_large_log_streams_in_little_memory(tmp_path: Path) -> None:
    """60 MiB of progress bars, then the failure: the address space is limited to what the interpreter and numpy need anyway."""
    text = Path(log("train-first-steps")).read_text().replace('"steps": 3000', '"steps": 999999')
    start, end = text.split("cat:   0%", 1)
    path = tmp_path / "log.txt"
    bar = "cat:   8%|8         | 123/999999 [00:12<03:10,  1.55it/s, lr: 1.0e-04 loss: 1.000e+00]\r"
    with path.open("w") as file:
        file.write(start)
        for _ in range(60):
            file.write(bar * (MIB // len(bar)))
        file.write("\ncat:   0%" + end)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (400 * 2**20,) * 2); "
        "from estimator.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    began = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", code, "diagnose", str(path)]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    assert "KIND B" in done.stdout
    assert time.monotonic() - began < 120


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.97])
def test_a_log_that_is_cut_anywhere_is_answered(tmp_path: Path, share: float, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.txt"
    for name in ("train-late", "emulated-prepare-chained", "coloured-and-stamped", "powershell", "windows-slow-later"):
        content = Path(log(name)).read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        assert cli.main(["diagnose", str(path)]) in (0, 1, 3)
        path.write_bytes(content[int(share * len(content)) :])
        assert cli.main(["diagnose", str(path)]) in (0, 1, 2, 3)
        assert "internal error" not in capsys.readouterr().err


def test_a_name_cannot_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.txt"
    path.write_text(Path(log("killed")).read_text().replace("# Running job: cat", "# Running job: c\x1b[2J\x07\x9b2Jat"))
    cli.main(["diagnose", str(path)])
    assert all(char.isprintable() or char == "\n" for char in capsys.readouterr().out)


# --- progress bars ---


def test_bars() -> None:
    bar = b"my: lora 2:  10%|9         | 299/3000 [1:10:44<1:37:05,  2.16s/it, lr: 2.0e-04 loss: 5.226e-01]"
    assert parse_bar(bar) == (b"my: lora 2", 299, 3000, 4244, True)
    assert parse_bar(b"  0%|          | 0/2 [00:00<?, ?it/s]") == (b"", 0, 2, 0, False)
    assert parse_bar("Fetching:  83%|████████▎ | 1.5k/1.8M [00:02<00:00, 249.86it/s]".encode()) == (b"Fetching", 1500, 1800000, 2, False)
    assert parse_bar(b"100 % sure | 3/4 [yes]") is None


def times(*steps: tuple[int, int]) -> StepTimes:
    watch = StepTimes()
    for number, (done, seconds) in enumerate(steps):
        watch.update(done, seconds, number)
    return watch


def test_a_lasting_jump_is_seen_and_single_slow_steps_are_not() -> None:
    usual = [(n, 3 * n) for n in range(30)]
    assert times(*usual).jump is None
    assert times(*usual, *((30 + n, 100 + 3 * n) for n in range(30))).jump is None, "one step of 13 seconds"
    jump = times(*usual, *((30 + n, 87 + 25 * n) for n in range(1, 9))).jump
    assert jump is not None
    assert (jump.before_seconds, jump.after_seconds) == (3, 25)
    assert 29 <= jump.step <= 31
    large_and_small = [(n, sum(2 + 6 * (k % 2) for k in range(n))) for n in range(60)]
    assert times(*large_and_small).jump is None, "two sizes that take turns"


def test_a_job_that_is_run_again_begins_its_times_anew() -> None:
    assert times(*((n, 3 * n) for n in range(30)), *((n, 3 * n) for n in range(30))).jump is None
