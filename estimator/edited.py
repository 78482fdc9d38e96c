"""Control images of Qwen-Image-Edit in a step's core: rewritten from the one without (`estimator.references` is FLUX.2's).

The transformer gets the tokens of all images (`T`). The noisy latents and their packed tokens are those of the picture that is trained
(`Q`), and so are the prediction that is cut from what comes out, the loss and its gradients. There are three tensors more: the tokens of
all images joined (of each item, and of all items) until the forward is over, and in the backward pass the gradient of all from which the
prediction was cut.

Source: ostris/ai-toolkit 27a03a91, extensions_built_in/diffusion_models/qwen_image/qwen_image_edit_plus.py (get_noise_prediction). Held
against all events of a step of the trainer with one control image (docs/log.md, Qwen-Image-Edit).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from estimator.features import Ints
from estimator.program import ALLOCATE, Program
from estimator.references import first_of_backward, gradient_cut, of_the_picture, with_own
from estimator.rewriting import widened, written
from estimator.stays import PACKED_BYTES

EDITED = "/edited"  # behind the key of a step's core, or a preview
PREVIEWS = "preview/"  # what keys of previews begin with
NORM_BYTES = 2  # of a token's norm, bf16
TIMESTEP_BYTES = 2  # of a timestep
CACHED_PROMPTS = "sample"  # the moment at which a preview's cached prompts come to the card


def edited(core: Program) -> Program:
    """The core with control images' tokens among `T`, and `Q` those of the picture. Raises CannotTell."""
    tensors, births = core.tensor_of_event.copy(), core.events == ALLOCATE
    made, (first, over), product = np.flatnonzero(births), core.forward, first_of_backward(core)
    joined, of_all, whole = range(len(core.names), len(core.names) + 3)
    each = core.features.index("B*T" if "B*T" in core.features else "T")
    packed = max(k for k in range(first) if core.coefficients[k, each])  # the last before the transformer: behind it come the joined
    cut, behind = gradient_cut(core, product)
    tensors[int(np.flatnonzero((tensors == cut) & ~births)[0])] = whole
    at = [made[packed + 1], made[packed + 1], made[over], made[over], behind, behind]
    tensors = np.insert(tensors, at, [joined, of_all, joined, of_all, whole, cut])
    births = np.insert(births, at, [True, True, False, False, True, False])
    features, rows = of_the_picture(core, first, over, product)
    rows[[joined, of_all, whole], each] = PACKED_BYTES
    return written(core, core.key + EDITED, (tensors, births), (features, rows), (first, first, cut))


def edited_preview(preview: Program) -> Program:
    """A preview with control images' tokens among `T`, `Q` those of the picture; without the cached prompts that it found on the card.

    It denoises twice: what the first has left lies about in the second. `Tj`: tokens of all images joined, in each step anew (none: 0);
    `Tn`: tokens whose prediction guidance rescales (QwenImageEditPipeline; the trainer's own of 2509 and 2511 does not: 0).
    """
    first = preview.forward[1]
    made_by = [preview.moments[row].startswith("transformer") for row in preview.labels]
    features, rows = with_own(preview, [k for k in range(len(preview.names)) if not made_by[k]], 0)
    words = [features.index(name) for name in ("X", "N") if name in features]
    found = [k for k in range(first) if preview.moments[preview.labels[k]] == CACHED_PROMPTS and rows[k, words].any()]
    rows[found] = 0
    features, rows = _rescaled(preview, features, rows)
    more = (0,) * (len(features) - len(preview.features))
    peaks = tuple(replace(row, coefficients=(*row.coefficients, *more)) for row in preview.peaks)
    own = replace(preview, key=preview.key + EDITED, features=features, coefficients=rows, peaks=peaks)
    return own if preview.streams is not None else _twice(own)  # with offloaded layers there are two steps already


def _rescaled(preview: Program, features: tuple[str, ...], rows: Ints) -> tuple[tuple[str, ...], Ints]:
    """With `Tn` for `Q` in what guidance makes to keep the norm: two norms, their quotient, and the prediction scaled by it."""
    token = features.index("Q")
    norm = rows[:, token] == NORM_BYTES
    norms = np.flatnonzero(norm[:-2] & norm[1:-1] & norm[2:]).tolist()
    wide = np.hstack([rows, np.zeros((len(rows), 1), dtype=np.int64)])
    for k in norms:
        wide[k : k + 4, -1] = wide[k : k + 4, token]
        wide[k : k + 4, token] = 0
    return (*features, "Tn"), wide


def _twice(preview: Program) -> Program:
    """With a second step of denoising: what the first leaves goes when the second has made its prediction, with the latents before it."""
    tensors, births, count = preview.tensor_of_event, preview.events == ALLOCATE, len(preview.names)
    begin = preview.forward[1]
    while (preview.coefficients[begin - 1] <= TIMESTEP_BYTES).all():  # the step's timestep, which comes before the transformer
        begin -= 1
    start = int(np.flatnonzero(births)[begin])
    step, made = tensors[start:], births[start:]
    left = [k for k in preview.exported if k >= begin]
    joined, joined_again = count, count + 1
    again = np.where(step >= begin, step + 2 + count - begin, step)
    before = ~made & (step >= 0) & (step < begin)  # the latents, of which the first step has made new ones
    gone = int(np.flatnonzero(before)[0])
    kept = ~before
    again, made_again = again[kept], made[kept]
    again = np.insert(again, [0, *[gone] * (len(left) + 1)], [joined_again, *left, joined])
    made_again = np.insert(made_again, [0, *[gone] * (len(left) + 1)], [True, *[False] * (len(left) + 1)])
    events = np.concatenate([tensors[:start], [joined], step, again]), np.concatenate([births[:start], [True], made, made_again])
    features = (*preview.features, "Tj")
    rows = widened(preview, features, 2 + count - begin)
    rows[count : count + 2, -1] = PACKED_BYTES
    rows[count + 2 :] = rows[begin:count]
    return written(preview, preview.key, events, (features, rows), (begin, begin, *range(begin, count)))
