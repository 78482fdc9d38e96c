"""Laws that every estimate must keep, whatever the settings; by peak rows, which are fast, and on some jobs by the whole replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estimator import positions
from estimator.archs import load_archs
from estimator.engine import estimate_job
from estimator.estimate import BORDERLINE, OOM, SAFE, Estimate
from estimator.gpus import GIB, find_gpu
from estimator.job import Job, Model, Network, Sample, Train
from estimator.rows import bound
from estimator.trainers import modelled
from tests.made_jobs import ARCHS, always_guided, batched, dataset, guided, job, optimizers_of, padded_text, te_weights_of, weights_of

of_each = pytest.mark.parametrize("arch", ARCHS)
by_rows = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
by_replay = settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
GRAIN_BYTES = 2**20
"""What "never less" allows: rounding of blocks, and buffers of reductions that a kernel needs at one size and not at a larger one.
Rows have tables of positions where a recording's first forward made them, which replays lay for themselves."""
OTHER_STEPS_SHARE = 1e-3
"""Another folder's steps come between, and what a step leaves for the next is then a smaller batch's: 3 MB of 8 GB in clips of Wan."""
BADNESS = (SAFE, BORDERLINE, OOM)
CARDS_GIB = (2, 8, 12, 16, 24, 32, 48, 80)


def with_a_recipe(arch: str, kinds: Mapping[str, frozenset[str]], recorded: tuple[str, ...]) -> list[str]:
    """Of the kinds that an architecture has by recipe one of weights alone, and one that turns what goes through its layers."""
    return sorted(kinds.get(arch, frozenset()) & {"nvfp4", "convrot8"}) if "uint4" in recorded else []


@st.composite
def jobs(draw: st.DrawFn, arch: str) -> Job:
    """Any job of an architecture on one bucket, with one preview; of a video model on images or clips (of three latent frames and more:
    those of two were not recorded in every combination)."""
    cached, known = draw(st.booleans()), load_archs().archs[arch]
    train = Train(
        gradient_checkpointing=known.needs_checkpointing or draw(st.booleans()),
        optimizer=draw(st.sampled_from(optimizers_of(arch))),
        ema=draw(st.booleans()),
        unload_text_encoder=not (known.single_captions or known.previews_need_text) and draw(st.booleans()),
    )
    weights = draw(st.sampled_from((*weights_of(arch), *with_a_recipe(arch, modelled.BY_RECIPE, weights_of(arch)))))
    te_weights = draw(st.sampled_from((*te_weights_of(arch), *with_a_recipe(arch, modelled.TEXT_BY_RECIPE, te_weights_of(arch)))))
    most = 64 if known.padded_to else 80  # larger pictures than they are padded to stop the trainer, unless they are squares
    size = draw(st.integers(20, most)) * 16, draw(st.integers(20, most)) * 16
    padded = load_archs().archs[arch].fixed_text_tokens
    tokens = st.just(padded) if padded is not None else st.integers(16, 256)
    data = dataset(size, batch=draw(st.integers(1, 4)), tokens=draw(tokens), cache_latents_to_disk=cached)
    guidance = guided(arch) and (always_guided(arch) or draw(st.booleans()))
    frames = st.just(1) | st.integers(2, 20).map(lambda n: 4 * n + 1) if load_archs().archs[arch].video else st.just(1)
    preview = Sample(
        draw(st.integers(32, 80)) * 16, draw(st.integers(32, 80)) * 16, cfg=4.0, text_tokens=draw(tokens),
        negative_tokens=padded or 9,
        batch=1 + (guidance and batched(arch)), guided=guidance, frames=draw(frames),
    )  # fmt: skip
    data = replace(data, buckets=tuple(replace(bucket, frames=draw(frames)) for bucket in data.buckets))
    model = Model("model", weights=weights, te_weights=te_weights, low_vram=draw(st.booleans()))
    return job(arch, model=model, train=train, datasets=(data,), samples=(preview,), network=Network(rank=draw(st.integers(1, 128))))


def resized(made: Job, wider: int = 0, batch: int = 0, tokens: int = 0, frames: int = 0) -> Job:
    (data,) = made.datasets
    (bucket,) = data.buckets
    larger = replace(bucket, width=bucket.width + 16 * wider, frames=bucket.frames + 4 * frames)
    assert data.text_tokens is not None
    return replace(
        made, datasets=(replace(data, buckets=(larger,), batch_size=data.batch_size + batch, text_tokens=data.text_tokens + tokens),)
    )


def of_higher_rank(made: Job, more: int) -> Job:
    assert made.network is not None
    return replace(made, network=replace(made.network, rank=made.network.rank + more))


def with_another_folder(made: Job) -> Job:
    second = dataset((512, 512), batch=1, tokens=20, cache_latents_to_disk=made.datasets[0].cache_latents_to_disk)
    return replace(made, datasets=(*made.datasets, replace(second, folder="/data/other")))


def sides(made: Job) -> list[tuple[int, int]]:
    """Of its pictures and its previews."""
    return [(one.width, one.height) for one in (*(bucket for data in made.datasets for bucket in data.buckets), *made.samples)]


def square(size: tuple[int, int]) -> bool:
    return size[0] == size[1]


