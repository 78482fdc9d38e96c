"""Tables over many cards as text: one job on each of them, the catalogue, and the architectures."""

from __future__ import annotations

from collections.abc import Sequence

from estimator.estimate import OOM, SAFE, Estimate
from estimator.gpus import Gpu
from estimator.report import PLAIN, WIDTH, Style, clean, cut, gib, needed_bytes, notes, wrapped
from estimator.report_words import headline, what


def render_cards(estimates: Sequence[Estimate], style: Style = PLAIN) -> str:
    """One job on every card, smallest first: which card to take."""
    ordered = sorted(estimates, key=lambda each: (each.gpu.total_bytes, each.gpu.name))
    safe = [each for each in ordered if each.verdict == SAFE]
    worst = ordered[-1]
    if safe:
        verdict, rest = SAFE, f" fits on {len(safe)} of {len(ordered)} cards; the smallest is {clean(safe[0].gpu.name)}"
        phase, total = headline(safe[0]), gib(safe[0].gpu.total_bytes)
        used = "" if phase is None else gib(phase.device.likely_bytes)
        second = "" if phase is None else f"with {used} of its {total} GiB in use at the peak, {clean(what(phase))}"
    else:
        verdict, rest = worst.verdict, f" is not safe on any of {len(ordered)} cards"
        second = f"for why see one card's report, for example --gpu {clean(worst.gpu.name)}"
    name = cut(ordered[0].job.name, WIDTH - len(verdict) - 2 - len(rest))
    first = f"{style.verdict(verdict, verdict.upper())}: {name}{rest}"
    head = f"  {'card':<19}{'has':>7}{'on card':>8}{'low - high':>14}{'left':>8}  {'verdict':<11}peak"
    rows = [_card_row(each, style) for each in ordered]
    title = style.bold("GiB on each card, smallest first (oom: what the first phase to fail needs)")
    parts = ["\n".join([first, *wrapped(second, "", "  ")]), "\n".join([title, head, *rows])]
    shared = [note for note in ordered[0].assumptions if all(note in each.assumptions for each in ordered)]
    parts += [notes("Warnings", ordered[0].warnings, style), notes("Assumed", shared, style)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _card_row(estimate: Estimate, style: Style) -> str:
    gpu, phase = estimate.gpu, headline(estimate)
    verdict = style.verdict(estimate.verdict, f"{estimate.verdict:<11}")
    start = f"  {cut(gpu.name, 18):<19}{gib(gpu.total_bytes):>7}"
    if phase is None:
        return f"{start}{'':>30}  {verdict}".rstrip()
    device = phase.device
    used, span = device.likely_bytes, f"{gib(device.low_bytes)}-{gib(device.high_bytes)}"
    if estimate.verdict == OOM:
        used, span = needed_bytes(gpu, phase), ""
    left = gpu.total_bytes - used
    room = "-" if estimate.verdict == OOM and left > 0 else gib(left)  # fails for another reason than its sum: fragmentation
    return f"{start}{gib(used):>8}{span:>14}{room:>8}  {verdict}{phase.phase.removeprefix('cache_')}".rstrip()


def render_gpus(gpus: Sequence[Gpu], style: Style = PLAIN) -> str:
    """The catalogue."""
    lines = [style.bold(f"{'name (for --gpu)':<20}{'GiB':>8}{'usable':>8}  {'cc':<6}also known as")]
    for gpu in gpus:
        known = cut(", ".join(dict.fromkeys((gpu.title, *gpu.aliases))), WIDTH - 44)
        lines.append(f"{gpu.name:<20}{gib(gpu.total_bytes):>8}{gib(gpu.usable_bytes):>8}  {gpu.compute_capability:<6}{known}")
    text = (
        "GiB is what torch reports on this OS, less than the size on the box; usable is without the CUDA context (provisional) and the "
        "desktop; cc is the compute capability. Any other card by its size: --gpu 23.5GiB. All cards: --gpu all."
    )
    return "\n".join([*lines, "", *wrapped(text)]) + "\n"


def render_archs(archs: Sequence[tuple[str, str, bool, int]], style: Style = PLAIN) -> str:
    """The architectures, as (key, name, modelled, checked runs): those that can be estimated, and those that are only recognised."""
    lines = [style.bold(f"{'architecture':<16}{'what it is':<46}checked against")]
    lines += [f"{key:<16}{cut(name, 45):<46}{f'{runs} runs' if runs else 'nothing yet'}" for key, name, modelled, runs in archs if modelled]
    lines += ["", *wrapped("Runs: whole runs of the trainer itself on an emulated CUDA device, none of them used to make the model of it.")]
    others = ", ".join(key for key, _, modelled, _ in archs if not modelled)
    if others:
        lines += ["", *wrapped(f"Recognised, not modelled yet (exit status 3): {others}")]
    return "\n".join(lines) + "\n"
