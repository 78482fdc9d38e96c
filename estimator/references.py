"""Control images that are tokens behind those of the picture that is trained (FLUX.2): a step's core, rewritten from the one without.

The transformer gets the tokens of all images (`T`). What is around it stays of the picture's own (`Q`): the packed latents that go in, the
prediction that is cut from what comes out, noise and loss. There are three tensors more: latents and places of all images joined, which
are there until the forward is over, and in the backward pass the gradient of all from which the prediction was cut.

Source: ostris/ai-toolkit 27a03a91, extensions_built_in/diffusion_models/flux2/flux2_model.py (get_noise_prediction), src/sampling.py
(encode_image_refs). Held against four whole runs of the trainer: allocated to 0.005 %, reserved to 2 MiB in every step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from estimator.controls import ENCODE
from estimator.errors import CannotTell, Problem
from estimator.features import Ints
from estimator.program import ALLOCATE, Program, left_out
from estimator.rewriting import widened, written
from estimator.stays import LATENT_BYTES, PLACE_BYTES

REFERENCED = "/referenced"  # behind the key of a step's core
CROPPED = "control.encode/cropped"  # part: the VAE over a control image that was cropped to whole tokens
TOGETHER = "control.encode/many"  # part: the VAE over the control images of a batch of `B` at once
ENCODES = (ENCODE, CROPPED, TOGETHER)
# The parts in which the VAE is over one picture, and over those of a batch; and what else is made there: the pixels, and the rest of a head
_ONE, _PIXELS, _BATCH, _HEAD = "cache_latents.item", "cache_latents", "step.head/encoded/encoded/many", "step"

PIXEL_BYTES = 1536  # of a token: 16 x 16 pixels, three channels of bf16


def referenced(core: Program) -> Program:
    """The core with control images' tokens among `T`, and `Q` those of the picture. Raises CannotTell."""
    tensors, births = core.tensor_of_event.copy(), core.events == ALLOCATE
    made, (first, over), product = np.flatnonzero(births), core.forward, first_of_backward(core)
    joined, places, whole = range(len(core.names), len(core.names) + 3)
    cut, behind = gradient_cut(core, product)
    tensors[int(np.flatnonzero((tensors == cut) & ~births)[0])] = whole
    at = [made[first], made[first], made[over], made[over], behind, behind]
    tensors = np.insert(tensors, at, [joined, places, joined, places, whole, cut])
    births = np.insert(births, at, [True, True, False, False, True, False])
    features, rows = of_the_picture(core, first, over, product)
    each = features.index("B*T" if "B*T" in core.features else "T")
    rows[[joined, places, whole], each] = LATENT_BYTES, PLACE_BYTES, LATENT_BYTES
    return written(core, core.key + REFERENCED, (tensors, births), (features, rows), (first, first, cut))


def encode(key: str, program_of: Callable[[str], Program]) -> Program:
    """The VAE alone over pictures that are on the card already: one of `ENCODES`, from a part that was recorded."""
    if key == CROPPED:
        return cropped(program_of(ENCODE))
    part, others = (_BATCH, _HEAD) if key == TOGETHER else (_ONE, _PIXELS)
    program = program_of(part)
    return left_out(program, key, {k for k, row in enumerate(program.labels) if program.moments[row] == others})


def cropped(encode: Program) -> Program:
    """The VAE's encode of a picture that is a part of a larger one in memory: its first convolution copies it, and lets the copy go."""
    copy, births = len(encode.names), encode.events == ALLOCATE
    events = np.insert(encode.tensor_of_event, [0, 1], [copy, copy]), np.insert(births, [0, 1], [True, False])
    rows = widened(encode, encode.features, 1)
    rows[copy, encode.features.index("T")] = PIXEL_BYTES
    return written(encode, CROPPED, events, (encode.features, rows), (0,))


def first_of_backward(core: Program) -> int:
    """The first tensor that a layer of the transformer makes in its backward pass."""
    for k in range(core.forward[1], len(core.names) - core.imports):
        moment = core.moments[core.labels[k]]
        if moment.startswith("transformer") and "|backward" in moment and "AccumulateGrad" not in moment:
            return k
    raise CannotTell(Problem(f"{core.key!r} has no backward pass", None, "control images change it", "report it"))


def gradient_cut(core: Program, product: int) -> tuple[int, int]:
    """The prediction's gradient, from which that of all images is made, and the event before which that is. `product`: the first tensor of
    a layer's backward pass; the copies of an offloaded layer's weights, which it waits for, come in between."""
    made = np.flatnonzero(core.events == ALLOCATE)
    if core.streams is None:
        return product - 1, int(made[product])
    cut = int(np.flatnonzero(core.streams[:product] == 0)[-1])
    behind = core.tensor_of_event[made[cut] : made[product]]
    copied = np.flatnonzero((behind >= 0) & (core.streams[behind] != 0))
    return cut, int(made[cut] + copied[0] if len(copied) else made[product])


def of_the_picture(core: Program, first: int, over: int, product: int) -> tuple[tuple[str, ...], Ints]:
    """Features, and bytes of all tensors and of three more: with `Q` for `T` where they are made outside the transformer."""
    inside = core.made_in("transformer")[:product]
    inside[:first] = inside[over:] = False
    return with_own(core, np.flatnonzero(~inside), 3)


def with_own(program: Program, tensors: Ints, more: int) -> tuple[tuple[str, ...], Ints]:
    """Features, and bytes of all tensors (and room for `more`): with `Q` for `T` in those of some."""
    renamed = {name: "*".join("Q" if factor == "T" else factor for factor in name.split("*")) for name in program.features}
    features = (*program.features, *(new for name, new in renamed.items() if new != name))
    rows = widened(program, features, more)
    for name, new in renamed.items():
        if new != name:
            before, after = features.index(name), features.index(new)
            rows[tensors, after] = rows[tensors, before]
            rows[tensors, before] = 0
    return features, rows
