"""Peak rows: of all running totals of a program, the few that can be the highest, each with the moment it stands for.

A running total is affine too. Those are kept that are the highest somewhere: on a grid over the domain of jobs, or at one of many
jobs drawn from it (always the same ones), which find what is the highest in a narrow band between the grid's points.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from random import Random

import numpy as np

from estimator.controls import CELL
from estimator.features import SPECTRUM_PER_TOKEN, feature
from estimator.program import ALLOCATE, EMPTY_CACHE, Program

DOMAIN = {
    "B": (1, 2, 3, 4, 8, 16), "T": (64, 256, 576, 1024, 1551, 2304, 4096, 6400, 9216, 16384), "X": (16, 77, 160, 300, 512),
    "r": (1, 4, 16, 32, 64, 128, 256),
}  # fmt: skip
IMAGE_CELLS = (180, 400, 600, 1400)  # of the control images of a text, which are tokens beside its own
CONVOLVED = (0.5, 1, 0.25, 2)  # rank of the adapter on convolutions, in ranks of the others; the first is the web UI's
FACTORS = (4, 8, 16, 32, -1)  # of a LoKr, which has no rank: those that the trainer's web UI offers
CLIP, FRAMES = {"A", "F", "K", "T128", "O", "O128", "M"}, (1, 2, 3, 5, 9, 21, 31)  # only video has them; latent frames, T is of one
SOUND_OF_LATENT = 8  # tokens of sound to a latent frame of LTX-2: 8 frames of 24 a second, 25 tokens
DRAWN, SEED, BLOCK, PADDED = 8192, 20, 512, 0.5  # jobs between the grid's points
LONGEST_TO_SHORTEST, SHORTEST_TOKENS = 4, 9  # edges of an image; a prompt that is empty but for a template

Row = tuple[tuple[int, ...], str]


def peak_rows(program: Program) -> list[Row]:
    """(coefficients over the program's features, moment) of each row that can be the highest; none for a part that allocates nothing."""
    totals, labels = running_totals(program)
    if not len(totals):
        return []
    unique, first = np.unique(totals, axis=0, return_index=True)
    points = _points(program.features)
    best = np.zeros(len(unique), dtype=bool)
    for start in range(0, len(points), BLOCK):  # the memory of one block, not of the whole product
        totals_there = unique.astype(np.float64) @ points[start : start + BLOCK].T.astype(np.float64)
        # of equal rows the first, however the last bits of a product come out; totals are whole numbers
        best[np.unique((totals_there > totals_there.max(axis=0) - 0.5).argmax(axis=0))] = True
    return [(tuple(unique[k].tolist()), program.moments[labels[first[k]]]) for k in np.flatnonzero(best)]


def running_totals(program: Program) -> tuple[np.ndarray, list[int]]:
    """Totals after each allocation, as coefficients, and the label of the tensor allocated there."""
    events, tensors = program.events, program.tensor_of_event
    signs = np.where(events == ALLOCATE, 1, np.where(events == EMPTY_CACHE, 0, -1))
    rows = np.vstack([program.coefficients, np.zeros((1, len(program.features)), dtype=np.int64)])[tensors]
    at = np.flatnonzero(events == ALLOCATE)
    return np.cumsum(rows * signs[:, None], axis=0)[at], [program.labels[k] for k in tensors[at]]


def _points(features: tuple[str, ...]) -> np.ndarray:
    """The values of features in each job of the domain [jobs, features]."""
    factors = {factor for name in features for factor in name.split("*")}
    jobs = _jobs(not factors.isdisjoint(CLIP), "I" in factors, any(name.startswith("kron") for name in factors))
    count = len(jobs["T"])
    return np.unique(np.stack([np.broadcast_to(feature(name, jobs), count) for name in features], axis=1), axis=0)


@cache
def _jobs(clip: bool, images: bool, factored: bool) -> dict[str, np.ndarray]:
    jobs = [*_grid(clip, images, factored), *_drawn(clip, images, factored)]
    return {name: np.array([job[name] for job in jobs], dtype=np.int64) for name in jobs[0]}


def _grid(clip: bool, images: bool, factored: bool) -> Iterator[dict[str, int]]:
    domain = {**DOMAIN, **({"F": FRAMES} if clip else {}), **({"I": IMAGE_CELLS} if images else {})}
    domain |= {"r": (1,), "f": FACTORS} if factored else {}
    for values in product(*domain.values()):
        given = dict(zip(domain, values, strict=True))
        yield _completed({**given, "E": 2 * int(given["T"] ** 0.5), "N": given["X"]})


def _drawn(clip: bool, images: bool, factored: bool) -> Iterator[dict[str, int]]:
    """Jobs of any shape, the two prompts apart. Of every two one in which small ones are as often as large ones, and one of any batch and
    rank alike, half of whose prompts are as long as padded ones: with large adapters some rows are the highest in narrow bands."""
    random, longest = Random(SEED), DOMAIN["X"][-1]
    for number in range(DRAWN):
        draw = _between if number % 2 else _evenly
        area, ratio = _between(random, DOMAIN["T"]), _between(random, (1, LONGEST_TO_SHORTEST))
        long, short = max(round((area * ratio) ** 0.5), 1), max(round((area / ratio) ** 0.5), 1)
        given = {"T": long * short, "E": long + short, "B": round(draw(random, DOMAIN["B"])), "r": round(draw(random, DOMAIN["r"]))}
        given |= {name: round(_between(random, (SHORTEST_TOKENS, longest))) for name in "XN"}
        if draw is _evenly and random.random() < PADDED:
            given |= {"X": longest, "N": longest}
        frames, cells = round(_between(random, FRAMES)), round(_between(random, IMAGE_CELLS))
        given |= {"f": FACTORS[number // 2 % len(FACTORS)]} if factored else {}
        yield _completed({**given, **({"F": frames} if clip else {}), **({"I": cells} if images else {})})


def _between(random: Random, bounds: tuple[int, ...]) -> float:
    """Between the first and the last, evenly in the logarithm."""
    low, high = bounds[0], bounds[-1]
    return float(low * (high / low) ** random.random())


def _evenly(random: Random, bounds: tuple[int, ...]) -> float:
    return random.uniform(bounds[0], bounds[-1])


def _completed(given: dict[str, int]) -> dict[str, int]:
    """With what follows: `T` was of one frame, `X` without the cells of images."""
    frames = given.setdefault("F", 1)
    given["A"] = given["T"]
    given["T"] *= frames
    given["X"] += given.get("I", 0)
    given["Ib"] = given.get("I", 0)
    given["R"] = given["Ib"] * CELL**2
    given["O"] = max(1, (frames - 1) * SOUND_OF_LATENT + 1)
    given["M"] = SPECTRUM_PER_TOKEN * given["O"]
    given["K"] = max(frames - 2, 1)  # the last of the chunks that are alike
    given["u"], given["v"] = (-(-given["A"] // shares) for shares in (4, 16))  # of a UNet's levels, sides that are no multiples left out
    given["c"] = max(1, round(given.get("r", 1) * CONVOLVED[given["A"] % len(CONVOLVED)]))
    return given
