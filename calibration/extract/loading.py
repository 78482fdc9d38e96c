"""How a model is loaded, cut into parts: by what the loader says, or, where it says nothing, by the components that come."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.architectures.base import Layout
from calibration.extract.parts import Occurrence, component, settings, without_moves
from calibration.extract.runs import Phase, Run


def load_parts(run: Run, layout: Layout) -> Iterator[Occurrence]:
    """A part for each group of the layout's status texts."""
    load = next(p for p in run.root.inner if p.name == "load")
    chosen = settings(run)
    for part, texts in layout.load.items():
        if layout.silent:  # the loader says nothing: whole components come, each a part of its own
            texts, events = (), list(_of_components(run, load, texts))
        else:
            events = []
        for phase in load.inner:
            status = phase.name.removeprefix("load: ")
            if status.startswith(texts):
                events += range(phase.first, phase.last)
        low = "/low_vram" if chosen["low_vram"] else "/plain"
        if part == "load.text" and layout.text_unnamed and chosen["low_vram"]:
            continue
        if part == "load.rest" and (layout.text_on_host or layout.text_unnamed):
            events = without_moves(run, events)
        weights = chosen["text" if part.startswith("load.text") else "weights"]
        plain = part.startswith("load.text") and not layout.text_on_host
        yield Occurrence(run, f"{part}/{weights}{'' if plain else low}", events, {})


def _of_components(run: Run, phase: Phase, beginnings: tuple[str, ...]) -> Iterator[int]:
    """The events of a phase that make or free tensors of components whose names begin so."""
    for event in range(phase.first, phase.last):
        kind, index = run.events[event]
        if kind != "e" and component(run.tensors[index].name).startswith(beginnings):
            yield event
