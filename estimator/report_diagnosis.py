"""A diagnosis as text of 80 columns: what happened, why, the log's numbers beside the predicted ones, what to change first."""

from __future__ import annotations

from collections.abc import Iterator

from estimator.crash import KIND_A, KIND_B, KIND_C, KIND_D, KIND_E, SPILLED, Diagnosis, OomText, Remedy
from estimator.estimate import OOM, SAFE, UNKNOWN
from estimator.report import PLAIN, Style, clean, cut, notes, value, wrapped
from estimator.report_words import gib, headline, what
from estimator.screen import WIDTH, Column, table

_KINDS = {
    KIND_A: "while loading or before training", KIND_B: "in the first training steps", KIND_C: "while previewing",
    KIND_D: "only sometimes", KIND_E: "the environment, not the config",
}  # fmt: skip
_LABEL_WIDTH = 38


def render_diagnosis(found: Diagnosis, style: Style = PLAIN) -> str:
    """The whole report."""
    parts = ["\n".join(_answer(found, style)), _numbers(found, style), _changes(found, style), notes("Notes", found.notes, style)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(found: Diagnosis, style: Style) -> Iterator[str]:
    name = clean(found.run.name) or "this job"
    if found.failure is None:
        yield from wrapped(f"{style.bold(cut(name, 40))}: {clean(found.headline)}", "", "  ")
        return
    kind, rest = f"KIND {found.kind}", f" ({_KINDS[found.kind]})" if found.kind else ""
    if found.kind == KIND_E and found.timing:
        rest += f", at the time of kind {found.timing}"
    yield style.verdict(OOM, kind if found.kind else "KIND UNKNOWN") + rest
    yield from wrapped(f"{cut(name, 40)}: {clean(found.headline)}", "", "  ")
    for reason in found.reasons:
        yield from wrapped(clean(reason), "  - ", "    ")
    if found.failure.what != SPILLED:  # which no line says
        yield from wrapped(f"line {found.failure.line}: {cut(found.failure.text, 2 * WIDTH - 20)}", "", "  ")


# --- numbers --------------------------------------------------------------------------------------------------------------------


def _numbers(found: Diagnosis, style: Style) -> str:
    """The log's figures and the predicted ones, as far as there are any."""
    numbers = found.failure.numbers if found.failure is not None else None
    estimate = found.prediction.estimate if found.prediction is not None else None
    phase = None
    if found.prediction is not None and estimate is not None:
        phase = found.prediction.phase or headline(estimate)
    if numbers is None and phase is None:
        return ""
    logged = numbers or OomText()
    gpu = estimate.gpu if estimate is not None else None
    predicted = (phase.allocated_bytes, phase.reserved_bytes, phase.device.likely_bytes) if phase is not None else (None, None, None)
    others, total = (gpu.desktop_bytes, gpu.total_bytes) if gpu is not None else (None, None)
    rows: tuple[tuple[str, int | None, int | None], ...] = (
        ("allocated by torch", logged.allocated_bytes, predicted[0]),
        ("asked for when it failed", logged.tried_bytes, None),
        ("reserved by torch, with its cache", logged.reserved_bytes, predicted[1]),
        ("the process on the card", logged.in_use_bytes, predicted[2]),
        ("others on the card", found.others_bytes, others),
        ("free", logged.free_bytes, None),
        ("the whole card", logged.total_bytes, total),
    )
    both = phase is not None and any(one is not None for _, one, _ in rows)
    title = "The log's numbers in GiB" + (f", and those predicted {what(phase)}" if phase is not None else "")
    if phase is not None and not both:
        title = f"Predicted {what(phase)}, in GiB (the log has no numbers)"
    lines = [style.bold(line) for line in wrapped(title, "", "  ")]
    columns = [
        Column("", _LABEL_WIDTH),
        Column("log" if both else "", 7, right=True),
        *([Column("predicted", 10, right=True)] if both else []),
    ]
    cells = [
        (label, _size(one), _size(other)) if both else (label, _size(other if phase is not None else one))
        for label, one, other in rows
        if one is not None or other is not None
    ]
    return "\n".join([*lines, *table(columns, cells, style.colour, indent=2)])


def _size(count_bytes: int | None) -> str:
    return "-" if count_bytes is None else gib(count_bytes)


# --- what to do -----------------------------------------------------------------------------------------------------------------


def _changes(found: Diagnosis, style: Style) -> str:
    if found.failure is None:
        return ""
    lines = [style.bold("What to do first" if found.actions else "What to change first")]
    for action in found.actions:
        lines.extend(wrapped(clean(action), "  - ", "    "))
    if found.actions and (found.remedies or found.general):
        lines.append("  In the config:")
    for number, remedy in enumerate(found.remedies, 1):
        lines.extend(_remedy(number, remedy))
    for number, line in enumerate(found.general, 1):
        lines.extend(wrapped(clean(line), f"{number:>3}. ", "     "))
    lines.extend(_outcome(found, style))
    return "\n".join(lines) if len(lines) > 1 else ""


def _remedy(number: int, remedy: Remedy) -> list[str]:
    made = remedy.advice
    lines = wrapped(f"{clean(made.key)}: {value(made.before)} -> {value(made.after)}", f"{number:>3}. ", "     ")
    effect = (
        f"saves {gib(remedy.saves_bytes)} GiB there, leaving {gib(remedy.needs_bytes)}"
        if remedy.saves_bytes > 0
        else "lowers what fails next"
    )
    return [*lines, f"     {effect}; {_VERDICTS[made.verdict]}", *wrapped(clean(made.why), "     ", "     ")]


_VERDICTS = {OOM: "not enough yet", SAFE: "then it fits", UNKNOWN: "then it cannot be told"}
_VERDICTS["borderline"] = "then it is borderline"


def _outcome(found: Diagnosis, style: Style) -> Iterator[str]:
    estimate = found.outcome
    if estimate is not None and estimate.phases:
        phase = max(estimate.phases, key=lambda each: each.device.likely_bytes)
        used = f"{gib(phase.device.likely_bytes)} of {gib(estimate.gpu.total_bytes)} GiB"
        these = "With this" if len(found.remedies) == 1 else "With these together, in this order"
        text = f"{these}: {style.verdict(estimate.verdict, estimate.verdict)}, {used} at the peak ({clean(what(phase))})."
        yield from wrapped(text, "  ", "  ")
    elif found.remedies and found.prediction is not None:
        yield "  Together they are predicted not to be enough."
    if found.kind and found.kind != KIND_E:
        yield from wrapped("Unchanged it will fail again.", "  ", "  ")
