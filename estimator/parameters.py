"""Shapes of the parameters that an optimizer goes through: an adapter's, of a rank or a factor, or a whole model's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import SupportsIndex, TypeAlias

from estimator.kronecker import matrices
from estimator.optimizer_rules import Shape

HALF_BYTES = 2  # of an element of a model that is trained as a whole: bf16
ELEMENT_BYTES = 4  # of the adapters that widths are of: fp32, as all are in AI Toolkit
LORA, LOKR, WHOLE = "lora", "lokr", "whole"  # the last is no adapter: the model's own parameters
DORA = "dora"  # of a LoRA's shapes and vectors of magnitudes: see Magnified


class Convolved(tuple[int, ...]):
    """Bytes of each parameter of an adapter at rank 1, of which those of `places` are convolutions', with a rank of their own (`c`)."""

    places: frozenset[int]

    def __new__(cls, widths: Iterable[int], places: frozenset[int]) -> Convolved:
        made = super().__new__(cls, tuple(widths))
        made.places = places
        return made


class Magnified(tuple[int, ...]):
    """Bytes of each parameter of a DoRA at rank 1, three of each layer: the magnitudes, a vector that no rank changes, the second matrix
    and the first. Made of a LoRA's, two of each layer."""

    def __new__(cls, pairs: Sequence[int]) -> Magnified:
        layers = zip(pairs[::2], pairs[1::2], strict=True)
        return super().__new__(cls, (width for first, second in layers for width in (second, second, first)))

    def __mul__(self, times: SupportsIndex) -> Magnified:
        """Of so many models alike."""
        return tuple.__new__(Magnified, tuple(self) * times)


class Fixed(tuple[int, ...]):
    """Bytes of each of a model's own parameters in bf16, whose `shapes` (of a vector one row) no rank changes."""

    shapes: tuple[Shape, ...]

    def __new__(cls, shapes: Iterable[Shape]) -> Fixed:
        listed = tuple(shapes)
        made = super().__new__(cls, (HALF_BYTES * rows * columns for rows, columns, _ in listed))
        made.shapes = listed
        return made


Size: TypeAlias = int | tuple[int, int]
"""A LoRA's rank or a LoKr's factor; of a LoRA on convolutions too, both ranks."""


def shapes_of(widths: Sequence[int], size: Size, kind: str = LORA) -> list[Shape]:
    """Shapes of an adapter's parameters. `widths`: bytes of a LoRA's of rank 1; `size`: the rank, or a LoKr's factor."""
    if isinstance(widths, Fixed):
        return list(widths.shapes)
    features = [width // ELEMENT_BYTES for width in widths]
    if isinstance(widths, Convolved):
        both = size if isinstance(size, tuple) else (size, size)
        ranks = [both[k in widths.places] for k in range(len(features))]
        return [(r, width, False) if k % 2 == 0 else (width, r, True) for k, (width, r) in enumerate(zip(features, ranks, strict=True))]
    assert isinstance(size, int)
    if isinstance(widths, Magnified):
        each = [((1, width, False), (width, size, True), (size, width, False)) for width in features]
        return [shapes[k % 3] for k, shapes in enumerate(each)]
    if kind == LORA:
        return [(size, width, False) if k % 2 == 0 else (width, size, True) for k, width in enumerate(features)]
    pairs = [matrices(*pair, size) for pair in zip(features[::2], features[1::2], strict=True)]
    return [(*matrix, zero) for pair in pairs for matrix, zero in zip(pair, (False, True), strict=True)]
