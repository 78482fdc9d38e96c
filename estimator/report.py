"""An estimate as text of 80 columns: the answer first, then the phases, the ledger of the worst one, what to change, and what was assumed.

Plain ASCII, so that it survives every console, pipe and log. Colour only repeats what words say. GiB is 2**30 bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from estimator import report_words
from estimator.estimate import BORDERLINE, OOM, SAFE, UNKNOWN, Advice, Estimate, Interval, PhaseEstimate
from estimator.gpus import GIB, Gpu
from estimator.report_words import SPAN_WIDTH, calibrated, component, distinct, gib, headline, moment, row_name, span, spilled, unsure, what
from estimator.screen import WIDTH, Cell, Column, painted, table

MOST_ROWS = 14
"""Longer phase tables are cut to the worst of each phase, unless details are asked for."""
_BAR_WIDTH = 20
_SMALL_BYTES = GIB // 200  # below 0.005 GiB a component would be shown as 0.00
_COLOURS = {SAFE: "bold green", BORDERLINE: "bold yellow", OOM: "bold red", UNKNOWN: "bold magenta"}


@dataclass(frozen=True, slots=True)
class Style:
    """How words are set off: with ANSI colours, or (the default) not at all."""

    colour: bool = False

    def verdict(self, verdict: str, text: str) -> str:
        """A verdict's text in its colour."""
        return painted(text, _COLOURS[verdict], self.colour)

    def verdict_cell(self, verdict: str) -> Cell:
        """A verdict in a table."""
        return Cell(verdict, _COLOURS[verdict])

    def bold(self, text: str) -> str:
        """A heading."""
        return painted(text, "bold", self.colour)


PLAIN = Style()


def clean(text: object) -> str:
    """Text of a user's file without what could move the cursor or colour the screen."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def wrapped(text: str, first: str = "", others: str = "") -> list[str]:
    """Text as lines of at most WIDTH columns, with an indent for the first and one for the others. Names keep their hyphens together."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def cut(text: object, width: int) -> str:
    """Cleaned text of at most `width` characters."""
    whole = clean(text)
    return whole if len(whole) <= width else whole[: max(0, width - 3)] + "..."


# --- one job on one card ----------------------------------------------------------------------------------------------


def render(estimate: Estimate, style: Style = PLAIN, details: bool = False) -> str:
    """The whole report of one job on one card."""
    parts = [_answer(estimate, style)]
    if estimate.phases:
        parts.append(_phase_table(estimate, style, details))
        shown = estimate.phases if details else [headline(estimate)]
        parts.extend(_ledger(estimate, phase, style) for phase in shown if phase is not None)
    parts.append(_advice(estimate, style))
    parts.append(notes("Not modelled", unmodelled(estimate), style))
    parts.append(notes("Warnings", estimate.warnings, style))
    parts.append(notes("Assumed", estimate.assumptions, style))
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(estimate: Estimate, style: Style) -> str:
    gpu, phase = estimate.gpu, headline(estimate)
    word = estimate.verdict.upper()
    rest = f" {report_words.sentence(estimate)} {clean(gpu.name)} ({gib(gpu.total_bytes)} GiB)"
    lines = [f"{style.verdict(estimate.verdict, word)}: {cut(estimate.job.name, WIDTH - len(word) - 2 - len(rest))}{rest}"]
    if phase is not None:
        lines.extend(wrapped(_peak_line(estimate, phase), "", "  "))
    if gpu.calibration is not None:
        lines.extend(wrapped(clean(calibrated(gpu.calibration)), "", "  "))
    if estimate.lower_bound:
        lines.append(report_words.LOWER_BOUND)
    lines.extend([*_another_fails(estimate, phase), *wrapped(unsure(estimate), "", "  "), *wrapped(spilled(estimate), "", "  ")])
    if estimate.retries and estimate.verdict != OOM and not estimate.spilled_bytes:
        times = {1: "once", 2: "twice"}.get(estimate.retries, f"{estimate.retries} times")
        lines.extend(wrapped(f"To fit here torch releases cached memory {times}; that costs speed where it recurs.", "", "  "))
    if estimate.required_bytes is not None:
        lines.append(f"The smallest card on which it is safe has {gib(estimate.required_bytes)} GiB, as torch counts.")
    return "\n".join(lines)


def _another_fails(estimate: Estimate, first: PhaseEstimate | None) -> list[str]:
    """The job stops at its first failure; with that mended it would stop at the next, which may need more."""
    others = [phase for phase in estimate.phases if phase is not first and phase.verdict == OOM]
    if estimate.verdict != OOM or first is None or not others:
        return []
    worst = max(others, key=lambda phase: needed_bytes(estimate.gpu, phase))
    text = f"That is the first to fail; {clean(what(worst))} would too, and needs {gib(needed_bytes(estimate.gpu, worst))} GiB."
    return wrapped(text, "", "  ")


