"""profiles/gpus.yaml, read and validated: every key known and of its type, every reference resolved, no name used twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from estimator.paths import profiles_dir

OSES = ("linux", "windows")
_PREFIXES = ("nvidia", "tesla", "geforce", "quadro", "rtx")


class CatalogueError(Exception):
    """profiles/gpus.yaml is not as it must be: a bug of this package. Carries every problem found, one a line."""


def canonical(text: str) -> str:
    """A card's name without what does not matter: case, spaces, dashes, makers' prefixes, the B of GB.

    >>> canonical("NVIDIA GeForce RTX 4090") == canonical("rtx4090") == "4090"
    True
    """
    key = re.sub(r"[^a-z0-9]", "", text.lower())
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return re.sub(r"(\d)gi?b$", r"\1g", key)


_RANGE_KEYS: Mapping[str, type] = {"low_mib": int, "likely_mib": int, "high_mib": int, "source": str}
_CARD_KEYS: Mapping[str, type] = {
    "title": str, "linux_mib": int, "cc": str, "nominal_gb": int, "context": str, "aliases": list, "source": str,
}  # fmt: skip
_CARD_OPTIONAL: Mapping[str, type] = {"windows_mib": int, "windows_source": str, "note": str}


@cache
def catalogue() -> dict[str, Any]:
    """The shipped catalogue: contexts, desktop, cards. Raises CatalogueError."""
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
        raw = yaml.load(text, Loader)  # a subclass of the safe loader
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
    owners = {canonical(name): name for name in cards}
    if len(owners) < len(cards):
        yield "cards: two names that differ only in case, spaces or dashes"
    for name, entry in cards.items():
        for alias in entry.get("aliases", ()) if isinstance(entry, dict) else ():
            if owners.get(canonical(str(alias)), name) != name:
                yield f"cards.{name}.aliases: {alias} is the name of another card"
