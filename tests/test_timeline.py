"""The timeline of every setting that composes: each part was recorded, nothing is freed that is not there, nothing is left over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from random import Random

import pytest

from estimator import operations as op
from estimator import plans
from estimator.allocator_state import UNIT_BYTES
from estimator.archs import load_archs
from estimator.batches import steps_of
from estimator.job import Job, Model, Network, Sample, Train
from estimator.programs import load_profile
from estimator.replay import Replay
from estimator.residents import first_text_product
from estimator.rows import bound
from estimator.timeline import orders_of, simulate
from tests.made_jobs import ARCHS, always_guided, batched, dataset, guided, job, optimizers_of, taken, te_weights_of, weights_of

archs = pytest.mark.parametrize("arch", ARCHS)
TOO_LONG = frozenset({"step", "batch", "preview", "item", "prompt"})
"""Scopes of what may not outlive a phase."""
CACHING: tuple[dict[str, bool], ...] = (
    {},
    {"cache_latents": True},
    {"cache_latents_to_disk": True, "cache_text_embeddings": True},
    {"cache_text_embeddings": True},
)


def combinations(arch: str) -> list[Job]:
    """Every setting that composes, with every other one, on one architecture."""
    jobs = []
    merged = (None, "adapter") if arch in ("flux1-schnell", "zimage-turbo") else (None,)
    for weights, te_weights, low_vram, adapter in product(weights_of(arch), te_weights_of(arch), (False, True), merged):
        model = Model("model", weights=weights, te_weights=te_weights, low_vram=low_vram, assistant_lora=adapter)
        for checkpointing, ema, unload, sampling, batch in product((True, False), (True, False), (True, False), range(3), (1, 2)):
            train = Train(
                gradient_checkpointing=checkpointing, ema=ema, unload_text_encoder=unload, disable_sampling=sampling == 2, batch_size=batch,
                optimizer=optimizers_of(arch)[0],
            )
            guidance = (bool(sampling) and guided(arch)) or always_guided(arch)
            preview = Sample(512, 768, cfg=4.0, text_tokens=30, negative_tokens=9, batch=1 + (guidance and batched(arch)), guided=guidance)
            for cached in CACHING:
                data = dataset((512, 512), (640, 448), batch=batch, tokens=25, **cached)
                jobs.append(job(arch, model=model, train=train, samples=(preview,), datasets=(data,)))
    return [made for made in jobs if taken(made)]


def all_optimizers(jobs: list[Job]) -> list[Job]:
    """Each job with an optimizer, by turns: it decides nothing but the update."""
    known = optimizers_of(jobs[0].arch)
    return [replace(j, train=replace(j.train, optimizer=known[n % len(known)])) for n, j in enumerate(jobs)]


def operations(made: Job) -> Iterator[op.Operation]:
    plan = plans.plan_of(made, load_profile(made.arch))
    yield from plans.before_steps(plan)
    yield from plans.steps(plan, steps_of(made, plan.tokens(None)))
    yield from plans.after_steps(plan)


def sampled(arch: str, count: int) -> list[Job]:
    jobs = combinations(arch)
    Random(arch).shuffle(jobs)
    return all_optimizers(jobs[:count])


class Watched(Replay):
    """A replay that looks at what is on the card whenever a phase ends. An unknown key would be an error of the allocator."""

    inside = False

    def _part(self, part: op.Part) -> None:
        self.inside = True
        super()._part(part)
        self.inside = False

    def _one(self, operation: op.Operation) -> None:
        super()._one(operation)
        if self.inside:  # the part's own bytes enter the ledger when it is over
            return
        live = self.state.allocator.allocated_bytes
        counted = sum(self.state.bytes_of.values())
        # torch counts a block in full where too little of it is left to be split off (up to 1 MiB each): "allocator rounding"
        tensors = sum(map(len, self.state.named.values())) + sum(map(len, self.state.scopes.values()))
        assert 0 <= live - counted <= tensors * 2**20, f"{operation}: {live} bytes allocated, {counted} in the ledger"
        assert all(size >= 0 for size in self.state.bytes_of.values()), f"{operation}: {self.state.bytes_of}"
        if isinstance(operation, op.End):
            assert self._begin is None
            left = {scope for scope, rows in self.state.scopes.items() if rows} & TOO_LONG
            assert not left, f"left over: {left}"


@archs
def test_every_part_of_every_combination_was_recorded(arch: str) -> None:
    profile = load_profile(arch)
    jobs = combinations(arch)
    known = load_archs().archs[arch]
    few = known.needs_checkpointing or known.previews_need_text or not known.cached_previews
    assert len(jobs) >= 2 * 2 * 2 * 2 * 3 * 2 * len(CACHING) / (4 if few else 1)
    needed: set[str] = set()
    for made in jobs:
        for operation in operations(made):
            if isinstance(operation, op.Part):
                needed.add(operation.key)
    for key in sorted(needed):
        assert profile.program(key).key == key  # raises CannotTell
    for optimizer, when in product(optimizers_of(arch), ("first", "later")):
        profile.program(f"step.update/{optimizer}/{when}")


@archs
def test_peak_rows_of_any_combination(arch: str) -> None:
    for made in sampled(arch, 40):
        phases = bound(made).phases
        assert all(peak.allocated_bytes == sum(peak.components.values()) for peak in phases)
        assert all(size >= 0 for peak in phases for size in peak.components.values()), made


@archs
def test_replay_of_any_combination(arch: str) -> None:
    for made in sampled(arch, 5):
        profile = load_profile(arch)
        replay = Watched(profile, made, None)
        assert replay.run(operations(made))
        for peak in replay.peaks:
            assert sum(peak.components.values()) == peak.allocated_bytes, (made, peak)
            assert peak.allocated_bytes <= peak.reserved_bytes


@archs
def test_rows_are_below_the_replay(arch: str) -> None:
    """Rows count no rounding of blocks, and go through the buckets in one order: the smallest is met without optimizer state."""
    for made in sampled(arch, 3):
        fast, full = bound(made).phases, simulate(made).phases
        assert [(p.phase, p.variant) for p in fast] == [(p.phase, p.variant) for p in full]
        for low, high in zip(fast, full, strict=True):
            assert low.allocated_bytes <= high.allocated_bytes, (low, high)
            assert high.allocated_bytes - low.allocated_bytes <= 0.05 * high.allocated_bytes + 2**23, (low, high)


@archs
def test_a_second_step_of_a_kind_changes_nothing(arch: str) -> None:
    """What a step leaves behind does not grow: the third step of a bucket peaks where the second did, but for how blocks are rounded."""
    made = job(arch)
    steps = steps_of(made, 512)
    train = [p for p in simulate(made, order=(*steps, *steps, *steps)).phases if p.phase == "train"]
    made_of = [{name: size for name, size in p.components.items() if name != "allocator rounding"} for p in train]
    assert made_of[2:4] == made_of[4:6]
    grown = [later.allocated_bytes - p.allocated_bytes for p, later in zip(train[2:4], train[4:6], strict=True)]
    assert max(map(abs, grown)) <= 2 * 2**20


class Batches(Replay):
    """Notes how many tensors of batches are on the card as an optimizer steps, and as a phase begins."""

    def _one(self, operation: op.Operation) -> None:
        if isinstance(operation, op.Begin) or (isinstance(operation, op.Part) and operation.key.startswith("step.update")):
            held = tuple(len(self.state.scopes.get(scope, [])) for scope in ("batch", "latents"))
            assert held == ((0, 0) if isinstance(operation, op.Begin) else (0, self.job.train.gradient_accumulation)), operation
        super()._one(operation)


@archs
@pytest.mark.parametrize("accumulated", [1, 2])
def test_of_a_batch_only_latents_outlive_its_backward_pass(arch: str, accumulated: int) -> None:
    """The trainer's function returns before the optimizer steps; the batch itself keeps its latents until the step is over."""
    made = job(arch)
    made = replace(made, train=replace(made.train, gradient_accumulation=accumulated))
    assert Batches(load_profile(arch), made, None).run(operations(made))


