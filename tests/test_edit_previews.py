"""Qwen-Image-Edit's previews: what is joined, what stays between the steps of denoising, and the same with offloaded layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_edit import EDIT, TALL, WIDE, made
from test_first_edit import FIRST_EDIT
from test_first_edit import made as first_edit
from test_offload import qwen_core

from estimator.allocator import NOTHING, Allocator
from estimator.controls import RAW, pixels
from estimator.edit import MORE_TEMPLATE_TOKENS
from estimator.edited import ALONE, EDITED, FLUSHED
from estimator.job import Job, Sample
from estimator.offload import MOMENT
from estimator.operations import Copy, Operation, Part, Release
from estimator.part_events import events_of, requests
from estimator.plans import after_steps, before_steps, plan_of
from estimator.program import ALLOCATE, EMPTY_CACHE, Program
from estimator.programs import load_profile
from estimator.residents import State
from estimator.stays import LATENT, PROMPTS

VALUES = {"T": 8224, "Q": 4096, "Tj": 8224, "Tn": 0, "E": 128, "X": 210, "N": 192, "B": 1, "r": 16}
JOINED = 8224 * 128  # bytes of all images' tokens


def previews(arch: str, one: Job, *controls: tuple[int, int], **train: bool) -> list[Operation]:
    """The operations of a job's previews, all of them before and behind its steps."""
    sample = Sample(768, 512, text_tokens=300, negative_tokens=280, controls=controls, seen=controls)
    one = replace(one, arch=arch, samples=(sample,), train=replace(one.train, **train))
    plan = plan_of(one, load_profile(arch))
    return [*before_steps(plan), *after_steps(plan)]


def test_what_is_not_there_to_be_let_go_moves_no_other_event() -> None:
    """Was: cuBLAS's workspace of a text with offloaded layers seven events late, since its slots had nothing in them yet to let go."""
    program, state = qwen_core("text/float8/plain/one"), State(Allocator())
    part = Part(program.key, {"X": 300, "Y": 300, "B": 1}, "item")
    run = events_of(program, part, requests(program, part.values)[1], state.take_keys(len(program.names)), state)
    assert len(run.events) == len(program.events)
    assert (run.events[program.freeing] == NOTHING).all()  # nothing lies in a slot yet
    other, there = Allocator(), run.events != NOTHING
    assert state.allocator.run(run.keys, run.events) is not None
    other.run(run.keys[there], run.events[there])
    assert (state.allocator.peak_allocated_bytes, state.allocator.reserved_bytes) == (other.peak_allocated_bytes, other.reserved_bytes)


@pytest.mark.parametrize("key", ["cfg/cached", "plain/cached"])
def test_offloaded_layers_change_nothing_but_their_copies_in_a_preview_with_control_images(key: str) -> None:
    """Two steps, of which the second has no prompts of its own. Was: another two, without joined tokens."""
    key = f"preview/float8/{key}{EDITED}"
    plain, waiting = load_profile("qwen-image-edit-2511").program(key), qwen_core(key)

    def outside(program: Program) -> list[tuple[str, int]]:
        """All tensors but copies and what is made of weights: outside layers."""
        sizes, moments = program.sizes(VALUES).tolist(), [program.moments[row] for row in program.labels]
        own = [(moment, size) for moment, size in zip(moments, sizes, strict=True) if size and moment != MOMENT]
        layers = "transformer.norm_out.linear"
        return [row for row in own if row[0] != f"{layers}|forward" and (not row[0].startswith("transformer") or "norm" in row[0])]

    assert outside(waiting) == outside(plain)
    assert sum(moment == "generate_single_image" and size == JOINED for moment, size in outside(waiting)) == 2
    assert waiting.streams is not None


def test_position_frequencies_that_stay_are_no_part_of_a_preview() -> None:
    """Was: those of the first step, of the size of all images, beside what is laid for each size apart (5 MB of two pictures)."""
    program = load_profile(EDIT).program(f"preview/float8/plain/cached{EDITED}")
    sizes, births = program.sizes(VALUES), program.events == ALLOCATE
    embedded = [k for k, row in enumerate(program.labels) if "pos_embed" in program.moments[row] and sizes[k] >= VALUES["T"] * 512]
    assert len(embedded) == 2  # the forward's own of either step
    first, second = (int(np.flatnonzero(births)[k]) for k in embedded)
    assert (program.tensor_of_event[first:second] == embedded[0]).sum() == 2  # made, and let go of before the second


