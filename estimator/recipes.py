"""What one linear layer in each of the trainer's own further kinds of weights makes: `profiles/layers.json`.

A recipe says, event by event, what is made and let go of while a layer is quantised (`convert`), where its input has a graph (`train`, and
`backward`), where it has none (`plain`; `few`: of sixteen rows or fewer), and where its weight is asked for (`weight`). Each tensor is a
multiple of one quantity of the layer and what goes through it:

- `w` its weights, `o` its outputs, `o5` its outputs times the fifths of its inputs, rounded up (five codes to a byte); 1;
- `X`, `Y` bytes of its input and its output in bf16, `R` their rows; `X32`, `Y32`, `R32` with rows rounded up to 32 (an int8 product);
  16 and 128 likewise (a product of fp4 values, and its scales).

Recorded from layers of several shapes on the emulated device (calibration.layers); no layer of a model was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from estimator.paths import profiles_dir

SAVED = -1
"""In place of a tensor's number: what an earlier stage made and left (the weight that quantising takes away; what `train` keeps)."""
HALF = 2  # bytes of an element in bf16
PER_BYTE = 5  # ternary codes
FEW_ROWS = 16
"""Rows up to which a layer without a graph takes the kernel for a few (convrot_quant.py: FUSED_GEMV_MAX_M)."""
PADDINGS = (16, 32, 128)
FLOWING = ("X", "Y", "R")


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes: a multiple of a quantity."""

    times: Fraction
    of: str


@dataclass(frozen=True, slots=True)
class Stage:
    """`sizes`: of what is made, in order. `events`: the number of a tensor, and whether it is made (SAVED: see there). `left`: what is
    there when it is over."""

    sizes: tuple[Size, ...]
    events: tuple[tuple[int, bool], ...]
    left: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`buffers`: what of `convert` stays, in the order of `.to()`. `stages`: by name."""

    kind: str
    buffers: tuple[int, ...]
    stages: Mapping[str, Stage]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Bytes of each buffer."""
        return tuple(self.stages["convert"].sizes[number] for number in self.buffers)

    @property
    def rotates(self) -> bool:
        """Whether a layer's weight and its input are multiplied with a rotation (ConvRot)."""
        return self.kind.startswith("convrot")

    @property
    def saves_codes(self) -> bool:
        """Whether a layer keeps its codes for its backward pass, and nothing that it makes of them."""
        return len(self.stages["train"].left) == 1


def quantities(outputs: int, inputs: int, rows: int) -> dict[str, int]:
    """All quantities of a layer and so many rows."""
    out = own_quantities(outputs, inputs)
    for padding in (1, *PADDINGS):
        count, name = -(-rows // padding) * padding, "" if padding == 1 else str(padding)
        out |= {f"X{name}": HALF * count * inputs, f"Y{name}": HALF * count * outputs, f"R{name}": count}
    return {name: out[name] for name in ("w", *(n for n in out if n[0] in FLOWING), "o", "o5", "1")}


def own_quantities(outputs: int, inputs: int) -> dict[str, int]:
    """Those of the layer alone."""
    return {"w": outputs * inputs, "o": outputs, "o5": outputs * -(-inputs // PER_BYTE), "1": 1}


@cache
def load_recipes() -> Mapping[str, Recipe]:
    """All recipes, by kind of weights."""
    data = json.loads((profiles_dir() / "layers.json").read_text())
    return {kind: _read(kind, recipe) for kind, recipe in data.items() if kind != "made"}


def _read(kind: str, data: Mapping[str, Any]) -> Recipe:
    stages = {name: _stage(events) for name, events in data.items() if name != "buffers"}
    return Recipe(kind, tuple(data["buffers"]), stages)


def _stage(written: list[str | int]) -> Stage:
    sizes, events = list[Size](), list[tuple[int, bool]]()
    for event in written:
        if isinstance(event, str):
            times, of = event.split()
            events.append((len(sizes), True))
            sizes.append(Size(Fraction(times), of))
        else:
            events.append((event, False))
    gone = {number for number, born in events if not born}
    return Stage(tuple(sizes), tuple(events), tuple(number for number in range(len(sizes)) if number not in gone))


KINDS = ("nvfp4", "convrot8", *(f"convrotint{bits}" for bits in range(2, 9)), "convrotbitnet", "convrot4")
"""As a config names them; behind a minus stands what the card lacks or has (estimator.kernels)."""


def kind_named(name: str) -> bool:
    """Whether a kind of weights has a recipe, by its name."""
    return name.partition("-")[0] in KINDS and not name.endswith("-recovery")
