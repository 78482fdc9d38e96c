"""Programs of a LoKr of full rank, from those of a LoRA on the same layers.

A LoKr makes other tensors than a LoRA where the adapter is, and the same everywhere else. Both are found by `adapter_sites`; what stands in
their place follows from how toolkit/models/lokr.py (`_call_forward_fast_linear`) multiplies (rows: tokens of all samples):

    forward, behind the layer's own result:  both matrices in its type; the input times the large one (rows x between), the small one times
                                             scale, the former copied in another order; their product, copied likewise; the multiplier's
                                             mean, and in the result's type; the product with it; the sum
    backward, before the layer's own:        gradient times multiplier, copied; the small matrix's; what is between, copied; the large
                                             matrix's; the input's (where it needs one); both matrices' in fp32, and as they are kept

One row (batch 1 of a layer over an embedding of the time) is multiplied in its own order: nothing is copied. The input itself is saved for
the large matrix's gradient, where a LoRA saves a copy in fp32. The gradient that reaches an input first is a view: it is not added to in
place, but with the layer's own makes a new sum. Held event for event against those recorded of Z-Image Turbo (tests/test_lokr_programs.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from estimator.adapter_sites import Returned, Site, Tape, layers_of, never, returned, sites
from estimator.laying import BEFORE, THERE, Laid, Place
from estimator.program import ALLOCATE, EMPTY_CACHE, Program

HALF, FULL = 2, 4  # bytes of an element in the model's type, and in fp32
SMALL, LARGE, BETWEEN, OUT, IN = "small", "large", "between", "out", "in"  # what a tensor is as large as
MEAN, CAST = "mean", "cast"  # the multiplier's mean in fp32, and in the result's type

# What is made, in order: (size, bytes of an element, tensor at whose birth it has died: None where it lives on)
FORWARD_ROWS = (
    (SMALL, HALF), (LARGE, HALF), (BETWEEN, HALF), (SMALL, HALF), (BETWEEN, HALF), (OUT, HALF), (OUT, HALF), (MEAN, FULL), (CAST, HALF),
    (OUT, HALF),
)  # fmt: skip
FORWARD_ROW = ((SMALL, HALF), (LARGE, HALF), (BETWEEN, HALF), (SMALL, HALF), (OUT, HALF), (MEAN, FULL), (CAST, HALF), (OUT, HALF))


@dataclass(frozen=True)
class Forward:
    """Numbers in the list of what a forward pass makes: `saved` for the backward pass, whose ends are there (see `Backward.saved`);
    `passing`: freed as soon as another number is made."""

    made: tuple[tuple[str, int], ...]
    saved: tuple[int, ...]
    passing: Mapping[int, int]
    unsaved: Mapping[int, int]  # likewise, of what is saved otherwise


@dataclass(frozen=True)
class Backward:
    """What a backward pass makes: (size, bytes of an element, the number at whose birth it is there last: None where it stays).

    `saved`: of each tensor that the forward pass saved, the number whose birth it lives to see; `input`: the same of the layer's input;
    `gradients`: numbers of the small and of the large matrix's; `passed`: of the input's.
    """

    made: tuple[tuple[str, int, int | None], ...]
    saved: tuple[int, ...]
    input: int
    gradients: tuple[int, int]
    product: int  # the first that is one of two matrices
    passed: int | None = None


# rows: large matrix, scaled small one, copy of what is between, multiplier
ROWS = Forward(FORWARD_ROWS, (1, 3, 4, 8), {5: 6, 6: 9, 7: 8}, {3: 5, 4: 5})
ROWS_NO_INPUT = Forward(FORWARD_ROWS, (3, 4, 8), {5: 6, 6: 9, 7: 8}, {3: 5, 4: 5})
ROW = Forward(FORWARD_ROW, (2, 3, 6), {4: 7, 5: 6}, {3: 4})
BACK_ROWS = Backward(
    (
        (OUT, HALF, 1), (OUT, HALF, 3), (SMALL, HALF, 4), (BETWEEN, HALF, 5), (SMALL, HALF, 10), (BETWEEN, HALF, 7), (LARGE, HALF, 8),
        (IN, HALF, None), (LARGE, FULL, 9), (LARGE, FULL, None), (SMALL, FULL, 11), (SMALL, FULL, None),
    ),
    (7, 3, 3, 0), 7, (11, 9), 2, 7,
)  # fmt: skip
BACK_ROWS_NO_INPUT = Backward(
    (
        (OUT, HALF, 1), (OUT, HALF, 3), (SMALL, HALF, 4), (BETWEEN, HALF, 5), (SMALL, HALF, 9), (BETWEEN, HALF, 6), (LARGE, HALF, 7),
        (LARGE, FULL, 8), (LARGE, FULL, None), (SMALL, FULL, 10), (SMALL, FULL, None),
    ),
    (3, 3, 0), 6, (10, 8), 2,
)  # fmt: skip
BACK_ROW = Backward(
    (
        (OUT, HALF, 2), (BETWEEN, HALF, 4), (SMALL, HALF, 3), (SMALL, HALF, 7), (LARGE, HALF, 5), (LARGE, FULL, 6), (LARGE, FULL, None),
        (SMALL, FULL, None),
    ),
    (2, 2, 0), 4, (7, 6), 1,
)  # fmt: skip


class Lokr:
    """Lays a LoKr into one program. `numbers`: layer -> number; `widths`: bytes of each of a LoRA's parameters at rank 1."""

    def __init__(self, base: Program, numbers: Mapping[str, int], widths: Sequence[int], calls: Mapping[int, int]) -> None:
        self.tape = Tape(base)
        self.numbers, self.widths, self.calls = numbers, widths, calls
        self.laid = Laid(self.tape)
        self.results: dict[int, int] = {}  # layer's number -> a result of its size
        self.inputs: dict[int, int] = {}  # layer's number -> its saved input
        self.saved: dict[int, tuple[int, ...]] = {}
        self.products: list[tuple[int, int, Place]] = []  # of each backward pass its first and last event, and where a product is made

    def program(self) -> Program:
        tape = self.tape
        names = {name: k for k, name in enumerate(tape.base.names[: tape.own]) if name is not None}
        trained = layers_of(tape)
        back = {n: returned(tape, layer, names[f"gradient:{2 * n + 1}"]) for layer, n in trained.items()}
        for site in sites(tape):
            self._forward(site, back.get(self.numbers[site.layer]))
        for n, one in sorted(back.items(), key=lambda item: item[1].first):
            self._backward(n, one)
        return self.laid.program(self._place, ranked=False)

    # ---- forward

    def _single(self, result: int, n: int) -> bool:
        """Whether a layer goes over one row."""
        size = dict(zip(self.tape.base.features, self.tape.base.coefficients[result].tolist(), strict=True))
        return {f for f, c in size.items() if c} == {"1"} and size["1"] == HALF * self.widths[2 * n + 1] // FULL

    def _forward(self, site: Site, back: Returned | None) -> None:
        tape, laid, n = self.tape, self.laid, self.numbers[site.layer]
        first, single = site.between[0], self._single(site.result, n)
        if single and back is not None and back.passed is not None:
            raise never(site.layer)
        what = ROW if single else ROWS if back is None or back.passed is not None else ROWS_NO_INPUT
        died = tape.died[first]
        saves = died is None or died > tape.next_birth(site.total)
        self.results.setdefault(n, site.result)
        start, end = tape.born[first], tape.born[site.total]
        laid.gone |= set(site.between)
        tensors: list[int] = []
        passing = dict(what.passing) if saves else {**what.passing, **what.unsaved}
        for number, (size, element) in enumerate(what.made):
            tensors.append(laid.make(laid.before(start), self._size(size, element, n), site.result))
            for old in (old for old, at in passing.items() if at == number):
                laid.free(laid.before(start), tensors[old])
        kept = set(what.saved) if saves else set()
        for number, tensor in enumerate(tensors):
            if number not in kept and number not in passing:
                laid.free(laid.behind(end), tensor)
        if saves:
            self._save(n, tuple(tensors[number] for number in what.saved), self.calls.get(site.result), None if back else died)

    def _save(self, n: int, tensors: tuple[int, ...], given: int | None, until: int | None) -> None:
        """What the backward pass will free, and the layer's input; `until`: where it goes of a layer without a backward pass."""
        if until is None:
            self.saved[n] = tensors
            self.inputs |= {} if given is None else {n: given}
            return
        for tensor in tensors:
            self.laid.free((until, THERE, 0), tensor)
        if given is not None:
            self.laid.keep(given, (until, THERE, 0))

    # ---- backward

    def _backward(self, n: int, back: Returned) -> None:
        tape, laid = self.tape, self.laid
        what = BACK_ROW if self._single(self.results[n], n) else BACK_ROWS if back.passed is not None else BACK_ROWS_NO_INPUT
        start, tensors = tape.born[back.first], list[int]()
        first = back.passed is not None and not tape.at_once(back.passed)  # of its input's gradients
        laid.gone |= set(back.tensors)
        for number, (size, element, _) in enumerate(what.made):
            if number == what.product:
                self.products.append((start, tape.born[back.tensors[-1]], laid.before(start)))
            tensors.append(laid.make(laid.before(start), self._size(size, element, n), back.first))
            freed = [old for old, (*_, until) in zip(tensors, what.made, strict=False) if until == number]
            freed += [old for old, until in zip(self.saved[n], what.saved, strict=True) if until == number]
            freed += [tensors[number]] if what.passed == number and not first else []
            for old in freed:
                laid.free(laid.before(start), old)
            if number in (0, what.input):
                self._others(back, laid.before(start), number > 0)
            if number == what.input and n in self.inputs:
                laid.keep(self.inputs[n], laid.before(start))
        laid.names |= {tensors[k]: f"gradient:{2 * n + which}" for which, k in enumerate(what.gradients)}
        if first and what.passed is not None and back.passed is not None:
            self._summed(n, back, tensors[what.passed], tape.died[back.passed])

    def _others(self, back: Returned, place: Place, saved: bool) -> None:
        """What others' the LoRA's backward pass lets go: the gradient that comes in with its first node, what was saved with its last."""
        tape, first = self.tape, back.tensors[1]
        start, end = (tape.born[first], tape.next_birth(back.tensors[-1])) if saved else (tape.born[back.first], tape.born[first])
        end = tape.born[back.tensors[-1]] if saved and back.passed is not None else end
        for at in range(start, end):
            k = int(tape.base.tensor_of_event[at])
            if tape.base.events[at] not in (ALLOCATE, EMPTY_CACHE) and 0 <= k < tape.own and k not in self.laid.gone:
                self.laid.ends[k] = place

    def _summed(self, n: int, back: Returned, passed: int, until: int | None) -> None:
        """The first gradient of an input: it and the layer's own become a new one."""
        own, laid = back.own, self.laid
        if own is None or not self.tape.at_once(own):
            raise never(back.layer)
        at = self.tape.next_birth(own)
        total = laid.make(laid.before(at), self._size(IN, HALF, n), own)
        laid.free(laid.before(at), passed)
        laid.ends[own] = laid.before(at)
        if until is not None:
            laid.free((until, THERE, 0), total)

    def _place(self, at: int) -> Place:
        """Where something that comes before an event of the base is: within an adapter's backward pass before its first product."""
        return next((place for start, end, place in self.products if start < at <= end), (at, BEFORE, 0))

    def _size(self, size: str, element: int, n: int) -> dict[str, int]:
        inputs, outputs = (width // FULL for width in self.widths[2 * n : 2 * n + 2])
        if size in (SMALL, LARGE):
            return {f"kron{1 if size == SMALL else 2}_{inputs}x{outputs}": element}
        if size in (MEAN, CAST):
            return {"1": element}
        rows = self._rows(n, outputs)
        if size == BETWEEN:
            name = f"kron3_{inputs}x{outputs}"
            return {name if feature == "1" else f"{feature}*{name}": element * count for feature, count in rows.items()}
        return {feature: element * count * (outputs if size == OUT else inputs) for feature, count in rows.items()}

    def _rows(self, n: int, outputs: int) -> dict[str, int]:
        """How many rows a layer goes over, by feature."""
        size = zip(self.tape.base.features, self.tape.base.coefficients[self.results[n]].tolist(), strict=True)
        found = {feature: divmod(c, HALF * outputs) for feature, c in size if c}
        if any(rest for _, rest in found.values()):
            raise never(f"layer {n}")
        return {feature: count for feature, (count, _) in found.items()}
