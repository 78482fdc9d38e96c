"""Kind, time and cause of every log in tests/data/logs.

`emulated-*` are runs of the real trainer on the emulated device, shortened. The others are in the trainer's words, after reports whose
figures they have: ostris/ai-toolkit issues 225, 277, 484, 506, 574, 595, 787, 929; fluxgym 78, 383; FluxText 25; DiffSynth-Studio 411;
sglang 15927; black-forest-labs/flux2 23; pytorch 111363. Without a prediction: what the log alone tells.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from estimator import crash
from estimator.crash import Diagnosis
from estimator.diagnosis.diagnose import Question, diagnose
from estimator.diagnosis.lines import open_log
from estimator.diagnosis.story import read_story
from estimator.errors import CannotTell
from estimator.estimate import Estimate
from estimator.gpus import Gpu
from estimator.job import Job

LOGS = Path(__file__).resolve().parent / "data" / "logs"
A, B, C, D, E = crash.KIND_A, crash.KIND_B, crash.KIND_C, crash.KIND_D, crash.KIND_E
LOAD, TEXT, REST, BASELINE, LATER = "transformer", "text encoder", "the rest", "baseline", "with optimizer state"

# name -> kind, timing, why (kind E), phase, part, training steps done
EXPECTED: dict[str, tuple[str, str, str, str, str, int]] = {
    "emulated-load-transformer": (A, A, "", "load", LOAD, 0),
    "emulated-load-text-encoder": (A, A, "", "load", TEXT, 0),
    "emulated-load-while-fusing": (A, A, "", "load", LOAD, 0),
    "emulated-cache-text": (A, A, "", "cache_text", "", 0),
    "emulated-cache-text-in-pieces": (A, A, "", "cache_text", "", 0),
    "emulated-prepare-chained": (A, A, "", "prepare", "before the loop", 0),
    "torch-2-1": (A, A, "", "load", TEXT, 0),
    "wrapped-by-a-terminal": (A, A, "", "load", LOAD, 0),
    "private-pools": (A, A, "", "cache_latents", "", 0),
    "powershell": (A, A, "", "load", LOAD, 0),
    "latin-1": (A, A, "", "load", LOAD, 0),
    "train-first-steps": (B, B, "", "train", "", 3),
    "train-uncaught-backward": (B, B, "", "train", "", 2),
    "torch-1-13": (B, B, "", "train", "", 1),
    "container-own-process": (B, B, "", "train", "", 1),
    "cuda-malloc-async": (B, B, "", "train", "", 0),
    "driver-out-of-memory": (B, B, "", "train", "", 0),
    "cublas-in-training": (B, B, "", "train", "", 0),
    "windows-in-use-nonsense": (B, B, "", "train", "", 0),
    "windows-slow-first-steps": (B, B, "", "train", "", 5),
    "coloured-and-stamped": (B, B, "", "train", "", 2),
    "two-jobs-same-config": (B, B, "", "train", "", 1),
    "two-jobs-second-fails": (B, B, "", "train", "", 1),
    "first-preview-decode": (C, C, "", "sample", BASELINE, 0),
    "later-preview": (C, C, "", "sample", LATER, 249),
    "emulated-train-two-sizes": (D, D, "", "train", "", 39),
    "train-some-batches": (D, D, "", "train", "", 10),
    "train-late": (D, D, "", "train", "", 415),
    "video-longest-clip": (D, D, "", "train", "", 25),
    "windows-slow-later": (D, D, "", "train", "", 899),
    "others-listed": (E, A, crash.OTHERS, "load", TEXT, 0),
    "others-unlisted": (E, A, crash.OTHERS, "load", LOAD, 0),
    "nothing-free-conservative": (E, A, crash.OTHERS, "load", LOAD, 0),
    "windows-refused": (E, A, crash.REFUSED, "load", TEXT, 0),
    "limit-set": (E, A, crash.REFUSED, "load", LOAD, 0),
    "fragmented": (E, D, crash.FRAGMENTED, "train", "", 40),
    "cublas-conservative": (E, A, crash.DIRTY, "load", TEXT, 0),
    "killed": (E, A, crash.HOST_MEMORY, "load", TEXT, 0),
    "kernel-log": (E, A, crash.HOST_MEMORY, "load", LOAD, 0),
    "exit-137": (E, A, crash.HOST_MEMORY, "load", REST, 0),
    "paging-file": (E, A, crash.HOST_MEMORY, "load", LOAD, 0),
    "cpu-allocator": (E, A, crash.HOST_MEMORY, "load", LOAD, 0),
    "pinned-host-memory": (E, A, crash.HOST_MEMORY, "load", LOAD, 0),
    "shared-memory": (E, B, crash.HOST_MEMORY, "train", "", 3),
    "vanished": (E, B, crash.HOST_MEMORY, "train", "", 6),
    "no-card": (E, A, crash.WRONG_DEVICE, "load", LOAD, 0),
    "wrong-ordinal": (E, A, crash.WRONG_DEVICE, "load", LOAD, 0),
    "only-the-message": ("", "", "", "", "", 0),
}
NO_FAILURE = {
    "emulated-finished": "it finished",
    "stopped": "it was stopped",
    "cut-in-training": "without an error",
    "another-error": "not on memory: Error running job: Expected all tensors",
}


def unpredicted(job: Job, gpu: Gpu, fast: bool) -> Estimate:
    raise CannotTell


def of(name: str) -> Diagnosis:
    return diagnose(read_story(open_log(str(LOGS / f"{name}.txt"))), Question(), unpredicted)


@pytest.mark.parametrize("name", EXPECTED)
def test_kind_time_and_cause(name: str) -> None:
    found = of(name)
    assert found.failure is not None
    failure = found.failure
    assert (found.kind, found.timing, found.because, failure.phase, failure.part, failure.step) == EXPECTED[name]


@pytest.mark.parametrize("name", NO_FAILURE)
def test_logs_without_a_memory_failure(name: str) -> None:
    found = of(name)
    assert found.failure is None
    assert found.kind == ""
    assert NO_FAILURE[name] in found.headline
    assert not found.actions
    assert not found.general


def test_every_log_is_here() -> None:
    assert {path.stem for path in LOGS.glob("*.txt")} == EXPECTED.keys() | NO_FAILURE.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_something_is_proposed_and_never_what_is_set_already(name: str) -> None:
    found = of(name)
    assert found.actions or found.general
    process = found.run.processes[0] if found.run.processes else {}
    train = process.get("train", {})
    assert isinstance(train, dict)
    if process and train.get("gradient_checkpointing") is True:
        assert not any("gradient_checkpointing" in line for line in found.general)
    if process and train.get("batch_size") == 1:
        assert not any(line.startswith("train.batch_size") for line in found.general)


@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - {"only-the-message"}))
def test_the_config_is_read_from_the_log(name: str) -> None:
    processes = of(name).run.processes
    assert len(processes) == 1
    assert {"network", "train", "model", "datasets"} <= processes[0].keys()


def test_numbers_of_the_message() -> None:
    failure = of("others-listed").failure
    assert failure is not None
    assert failure.numbers is not None
    assert failure.numbers.others == ((17653, round(19.03 * 2**30)),)
    assert failure.line == 81, "the first line that says it"
    assert of("others-unlisted").others_bytes == pytest.approx(38.9 * 2**30, rel=0.01)
    assert of("container-own-process").others_bytes == 0


def test_batches_that_were_skipped_and_steps_that_went_through() -> None:
    run = of("train-some-batches").run
    assert run.recovered
    assert (run.skips, run.step, run.successes) == (3, 14, 11)
    assert not of("train-first-steps").run.recovered


def test_what_ended_it_is_what_counts() -> None:
    """Of two exceptions, one while the other was handled, the trainer dies of the second."""
    found = of("emulated-prepare-chained")
    assert found.failure is not None
    assert found.failure.numbers is not None
    assert found.failure.numbers.allocated_bytes == round(11.17 * 2**30)
    assert found.failure.line == min(each.line for each in found.run.failures)


def test_sizes_are_those_that_the_log_lists() -> None:
    buckets = of("video-longest-clip").run.buckets
    assert [(each.width, each.height, each.frames, each.count) for each in buckets[0]] == [(624, 352, 81, 4), (480, 480, 41, 9)]
    assert any("624x352x81" in reason for reason in of("video-longest-clip").reasons)


def test_frames_first_for_video() -> None:
    assert of("video-longest-clip").general[0].startswith("datasets.num_frames")


def test_a_config_that_has_it_all_gets_no_setting_again(tmp_path: Path) -> None:
    text = (LOGS / "train-late.txt").read_text().replace('"gradient_checkpointing": false', '"gradient_checkpointing": true')
    text = re.sub(r'"resolution": \[[^]]*\]', '"resolution": [512]', text).replace('"low_vram": false', '"low_vram": true')
    text = text.replace('"batch_size": 1,', '"batch_size": 1, "disable_sampling": true,')
    (tmp_path / "log.txt").write_text(text)
    found = diagnose(read_story(open_log(str(tmp_path / "log.txt"))), Question(), unpredicted)
    assert found.general == ("all that helps here is set already: try a fresh worker once, then a larger card",)


def test_steps_that_crawl() -> None:
    slow = of("windows-slow-later").run.slowdown
    assert slow is not None
    assert 1.5 < slow.before_seconds < 2.5
    assert slow.after_seconds == pytest.approx(27.8, rel=0.02)


def test_other_jobs_in_the_log_are_said() -> None:
    same = of("two-jobs-same-config")
    assert same.jobs == 2
    assert any("failed in the same phase before" in note for note in same.notes)
    second = of("two-jobs-second-fails")
    assert second.run.name == "cat"
    assert any("2 jobs" in note for note in second.notes)
    assert not any("before" in note for note in second.notes)
