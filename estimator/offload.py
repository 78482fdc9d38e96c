"""Layer offloading: which layers wait on the host, and what each copies to the card when it is used.

AI Toolkit's MemoryManager goes through a component's linear layers and convolutions in the order of `named_modules()`. Each stays on
the card if a random number is above the percentage; the others keep their weights in pinned host memory. When one is used, a
second stream copies its weights into the next of four slots, in the backward pass of plain layers once more, into four other ones; a slot
keeps what was put there until the next copy is made, so that the old and the new one meet.

Source: toolkit/memory_management/manager.py (attach), manager_modules.py (_stage_forward_weight, _BouncingLinearFn,
OstrisLinearLayerMemoryManager), 27a03a91.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import sqrt
from operator import getitem
from random import Random
from typing import Any

import numpy as np

from estimator.archive import Later
from estimator.recipes import kind_named, load_recipes

SLOTS = 4
"""AI_TOOLKIT_OFFLOAD_DEPTH, the trainer's default: slots of the forward ring, and of the backward ring."""
STREAM = 1
"""Of the copies. The trainer's third stream takes gradients of weights to the host, which a frozen model has none of."""
PLAIN, WRAPPED, OWN = 0, 1, 2
"""What a layer is: a weight of the compute dtype; torchao's wrapper of data and scale; the trainer's own quantised layer."""
SAVING = ("convrot8",)
"""Kinds of weights whose layers keep their codes for the backward pass."""
CODES_TO_WEIGHT = 2
"""Bytes of a weight in bf16 for each byte of it in float8."""


NORM = "norm"
"""In the name of a module that is a norm (manager.py: UNMANAGED_MODULES_INCLUDES, by classes' names; norm_out: AdaLayerNormContinuous)."""
NORMS_BY_CLASS = frozenset({
    "time_embed", "audio_time_embed", "prompt_adaln", "audio_prompt_adaln", "av_cross_attn_video_scale_shift",
    "av_cross_attn_audio_scale_shift", "av_cross_attn_video_a2v_gate", "av_cross_attn_audio_v2a_gate",
})  # fmt: skip
"""Modules that are one by their class alone: LTX-2's LTX2AdaLayerNormSingle (diffusers c9438378, transformer_ltx2.py)."""

GROUP, STUCK = "offload", "stuck"
"""Groups of named tensors: what lies in slots; a layer's weights that nothing takes off the card."""
HELD = "held"
"""Group of what a slot holds that was made on the default stream: the weight of a layer that is stuck on the card."""
GROUPS = (GROUP, HELD)
LEFT_BEHIND = (*GROUPS, STUCK)
"""What no move takes off the card: it goes where a text encoder is destroyed (MemoryManager.free, toolkit/unloader.py: with cached text
alone; `unload_text_encoder` without it is a move to the host, which leaves the slots as they are)."""
MOMENT, TRANSFORMER = "layer offloading: a layer's weights are copied in", "transformer"
"""The moment of copies, and how moments inside the transformer begin."""
FORWARD, BACKWARD = "forward", "backward"
"""The rings."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that offloading can take. `sizes`: bytes of its tensors in the order of the table of residents; `place`: the first's
    there; `number`: the first's in names of tensors, of which it has `numbers`.

    Without tensors: its weight is another module's too, which keeps it on the card. `stuck`: it was so when the layer was taken, and
    quantising gave it one of its own: that is on the card, and nothing takes it off. `plain_bytes`: a layer that became the trainer's own
    quantised one after it was taken is still copied as the plain layer that it was, rebuilt on the host first. `carried`: part of a norm,
    which the manager moves as a whole: its weights come to the card all the same, and copying to the card what is there makes nothing.
    `saves`: its backward rebuilds the weight from the codes that its forward had, which stay until then (ConvRot: convrot_quant.py,
    _int8_linear_ste_setup).
    """

    place: int
    number: int
    numbers: int
    what: int
    sizes: tuple[int, ...]
    stuck: bool = False
    plain_bytes: int | None = None
    carried: bool = False
    saves: bool = False

    @property
    def copied(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What is copied in to stay in its slot: the weight's tensors, then the bias."""
        if self.carried:
            return (CODES_TO_WEIGHT * self.sizes[0],) if self.what == WRAPPED else (), ()
        if self.what == OWN:  # buffers; the bias is a parameter, and so stands first
            codes = self.sizes.index(max(self.sizes))
            weight = self.sizes[codes:] if self.plain_bytes is None else (self.plain_bytes,)
            return () if self.stuck else weight, self.sizes[:codes]
        if self.what == WRAPPED:
            return (CODES_TO_WEIGHT * self.sizes[0],), self.sizes[2:]
        return self.sizes[:1], self.sizes[1:]

    @property
    def passing(self) -> tuple[int, ...]:
        """What is copied in and gone once the weight is rebuilt: torchao's data and scale."""
        return self.sizes[:2] if self.what == WRAPPED and not (self.stuck or self.carried) else ()

    @property
    def rebuilt(self) -> bool:
        """The weight is rebuilt as it is copied in."""
        return self.what == WRAPPED

    @property
    def bounces(self) -> bool:
        """Its backward copies the weight anew, and its input is kept for it (_BouncingLinearFn)."""
        return self.what != OWN or self.plain_bytes is not None

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes)


@dataclass(frozen=True, slots=True)
class Copied:
    """What a layer's copy makes, in order, each on the copies' stream: `passing` codes, what is gone once the weight is `rebuilt`, the
    weight, the bias. `bounces`: see Layer."""

    sizes: tuple[int, ...]  # codes, what the rebuilding makes, and the weight
    gone: tuple[int, ...]  # which of them are freed at once, in that order
    weight: int  # the first of those that stay
    bias: tuple[int, ...]
    bounces: bool


