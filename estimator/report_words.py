"""Figures, phases, parts and moments as the screen has them. JSON keeps the names as they are; this is for reading only."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from estimator.estimate import BORDERLINE, OOM, SAFE, UNKNOWN, Estimate, Interval, PhaseEstimate, Variant
from estimator.gpus import GIB, Calibration, Gpu
from estimator.kernels import unsure_of_attention

SPAN_WIDTH = 13
"""Of a table's column "low - high"."""
_DOING = {
    "load": "loading",
    "cache_latents": "caching latents",
    "cache_text": "caching text",
    "prepare": "preparing",
    "sample": "previewing",
    "train": "training",
    "save": "saving",
}
VALIDATION = "validation"  # detail of a phase of training: between steps
_PARTS = {  # (phase, detail) -> before the size, after it
    ("load", "transformer"): ("loading the transformer", ""),
    ("load", "text encoder"): ("loading the text encoder", ""),
    ("load", "the rest"): ("loading the rest", ""),
    ("prepare", "adapter"): ("setting up the adapter", ""),
    ("prepare", "before the loop"): ("preparing the training loop", ""),
    ("sample", "baseline"): ("first preview", ""),
    ("sample", "with optimizer state"): ("previewing", ""),
    ("train", VALIDATION): ("validating", ""),
}
_SHORT = {"baseline": "first", "with optimizer state": "later"}
_MOMENTS = {  # scopes of the trainer that the recorder names (profiles' labels)
    "backward": "backward pass, outside of any module",
    "cache_latents": "caching latents",
    "cache_text": "caching text",
    "clip_grad": "clipping the gradients",
    "ema_update": "updating the EMA weights",
    "encode_prompt": "encoding a prompt",
    "generate_single_image": "making a preview, outside of any module",
    "moving to the device": "moving a model to the card",
    "optimizer_step": "the optimizer's step",
    "predict_noise": "forward pass, outside of any module",
    "sample": "going from training to previews or back",
    "save": "saving the adapter",
    "setup": "setting up the adapter",
    "setup_ema": "copying the adapter for EMA",
    "step": "the training step, outside of any module",
    "vae_encode": "the VAE encoding an image",
}
_COMPONENTS = {"workspace": "cuBLAS workspace", "measuring": "Triton's measuring", "vae": "VAE", "ema": "EMA copy of the adapter"}


def gib(count_bytes: int, width: int = 80) -> str:
    """Bytes as GiB with two decimals, never "-0.00"; with fewer where the text would be wider than `width` characters."""
    texts = [f"{count_bytes / GIB + 0.0:.{decimals}f}" for decimals in (2, 1, 0)]
    return next((text for text in texts if len(text) <= width), texts[-1]).replace("-0.00", "0.00")


def span(device: Interval) -> str:
    """Low and high in a column of SPAN_WIDTH."""
    each = SPAN_WIDTH // 2
    return f"{gib(device.low_bytes, each)}-{gib(device.high_bytes, each)}"


LOWER_BOUND = "Without the allocator's replay (--fast): a lower bound; safe is not certain."


_SENTENCE = {SAFE: "fits on", BORDERLINE: "may or may not fit on", OOM: "does not fit on", UNKNOWN: "cannot be told for"}


def sentence(estimate: Estimate) -> str:
    """What a job does on a card; one that is safe by peak rows alone is only not known to fail."""
    return "may fit on" if estimate.lower_bound and estimate.verdict == SAFE else _SENTENCE[estimate.verdict]


def never_safe(gpu: Gpu) -> str:
    """Why nothing is called safe on a card that has not the attention kernel that was recorded."""
    return f"nothing is called safe on compute capability {gpu.compute_capability}: torch runs another attention kernel there, not modelled"


def headline(estimate: Estimate) -> PhaseEstimate | None:
    """The phase that the answer names: where it fails first, else the one that fills the card most."""
    if estimate.verdict != SAFE or not estimate.phases:
        return estimate.peak_phase
    return max(estimate.phases, key=lambda phase: (phase.device.likely_bytes, phase.allocated_bytes))


