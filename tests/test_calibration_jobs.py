"""Probe and validation jobs: what of them decides which part a recording is."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration import probes, validation, validation_rows
from calibration.architectures import ARCHITECTURES
from calibration.architectures.base import kind_of
from calibration.architectures.qwen import template_tokens
from calibration.extract.parts import _decode_part
from calibration.extract.runs import Phase, Run, Tensor
from estimator.tokens import qwen_image_tokens

FRONT = "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text"
BEHIND = "<|im_end|>\n<|im_start|>assistant\n"


def test_a_recovery_adapter_makes_a_kind_of_weights_of_its_own() -> None:
    assert kind_of("uint3|owner/repository/file.safetensors") == "uint3-recovery"
    assert [kind_of(qtype) for qtype in ("bf16", "qfloat8", "uint4")] == ["bf16", "qfloat8", "uint4"]


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_run_folders_are_one_for_each_job_and_hold_no_path(arch: str, tmp_path: Path) -> None:
    folders = probes.folders(arch, tmp_path)
    assert all(folder.parent == tmp_path.resolve() for folder in folders)
    family = ARCHITECTURES[arch]
    of_each, further = (1 if family.texts else 2) + family.loaded, bool(family.captioned) + bool(family.uncached)
    stepped = len(set(family.weights) - {*family.brief, *family.loads})
    assert len(folders) == len(family.weights) * of_each + stepped * further + bool(family.unloaded) + 2 * len(family.quantised)


def test_where_previews_stop_with_low_vram_only_the_job_that_stops_after_loading_has_it(tmp_path: Path) -> None:
    jobs = probes.folders("wan21-i2v-14b", tmp_path).items()
    models = {index: probes.config("wan21-i2v-14b", weights, index, run)["config"]["process"][0]["model"] for run, (weights, index) in jobs}
    assert {index: model["low_vram"] for index, model in models.items()} == {0: False, 1: False, probes.READ: False, probes.LOADED: True}


def test_the_template_of_qwen_image_counts_as_in_the_estimate() -> None:
    """34 tokens in front, which the pipeline drops; what the estimate counts is the rest."""
    before, after, prompt = template_tokens(f"{FRONT}:<|im_end|>\n<|im_start|>user\na red fox{BEHIND}")
    assert (before, after, prompt) == (34, 5, "a red fox")
    assert qwen_image_tokens(prompt) == 3 + after
    assert template_tokens("a red fox") == (0, 0, "a red fox")


def test_probe_previews_have_negative_prompts_of_other_lengths(tmp_path: Path) -> None:
    config = probes.config("qwen-image", "bf16", 0, tmp_path)["config"]["process"][0]
    guided = [s for s in config["sample"]["samples"] if s["guidance_scale"] > 1]
    lengths = {(len(s["prompt"].split()), len(s["neg"].split())) for s in guided}
    assert len(lengths) == len({negative for _, negative in lengths}) == len(guided) == 4


def test_rows_of_runs_that_are_elsewhere_are_kept(tmp_path: Path) -> None:
    kept = {"flux-ui": {"name": "flux-ui"}, "no such run": {"name": "no such run"}}
    assert validation.collect(tmp_path, kept) == [kept["flux-ui"]]


@pytest.mark.parametrize("folder", [validation_rows.FOLDER, validation_rows.COMPILED], ids=["all", "compiled"])
def test_rows_stand_as_they_are_collected(folder: Path, tmp_path: Path) -> None:
    """In the jobs' order, one each: a row put somewhere else by hand moves with the next `collect`, which mends it."""
    kept = {row["name"]: row for row in validation_rows.read(folder)}
    validation_rows.write(validation.collect(tmp_path, kept), tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in folder.glob("*.jsonl")}


def decoded(tiles: int) -> tuple[Run, Phase]:
    """A decode of so many tiles: each makes a large tensor and keeps its result; then everything is joined, with small blends between."""
    run, decode = Run(Path("made"), [], [], Phase("run", 0, {}), {}, {}, "ok"), Phase("vae_decode", 0, {})

    def make(label: str, size: int, *, keep: bool = False) -> None:
        run.events.append(("a", len(run.tensors)))
        run.tensors.append(Tensor(size, len(run.events) - 1, label))
        if not keep:
            run.events.append(("f", len(run.tensors) - 1))

    for _ in range(tiles):
        first = len(run.events)
        make("inside", 10_000)
        decode.inner.append(Phase("vae_decoder", first, {}, len(run.events)))
        make("tile", 400, keep=True)
    for _ in range(3 * tiles):
        make("blend", 8)
    make("image", 4_000, keep=True)
    decode.last = len(run.events)
    return run, decode


def labels(run: Run, decode: Phase) -> tuple[str, list[str]]:
    part = _decode_part(run, decode, decode.last, {"T": 1024, "E": 64})
    return part.key, [run.tensors[index].label for kind, index in (run.events[e] for e in part.events) if kind == "a"]


def test_of_a_tiled_decode_the_first_tile_and_the_image_are_left_however_many_there_are() -> None:
    assert labels(*decoded(4)) == labels(*decoded(36)) == ("decode/tiled", ["inside", "tile", "image"])


def test_a_decode_in_one_piece_is_whole() -> None:
    assert labels(*decoded(1)) == ("decode/plain", ["inside", "tile", "blend", "blend", "blend", "image"])