def test_a_previews_control_images_are_joined_and_let_go_of_one_by_one() -> None:
    one = replace(made(), model=replace(made().model, low_vram=True))
    (part,) = [op for op in previews(EDIT, one, WIDE, TALL)[:-1] if isinstance(op, Part) and op.key.startswith("preview/")][:1]
    inside = [op for op in part.inside[0] if not isinstance(op, Part) or op.key == LATENT]
    apart = [op.values["T"] for op in inside if isinstance(op, Part) and op.scope == "apart"]
    kept = [op.values["T"] for op in inside if isinstance(op, Part) and op.scope == "preview"]
    assert len(apart) == 2
    assert kept == [sum(apart)]
    assert inside.index(Release("apart")) > max(n for n, op in enumerate(inside) if isinstance(op, Part) and op.scope == "preview")


@pytest.mark.parametrize("cached", [False, True])
def test_the_first_edits_picture_is_read_twice_for_a_previews_prompts(cached: bool) -> None:
    """As ctrl_img and, since there is none, as ctrl_img_1. Was: once (70 MB of a picture of 12 megapixels)."""
    operations = previews(FIRST_EDIT, first_edit(), TALL, cache_text_embeddings=cached)
    scope = "shown" if cached else "preview"
    read = [op.values["R"] for op in operations if isinstance(op, Part) and op.key == RAW and op.scope == scope]
    rounds = 1 if cached else sum(isinstance(op, Part) and op.key.startswith("preview/") for op in operations)
    assert read == [pixels((TALL,))] * 2 * rounds


def test_the_first_edits_empty_prompt_has_the_longer_template_in_the_encoder_alone() -> None:
    plan = plan_of(first_edit(), load_profile(FIRST_EDIT))
    operations = list(before_steps(plan))
    at = next(n for n, op in enumerate(operations) if isinstance(op, Part) and op.key.startswith("text/") and "I" not in op.values)
    encode, kept, release, copy = operations[at : at + 4]
    assert isinstance(encode, Part) and isinstance(kept, Part)  # noqa: PT018
    assert (kept.key, kept.scope, release, copy) == (PROMPTS, "embeddings", Release("template"), Copy("embeddings", "job"))
    assert encode.values["X"] - kept.values["X"] == MORE_TEMPLATE_TOKENS


@pytest.mark.parametrize("how", ["plain", "graph"])
def test_a_text_by_itself_is_not_joined(how: str) -> None:
    listed, single = (load_profile(FIRST_EDIT).program(f"text/float8/{how}/one/1 images{ending}") for ending in ("", ALONE))
    values = {"X": 1400, "I": 1369, "Ib": 1369, "R": 1024 * 1024, "B": 1}
    stays = [sorted(program.sizes(values)[list(program.exported)].tolist()) for program in (listed, single)]
    assert stays[0] == [size for size in stays[1] if size]
    assert len(single.events) == len(listed.events) - 2


@pytest.mark.parametrize("low_vram", [False, True])
def test_with_low_vram_the_first_edit_empties_the_cache_between_two_steps(low_vram: bool) -> None:
    one = first_edit()
    one = replace(one, model=replace(one.model, low_vram=low_vram))
    key = next(op.key for op in previews(FIRST_EDIT, one, TALL) if isinstance(op, Part) and op.key.startswith("preview/"))
    assert key.endswith(FLUSHED) == low_vram
    program = load_profile(FIRST_EDIT).program(key)
    emptied = np.flatnonzero(program.events == EMPTY_CACHE)
    proj = [k for k, row in enumerate(program.labels) if program.moments[row] == "transformer.proj_out|forward"]
    births = np.flatnonzero(program.events == ALLOCATE)
    between = [int(at) for at in emptied if births[proj[0]] < at < births[proj[-1]]]
    assert len(between) == low_vram
