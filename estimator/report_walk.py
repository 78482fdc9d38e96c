"""A walk by hand as text of 80 columns: what to lower until it fits, what to raise from there, each with its headroom."""

from __future__ import annotations

from collections.abc import Sequence

from estimator.estimate import OOM, SAFE, Estimate
from estimator.planner.costs import headroom_bytes
from estimator.planner.steps import Line, Walk
from estimator.report import PLAIN, Style, clean, cut, wrapped
from estimator.report_plan import edit_words
from estimator.report_words import gib, headline, unsure, what
from estimator.screen import WIDTH

_TITLE_WIDTH = 30


def render_walk(walk: Walk, diff: str, written: str | None = None, style: Style = PLAIN) -> str:
    """Both orders. Each line of the way down has all above it; each of the way up stands alone."""
    card = f"{clean(walk.gpu.name)} ({gib(walk.gpu.total_bytes)} GiB)"
    verdict = SAFE if walk.end.verdict == SAFE else OOM
    head = "SAFE" if verdict == SAFE else "NOT SAFE AT THE END"
    rest = f" on {card}" + ("" if not walk.down else f" after {len(walk.down)} step{'s' if len(walk.down) > 1 else ''}")
    name = cut(walk.subject.job.name, WIDTH - len(head) - 2 - len(rest))
    parts = [f"{style.verdict(verdict, head)}: {name}{rest}"]
    down = [style.bold("Down: one upon the other, until it is safe"), _head(), _row("as it is", walk.start, style)]
    down += _lines(walk.down, style)
    down += wrapped(unsure(walk.end), "  ", "  ")
    if walk.idle:
        down += wrapped(f"Left out, because it brings nothing here: {', '.join(walk.idle)}.", "  ", "  ")
    if walk.start.verdict == OOM:
        legend = "GiB left counts to what must be allocated where it is out of memory (<: or less); above 0 it is in pieces."
        down += wrapped(legend, "  ", "  ")
    parts.append("\n".join(down))
    if walk.up:
        title = "Up, once it runs: one heavier setting at a time, each alone upon that"
        parts.append("\n".join([style.bold(title), _head(), *_lines(walk.up, style)]))
        parts.append("\n".join(wrapped("Keep the stable config, train some steps with each, and raise only what is safe here.")))
    if diff:
        lines = [clean(line.replace("\t", "    ")) for line in diff.splitlines()]
        parts.append("\n".join([style.bold("The edit of the whole way down"), *lines]))
        if verdict == SAFE:
            least = "Write it with --write FILE. `estimate plan` without --steps finds the least edit."
            parts.append("\n".join(wrapped(f"Written to {clean(written)}." if written else least)))
    return "\n\n".join(parts) + "\n"


def _head() -> str:
    return f"  {'step':<{_TITLE_WIDTH}}{'GiB left':>9}  {'verdict':<11}peak"


def _lines(lines: Sequence[Line], style: Style) -> list[str]:
    rows = []
    for number, line in enumerate(lines, 1):
        rows.append(_row(f"{number}. {line.title}", line.estimate, style))
        words = "; ".join(edit_words(edit, before) for edit, before in zip(line.edits, line.before, strict=True))
        rows += wrapped(words, "       ", "       ")
        rows += wrapped(clean(line.why), "       ", "       ")
    return rows


def _row(title: str, estimate: Estimate, style: Style) -> str:
    phase = headline(estimate)
    verdict = style.verdict(estimate.verdict, f"{estimate.verdict:<11}")
    left = gib(headroom_bytes(estimate))
    most = "<" if estimate.lower_bound else ""
    peak = "" if phase is None else cut(what(phase), WIDTH - _TITLE_WIDTH - 24)
    return f"  {cut(title, _TITLE_WIDTH - 1):<{_TITLE_WIDTH}}{most + left:>9}  {verdict}{peak}".rstrip()
