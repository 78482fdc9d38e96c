"""Where overlays are: JSON files in the user's config folder, named after their cards; the one of a card is found and applied.

Where nothing was ever calibrated that costs one call of the system. What a file may hold is in `estimator.overlay_file`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from estimator.gpus import Gpu

FOLDER = "vram-preflight"
SUFFIX = ".overlay.json"


def overlays_dir() -> str:
    """The user's folder of overlays: %APPDATA% on Windows, Library/Application Support on macOS, else $XDG_CONFIG_HOME or ~/.config.

    XDG_CONFIG_HOME counts everywhere if it is an absolute path, as its specification says.
    """
    xdg = os.environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(xdg):
        base = xdg
    elif sys.platform == "win32":
        base = os.environ.get("APPDATA") or os.path.expanduser(r"~\AppData\Roaming")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Application Support")
    else:
        base = os.path.expanduser("~/.config")
    return os.path.join(base, FOLDER)


def file_name(card: str) -> str:
    """The overlay's file for a card's name: letters, digits and dashes, so that every file system has it."""
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in card).strip("-").lower() + SUFFIX


def with_overlay(gpu: Gpu, path: str | None = None) -> Gpu:
    """The card as it was calibrated; unchanged where it never was. `path`: this overlay, instead of the one in the user's folder.

    Raises InputError for a file that is no overlay, or (with `path`) one of another card.
    """
    found = path if path is not None else _of_card(gpu.name)
    if found is None:
        return gpu
    from estimator.overlay import applied
    from estimator.overlay_file import check_card, read_overlay

    overlay = read_overlay(found)
    if path is None and overlay.os != gpu.os:
        return replace(gpu, notes=(*gpu.notes, f"{gpu.name}: its overlay was made on {overlay.os} and is not used for {gpu.os}"))
    check_card(overlay, gpu)
    return applied(gpu, overlay)


_listed: dict[str, frozenset[str]] = {}
"""Names in the folder, so that a comparison of all cards asks the system once."""


def _of_card(name: str) -> str | None:
    folder = overlays_dir()
    if folder not in _listed:
        try:
            _listed[folder] = frozenset(os.listdir(folder))
        except OSError:  # not there: nothing was ever calibrated
            _listed[folder] = frozenset()
    file = file_name(name)
    return os.path.join(folder, file) if file in _listed[folder] else None