def _peak_line(estimate: Estimate, phase: PhaseEstimate) -> str:
    """Where it peaks and how much is left. A full card caps what it can show, so what is lacking counts from what must be allocated."""
    total, device = estimate.gpu.total_bytes, phase.device
    needed = needed_bytes(estimate.gpu, phase)
    if estimate.verdict == OOM:
        lacking = f"{gib(needed - total)} GiB too much" if needed > total else "too fragmented to fit"
        return f"Fails {clean(what(phase))}: needs {gib(needed)} GiB; {lacking}"
    left, worst = total - device.likely_bytes, total - device.high_bytes
    if estimate.verdict == BORDERLINE:
        room = f"{gib(left)} GiB left" if left >= 0 else f"{gib(-left)} GiB too much"
        at_worst = f", or {gib(-worst)} too much" if worst < 0 <= left else ""
        return f"Peak on card: {gib(device.likely_bytes)} GiB {clean(what(phase))}; {room}{at_worst}"
    if estimate.lower_bound:
        return f"Peak on card: at least {gib(device.likely_bytes)} GiB {clean(what(phase))}; at most {gib(left)} GiB left"
    return f"Peak on card: {_span(device, ' GiB')} {clean(what(phase))}; {gib(left)} GiB left"


def _span(device: Interval, unit: str = "") -> str:
    return f"{gib(device.likely_bytes)}{unit} ({gib(device.low_bytes)}-{gib(device.high_bytes)})"


def needed_bytes(gpu: Gpu, phase: PhaseEstimate) -> int:
    """The least that the phase takes on any card in the likely case: what is allocated, and what lies outside the allocator."""
    return phase.allocated_bytes + gpu.context_bytes + gpu.desktop_bytes


# --- the table of phases ----------------------------------------------------------------------------------------------

_WHICH_WIDTH = 30
_FIGURES = ("alloc.", "reserv.", "on card")
_PHASE_COLUMNS = (
    Column(width=1), Column("phase, size, part", _WHICH_WIDTH), *(Column(title, len(title), right=True) for title in _FIGURES),
    Column("low - high", SPAN_WIDTH, right=True), Column("verdict"),
)  # fmt: skip


def _phase_table(estimate: Estimate, style: Style, details: bool) -> str:
    peak = headline(estimate)
    rows = list(estimate.phases) if details else distinct(estimate.phases, peak)
    left_out = ""
    if len(rows) > MOST_ROWS and not details:
        rows = _worst_of_each(rows, peak)
        left_out = f"\n  (the worst of each phase; --details shows all {len(estimate.phases)})"
    marked = "the highest" if peak is None or peak.verdict == SAFE else "where it fails first"
    cells = [_phase_row(row, ">" if row is peak else "", style) for row in rows]
    lines = [style.bold(f"GiB at each phase's peak (> marks {marked})"), *table(_PHASE_COLUMNS, cells, style.colour)]
    return "\n".join(lines) + left_out


def _worst_of_each(phases: Sequence[PhaseEstimate], peak: PhaseEstimate | None) -> list[PhaseEstimate]:
    worst: dict[str, PhaseEstimate] = {}
    for phase in phases:
        best = worst.get(phase.phase)
        if best is None or phase is peak or (best is not peak and phase.device.likely_bytes > best.device.likely_bytes):
            worst[phase.phase] = phase
    return [phase for phase in phases if worst[phase.phase] is phase]


def _phase_row(phase: PhaseEstimate, mark: str, style: Style) -> tuple[str | Cell, ...]:
    sizes = (phase.allocated_bytes, phase.reserved_bytes, phase.device.likely_bytes)
    numbers = (gib(size, len(title)) for size, title in zip(sizes, _FIGURES, strict=True))
    return (mark, cut(row_name(phase), _WHICH_WIDTH), *numbers, span(phase.device), style.verdict_cell(phase.verdict))


# --- the ledger of a phase --------------------------------------------------------------------------------------------


def _ledger(estimate: Estimate, phase: PhaseEstimate, style: Style) -> str:
    """What the phase's bytes are: components make allocated, with cache reserved, with the rest what the card shows. Sums are exact."""
    title = f"What is on the card {what(phase)}"
    lines = [style.bold(cut(title, WIDTH))]
    if phase.moment:
        lines.extend(wrapped(f"at its peak: {clean(moment(phase.moment))}", "  ", "    "))
    lines.extend(_component_rows(phase.components, phase.allocated_bytes))
    lines.append(_row("= allocated (torch.cuda.max_memory_allocated)", phase.allocated_bytes))
    lines.extend(_lacking(estimate.gpu, phase) if phase.verdict == OOM else _on_the_card(estimate.gpu, phase))
    return "\n".join(lines)


def _on_the_card(gpu: Gpu, phase: PhaseEstimate) -> list[str]:
    """From what is allocated to what nvidia-smi shows."""
    device, outside = phase.device.likely_bytes, gpu.context_bytes + gpu.desktop_bytes
    lines = [
        _row("  torch's cache: reserved, not allocated", phase.reserved_bytes - phase.allocated_bytes),
        _row("= reserved, if the card had room to spare", phase.reserved_bytes),
        _row(_outside(gpu), outside),
    ]
    rest = device - phase.reserved_bytes - outside
    if rest < 0:
        lines.append(_row("  cached memory given back: the card is full", rest))
    elif rest > 0:
        lines.append(_row("  allowance for what is not known exactly", rest))
    lines.append(_row("= on the card (nvidia-smi)", device))
    lines.append(_row("  left of the card" if gpu.total_bytes >= device else "  more than the card has", abs(gpu.total_bytes - device)))
    return lines


