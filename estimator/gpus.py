"""The catalogue of cards: capacity, compute capability, what lies outside torch's allocator; and how a user's name finds one.

The data are in `profiles/gpus.yaml`, each number with its source. Names are exact: no part of a name is ever guessed at. Upper and
lower case, spaces, dashes and the makers' prefixes (NVIDIA, GeForce, RTX, ...) do not matter; aliases are listed; a name that
means more than one card is an error that lists them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from estimator.errors import InputError, Problem
from estimator.gpu_catalogue import OSES, canonical, catalogue
from estimator.residual import Residual, Seen

MIB, GIB = 2**20, 2**30
__all__ = ["GIB", "MIB", "OSES", "SAME_CARD", "Calibration", "Gpu", "all_gpus", "find_gpu", "named"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The overlay that a card's figures come from (estimator.overlay): its file, when and with what it was made, and from how many cells.

    `emulated`: no measurement of a real card.
    """

    path: str
    date: str
    driver: str
    torch: str
    emulated: bool
    cells: int
    diffusers: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card. `total_bytes`: capacity as torch reports it (total_memory). The bytes outside the allocator come as low, likely, high.

    `context_*_bytes`: CUDA context, kernels and library handles of the process.
    `desktop_*_bytes`: other processes' share (0 on a headless machine). `os`: "linux" | "windows".
    `source`: where `total_bytes` was read. `notes`: what the user should know about these numbers.
    `residual`: how far this card is from the replay, if it was calibrated; None: the shipped profile holds.
    `workspace_bytes`: torch's cuBLAS workspace of one thread as measured (None: by compute capability). `calibration`: the overlay in use.
    `seen`: the architectures with step cells on it.
    """

    name: str
    total_bytes: int
    compute_capability: str
    context_low_bytes: int
    context_bytes: int
    context_high_bytes: int
    desktop_low_bytes: int = 0
    desktop_bytes: int = 0
    desktop_high_bytes: int = 0
    aliases: tuple[str, ...] = ()
    os: str = "linux"
    source: str = ""
    title: str = ""
    notes: tuple[str, ...] = ()
    residual: Residual | None = None
    workspace_bytes: int | None = None
    calibration: Calibration | None = None
    seen: tuple[Seen, ...] = ()

    @property
    def usable_bytes(self) -> int:
        """What is left for torch's allocator in the likely case: total - context - desktop."""
        return self.total_bytes - self.context_bytes - self.desktop_bytes


# --- finding a card --------------------------------------------------------------------------------------------------------------

CUSTOM_COMPUTE_CAPABILITY = "8.9"
"""Assumed of a card given by its size alone: Ada, the commonest at home. It decides torch's attention kernel and cuBLAS workspaces."""
CUSTOM_CONTEXT = "ada"
"""Context of a card given by its size alone: a key of `contexts`."""
_UNIT_BYTES = {"gib": GIB, "mib": MIB, "gb": 10**9, "mb": 10**6}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *(gib|gb|mib|mb)", re.ASCII)
_NEARLY_SIZE = re.compile(r"\d+(\.\d+)?[a-z]{0,3}", re.ASCII)
_MOST_SHOWN = 80  # characters of what was typed, in messages
_MOST_BYTES = 2**63
_SMALLEST_BYTES, _LARGEST_BYTES = 1 * GIB, 1024 * GIB


def size_bytes(text: str) -> int | None:
    """Bytes of a size with a unit ("32GiB", "24000MiB", "24GB": decimal); None if `text` is none."""
    size = _SIZE.fullmatch(text.strip().lower())
    return None if size is None else _in_bytes(size)


def _in_bytes(size: re.Match[str]) -> int:
    return round(min(float(size[1]) * _UNIT_BYTES[size[2]], _MOST_BYTES))  # hundreds of digits are infinite as a float


def find_gpu(text: str, os: str = "linux") -> Gpu:
    """The card that `text` names, or a card of the size that it gives ("23.5GiB", "24000MiB", "24GB": decimal).

    Raises InputError for an unknown name (with the nearest), one that means several cards (listed), or an impossible size.
    """
    size = _SIZE.fullmatch(text.strip().lower())
    if size is not None:
        return _custom(re.sub(r"^0+(?=\d)", "", text.strip()), _in_bytes(size), size[2], os)
    names = _index().get(canonical(text), ())
    if len(names) == 1:
        return _card(names[0], os)
    if names:
        cards = [_card(name, os) for name in names]
        choices = " or ".join(f"{card.name} ({card.total_bytes / GIB:.2f} GiB)" for card in cards)
        raise _error(f"--gpu {text}: there is more than one card of this name", f"write --gpu {choices}")
    raise _unknown(text)


SAME_CARD = 0.06
"""Capacities of one card differ by less: what the driver keeps depends on driver, system and error correction (catalogue: up to 5 %)."""


def named(device: str, total_bytes: int, os: str = "linux") -> Gpu | None:
    """The card that the driver calls `device`, of this capacity; None where the catalogue has none. Of several sizes the nearest."""
    cards = [_card(name, os) for name in _index().get(canonical(device), ())]
    near = [card for card in cards if abs(card.total_bytes - total_bytes) <= SAME_CARD * card.total_bytes]
    return min(near, key=lambda card: abs(card.total_bytes - total_bytes), default=None)


