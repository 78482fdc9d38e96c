"""`estimate calibrate` from start to overlay on the emulated device, killed on the way, and the estimate that uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from estimator import cli
from estimator.gpus import MIB
from estimator.overlay_file import read_overlay

pytestmark = pytest.mark.emulated

ROOT = Path(__file__).resolve().parent.parent
RUN = str(ROOT / "calibration" / "emulated_cuda" / "run.sh")


@pytest.fixture
def on_device(tmp_path: Path, needs_on_device: Callable[..., None]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python ...` on the emulated device of these settings, with an empty config folder."""
    needs_on_device("diffusers", "transformers", "yaml", "rich")

    def run(*command: str, **settings: object) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("FAKECUDA_", "PYTORCH_", "PYTHON", "VIRTUAL_ENV"))}
        env |= {"FAKECUDA_PYTHON": os.environ["EMULATED_CUDA_PYTHON"], "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path)}
        env |= {f"FAKECUDA_{name}": str(value) for name, value in settings.items()}
        return subprocess.run([RUN, *command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)

    return run


def test_killed_and_resumed_it_comes_to_the_same_overlay(on_device: Callable[..., Any], tmp_path: Path) -> None:
    """A small card of 80 GiB's generation. All kills of the acceptance are made by calibration.oncard.interrupted with --kills 20."""
    folder = tmp_path / "kills"
    settings = {"CC": 9.0, "TOTAL_MIB": 12000, "CONTEXT_MIB": 777}
    done = on_device("-m", "calibration.oncard.interrupted", str(folder), "--kills", "3", "--arch", "zimage", **settings)
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "killed" / "log.txt").read_text()
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["lost"], found["doubled"], found["added"], found["same_overlay"]) == ([], [], [], True)

    overlay = read_overlay(str(folder / "killed" / "card.overlay.json"))
    assert overlay.emulated
    assert overlay.total_bytes == 12000 * MIB
    assert overlay.context.likely == 777 * MIB
    assert overlay.workspace_bytes == 32 * MIB, "from 9.0 on"
    assert max(abs(end - 1) for end in (overlay.allocated.low, overlay.allocated.high)) < 0.001, "cells are what the programs say"


def test_the_overlay_of_a_card_is_used_by_estimates(on_device: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Only the card's own cells: no minutes are left for others. cuDNN's workspaces are off."""
    done = on_device("-m", "estimator", "calibrate", "--minutes", "0.0001", "--arch", "zimage", CC=8.9, TOTAL_MIB=24080, CONTEXT_MIB=1150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "emulated: nothing here is a measurement" in done.stdout
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("estimator.overlays._listed", {})
    config = str(ROOT / "examples" / "zimage_turbo_ui.yaml")
    documents = []
    for options in ([], ["--no-overlay"]):
        cli.main([config, "--gpu", "RTX4090", "--json", *options])
        documents.append(json.loads(capsys.readouterr().out))
    calibrated, plain = documents
    assert calibrated["gpu"]["overlay"]["emulated"]
    assert calibrated["gpu"]["context_bytes"] - plain["gpu"]["context_bytes"] == 700 * MIB
    moved = {new["device_bytes"] - old["device_bytes"] for new, old in zip(calibrated["phases"], plain["phases"], strict=True)}
    assert moved == {700 * MIB}


def test_a_cell_that_does_not_fit_is_a_row(on_device: Callable[..., Any], tmp_path: Path) -> None:
    """The worker itself, asked for a step that no card of 4 GiB holds, and then for one that it does."""
    cell = {"do": "cell", "part": "step", "arch": "zimage", "depth": [4], "width": 1024, "height": 1024, "batch": 2, "rank": 8, "text": 96}
    vae = {"do": "cell", "part": "vae", "arch": "zimage", "width": 512, "height": 512}
    requests = [{"do": "hello"}, {**cell, "checkpointing": False}, vae]
    code = (
        f"import subprocess, sys\nworker = subprocess.Popen([sys.executable, {str(ROOT / 'calibration' / 'oncard' / 'worker.py')!r}], "
        "stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)\n"
        f"for line in {[json.dumps(one) for one in requests]!r}:\n"
        "    worker.stdin.write(line + '\\n'); worker.stdin.flush(); print(worker.stdout.readline(), end='', flush=True)\n"
        "worker.stdin.close(); worker.wait(20)"
    )
    done = on_device("-c", code, CC=8.9, TOTAL_MIB=4096)
    hello, large, small = map(json.loads, done.stdout.splitlines())
    assert hello["emulated"]
    assert large["outcome"] == "oom"
    assert "out of memory" in large["error"]
    assert small["outcome"] == "ok"
    assert sys.maxsize > small["max_allocated_bytes"] > 300 * MIB
