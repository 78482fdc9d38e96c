"""The shipped examples, the README and docs/cli.md: they read as users' configs do, and what they say is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from calibration import examples_page
from estimator import cli, commands
from estimator.archs import load_archs
from estimator.commands import calibrate, check, diagnose, watch
from estimator.gpus import all_gpus, find_gpu
from estimator.trainers import read_jobs

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
ARCHS = {
    "flux_dev_24gb": "flux1-dev",
    "flux_schnell_24gb": "flux1-schnell",
    "flux_kontext_24gb": "flux1-kontext",
    "chroma_24gb": "chroma",
    "chroma_radiance_24gb": "chroma-radiance",
    "flex1_24gb": "flex1",
    "flex2_24gb": "flex2",
    "flux2_dev_ui": "flux2-dev",
    "flux2_klein_4b_ui": "flux2-klein-4b",
    "flux2_klein_9b_ui": "flux2-klein-9b",
    "hidream_48gb": "hidream",
    "omnigen2_24gb": "omnigen2",
    "sdxl_ui": "sdxl-aitk",
    "sd15_ui": "sd15-aitk",
    "sd35_large_24gb": "sd35-large-aitk",
    "sd35_medium_16gb": "sd35-medium-aitk",
    "lumina2_ui": "lumina2-aitk",
    "zimage_base_ui": "zimage",
    "zimage_turbo_ui": "zimage-turbo",
    "zimage_l2p_ui": "zimage-l2p",
    "wan21_1b_ui": "wan21-1.3b",
    "wan21_14b_24gb": "wan21-14b",
    "wan21_14b_i2v_ui": "wan21-i2v-14b",
    "wan22_14b_ui": "wan22-14b",
    "wan22_14b_i2v_ui": "wan22-i2v-14b",
    "wan22_14b_24gb": "wan22-14b",
    "wan22_5b_ui": "wan22-5b",
    "ltx2_ui": "ltx2",
    "ltx23_ui": "ltx2.3",
    "ltx25_ui": "ltx2.5",
    "qwen_image_ui": "qwen-image",
    "qwen_image_24gb": "qwen-image",
    "qwen_edit_ui": "qwen-image-edit",
    "qwen_edit_2509_ui": "qwen-image-edit-2509",
    "qwen_edit_2511_ui": "qwen-image-edit-2511",
}

RESOLUTIONS = {
    "flux_kontext_24gb": [512, 768], "wan21_1b_ui": [512], "wan21_14b_24gb": [632], "wan22_14b_ui": [512], "wan22_14b_i2v_ui": [512],
    "wan21_14b_i2v_ui": [512], "wan22_5b_ui": [512], "ltx2_ui": [512], "ltx23_ui": [512], "ltx25_ui": [512], "sd15_ui": [512, 768],
    "sd35_large_24gb": [1024],
}  # fmt: skip

examples = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def command_in(path: Path) -> list[str]:
    """The command that the example's own comment gives."""
    found = re.search(r"^#   estimate (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{path.name} says no command"
    return found[1].split()


def test_there_is_one_of_each_architecture() -> None:
    assert {path.stem for path in EXAMPLES} == set(ARCHS)
    assert set(ARCHS.values()) == set(load_archs().trained())


def test_the_page_of_examples_is_what_they_come_to() -> None:
    """After an intended change: python -m calibration.examples_page."""
    assert examples_page.page() == examples_page.PAGE.read_text(encoding="utf-8")


@examples
def test_each_is_read_without_a_question(path: Path) -> None:
    """All that may be said of an example is that its dataset, control images and recovery adapter are not here, or not made yet."""
    (job,) = read_jobs(path)
    assert job.arch == ARCHS[path.stem]
    assert job.unmodelled == ()
    warnings = [text for text in job.warnings if not (job.model.weights.endswith("-recovery") and "is assumed to have rank" in text)]
    warnings = [text for text in warnings if job.model.merges or "does not quantise" not in text]  # as the web UI writes it of SD 1.5
    by_flash_attn = [text for text in warnings if "without flash-attn" in text]
    assert len(by_flash_attn) == bool(load_archs().archs[job.arch].by_flash_attn)
    warnings = [text for text in warnings if text not in by_flash_attn]
    said, *others = sorted(warnings, key=lambda text: "worst bucket" not in text)
    assert "is not here: the worst bucket of each resolution is assumed" in said
    assert all(re.search(r"(control_path|samples|prompts).* (is|are) not here|controls.*: not estimated", text) for text in others)
    assert bool(others) == bool(job.datasets[0].buckets[0].controls)
    assert [each.resolution for each in job.datasets] == RESOLUTIONS.get(path.stem, [512, 768, 1024])


@examples
def test_each_names_itself_and_a_card_that_exists(path: Path) -> None:
    config, option, card = command_in(path)
    assert (config, option) == (f"examples/{path.name}", "--gpu")
    assert find_gpu(card)


@examples
def test_its_own_command_answers(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "estimator", *command_in(path), "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert done.returncode == {"safe": 0, "borderline": 1, "oom": 1}[document["verdict"]]
    assert {"load", "sample", "train", "save"} <= {phase["phase"] for phase in document["phases"]}


def test_the_documentation_has_every_option_and_no_other() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    options = {option for action in check.parser()._actions for option in action.option_strings}
    assert options == set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text.split("## Cards")[0])) - {"-"}


def test_the_documentation_of_diagnose_has_every_option() -> None:
    section = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").split("## Diagnose")[1]
    options = {option for action in diagnose.parser()._actions for option in action.option_strings}
    assert options - {"--help", "--no-colour"} == set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", section)) - {"-"}


STATUSES = {value for module in (cli, commands) for name, value in vars(module).items() if name.endswith("_STATUS")}


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_the_documentation_has_every_exit_status(status: int) -> None:
    table = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").split("## Exit status")[1].split("## ")[0]
    assert re.search(rf"^\|[\d, ]*\b{status}\b", table, re.MULTILINE)


def test_the_readme_counts_right() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"on {len(all_gpus())} NVIDIA cards" in text
    assert re.search(r"\.venv/bin/estimate examples/flux_dev_24gb\.yaml --gpu RTX4090", text)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(("heading", "command"), [("`estimate calibrate`", calibrate), ("`estimate watch ", watch)])
def test_the_documentation_of_card_commands_has_every_option(heading: str, command: ModuleType) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = next(part for part in text.split("\n## ") if heading in part.splitlines()[0])
    options = {option for action in command.parser()._actions for option in action.option_strings}
    assert options - {"--help", "-h", "--no-colour"} <= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", section))
