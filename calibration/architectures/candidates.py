"""Candidate features of each part: of which of a job's sizes (estimator.features) its tensors may be affine functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from estimator.controls import CONTROLLED_PREVIEW
from estimator.operations import BEGUN_PREVIEW, CONTROLLED_CORE, PREVIEW, TIMED_CORE
from estimator.padded import PADDED_CORE, PADDED_PREVIEW

if TYPE_CHECKING:
    from calibration.architectures.base import Layout

# Parts of a VAE that works in chunks, and of an image encoder over what a clip begins with
CLIPS = ("encode.", "decode", "tile.", "latents", "step.first_frame", "preview.first_frame", "step.given_frame", "preview.given_frame")
SEEN = ("step.picture", "preview.picture")
OF_ADAPTER = ("setup.network", "setup.ema", "step.update", "step.ema", "save", "sample.enter", "sample.leave")
# Frames that a convolution pads, at each scale of a VAE of factor 8 (estimator.features)
PADDED = ("C1", "C2", "C4", "C8", "D1", "D2", "D4")
FRAMED = ("H1", "H2", "H4", "H8")  # the same of a decoder that takes all frames of a clip together


def candidates(layout: Layout, key: str) -> tuple[str, ...]:
    """Of a part of any kind, the likelier first; `layout.beside` has those of parts with a control image, where others have none."""
    kind = key.split("/")[0]
    if layout.beside is not None and kind in (CONTROLLED_CORE, CONTROLLED_PREVIEW):
        return candidates(layout.beside, key)
    if layout.sound_per_second and (own := _with_sound(layout, key)):
        return own
    return _around_steps(layout, key) or _padded(layout, key) or _steps(layout, key)


def _around_steps(layout: Layout, key: str) -> tuple[str, ...]:
    """Of parts without the transformer; none of others."""
    kind = key.split("/")[0]
    if kind.startswith("load") or kind in ("step.end", "setup.read"):
        return ("1",)
    if layout.video and (key.startswith("step.head/encoded") or kind.startswith(CLIPS)):
        clip = (*PADDED, "A", "P32", *(("A*K", "K") if kind in ("encode.next", "decode.next") else ("V", "T", "F")))
        clip += tuple(f"A*{name}" for name in layout.norms) if kind.startswith(("decode", "tile.")) else ()
        return ("1", *clip) if "/many" not in key else ("1", "B", *(f"B*{name}" for name in clip), *clip)
    if kind in SEEN:  # of one size, after the picture was brought to it
        return ("1", "B", "A", "B*A")
    if kind in OF_ADAPTER:
        return ("1", *_kron(layout, 1), *_kron(layout, 2)) if layout.adapted else ("1", "r", *(("c",) * layout.convolved))
    if kind == "preview.prompts":  # N first: where all negative prompts are empty, what has their tokens' size is theirs
        return ("X", "N", "1")
    if kind.startswith(("text", "cache_text")):
        return _texts(layout, key)
    return ("1", "T", "E", "L32") if kind in ("cache_latents.item", "decode") else ()


def _texts(layout: Layout, key: str) -> tuple[str, ...]:
    if key.endswith("images"):
        return ("1", "X", "I", *(f"{name}*Y" for name in layout.flash))
    rows = ("rows32_X",) * layout.int8_rows
    flash = (f"{name}*{name.split('_')[1]}" for name in layout.flash_text)
    return ("1", "B", "B*X", *rows) if key.endswith("/many") else ("1", "X", *rows, *flash)


def _padded(layout: Layout, key: str) -> tuple[str, ...]:
    """Of pictures that are padded to one length, or have one area, and of squares beside them; none of others."""
    kind = key.split("/")[0]
    if layout.padded_to and kind in (PREVIEW, PADDED_PREVIEW):
        return ("1", "r", *(("T", "E", "L32") if kind == PADDED_PREVIEW else ()))
    if kind != PADDED_CORE:
        return ()
    texts = 3 * (layout.padded_tokens or 0)
    sums = tuple(f"reduce{layout.width}_{length}" for length in (layout.padded_to, layout.padded_to + texts, texts))
    return ("1", "B", "r", "B*r", "B*T", *(f"B*{one}" for one in sums), "T", *sums) if "/many" in key else ("1", "r", "T", "E")


def _steps(layout: Layout, key: str) -> tuple[str, ...]:
    """Of steps' heads and cores, and of previews."""
    kind = key.split("/")[0]
    sums = (f"reduce{layout.width}_{length}" for length in layout.reduced)
    reductions, lengths = (*layout.scratch, *sums, *("rows32_T", "rows32_O") * layout.int8_rows), _lengths(layout, key)
    if layout.adapted:
        return _with_lokr(layout, key, (*lengths, *layout.masks, "E", "L32"), reductions)
    timed = ("A",) if kind == TIMED_CORE or (layout.pixels and kind == PREVIEW) else ()  # pixels of a first frame
    single = (*lengths, *timed, *layout.masks, "E", "L32", *(f"r*{length}" for length in lengths), *reductions)
    if layout.convolved:
        single = ("c", *(f"c*{length}" for length in lengths if not length[-1].isdigit()), *single)
    if not key.endswith("/many"):
        return ("1", "r", *single)
    return ("1", "B", "r", "B*r", *(f"B*{name}" for name in single), *single, *_of_later_samples(layout, kind))


