"""Programs of a DoRA, from those of a LoRA on the same layers.

A DoRA goes through all that a LoRA makes, and then makes the layer's whole weight, with the adapter's update in it, in fp32 (O outputs, I
inputs, rows: tokens of all samples):

    forward, behind the LoRA's result:       the update (O x I) and the same times the multiplier's mean; the layer's weight as it is
                                             unpacked, and in fp32; its sum with the update, and the norm of each output's row, for
                                             which alone it is; the sum once more; the magnitudes by the norms, less 1; the input in fp32;
                                             the product; it times the magnitudes; in the result's type; its sum with the LoRA's
    backward, before the LoRA's own:         the gradient in fp32; it times the magnitudes, and times the product; the latter summed over
                                             the rows; the weight's; the input's (where it needs one), and in its own type; the
                                             magnitudes', which stays; the update's; both matrices', which the LoRA's own are added to

Saved for the backward pass are the input in fp32 a second time, the product, and, where the input needs a gradient, the weight: 4 bytes for
each of its elements. Everything else is as with a LoRA. The parameters of each layer are the magnitudes, of O elements at every rank, the
second matrix and the first one.

Source: ostris/ai-toolkit 27a03a91, toolkit/network_mixins.py (ToolkitModuleMixin.forward), toolkit/models/DoRA.py. Held event for event
against recordings of Z-Image (tests/test_dora_programs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from estimator.adapter_sites import RECOMPUTED, Returned, Site, Tape, layers_of, never, returned, sites
from estimator.dora_forward import FULL, HALF, UNPACKING, Bytes, Freer, Maker, Sizes, weighed
from estimator.features import REDUCE_BLOCK_WIDTH, REDUCE_OUTPUTS_PER_THREAD
from estimator.laying import BEFORE, CONSTANT, RANK, THERE, Laid, Place
from estimator.program import Program

PARTIAL = FULL * REDUCE_BLOCK_WIDTH * REDUCE_OUTPUTS_PER_THREAD  # of what each block of a column sum keeps for an output


class Dora:
    """Lays a DoRA into one program. `numbers`: layer -> number; `widths`: bytes of each of a LoRA's parameters at rank 1."""

    def __init__(self, base: Program, numbers: Mapping[str, int], widths: Sequence[int]) -> None:
        self.tape = Tape(base)
        self.numbers, self.widths = numbers, widths
        self.laid = Laid(self.tape)
        self.steps = UNPACKING[base.key.split("/")[1]]
        self.sizes: dict[int, Sizes] = {}  # layer's number -> sizes of its tensors
        self.again: set[int] = set()  # likewise, of those that are recomputed
        self.saved: dict[int, tuple[int, ...]] = {}  # likewise: what it saved, see `Weighed`

    def program(self) -> Program:
        tape = self.tape
        names = {name: k for k, name in enumerate(tape.base.names[: tape.own]) if name is not None}
        back = {n: returned(tape, layer, names[f"gradient:{2 * n + 1}"]) for layer, n in layers_of(tape).items()}
        for site in sites(tape):
            self._forward(site, self.numbers[site.layer], back.get(self.numbers[site.layer]))
        for n, one in sorted(back.items(), key=lambda item: item[1].first):
            self._backward(n, one)
        return self.laid.program(lambda at: (at, BEFORE, 0))

    # ---- forward

    def _forward(self, site: Site, n: int, back: Returned | None) -> None:
        tape, laid = self.tape, self.laid
        died, at = tape.died[site.between[0]], tape.born[site.total]
        saves = died is None or died > tape.next_birth(site.total)
        size = self.sizes[n] = sizes_of(tape, site.result, self.widths[2 * n : 2 * n + 2])
        self.again |= {n} if tape.made[site.result].run == RECOMPUTED else set()
        passes = back is None or back.passed is not None
        make, free = maker(laid, laid.before, at, site.result), freer(laid, laid.before, at)
        made = weighed(make, free, size, self.steps if self._packed(site, size) else (), saves, passes)
        laid.ends[site.between[-1]] = laid.before(at)
        freer(laid, laid.behind, at)(*made.passing)
        if saves:
            self._save(n, made.saved, None if back else died)

    def _save(self, n: int, tensors: tuple[int, ...], until: int | None) -> None:
        """What the backward pass will free; `until`: where it goes of a layer without a backward pass."""
        if until is None:
            self.saved[n] = tensors
            return
        for tensor in tensors:
            self.laid.free((until, THERE, 0), tensor)

    def _packed(self, site: Site, size: Sizes) -> bool:
        """Whether the layer itself makes its weight first, which it does where that is quantised."""
        tape, weight, k = self.tape, size.weight(HALF)["1"], site.result - 1
        while k >= 0 and tape.made[k].module == site.layer:
            if tape.base.constants[k] == weight:
                return True
            k -= 1
        return False

    # ---- backward

    def _backward(self, n: int, back: Returned) -> None:
        laid, at, size = self.laid, self.tape.born[back.first], self.sizes[n]
        make, free = maker(laid, laid.before, at, back.first), freer(laid, laid.before, at)
        less, norm, product, given, mean, *adapted = self.saved.pop(n)
        incoming, returning, times = (make(size.result(FULL)) for _ in range(3))
        if n in self.again:  # what was recomputed goes as soon as it was used, what was saved with its node
            free(less, product)
        summed = self._summed(size, times, make, free)
        free(incoming, *(() if n in self.again else (less, product)))
        whole = make(size.weight(FULL))
        passed = make(size.given(FULL)) if back.passed is not None else None
        free(returning, given, *adapted)
        if passed is not None and back.passed is not None:
            self._passed(back.passed, size.given(HALF), passed, make, free)
        magnitudes = make(size.vector)
        free(summed, norm)
        update = make(size.weight(FULL))
        free(whole, mean)
        down, up = make({RANK: self.widths[2 * n]}), make({RANK: self.widths[2 * n + 1]})
        free(update)
        laid.names |= {magnitudes: f"gradient:{3 * n}", up: f"gradient:{3 * n + 1}", down: f"gradient:{3 * n + 2}"}
        self._added(back)

    def _summed(self, size: Sizes, times: int, make: Maker, free: Freer) -> int:
        """What was multiplied, summed over the rows; of one row it is that itself. The kernel's partial results come and go."""
        if size.rows == {CONSTANT: 1}:
            return times
        summed = make(size.vector)
        if len(size.rows) > 1:
            raise never(str(dict(size.rows)))
        (name, count), = size.rows.items()
        length = f"{count if count > 1 else ''}{name.removeprefix('B').removeprefix('*').removeprefix(CONSTANT)}"
        partial = [make({f"norm{size.outputs}_{length}": PARTIAL * size.outputs})] if length else []
        free(*partial, times)
        return summed

    def _passed(self, passed: int, given: Bytes, whole: int, make: Maker, free: Freer) -> None:
        """The input's gradient comes before the LoRA's `passed`: if nothing was there to add it to, the LoRA's is added to it."""
        tape, laid = self.tape, self.laid
        half = make(given)
        free(whole)
        died = tape.died[passed]
        if tape.at_once(passed) or died is None:
            free(half)
            return
        laid.free((died, THERE, 0), half)
        laid.ends[passed] = laid.before(tape.next_birth(passed))

    def _added(self, back: Returned) -> None:
        """The LoRA's own gradients of both matrices are added to those that are there."""
        laid, up, down = self.laid, back.tensors[3], back.tensors[5]
        last = down if back.passed is None else back.tensors[6]  # of the node
        laid.ends[up], laid.ends[down] = laid.before(self.tape.born[down]), laid.before(self.tape.next_birth(last))
        laid.names |= {up: None, down: None}


def maker(laid: Laid, place: Callable[[int], Place], at: int, like: int) -> Maker:
    """Makes tensors before an event of the base or behind it (`place`: one of the two)."""
    return lambda size: laid.make(place(at), size, like)


def freer(laid: Laid, place: Callable[[int], Place], at: int) -> Freer:
    """Frees some that were made."""

    def free(*tensors: int) -> None:
        for tensor in tensors:
            laid.free(place(at), tensor)

    return free


def sizes_of(tape: Tape, result: int, widths: Sequence[int]) -> Sizes:
    """Of the layer whose own result that is. Raises CannotTell."""
    inputs, outputs = (width // FULL for width in widths)
    found = {
        name: divmod(c, HALF * outputs)
        for name, c in zip(tape.base.features, tape.base.coefficients[result].tolist(), strict=True)
        if c
    }  # fmt: skip
    if any(rest for _, rest in found.values()):
        raise never(tape.made[result].module)
    return Sizes(inputs, outputs, {name: count for name, (count, _) in found.items()})
