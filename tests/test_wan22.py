"""Wan 2.2 14B: two experts that take turns, an adapter on both, clips that begin with a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_writer import read

from estimator.batches import steps_of
from estimator.errors import CannotTell, InputError
from estimator.experts import BOTH, LOW
from estimator.job import Bucket, Job
from estimator.lora_merging import FROM_HOST
from estimator.operations import EmptyCache, MoveIn, MoveOut, Operation, Part
from estimator.plans import after_steps, before_steps, plan_of, steps, warm_up
from estimator.programs import load_profile
from estimator.rows import bound
from estimator.timeline import simulate
from tests.made_jobs import job

ARCH = "wan22-14b"
T2V = {"name_or_path": "ai-toolkit/Wan2.2-T2V-A14B-Diffusers-bf16", "arch": "wan22_14b:t2v", "quantize": True}
EXPERTS = {"transformer_1", "transformer_2"}


def made(low_vram: bool = True, experts: tuple[int, ...] = (0, 1), **train: Any) -> Job:
    one = job(ARCH)
    data = replace(one.datasets[0], buckets=(Bucket(320, 256, frames=9, count=1),))
    model = replace(one.model, low_vram=low_vram, experts=experts)
    preview = replace(one.samples[0], width=320, height=256, frames=5)
    return replace(one, model=model, datasets=(data,), samples=(preview,), train=replace(one.train, **train))


def whole(one: Job, count: int = 4) -> list[Operation]:
    plan = plan_of(one, load_profile(one.arch), order_known=True)
    order = steps_of(one, 512) * count
    return [*before_steps(plan), *steps(plan, order), *after_steps(plan)]


def cores(one: Job, count: int = 4) -> list[str]:
    keys = [o.key for o in whole(one, count) if isinstance(o, Part) and o.key.startswith("step.core")]
    return ["low" if key.endswith(LOW) else "high" for key in keys]


# ---------------------------------------------------------------- the timeline


def test_with_low_vram_one_expert_at_most_is_on_the_card_and_one_is_where_it_is_used() -> None:
    there: set[str] = set()
    for operation in whole(made()):
        if isinstance(operation, MoveIn):
            there.add(operation.component)
        elif isinstance(operation, MoveOut):
            there.discard(operation.component)
        elif isinstance(operation, Part) and operation.key.startswith(("step.core", "preview/")):
            assert len(there & EXPERTS) == 1
            if operation.key.startswith("step.core"):
                assert (there & EXPERTS == {"transformer_2"}) == operation.key.endswith(LOW)
        elif isinstance(operation, Part) and operation.key.startswith(("decode", "tile.", "cache_latents", "latents")):
            assert not there & EXPERTS
        assert len(there & EXPERTS) <= 1


def test_without_low_vram_no_expert_ever_moves() -> None:
    moved = {o.component for o in whole(made(low_vram=False)) if isinstance(o, (MoveIn, MoveOut))}
    assert not moved & {*EXPERTS, "transformer"}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_trainer_changes_the_expert_after_so_many_batches(every: int) -> None:
    assert cores(made(switch_boundary_every=every), 6) == [("high", "low")[k // every % 2] for k in range(6)]


def test_one_expert_alone_is_never_exchanged_and_has_half_of_the_adapter() -> None:
    only = whole(made(experts=(1,)))
    assert {o.component for o in only if isinstance(o, MoveIn)} & EXPERTS == EXPERTS  # previews use both
    assert not [o for o in only if isinstance(o, Part) and o.key.endswith((LOW, BOTH))]
    both, one = (bound(made(experts=experts)).phases[-1].components["adapter"] for experts in ((0, 1), (1,)))
    assert both == 2 * one


def test_a_swap_empties_the_cache_and_a_first_use_does_not() -> None:
    operations = whole(made())
    swaps = [n for n, o in enumerate(operations) if isinstance(o, Part) and o.key.startswith("step.core")]
    before = [operations[n - 1] == EmptyCache() for n in swaps]
    assert before == [False, True, True, True]


def test_accumulated_batches_of_both_experts_are_one_update_over_both() -> None:
    updates = [o.key for o in whole(made(gradient_accumulation=2)) if isinstance(o, Part) and o.key.startswith("step.update")]
    assert {key[-len(BOTH) :] for key in updates} == {BOTH}


def test_a_copy_of_the_whole_adapter_is_there_at_one_time() -> None:
    """EMA's weights are swapped in for a save: the weights trained on wait beside them, of both experts together."""
    profile, rank = load_profile(ARCH), {"r": 16}
    one, two = (profile.program(key) for key in ("save/ema", "save/ema" + BOTH))
    assert two.peak(rank)[0] == 2 * one.peak(rank)[0] > 0
    totals = [np.cumsum(np.where(p.events == 0, 1, -1) * np.append(p.sizes(rank), 0)[p.tensor_of_event]) for p in (one, two)]
    assert totals[1].max() == 2 * totals[0].max()
    assert totals[1][-1] == 2 * totals[0][-1]
    named = [{name for name in p.names if name} for p in (one, two)]
    assert len(named[1]) == 2 * len(named[0])


