"""A step that holds the model's output on other prompts (`diff_output_preservation`, `blank_prompt_preservation`), from one that does not.

Such a step predicts three times: first without the adapter and without gradients, on the prompts that are to be preserved; then as any step
does; then with gradients on the preserved prompts. One backward pass goes through both graphs, the later one first, and adds the gradients
of the earlier one to its own. Each pass is the recorded one; prompts of the two have lengths of their own (`X`, and `W` where it is `X`
elsewhere). The loss of the third pass is taken to keep what the second's does: some copies of a latent.
Source: extensions_built_in/sd_trainer/SDTrainer.py (train_single_accumulation, get_prior_prediction).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from estimator.adapter_sites import BACKWARD, RECOMPUTED, Tape, never
from estimator.features import Ints, with_preserved
from estimator.forward_pass import without_gradients
from estimator.program import ALLOCATE, EMPTY_CACHE, Program, peak_rows

GRADIENT = "gradient:"


@dataclass
class _Laid:
    """Events laid one after another: tensors are (pass, number there)."""

    events: list[int] = field(default_factory=list)
    order: list[tuple[int, int]] = field(default_factory=list)
    born: dict[tuple[int, int], int] = field(default_factory=dict)

    def allocate(self, which: int, k: int) -> None:
        self.born[which, k] = len(self.order)
        self.order.append((which, k))
        self.events.append(ALLOCATE)

    def free(self, which: int, k: int) -> None:
        self.events.append(len(self.order) - self.born[which, k])

    def lay(self, which: int, program: Program, first: int, last: int, dropped: set[int] | None = None) -> None:
        """Events [first, last) of a program without imports. Tensors in `dropped` are freed as soon as they are made."""
        codes, tensors = program.events[first:last].tolist(), program.tensor_of_event[first:last].tolist()
        for code, k in zip(codes, tensors, strict=True):
            if code == ALLOCATE:
                self.allocate(which, k)
                if dropped is not None and k in dropped:
                    self.free(which, k)
            elif code != EMPTY_CACHE:
                self.free(which, k)


PRIOR, FIRST, SECOND = 0, 1, 2


def program(key: str, base: Program, twin: Program) -> Program:
    """`base`: the core of a step without preservation; `twin`: the same under checkpointing. Raises CannotTell."""
    if base.imports:
        raise never("the step")
    tape = Tape(base)
    own = len(base.names)
    backward = next(k for k in range(own) if tape.made[k].run in (BACKWARD, RECOMPUTED))
    turn, end = tape.born[backward], len(base.events)
    prior, predicted = without_gradients(twin)
    laid = _Laid()
    laid.lay(PRIOR, prior, 0, len(prior.events))
    laid.lay(FIRST, base, 0, turn)
    laid.lay(SECOND, base, 0, turn)
    laid.lay(SECOND, base, turn, end)
    gradients = {k for k, name in enumerate(base.names) if name is not None and name.startswith(GRADIENT)}
    laid.lay(FIRST, base, turn, end, gradients)
    laid.free(PRIOR, predicted)
    return _made(key, laid, prior, base)


def _made(key: str, laid: _Laid, prior: Program, base: Program) -> Program:
    programs = {PRIOR: prior, FIRST: base, SECOND: base}
    named = {which: one.features if which == FIRST else tuple(map(with_preserved, one.features)) for which, one in programs.items()}
    features = tuple(dict.fromkeys(name for names in named.values() for name in names))
    column = {name: n for n, name in enumerate(features)}
    coefficients: Ints = np.zeros((len(laid.order), len(features)), dtype=np.int64)
    for which, one in programs.items():
        rows = [n for n, (whose, _) in enumerate(laid.order) if whose == which]
        columns = [column[name] for name in named[which]]
        coefficients[np.ix_(rows, columns)] = one.coefficients[[laid.order[n][1] for n in rows]]
    labels, names = [], []
    for which, k in laid.order:
        labels.append(programs[which].labels[k])
        names.append(None if which != SECOND else base.names[k])
    events: Ints = np.array(laid.events, dtype=np.int64)
    own = len(laid.order)
    peaks = peak_rows(features, coefficients, events, labels, base.moments, own)
    return Program(key, features, coefficients, tuple(labels), base.moments, tuple(names), events, 0, peaks, prior.workspace_at)