def what(phase: PhaseEstimate) -> str:
    """The phase in words: "training 1024x1024 batch 4", "loading the text encoder"."""
    before, after = _PARTS.get((phase.phase, phase.detail), (_DOING.get(phase.phase, phase.phase), ""))
    return " ".join(each for each in (before, size(phase.variant), after) if each)


def row_name(phase: PhaseEstimate) -> str:
    """The phase in the table's first column: "train 1024x1024", "sample 1024x1024 batch 2 first"."""
    detail, variant = phase.detail, phase.variant
    if detail.startswith("resolution ") and variant.width is not None and variant.height is not None:
        side = detail.removeprefix("resolution ")
        detail = "" if side == str(variant.width) == str(variant.height) else f"of {side}"
    name = phase.phase.replace("_", " ")
    if detail == VALIDATION:
        name, detail = "validate", ""
    return " ".join(each for each in (name, size(variant), _SHORT.get(detail, detail)) if each)


def size(variant: Variant) -> str:
    """ "1024x1024 batch 4"; one frame and a batch of one go without saying."""
    text = f"{variant.width}x{variant.height}" if variant.width is not None else ""
    if variant.frames is not None and variant.frames > 1:
        text += f"x{variant.frames}"
    if variant.batch is not None and variant.batch > 1:
        text += f" batch {variant.batch}"
    return text.strip()


def moment(label: str) -> str:
    """The moment of a peak: "transformer.layers.29.ffn|backward MmBackward0" is "backward of transformer.layers.29.ffn (MmBackward0)"."""
    if label in _MOMENTS:
        return _MOMENTS[label]
    module, bar, how = label.partition("|")
    if not bar:
        return re.sub(r"^load: ([A-Z])(?=[a-z])", lambda found: found[1].lower(), label).removeprefix("load: ")
    module = re.sub(r"^text_encoder([01])\b", lambda found: "text_encoder" + ("_2" if found[1] == "1" else ""), module)
    module = module.rpartition("/")[0] or module  # behind the slash: a module without a name of its own, by its class
    kind, _, operation = how.partition(" ")
    words = {"forward": "forward of", "backward": "backward of", "recompute": "forward, done again for the backward pass, of"}
    text = f"{words.get(kind, kind)} {module}"
    return f"{text} ({operation.rpartition('::')[2]})" if operation else text


def component(name: str) -> str:
    """A component of the ledger."""
    return _COMPONENTS.get(name, name.replace("_", " "))


def distinct(phases: Sequence[PhaseEstimate], keep: PhaseEstimate | None) -> list[PhaseEstimate]:
    """Without rows that would read the same: of those the one that fills the card most, or `keep`."""
    rows: dict[str, PhaseEstimate] = {}
    for phase in phases:
        name = row_name(phase)
        other = rows.get(name)
        if other is None or phase is keep or (other is not keep and phase.device.likely_bytes > other.device.likely_bytes):
            rows[name] = phase
    return list(rows.values())


def calibrated(used: Calibration) -> str:
    """That a card's figures are an overlay's."""
    emulated = "; made on the emulated device, no measurement" if used.emulated else ""
    return f"The card as calibrated on {used.date[:10]} (overlay {os.path.basename(used.path)}{emulated})."


def unsure(estimate: Estimate) -> str:
    """Why a job that fits is not called safe; empty where its size is to blame, or it is."""
    return f"What is modelled fits; {never_safe(estimate.gpu)}." if unsure_of_attention(estimate) else ""


def spilled(estimate: Estimate) -> str:
    """What happens on Windows where a job is larger than the card; empty where nothing of the kind does."""
    if not estimate.spilled_bytes:
        return ""
    size, where = f"{estimate.spilled_bytes / GIB:.2f} GiB", what(max(estimate.phases, key=lambda phase: phase.reserved_bytes))
    if estimate.verdict == OOM:
        return f"On Windows it need not crash: the driver moves {size} to the machine's RAM ({where}), and it will run many times slower."
    return f"On Windows torch's cache may grow {size} beyond the card ({where}), which the driver moves to RAM: many times slower there."
