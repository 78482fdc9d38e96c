"""A log's story, a config and a card -> the diagnosis: what happened, why, what to change first and what it is predicted to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from estimator import crash
from estimator.crash import Diagnosis, Failure, LoggedRun, Prediction
from estimator.diagnosis import compare, kinds, words
from estimator.diagnosis.actions import EXPANDABLE, actions
from estimator.diagnosis.general import general_remedies
from estimator.diagnosis.remedies import smallest_card, walk_down
from estimator.estimate import OOM, SAFE, Estimate
from estimator.gpus import GIB, Gpu
from estimator.job import Job
from estimator.trainers.together import modelled_job

EstimateJob = Callable[[Job, Gpu, bool], Estimate]
"""(job, card, fast) -> estimate."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the user gave besides the log. `os`: None where the log should tell."""

    config: str | None = None
    gpu: str | None = None
    overrides: tuple[str, ...] = ()
    arch: str | None = None
    os: str | None = None


def diagnose(runs: Sequence[LoggedRun], question: Question, estimate_job: EstimateJob) -> Diagnosis:
    """The diagnosis of the last job that failed on memory, else of the last job. Raises InputError for a config or a card that is wrong."""
    run = _worth_showing(runs)
    failure = kinds.main_failure(run)
    if failure is None and run.slowdown is not None and (run.windows or question.os == "windows"):
        failure = _spilled(run)
    config = compare.config_of(run, question.config, question.overrides, question.arch)
    cards = compare.cards_of(run, question.gpu, question.os or ("windows" if run.windows else "linux"))
    prediction, notes = _prediction(run, failure, config, cards, estimate_job)
    notes += _notes(run, runs, config, cards, question)
    if failure is None:
        other = next((each for each in reversed(run.failures)), None)
        return Diagnosis(run, len(runs), "", "", "", None, words.nothing_found(run, other), prediction=prediction, notes=tuple(notes))
    given = compare.raw_process(question.config) if question.config is not None else None
    process = run.processes[0] if run.processes else given
    verdict = kinds.judge(run, failure, prediction, process)
    if cards.another and prediction is not None:
        verdict = _wrong_card(verdict, prediction, cards, estimate_job)
    found = Diagnosis(
        run,
        len(runs),
        verdict.kind,
        verdict.timing,
        verdict.because,
        failure,
        words.headline(run, failure, verdict),
        reasons=(*verdict.reasons, *words.more_reasons(run, failure, prediction)),
        prediction=prediction,
        notes=tuple(notes),
        others_bytes=kinds.others_of(failure),
    )
    return _with_remedies(found, process, estimate_job)


def _prediction(
    run: LoggedRun, failure: Failure | None, config: compare.Config, cards: compare.Cards, estimate_job: EstimateJob
) -> tuple[Prediction | None, list[str]]:
    """The prediction, or a note that says why there is none (none needed where nothing failed)."""
    job = compare.job_of(run, config)
    if job is not None and cards.ran_on is not None:
        answer = compare.predict(job, cards.ran_on, failure, config.source, lambda job, gpu: estimate_job(job, gpu, False))
        if isinstance(answer, Prediction):
            return answer, []
        return None, [f"no prediction: {answer}"]
    if failure is None:
        return None, []
    why = config.why_not or "which card it was the log does not say: name it with --gpu"
    return None, [f"no prediction: {why}"]


def _worth_showing(runs: Sequence[LoggedRun]) -> LoggedRun:
    return next((run for run in reversed(runs) if kinds.main_failure(run) is not None), runs[-1])


def _spilled(run: LoggedRun) -> Failure:
    """Windows has moved memory to system RAM: no failure is printed, the steps crawl."""
    slow = run.slowdown
    assert slow is not None
    text = f"steps took {slow.before_seconds:.1f} s, from step {slow.step} on {slow.after_seconds:.1f} s"
    return Failure(crash.SPILLED, slow.line, text, "train", "", slow.step)


