"""Laws that every estimate must keep, whatever the settings; by peak rows, which are fast, and on some jobs by the whole replay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estimator.engine import estimate_job
from estimator.estimate import BORDERLINE, OOM, SAFE, Estimate
from estimator.gpus import GIB, find_gpu
from estimator.job import Job, Model, Network, Sample, Train
from estimator.residents import PhasePeak
from estimator.rows import bound
from tests.made_jobs import ARCHS, batched, dataset, guided, job, optimizers_of, te_weights_of, weights_of

few = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
fewer = settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
GRAIN_BYTES = 2**20
"""What "never less" allows: rounding of blocks, and buffers of reductions that a kernel needs at one size and not at a larger one."""
BADNESS = (SAFE, BORDERLINE, OOM)


@st.composite
def jobs(draw: st.DrawFn, **fixed: object) -> Job:
    arch = draw(st.sampled_from(ARCHS))
    cached = draw(st.booleans())
    train = Train(
        gradient_checkpointing=draw(st.booleans()),
        optimizer=draw(st.sampled_from(optimizers_of(arch))),
        ema=draw(st.booleans()),
        unload_text_encoder=draw(st.booleans()),
    )
    weights, te_weights = draw(st.sampled_from(weights_of(arch))), draw(st.sampled_from(te_weights_of(arch)))
    size = draw(st.integers(20, 80)) * 16, draw(st.integers(20, 80)) * 16
    data = dataset(size, batch=draw(st.integers(1, 4)), tokens=draw(st.integers(16, 256)), cache_latents_to_disk=cached)
    guidance = guided(arch) and draw(st.booleans())
    preview = Sample(
        draw(st.integers(32, 80)) * 16, draw(st.integers(32, 80)) * 16, cfg=4.0, text_tokens=draw(st.integers(16, 256)), negative_tokens=9,
        batch=1 + (guidance and batched(arch)), guided=guidance,
    )  # fmt: skip
    model = Model("model", weights=weights, te_weights=te_weights, low_vram=draw(st.booleans()))
    return job(arch, model=model, train=train, datasets=(data,), samples=(preview,), network=Network(rank=draw(st.integers(1, 128))))


def resized(made: Job, wider: int = 0, batch: int = 0, tokens: int = 0) -> Job:
    (data,) = made.datasets
    (bucket,) = data.buckets
    larger = replace(bucket, width=bucket.width + 16 * wider)
    assert data.text_tokens is not None
    return replace(
        made, datasets=(replace(data, buckets=(larger,), batch_size=data.batch_size + batch, text_tokens=data.text_tokens + tokens),)
    )


def train_peak(made: Job) -> PhasePeak:
    (peak,) = (p for p in bound(made).phases if p.phase == "train")
    return peak


def never_less(smaller: Job, larger: Job) -> None:
    less, more = train_peak(smaller).allocated_bytes, train_peak(larger).allocated_bytes
    assert more >= less - GRAIN_BYTES, f"{less - more} bytes less"


@few
@given(made=jobs(), wider=st.integers(1, 40))
def test_more_pixels_never_need_less(made: Job, wider: int) -> None:
    never_less(made, resized(made, wider=wider))


@few
@given(made=jobs(), more=st.integers(1, 4))
def test_a_larger_batch_never_needs_less(made: Job, more: int) -> None:
    never_less(made, resized(made, batch=more))


@few
@given(made=jobs(), more=st.integers(1, 256))
def test_longer_text_never_needs_less(made: Job, more: int) -> None:
    never_less(made, resized(made, tokens=more))


@few
@given(made=jobs(), more=st.integers(1, 64))
def test_a_higher_rank_never_needs_less(made: Job, more: int) -> None:
    assert made.network is not None
    never_less(made, replace(made, network=replace(made.network, rank=made.network.rank + more)))


@few
@given(made=jobs())
def test_checkpointing_never_adds(made: Job) -> None:
    with_it, without = (replace(made, train=replace(made.train, gradient_checkpointing=on)) for on in (True, False))
    assert train_peak(with_it).allocated_bytes <= train_peak(without).allocated_bytes + GRAIN_BYTES


@few
@given(made=jobs(), wider=st.integers(1, 40))
def test_a_larger_preview_never_needs_less(made: Job, wider: int) -> None:
    (preview,) = made.samples
    larger = replace(made, samples=(replace(preview, width=preview.width + 16 * wider),))
    less, more = (max(p.allocated_bytes for p in bound(j).phases if p.phase == "sample") for j in (made, larger))
    assert more >= less - GRAIN_BYTES


@few
@given(made=jobs())
def test_another_bucket_lowers_no_phase(made: Job) -> None:
    """A second dataset: the train phase of the first stays as it is, but for what the order of buckets decides."""
    cached = made.datasets[0].cache_latents_to_disk
    second = replace(dataset((512, 512), batch=1, tokens=20, cache_latents_to_disk=cached), folder="/data/other")
    both = replace(made, datasets=(*made.datasets, second))
    assert max(p.allocated_bytes for p in bound(both).phases) >= max(p.allocated_bytes for p in bound(made).phases) - GRAIN_BYTES


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


@fewer
@given(made=jobs())
def test_the_parts_sum_to_the_whole(made: Job) -> None:
    check_whole(estimate_job(made, find_gpu("48GiB")))
    check_whole(estimate_job(made, find_gpu("48GiB"), fast=True))


@fewer
@given(made=jobs())
def test_a_larger_card_is_never_worse(made: Job) -> None:
    cards = [find_gpu(f"{size}GiB") for size in (2, 8, 12, 16, 24, 32, 48, 80)]
    verdicts = [estimate_job(made, card).verdict for card in cards]
    badness = [BADNESS.index(verdict) for verdict in verdicts]
    assert badness == sorted(badness, reverse=True), verdicts
    assert verdicts[0] == OOM  # the transformer alone is more than 2 GiB


@fewer
@given(made=jobs())
def test_the_fast_way_is_never_more_pessimistic(made: Job) -> None:
    for size in (8, 16, 24, 48):
        card = find_gpu(f"{size}GiB")
        full, fast = estimate_job(made, card), estimate_job(made, card, fast=True)
        assert fast.lower_bound
        assert not full.lower_bound
        assert BADNESS.index(fast.verdict) <= BADNESS.index(full.verdict), (full.verdict, fast.verdict)


@pytest.mark.parametrize("arch", ARCHS)
def test_verdicts_come_in_order_over_the_sizes_of_cards(arch: str) -> None:
    """On the way from too small to large enough: out of memory, then borderline if at all, then safe."""
    made = job(arch)
    verdicts = [estimate_job(made, find_gpu(f"{tenth / 2}GiB")).verdict for tenth in range(8, 96, 2)]
    changes = [verdict for n, verdict in enumerate(verdicts) if n == 0 or verdicts[n - 1] != verdict]
    assert changes in ([OOM, SAFE], [OOM, BORDERLINE, SAFE])


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda_9_takes_larger_workspaces(arch: str) -> None:
    """cuBLAS: 32 MiB for each thread that multiplies, forward and backward, instead of 8.125."""
    ada, hopper = (replace(find_gpu("80GiB"), compute_capability=cc) for cc in ("8.9", "9.0"))
    sizes = [next(p for p in estimate_job(job(arch), gpu).phases if p.phase == "train").components["workspace"] for gpu in (ada, hopper)]
    assert sizes == [2 * 8_519_680, 2 * 32 * 2**20]
    assert GIB == 2**30
