"""What a user can do where a part was never recorded, as far as there are words for it: keys of parts are the program's own."""

from __future__ import annotations

from collections.abc import Iterable

from estimator.errors import Problem

MOST_NAMED = 6  # parts that a refusal names
# Of a key: the head of a step whose latents are not cached; with several of them; of clips of two latent frames
_HEAD, _MANY, _TWO = "step.head/encoded/", "/many/", "/two"
NOT_RECORDED = "this combination was never recorded"


def problem(key: str, arch: str, parts: Iterable[str]) -> Problem:
    """That a part was never recorded. `parts`: the keys of those that were."""
    if key.startswith(_HEAD) and key.endswith(_TWO):
        several = "several in a batch" if _MANY in key else "one in a batch"
        what = f"clips of 5 to 8 frames ({several}) that are encoded in the step: no such step of {arch} was recorded"
        return Problem(what, None, "", "set cache_latents_to_disk: true in the dataset, or num_frames: 9 or more")
    alike = [mine for mine in parts if mine.split("/")[0] == key.split("/")[0]]
    known = f"of its kind are {', '.join(alike[:MOST_NAMED])}{' and more' * (len(alike) > MOST_NAMED)}; " if alike else ""
    return Problem(f"no recording of {key!r} for {arch}", None, NOT_RECORDED, f"{known}to record it: docs/adding_an_architecture.md")