def all_gpus(os: str = "linux") -> tuple[Gpu, ...]:
    """Every card of the catalogue, smallest first."""
    return tuple(sorted((_card(name, os) for name in catalogue()["cards"]), key=lambda card: (card.total_bytes, card.name)))


def _spellings(name: str, entry: Mapping[str, Any]) -> set[str]:
    """Canonical keys under which a card is found: its name, its aliases, and the name followed by its size."""
    keys = {canonical(spelling) for spelling in (name, *entry["aliases"])}
    return keys | {canonical(f"{name}-{entry['nominal_gb']}G")}


@cache
def _index() -> dict[str, tuple[str, ...]]:
    index: dict[str, tuple[str, ...]] = {}
    for name, entry in catalogue()["cards"].items():
        for key in _spellings(name, entry):
            index[key] = (*index.get(key, ()), name)
    return index


def _unknown(text: str) -> InputError:
    from difflib import get_close_matches  # only wanted when something is wrong

    text = text[:_MOST_SHOWN]

    if _NEARLY_SIZE.fullmatch(text.strip().lower()) and canonical(text) not in _index():
        hint = "for a size write its unit, for example --gpu 23.5GiB or 24000MiB; for a card its name, for example RTX4090"
        return _error(f"--gpu {text}: neither a card nor a size with a unit", hint)
    near: dict[str, None] = {}
    for key in get_close_matches(canonical(text), _index(), n=3, cutoff=0.7):
        near.update(dict.fromkeys(_index()[key]))
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    fix = f"{meant}`estimate gpus` lists all; any other card by its size, for example --gpu 23.5GiB"
    return _error(f"--gpu {text}: not a card of the catalogue", fix)


def _error(what: str, fix: str) -> InputError:
    return InputError(Problem(what, fix=fix))


# --- making a card ---------------------------------------------------------------------------------------------------------------

_WINDOWS_NOTE = (
    "on Windows the driver moves memory to system RAM (half of it at most) instead of failing, unless its CUDA sysmem fallback is "
    "turned off: what is called oom then crawls, or crashes"
)
_NO_WINDOWS_READING = "its capacity was not read on Windows: that on Linux is used, which is a little less"
_LINUX_NOTE = "nothing else runs on the card and it drives no screen; on Windows or WSL2 add --os windows"


@cache
def _card(name: str, os: str) -> Gpu:
    entry = catalogue()["cards"][name]
    on_windows = os == "windows" and "windows_mib" in entry
    source = entry["windows_source" if on_windows else "source"]
    notes = [entry["note"]] if "note" in entry else []
    if source.startswith("nominal"):
        notes.append(f"its capacity was not read on such a card ({source})")
    if os == "windows" and not on_windows:
        notes.append(_NO_WINDOWS_READING)
    return Gpu(
        name=name,
        title=entry["title"],
        total_bytes=entry["windows_mib" if on_windows else "linux_mib"] * MIB,
        compute_capability=entry["cc"],
        aliases=tuple(entry["aliases"]),
        source=source,
        notes=tuple(f"{name}: {note}" for note in notes) + _os_notes(os),
        **_outside(entry["context"], os),
    )


def _custom(text: str, total_bytes: int, unit: str, os: str) -> Gpu:
    if not _SMALLEST_BYTES <= total_bytes <= _LARGEST_BYTES:
        fix = "give its capacity as torch reports it, for example --gpu 23.5GiB"
        raise _error(f"--gpu {text[:_MOST_SHOWN]}: {total_bytes / GIB:.2f} GiB is no card's size", fix)
    assumed = f"compute capability {CUSTOM_COMPUTE_CAPABILITY} and a usual CUDA context are assumed"
    notes = [f"--gpu {text}: {assumed}; a card's name is more exact"]
    if unit in ("gb", "mb"):
        notes.append(
            f"--gpu {text}: read as decimal, {total_bytes / GIB:.2f} GiB. Cards are sold in GB that are nearly GiB: "
            "one of 24 GB reports about 23.5 GiB to torch. Name the card or give GiB to be exact"
        )
    return Gpu(
        name=text,
        title=f"a card of {total_bytes / GIB:.2f} GiB",
        total_bytes=total_bytes,
        compute_capability=CUSTOM_COMPUTE_CAPABILITY,
        source="given on the command line",
        notes=tuple(notes) + _os_notes(os),
        **_outside(CUSTOM_CONTEXT, os),
    )


def _os_notes(os: str) -> tuple[str, ...]:
    return (_WINDOWS_NOTE,) if os == "windows" else (_LINUX_NOTE,)


def _outside(context: str, os: str) -> dict[str, Any]:
    """The fields of Gpu for what lies outside torch's allocator, in bytes."""
    own, others = catalogue()["contexts"][context], catalogue()["desktop"][os]
    return {
        "os": os,
        "context_low_bytes": own["low_mib"] * MIB,
        "context_bytes": own["likely_mib"] * MIB,
        "context_high_bytes": own["high_mib"] * MIB,
        "desktop_low_bytes": others["low_mib"] * MIB,
        "desktop_bytes": others["likely_mib"] * MIB,
        "desktop_high_bytes": others["high_mib"] * MIB,
    }