@pytest.mark.parametrize("low_vram", [True, False])
def test_each_experts_part_of_the_optimizers_state_is_made_in_its_first_step(low_vram: bool) -> None:
    one = made(low_vram, optimizer="adamw")
    (bucket,) = steps_of(one, 512)
    state = [next(p for p in simulate(one, (bucket,) * n).phases if p.phase == "save").components["optimizer"] for n in (1, 2, 3)]
    assert state[1] == state[2] == 2 * state[0]


def test_every_bucket_is_estimated_with_all_of_the_optimizers_state() -> None:
    """Whatever switch_boundary_every is: in a whole run each expert meets each bucket."""
    one = made(optimizer="adamw")
    plan = plan_of(one, load_profile(ARCH))
    assert len(warm_up(plan, steps_of(one, 512))) == 2
    often, rarely = (simulate(replace(one, train=replace(one.train, switch_boundary_every=n))) for n in (1, 1000))
    assert often == rarely


def test_two_experts_need_twice_the_room_without_low_vram() -> None:
    low, plain = (next(p for p in bound(made(low)).phases if p.phase == "train").components["transformer"] for low in (True, False))
    assert plain == pytest.approx(2 * low, rel=1e-3)


def test_what_was_not_recorded_is_named() -> None:
    with pytest.raises(CannotTell, match="convrot"):
        simulate(replace(made(), model=replace(made().model, weights="convrot")))


# ---------------------------------------------------------------- merging into unquantised weights


def merges(one: Job) -> list[str]:
    return [o.key for o in whole(one) if isinstance(o, Part) and o.key.startswith("sample.")]


def unquantised(**more: Any) -> Job:
    one = made(**more)
    return replace(one, model=replace(one.model, weights="bf16"))


def test_an_adapter_is_merged_into_the_expert_on_the_card_and_the_one_on_the_host() -> None:
    """With low_vram the one that had the last step is on the card until the first preview, and none behind it."""
    enter, leave = "sample.enter/bf16/none/", "sample.leave/bf16/none/"
    zero = [enter + "first", enter + "first" + LOW, leave + "first", leave + "first" + LOW]
    there, away = [part + end for part in (enter, leave) for end in ("later", "later" + LOW)], "later" + FROM_HOST
    assert merges(unquantised(low_vram=False)) == zero + there
    assert merges(unquantised(low_vram=True)) == [*zero, enter + away, enter + "later" + LOW, leave + away, leave + away + LOW]
    for expert in (0, 1):
        alone = merges(unquantised(low_vram=True, experts=(expert,)))
        assert alone == [enter + "first", leave + "first", enter + "later", leave + away]


def test_emas_weights_are_copied_whole_before_they_are_merged() -> None:
    keys = merges(unquantised(ema=True))
    copied = [n for n, key in enumerate(keys) if "/ema/" in key]
    assert [keys[n] for n in copied] == [f"sample.enter/qfloat8/ema/{when}{BOTH}" for when in ("first", "later")]
    assert all("/none/" in keys[n + 1] for n in copied)
    assert not [key for key in merges(made(ema=True)) if "/none/" in key]


@pytest.mark.parametrize("way", ["enter", "leave"])
def test_what_goes_back_to_the_host_is_cast_there(way: str) -> None:
    """One tensor less of each of an expert's 400 linear layers, as large as the weight in bf16; all else is as on the card."""
    profile = load_profile(ARCH)
    on_card, away = (profile.program(f"sample.{way}/bf16/none/later{end}") for end in ("", FROM_HOST))
    sizes = [np.sort(np.append(p.sizes({"r": 24}), 0)[p.tensor_of_event[p.events == 0]])[::-1] for p in (on_card, away)]
    left = list(sizes[0])
    for size in sizes[1]:
        left.remove(size)
    assert len(left) == 400
    assert sum(left) == 2 * 40 * (8 * 5120 * 5120 + 2 * 5120 * 13824)
    assert on_card.peak({"r": 24})[0] == away.peak({"r": 24})[0] > 3 * 4 * 5120 * 13824


# ---------------------------------------------------------------- a recovery adapter

RECOVERED = "uint4-recovery"
RECOVERY_GRADIENT_BYTES = 153_354_240  # of one expert: rank 16 on all 400 linear layers of its 40 blocks, in bf16 (the recorded stand-in)


def recovered(**more: Any) -> Job:
    one = made(**more)
    return replace(one, model=replace(one.model, weights=RECOVERED))


def gradients_after(one: Job, peaks: Any) -> int:
    """Bytes of gradients in the round of previews behind the steps, where the trained adapter has none."""
    return int(next(p for p in peaks(one).phases if p.phase == "sample" and p.detail != "baseline").components.get("gradients", 0))


@pytest.mark.parametrize("peaks", [simulate, bound])
@pytest.mark.parametrize(("experts", "count"), [((0, 1), 2), ((0,), 1), ((1,), 1)])
def test_gradients_that_nobody_clears_stay_of_each_expert_that_had_a_step(peaks: Any, experts: tuple[int, ...], count: int) -> None:
    found = gradients_after(recovered(experts=experts), peaks)
    assert found == pytest.approx(count * RECOVERY_GRADIENT_BYTES, rel=0.005)  # less what the last block does with the text


