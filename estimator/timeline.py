"""A Job's timeline replayed: one allocator state from loading to the last preview, peaks and ledger of each phase.

`simulate` runs the operations of `estimator.phases` through `estimator.replay`. Under a capacity it goes as far as the
real allocator would, and says which phase ran out of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from random import Random

from estimator import plans
from estimator.batches import Step, steps_of
from estimator.beginnings import ahead
from estimator.estimate import Variant
from estimator.job import Job
from estimator.job_profile import profile_of
from estimator.phases import Plan
from estimator.replay import Replay
from estimator.residents import WORKSPACE_BYTES, PhasePeak, Simulation

MOST_SHUFFLED = 6


def simulate(
    job: Job,
    order: Sequence[Step] | None = None,
    capacity_bytes: int | None = None,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
    only_before_steps: bool = False,
) -> Simulation:
    """Replay a job. `order`: the training steps as they come (None: several orders of all buckets, the worst kept).

    `capacity_bytes`: what the allocator may reserve (None: unbounded). `only_before_steps`: stop there.
    Raises CannotTell for a combination that was never recorded.
    """
    profile = profile_of(job.arch, job.model, job.network)
    plan = plans.plan_of(job, profile, order_known=order is not None)
    begun, done = ahead(Replay(profile, job, capacity_bytes, workspace_bytes), plans.before_steps(plan))
    if not done or only_before_steps:
        return _finished(begun.peaks, begun)
    orders = [tuple(order)] if order is not None else _orders(job, plan, capacity_bytes is None)
    branches = []
    for candidate in orders:
        branch, done = ahead(begun, plans.steps(plan, candidate))
        branches.append((done, max((p.reserved_bytes for p in branch.peaks[len(begun.peaks) :]), default=0), branch))
    _, _, worst = min(branches, key=lambda row: (row[0], -row[1]))
    train = [p for _, _, branch in branches for p in branch.peaks[len(begun.peaks) :]]
    end = ahead(worst, plans.after_steps(plan))[0] if all(done for done, _, _ in branches) else worst
    shown = train if order is not None else by_variant(train)
    return _finished([*begun.peaks, *shown, *end.peaks[len(worst.peaks) :]], end)


def outgrows(job: Job, capacity_bytes: int, tight: Simulation | None = None, *, workspace_bytes: int = WORKSPACE_BYTES) -> bool:
    """Whether training steps in the first order that is replayed with room to spare reserve more than the capacity.

    `tight`: the job under that capacity, where it is at hand. Raises CannotTell as `simulate` does.
    """
    profile = profile_of(job.arch, job.model, job.network)
    plan = plans.plan_of(job, profile)
    if tight is not None and _fails_in_steps(tight) and _orders(job, plan, True) == _orders(job, plan, False):
        return True  # it is the same replay, up to where memory ran out
    for allowed in (capacity_bytes, None):  # up to the first refusal both are the same, and the start under this capacity is often at hand
        begun, done = ahead(Replay(profile, job, allowed, workspace_bytes), plans.before_steps(plan))
        if done and not any(peak.retries for peak in begun.peaks):
            break
    branch, done = ahead(begun, plans.steps(plan, _orders(job, plan, True)[0]))
    trained = branch.peaks[len(begun.peaks) :]
    return not done or any(peak.retries or peak.reserved_bytes > capacity_bytes for peak in trained)


def _fails_in_steps(tight: Simulation) -> bool:
    """Whether memory ran out in a training step, and no block was released before the first one."""
    before = takewhile(lambda peak: peak.phase != "train", tight.phases)
    return tight.failed is not None and tight.phases[tight.failed].phase == "train" and not any(peak.retries for peak in before)


def _orders(job: Job, plan: Plan, room_to_spare: bool) -> list[tuple[Step, ...]]:
    """The orders that are replayed where a run's own is not known.

    With room to spare both ends of what can happen; under a capacity the largest last, when small steps' blocks lie about.
    """
    up = steps_of(job, plan.tokens(None))
    first = plans.warm_up(plan, up)
    if not room_to_spare or len(up) == 1:
        return [(*first, *up)]  # the first step has no optimizer state yet: the smallest bucket comes again after it
    if len(first) > 1:  # each expert's part of the state is made before any bucket counts
        return [(*first, *one) for one in orders_of(up)]
    return orders_of(up)


def granted_at_start(
    job: Job, capacity_bytes: int, *, loading_only: bool, workspace_bytes: int = WORKSPACE_BYTES
) -> int | None:  # fmt: skip
    """Bytes that all before the first previews (or loading alone) is granted under a capacity; None if it does not go through.

    Under any capacity down to that it goes through alike. Raises CannotTell as `simulate` does.
    """
    profile = profile_of(job.arch, job.model, job.network)
    plan = plans.plan_of(job, profile)
    start = Replay(profile, job, capacity_bytes, workspace_bytes)
    end, done = ahead(start, plan.load() if loading_only else plans.before_previews(plan))
    if not done:
        return None
    return capacity_bytes if job.expandable_segments else end.granted_bytes  # with them what is granted depends on the capacity


def orders_of(up: tuple[Step, ...]) -> list[tuple[Step, ...]]:
    """Orders in which the buckets of a run may come: largest last, largest first, and a shuffle that is always the same."""
    orders = [up, up[::-1]]
    if len(up) > MOST_SHUFFLED:  # many buckets: two orders tell enough, and take long
        return orders
    if len(up) > len(orders):
        shuffled = list(up)
        Random(len(up)).shuffle(shuffled)
        orders.append(tuple(shuffled))
    return list(dict.fromkeys(orders))


def by_variant(peaks: list[PhasePeak]) -> list[PhasePeak]:
    """One row for each bucket: the highest of what it had in any order."""
    best: dict[Variant, PhasePeak] = {}
    for peak in peaks:
        known = best.get(peak.variant)
        if known is None:
            best[peak.variant] = peak
            continue
        higher = peak if (peak.failed, peak.allocated_bytes) > (known.failed, known.allocated_bytes) else known
        best[peak.variant] = replace(higher, reserved_bytes=max(peak.reserved_bytes, known.reserved_bytes))
    return list(best.values())


def _finished(peaks: list[PhasePeak], replay: Replay) -> Simulation:
    failed = next((i for i, p in enumerate(peaks) if p.failed), None)
    return Simulation(tuple(peaks), failed, replay.state.allocator.retries, replay.granted_bytes)
