"""The catalogue of cards: capacity, compute capability, what lies outside torch's allocator; and how a user's name finds one.

The data are in `profiles/gpus.yaml`, each number with its source. Names are exact: no part of a name is ever guessed at. Upper and
lower case, spaces, dashes and the makers' prefixes (NVIDIA, GeForce, RTX, ...) do not matter; aliases are listed; a name that
means more than one card is an error that lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

from estimator.errors import InputError, Problem
from estimator.paths import profiles_dir

MIB, GIB = 2**20, 2**30
OSES = ("linux", "windows")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card. `total_bytes`: capacity as torch reports it (total_memory). The bytes outside the allocator come as low, likely, high.

    `context_*_bytes`: CUDA context, kernels and library handles of the process. `desktop_*_bytes`: other processes' share (0 on a headless machine).
    `os`: "linux" | "windows". `source`: where `total_bytes` was read. `notes`: what the user should know about these numbers.
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

    @property
    def usable_bytes(self) -> int:
        """What is left for torch's allocator in the likely case: total - context - desktop."""
        return self.total_bytes - self.context_bytes - self.desktop_bytes


class CatalogueError(Exception):
    """profiles/gpus.yaml is not as it must be: a bug of this package. Carries every problem found, one a line."""


# --- finding a card --------------------------------------------------------------------------------------------------------------

CUSTOM_COMPUTE_CAPABILITY = "8.9"
"""Assumed of a card given by its size alone: Ada, the commonest at home. It decides torch's attention kernel and cuBLAS workspaces."""
CUSTOM_CONTEXT = "ada"
"""Context of a card given by its size alone: a key of `contexts`."""
_UNIT_BYTES = {"gib": GIB, "mib": MIB, "gb": 10**9, "mb": 10**6}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *(gib|gb|mib|mb)", re.ASCII)
_NEARLY_SIZE = re.compile(r"\d+(\.\d+)?[a-z]{0,3}", re.ASCII)
_SMALLEST_BYTES, _LARGEST_BYTES = 1 * GIB, 1024 * GIB
_PREFIXES = ("nvidia", "tesla", "geforce", "quadro", "rtx")


def find_gpu(text: str, os: str = "linux") -> Gpu:
    """The card that `text` names, or a card of the size that it gives ("23.5GiB", "24000MiB", "24GB": decimal).

    Raises InputError for an unknown name (with the nearest), one that means several cards (listed), or an impossible size.
    """
    size = _SIZE.fullmatch(text.strip().lower())
    if size is not None:
        return _custom(text.strip(), round(float(size[1]) * _UNIT_BYTES[size[2]]), size[2], os)
    names = _index().get(_canonical(text), ())
    if len(names) == 1:
        return _card(names[0], os)
    if names:
        cards = [_card(name, os) for name in names]
        choices = " or ".join(f"{card.name} ({card.total_bytes / GIB:.2f} GiB)" for card in cards)
        _fail(f"--gpu {text}: there is more than one card of this name", f"write --gpu {choices}")
    _unknown(text)


def all_gpus(os: str = "linux") -> tuple[Gpu, ...]:
    """Every card of the catalogue, smallest first."""
    return tuple(sorted((_card(name, os) for name in _catalogue()["cards"]), key=lambda card: (card.total_bytes, card.name)))


def _canonical(text: str) -> str:
    """A name without what does not matter: case, spaces, dashes, makers' prefixes, the B of GB."""
    key = re.sub(r"[^a-z0-9]", "", text.lower())
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return re.sub(r"(\d)gi?b$", r"\1g", key)


def _spellings(name: str, entry: Mapping[str, Any]) -> set[str]:
    """Canonical keys under which a card is found: its name, its aliases, and the name followed by its size."""
    keys = {_canonical(spelling) for spelling in (name, *entry["aliases"])}
    return keys | {_canonical(f"{name}-{entry['nominal_gb']}G")}


@cache
def _index() -> dict[str, tuple[str, ...]]:
    index: dict[str, tuple[str, ...]] = {}
    for name, entry in _catalogue()["cards"].items():
        for key in _spellings(name, entry):
            index[key] = (*index.get(key, ()), name)
    return index


def _unknown(text: str) -> NoReturn:
    from difflib import get_close_matches  # only wanted when something is wrong

    if _NEARLY_SIZE.fullmatch(text.strip().lower()) and _canonical(text) not in _index():
        hint = "for a size write its unit, for example --gpu 23.5GiB or 24000MiB; for a card its name, for example RTX4090"
        _fail(f"--gpu {text}: neither a card nor a size with a unit", hint)
    near: dict[str, None] = {}
    for key in get_close_matches(_canonical(text), _index(), n=3, cutoff=0.5):
        near.update(dict.fromkeys(_index()[key]))
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    _fail(f"--gpu {text}: not a card of the catalogue", f"{meant}`estimate gpus` lists all; any other card by its size, for example --gpu 23.5GiB")


def _fail(what: str, fix: str) -> NoReturn:
    raise InputError(Problem(what, fix=fix))


# --- making a card ---------------------------------------------------------------------------------------------------------------

_WINDOWS_NOTE = (
    "on Windows the driver moves memory to system RAM instead of failing: where this says OOM the run may crawl instead of crashing"
)
_NO_WINDOWS_READING = "its capacity was not read on Windows: that on Linux is used, which is a little less"
_LINUX_NOTE = "nothing else runs on the card and it drives no screen; on Windows or WSL2 add --os windows"