def test_both_experts_recovery_adapters_are_on_the_card_whichever_is_trained() -> None:
    for experts in ((0, 1), (1,)):
        there = {p.components.get("recovery_adapter", 0) for p in simulate(recovered(experts=experts)).phases if p.phase == "train"}
        assert there == {2 * RECOVERY_GRADIENT_BYTES}


def test_weights_on_the_card_are_rebuilt_as_the_adapter_is_made() -> None:
    """The trainer's own quantised layers rebuild a weight when it is read; with low_vram both experts are on the host then."""

    def keys(one: Job) -> list[str]:
        return [o.key for o in whole(one, 1) if isinstance(o, Part) and o.key.startswith("setup.")]

    assert keys(recovered(low_vram=True)) == [key for key in keys(recovered(low_vram=False)) if not key.startswith("setup.read/")]
    assert keys(recovered(low_vram=False)).count(f"setup.read/{RECOVERED}") == 1
    assert keys(made(low_vram=False)) == keys(made(low_vram=True))


def test_the_trainers_24_gb_example_is_read_whole(tmp_path: Path) -> None:
    qtype = "uint4|ostris/accuracy_recovery_adapters/wan22_14b_t2i_torchao_uint4.safetensors"
    read_job = read(tmp_path, model={**T2V, "qtype": qtype, "quantize_te": True, "qtype_te": "qfloat8", "low_vram": True})
    assert (read_job.model.weights, read_job.model.te_weights, read_job.unmodelled) == (RECOVERED, "uint4", ())


# ---------------------------------------------------------------- configs


def test_which_experts_are_trained_and_how_they_take_turns(tmp_path: Path) -> None:
    plain = read(tmp_path, model=T2V, train={"switch_boundary_every": 10})
    assert (plain.arch, plain.model.experts, plain.train.switch_boundary_every) == (ARCH, (0, 1), 10)
    quoted = read(tmp_path, model={**T2V, "model_kwargs": {"train_high_noise": False, "train_low_noise": "false"}})
    assert quoted.model.experts == (1,)
    assert any("train_low_noise" in w and "counts as true" in w for w in quoted.warnings)
    assert read(tmp_path, model={**T2V, "model_kwargs": {"train_high_noise": False}}).model.experts == (1,)
    with pytest.raises(InputError, match="train_low_noise"):
        read(tmp_path, model={**T2V, "model_kwargs": {"train_high_noise": False, "train_low_noise": False}})


@pytest.mark.parametrize("low_vram", [True, False])
def test_frames_of_previews_are_rounded_by_diffusers_rule(tmp_path: Path, low_vram: bool) -> None:
    read_job = read(tmp_path, model={**T2V, "low_vram": low_vram}, sample={"num_frames": 40, "samples": [{"prompt": "a"}]})
    assert [one.frames for one in read_job.samples] == [41]


# ---------------------------------------------------------------- image to video

I2V_ARCH = "wan22-i2v-14b"
I2V = {"name_or_path": "ai-toolkit/Wan2.2-I2V-A14B-Diffusers-bf16", "arch": "wan22_14b_i2v", "quantize": True}
PICTURED = {"num_frames": 17, "samples": [{"prompt": "a", "ctrl_img": "/nowhere/a.png"}]}


def test_a_clip_that_begins_with_a_picture_goes_through_the_vae_in_each_step_and_preview() -> None:
    one = replace(made(), arch=I2V_ARCH, datasets=(replace(made().datasets[0], cache_latents=False, cache_latents_to_disk=False),))
    keys = [o.key.split("/")[0] for o in whole(one) if isinstance(o, Part)]
    assert keys.count("step.core") == 4
    assert keys.count("preview") == 2
    firsts = [o.key for o in whole(one) if isinstance(o, Part) and ".first_frame/" in o.key]
    assert len([key for key in firsts if key.startswith("step.") and key.endswith(("/first", "/two", "/one"))]) == 4
    assert len([key for key in firsts if key.startswith("preview.") and key.endswith(("/first", "/two", "/one"))]) == 2
    assert not [key for key in keys if key.startswith("tile.")]  # its previews are never decoded in tiles


def test_a_config_of_image_to_video_needs_pixels_and_a_picture_for_each_preview(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    clips = [{"folder_path": "/nowhere/clips", "num_frames": 17, "resolution": 512}]
    assert read(tmp_path, model=I2V, datasets=clips, sample=PICTURED).arch == I2V_ARCH
    with pytest.raises(InputError, match="cached latents"):
        read(tmp_path, model=I2V, datasets=[{**clips[0], "cache_latents_to_disk": True}], sample=PICTURED)
    with pytest.raises(InputError, match="preview 1"):
        read(tmp_path, model=I2V, datasets=clips, sample={"num_frames": 17, "samples": [{"prompt": "a"}]})
