"""What it means to a user that a part was never recorded, as far as there are words for it: keys of parts are the program's own."""

from __future__ import annotations

from collections.abc import Iterable

from estimator.errors import Problem

MOST_NAMED = 6  # parts that a refusal names
_HEAD, _TWO = "step.head/encoded/", "/two"  # of a key: the head of a step with latents that are not cached; a clip of two latent frames
TWO_FRAMES = "clips of two latent frames (5 to 8 frames) whose latents are not cached: cache them, or take more frames"
NOT_RECORDED = "this combination was never recorded"


def meaning(key: str) -> str:
    """Of a part's key."""
    return TWO_FRAMES if key.startswith(_HEAD) and key.endswith(_TWO) else NOT_RECORDED


def problem(key: str, arch: str, parts: Iterable[str]) -> Problem:
    """That a part was never recorded. `parts`: the keys of those that were."""
    alike = [mine for mine in parts if mine.split("/")[0] == key.split("/")[0]]
    known = f"of its kind are {', '.join(alike[:MOST_NAMED])}{' and more' * (len(alike) > MOST_NAMED)}; " if alike else ""
    return Problem(f"no recording of {key!r} for {arch}", None, meaning(key), f"{known}to record it: docs/adding_an_architecture.md")