@cache
def _card(name: str, os: str) -> Gpu:
    entry = _catalogue()["cards"][name]
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
        _fail(f"--gpu {text}: {total_bytes / GIB:.2f} GiB is no card's size", "give its capacity as torch reports it, for example --gpu 23.5GiB")
    notes = [f"--gpu {text}: compute capability {CUSTOM_COMPUTE_CAPABILITY} and a usual CUDA context are assumed; a card's name is more exact"]
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
    own, others = _catalogue()["contexts"][context], _catalogue()["desktop"][os]
    return {
        "os": os,
        "context_low_bytes": own["low_mib"] * MIB,
        "context_bytes": own["likely_mib"] * MIB,
        "context_high_bytes": own["high_mib"] * MIB,
        "desktop_low_bytes": others["low_mib"] * MIB,
        "desktop_bytes": others["likely_mib"] * MIB,
        "desktop_high_bytes": others["high_mib"] * MIB,
    }


# --- loading ---------------------------------------------------------------------------------------------------------------------

_RANGE_KEYS: Mapping[str, type] = {"low_mib": int, "likely_mib": int, "high_mib": int, "source": str}
_CARD_KEYS: Mapping[str, type] = {"title": str, "linux_mib": int, "cc": str, "nominal_gb": int, "context": str, "aliases": list, "source": str}
_CARD_OPTIONAL: Mapping[str, type] = {"windows_mib": int, "windows_source": str, "note": str}


@cache
def _catalogue() -> dict[str, Any]:
    path = profiles_dir() / "gpus.yaml"
    return parse_catalogue(path.read_text(encoding="utf-8"))


def parse_catalogue(text: str) -> dict[str, Any]:
    """The catalogue's text, validated: every key known and of its type, every reference resolved, no name used twice.

    Raises CatalogueError with all problems.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where it is there: a third of the time

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                raise CatalogueError(f"line {node.start_mark.line + 1}: written twice: {', '.join(twice)}")
            return dict(super().construct_mapping(node, deep=deep))

    try:
        raw = yaml.load(text, Loader)  # noqa: S506 - a subclass of the safe loader
    except yaml.YAMLError as error:
        raise CatalogueError(str(error)) from None
    problems = list(_problems(raw))
    if problems:
        raise CatalogueError("\n".join(problems))
    return dict(raw)


def _problems(raw: Any) -> Iterable[str]:
    if not isinstance(raw, dict) or set(raw) != {"schema", "contexts", "desktop", "cards"} or raw["schema"] != 1:
        yield "gpus.yaml: must have schema (1), contexts, desktop and cards"
        return
    for section in ("contexts", "desktop"):
        for name, entry in raw[section].items():
            yield from _range_problems(f"{section}.{name}", entry)
    if set(raw["desktop"]) != set(OSES):
        yield f"desktop: must have {' and '.join(OSES)}"
    for name, entry in raw["cards"].items():
        yield from _card_problems(f"cards.{name}", entry, raw["contexts"])
    yield from _name_problems(raw["cards"])


def _key_problems(where: str, entry: Any, required: Mapping[str, type], optional: Mapping[str, type]) -> Iterable[str]:
    if not isinstance(entry, dict):
        yield f"{where}: expected a mapping, got {entry!r}"
        return
    for key in entry.keys() - required.keys() - optional.keys():
        yield f"{where}.{key}: unknown key"
    for key in required.keys() - entry.keys():
        yield f"{where}.{key}: missing"
    for key, kind in (*required.items(), *optional.items()):
        if key in entry and type(entry[key]) is not kind:  # exact: True is no count
            yield f"{where}.{key}: expected {kind.__name__}, got {entry[key]!r}"


def _range_problems(where: str, entry: Any) -> Iterable[str]:
    problems = list(_key_problems(where, entry, _RANGE_KEYS, {}))
    yield from problems
    if not problems and not 0 <= entry["low_mib"] <= entry["likely_mib"] <= entry["high_mib"] < 8192:
        yield f"{where}: low, likely and high must rise and lie in 0 to 8191 MiB"


def _card_problems(where: str, entry: Any, contexts: Mapping[str, Any]) -> Iterable[str]:
    problems = list(_key_problems(where, entry, _CARD_KEYS, _CARD_OPTIONAL))
    yield from problems
    if problems:
        return
    if entry["context"] not in contexts:
        yield f"{where}.context: no such context: {entry['context']}"
    if not re.fullmatch(r"\d{1,2}\.\d", entry["cc"]):
        yield f"{where}.cc: not a compute capability: {entry['cc']!r}"
    sold = entry["nominal_gb"] * 1024
    if not 0.85 * sold < entry["linux_mib"] <= 1.02 * sold:  # 1.02: the B200 is sold as 180 GB by some
        yield f"{where}.linux_mib: {entry['linux_mib']} MiB does not fit a card sold as {entry['nominal_gb']} GB"
    if not entry["linux_mib"] <= entry.get("windows_mib", sold) <= 1.02 * sold:
        yield f"{where}.windows_mib: must lie between the capacity on Linux and the nominal one"
    if ("windows_mib" in entry) != ("windows_source" in entry):
        yield f"{where}: windows_mib and windows_source come together"
    if not entry["source"] or not all(isinstance(alias, str) and alias for alias in entry["aliases"]):
        yield f"{where}: an empty source or alias"


def _name_problems(cards: Mapping[str, Any]) -> Iterable[str]:
    """No card's name may be another's name or alias: an exact name must always find its card."""
    owners = {_canonical(name): name for name in cards}
    if len(owners) < len(cards):
        yield "cards: two names that differ only in case, spaces or dashes"
    for name, entry in cards.items():
        for alias in entry.get("aliases", ()) if isinstance(entry, dict) else ():
            if owners.get(_canonical(str(alias)), name) != name:
                yield f"cards.{name}.aliases: {alias} is the name of another card"