def copied_by(layer: Layer) -> Copied:
    (weight, bias), passing = layer.copied, layer.passing
    rebuilt = weight if layer.rebuilt else ()  # the cast, before the scaled one
    codes, first = len(passing), len(passing) + len(rebuilt)
    return Copied((*passing, *rebuilt, *weight), (*range(codes, first), *range(codes)), first, bias, layer.bounces)


def taken_before_quantising(layers: Sequence[Layer], plain: Sequence[Layer]) -> tuple[Layer, ...]:
    """Layers of a component whose layers are taken while they are `plain`, and quantised then, on the host."""
    out = []
    for layer, was in zip(layers, plain, strict=True):
        stuck = bool(layer.sizes) and not was.sizes
        weight = (was.sizes[0] if was.sizes else 0) if layer.what == OWN else None
        out.append(replace(layer, stuck=stuck, plain_bytes=weight))
    return tuple(out)


def layers_of(
    places: Sequence[Sequence[int]], resident: Sequence[int], names: Sequence[str] = (), weights: str = ""
) -> tuple[Layer, ...]:
    """Layers from a profile's `places` of a component and a kind of weights, its table of residents, and the layers' names."""
    out = []
    for n, (place, count, number, what) in enumerate(places):
        numbers = count - 1 if what == WRAPPED else count
        carried = bool(names) and _carried(names[n])
        saves = what == OWN and (weights in SAVING or (kind_named(weights) and load_recipes()[weights].saves_codes))
        out.append(Layer(place, number, numbers, what, tuple(resident[place : place + count]), carried=carried, saves=saves))
    return tuple(out)


@cache  # a component has them in every kind of weights
def _carried(name: str) -> bool:
    """Whether a layer is in a norm, by its name."""
    return any(NORM in module or module in NORMS_BY_CLASS for module in name.split(".")[:-1])


def spread(layers: Sequence[Layer]) -> list[float]:
    """A number between 0 and 1 for each layer in place of the trainer's random one: as even as can be over layers of each size.

    Van der Corput's sequence over the layers, the largest first: whatever the percentage, close to that share of the bytes is taken,
    and a higher one takes the same layers and more.
    """
    sizes = np.array([layer.total_bytes for layer in layers], dtype=np.int64)
    out = np.empty(len(layers))
    out[np.argsort(-sizes, kind="stable")] = _van_der_corput(len(layers))
    return out.tolist()


@cache  # a component's layers are as many in every kind of weights
def _van_der_corput(count: int) -> list[float]:
    out = []
    for rank in range(count):
        value, part, left = 0.0, 0.5, rank + 1
        while left:
            value += part * (left & 1)
            left, part = left >> 1, part / 2
        out.append(value)
    return out


def choose(components: Sequence[tuple[Sequence[Layer], float]], seed: int | None = None) -> list[frozenset[int]]:
    """Which layers wait on the host, for each component (its layers, percentage) in the order in which the trainer attaches them.

    `seed`: that of Python's random numbers when loading begins (the trainer's environment variable SEED), which makes it the
    trainer's own choice. None: the trainer's choice differs from run to run; this one is `spread`'s.
    """
    source = None if seed is None else Random(seed)
    out = []
    for layers, percent in components:
        if percent >= 1 or percent <= 0:
            out.append(frozenset(range(len(layers)) if percent >= 1 else ()))
            continue
        numbers = spread(layers) if source is None else [source.random() for _ in layers]
        out.append(frozenset(n for n, number in enumerate(numbers) if number <= percent))
    return out


def deviation_bytes(layers: Sequence[Layer], percent: float) -> int:
    """Standard deviation of what stays on the card, layers being chosen at random."""
    share = min(max(percent, 0.0), 1.0)
    return round(sqrt(share * (1 - share) * sum(layer.total_bytes**2 for layer in layers)))


def slot_name(ring: str, age: int, part: str) -> str:
    """Of a tensor in a slot: the ring, how many copies ago it was made, and which of the slot's tensors it is."""
    return f"{HELD if part == HELD else GROUP}:{ring}{age}.{part}"


def aged(names: Mapping[str, object], copies: Mapping[str, int]) -> dict[str, str]:
    """New names of the slots' tensors that are still there after so many copies in each ring."""
    out = {}
    for name in names:
        ring_age, _, part = name.partition(":")[2].partition(".")
        ring = FORWARD if ring_age.startswith(FORWARD) else BACKWARD
        out[name] = slot_name(ring, int(ring_age.removeprefix(ring)) + copies.get(ring, 0), part)
    return out


def second_step(labels: Sequence[int], moments: Sequence[str]) -> int:
    """The tensor with which a preview's second step begins: the first behind the transformer that is no layer's copy."""
    inside = {row: moments[row].startswith(TRANSFORMER) for row in set(labels) if moments[row] != MOMENT}
    first = next(k for k, row in enumerate(labels) if inside.get(row))
    return next(k for k, row in enumerate(labels) if k > first and not inside.get(row, True))


def table_of(profile: Any, name: str) -> Mapping[str, Any]:
    """What a profile knows of its components' layers (`layers`, `places`): the relative's, where the component is the relative's.

    The transformer comes first, as in recordings, whose uses of layers are numbered through.
    """
    shared = table_of(profile.relative, name) if profile.shares_all and profile.relative is not None else {}
    mine = profile.data.get(name, {})
    holders = {key: shared for key in shared if not profile.has_own_resident(key.split("/")[0])} | dict.fromkeys(mine, mine)
    return Later({key: partial(getitem, holders[key], key) for key in sorted(holders, key=lambda key: not key.startswith("transformer"))})