def _with_remedies(found: Diagnosis, process: dict[str, object] | None, estimate_job: EstimateJob) -> Diagnosis:
    """Changes of the config where it is to blame or may be; what to do about the environment where that is."""
    failure, prediction = found.failure, found.prediction
    assert failure is not None
    todo = actions(found)
    missed = prediction is not None and kinds.missed(failure, prediction)
    fits = prediction is not None and prediction.estimate.verdict == SAFE and not missed
    no_card = failure.what == crash.DEVICE
    if no_card or found.because == crash.HOST_MEMORY or (found.kind == crash.KIND_E and fits):
        return replace(found, actions=todo)
    if prediction is None or missed:
        video = any(bucket.frames > 1 for dataset in found.run.buckets for bucket in dataset)
        return replace(found, actions=todo, general=general_remedies(found.timing, process, video))
    gpu, job = prediction.estimate.gpu, prediction.estimate.job
    remedies, outcome = walk_down(job, failure, lambda job, fast: estimate_job(modelled_job(job), gpu, fast))
    todo = (*_in_fewer_pieces(job, gpu, estimate_job), *todo)
    if outcome is None:
        todo = (*todo, *_larger_card(job, gpu, estimate_job))
    return replace(found, actions=todo, remedies=remedies, outcome=outcome)


def _in_fewer_pieces(job: Job, gpu: Gpu, estimate_job: EstimateJob) -> tuple[str, ...]:
    """Expandable segments where they are enough: they cost nothing, but torch has them on Linux only, and their model here one stream."""
    if job.expandable_segments or job.model.layer_offloading or gpu.os == "windows" or estimate_job(job, gpu, True).verdict == OOM:
        return ()  # by peak rows: what is allocated is too much however it lies
    tried = estimate_job(replace(job, expandable_segments=True), gpu, False)
    if tried.verdict == OOM:
        return ()
    then = words.fits(tried) if tried.verdict == SAFE else "is borderline"
    return (f"{EXPANDABLE} in the trainer's environment: the job then {then}; it costs nothing and changes no result",)


def _larger_card(job: Job, gpu: Gpu, estimate_job: EstimateJob) -> tuple[str, ...]:
    """The smallest card of the catalogue that the job fits unchanged."""
    card = smallest_card(job, gpu, estimate_job)
    if card is None:
        return ("no card of the catalogue is large enough for this config",)
    return (f"no change that is modelled is enough: take a larger card; the smallest that it fits unchanged is {card.name} "
            f"({card.total_bytes / GIB:.2f} GiB)",)  # fmt: skip


def _wrong_card(verdict: kinds.Verdict, prediction: Prediction, cards: compare.Cards, estimate_job: EstimateJob) -> kinds.Verdict:
    """It ran on another card than the one named, and would have fitted on that."""
    assert cards.named is not None
    assert cards.ran_on is not None
    if prediction.estimate.verdict == SAFE or estimate_job(prediction.estimate.job, cards.named, False).verdict != SAFE:
        return verdict
    reason = words.another_card(cards.named, cards.ran_on.total_bytes)
    return kinds.Verdict(crash.KIND_E, verdict.timing, crash.WRONG_DEVICE, (f"{reason}; there it is predicted to fit",))


def _notes(run: LoggedRun, runs: Sequence[LoggedRun], config: compare.Config, cards: compare.Cards, question: Question) -> list[str]:
    notes = []
    if cards.another:
        assert cards.named is not None
        assert cards.ran_on is not None
        notes.append(f"{words.another_card(cards.named, cards.ran_on.total_bytes)}: the prediction is for the card in the log")
    elif question.gpu is None and cards.ran_on is not None:
        notes.append(f"the card is taken to be one of {words.gib(cards.ran_on.total_bytes)} GiB, as the log says; --gpu NAME is more exact")
    if any(not dataset.scanned for job in config.jobs for dataset in job.datasets):
        sizes = "as the log lists them" if run.buckets else "the worst of each resolution"
        notes.append(f"the dataset is not at hand: sizes are {sizes}, captions at their longest; --config with its folder is more exact")
    if run.windows and question.os is None:
        notes.append("it ran on Windows, by the paths in the log; --os linux if not")
    if question.config is not None and config.jobs:
        differing = compare.differing_keys(run, compare.raw_process(question.config))
        notes += [f"the config given is not the one that ran: {'; '.join(differing[:6])}"] if differing else []
    return [*notes, *words.about_jobs(run, runs)]
