"""Versions: an estimate for another version of the trainer is wider and says why; two profiles are compared part by part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_writer import process

from calibration import drift
from estimator import cli
from estimator.archive import sizes_of
from estimator.drift import recorded_versions
from estimator.gpus import find_gpu
from estimator.intervals import residual_for
from estimator.planner.edits import Edit
from estimator.planner.subject import read_subject
from estimator.trainers import read_jobs
from tests.made_jobs import ARCHS

ROOT = Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "examples" / "zimage_turbo_ui.yaml")
RECORDED = recorded_versions("zimage-turbo")["ai-toolkit"]


def estimate(capsys: pytest.CaptureFixture[str], config: str, *options: str) -> Any:
    cli.main([config, "--gpu", "A100-80G", "--json", *options])
    return json.loads(capsys.readouterr().out)


def test_another_version_widens_the_interval_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    plain = estimate(capsys, CONFIG)
    same, other = (estimate(capsys, CONFIG, "--trainer-version", version) for version in (f"v{RECORDED}", "99.1"))
    assert same == plain
    for old, new in zip(plain["phases"], other["phases"], strict=True):
        assert new["device_bytes"] == old["device_bytes"], "the likely figure stays"
        assert new["device_high_bytes"] > old["device_high_bytes"]
        assert new["device_low_bytes"] < old["device_low_bytes"]
    (line,) = set(other["assumptions"]) - set(plain["assumptions"])
    assert "AI Toolkit 99.1 is named" in line
    assert RECORDED in line
    assert cli.main([CONFIG, "--gpu", "RTX4090", "--trainer-version", "99.1"]) in (0, 1)
    assert "AI Toolkit 99.1 is named" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("meta", "version"),
    [
        ({"name": "[name]", "version": "1.0"}, None),  # the user's own version of the LoRA
        ({"software": {"name": "ai-toolkit", "version": "0.9.1"}}, "0.9.1"),
        ({"software": {"name": "another", "version": "0.9.1"}}, None),
        ({"software": {"name": "ai-toolkit", "version": 3}}, None),
        ("1.0", None),
    ],
)
def test_a_config_may_name_the_version(meta: object, version: str | None, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"job": "extension", "config": {"name": "x", "process": [process()]}, "meta": meta}))
    (job,) = read_jobs(path)
    assert job.trainer_version == version
    reasons = residual_for(find_gpu("RTX4090"), job).reasons
    assert any("is named" in reason for reason in reasons) == (version is not None)


def test_plans_and_estimates_are_for_the_same_version(tmp_path: Path) -> None:
    """A plan that took the recorded version in place of the config's called safe what check, with its wider interval, does not."""
    path = tmp_path / "config.yaml"
    path.write_text((ROOT / "examples" / "zimage_turbo_ui.yaml").read_text() + "  software: {name: ai-toolkit, version: 0.9.1}\n")
    (job,) = read_jobs(path)
    planned, other = (read_subject(str(path), (), None, (), version) for version in (None, "99.1"))
    assert (job.trainer_version, planned.job.trainer_version, other.job.trainer_version) == ("0.9.1", "0.9.1", "99.1")
    edited = planned.read((Edit("train.batch_size", 2),))
    assert edited is not None
    assert edited.trainer_version == "0.9.1"


def test_what_is_no_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([CONFIG, "--gpu", "RTX4090", "--trainer-version", "latest"]) == 2
    assert "--trainer-version latest: no version" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ARCHS)
def test_every_profile_names_what_it_was_recorded_from(arch: str) -> None:
    assert {"ai-toolkit", "torch", "diffusers"} <= recorded_versions(arch).keys()


# --- two profiles -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a shipped profile whose profile.json went through a function."""

    def make(change: Callable[[dict[str, Any]], object]) -> Path:
        folder = tmp_path / "zimage"
        shutil.copytree(ROOT / "profiles" / "zimage", folder)
        data = json.loads((folder / "profile.json").read_text())
        change(data)
        (folder / "profile.json").write_text(json.dumps(data))
        return folder

    return make


OLD = ROOT / "profiles" / "zimage"
CORE = "step.core/bf16/checkpointed/one"


def compared(new: Path) -> tuple[str, int]:
    return drift.report(drift.read_profile(OLD), drift.read_profile(new), drift.TOLERANCE)


def test_the_same_profile_has_not_moved() -> None:
    text, status = compared(OLD)
    assert (text.splitlines()[-1], status) == ("nothing moved", 0)


def test_a_peak_that_moved_is_found_with_its_size(changed: Callable[..., Path]) -> None:
    def taller(data: dict[str, Any]) -> None:
        for row in data["parts"][CORE]["peaks"]:
            row["bytes"] = {name: 2 * count for name, count in row["bytes"].items()}

    text, status = compared(changed(taller))
    assert status == 1
    assert "+100.00%" in text
    assert [line for line in text.splitlines() if CORE in line]
    assert text.splitlines()[-1] == "1 differences, 1 of more than 1.0%"


def test_parts_that_come_and_go_residents_and_versions(changed: Callable[..., Path]) -> None:
    def other(data: dict[str, Any]) -> None:
        data["parts"]["step.core/bf17/checkpointed/one"] = data["parts"].pop(CORE)
        data["residents"]["vae"] = [[size + 512, 1] for size in sizes_of(data["residents"]["vae"])]
        data["made"]["versions"]["torch"] = "3.0"

    text, status = compared(changed(other))
    assert status == 1
    assert f"{CORE}: gone" in text
    assert "step.core/bf17/checkpointed/one: new" in text
    assert "vae: " in text
    assert f"torch {recorded_versions('zimage')['torch']} -> 3.0" in text


def test_small_moves_are_told_and_pass(changed: Callable[..., Path]) -> None:
    def little(data: dict[str, Any]) -> None:
        for row in data["parts"][CORE]["peaks"]:
            row["bytes"] = {name: round(1.001 * count) for name, count in row["bytes"].items()}

    text, status = compared(changed(little))
    assert status == 0
    assert "1 differences, 0 of more than 1.0%" in text


def test_the_job_of_another_version_is_another_job() -> None:
    (job,) = read_jobs(CONFIG)
    gpu = find_gpu("RTX4090")
    plain, other = residual_for(gpu, job), residual_for(gpu, replace(job, trainer_version="99"))
    assert other.spread("allocated", "train").high_share > plain.spread("allocated", "train").high_share
