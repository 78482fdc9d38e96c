"""A plan as text of 80 columns: the answer, what to change and what it costs, how far it goes, and the edit as a diff."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from estimator.estimate import OOM, SAFE, Estimate
from estimator.kernels import without_flash
from estimator.planner.buckets import frames_of
from estimator.planner.costs import headroom_bytes, pace
from estimator.planner.edits import Edit
from estimator.planner.growth import Growth
from estimator.planner.plans import Change, Plan
from estimator.report import PLAIN, Style, clean, cut, notes, value, wrapped
from estimator.report_words import gib, headline, never_safe, what
from estimator.screen import WIDTH

_UNITS = {"batch": "", "resolution": " px", "frames": " frames"}


def render_plan(plan: Plan, diff: str, written: str | None = None, style: Style = PLAIN) -> str:
    """The whole answer for one card. `diff`: of the config's text; `written`: the file that has been written."""
    parts = [_answer(plan, style)]
    if plan.after is None:
        parts.append(_why_none(plan))
    else:
        parts += [_changes(plan, style), _room(plan, style), _diff(diff, style), _next(plan, written)]
        parts.append(notes("Assumed", _assumed(plan), style))
    return "\n\n".join(part for part in parts if part) + "\n"


def _answer(plan: Plan, style: Style) -> str:
    card = f"{clean(plan.gpu.name)} ({gib(plan.gpu.total_bytes)} GiB)"
    if plan.after is None:
        head, verdict = "NO SAFE CONFIG", OOM
        rest = f" cannot be made safe on {card}"
    else:
        head, verdict = "SAFE", SAFE
        count = len(plan.changes)
        how = f"with {count} change{'s' if count > 1 else ''}" if count else "as it is"
        rest = f" fits on {card} {how}"
    name = cut(plan.subject.job.name, WIDTH - len(head) - 2 - len(rest))
    lines = [f"{style.verdict(verdict, head)}: {name}{rest}"]
    if plan.changes or plan.after is None:
        lines += wrapped(f"As it stands: {_standing(plan.before)}", "", "  ")
    if plan.after is not None:
        lines += wrapped(f"{'Planned' if plan.changes else 'Peak'}: {_standing(plan.after)}", "", "  ")
    return "\n".join(lines)


def _standing(estimate: Estimate) -> str:
    phase = headline(estimate)
    if phase is None:
        return estimate.verdict
    if estimate.verdict == OOM:
        left = headroom_bytes(estimate)
        amount = f"at least {gib(-left)} GiB too little" if left < 0 else "what is free is in pieces too small"
        return f"out of memory {clean(what(phase))}; {amount}"
    left = estimate.gpu.total_bytes - phase.device.likely_bytes
    at = f"peak {gib(phase.device.likely_bytes)} ({gib(phase.device.low_bytes)}-{gib(phase.device.high_bytes)}) GiB {clean(what(phase))}"
    return f"{estimate.verdict}, {at}; {gib(abs(left))} GiB {'left' if left >= 0 else 'too much'}"


def _why_none(plan: Plan) -> str:
    never = f": {never_safe(plan.gpu)}" if without_flash(plan.gpu) else f" ({_work(plan)})"
    lines = [f"None of the reachable configs is safe{never}.{_pins(plan)}"]
    if plan.smallest_card is not None:
        card = plan.smallest_card
        lines.append(f"The smallest card of the catalogue on which one is: {card.name} ({gib(card.total_bytes)} GiB).")
        lines.append(f"Its plan: {clean(_command(plan, card.name))}")
    else:
        lines.append("No larger card of the catalogue has one either.")
    return "\n".join(line for text in lines for line in wrapped(text, "", "  "))


def _command(plan: Plan, card: str) -> str:
    """The same question about another card."""
    words = ["estimate", "plan", plan.subject.file.name, "--gpu", card]
    words += ["--aim", plan.aim] if plan.aim != "quality" else []
    for option, values in (("--set", plan.subject.sets), ("--keep", plan.subject.keep)):
        words += [word for value in values for word in (option, value)]
    return shlex.join(words)


def _pins(plan: Plan) -> str:
    return f" Pinned: {', '.join(map(clean, plan.subject.keep))}." if plan.subject.keep else ""


def _work(plan: Plan) -> str:
    return f"{plan.by_rows:,} tried by peak rows, {plan.replayed} by replay"


def _changes(plan: Plan, style: Style) -> str:
    if not plan.changes:
        return ""
    aims = {
        "quality": "the least loss of quality, then of speed", "speed": "the fastest that is safe",
        "batch": "the largest batch that is safe",
        "resolution": "the largest buckets that are safe", "frames": "the longest clips that are safe",
    }  # fmt: skip
    lines = [style.bold(f"What to change: {aims[plan.aim]}")]
    clips = frames_of(plan.subject) > 1
    for number, change in enumerate(plan.changes, 1):
        lines += _change_lines(number, change, clips)
    total = pace(plan.ratio, clips)
    if total:
        lines += wrapped(f"Together: {total}. Times are rough, from counted work.", "  ", "  ")
    if plan.aim == "quality" and all(change.without for change in plan.changes):
        needed = "Each is needed: with any of them" if len(plan.changes) > 1 else "It is needed: with it"
        lines += wrapped(f"{needed} a step weaker the config is not safe ({_work(plan)}).", "  ", "  ")
    return "\n".join(lines)


