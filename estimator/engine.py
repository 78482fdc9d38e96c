"""A Job and a card -> an Estimate: the timeline replayed with room to spare, then under this card's capacity, and the verdict.

`safe`: every phase survives with everything at its high end; `oom`: some phase fails even at the low end; `borderline`:
between, or survival only by releasing cached blocks again and again (slow).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from estimator import kernels
from estimator.estimate import BORDERLINE, OOM, SAFE, UNKNOWN, Estimate, Interval, PhaseEstimate
from estimator.gpus import Gpu
from estimator.intervals import residual_for
from estimator.job import Job
from estimator.outside import extra_at_peak, most_bytes, outside, room
from estimator.residents import PhasePeak, Simulation, workspace_of
from estimator.residual import Residual, interval
from estimator.rows import Rows, begun, bound
from estimator.timeline import granted_at_start, outgrows, simulate

REQUIRED_STEP_BYTES = 64 * 2**20  # precision of the search for the smallest capacity
RECORDED_CAPABILITY = "8.9"  # of the emulated device that the programs were recorded on
CUDNN_ATTENTION = ("9.0", "10.0")  # where torch 2.14 picks cuDNN attention (emulated_cuda/README: read off the real dispatch)

_kept: dict[tuple[str, int, bool], dict[int | None, Simulation]] = {}  # a job's replays, by capacity: for every card of `--gpu all`


Replayer = Callable[[int, bool], Simulation]
"""(capacity in bytes, stop before the first training step) -> the job's simulation."""


def _replay(job: Job, gpu: Gpu, capacity_bytes: int | None, only_before_steps: bool = False) -> Simulation:
    job, workspace_bytes = kernels.on_card(job, gpu), workspace_of(gpu)
    kept = _kept.setdefault((repr(job), workspace_bytes, only_before_steps), {})
    if capacity_bytes in kept:
        return kept[capacity_bytes]
    for capacity, made in kept.items() if capacity_bytes is not None and not job.expandable_segments else ():
        if capacity is not None and capacity_bytes is not None and made.granted_bytes <= capacity_bytes <= capacity:
            return made
    made = simulate(job, capacity_bytes=capacity_bytes, workspace_bytes=workspace_bytes, only_before_steps=only_before_steps)
    kept[capacity_bytes] = made
    return made


def estimate_job(job: Job, gpu: Gpu, *, fast: bool = False, required: bool = False) -> Estimate:
    """The estimate of one job on one card. `fast`: by peak rows, a lower bound. `required`: search the smallest safe capacity.

    A job with settings that are not modelled has the verdict "unknown" and no phases. Raises CannotTell where a combination
    was never recorded.
    """
    if job.unmodelled:
        return Estimate(job, gpu, UNKNOWN, (), -1, warnings=job.warnings)
    kernels.require(job, gpu)
    residual = residual_for(gpu, job)
    assumptions = (*_assumptions(job, gpu), *residual.reasons)
    rows = rows_of(job, gpu)
    if fast:
        return _judge_fast(job, gpu, residual, rows, assumptions)
    free, space = _replay(job, gpu, None), room(gpu, residual, rows.phases)
    estimate = _judge(job, gpu, residual, free, space, lambda capacity, early: _replay(job, gpu, capacity, early), assumptions)
    if not required:
        return estimate
    beside = gpu.total_bytes - space.low_bytes
    needed = required_bytes(residual, free, beside, lambda capacity, early: _replay(job, gpu, capacity, early))
    return replace(estimate, required_bytes=needed)


def rows_of(job: Job, gpu: Gpu, start: Rows | None = None) -> Simulation:
    """The job by peak rows, as they are on the card. `start`: `start_of` one that begins alike. Raises CannotTell."""
    return bound(kernels.on_card(job, gpu), start, workspace_bytes=workspace_of(gpu))


def start_of(job: Job, gpu: Gpu) -> Rows:
    """What is before the first previews, by peak rows, as it is on the card. Raises CannotTell."""
    return begun(kernels.on_card(job, gpu), workspace_bytes=workspace_of(gpu))