def _lacking(gpu: Gpu, phase: PhaseEstimate) -> list[str]:
    """Why a phase fails: even without a byte of cache it is more than the card has, or what is left is in pieces."""
    needed = needed_bytes(gpu, phase)
    lines = [_row(_outside(gpu), gpu.context_bytes + gpu.desktop_bytes), _row("= needed at the least, without any cache", needed)]
    too_much = needed > gpu.total_bytes
    lines.append(_row("  more than the card has" if too_much else "  left of the card, in pieces too small", abs(gpu.total_bytes - needed)))
    return lines


def _outside(gpu: Gpu) -> str:
    return "  outside torch: CUDA context" + (", desktop" if gpu.desktop_bytes else "")


def _component_rows(components: Mapping[str, int], total: int) -> list[str]:
    rows, small = [], 0
    for name, size in sorted(components.items(), key=lambda item: -item[1]):
        if abs(size) < _SMALL_BYTES:
            small += size
            continue
        bar = "#" * max(0, round(_BAR_WIDTH * size / total)) if total else ""
        rows.append(f"{_row('  ' + clean(component(name)), size)} {bar}".rstrip())
    if gib(small) != "0.00":
        rows.append(_row("  smaller parts", small))
    return rows


def _row(label: str, count_bytes: int) -> str:
    return f"  {label:<49}{gib(count_bytes):>8}"


# --- what to change, and what to know ---------------------------------------------------------------------------------


FURTHER = "  `estimate plan` looks further, in finer steps; or take a larger card."


def _advice(estimate: Estimate, style: Style) -> str:
    if estimate.verdict not in (BORDERLINE, OOM) or unsure(estimate):
        return ""
    if not estimate.advice:
        return style.bold("What to change") + f"\n  No single setting lowers the peak.\n{FURTHER}"
    enough = [advice for advice in estimate.advice if advice.verdict != OOM]
    lines = [style.bold("What to change (least hurtful first; savings of allocated memory)")]
    for number, advice in enumerate(enough or estimate.advice, 1):
        lines.extend(_advice_lines(number, advice))
    if not enough:
        lines.extend(["  None is enough, alone or one upon the other.", FURTHER])
        return "\n".join(lines)
    if len(enough) < len(estimate.advice):
        further = {advice.key for advice in enough}  # a key whose first step is not enough, and whose last one is
        others = dict.fromkeys(clean(each.key) for each in estimate.advice if each.verdict == OOM and each.key not in further)
        lines.extend(wrapped(f"Not enough alone: {', '.join(others)}", "  ", "  ") if others else [])
    lines.append("  Check with --set KEY=VALUE; savings are by peak rows, without the replay.")
    return "\n".join(lines)


def _advice_lines(number: int, advice: Advice) -> list[str]:
    keys = advice.key.split(" + ")
    if len(keys) > 1 and isinstance(advice.before, list) and isinstance(advice.after, list):
        each = [f"{clean(key)}: {value(old)} -> {value(new)}" for key, old, new in zip(keys, advice.before, advice.after, strict=True)]
        change = f"{number:>3}. together: {'; '.join(each)}"
    else:
        change = f"{number:>3}. {clean(advice.key)}: {value(advice.before)} -> {value(advice.after)}"
    enough = {OOM: "not enough alone", SAFE: "probably enough", BORDERLINE: "borderline"}.get(advice.verdict, "")
    saving = f"saves {gib(advice.saves_bytes)} GiB{', ' + enough if enough else ''}"
    why = wrapped(clean(advice.why), "     ", "     ")
    if len(change) + len(saving) + 3 <= WIDTH:
        return [f"{change}  {saving}", *why]
    return [*wrapped(change, "", "     "), f"     {saving}", *why]


def value(given: object) -> str:
    """A value of a config as YAML writes it."""
    if given is None:
        return "null"
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, (list, tuple)):
        return f"[{', '.join(map(value, given))}]"
    return clean(given)


def unmodelled(estimate: Estimate) -> list[str]:
    """The settings without a model, each with its place and what it does."""
    found = estimate.job.unmodelled
    where = [each.place.file if each.place.line is None else f"{each.place.file}:{each.place.line}" for each in found]
    return [f"{each.place.key} = {value(each.value)} ({place}): {each.why}" for each, place in zip(found, where, strict=True)]


def notes(title: str, texts: Iterable[str], style: Style) -> str:
    """A heading and one paragraph for each text; nothing where there is none."""
    lines = [line for note in texts for line in wrapped(clean(note), "  - ", "    ")]
    return "\n".join([style.bold(title), *lines]) if lines else ""
