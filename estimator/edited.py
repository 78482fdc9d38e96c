"""Control images of Qwen-Image-Edit in a step's core: rewritten from the one without (`estimator.references` is FLUX.2's).

The transformer gets the tokens of all images (`T`). The noisy latents and their packed tokens are those of the picture that is trained
(`Q`), and so are the prediction that is cut from what comes out, the loss and its gradients. There are three tensors more: the tokens of
all images joined (of each item, and of all items) until the forward is over, and in the backward pass the gradient of all from which the
prediction was cut.

Source: ostris/ai-toolkit 27a03a91, extensions_built_in/diffusion_models/qwen_image/qwen_image_edit_plus.py (get_noise_prediction). Held
against all events of a step of the trainer with one control image (docs/log.md, Qwen-Image-Edit).
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from estimator.features import Ints
from estimator.frequencies import kept_in
from estimator.program import ALLOCATE, EMPTY_CACHE, EventProgram, Program
from estimator.references import first_of_backward, gradient_cut, of_the_picture, with_own
from estimator.rewriting import widened, written
from estimator.stays import PACKED_BYTES

EDITED = "/edited"  # behind the key of a step's core, or a preview
FLUSHED = "/flushed"  # behind such a preview's: torch's cache is emptied behind each step of denoising
ALONE = "/alone"  # behind the key of a text with its pictures, which the first edit encodes by itself
TOGETHER = "/together"  # behind the key of a text with one picture: those of a batch, encoded at once
PREVIEWS = "preview/"  # what keys of previews begin with
PICTURED = frozenset({"1", "I", "Ib", "R"})  # features of a text's encode that are not the words'
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
    return _twice(_one_step(preview))


def _one_step(preview: Program) -> Program:
    first = preview.forward[1]
    outside = ~preview.made_in("transformer")[: len(preview.names)]
    features, rows = with_own(preview, np.flatnonzero(outside), 0)
    words = [features.index(name) for name in ("X", "N") if name in features]
    found = [k for k in range(first) if preview.moments[preview.labels[k]] == CACHED_PROMPTS and rows[k, words].any()]
    rows[[*found, *kept_in(preview)]] = 0  # frequencies of positions are laid apart, and stay behind the first step
    features, rows = _rescaled(preview, features, rows)
    more = (0,) * (len(features) - len(preview.features))
    peaks = tuple(replace(row, coefficients=(*row.coefficients, *more)) for row in preview.peaks)
    return replace(preview, key=preview.key + EDITED, features=features, coefficients=rows, peaks=peaks)


def flushed(preview: Program) -> Program:
    """An edited preview with torch's cache emptied between its two steps: before the second one's joined tokens."""
    joined = int(np.flatnonzero(preview.coefficients[:, preview.features.index("Tj")])[-1])
    at = int(np.flatnonzero(preview.events == ALLOCATE)[joined])
    workspace_at = {thread: place + (place > at) for thread, place in preview.workspace_at.items()}
    return replace(preview, key=preview.key + FLUSHED, events=np.insert(preview.events, at, EMPTY_CACHE), workspace_at=workspace_at)


def alone(text: Program) -> Program:
    """A text's encode with its pictures that is no member of a list: what it gives and its mask are not joined, which copies them."""
    copies, gone = text.exported[-2:], list[int]()
    for k in copies:
        alike = (text.coefficients[text.tensor_of_event] == text.coefficients[k]).all(axis=1)
        gone.append(int(np.flatnonzero(alike & (text.events > ALLOCATE))[-1]))
    rows = text.coefficients.copy()
    rows[list(copies)] = 0
    return replace(text, key=text.key + ALONE, coefficients=rows, events=np.delete(text.events, gone))


def together(text: Program) -> Program:
    """`alone` of as many texts as `B` says, of one length, each with its picture: `X` tokens each, `I` and `R` of all pictures.

    The vision tower gets all pictures in a row. Behind it whatever grows with a prompt's tokens, those of the template among them, is there
    for every text: what one has of `X` tokens is as large as its template's tokens ask beside them, or the template is gone.
    """
    single = alone(text)
    names = [f"B*{name}" for name in single.features if name not in PICTURED]
    features = ("1", *(name for name in single.features if name in PICTURED and name != "1"), "B", *names)
    rows = np.zeros((len(single.names), len(features)), dtype=np.int64)
    worded = single.coefficients[:, [n for n, name in enumerate(single.features) if name not in PICTURED]].any(axis=1)
    for n, name in enumerate(single.features):
        column = single.coefficients[:, n]
        if name in PICTURED:
            rows[:, features.index(name)] = np.where(worded, 0, column)
            if name == "1":
                rows[:, features.index("B")] = np.where(worded, column, 0)
        else:
            rows[:, features.index(f"B*{name}")] = column
    own = {each.name: getattr(single, each.name) for each in fields(single)}
    return EventProgram(**own | {"key": text.key + TOGETHER, "features": features, "coefficients": rows, "peaks": ()})


def tensors_of_step(preview: Program) -> int:
    """Of a preview that `edited_preview` rewrites: how many there are from the first of its one step on."""
    return len(preview.names) - _begin(_one_step(preview))


def _begin(preview: Program) -> int:
    """The first tensor of a preview's step: its timestep, which comes before the transformer."""
    begin = preview.forward[1]
    while (preview.coefficients[begin - 1] <= TIMESTEP_BYTES).all():
        begin -= 1
    return begin


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
    begin = _begin(preview)
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
