"""A transformer of two experts with an adapter on both (Wan 2.2 14B): parts of one expert, for either of them.

Programs are of one expert and its adapter. In keys of parts, behind them: `LOW`, the second expert's (low noise), whose adapter's tensors
stand behind the first's in every list; `BOTH`, a step of an optimizer over both, where accumulated batches went to both.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.program import Program

LOW, BOTH = "@low", "@both"
OF_ADAPTER = ("adapter", "gradient", "optimizer", "ema", "ema_copy")
RESIDENT_OF = {"transformer_1": "transformer", "transformer_2": "transformer"}  # components that are moved -> whose tensors they have


def split(key: str) -> tuple[str, str]:
    """A part's key without what says whose it is, and that ("" for the first expert's, or where there are none)."""
    base, at, whose = key.partition("@")
    return base, at + whose


def of_second(program: Program, key: str, parameters: int) -> Program:
    """A program with its adapter's tensors named as those behind so many parameters of the first expert's."""
    return replace(program, key=key, names=tuple(_behind(name, parameters) for name in program.names))


def _behind(name: str | None, parameters: int) -> str | None:
    """gradient:3 -> gradient:803, optimizer:exp_avg.3 -> optimizer:exp_avg.803. Tensors that are made once for all (-1) keep their name."""
    group, _, place = (name or "").partition(":")
    if name is None or group not in OF_ADAPTER:
        return name
    slot, dot, number = place.rpartition(".")
    if int(number) < 0:
        return name
    return f"{group}:{slot}{dot}{int(number) + parameters}"
