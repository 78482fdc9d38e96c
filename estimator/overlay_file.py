"""An overlay as a JSON file: read, checked and written. The format, schema 1, is in docs/cli.md.

A file of the user's own folder may be anything: cut short by a full disk, of a later version, edited by hand, a pipe. All of that is
one refusal that names the file and says what to do; nothing of a bad file is used.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, NoReturn

from estimator.errors import InputError, Problem
from estimator.gpus import GIB, OSES, SAME_CARD, Gpu
from estimator.job import Place
from estimator.overlay import Overlay, Range
from estimator.residual import ANY_PHASE, FIGURES, Interval, Residual, Seen, Spread

SCHEMA = 1
KIND = "vram-preflight overlay"
MOST_BYTES = 256 * 2**10
"""A real one has two kilobytes."""
MOST_TEXT = 300
MADE = ("date", "command", "version", "driver", "torch", "cuda", "python", "allocator_backend", "allocator_settings")
"""Texts that say what made the overlay; further ones are kept."""
MOST_CONTEXT_BYTES = 8 * GIB
MOST_RATIO = 100.0
MOST_SHARE = 1.0
"""A residual of more than the figure itself is no calibration."""
MOST_PHASES = 20
MOST_ARCHS = 100
FIX = "run `estimate calibrate` again, delete the file, or ignore it with --no-overlay"


class _Wrong(Exception):
    """What is wrong inside the file: key and message."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key, self.message = key, message


def read_overlay(path: str) -> Overlay:
    """The overlay in a file. Raises InputError, with one problem, for everything that is not one."""
    try:
        return replace(_overlay(_document(path)), path=path)
    except _Wrong as wrong:
        _fail(path, wrong.key, wrong.message)
    except OSError as error:
        _fail(path, "", f"cannot be read: {error.strerror or error}")


def _fail(path: str, key: str, why: str) -> NoReturn:
    raise InputError(Problem("the calibration overlay cannot be used", Place(path, key), why, FIX)) from None


def _document(path: str) -> dict[str, Any]:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise _Wrong("", "it is no regular file")
    if info.st_size > MOST_BYTES:
        raise _Wrong("", f"{info.st_size} bytes are no overlay's size")
    with open(path, "rb") as file:
        raw = file.read(MOST_BYTES + 1)
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _Wrong("", "it is no UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise _Wrong("", f"it is no JSON: {what}") from None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise _Wrong("kind", f'it must be "{KIND}"')
    if data.get("schema") != SCHEMA or isinstance(data["schema"], bool):
        raise _Wrong("schema", f"this version reads schema {SCHEMA}, the file has {_short(data.get('schema'))}")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None) if len(names) < 200 else "too many keys"
    if twice is not None:
        raise _Wrong(twice[:MOST_TEXT], "written twice")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise _Wrong("", f"{name} is no number here")


def _overlay(data: dict[str, Any]) -> Overlay:
    card, made, rows = (_section(data, name) for name in ("card", "made", "rows"))
    total = _bytes(card, "card.total_bytes", GIB, 1024 * GIB)
    workspace, ratios = _section(data, "workspace"), _section(data, "ratios")
    return Overlay(
        card=_text(card, "card.name", empty=True),
        device=_text(card, "card.device"),
        total_bytes=total,
        compute_capability=_capability(_text(card, "card.compute_capability")),
        os=_one_of(_text(card, "card.os"), "card.os", OSES),
        emulated=_bool(card, "card.emulated"),
        made={**{key: _text(made, f"made.{key}", empty=True) for key in made}, **{key: _text(made, f"made.{key}") for key in MADE}},
        context=_range(_section(data, "context"), "context", 0, min(MOST_CONTEXT_BYTES, total)),
        workspace_bytes=_bytes(workspace, "workspace.cublas_bytes", 0, GIB),
        others_bytes=None if data.get("others_bytes") is None else _bytes(data, "others_bytes", 0, total),
        allocated=_range(_section(ratios, "allocated", "ratios."), "ratios.allocated", 1 / MOST_RATIO, MOST_RATIO, suffix=""),
        reserved=_range(_section(ratios, "reserved", "ratios."), "ratios.reserved", 1 / MOST_RATIO, MOST_RATIO, suffix=""),
        cells=_bytes(ratios, "ratios.cells", 0, 10**6),
        residual=None if data.get("residual") is None else _residual(_section(data, "residual")),
        seen=_seen(_section(data, "seen")) if "seen" in data else (),
        rows={"file": _text(rows, "rows.file"), "sha256": _text(rows, "rows.sha256"), "count": _bytes(rows, "rows.count", 0, 10**9)},
    )