def surely_unsafe(job: Job, gpu: Gpu, rows: Simulation | None = None) -> list[PhasePeak]:
    """The phases that, by peak rows alone, already keep the job from being safe on the card; without any, only a replay can tell.

    Rows are a lower bound of what the allocator needs, so no job that is named here would be safe. `rows`: its own, where they are at
    hand. Raises CannotTell.
    """
    rows, residual = rows or rows_of(job, gpu), residual_for(gpu, job)
    space = room(gpu, residual, rows.phases)
    return [p for p in rows.phases if _fast_verdict(p, space, gpu, residual) != SAFE]


@dataclass(frozen=True, slots=True)
class Failure:
    """A replay that runs out of memory in a phase, under every capacity from the one to the other (bytes).

    `decides`: `check` calls the job unsafe for it, whatever its replays of other orders show.
    """

    phase: str
    from_bytes: int
    to_bytes: int
    decides: bool


def room_bytes(job: Job, gpu: Gpu, rows: Simulation) -> int:
    """The capacity under which `check` replays a job with everything at its high end."""
    return max(room(gpu, residual_for(gpu, job), rows.phases).low_bytes, 0)


def failure(job: Job, gpu: Gpu, capacity_bytes: int) -> Failure | None:
    """How the job's replay fails under its `room_bytes`; None where it goes through. Raises CannotTell."""
    tight = _replay(job, gpu, capacity_bytes)
    if tight.failed is None:
        return None
    least = capacity_bytes if job.expandable_segments else tight.granted_bytes
    return Failure(tight.phases[tight.failed].phase, least, capacity_bytes, _decides(job, gpu, tight, capacity_bytes))


def surely_safe(job: Job, gpu: Gpu, capacity_bytes: int) -> bool:
    """Whether the replay under the job's `room_bytes` alone shows that `check` calls it safe; where not, other orders have to be asked.

    `check` replays other orders too, with room to spare, but calls a job unsafe only for what happens under the capacity.
    Raises CannotTell.
    """
    tight, residual = _replay(job, gpu, capacity_bytes), residual_for(gpu, job)
    fails = _fails_high(tight, tight.phases, capacity_bytes, residual)
    return not fails and not _keeps_releasing(tight) and not kernels.without_flash(gpu)


def _decides(job: Job, gpu: Gpu, tight: Simulation, capacity_bytes: int) -> bool:
    """Whether `_survives` comes to this same failure: always before the steps; later where steps with room to spare meet the capacity too.

    They need not: where blocks were released before the first step they lie otherwise, and buckets come in other orders.
    """
    assert tight.failed is not None
    first_step = next((i for i, p in enumerate(tight.phases) if p.phase == "train"), None)
    return first_step is None or tight.failed < first_step or outgrows(job, capacity_bytes, tight, workspace_bytes=workspace_of(gpu))


LOADING = frozenset({"load"})
EARLY = LOADING | {"prepare", "cache_latents", "cache_text"}
"""The phases before the first previews."""


def needed_at_start(job: Job, gpu: Gpu, peaks: Iterable[PhasePeak], *, loading_only: bool, known_bytes: int | None = None) -> int | None:
    """Bytes with which a job goes through all before its first previews (or loading); None where it runs out of memory there with the most
    room that one which starts alike has. No such job is safe.

    `peaks`: its peak rows. `known_bytes`: with so many one that starts alike went through: more room never fails where less does not.
    Raises CannotTell.
    """
    phases = LOADING if loading_only else EARLY
    space = room(gpu, residual_for(gpu, job, narrowest=True), [peak for peak in peaks if peak.phase in phases])
    most = max(space.low_bytes, 0)
    if known_bytes is not None and known_bytes <= most:
        return known_bytes
    return granted_at_start(job, most, loading_only=loading_only, workspace_bytes=workspace_of(gpu))


def failing_alone(peaks: Iterable[PhasePeak], job: Job, gpu: Gpu) -> list[PhasePeak]:
    """Those of a job's phases that are not safe by peak rows whatever its other phases and its optimizer are."""
    residual = residual_for(gpu, job, narrowest=True)
    return [peak for peak in peaks if _fast_verdict(peak, room(gpu, residual, (peak,)), gpu, residual) != SAFE]


