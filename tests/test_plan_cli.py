"""`estimate plan` as its users meet it: answers, files, exit statuses, and what it says to bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from estimator.cli import main
from estimator.gpus import all_gpus, find_gpu

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ZIMAGE = EXAMPLES / "zimage_turbo_ui.yaml"


def plan(*arguments: object) -> int:
    return main(["plan", *map(str, arguments)])


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(ZIMAGE.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def test_what_the_trainer_stops_on_is_no_question_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Was: "1088 is not safe" of a model that takes no more than 1024 px, on whatever card."""
    words = (EXAMPLES / "hidream_48gb.yaml", "--gpu", "H200", "--aim", "resolution")
    assert plan(*words) == 0
    assert "resolution: 1024 px, no more; 1088 stops the trainer, or is not modelled" in capsys.readouterr().out
    assert plan(*words, "--json") == 0
    assert document(capsys)["growth"] == [{"what": "resolution", "now": 1024, "most": 1024, "beyond": 1088, "refused": True}]


def test_the_answer_on_a_screen_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(ZIMAGE, "--gpu", "RTX3060") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("SAFE: ")
    assert "-        cache_text_embeddings: false" in shown
    assert "+        cache_text_embeddings: true" in shown
    own = [line for line in shown.splitlines() if "zimage_turbo_ui.yaml" not in line]
    assert max(map(len, own)) <= 80


