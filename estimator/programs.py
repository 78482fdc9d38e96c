"""Memory programs: the recorded allocations and frees of each part of the timeline, with sizes affine in a few features.

An architecture's programs are in `profiles/<arch>/`: `profile.json` says what there is (parts, features, peak rows with their
moments, residents, and what made them), `programs.npz` holds the events. Both are written by `python -m calibration.extract`.

Layout of `programs.npz`: `coefficients` [sizes, features]; for the part number p, `e<p>` its events and `t<p>` its tensors,
[tensor, (row of coefficients, row of labels, row of names or -1)], in order of allocation, imports (tensors of other parts
that are freed here, always named) last. An event 0 allocates the next tensor, k > 0 frees the one allocated k allocations
ago, -1 empties the cache, and -2 - i frees import i.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from estimator.errors import CannotTell, Problem
from estimator.features import feature
from estimator.paths import profiles_dir

SHARED_PARTS = ("load.text/", "text/", "cache_latents.item", "latents", "encode.", "decode", "tile.")
SHARED_COMPONENTS = ("text_encoder", "vae")
ALLOCATE, EMPTY_CACHE, FIRST_IMPORT = 0, -1, -2
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PeakRow:
    """A running total that can be the part's highest: bytes = coefficients . features; `moment` names where in the run."""

    coefficients: tuple[int, ...]
    moment: str


@dataclass(frozen=True)
class Program:
    """One part. `labels`: for each tensor the row of `moments` that says where it was made.

    `workspace_at`: {thread: event} where cuBLAS's workspace of that thread is made, if it is not there yet.
    """

    key: str
    features: tuple[str, ...]
    coefficients: Ints
    labels: tuple[int, ...]
    moments: list[str]
    names: tuple[str | None, ...]
    events: Ints
    imports: int
    peaks: tuple[PeakRow, ...]
    workspace_at: Mapping[str, int]

    def sizes(self, values: Mapping[str, int]) -> Ints:
        """Bytes of each tensor as requested, for the variables `values` (see estimator.features). Never negative."""
        row = np.array([feature(name, values) for name in self.features], dtype=np.int64)
        sizes: Ints = np.maximum(self.coefficients @ row, 0)
        return sizes

    @cached_property
    def tensor_of_event(self) -> Ints:
        """The tensor that each event allocates or frees; -1 for empty_cache."""
        born = np.cumsum(self.events == ALLOCATE)
        own = len(self.names) - self.imports
        tensors = np.where(self.events == ALLOCATE, born - 1, born - self.events)
        tensors = np.where(self.events == EMPTY_CACHE, -1, tensors)
        return np.where(self.events <= FIRST_IMPORT, own + FIRST_IMPORT - self.events, tensors)

    @cached_property
    def exported(self) -> tuple[int, ...]:
        """Tensors that outlive the part."""
        freed = set(self.tensor_of_event[self.events != ALLOCATE].tolist())
        return tuple(k for k in range(len(self.names) - self.imports) if k not in freed)

    @cached_property
    def kept(self) -> tuple[tuple[int, str | None, str], ...]:
        """Tensors that outlive the part: number, name, and its component ("" where it is unnamed)."""
        return tuple((k, self.names[k], (self.names[k] or "").partition(":")[0]) for k in self.exported)

    @cached_property
    def flows(self) -> tuple[dict[str, Ints], dict[str, Ints]]:
        """Tensors that stay, and imports that are freed, by component ("" for unnamed ones)."""
        own = len(self.names) - self.imports
        out: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
        for side, tensors in zip(out, (self.exported, range(own, len(self.names))), strict=True):
            for k in tensors:
                side.setdefault((self.names[k] or "").partition(":")[0], []).append(k)
        stays, freed = ({component: np.array(ks) for component, ks in side.items()} for side in out)
        return stays, freed

    def stay_bytes(self, component: str, values: Mapping[str, int]) -> tuple[int, ...]:
        """Bytes of each tensor of a component that outlives the part."""
        return tuple(self.sizes(values)[self.flows[0].get(component, np.array([], dtype=np.int64))].tolist())

    def peak(self, values: Mapping[str, int]) -> tuple[int, str]:
        """(bytes, moment) of the highest peak row: what the part adds to what is resident, without the allocator's rounding."""
        row = {name: feature(name, values) for name in self.features}
        totals = [(sum(c * row[f] for c, f in zip(p.coefficients, self.features, strict=True)), p.moment) for p in self.peaks]
        return max(totals, default=(0, ""))