def _assumptions(job: Job, gpu: Gpu) -> tuple[str, ...]:
    out = []
    if gpu.compute_capability in CUDNN_ATTENTION:
        out.append(
            f"recorded at compute capability {RECORDED_CAPABILITY} with FlashAttention; torch picks cuDNN's attention on "
            f"{gpu.compute_capability}, whose own workspace is not known"
        )
    if kernels.without_flash(gpu):
        out.append(
            f"recorded with FlashAttention, which torch does not run on compute capability {gpu.compute_capability}: "
            "another attention kernel, whose memory is not modelled, takes its place; nothing is called safe here"
        )
    if job.model.assistant_lora is not None:
        out.append("the training adapter's rank is assumed (the file was not at hand)")
    if job.model.layer_offloading:
        out.append(
            "copies of offloaded layers on their own stream as on the emulated device, where they take no time: on a card blocks can come "
            "back later, and more be reserved"
        )
    return tuple(out)


def _survives(free: Simulation, capacity: int, replay: Replayer, extras: Sequence[int]) -> Simulation | None:
    """The simulation under a capacity if blocks must be released or a phase fails; None if nothing of the kind happens.

    It goes no further than it must: phases that fit beside all that was cached fit all the better once that was released.
    """
    tight = [p.reserved_bytes + extra > capacity for p, extra in zip(free.phases, extras, strict=True)]
    if not any(tight):
        return None
    first_step = next((i for i, p in enumerate(free.phases) if p.phase == "train"), len(tight))
    return replay(max(capacity, 0), not any(tight[first_step:]))


def _under(simulation: Simulation | None, free: Simulation) -> tuple[PhasePeak, ...]:
    """The phases as they are under a capacity, as far as that was replayed: a block somewhat larger than its tensor counts whole."""
    return free.phases if simulation is None else (*simulation.phases, *free.phases[len(simulation.phases) :])


def _fails(simulation: Simulation | None, peaks: Sequence[PhasePeak], capacities: Sequence[int], extras: Sequence[int]) -> set[int]:
    """Indices of phases that fail under the capacity: the replay's, and those whose tensors with the workspace are more than theirs."""
    beside = zip(peaks, capacities, extras, strict=True)
    failed = {index for index, (peak, capacity, extra) in enumerate(beside) if peak.allocated_bytes + extra > capacity}
    if simulation is not None and simulation.failed is not None:
        failed.add(simulation.failed)
    return failed


def _fails_high(simulation: Simulation | None, peaks: Sequence[PhasePeak], capacity: int, residual: Residual) -> set[int]:
    """`_fails` with everything at its high end."""
    return _fails(simulation, peaks, [capacity] * len(peaks), [extra_at_peak(peak, residual).high_bytes for peak in peaks])


def _judge(
    job: Job, gpu: Gpu, residual: Residual, free: Simulation, space: Interval, replay: Replayer, assumptions: tuple[str, ...]
) -> Estimate:  # fmt: skip
    """`space`: what is left to the allocator, by what the tensors of each phase take together (peak rows)."""
    workspaces, none = [extra_at_peak(p, residual) for p in free.phases], [0] * len(free.phases)
    tight = _survives(free, space.low_bytes, replay, [each.high_bytes for each in workspaces])
    failed_high = _fails_high(tight, _under(tight, free), space.low_bytes, residual)
    failed_low: set[int] = set()
    if failed_high:
        most = [most_bytes(gpu, residual, peak) for peak in free.phases]
        loose = _survives(free, space.high_bytes, replay, none)
        failed_low = _fails(loose, _under(loose, free), most, [each.low_bytes for each in workspaces])
    likely = _survives(free, space.likely_bytes, replay, none)
    slow = tight is not None and not failed_high and _keeps_releasing(tight)
    unsure = {i for i, p in enumerate(free.phases) if i in failed_high or (slow and p.phase == "train")}
    verdicts = [OOM if i in failed_low else BORDERLINE if i in unsure else SAFE for i in range(len(free.phases))]
    phases = tuple(_phase(p, gpu, residual, v, likely, i) for i, (p, v) in enumerate(zip(free.phases, verdicts, strict=True)))
    if failed_low:  # the widest distance, which all are judged by, is then that of a phase that fails
        fits = [each.verdict == BORDERLINE and each.device.high_bytes <= gpu.total_bytes for each in phases]
        phases = tuple(replace(each, verdict=SAFE) if own else each for each, own in zip(phases, fits, strict=True))
    verdict = OOM if failed_low else BORDERLINE if failed_high or slow or kernels.without_flash(gpu) else SAFE
    warnings = list(job.warnings)
    if slow:
        warnings.append("it fits only because torch releases its cached blocks again and again: expect slow steps")
    worst = min(failed_low or failed_high, default=None)
    peak = worst if worst is not None else max(range(len(phases)), key=lambda i: (phases[i].device.likely_bytes, phases[i].allocated_bytes))
    retries = likely.retries if likely is not None else 0
    return Estimate(job, gpu, verdict, phases, peak, None, retries, (), tuple(warnings), assumptions)