class Sizes:
    """An allocator's requests, in order: bytes, negative for what is no request."""

    def __init__(self, allocator: object) -> None:
        self.allocator, self.seen = allocator, list[int]()

    def __getattr__(self, name: str) -> object:
        return getattr(self.allocator, name)

    def run(self, keys: list[int], sizes: list[int]) -> object:
        self.seen += [int(size) for size in sizes]
        return self.allocator.run(keys, sizes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("arch", ["flux2-klein-4b", "qwen-image", "wan21-14b"])
def test_the_first_product_makes_the_workspace(arch: str) -> None:
    """Behind as many of the text encoder's tensors as in the recording; the second text has one already."""
    made = job(arch)
    part = op.Part(f"text/{made.model.te_weights}/plain/one", {"X": 512, "B": 1}, "prompt")
    program = load_profile(arch).program(part.key)
    replay = Replay(load_profile(arch), made, None)
    spy = replay.state.allocator = Sizes(replay.state.allocator)  # type: ignore[assignment]
    assert replay.run([part, part])
    at = [n for n, size in enumerate(spy.seen) if size == replay.workspace_bytes]
    assert at == [program.workspace_at["forward"]]
    assert at[0] > 0


@pytest.mark.parametrize("arch", ARCHS)
def test_the_first_product_is_found_by_its_module(arch: str) -> None:
    """Within two events of where a recording has it, and two more where a rule lays a weight in between; and somewhere in every text."""
    profile = load_profile(arch)
    for key in profile.data["parts"]:
        if key.startswith("text/"):
            program = profile.program(key)
            found = first_text_product(program)
            assert 0 < found < len(program.events)
            by_rule = "made_of" in profile.data["parts"][key]
            assert abs(found - program.workspace_at.get("forward", found)) <= 2 + 2 * by_rule


@pytest.mark.parametrize(("arch", "made_before"), [("zimage", "rotary_emb"), ("flux1-dev", "q_proj")])
def test_without_cached_latents_the_first_text_makes_the_workspace(arch: str, made_before: str) -> None:
    made = job(arch)
    part = op.Part(f"text/{made.model.te_weights}/plain/one", {"X": 512, "B": 1}, "prompt")
    program, replay = load_profile(arch).program(part.key), Replay(load_profile(arch), made, None)
    spy = replay.state.allocator = Sizes(replay.state.allocator)  # type: ignore[assignment]
    assert replay.run([part])
    at = spy.seen.index(replay.workspace_bytes)
    before = int(program.tensor_of_event[at - 1])
    assert made_before in program.moments[program.labels[before]]


@pytest.mark.parametrize("batch", [2, 3, 4])
@pytest.mark.parametrize("arch", ["zimage", "zimage-turbo"])
def test_image_and_caption_are_joined_for_each_sample_of_a_batch(arch: str, batch: int) -> None:
    """Z-Image joins them sample by sample: 3840 channels of two bytes a token, and 64 complex numbers."""
    profile = load_profile(arch)
    joined = 1024 + 64  # tokens of the image and of the caption
    for key in profile.data["parts"]:
        if key.startswith("step.core/") and key.endswith("/many"):
            program = profile.program(key)
            sizes = program.sizes({"T": 1024, "E": 128, "X": 64, "B": batch, "r": 16})
            first = [k for k, row in enumerate(program.labels) if program.moments[row] == "transformer|forward"]
            assert [sum(sizes[k] == wide * joined for k in first) for wide in (7680, 512)] == [batch, batch]


def test_position_frequencies_stay_once_for_each_size_of_image() -> None:
    """Two tables of 2 MiB from the first forward on, and 512 bytes a token of each size: a preview's, and both buckets'."""
    made = job("qwen-image", samples=(Sample(512, 768, text_tokens=30, negative_tokens=9),))
    up = steps_of(made, 40)
    held = [peak.components["positions"] for peak in simulate(made, order=(*up, *up[::-1])).phases if peak.phase == "train"]
    preview, one, other = (width * height // 256 for width, height in ((512, 768), (512, 512), (768, 640)))
    both = 2 * 2**21 + 512 * (preview + one + other)
    assert held == [both - 512 * (one + other), both - 512 * other, both, both]  # the peaks are those of text, before each forward
    assert all("positions" not in peak.components for peak in simulate(job("flux1-dev")).phases)


def test_accumulated_batches_hold_one_set_of_gradients() -> None:
    made = job("flux1-dev")
    twice = replace(made, train=replace(made.train, gradient_accumulation=2))
    for peak in simulate(twice).phases:
        if peak.phase == "train":
            assert peak.components["gradients"] == pytest.approx(peak.components["adapter"], rel=0.01)


def test_without_sampling_there_is_no_preview() -> None:
    made = job("flux1-dev")
    off = replace(made, train=replace(made.train, disable_sampling=True))
    later = replace(made, train=replace(made.train, skip_first_sample=True))
    assert [p.detail for p in bound(made).phases if p.phase == "sample"] == ["baseline", "with optimizer state"]
    assert [p.detail for p in bound(later).phases if p.phase == "sample"] == ["with optimizer state"]
    assert [p for p in bound(off).phases if p.phase == "sample"] == []


def test_a_capacity_stops_the_replay_at_the_phase_that_fails() -> None:
    made = job("flux1-dev")
    free = simulate(made)
    assert free.failed is None
    enough = simulate(made, capacity_bytes=max(p.reserved_bytes for p in free.phases))
    assert (enough.failed, enough.retries) == (None, 0)
    tight = simulate(made, capacity_bytes=2**30)
    assert tight.failed == 0
    assert tight.phases[0].failed
    assert len(tight.phases) == 1


def test_components_are_where_the_settings_say() -> None:
    made = job("flux1-dev")
    away = replace(made, train=replace(made.train, unload_text_encoder=True))
    step = [next(p for p in simulate(j).phases if p.phase == "train").components for j in (made, away)]
    assert step[0]["text_encoder"] == pytest.approx(4896075776 + 246121576, rel=0.001)  # T5 in float8, CLIP in bf16, as recorded
    assert "text_encoder" not in step[1]
    assert all(parts["transformer"] == pytest.approx(11910625536, rel=0.001) for parts in step)


def test_orders_of_buckets() -> None:
    one, two, three = (tuple(f"step {n}" for n in range(count)) for count in (1, 2, 3))
    assert orders_of(one) == [one]  # type: ignore[arg-type]
    assert orders_of(two) == [two, two[::-1]]  # type: ignore[arg-type]
    assert all(sorted(order) == sorted(three) for order in orders_of(three))  # type: ignore[arg-type, type-var]


def test_blocks_are_the_allocators() -> None:
    """512 bytes: what CUDACachingAllocator rounds to, and so every component of a ledger."""
    assert UNIT_BYTES == 512
    assert all(size % 512 == 0 for peak in simulate(job("zimage")).phases for size in peak.components.values())


@archs
def test_a_single_bucket_is_met_with_optimizer_state_too(arch: str) -> None:
    """Z-Image with prodigy at rank 64: the second step's peak is 16.08 GB, the first's 14.67."""
    made = job(arch, datasets=(dataset((768, 768), tokens=40),), train=Train(optimizer=optimizers_of(arch)[-1]), network=Network(rank=64))
    (step,) = steps_of(made, 512)
    plan = plans.plan_of(made, load_profile(arch))
    real = [p for p in simulate(made, order=(*plans.warm_up(plan, (step,)), step)).phases if p.phase == "train"]
    shown = [p for p in simulate(made).phases if p.phase == "train"]
    assert max(p.allocated_bytes for p in shown) == max(p.allocated_bytes for p in real)


def test_a_long_negative_prompt_counts_as_much_as_a_long_prompt() -> None:
    """Z-Image runs both in one forward, the shorter padded to the longer."""

    def preview_bytes(positive: int, negative: int) -> int:
        preview = Sample(512, 512, cfg=4.0, text_tokens=positive, negative_tokens=negative, batch=2, guided=True)
        made = job("zimage", samples=(preview,), train=Train(optimizer="adamw8bit", unload_text_encoder=True))
        return max(p.allocated_bytes for p in simulate(made).phases if p.phase == "sample")

    assert preview_bytes(9, 500) == preview_bytes(500, 9) > preview_bytes(9, 9)


@pytest.mark.parametrize("arch", ["flux1-dev", "flux1-schnell", "flex1"])
@pytest.mark.parametrize("weights", ["qfloat8", "float8", "uint4"])
@pytest.mark.parametrize("low_vram", [False, True])
def test_an_embedder_left_unquantised_weighs_as_much_wherever_it_came_from(arch: str, weights: str, low_vram: bool) -> None:
    """Loaded onto the card and quantised there, or moved in later: the same bytes; 32.2 million weights, 22.0 without guidance."""

    def transformer_bytes(exclude: tuple[str, ...]) -> set[int]:
        model = Model("model", weights=weights, te_weights="float8", low_vram=low_vram, quantize_exclude=exclude)
        train = Train(optimizer="adamw8bit", disable_sampling=True)
        phases = simulate(job(arch, model=model, train=train, samples=())).phases
        return {p.components["transformer"] for p in phases if p.phase in ("prepare", "train", "save")}

    ((more,), (less,)) = transformer_bytes(("*time_text_embed*",)), transformer_bytes(())
    parameters = 22.0e6 if arch == "flux1-schnell" else 32.2e6
    assert more - less == pytest.approx(parameters * (2 - {"uint4": 0.55}.get(weights, 1.0)), rel=0.1)


def test_a_second_caption_is_encoded_where_there_is_one() -> None:
    """Among what the first has left in the cache: in a whole run (klein4b-offload-uint4) that is a segment of 742 MiB more."""
    made = job("flux2-klein-4b")
    one, two = (replace(dataset((512, 512), *more, cache_text_embeddings=True), scanned=True) for more in ((), ((640, 448),)))
    encoded = []
    for each in (one, two, replace(one, scanned=False), replace(one, drops_captions=True)):
        parts = [o.key for o in operations(replace(made, datasets=(each,))) if isinstance(o, op.Part)]
        encoded.append(sum(key.startswith("text/") and "/graph/" in key for key in parts))
    assert encoded == [1, 2, 2, 2]


def test_captions_are_encoded_from_the_first_to_the_longest() -> None:
    """In a whole run (qwen-recovery: 31 tokens and 122, an empty caption behind each) the longest alone leaves 520 MiB less."""
    made = job("qwen-image")
    each = replace(dataset((512, 512), (640, 448), cache_text_embeddings=True), scanned=True, text_tokens=122)

    def encoded(**more: object) -> list[int]:
        parts = operations(replace(made, datasets=(replace(each, **more),)))  # type: ignore[arg-type]
        return [o.values["X"] for o in parts if isinstance(o, op.Part) and o.key.startswith("text/") and "/graph/" in o.key]

    assert encoded() == [122, 122]
    assert encoded(longer_captions=(31, 122)) == [31, 122]
    assert encoded(longer_captions=(122,)) == [122, 122]
    assert encoded(longer_captions=(31, 122), drops_captions=True) == [31, 5, 122, 5]


def test_gradients_that_nobody_clears_are_made_once() -> None:
    """A recovery adapter's, of 294,912,000 bytes with all: from the first step on, once, but for what the last block does with the text."""
    made = job("qwen-image", model=Model("model", weights="uint3-recovery", te_weights="qfloat8"))
    state = {(p.phase, p.detail): p.components.get("gradients", 0) for p in simulate(made).phases if p.phase in ("sample", "save")}
    assert min(state.values()) == 0
    assert max(state.values()) == 293_732_352