def check_card(overlay: Overlay, gpu: Gpu) -> None:
    """Raises InputError where the overlay is of another card."""
    if overlay.card and overlay.card != gpu.name:
        _fail(overlay.path, "card.name", f"it is of {overlay.card}, not of {gpu.name}")
    if abs(overlay.total_bytes - gpu.total_bytes) > SAME_CARD * gpu.total_bytes:
        sizes = f"{overlay.total_bytes / GIB:.2f} GiB, {gpu.name} has {gpu.total_bytes / GIB:.2f}"
        _fail(overlay.path, "card.total_bytes", f"it is of a card of {sizes}")


def document(overlay: Overlay) -> dict[str, Any]:
    """The overlay as its file has it: `read_overlay` gives the same back."""
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "card": {
            "name": overlay.card, "device": overlay.device, "total_bytes": overlay.total_bytes,
            "compute_capability": overlay.compute_capability, "os": overlay.os, "emulated": overlay.emulated,
        },
        "made": dict(overlay.made),
        "context": {f"{name}_bytes": round(getattr(overlay.context, name)) for name in ("low", "likely", "high")},
        "workspace": {"cublas_bytes": overlay.workspace_bytes},
        "others_bytes": overlay.others_bytes,
        "ratios": {"allocated": _ratios(overlay.allocated), "reserved": _ratios(overlay.reserved), "cells": overlay.cells},
        "residual": None if overlay.residual is None else residual_document(overlay.residual),
        "seen": {one.arch: {"cells": one.cells, **{figure: asdict(getattr(one, figure)) for figure in FIGURES}} for one in overlay.seen},
        "rows": dict(overlay.rows),
    }  # fmt: skip


def residual_document(residual: Residual) -> dict[str, Any]:
    """A residual as an overlay and profiles/residuals.json write it."""
    pixel = residual.cudnn_bytes_per_pixel
    return {
        "source": residual.source,
        "spreads": {
            figure: {phase: asdict(spread) for phase, spread in spreads.items()}
            for figure, spreads in (("allocated", residual.allocated), ("reserved", residual.reserved))
        },
        "cudnn_bytes_per_pixel": [pixel.low_bytes, pixel.likely_bytes, pixel.high_bytes],
    }


def _ratios(given: Range) -> dict[str, float]:
    return {"low": given.low, "likely": given.likely, "high": given.high}


