"""What the trainer's own model classes do differently from the common timeline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from estimator.job import Job, Model, Sample, Train
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


def test_without_a_first_round_they_come_with_the_later_one() -> None:
    train = Train(optimizer="adamw8bit", unload_text_encoder=True, skip_first_sample=True)
    once, thrice = (simulate(klein(train=train, samples=(PREVIEW,) * count)).phases for count in (1, 3))
    for name, grows in (("train", 0), ("sample", 4 * KLEIN_4B_EMBEDDING_BYTES)):
        one, three = (max(p.allocated_bytes for p in phases if p.phase == name) for phases in (once, thrice))
        assert three - one == pytest.approx(grows, rel=BLOCKS, abs=2**20)
