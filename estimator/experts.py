"""A transformer of two experts with an adapter on both (Wan 2.2 14B): parts of one expert, for either of them.

Programs are of one expert and its adapter. In keys of parts, behind them: `LOW`, the second expert's (low noise), whose adapter's tensors
stand behind the first's in every list; `BOTH`, both at once: a step of an optimizer after accumulated batches of both, and what there is
of the whole adapter at one time (a copy of it, with EMA).

An accuracy recovery adapter has as many tensors an expert as the one that is trained: both are LoRAs on all linear layers of the blocks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from estimator.footprint import PeakRow
from estimator.program import ALLOCATE, FIRST_IMPORT, Program

LOW, BOTH = "@low", "@both"
OF_ADAPTER = ("adapter", "gradient", "optimizer", "ema", "ema_copy", "recovery_gradient")
EXPERTS = ("transformer_1", "transformer_2")
RESIDENT_OF = dict.fromkeys(EXPERTS, "transformer")  # components that are moved -> whose tensors they have
OF_EXPERTS = "wan22_14b"  # beginning of the trainer's model classes that have them


def components(model_class: str) -> tuple[str, ...]:
    """What is a transformer in the trainer's class: itself, or its experts."""
    return EXPERTS if model_class.startswith(OF_EXPERTS) else ("transformer",)


def split(key: str) -> tuple[str, str]:
    """A part's key without what says whose it is, and that ("" for the first expert's, or where there are none)."""
    base, at, whose = key.partition("@")
    return base, at + whose


def of_second(program: Program, key: str, parameters: int) -> Program:
    """A program with its adapter's tensors named as those behind so many parameters of the first expert's."""
    return replace(program, key=key, names=tuple(_behind(name, parameters) for name in program.names))


def doubled(program: Program, key: str, parameters: int) -> Program:
    """A program with each event made for both experts, one right after the other: what it holds is twice as much at every moment."""
    tensors, events, born = program.tensor_of_event.tolist(), [], 0
    own = len(program.names) - program.imports
    for event, tensor in zip(program.events.tolist(), tensors, strict=True):
        if event == ALLOCATE:
            born += 2
            events += [ALLOCATE, ALLOCATE]
        elif tensor < 0:
            events.append(event)
        elif tensor < own:
            events += [born - 2 * tensor, born - 2 * tensor - 1]
        else:
            events += [FIRST_IMPORT - 2 * (tensor - own), FIRST_IMPORT - 2 * (tensor - own) - 1]
    return replace(
        program, key=key, coefficients=np.repeat(program.coefficients, 2, axis=0), events=np.array(events, dtype=np.int64),
        labels=tuple(label for label in program.labels for _ in range(2)), imports=2 * program.imports,
        names=tuple(name for first in program.names for name in (first, _behind(first, parameters))),
        peaks=tuple(PeakRow(tuple(2 * c for c in row.coefficients), row.moment) for row in program.peaks),
    )  # fmt: skip


def _behind(name: str | None, parameters: int) -> str | None:
    """gradient:3 -> gradient:803, optimizer:exp_avg.3 -> optimizer:exp_avg.803. Tensors that are made once for all (-1) keep their name."""
    group, _, place = (name or "").partition(":")
    if name is None or group not in OF_ADAPTER:
        return name
    slot, dot, number = place.rpartition(".")
    if int(number) < 0:
        return name
    return f"{group}:{slot}{dot}{int(number) + parameters}"
