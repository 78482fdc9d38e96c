"""Which parts of a profile are another kind of base weights' by rule (estimator.rebuilt_weights), and those parts.

A part is made where it was recorded in qfloat8 with its layers' uses, and where what its layers are in the other kind is known: their
tensors come from recordings of loading. Previews in bf16 have the adapter merged into the weights, and are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from estimator import rebuilt_weights
from estimator.archive import Archive
from estimator.offload import Layer, layers_of
from estimator.offload_programs import Call
from estimator.program import Program

RECORDED = "qfloat8"
KINDS = ("bf16", "float8", "uint4")
_FULL, _CHECKPOINTED = "/full/", "/checkpointed/"
_CORE, _PREVIEW, _TEXT = "step.core", "preview", "text"
_SAMPLED = ("sample.enter", "sample.leave")  # which in float8 are qfloat8's (of every architecture that has both)
_PLAIN = "plain"  # of a text: without a graph, which would keep what the layers are given


class Recorded(Protocol):
    """What is needed of a profile (estimator.programs.Profile)."""

    @property
    def data(self) -> Mapping[str, Any]: ...
    @property
    def archive(self) -> Archive: ...
    @property
    def kept(self) -> dict[object, object]: ...
    def recorded(self, key: str) -> Program: ...
    def resident(self, component: str, weights: str, unquantised: int = 0) -> list[int]: ...


def component_of(key: str) -> str:
    return "text_encoder0" if key.startswith(_TEXT) else "transformer"


def base_key(profile: Recorded, key: str) -> str | None:
    """The part in qfloat8 that another kind's is made of; None where no rule makes it."""
    name, *rest = key.split("/")
    if not rest or rest[0] not in KINDS or key in profile.data["parts"]:
        return None
    base = "/".join([name, RECORDED, *rest[1:]])
    if name in _SAMPLED and rest[0] == "float8":
        return base if base in profile.data["parts"] else None
    ruled = name.startswith(_CORE) or (name == _PREVIEW and rest[0] != "bf16") or (name == _TEXT and rest[1] == _PLAIN)
    component, places = component_of(key), profile.data.get("places", {})
    known = all(f"{component}/{kind}" in places for kind in (RECORDED, rest[0])) and base in profile.data["parts"]
    return base if ruled and known and profile.archive.calls(profile.data["parts"][base]["number"]) is not None else None


def program(profile: Recorded, key: str) -> Program:
    """A part for which `base_key` has one."""
    if key.startswith(_SAMPLED):
        return replace(profile.recorded(str(base_key(profile, key))), key=key)
    return _made(profile, key)[0]


def calls(profile: Recorded, key: str, component: str, names: Mapping[str, Sequence[str]]) -> tuple[Call, ...] | None:
    """Where a part uses each of its component's layers, by rule or as recorded; None where nobody saw it. `names`: of the layers."""
    if base_key(profile, key) is not None:
        return _made(profile, key)[1]
    part = profile.data["parts"].get(key)
    table = profile.archive.calls(part["number"]) if part else None
    if table is None:
        return None
    first = sum(len(names[other]) for other in list(names)[: list(names).index(component)])
    rows = (row for row in table.tolist() if first <= row[0] < first + len(names[component]))
    return tuple(Call(row[0] - first, *row[1:]) for row in rows)


def _made(profile: Recorded, key: str) -> tuple[Program, tuple[Call, ...]]:
    if ("rebuilt", key) not in profile.kept:
        base = base_key(profile, key)
        assert base is not None
        kind, component = key.split("/")[1], component_of(key)
        layers = _layers(profile, component, RECORDED), _layers(profile, component, kind)
        twin = profile.recorded(base.replace(_FULL, _CHECKPOINTED))
        used = calls(profile, base, component, profile.data["layers"])
        assert used is not None
        profile.kept["rebuilt", key] = rebuilt_weights.program(profile.recorded(base), twin, key, used, layers)
    return profile.kept["rebuilt", key]  # type: ignore[return-value]


def _layers(profile: Recorded, component: str, kind: str) -> tuple[Layer, ...]:
    return layers_of(profile.data["places"][f"{component}/{kind}"], profile.resident(component, kind), profile.data["layers"][component])