def _lengths(layout: Layout, key: str) -> tuple[str, ...]:
    """Lengths of sequences, with the negative prompt's in previews that have one."""
    kind, lengths = key.split("/")[0], layout.lengths
    if kind in (PREVIEW, BEGUN_PREVIEW, CONTROLLED_PREVIEW) and layout.guidance == "sequential" and "/cfg" in key:
        lengths = (*lengths, "N", *({"S": "G", "J": "JG"}[name[0]] + name[1:] for name in lengths if name[0] in "SJ"))
    if kind == PREVIEW and layout.guidance == "batched" and "/cfg" in key:  # each prompt is padded by itself before they meet
        lengths = (*lengths, "N", "N32", *layout.single_scratch)
    return lengths


def _of_later_samples(layout: Layout, kind: str) -> tuple[str, ...]:
    """Of a batch's third sample and later ones, where steps have tensors of each sample alone."""
    by_sample = ("step.core",) * layout.sample_by_sample + ("step.head",) * layout.heads_by_sample
    if not by_sample or not kind.startswith(by_sample):
        return ()
    over = ("T", "Z") if "Z" in layout.lengths else ("T", "X") if "Q" in layout.lengths else ("T",)
    return ("B>2", "B>3", *(f"B>{n}*{length}" for length in over for n in (2, 3)))


def _with_lokr(layout: Layout, key: str, lengths: tuple[str, ...], reductions: tuple[str, ...]) -> tuple[str, ...]:
    between = _kron(layout, 3)
    single = (*lengths, *(f"{kron}*{over}" for over in layout.reduced for kron in between), *reductions)
    weights = (*_kron(layout, 1), *_kron(layout, 2))
    if key.endswith("/many"):
        return ("1", "B", *weights, *(f"B*{name}" for name in (*between, *single)), *single)
    return ("1", *weights, *between, *single)


def _kron(layout: Layout, which: int) -> tuple[str, ...]:
    """Of each size of layer, the first or second factor of a LoKr, or (3) what lies between them (estimator.kronecker)."""
    return tuple(f"kron{which}_{inputs}x{outputs}" for inputs, outputs in layout.adapted)


def _with_sound(layout: Layout, key: str) -> tuple[str, ...]:
    """Of the parts that only video with sound has; none of others."""
    kind, many = key.split("/")[0], "/many" in key
    if kind in ("step.prompts", "step.captions"):
        return ("1", "B", "B*X") if many else ("1", "X")
    if kind in ("sound", "decode.sound"):
        return ("1", "O") if kind == "decode.sound" else ("1", "M", "M2", "M4")  # its encoder halves them twice
    means: tuple[str, ...] = ()
    if kind.startswith("encode."):
        names, means = ("T", "A"), layout.means[0]
    elif kind in ("decode.image", "decode.clip"):
        names, means = ("T", "A", *(f"{frame}*F" for frame in FRAMED), *FRAMED, "F", "E*F", "E"), layout.means[1]
    elif kind in ("latents", "decode", "decode.joined", "decode.shown") or key.startswith(("step.head/encoded", "step.head/cached")):
        names = ("T", "A")
    else:
        return ()
    return ("1", "B", *(f"B*{name}" for name in names), *names, *means) if many else ("1", *names, *means)
