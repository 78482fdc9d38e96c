"""What each phase of a job sees of an edit, and which settings only ever lower it: with these the search skips what could not help.

Both are said of peak rows and of every architecture, and held by tests over all examples (tests/test_plan_search.py). Of START it is
said of replays, what they allocate and are granted, and where it is least is true to some segments of 2 MiB: where blocks come to lie is
no simple matter. (Of previews of two sizes that become one, one prompt less is encoded; nothing of it stays.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache

from estimator.dtypes import TYPE_KEY
from estimator.engine import EARLY
from estimator.planner.edits import Edit
from estimator.residents import PhasePeak

LOAD, START = "load", "start"
"""Loading; and all before the first previews, as a replay sees it."""
UNTOLD = "untold"
"""Stands among the phases for all of a job that cannot be read or was never recorded."""
BASELINE = "baseline"
"""The round of previews before training, which sees less than the later ones."""
TRAIN = "train"
BESIDE_STEPS = frozenset({"previews", "latents"})
"""Settings that leave the tensors of a training step as they are (but for the VAE's, where it waits for images): they change what lies
about when it begins."""
_BATCH = ("train.batch_size", "datasets.*.batch_size", "train.gradient_accumulation")
_STEP = (*_BATCH, "train.gradient_checkpointing", "train.optimizer")
_PREVIEWS = ("sample.*", "train.disable_sampling")
_SIZES = ("datasets.*.resolution", "datasets.*.num_frames", "model.model_kwargs.*")
UNSEEN: Mapping[str, tuple[str, ...]] = {
    UNTOLD: ("datasets.*.resolution", "sample.*"),
    LOAD: ("train.*", "datasets.*", "sample.*", "model.model_kwargs.*"),
    "prepare": (*_STEP, "sample.*", *_SIZES),
    "cache_latents": (*_STEP, *_PREVIEWS),
    "cache_text": (*_BATCH, "train.optimizer", *_PREVIEWS),
    BASELINE: (*_STEP, *_SIZES),
    "sample": ("train.gradient_checkpointing",),
    "train": ("sample.*",),
    "save": ("train.gradient_checkpointing", "sample.*"),
}
"""Phase -> patterns of the keys that make no difference to it."""
BEFORE_PREVIEWS = tuple(phase for phase in UNSEEN if phase in EARLY)
AFTERWARDS = tuple(phase for phase in UNSEEN if phase not in EARLY)
_UNSEEN_AT_START = (*_BATCH, "train.optimizer", "sample.*")

TEXT_WEIGHTS = ("model.quantize_te", "model.qtype_te")
CACHES_TEXT = "train.cache_text_embeddings"
AFTER_TEXT = frozenset({BASELINE, "sample", "train", "save"})
"""With cached text the encoder is gone in these: TEXT_WEIGHTS make no difference either."""

LOWERING: Mapping[str, frozenset[str]] = {
    LOAD: frozenset({"offloading"}),
    START: frozenset({"previews"}),
    "prepare": frozenset({"offloading", "latents", "previews"}),
    "cache_latents": frozenset({"buckets", "frames", "controls"}),
    "cache_text": frozenset({"buckets", "frames", "controls"}),
    BASELINE: frozenset({"offloading", "previews", "latents"}),
    "sample": frozenset({"offloading", "previews", "optimizer", "batch", "buckets", "frames", "controls"}),
    "train": frozenset({"offloading", "buckets", "frames", "controls", "checkpointing", "optimizer"}),
    "save": frozenset({"offloading", "latents", "optimizer", "batch", "buckets", "frames", "controls"}),
}
"""Phase -> settings whose last alternative leaves it no larger than any other does; without the phase there is nothing to be larger."""
CHECKPOINTS = "train.gradient_checkpointing"
CHECKPOINTED_ONLY = {"train": frozenset({"offloading"})}
"""Of these only with gradient checkpointing: without, every offloaded layer keeps its input, and the most is not the least."""
ENDS: Mapping[str, frozenset[str]] = {
    UNTOLD: frozenset({"batch", "buckets", "frames", "controls", "checkpointing", "optimizer", "offloading", "previews"}),
    START: frozenset({"buckets", "frames", "controls", "checkpointing", "offloading"}),
    "cache_text": frozenset({"offloading", "checkpointing", "latents"}),
    "sample": frozenset({"latents"}),
    "train": frozenset({"batch", "previews", "latents"}),
    "save": frozenset({"previews"}),
}
"""Phase -> settings of which the first or the last alternative leaves it least; where neither can be told, no other can. A smaller
batch accumulates gradients, offloaded layers of some architectures no longer leave the card for caching, what a first round of previews
would have moved stays without one, and where a UNet's VAE is gone behind previews the decode is their highest, with cuDNN's workspace."""


def phase_of(peak: PhasePeak) -> str:
    """The phase as it is called here."""
    return BASELINE if peak.phase == "sample" and peak.detail == BASELINE else peak.phase


def seen(edits: Iterable[Edit], phase: str, text_away: bool = False) -> tuple[Edit, ...]:
    """Those edits that make a difference to a phase. `text_away`: text is cached and its encoder gone."""
    return tuple(edit for edit in edits if _sees(phase, text_away, edit.key))


@cache  # of some thirty keys, asked thousands of times
def _sees(phase: str, text_away: bool, key: str) -> bool:
    if key == TYPE_KEY:  # all of the model is in it
        return True
    unseen = (*(_UNSEEN_AT_START if phase == START else UNSEEN[phase]), *(TEXT_WEIGHTS if text_away and phase in AFTER_TEXT else ()))
    return not any(fnmatchcase(key, pattern) for pattern in unseen)


def lowering(phase: str, checkpointed: bool) -> frozenset[str]:
    """LOWERING of a phase, with gradient checkpointing or without."""
    return LOWERING.get(phase, frozenset()) - (frozenset() if checkpointed else CHECKPOINTED_ONLY.get(phase, frozenset()))
