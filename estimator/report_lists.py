"""Tables over many cards as text: one job on each of them, the catalogue, and the architectures."""

from __future__ import annotations

from collections.abc import Sequence

from estimator.checked import ArchRow, TrainerRow
from estimator.estimate import OOM, SAFE, UNKNOWN, Estimate
from estimator.gpus import Gpu
from estimator.report import PLAIN, Style, clean, cut, needed_bytes, notes, unmodelled, wrapped
from estimator.report_words import LOWER_BOUND, SPAN_WIDTH, gib, headline, sentence, span, what
from estimator.screen import WIDTH, Cell, Column, table

_FIGURE = 7  # columns
_CARD_COLUMNS = (
    Column("card", 18), Column("has", _FIGURE, right=True), Column("on card", _FIGURE, right=True),
    Column("low - high", SPAN_WIDTH, right=True), Column("left", _FIGURE, right=True), Column("verdict", 10), Column("peak"),
)  # fmt: skip
_GPU_COLUMNS = (
    Column("name (for --gpu)", 19), Column("GiB", 8, right=True), Column("usable", 7, right=True), Column("cc", 5),
    Column("also known as", WIDTH - 44),
)  # fmt: skip
_ARCH_COLUMNS = (
    Column("architecture", 21), Column("model.arch", 23), Column("runs", 4, right=True), Column("alloc. %", 8, right=True),
    Column("reserv. %", 9, right=True), Column("cards", 5, right=True),
)  # fmt: skip
_ARCH_WORDS = (
    "runs: whole runs of the trainer itself on an emulated CUDA device, none of them used to make the model of it. alloc., reserv.: the "
    "largest error of any phase in them, + where the estimate is higher. cards: rows published of real cards that it was held against. "
    "Every row: docs/accuracy.md. (run files): AI Toolkit does not have it; its training steps come from a harness of our own."
)


def render_cards(estimates: Sequence[Estimate], style: Style = PLAIN) -> str:
    """One job on every card, smallest first: which card to take. What has no model has none on any card: then no table."""
    if all(each.verdict == UNKNOWN for each in estimates):
        return _untold(estimates[0], style)
    ordered = sorted(estimates, key=lambda each: (each.gpu.total_bytes, each.gpu.name))
    safe = [each for each in ordered if each.verdict == SAFE]
    worst = ordered[-1]
    if safe:
        verdict, fits = SAFE, sentence(safe[0])
        rest = f" {fits} {len(safe)} of {len(ordered)} cards; the smallest is {clean(safe[0].gpu.name)}"
        phase, total = headline(safe[0]), gib(safe[0].gpu.total_bytes)
        used = "" if phase is None else gib(phase.device.likely_bytes)
        second = "" if phase is None else f"with {used} of its {total} GiB in use at the peak, {clean(what(phase))}"
    else:
        verdict, rest = worst.verdict, f" is not safe on any of {len(ordered)} cards"
        second = f"for why see one card's report, for example --gpu {clean(worst.gpu.name)}"
    name = cut(ordered[0].job.name, WIDTH - len(verdict) - 2 - len(rest))
    first = f"{style.verdict(verdict, verdict.upper())}: {name}{rest}"
    rows = table(_CARD_COLUMNS, [_card_row(each, style) for each in ordered], style.colour, indent=2)
    title = style.bold("GiB on each card, smallest first (oom: what the first phase to fail needs)")
    bound = [LOWER_BOUND] if worst.lower_bound else []
    parts = ["\n".join([first, *wrapped(second, "", "  "), *bound]), "\n".join([title, *rows])]
    shared = [note for note in ordered[0].assumptions if all(note in each.assumptions for each in ordered)]
    parts += [notes("Warnings", ordered[0].warnings, style), notes("Assumed", shared, style)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _untold(estimate: Estimate, style: Style) -> str:
    rest = " cannot be told for any card"
    name = cut(estimate.job.name, WIDTH - len(UNKNOWN) - 2 - len(rest))
    parts = [
        f"{style.verdict(UNKNOWN, UNKNOWN.upper())}: {name}{rest}",
        notes("Not modelled", unmodelled(estimate), style),
        notes("Warnings", estimate.warnings, style),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _card_row(estimate: Estimate, style: Style) -> tuple[str | Cell, ...]:
    gpu, phase = estimate.gpu, headline(estimate)
    verdict = style.verdict_cell(estimate.verdict)
    start = (cut(gpu.name, 18), gib(gpu.total_bytes))
    if phase is None:
        return (*start, "", "", "", verdict, "")
    device = phase.device
    used, ends = device.likely_bytes, span(device)
    if estimate.verdict == OOM:
        used, ends = needed_bytes(gpu, phase), ""
    left = gpu.total_bytes - used
    room = "-" if estimate.verdict == OOM and left > 0 else gib(left, _FIGURE)  # fails for another reason than its sum: fragmentation
    return (*start, gib(used, _FIGURE), ends, room, verdict, phase.phase.removeprefix("cache_"))


def render_gpus(gpus: Sequence[Gpu], style: Style = PLAIN) -> str:
    """The catalogue."""
    rows = []
    for gpu in gpus:
        known = cut(", ".join(dict.fromkeys((gpu.title, *gpu.aliases))), WIDTH - 44)
        rows.append((gpu.name, gib(gpu.total_bytes), gib(gpu.usable_bytes), gpu.compute_capability, known))
    lines = table(_GPU_COLUMNS, rows, style.colour)
    text = (
        "GiB is what torch reports on this OS, less than the size on the box; usable is without the CUDA context (provisional) and the "
        "desktop; cc is the compute capability. Any other card by its size: --gpu 23.5GiB. All cards: --gpu all."
    )
    return "\n".join([*lines, "", *wrapped(text)]) + "\n"


def render_archs(archs: Sequence[ArchRow], trained: Sequence[TrainerRow], style: Style = PLAIN) -> str:
    """The architectures that can be estimated and how far each was checked, then what is only recognised."""
    rows = [
        (
            row.key, cut(", ".join(row.trained_as) or "(run files)", 23), str(row.checked.runs), _worst(row.checked.worst_allocated),
            _worst(row.checked.worst_reserved), str(row.checked.published),
        )
        for row in archs if row.modelled
    ]  # fmt: skip
    lines = [*table(_ARCH_COLUMNS, rows, style.colour), "", *wrapped(_ARCH_WORDS)]
    keys = ", ".join(row.key + (f" (nearest: {row.nearest})" if row.nearest else "") for row in trained if not row.archs)
    lines += ["", *wrapped(f"Values of model.arch that are not modelled yet (exit status 3): {keys}")]
    others = ", ".join(row.key for row in archs if not row.modelled and not row.trained_as)
    if others:
        lines += ["", *wrapped(f"Of other trainers, not modelled yet: {others}")]
    return "\n".join(lines) + "\n"


def _worst(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.2f}"
