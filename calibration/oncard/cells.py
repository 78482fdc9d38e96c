"""Cells: the small runs that a calibration is made of, and which to make. Pure; needs no torch.

A *step* cell is one training step of a transformer with few blocks; a *vae* cell encodes one image, a *decode* cell decodes one;
*context* and *limit* are of the card itself. Of the step cells that fit, those are taken whose peaks are made of the features in the most
different proportions (a greedy D-optimal design): together they tell apart which feature a difference between measured and
predicted belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from calibration.oncard.families import FAMILIES
from calibration.oncard.reduced import contributions, weights_bytes

CONTEXT, STEP, VAE, DECODE, LIMIT = "context", "step", "vae", "decode", "limit"
OF_IMAGES = (VAE, DECODE)
SIZES = ((512, 512), (768, 768), (832, 1216), (1024, 1024), (1344, 768))
RANKS = (8, 32, 64)
BATCHES = (1, 2)
VAE_SIZES = ((512, 512), (1024, 1024), (1344, 768))
STEPS_PER_ARCH = 8
MOST_OF_CARD = 0.85
"""Step cells are chosen to fit by prediction with this share of the card: what they are to find out may be more than predicted."""
RIDGE = 1e-3
"""Added to the information matrix, so that the first cells have a volume to enlarge."""


@dataclass(frozen=True, order=True)
class Cell:
    """One run. `depth`: blocks of each list of the transformer; `text`: text tokens. Of cells of images only the size counts."""

    part: str
    arch: str = ""
    depth: tuple[int, ...] = ()
    width: int = 0
    height: int = 0
    batch: int = 1
    rank: int = 0
    text: int = 0
    checkpointing: bool = True

    @property
    def key(self) -> str:
        """The memory program of the cell, or how its key begins: the decoder is a part of every preview."""
        if self.part in OF_IMAGES:
            return "cache_latents.item" if self.part == VAE else "preview/bf16/"
        return f"step.core/bf16/{'checkpointed' if self.checkpointing else 'full'}/{'one' if self.batch == 1 else 'many'}"

    @property
    def name(self) -> str:
        """Its name in rows: stable, so that an interrupted calibration knows what it has."""
        if self.part in (CONTEXT, LIMIT):
            return self.part
        size = f"{self.arch}/{self.part}/{self.width}x{self.height}"
        if self.part in OF_IMAGES:
            return size
        depth = "+".join(map(str, self.depth))
        return f"{size}/depth {depth}/batch {self.batch}/rank {self.rank}/{'checkpointed' if self.checkpointing else 'full'}"

    def as_row(self) -> dict[str, object]:
        """The cell as a row of the file, or a request to the worker, has it."""
        return {
            "part": self.part, "arch": self.arch, "depth": list(self.depth), "width": self.width, "height": self.height,
            "batch": self.batch, "rank": self.rank, "text": self.text, "checkpointing": self.checkpointing,
        }  # fmt: skip


def of_row(row: Mapping[str, object]) -> Cell:
    """The cell that a row is of."""
    values = {name: row[name] for name in Cell.__dataclass_fields__ if name in row}
    return Cell(**{**values, "depth": tuple(row["depth"])})  # type: ignore[arg-type]


def candidates(arch: str) -> list[Cell]:
    """All step cells of an architecture, in a fixed order."""
    family = FAMILIES[arch]
    made = product(family.cell_depths, SIZES, BATCHES, RANKS, (True, False))
    return [Cell(STEP, arch, depth, w, h, batch, rank, family.text, ck) for depth, (w, h), batch, rank, ck in made]


def choose(cells: Sequence[Cell], rows: Sequence[Mapping[str, float]], count: int) -> list[Cell]:
    """So many of the cells, the most informative first: each adds most to log det of the sum of x x', x a cell's shares by feature."""
    features = sorted({name for row in rows for name in row})
    shares = np.array([[row.get(name, 0.0) for name in features] for row in rows], dtype=float).reshape(len(cells), -1)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
    information, left, chosen = RIDGE * np.eye(shares.shape[1]), list(range(len(cells))), list[Cell]()
    while left and len(chosen) < count:
        gains = np.einsum("ij,jk,ik->i", shares[left], np.linalg.inv(information), shares[left])
        best = left.pop(int(gains.round(9).argmax()))
        information += np.outer(shares[best], shares[best])
        chosen.append(cells[best])
    return chosen


def fits(cell: Cell, free_bytes: int) -> bool:
    """Whether weights and activations of a step cell are predicted to fit with room to spare."""
    return weights_bytes(cell.arch, cell.depth) + sum(contributions(cell).values()) <= MOST_OF_CARD * free_bytes


def plan(archs: Iterable[str], free_bytes: int, steps: int = STEPS_PER_ARCH) -> tuple[Cell, ...]:
    """The cells of a calibration in order: the context, each architecture's, the limit last, which disturbs all else."""
    cells = [Cell(CONTEXT)]
    for arch in archs:
        possible = [cell for cell in candidates(arch) if fits(cell, free_bytes)]
        cells += choose(possible, [contributions(cell) for cell in possible], steps)
        cells += [Cell(part, arch, width=width, height=height) for part in OF_IMAGES for width, height in VAE_SIZES]
    return (*cells, Cell(LIMIT))