# Tensors of one linear layer with a bias on the card, by kind of weights (from the recorded tables of residents): weight and bias;
# quanto's 8-bit data, its scale, bias, and two scales of activations; torchao's float8 data, scale and bias; torchao's uint4: bias, data,
# scales, zeros.
TENSORS_OF_LINEAR = {"bf16": 2, "qfloat8": 5, "float8": 3, "uint4": 4}
# Parameters and buffers of it, as the names in the programs of loading count them: a quantised weight is one, of several tensors.
PLACES_OF_LINEAR = {"qfloat8": 4, "float8": 2, "uint4": 4}


@dataclass(frozen=True)
class Profile:
    """An architecture's programs and residents.

    `data["residents"]`: "component" or "component/weights" -> bytes of each tensor, in `.to()` order, as run lengths.
    """

    arch: str
    data: Mapping[str, Any]
    folder: Path

    @cached_property
    def _arrays(self) -> Any:
        return np.load(self.folder / "programs.npz")

    @cached_property
    def _coefficients(self) -> Ints:
        table: Ints = self._arrays["coefficients"].astype(np.int64)
        return table

    @cached_property
    def _programs(self) -> dict[str, Program]:
        return {}

    @cached_property
    def kept(self) -> dict[object, object]:
        """Figures that were computed before (estimator.rows)."""
        return {}

    @property
    def labels(self) -> list[str]:
        return self.data["labels"]  # type: ignore[no-any-return]

    def has(self, key: str) -> bool:
        return key in self.data["parts"]

    @cached_property
    def relative(self) -> Profile | None:
        """The architecture with the same text encoder and VAE, whose recordings of them serve where there is no own one."""
        return load_profile(self.data["relative"]) if self.data.get("relative") else None

    def program(self, key: str) -> Program:
        """The part's program. Raises CannotTell if it was never recorded."""
        if key not in self._programs:
            if key not in self.data["parts"]:
                if self.relative is not None and (key.startswith(SHARED_PARTS) or self._same_update(key)):
                    return self.relative.program(key)
                fix = "record it: see docs/adding_an_architecture.md"
                raise CannotTell(Problem(f"no recording of {key!r} for {self.arch}", None, "this combination was never recorded", fix))
            self._programs[key] = self._read(key)
        return self._programs[key]

    def _same_update(self, key: str) -> bool:
        """An optimizer's step sees only the adapter: it is the relative's where the adapters' tensors are equal in number and size."""
        network = "setup.network/bf16"
        if self.relative is None or not (key.startswith("step.update/") and self.has(network) and self.relative.has(network)):
            return False
        own, other = (p.program(network).stay_bytes("adapter", {"r": 1}) for p in (self, self.relative))
        return own == other

    def _read(self, key: str) -> Program:
        part = self.data["parts"][key]
        number = part["number"]
        table = self._arrays[f"t{number}"].astype(np.int64)
        names = self.data["names"]
        coefficients = self._coefficients[table[:, 0]]
        used = np.flatnonzero(coefficients.any(axis=0)).tolist()  # a part is given only the variables that it depends on
        peaks = tuple(PeakRow(tuple(r["bytes"][c] for c in used), r["moment"]) for r in part["peaks"])
        return Program(
            key, tuple(self.data["features"][c] for c in used), coefficients[:, used], tuple(table[:, 1].tolist()), self.labels,
            tuple(names[n] if n >= 0 else None for n in table[:, 2].tolist()), self._arrays[f"e{number}"].astype(np.int64),
            part["imports"], peaks, part.get("workspace_at", {}),
        )  # fmt: skip

    def resident(self, component: str, weights: str, unquantised: int = 0) -> list[int]:
        """Bytes of each of a component's tensors when it is on the card. Raises CannotTell.

        `unquantised`: so many linear layers at the component's beginning are as in bf16, whatever the kind of weights.
        """
        if unquantised and weights in TENSORS_OF_LINEAR:
            bf16, rest = self.resident(component, "bf16"), self.resident(component, weights)
            return bf16[: unquantised * TENSORS_OF_LINEAR["bf16"]] + rest[unquantised * TENSORS_OF_LINEAR[weights] :]
        table = self.data["residents"]
        for key in (f"{component}/{weights}", component):
            if key in table:
                return [size for size, count in table[key] for _ in range(count)]
        if self.relative is not None and component.startswith(SHARED_COMPONENTS):
            return self.relative.resident(component, weights)
        raise CannotTell(Problem(f"{self.arch}: {component} in {weights} was never recorded", None, "", "choose another quantisation"))

    def has_resident(self, component: str) -> bool:
        return any(key.split("/")[0] == component for key in self.data["residents"])


@cache
def load_profile(arch: str) -> Profile:
    """The profile of an architecture key. Raises CannotTell if there is none."""
    folder = profiles_dir() / arch
    try:
        data = json.loads((folder / "profile.json").read_text())
    except FileNotFoundError:
        raise CannotTell(Problem(f"{arch} has no memory programs yet", None, "", "see `estimate archs`")) from None
    return Profile(arch, data, folder)