def pads_mask(made: Job) -> bool:
    """Chroma's dense mask is copied, several times at once, where the number of keys is no multiple of 8: 122 MB of 30.9 GB at 1264x656."""
    return any(bucket.width // 16 * (bucket.height // 16) % 8 for dataset in made.datasets for bucket in dataset.buckets)


def peaks(made: Job) -> dict[str, int]:
    """Phase -> the most that any of its name takes; "any": of all."""
    found: dict[str, int] = {}
    for peak in bound(made).phases:
        for name in (peak.phase, "any"):
            found[name] = max(found.get(name, 0), peak.allocated_bytes)
    return found


@of_each
@by_rows
@given(draw=st.data())
def test_nothing_more_ever_needs_less(arch: str, draw: st.DataObject) -> None:
    """More pixels, samples, frames, text, rank, folders or larger previews never need less; checkpointing never adds. By peak rows."""
    made = draw.draw(jobs(arch))
    before, (preview,) = peaks(made), made.samples
    more = {name: draw.draw(st.integers(1, most), name) for name, most in (("wider", 40), ("batch", 4), ("tokens", 256))}
    if padded_text(arch):
        del more["tokens"]
    larger = {name: ("train", resized(made, **{name: by})) for name, by in more.items()}
    larger["rank"] = "train", of_higher_rank(made, draw.draw(st.integers(1, 64), "rank"))
    larger["preview"] = "sample", replace(made, samples=(replace(preview, width=preview.width + 16 * more["wider"]),))
    larger["folder"] = "any", with_another_folder(made)
    if load_archs().archs[arch].video:
        larger["frames"] = "train", resized(made, frames=draw.draw(st.integers(2, 10), "frames"))
        larger["longer preview"] = "sample", replace(made, samples=(replace(preview, frames=preview.frames + 8),))
    if load_archs().archs[arch].padded_to:  # a square is not padded, and takes less than what is narrower; its preview is the largest
        met = {what: any(map(square, [*sides(made), *sides(one[1])])) for what, one in larger.items()}
        larger = {what: one for what, one in larger.items() if what not in ("wider", "preview") or not met[what]}
    if arch.startswith("chroma") and pads_mask(made) and not pads_mask(larger["wider"][1]):
        del larger["wider"]
    if made.train.gradient_checkpointing and not load_archs().archs[arch].needs_checkpointing:
        larger["no checkpointing"] = "train", replace(made, train=replace(made.train, gradient_checkpointing=False))
    less = {what: before[phase] - peaks(other)[phase] for what, (phase, other) in larger.items()}
    less["folder"] -= round(OTHER_STEPS_SHARE * before["any"])
    grain = GRAIN_BYTES + (positions.TABLES * positions.TABLE_BYTES if load_archs().archs[arch].keeps_positions else 0)
    assert {what: by for what, by in less.items() if by > grain} == {}


def check_whole(estimate: Estimate) -> None:
    gpu = estimate.gpu
    for phase in estimate.phases:
        assert sum(phase.components.values()) == phase.allocated_bytes, phase
        assert all(size > 0 for size in phase.components.values()), phase
        assert phase.reserved_bytes >= phase.allocated_bytes >= 0  # Z-Image's unquantised transformer is loaded on the host
        assert phase.device.low_bytes <= phase.device.likely_bytes <= phase.device.high_bytes
        assert phase.device.likely_bytes >= phase.allocated_bytes + gpu.context_bytes
        assert phase.moment
    assert estimate.verdict == max((p.verdict for p in estimate.phases), key=BADNESS.index)


@of_each
@by_replay
@given(draw=st.data())
def test_an_estimate_is_sound_on_every_card(arch: str, draw: st.DataObject) -> None:
    """The parts sum to the whole; a larger card is never worse; the fast way is never more pessimistic. By the whole replay."""
    made = draw.draw(jobs(arch))
    cards = [find_gpu(f"{size}GiB") for size in CARDS_GIB]
    full, fast = ([estimate_job(made, card, fast=way) for card in cards] for way in (False, True))
    badness = [BADNESS.index(estimate.verdict) for estimate in full]
    assert badness == sorted(badness, reverse=True)
    assert full[0].verdict == OOM  # the transformer alone is more than 2 GiB
    for slow, quick, worst in zip(full, fast, badness, strict=True):
        assert (slow.lower_bound, quick.lower_bound) == (False, True)
        assert BADNESS.index(quick.verdict) <= worst
    check_whole(full[-2])
    check_whole(fast[-2])


@pytest.mark.parametrize("arch", ARCHS)
def test_verdicts_come_in_order_over_the_sizes_of_cards(arch: str) -> None:
    """On the way from too small to large enough: out of memory, then borderline if at all, then safe."""
    made = job(arch)
    verdicts = [estimate_job(made, find_gpu(f"{2 * 1.072**step:.1f}GiB")).verdict for step in range(56)]  # up to 92 GiB
    changes = [verdict for n, verdict in enumerate(verdicts) if n == 0 or verdicts[n - 1] != verdict]
    assert changes in ([OOM, SAFE], [OOM, BORDERLINE, SAFE])


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_9_takes_larger_workspaces(arch: str) -> None:
    """cuBLAS: 32 MiB for each thread that multiplies, forward and backward, instead of 8.125."""
    ada, hopper = (replace(find_gpu("80GiB"), compute_capability=cc) for cc in ("8.9", "9.0"))
    sizes = [next(p for p in estimate_job(job(arch), gpu).phases if p.phase == "train").components["workspace"] for gpu in (ada, hopper)]
    assert sizes == [2 * 8_519_680, 2 * 32 * 2**20]
    assert GIB == 2**30