def test_the_written_file_is_safe_and_the_input_stays(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, out = config.read_bytes(), tmp_path / "planned.yaml"
    assert main([str(config), "--gpu", "RTX3060"]) == 1
    assert plan(config, "--gpu", "RTX3060", "--write", out) == 0
    assert config.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["mine.yaml", "planned.yaml"]
    assert main([str(out), "--gpu", "RTX3060"]) == 0
    capsys.readouterr()


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(ZIMAGE, "--gpu", "RTX3060", "--json") == 0
    found = document(capsys)
    assert (found["schema"], found["verdict"], found["aim"]) == (1, "safe", "quality")
    assert found["before"]["verdict"] == "oom"
    assert found["after"]["verdict"] == "safe"
    assert ("model.qtype", "qfloat8") in {(edit["key"], edit["from"]) for edit in found["edits"]}
    assert all(change["step_weaker"]["verdict"] != "safe" for change in found["changes"])
    assert found["diff"].startswith("--- ")


def test_in_place(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(config, "--gpu", "RTX3060", "--in-place") == 0
    assert f"Written to {config}" in "".join(capsys.readouterr().out.split("\n"))
    assert main([str(config), "--gpu", "RTX3060"]) == 0
    assert plan(config, "--gpu", "RTX3060") == 0
    assert "as it is" in capsys.readouterr().out


def test_what_was_set_goes_into_the_file(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "planned.yaml"
    assert plan(config, "--gpu", "RTX3060", "--set", "datasets.*.resolution=[512]", "--keep", "datasets.*.resolution", "--write", out) == 0
    capsys.readouterr()
    assert main([str(out), "--gpu", "RTX3060", "--json"]) == 0
    phases = document(capsys)["phases"]
    assert {phase["variant"]["width"] for phase in phases if phase["phase"] == "train"} == {512}


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("config.process.0.train.batch_size", ("config", "process", 0, "train", "batch_size")),
        ("process[0].train.batch_size", ("config", "process", 0, "train", "batch_size")),
        ("config.process.*.train.batch_size", ("config", "process", 0, "train", "batch_size")),
        ("config.name", ("config", "name")),
    ],
)
def test_what_was_set_by_its_whole_path_goes_to_that_place(
    key: str, place: tuple[str | int, ...], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Was: an internal error, or a key of that name below the process."""
    out = tmp_path / "planned.yaml"
    value = "mine" if key.endswith("name") else 3
    assert plan(config, "--gpu", "A100-80G", "--set", f"{key}={value}", "--write", out) == 0, capsys.readouterr().err
    before, after = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (config, out))
    node = before
    for word in place[:-1]:
        node = node[word]
    node[place[-1]] = value
    assert after == before


def test_no_card_is_too_small_to_be_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(ZIMAGE, "--gpu", "4GiB") == 1
    shown = capsys.readouterr().out
    assert "NO SAFE CONFIG" in shown
    assert "The smallest card of the catalogue on which one is: " in shown
    assert "Its plan: estimate plan " in shown  # with the same options


ROOM = 1.2  # beside the weights: adapter, activations, interval
UNQUANTISED = ("model.quantize", "model.quantize_te")
TEXT_ENCODER_GIB, TRANSFORMER_GIB = 24.0e9 * 2 / 2**30, 32.2e9 * 2 / 2**30  # FLUX.2-dev in bf16


@pytest.mark.parametrize(("pinned", "together_gib"), [(True, TEXT_ENCODER_GIB + TRANSFORMER_GIB), (False, TEXT_ENCODER_GIB)])
def test_flux2_dev_in_bf16_cannot_fit_on_12_gb_at_all(pinned: bool, together_gib: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Its text encoder is read onto the card in bf16 whatever is quantised then; unquantised, both meet there before training."""
    sets = [word for key in UNQUANTISED for word in ("--set", f"{key}=false")]
    pins = [word for key in UNQUANTISED for word in ("--keep", key)] if pinned else []
    assert plan(EXAMPLES / "flux2_dev_ui.yaml", "--gpu", "RTX3060", "--json", *sets, *pins) == 1
    found = document(capsys)
    assert found["after"] is None
    card = find_gpu(found["smallest_gpu"])
    assert together_gib * 2**30 < card.total_bytes
    others = [other.total_bytes for other in all_gpus("linux") if other.total_bytes > together_gib * 2**30 * ROOM]
    assert card.total_bytes <= min(others)


def test_a_card_without_flash_attention_is_never_safe(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(ZIMAGE, "--gpu", "V100-32G", "--json") == 1
    found = document(capsys)
    assert found["after"] is None
    assert found["smallest_gpu"] == "RTX5060Ti-8G"  # smaller than it: its size is not what is wanting (was: the next larger, RTX-5000-Ada)


def test_on_a_card_without_flash_attention_no_change_is_proposed(capsys: pytest.CaptureFixture[str]) -> None:
    """Was: `check` proposed to drop sizes that fit by 11 GiB, --steps walked all the way down, and none said why."""
    small = EXAMPLES / "sd15_ui.yaml"
    assert main(["check", str(small), "--gpu", "T4"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "What is modelled fits; nothing is called safe on compute capability 7.5" in shown
    assert "What to change" not in shown
    assert plan(small, "--gpu", "T4") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "None of the reachable configs is safe: nothing is called safe on compute capability 7.5" in shown
    assert plan(small, "--gpu", "T4", "--steps", "--json") == 1
    assert document(capsys)["down"] == []


def test_several_cards_smallest_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(ZIMAGE, "--gpu", "24GiB, RTX3060,4GiB") == 0
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if line.startswith(("4GiB", "RTX3060", "24GiB"))]
    assert [row.split()[0] for row in rows] == ["4GiB", "RTX3060", "24GiB"]
    assert rows[0].endswith("none")
    assert rows[2].endswith("as it is")
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "RTX3060", "--aim", "sped"), "did you mean 'speed'"),
        (("--gpu", "RTX3060", "--aim", "fast"), "use one of: quality, speed"),
        (("--gpu", "RTX3060", "--aim", ""), "use one of: quality"),
        (("--gpu", "RTX3060", "--keep", "train.batchsize"), "did you mean train.batch_size"),
        (("--gpu", "RTX3060", "--keep", ""), "matches nothing"),
        (("--gpu", "RTX3060", "--keep", "datasets.7.*"), "matches nothing"),
        (("--gpu", "RTX3060", "--write", "no/such/folder/out.yaml"), "no such folder"),
        (("--gpu", "RTX3060", "--write", "out.txt"), "must end in .yaml"),
        (("--gpu", "RTX3060", "--write", "."), "a folder"),
        (("--gpu", "RTX3060,4090x,nothing"), "not a card of the catalogue"),
        (("--gpu", "RTX3060,"), "not a card"),
        (("--gpu", "all", "--write", "out.yaml"), "--write takes one card"),
        (("--gpu", "all", "--in-place"), "--in-place takes one card"),
        (("--gpu", "RTX3060", "--in-place", "--write", "out.yaml"), "--write and --in-place exclude each other"),
        (("--gpu", "RTX3060", "--set", "train.nothing=1"), "unknown key"),
        (("--gpu", "RTX3060", "--grid", "resolution=512x768"), "for instance resolution=512,768"),
        (("--gpu", "RTX3060", "--grid", "batch=1,2", "--keep", "train"), "--grid and --keep exclude each other"),
        (("--gpu", "RTX3060", "--grid", "batch=1,2", "--aim", "speed"), "--grid and --aim speed exclude each other"),
        ((), "--gpu"),
    ],
)
def test_bad_usage_is_explained(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(ZIMAGE, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_the_input_is_never_written_over_by_accident(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = config.read_bytes()
    other = tmp_path / "same.yaml"
    os.link(config, other)
    for target in (config, other, tmp_path / "." / "mine.yaml"):
        assert plan(config, "--gpu", "RTX3060", "--write", target) == 2
        assert "--in-place" in capsys.readouterr().err
    assert config.read_bytes() == before


def test_several_processes_and_run_files_are_no_subject(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = config.read_text(encoding="utf-8")
    start, end = text.index("    - type: diffusion_trainer"), text.index("meta:")
    config.write_text(text[:end] + text[start:end] + text[end:], encoding="utf-8")
    assert plan(config, "--gpu", "RTX3060") == 2
    assert "one at a time" in capsys.readouterr().err
    run = tmp_path / "run.yaml"
    run.write_text("run: {arch: flux1-dev}\n", encoding="utf-8")
    assert plan(run, "--gpu", "RTX3060") == 2
    assert "explicit run file" in capsys.readouterr().err
    process = yaml.safe_load(text)["config"]["process"][0]
    run.write_text(yaml.safe_dump(process), encoding="utf-8")
    assert [plan(run, "--gpu", "RTX3060"), main([str(run), "--gpu", "RTX3060"])] == [2, 2]
    assert capsys.readouterr().err.count("this belongs into a list below `process:`") == 2, "the same to both"


def test_what_is_not_modelled_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(ZIMAGE, "--gpu", "RTX3060", "--set", "train.single_item_batching=true") == 3
    assert "not modelled" in capsys.readouterr().err


def test_a_default_without_a_model_is_not_to_be_removed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dtype's default is fp32: there is nothing to remove, only something to set."""
    config.write_text(re.sub(r"\n +dtype: bf16(?=\n +diff_)", "", config.read_text(encoding="utf-8")), encoding="utf-8")
    assert plan(config, "--gpu", "RTX3060") == 3
    said = capsys.readouterr().err
    assert "set train.dtype: bf16" in said
    assert "remove" not in said
    assert plan(ZIMAGE, "--gpu", "RTX3060", "--set", "train.single_item_batching=true") == 3
    assert "remove it" in capsys.readouterr().err


def test_what_is_lacking_is_no_headroom_below_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(EXAMPLES / "flux_dev_24gb.yaml", "--gpu", "RTX4090", "--os", "windows") == 0
    shown = capsys.readouterr().out
    assert "GiB too much" in shown
    assert "-0." not in shown


@pytest.mark.parametrize(("example", "card"), [("zimage_turbo_ui", "RTX5060Ti-8G"), ("qwen_image_ui", "RTX3080-10G")])
def test_the_text_encoders_layers_are_offloaded_at_last(example: str, card: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Was: "cannot be made safe", beside a `check` whose own advice, model.layer_offloading, it calls safe."""
    config = EXAMPLES / f"{example}.yaml"
    assert plan(config, "--gpu", card, "--json") == 0
    edits = {edit["key"]: edit["to"] for edit in document(capsys)["edits"]}
    assert edits["model.layer_offloading_text_encoder_percent"] == 1.0
    assert main(["check", str(config), "--gpu", card, "--set", "model.layer_offloading=true", "--json"]) == 0


@pytest.mark.parametrize(("batch", "edits"), [(1, {"train.cache_text_embeddings", "train.optimizer"}), (2, None)])
def test_a_whole_model_is_trained_with_a_smaller_optimizer(
    tmp_path: Path, batch: int, edits: set[str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Was: "cannot be made safe", beside a `check` that proposed Adafactor."""
    text = (EXAMPLES / "zimage_base_ui.yaml").read_text(encoding="utf-8")
    text = re.sub(r"      network:\n(?:        .*\n)+", "", text).replace("quantize: true", "quantize: false", 1)
    config = tmp_path / "whole.yaml"
    config.write_text(text.replace("batch_size: 1", f"batch_size: {batch}"), encoding="utf-8")
    assert plan(config, "--gpu", "RTX5090", "--json") == 0
    found = document(capsys)
    assert {"key": "train.optimizer", "from": "adamw8bit", "to": "adafactor"} in found["edits"]
    assert edits is None or {edit["key"] for edit in found["edits"]} == edits


@pytest.mark.parametrize("key", ["config.process.0.datasets.0.resolution", "process[0].datasets[0].resolution", "datasets[0].resolution"])
def test_what_is_kept_is_named_as_what_is_set(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Was: "matches nothing"."""
    assert plan(ZIMAGE, "--gpu", "RTX4090", "--keep", key, "--json") == 0
    assert document(capsys)["keep"] == ["datasets.0.resolution"]


def test_keeping_everything_that_helps_leaves_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    pins = [word for key in ("train", "model", "datasets", "sample") for word in ("--keep", key)]
    assert plan(ZIMAGE, "--gpu", "RTX3060", *pins) == 1
    assert "Pinned: train, model, datasets, sample" in capsys.readouterr().out


def test_steps_go_down_in_the_order_of_the_guides_and_up_from_there(capsys: pytest.CaptureFixture[str]) -> None:
    wasteful = ("--set", "train.batch_size=2", "--set", "train.gradient_checkpointing=false")
    assert plan(ZIMAGE, "--gpu", "RTX3060", "--steps", "--json", *wasteful) == 0
    found = document(capsys)
    titles = [line["step"] for line in found["down"]]
    order = ["gradient checkpointing on", "batch 1", "drop the largest bucket"]
    assert titles[:3] == order
    assert {"key": "train.gradient_accumulation", "from": 1, "to": 2} in found["down"][1]["edits"]
    rooms = [line["headroom_bytes"] for line in [found["start"], *found["down"][:-1]]]
    assert rooms == sorted(rooms), "each step leaves more room"
    assert found["down"][-1]["verdict"] == found["verdict"] == "safe"
    assert [line["step"] for line in found["up"]][-1] == "checkpointing off"
    assert "a larger bucket" in [line["step"] for line in found["up"]]


def test_steps_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(ZIMAGE, "--gpu", "RTX4090", "--steps") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "Up, once it runs" in shown
    assert plan(ZIMAGE, "--gpu", "RTX4090", "--steps", "--aim", "speed") == 2
    assert plan(ZIMAGE, "--gpu", "all", "--steps") == 2


def test_another_version_of_the_trainer_makes_plans_more_careful(capsys: pytest.CaptureFixture[str]) -> None:
    """As it does for check: every config that is tried has a wider interval."""
    highs = []
    for options in ((), ("--trainer-version", "0.99.1")):
        plan(EXAMPLES / "flux2_klein_4b_ui.yaml", "--gpu", "RTX5090", *options, "--json")
        highs.append([phase["device_high_bytes"] for phase in document(capsys)["before"]["phases"]])
    plain, other = highs
    assert max(other) > max(plain)
    assert all(wider >= narrow for narrow, wider in zip(plain, other, strict=True)), "equal where nothing is on the card"
    assert plan(ZIMAGE, "--gpu", "RTX5090", "--trainer-version", "next") == 2
    assert "--trainer-version next" in capsys.readouterr().err


def test_an_answer_is_the_same_in_every_process() -> None:
    """To the count of what was tried: Python orders a set of texts differently in each process."""
    said = set()
    for seed in ("0", "1"):  # of these two the counts were 61 and 232
        command = [sys.executable, "-m", "estimator", "plan", str(ZIMAGE), "--gpu", "4GiB"]
        made = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": seed})
        assert made.returncode == 1, made.stderr
        said.add(made.stdout)
    assert len(said) == 1