def _keeps_releasing(simulation: Simulation) -> bool:
    """Most kinds of training step had to release all cached blocks, also after the first had done so."""
    train = [p for p in simulation.phases if p.phase == "train"]
    return len(train) > 0 and all(p.retries > 0 for p in train) and sum(p.retries for p in train) > len(train)


def _phase(peak: PhasePeak, gpu: Gpu, residual: Residual, verdict: str, likely: Simulation | None, index: int) -> PhaseEstimate:
    """Device figures: reserved, under this card's capacity where it had to be replayed, with what lies outside."""
    reserved = peak.reserved_bytes
    if likely is not None and index < len(likely.phases) and not likely.phases[index].failed:
        reserved = min(reserved, likely.phases[index].reserved_bytes)
    other, extra = outside(gpu), extra_at_peak(peak, residual)
    slack = max(reserved - peak.allocated_bytes, 0)  # cached blocks take workspaces up
    beside = Interval(other.low_bytes, other.likely_bytes + max(extra.likely_bytes - slack, 0), other.high_bytes + extra.high_bytes)
    device = interval(reserved, residual.spread("reserved", peak.phase), beside)
    if verdict == SAFE:  # where it survives, torch's cache gives way before the card is full
        device = Interval(*(min(size, gpu.total_bytes) for size in (device.low_bytes, device.likely_bytes, device.high_bytes)))
    return PhaseEstimate(
        peak.phase, peak.variant, peak.allocated_bytes, peak.reserved_bytes, device, verdict, peak.moment, peak.components, peak.detail
    )


def _judge_fast(job: Job, gpu: Gpu, residual: Residual, rows: Simulation, assumptions: tuple[str, ...]) -> Estimate:
    """Certain only where it fails: allocated alone is more than the card has."""
    space = room(gpu, residual, rows.phases)
    verdicts = [_fast_verdict(p, space, gpu, residual) for p in rows.phases]
    phases = tuple(_phase(p, gpu, residual, v, None, i) for i, (p, v) in enumerate(zip(rows.phases, verdicts, strict=True)))
    verdict = next((v for v in (OOM, BORDERLINE) if v in verdicts), BORDERLINE if kernels.without_flash(gpu) else SAFE)
    peak = max(range(len(phases)), key=lambda i: phases[i].allocated_bytes)
    return Estimate(job, gpu, verdict, phases, peak, None, 0, (), job.warnings, assumptions, lower_bound=True)


def _fast_verdict(peak: PhasePeak, space: Interval, gpu: Gpu, residual: Residual) -> str:
    if peak.allocated_bytes + extra_at_peak(peak, residual).high_bytes <= space.low_bytes:
        return SAFE
    return OOM if peak.allocated_bytes > most_bytes(gpu, residual, peak) else BORDERLINE


def required_bytes(residual: Residual, free: Simulation, beside: int, replay: Replayer) -> int:
    """The smallest total capacity at which every phase survives with everything at its high end, to REQUIRED_STEP_BYTES.

    `beside`: bytes of a card that are not the replay's.
    """
    low = max(p.allocated_bytes + extra_at_peak(p, residual).high_bytes for p in free.phases)
    high = max(p.reserved_bytes + extra_at_peak(p, residual).high_bytes for p in free.phases)
    while high - low > REQUIRED_STEP_BYTES:
        middle = (low + high) // 2
        tried = replay(middle, False)
        if tried.failed is None and not _keeps_releasing(tried):
            high = middle
        else:
            low = middle
    return high + beside
