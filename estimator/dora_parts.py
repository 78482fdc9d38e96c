"""Parts that go through an adapter's parameters one by one (making it, EMA, saving), of a DoRA from those of a LoRA.

Of each layer there are the magnitudes, the second matrix and the first one, in place of the first and the second, and no alpha (eight
bytes): the module has none. The network's matrices come to the card before its magnitudes. While it is made each layer's weight is unpacked
on the card, if it is quantised, and goes to the host, where the norms are made.

Source: ostris/ai-toolkit 27a03a91, toolkit/models/DoRA.py (DoRAModule.__init__), toolkit/network_mixins.py (force_to, get_state_dict).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from estimator.adapter_sites import never
from estimator.dora_forward import FULL, UNPACKING, Bytes, Sizes, unpacked
from estimator.laying import RECORDED_RANK
from estimator.program import ALLOCATE, EMPTY_CACHE, FIRST_IMPORT, Program, peak_rows

NETWORK = "setup.network/"
CONSTANT, RANK = "1", "r"
FEATURES = (CONSTANT, RANK)
ALPHA_BYTES = 8
QUANTO = "qfloat8"
Size = tuple[int, int]  # bytes at every rank, and for each rank


class Listed:
    """A part's tensors and events, as they come."""

    def __init__(self, base: Program) -> None:
        self.base = base
        self.sizes: list[Size] = []
        self.names: list[str | None] = []
        self.events: list[int] = []
        self.imports: list[str | None] = []

    def make(self, size: Size, name: str | None = None) -> int:
        self.sizes.append(size)
        self.names.append(name)
        self.events.append(ALLOCATE)
        return len(self.sizes) - 1

    def free(self, tensor: int) -> None:
        self.events.append(len(self.sizes) - tensor)

    def free_import(self, name: str | None) -> None:
        self.events.append(FIRST_IMPORT - len(self.imports))
        self.imports.append(name)

    def program(self) -> Program:
        base, own = self.base, len(self.sizes)
        coefficients = np.array([*self.sizes, *[(0, 0)] * len(self.imports)], dtype=np.int64).reshape(-1, len(FEATURES))
        labels = (base.labels[0],) * len(coefficients) if base.labels else ()
        events = np.array(self.events, dtype=np.int64)
        peaks = peak_rows(FEATURES, coefficients, events, labels, base.moments, own)
        names = (*self.names, *self.imports)
        return Program(base.key, FEATURES, coefficients, labels, base.moments, names, events, len(self.imports), peaks, base.workspace_at)


def one_by_one(base: Program, widths: Sequence[int]) -> Program:
    """Such a part of a DoRA, from a LoRA's. `widths`: bytes of each of a LoRA's parameters at rank 1. Raises CannotTell."""
    if RANK not in base.features:
        return base
    return _Through(base, widths).program()


def network(base: Program, widths: Sequence[int], kind: str | None) -> Program:
    """`setup.network` on weights of a kind; None: they wait on the host, and are unpacked there. Raises CannotTell."""
    if not base.key.startswith(NETWORK):
        raise never(base.key)
    listed = Listed(base)
    pairs = [(down // FULL, up // FULL) for down, up in zip(widths[::2], widths[1::2], strict=True)]
    if kind is not None:
        for inputs, outputs in pairs:
            _unpacked(listed, Sizes(inputs, outputs, {}), kind)
    for n, (inputs, outputs) in enumerate(pairs):
        for which, size in ((1, (0, FULL * outputs)), (2, (0, FULL * inputs)), (0, (FULL * outputs, 0))):
            listed.make(size, f"adapter:{3 * n + which}")
        listed.make((FULL, 0))
    multiplier = listed.make((FULL, 0))  # as of a LoRA: the multiplier, twice
    listed.make((FULL, 0))
    listed.free(multiplier)
    return listed.program()


def _unpacked(listed: Listed, size: Sizes, kind: str) -> None:
    """A layer's weight, which goes to the host."""

    def make(given: Bytes) -> int:
        return listed.make((given[CONSTANT], 0))

    def free(*tensors: int) -> None:
        for tensor in tensors:
            listed.free(tensor)

    steps = UNPACKING[kind]
    if kind == QUANTO:  # its graph keeps the cast values until the weight is gone
        free(*(make(size.step(parts)) for parts, _ in steps))
    else:
        free(*unpacked(make, free, size, steps))


class _Through:
    """Goes through a part, and lays three parameters in where two were."""

    def __init__(self, base: Program, widths: Sequence[int]) -> None:
        self.base, self.widths = base, widths
        self.own = len(base.names) - base.imports
        self.constant = [self._bytes(k, CONSTANT) for k in range(len(base.names))]
        self.ranked = [self._bytes(k, RANK) for k in range(len(base.names))]
        self.place = self._places()
        self.listed = Listed(base)
        self.number: dict[int, int] = {}
        self.freed: set[int] = set()  # of the base's, before its own event

    def _bytes(self, k: int, feature: str) -> int:
        return int(self.base.coefficients[k, self.base.features.index(feature)]) if feature in self.base.features else 0

    def _places(self) -> dict[int, int]:
        """Tensor -> the parameter that it is as large as, in order; others (taken for proportional to the rank) are none."""
        places, at = dict[int, int](), 0
        for k in range(self.own):
            if self.ranked[k] == self.widths[at % len(self.widths)]:
                places[k] = at % len(self.widths)
                at += 1
        if at % len(self.widths) or not at:
            raise never(self.base.key)
        return places

    def program(self) -> Program:
        base, listed = self.base, self.listed
        deaths = base.deaths.tolist()
        for code, k in zip(base.events.tolist(), base.tensor_of_event.tolist(), strict=True):
            if code == EMPTY_CACHE:
                listed.events.append(EMPTY_CACHE)
            elif self._is_alpha(k):
                continue
            elif code == ALLOCATE:
                self._make(k, deaths[k])
            elif k < self.own and k not in self.freed:
                listed.free(self.number[k])
            elif k >= self.own:
                self._let_go(k - self.own)
        return listed.program()

    def _is_alpha(self, k: int) -> bool:
        before = self.constant[k] == ALPHA_BYTES and not self.ranked[k] if 0 <= k < self.own else False
        return before and self.place.get(k + 1, 1) % 2 == 0

    def _make(self, k: int, until: int) -> None:
        """`until`: the allocation before which it is freed."""
        listed = self.listed
        if k not in self.place:
            self.number[k] = listed.make((self.constant[k] + RECORDED_RANK * self.ranked[k], 0), self.base.names[k])
            return
        n, second = divmod(self.place[k], 2)
        if not second:
            magnitudes = listed.make((self.widths[2 * n + 1], 0), self._name(k, 3 * n))
            if until == k + 1:
                listed.free(magnitudes)
            elif until == k + 2 and k - 1 in self.place:  # a loop's variable, until it is set again
                listed.free(self.number[k - 1])
                self.freed.add(k - 1)
        self.number[k] = listed.make((0, self.widths[2 * n + 1 - second]), self._name(k, 3 * n + 1 + second))
        if not second and until == k + 2:
            listed.free(magnitudes)

    def _name(self, k: int, number: int) -> str | None:
        name = self.base.names[k]
        return f"{name.partition(':')[0]}:{number}" if name else None

    def _let_go(self, number: int) -> None:
        """An import, which is the copy of a parameter."""
        name = self.base.names[self.own + number] or ""
        component, _, which = name.partition(":")
        n, second = divmod(int(which), 2)
        for place in (2,) if second else (0, 1):
            self.listed.free_import(f"{component}:{3 * n + place}")