def write_overlay(overlay: Overlay, path: str) -> None:
    """Write the file at once or not at all: a crash or a full disk leaves the old one as it was. Raises InputError."""
    text = json.dumps(document(overlay), indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    unfinished = f"{path}.{os.getpid()}.new"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        why = error.strerror or str(error)
        raise InputError(Problem("the overlay cannot be written", Place(path, ""), why, "name another file with --out")) from None


# --- values of the file ----------------------------------------------------------------------------------------------------------


def _section(data: Mapping[str, Any], name: str, of: str = "") -> dict[str, Any]:
    section = data.get(name)
    if not isinstance(section, dict):
        raise _Wrong(of + name, "missing, or no mapping")
    return section


def _value(section: Mapping[str, Any], path: str) -> Any:
    key = path.rpartition(".")[2]
    if key not in section:
        raise _Wrong(path, "missing")
    return section[key]


def _text(section: Mapping[str, Any], path: str, empty: bool = False) -> str:
    value = _value(section, path)
    if not isinstance(value, str) or len(value) > MOST_TEXT or not (value or empty) or not value.isprintable():
        raise _Wrong(path, f"expected a text of at most {MOST_TEXT} printable characters, got {_short(value)}")
    return value


def _number(section: Mapping[str, Any], path: str, least: float, most: float) -> float:
    value = _value(section, path)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Wrong(path, f"expected a number, got {_short(value)}")
    if not least <= value <= most or not math.isfinite(value):
        raise _Wrong(path, f"{_short(value)} does not lie between {least:g} and {most:g}")
    return value


def _bytes(section: Mapping[str, Any], path: str, least: int, most: int) -> int:
    value = _number(section, path, least, most)
    if not isinstance(value, int):
        raise _Wrong(path, f"expected a whole number, got {_short(value)}")
    return value


def _bool(section: Mapping[str, Any], path: str) -> bool:
    value = _value(section, path)
    if not isinstance(value, bool):
        raise _Wrong(path, f"expected true or false, got {_short(value)}")
    return value


def _one_of(value: str, path: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise _Wrong(path, f"expected {' or '.join(choices)}, got {_short(value)}")
    return value


def _capability(value: str) -> str:
    major, _, minor = value.partition(".")
    if not (value.isascii() and major.isdigit() and minor.isdigit() and len(value) <= 5):
        raise _Wrong("card.compute_capability", f"expected one such as 8.9, got {_short(value)}")
    return value


def _range(section: Mapping[str, Any], path: str, least: float, most: float, suffix: str = "_bytes") -> Range:
    low, likely, high = (_number(section, f"{path}.{name}{suffix}", least, most) for name in ("low", "likely", "high"))
    if not low <= likely <= high:
        raise _Wrong(path, "low, likely and high must rise")
    return Range(low, likely, high)


def _residual(section: Mapping[str, Any]) -> Residual:
    spreads = _section(section, "spreads", "residual.")
    both: list[dict[str, Spread]] = []
    for figure in FIGURES:
        phases = _section(spreads, figure, "residual.spreads.")
        if ANY_PHASE not in phases or len(phases) > MOST_PHASES:
            raise _Wrong(f"residual.spreads.{figure}", f'must have "{ANY_PHASE}", and at most {MOST_PHASES} phases')
        both.append({phase: _spread(phases, phase, f"residual.spreads.{figure}.{phase}") for phase in phases})
    pixel = section.get("cudnn_bytes_per_pixel")
    if not isinstance(pixel, list) or len(pixel) != 3:
        raise _Wrong("residual.cudnn_bytes_per_pixel", "expected a list of low, likely and high")
    ends = dict(zip(("low_bytes", "likely_bytes", "high_bytes"), pixel, strict=True))
    found = _range(ends, "residual.cudnn_bytes_per_pixel", 0, 2**20)
    per_pixel = Interval(round(found.low), round(found.likely), round(found.high))
    return Residual(both[0], both[1], per_pixel, _text(section, "residual.source"))


def _seen(section: Mapping[str, Any]) -> tuple[Seen, ...]:
    """An overlay of an earlier version has none."""
    if len(section) > MOST_ARCHS:
        raise _Wrong("seen", f"at most {MOST_ARCHS} architectures")
    out = []
    for arch in section:
        path = f"seen.{arch[:MOST_TEXT]}"
        one = _section(section, arch, "seen.")
        spreads = [_spread(one, figure, f"{path}.{figure}") for figure in FIGURES if figure in one]
        if len(spreads) != len(FIGURES):
            raise _Wrong(path, "a spread is missing")
        out.append(Seen(arch, _bytes(one, f"{path}.cells", 1, 10**6), *spreads))
    return tuple(out)


def _spread(phases: Mapping[str, Any], phase: str, path: str) -> Spread:
    one = phases[phase]
    if not isinstance(one, dict) or not phase.isidentifier() or set(one) != {each.name for each in fields(Spread)}:
        raise _Wrong(path[:MOST_TEXT], "no spread of a phase")
    low, high = (_number(one, f"{path}.{name}", 0, MOST_SHARE) for name in ("low_share", "high_share"))
    fewer, more = (_bytes(one, f"{path}.{name}", 0, MOST_CONTEXT_BYTES) for name in ("low_bytes", "high_bytes"))
    bias = _number(one, f"{path}.share", -MOST_SHARE, MOST_SHARE)
    return Spread(low, high, fewer, more, bias, _bytes(one, f"{path}.added_bytes", -MOST_CONTEXT_BYTES, MOST_CONTEXT_BYTES))


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