def _change_lines(number: int, change: Change, clips: bool) -> list[str]:
    edits = "; ".join(edit_words(edit, before) for edit, before in zip(change.edits, change.before, strict=True))
    lines = wrapped(f"{number:>3}. {edits}", "", "     ")
    words = [change.why, *([pace(change.ratio, clips)] if change.ratio is not None and abs(change.ratio - 1) >= 0.03 else [])]
    lines += wrapped(clean("; ".join(words)), "     ", "     ")
    if change.without not in ("", SAFE):  # what is aimed at is safe a step weaker
        fails = f" ({', '.join(phase.replace('_', ' ') for phase in change.fails)})" if change.fails else ""
        lines += wrapped(f"a step weaker: {change.without}{fails}", "     ", "     ")
    return lines


def edit_words(edit: Edit, before: object) -> str:
    """ "train.batch_size: 4 -> 1"."""
    old = "not set" if before is None else cut(value(before), 40)
    return f"{clean(edit.key)}: {old} -> {value(edit.value)}"


def _room(plan: Plan, style: Style) -> str:
    if not plan.growth:
        return f"{style.bold('How far it goes')}\n  {plan.aim}: {_no_growth(plan)}" if plan.aim in _UNITS else ""
    alone = plan.aim == "quality"
    lines = [style.bold("Room to grow, each alone" if alone else "How far it goes")]
    return "\n".join([*lines, *(f"  {growth_words(each)}" for each in plan.growth)])


def _no_growth(plan: Plan) -> str:
    """Why a setting that is aimed at does not grow at all."""
    if plan.aim == "frames" and frames_of(plan.subject) == 1:
        return "only images are trained here; clips need num_frames in the dataset"
    if any(change.name in ("batch", "buckets", "frames") for change in plan.changes):
        return "less than the config has, as above"
    return "pinned by --keep" if plan.subject.keep else "no more is looked at"


def growth_words(growth: Growth) -> str:
    """ "batch: 1, safe up to 3; 4 is not safe"."""
    unit = _UNITS[growth.what]
    limit = f"{growth.beyond} is not safe" if growth.beyond is not None else "no further looked"
    if growth.refused:
        limit = f"{growth.beyond} stops the trainer, or is not modelled"
    if growth.most == growth.now:
        return f"{growth.what}: {growth.now}{unit}, no more; {limit}"
    return f"{growth.what}: {growth.now}{unit}, safe up to {growth.most}; {limit}"


def _diff(diff: str, style: Style) -> str:
    if not diff:
        return ""
    lines = [clean(line) if "\t" not in line else clean(line.replace("\t", "    ")) for line in diff.splitlines()]
    return "\n".join([style.bold("The edit"), *lines])


def _next(plan: Plan, written: str | None) -> str:
    if written is not None:
        return f"Written to {clean(written)}."
    return "Write it with --write FILE (or over the config: --in-place)." if plan.edits else ""


def _assumed(plan: Plan) -> Sequence[str]:
    assert plan.after is not None
    return tuple(dict.fromkeys((*plan.after.warnings, *plan.after.assumptions, *plan.gpu.notes)))


def render_cards(plans: Sequence[Plan], style: Style = PLAIN) -> str:
    """The plan of one config on each card, smallest first: which card to take."""
    safe = [plan for plan in plans if plan.after is not None]
    as_is = [plan for plan in safe if not plan.edits]
    lines = []
    if safe:
        first = f"{clean(safe[0].gpu.name)} ({gib(safe[0].gpu.total_bytes)} GiB)"
        lines.append(f"{style.verdict(SAFE, 'SAFE')}: the smallest card with a safe config is {first}")
        fits = f"{clean(as_is[0].gpu.name)} ({gib(as_is[0].gpu.total_bytes)} GiB)" if as_is else "none of them"
        lines.append(f"The smallest on which it fits as it is: {fits}")
    else:
        lines.append(f"{style.verdict(OOM, 'NO SAFE CONFIG')} on any of {len(plans)} cards")
    lines += ["", style.bold(f"{'card':<19}{'GiB':>7}{'left':>7}{'time':>7}  largest safe config (--aim {plans[0].aim})")]
    for plan in plans:
        lines += _card_lines(plan)
    lines += ["", *wrapped("left: GiB in the likely case; time: for each image beside the config as it is, rough, from counted work.")]
    return "\n".join(lines) + "\n"


def _card_lines(plan: Plan) -> list[str]:
    start = f"{cut(plan.gpu.name, 18):<19}{gib(plan.gpu.total_bytes):>7}"
    if plan.after is None:
        return [f"{start}{'-':>7}{'-':>7}  none"]
    time = "-" if plan.ratio is None else f"{plan.ratio:.2f}x"
    start += f"{gib(headroom_bytes(plan.after)):>7}{time:>7}  "
    words = ", ".join(f"{edit.key.rpartition('.')[2]}={value(edit.value)}" for edit in plan.edits) or "as it is"
    words += "".join(f" ({growth.what} up to {growth.most})" for growth in plan.growth)
    return wrapped(clean(words), start, " " * len(start))
