"""Models on pixels, Z-Image L2P and Chroma1-Radiance: no VAE is on the card, and what the trainer makes of other checkpoints is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from config_writer import no_answer, read, refusal, train, unmodelled_keys

from estimator import heads
from estimator.engine import estimate_job
from estimator.estimate import Variant
from estimator.gpus import find_gpu
from estimator.intervals import profile as residuals
from estimator.outside import extra_at_peak
from estimator.programs import TEXT_ENCODERS, load_profile
from estimator.residents import PhasePeak
from estimator.residual import NOTHING
from tests.made_jobs import example, job

EXTRAS = "Tongyi-MAI/Z-Image-Turbo"
MODEL: dict[str, Any] = {
    "name_or_path": "zhen-nan/L2P/model-1k-merge.safetensors", "arch": "zimage_l2p", "extras_name_or_path": EXTRAS,
    "quantize": True,
}  # fmt: skip
ON_PIXELS = ("zimage-l2p", "chroma-radiance")
of_each = pytest.mark.parametrize("arch", ON_PIXELS)


def read_l2p(tmp_path: Path, **model: Any) -> Any:
    return read(tmp_path, model={**MODEL, **model})


def test_the_published_checkpoint_is_read_without_a_word(tmp_path: Path) -> None:
    made = read_l2p(tmp_path)
    assert made.arch == "zimage-l2p"
    assert not any("checkpoint" in warning for warning in made.warnings)
    assert any("checkpoint on pixels" in warning for warning in read_l2p(tmp_path, name_or_path="/data/mine.safetensors").warnings)


@pytest.mark.parametrize("name", ["Tongyi-MAI/Z-Image", "/data/z-image", "x"])
def test_a_model_that_the_trainer_converts_is_not_modelled(tmp_path: Path, name: str) -> None:
    (problem,) = no_answer(tmp_path, model={**MODEL, "name_or_path": name})
    assert problem.place is not None
    assert problem.place.key == "model.name_or_path"
    assert name in problem.what


@pytest.mark.parametrize("extras", [..., None, "", MODEL["name_or_path"]])
def test_a_file_has_no_text_encoder(tmp_path: Path, extras: object) -> None:
    """Without the key (...) the trainer takes the file's name; an empty value it takes as it is."""
    model = {key: value for key, value in {**MODEL, "extras_name_or_path": extras}.items() if value is not ...}
    (problem,) = refusal(tmp_path, model=model)
    assert problem.fix.endswith(EXTRAS)
    assert read_l2p(tmp_path).arch == "zimage-l2p"  # with the remedy


def test_an_adapter_for_training_is_not_modelled_on_pixels(tmp_path: Path) -> None:
    made = read_l2p(tmp_path, assistant_lora_path="someone/adapter/file.safetensors")
    assert unmodelled_keys(made) == {"model.assistant_lora_path"}


@of_each
def test_no_vae_is_on_the_card(arch: str) -> None:
    assert load_profile(arch).resident("vae", "bf16") == []
    cached = job(arch, datasets=tuple(replace(one, cache_latents_to_disk=True) for one in job(arch).datasets))
    for made in (job(arch), cached):
        phases = estimate_job(made, find_gpu("80GiB")).phases
        assert {"train", "sample"} <= {phase.phase for phase in phases}
        assert not any("vae" in phase.components or "vae" in phase.moment for phase in phases)


@of_each
def test_latents_are_cached_for_the_price_of_a_picture(arch: str) -> None:
    """An image is six values of two bytes a pixel there and in between, at most: no activation of an encoder."""
    program = load_profile(arch).program("cache_latents.item")
    sizes = [dict(zip(program.features, row, strict=True)) for row in program.coefficients]
    assert sizes
    assert all(size.get("T", 0) <= 256 * 3 * 4 for size in sizes)


@of_each
def test_text_encoder_is_the_relatives(arch: str) -> None:
    profile = load_profile(arch)
    assert profile.relative is not None
    encoders = [name for name in TEXT_ENCODERS if profile.relative.has_own_resident(name)]
    assert encoders
    assert all(profile.resident(name, "qfloat8") == profile.relative.resident(name, "qfloat8") for name in encoders)
    assert profile.resident("transformer", "qfloat8") != profile.relative.resident("transformer", "qfloat8")


def test_pixels_cost_more_than_latents() -> None:
    """L2P is Z-Image's transformer and a network at full size behind it, which nothing recomputes: what a step keeps for it is more."""
    kept = {}
    for arch in ("zimage", "zimage-l2p"):
        made = job(arch, train=replace(job(arch).train, gradient_checkpointing=False))
        made = replace(made, model=replace(made.model, weights="qfloat8", te_weights="qfloat8"))
        phases = estimate_job(made, find_gpu("80GiB")).phases
        kept[arch] = max(phase.components["activations"] for phase in phases if phase.phase == "train")
    assert kept["zimage-l2p"] > kept["zimage"]


