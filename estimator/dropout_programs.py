"""Programs of a LoRA with dropout (`network.dropout`), from those without.

Behind a layer's first matrix torch's dropout makes a mask, a byte for each element, and what is left, in fp32: that is saved for the second
matrix's gradient in place of what went in, which is gone at once; and in the backward pass its gradient passes through the mask, which then
goes. Only while training: the trainer previews with the adapter in evaluation. Same layers, same places: everything else stays.

Source: toolkit/network_mixins.py (`_call_forward`), torch's native_dropout on CUDA (aten/src/ATen/native/cuda/Dropout.cu).
"""

from __future__ import annotations

from estimator.adapter_sites import Site, Tape, layers_of, never, returned, sites
from estimator.laying import BEFORE, THERE, Laid
from estimator.program import Program

ELEMENT_BYTES = 4  # of the adapter, fp32; the mask has one byte


def dropped(base: Program) -> Program:
    """A step's core with dropout in each layer's adapter. Raises CannotTell where the adapter is not found."""
    tape = Tape(base)
    names = {name: k for k, name in enumerate(base.names[: tape.own]) if name is not None}
    ups = {layer: names[f"gradient:{2 * n + 1}"] for layer, n in layers_of(tape).items()}
    laid = Laid(tape)
    for site in sites(tape):
        mask = _forward(laid, site)
        if mask is not None:
            up = ups.get(site.layer)
            _backward(laid, returned(tape, site.layer, up).tensors[4], mask) if up is not None else laid.free(_end_of(tape, site), mask)
    return laid.program(lambda at: (at, BEFORE, 0))


def _forward(laid: Laid, site: Site) -> int | None:
    """Lays one pass; the mask, where it is saved."""
    tape, down = laid.tape, site.between[1]
    died = tape.died[down]
    size = {name: c for name, c in zip(tape.base.features, tape.base.coefficients[down].tolist(), strict=True) if c}
    if any(c % ELEMENT_BYTES for c in size.values()):
        raise never(site.layer)
    at = tape.next_birth(down)
    mask = laid.make(laid.before(at), {name: c // ELEMENT_BYTES for name, c in size.items()}, down)
    left = laid.make(laid.before(at), size, down)
    laid.ends[down] = laid.before(at)
    if died is not None:
        laid.free((died, THERE, 0), left)
    if died is None or died > tape.next_birth(site.total):
        return mask
    laid.free(laid.before(at), mask)
    return None


def _end_of(tape: Tape, site: Site) -> tuple[int, int, int]:
    died = tape.died[site.between[1]]
    if died is None:
        raise never(site.layer)
    return died, THERE, 0


def _backward(laid: Laid, gradient: int, mask: int) -> None:
    """Behind the gradient of what is left comes that of what went in, which lives as long as the former did."""
    tape = laid.tape
    at, died = tape.next_birth(gradient), tape.died[gradient]
    size = {name: c for name, c in zip(tape.base.features, tape.base.coefficients[gradient].tolist(), strict=True) if c}
    passed = laid.make(laid.before(at), size, gradient)
    laid.ends[gradient] = laid.before(at)
    laid.free(laid.before(at), mask)
    if died is not None:
        laid.free((died, THERE, 0), passed)
