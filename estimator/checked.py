"""How far each architecture was checked: profiles/checked.json, made of calibration/data by `python -m calibration.checked`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from estimator.paths import profiles_dir

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Checked:
    """What the estimates of one architecture were held against.

    `runs`: whole runs of the trainer on the emulated device, none of them used to make its profile; `phases` of them; `outside`: how many
    phases miss the bars (1 % allocated, 2 % reserved). `worst_allocated`, `worst_reserved`: the largest error of any phase by size, a share
    of the run's figure, positive where the estimate is higher. `published`: rows of real cards that were judged.
    """

    runs: int = 0
    phases: int = 0
    outside: int = 0
    worst_allocated: float | None = None
    worst_reserved: float | None = None
    published: int = 0


NOTHING = Checked()


@dataclass(frozen=True, slots=True)
class ArchRow:
    """An architecture as lists show it. `trained_as`: values of the trainer's model.arch that can mean it."""

    key: str
    name: str
    modelled: bool
    trained_as: tuple[str, ...]
    checked: Checked


@dataclass(frozen=True, slots=True)
class TrainerRow:
    """A value of the trainer's model.arch. `archs`: the modelled architectures it can mean; `nearest`: if none is, a relative."""

    key: str
    name: str
    archs: tuple[str, ...]
    nearest: str | None


@cache
def load_checked() -> Mapping[str, Checked]:
    """By architecture; what is not there was never checked. KeyError or ValueError where the file is not as it must be: our mistake."""
    raw = json.loads((profiles_dir() / "checked.json").read_text(encoding="utf-8"))
    if raw["schema"] != SCHEMA:
        raise ValueError(f"checked.json: schema {raw['schema']}, this version reads {SCHEMA}")
    return {key: Checked(**fields) for key, fields in raw["archs"].items()}