def test_z_image_de_turbo_is_z_image(tmp_path: Path) -> None:
    """The same class with other weights: the trainer cuts the tag off, and there is no adapter for training."""
    base = {"quantize": True, "qtype": "qfloat8", "low_vram": True, "extras_name_or_path": EXTRAS}
    both = [
        read(tmp_path, model={"name_or_path": name, "arch": arch, **base}, train=train())
        for name, arch in (("Tongyi-MAI/Z-Image", "zimage"), ("ostris/Z-Image-De-Turbo", "zimage:deturbo"))
    ]
    assert [made.arch for made in both] == ["zimage", "zimage"]
    plain, deturbo = (estimate_job(made, find_gpu("24GiB")) for made in both)
    assert [p.reserved_bytes for p in plain.phases] == [p.reserved_bytes for p in deturbo.phases]
    assert not deturbo.warnings or not any("adapter" in warning for warning in deturbo.warnings)


def test_the_example_is_what_the_web_ui_writes() -> None:
    made = example("zimage_l2p_ui")
    assert (made.arch, made.model.weights, made.model.low_vram, made.train.weighs_timesteps) == ("zimage-l2p", "qfloat8", True, False)


def test_convolutions_at_full_size_may_take_cudnns_workspace() -> None:
    """Those that L2P's transformer ends in, for each picture of a batch; not its other layers."""

    def high(moment: str, phase: str, batch: int) -> int:
        peak = PhasePeak(phase, "", Variant(512, 512, 1, batch), 1, 1, moment, {})
        return extra_at_peak(peak, residuals().residual).high_bytes

    decoder = "transformer.local_decoder.dec1.1|forward"
    one = high("vae.decoder|forward", "sample", 1)
    assert one > 0
    assert [high(decoder, "train", 1), high(decoder, "train", 4), high(decoder, "sample", 2)] == [one, 4 * one, 2 * one]
    assert high("transformer.layers.0|forward", "train", 1) == NOTHING.high_bytes


@of_each
def test_heads_of_unlike_batches_are_not_laid_on_one_another(arch: str) -> None:
    """Those with encoded prompts were recorded of three samples, that with cached ones of four, whose last tensors are copied prompts."""
    profile = load_profile(arch)
    short, whole, encoded = (profile.program(f"step.head/{kind}/many") for kind in ("cached/encoded", "cached/cached", "encoded/encoded"))
    assert short.events.tolist() != whole.events[: len(short.events)].tolist()
    made = heads.with_prompts("step.head/encoded/cached/many", profile.program)
    assert made.events[: len(encoded.events)].tolist() == encoded.events.tolist()
    copies = made.events[len(encoded.events) :]
    assert len(copies) > 0
    assert not copies.any()  # each makes a tensor


def test_an_unloaded_encoders_empty_prompt_is_there_once_more() -> None:
    """Two clones of it, of which one goes, before those of the samples: of prompts that are padded to one length."""
    profile = load_profile("chroma-radiance")
    whole = profile.program("step.head/cached/cached/many")
    made = heads.with_prompts("step.head/cached/unloaded/many", profile.program)
    values = {"T": 1024, "E": 64, "A": 1024, "F": 1, "B": 2, "r": 16, "X": 512}
    more = made.sizes(values).sum() - whole.sizes(values).sum()
    assert more == 2 * (512 * 4096 * 2 + 512 * 2)


def test_qint8_rounds_what_it_scales_while_loading() -> None:
    """One tensor more for each weight, gone again before the codes are there; nothing else of what is left or reached differs."""
    profile = load_profile("chroma-radiance")
    base, made = (profile.program(f"load.transformer/{kind}/plain") for kind in ("qfloat8", "qint8"))
    weights = len(made.labels) - len(base.labels)
    assert weights > 228  # linear layers of the blocks
    assert len(made.events) - len(base.events) == 2 * weights
    live, highest = 0, {}
    for name, program in (("base", base), ("made", made)):
        sizes, live, top = program.sizes({}), 0, 0
        for event, tensor in zip(program.events.tolist(), program.tensor_of_event.tolist(), strict=True):
            live += int(sizes[tensor]) if event == 0 else -int(sizes[tensor]) if event != -1 else 0
            top = max(top, live)
        highest[name] = (live, top)
    assert highest["base"] == highest["made"]
