"""What is in a profile already, as extraction has it: so that kinds of weights are added to it without recording the others again.

Read back and written again, a profile is the same to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.extract.align import LayerCall, Sequence
from calibration.extract.programs import Program
from estimator import archive
from estimator.layer_calls import NONE, STAYS
from estimator.program import ALLOCATE, EMPTY_CACHE, FIRST_IMPORT
from estimator.programs import Profile


@dataclass(frozen=True)
class Stored:
    """`tables`: residents by component (and kind). `offload`: the tables of layers. `made`: command, versions and probe jobs."""

    programs: dict[str, Program] = field(default_factory=dict)
    tables: dict[str, list[int]] = field(default_factory=dict)
    offload: dict[str, Any] = field(default_factory=lambda: {name: {} for name in archive.OF_LAYERS})
    made: dict[str, Any] = field(default_factory=lambda: {"probes": []})


def read(folder: Path) -> Stored:
    data = archive.described(folder)
    profile = Profile(data["arch"], data, folder)
    tables = {key: archive.sizes_of(runs) for key, runs in data["residents"].items()}
    offload = {name: dict(data.get(name, {})) for name in archive.OF_LAYERS}
    return Stored({key: _program(profile, key) for key in data["parts"]}, tables, offload, data["made"])


def _program(profile: Profile, key: str) -> Program:
    part, program = profile.data["parts"][key], profile.recorded(key)
    own = len(program.names) - program.imports
    sequence = Sequence(
        _events(program.events.tolist(), own), [0] * len(program.names), [program.moments[n] for n in program.labels], list(program.names),
        [k >= own for k in range(len(program.names))],
    )  # fmt: skip
    for thread, at in program.workspace_at.items():
        sequence.workspace_thread, sequence.workspace_at = thread, at
    calls = profile.archive.calls(part["number"])
    sequence.calls = [] if calls is None else [_call(row, own) for row in calls.tolist()]
    features = program.features or ("1",)  # of a part that makes nothing, or nothing with bytes
    coefficients = [tuple(row) or (0,) for row in program.coefficients.tolist()]
    rule = part.get("made_of", "")
    return Program(key, sequence, features, coefficients, part["recordings"], part["worst_error"], part["inexact"], rule)


def _events(codes: list[int], own: int) -> list[int | None]:
    out: list[int | None] = []
    born = 0
    for code in codes:
        if code == ALLOCATE:
            out.append(born)
            born += 1
        elif code == EMPTY_CACHE:
            out.append(None)
        else:
            out.append(~(born - code) if code > 0 else ~(own + FIRST_IMPORT - code))
    return out


def _call(row: list[int], own: int) -> LayerCall:
    """See `calibration.extract.build.calls_of`."""

    def moment(k: int) -> int | None:
        return None if k in (NONE, STAYS, own) else k

    layer, first, last, given, made, backward, until = row
    return LayerCall(
        layer, first, moment(last), moment(given), moment(made), None if backward == NONE else backward, moment(until), until != NONE,
        until == STAYS,
    )  # fmt: skip
