"""What the trainer's own model classes do differently from the common timeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from config_writer import read

from estimator.archs import load_archs
from estimator.batches import steps_of
from estimator.job import Job, Model, Sample, Train
from estimator.offload_profile import profile_of
from estimator.operations import MoveOut, Part
from estimator.plans import before_steps, plan_of, steps
from estimator.programs import load_profile
from estimator.residents import PhasePeak
from estimator.timeline import simulate
from tests.made_jobs import job

KLEIN_4B_EMBEDDING_BYTES = 512 * 3 * 2560 * 2  # 512 tokens of three of Qwen3-4B's hidden states, in bf16
BLOCKS = 0.1  # what is not split off a block counts with it
PREVIEW = Sample(512, 512, cfg=4.0, guided=True)


def phase(made: Job, name: str, detail: str = "") -> PhasePeak:
    return next(p for p in simulate(made).phases if p.phase == name and detail in p.detail)


def klein(**changes: object) -> Job:
    return job("flux2-klein-4b", **{"samples": (PREVIEW,), **changes})


@pytest.mark.parametrize("weights", ["bf16", "qfloat8"])
def test_kleins_text_encoder_waits_on_the_host_with_low_vram(weights: str) -> None:
    low, plain = (klein(model=Model("model", weights="float8", te_weights=weights, low_vram=low)) for low in (True, False))
    assert "text_encoder" not in phase(low, "load", "the rest").components
    assert phase(plain, "load", "the rest").components["text_encoder"] > 2**32
    loaded = phase(plain, "load", "the rest").components["text_encoder"]
    assert phase(low, "prepare", "before the loop").components["text_encoder"] == loaded


def test_latent_caching_leaves_a_text_encoder_where_it_was() -> None:
    data = tuple(replace(d, cache_latents=True) for d in klein().datasets)
    low, plain = (klein(model=Model("m", weights="float8", te_weights="float8", low_vram=low), datasets=data) for low in (True, False))
    rest = phase(plain, "cache_latents").allocated_bytes - phase(low, "cache_latents").allocated_bytes
    assert rest > 2**32


def test_cached_prompts_of_previews_stay_on_the_card() -> None:
    train = Train(optimizer="adamw8bit", unload_text_encoder=True)
    once, thrice = (phase(klein(train=train, samples=(PREVIEW,) * count), "train").allocated_bytes for count in (1, 3))
    assert thrice - once == pytest.approx(2 * 2 * KLEIN_4B_EMBEDDING_BYTES, rel=BLOCKS)  # a prompt and a negative one each


def parts(made: Job) -> list[Part]:
    """The parts that a job runs, up to and with its training steps."""
    plan = plan_of(made, profile_of(made.arch, made.model))
    timeline = (*before_steps(plan), *steps(plan, steps_of(made, plan.tokens(None))))
    return [operation for operation in timeline if isinstance(operation, Part)]


@pytest.mark.parametrize(("negative", "longest"), [(9, 20), (500, 500)])
def test_an_unused_negative_prompt_is_as_long_as_it_is(negative: int, longest: int) -> None:
    """Previews without guidance: it is encoded all the same, as it is."""
    made = job("zimage", train=Train(cache_text_embeddings=True), samples=(Sample(512, 512, text_tokens=20, negative_tokens=negative),))
    assert max(part.values["X"] for part in parts(made) if part.key.startswith("text/") and "plain" in part.key) == longest


def test_the_reader_counts_a_negative_prompt_that_is_not_used(tmp_path: Path) -> None:
    sample = {"prompts": ["a fox --n blurry and dull"], "guidance_scale": 1}
    (preview,) = read(tmp_path, model={"name_or_path": "Tongyi-MAI/Z-Image", "arch": "zimage"}, sample=sample).samples
    assert not preview.guided
    assert preview.negative_tokens == load_archs().archs["zimage"].text_tokens("blurry and dull")


@pytest.mark.parametrize(("older", "stay"), [(1, False), (0, False), (4, True), (-1, True)])
def test_gradients_stay_through_previews_where_not_every_step_updates(tmp_path: Path, older: int, stay: bool) -> None:
    """gradient_accumulation_steps: what the optimizer has not used is there until the next step begins."""
    training = {"dtype": "bf16", "noise_scheduler": "flowmatch", "optimizer": "adamw8bit", "gradient_accumulation_steps": older}
    phases = simulate(replace(klein(), train=read(tmp_path, train=training).train)).phases
    gradients = [p.components.get("gradients", 0) for p in phases if p.phase == "sample"]
    assert [size > 0 for size in gradients] == [False, stay]


def test_prompts_are_not_cached_without_previews() -> None:
    train, samples = Train(cache_text_embeddings=True), (Sample(512, 512, text_tokens=500, negative_tokens=9),)
    jobs = [job("zimage", train=replace(train, disable_sampling=off), samples=samples) for off in (True, False)]
    off, on = ([part.values["X"] for part in parts(made) if "X" in part.values] for made in jobs)
    assert max(on) == 500 > max(off)


def test_images_that_are_not_cached_are_encoded_though_others_of_their_size_are() -> None:
    """Two folders at one resolution, one of them cached: the VAE is in the step of the other."""
    made = job("zimage")
    cached = tuple(replace(each, cache_latents=True) for each in made.datasets)
    heads = {part.key.split("/")[1] for part in parts(replace(made, datasets=cached + made.datasets)) if part.key.startswith("step.head")}
    assert heads == {"encoded"}


def test_without_a_first_round_they_come_with_the_later_one() -> None:
    train = Train(optimizer="adamw8bit", unload_text_encoder=True, skip_first_sample=True)
    once, thrice = (simulate(klein(train=train, samples=(PREVIEW,) * count)).phases for count in (1, 3))
    for name, grows in (("train", 0), ("sample", 4 * KLEIN_4B_EMBEDDING_BYTES)):
        one, three = (max(p.allocated_bytes for p in phases if p.phase == name) for phases in (once, thrice))
        assert three - one == pytest.approx(grows, rel=BLOCKS, abs=2**20)


@pytest.mark.parametrize(("away", "head"), [("unload_text_encoder", "unloaded"), ("cache_text_embeddings", "cached")])
def test_an_unloaded_text_encoder_has_heads_of_its_own(away: str, head: str) -> None:
    """Copies of the empty prompt's embedding are made there; cached ones come with the batch."""
    made = klein(train=Train(optimizer="adamw8bit", **{away: True}))
    made = replace(made, datasets=tuple(replace(d, cache_latents=True) for d in made.datasets))
    plan = plan_of(made, load_profile(made.arch))
    keys = {op.key for op in steps(plan, steps_of(made, 30)[:1]) if isinstance(op, Part) and op.key.startswith("step.head/")}
    assert keys == {f"step.head/cached/{head}/one"}


@pytest.mark.parametrize("low_vram", [False, True])
def test_flux2_devs_text_encoder_is_loaded_whole_on_the_card(low_vram: bool) -> None:
    """24 billion parameters in bf16, even where they are quantised then, and where they go to the host behind that."""
    made = job("flux2-dev", model=Model("model", weights="uint4", te_weights="uint4", low_vram=low_vram))
    assert phase(made, "load", "text encoder").components["text_encoder"] > 44 * 2**30
    rest = phase(made, "load", "the rest")
    assert ("text_encoder" in phase(made, "prepare", "adapter").components) is not low_vram
    assert rest.allocated_bytes < phase(made, "load", "text encoder").allocated_bytes
    assert phase(made, "prepare", "before the loop").components["text_encoder"] > 12 * 2**30


@pytest.mark.parametrize(("cached", "moves"), [(False, []), (True, [MoveOut("vae")])])
def test_the_vae_stays_behind_the_first_previews_where_steps_encode(cached: bool, moves: list[object]) -> None:
    """Cached text leaves the transformer on the host, not the VAE: it was brought back before the previews."""
    made = job("zimage", train=Train(optimizer="adamw8bit", cache_text_embeddings=True))
    made = replace(made, datasets=tuple(replace(each, cache_latents=cached) for each in made.datasets))
    operations = list(plan_of(made, load_profile(made.arch)).sampling("first"))
    assert [operation for operation in operations if operation == MoveOut("vae")] == moves
    assert MoveOut("transformer") in operations
