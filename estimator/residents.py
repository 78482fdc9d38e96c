"""What is on the card: named tensors of components, unnamed ones by scope, bytes of each component; and the peaks read off."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from estimator.allocator import FREE, Allocator
from estimator.allocator_compiled import CompiledAllocator
from estimator.allocator_state import UNIT_BYTES
from estimator.dtypes import UNQUANTISED
from estimator.estimate import Variant
from estimator.experts import LOW, split
from estimator.features import Ints
from estimator.gpus import MIB, Gpu
from estimator.job import Model
from estimator.program import ALLOCATE, Program
from estimator.programs import Profile

# torch's cuBLAS workspace, one for each thread that multiplies: 32 MiB from compute capability 9 on, 8.125 MiB below
# (aten/src/ATen/cuda/CUDABlas/CublasHandlePool: getChosenWorkspaceSize; read off the real allocator on the emulated device)
WORKSPACE_BYTES, WORKSPACE_BYTES_90, WORKSPACE_90_FROM = 8_519_680, 32 * MIB, 9
# Parts that multiply matrices. A VAE may or may not (FLUX.2's does not): caching latents, which comes first, was recorded with what it made
COMPUTE = ("text", "preview", "step.head/encoded", "step.control", "step.core", "forward.adapted", "forward.bare")
# What Z-Image's checkpointed block multiplies first when autograd's thread runs it again: the first product there where only convolutions
# lie behind the blocks (L2P); what Radiance's and a UNet's do, which end in a convolution
RECOMPUTED_PRODUCT = re.compile(r"\.(adaLN_modulation\.\d+|param_generator|up_blocks\.\S+\.(time_emb_proj|attn1\.to_q))\|recompute")
BACKWARD_PRODUCT = re.compile(r"\|backward \w*(?:[Mm]m|Linear)Backward")
# Where a text encoder first multiplies matrices: the angles of its positions, or the first projection of its first attention
ANGLES = re.compile(r"\.rotary_emb\|forward")
PROJECTION = re.compile(r"\.(q_proj|qkv|SelfAttention\.q)\|forward")
EMBEDDED = re.compile(r"\.(linear_1|proj_in)\|forward")  # of a transformer's timestep, or of its tokens: what it multiplies first
MADE_WITH_ANGLES = 3  # frequencies, positions, and their product
DECODER_MOMENTS = ("transformer.local_decoder",)  # Z-Image L2P: convolutions at a picture's full size, in previews and steps
VAE_MOMENTS = ("vae", *DECODER_MOMENTS)  # at which cuDNN has a workspace (estimator.outside)
ROUNDING = "allocator rounding"
SLOTS = "offload_buffers"
SHOWN = {
    "text_encoder0": "text_encoder", "text_encoder1": "text_encoder", "text_encoder2": "text_encoder",
    "ema_copy": "ema", "gradient": "gradients",
    "transformer_1": "transformer", "transformer_2": "transformer",
    "assistant": "training_adapter", "recovery": "recovery_adapter", "recovery_gradient": "gradients",
    f"recovery_gradient{LOW}": "gradients",
    "clip": "activations", "clip_features": "activations",
    "offload": SLOTS, "stuck": "text_encoder", "held": "text_encoder",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """A phase's peaks in bytes, with room to spare or under the capacity that was given. `components` sums to `allocated_bytes`.

    `retries`: how often all cached blocks had to be released in it.
    """

    phase: str
    detail: str
    variant: Variant
    allocated_bytes: int
    reserved_bytes: int
    moment: str
    components: Mapping[str, int]
    failed: bool = False
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Simulation:
    """`failed`: index of the phase that ran out of memory; None if none did. `retries`: releases of all cached blocks.

    `granted_bytes`: the most that was reserved (0: nothing was placed). Under any capacity from there up to its own it is the same.
    """

    phases: tuple[PhasePeak, ...]
    failed: int | None
    retries: int
    granted_bytes: int = 0


NEVER_CLEARED = ("recovery_gradient",)
"""Groups of gradients that stay from a run's first step on: of an accuracy recovery adapter, whose parameters the trainer neither freezes
nor gives to the optimizer, so that nothing clears them (toolkit/util/quantize.py, quantize_model, 27a03a91)."""
GRADIENTS = ("gradient", *NEVER_CLEARED)


def adds(accumulates: bool, group: str) -> bool:
    """Whether a part adds to gradients of the group that are there: their new values go as soon as they are added."""
    return group in NEVER_CLEARED or (accumulates and group in GRADIENTS)


def counted_as(group: str, key: str) -> str:
    """What a part's group of tensors is counted under, where groups are counted as a whole: gradients that stay are each expert's own."""
    return group + split(key)[1] if group in NEVER_CLEARED else group


Held = tuple[int, int]
"""A tensor on the card: the allocator's key, and its bytes as rounded."""


@dataclass
class State:
    """What is on the card. `named`: component -> name -> tensor; `scopes`: unnamed ones, by what they are released with."""

    allocator: Allocator | CompiledAllocator
    named: dict[str, dict[str, Held]] = field(default_factory=dict)
    scopes: dict[str, list[tuple[int, str, int]]] = field(default_factory=dict)
    bytes_of: dict[str, int] = field(default_factory=dict)
    next_key: int = 0

    def copy(self) -> State:
        named = {component: dict(group) for component, group in self.named.items()}
        scopes = {scope: list(rows) for scope, rows in self.scopes.items()}
        return State(self.allocator.copy(), named, scopes, dict(self.bytes_of), self.next_key)

    def count(self, component: str, size_bytes: int) -> None:
        self.bytes_of[component] = self.bytes_of.get(component, 0) + size_bytes

    def holds(self, name: str) -> bool:
        return name in self.named.get(name.partition(":")[0], ())

    def recast(self, component: str, sizes: Sequence[int]) -> None:
        """Each of a component's tensors is made anew, of another size, and the old one goes."""
        group, first = self.named[component], self.take_keys(len(sizes))
        for number, ((name, (key, old)), size) in enumerate(zip(tuple(group.items()), sizes, strict=True), first):
            self.allocator.run([number, key], [size, FREE])
            group[name] = number, rounded(size)
            self.count(shown(component), rounded(size) - old)

    def take_keys(self, count: int) -> int:
        """The first of so many new keys."""
        return self.take_range(count).start

    def take_range(self, count: int) -> range:
        """So many new keys."""
        first, self.next_key = self.next_key, self.next_key + count
        return range(first, self.next_key)


def rounded(size: int) -> int:
    return -(-size // UNIT_BYTES) * UNIT_BYTES


def shown(component: str) -> str:
    return SHOWN.get(component, component)


EMBEDDER = "*time_text_embed*"  # the pattern of quantize_kwargs.exclude that is modelled


def unquantised_linears(model: Model, embedder_linears: int) -> int:
    """How many linear layers at the transformer's beginning a config leaves unquantised."""
    return embedder_linears if EMBEDDER in model.quantize_exclude and model.kind != UNQUANTISED else 0


LOADING = {"load.transformer": "transformer", "load.text": "text_encoder", "setup.network": "adapter"}


def component_of(name: str | None, key: str) -> str:
    """The ledger's component of a tensor: its own if named; what a loading part loads; activations otherwise."""
    if name is not None:
        return shown(name.split(":")[0])
    return LOADING.get(key.split("/")[0], "activations")


def moved(profile: Profile, component: str, weights: str, unquantised: int = 0) -> tuple[Ints, list[int], tuple[str, ...]]:
    """Of each of a component's tensors as it comes to the card: bytes asked for, bytes of its block, and a name. Raises CannotTell."""
    key = ("moved", component, weights, unquantised)
    if key not in profile.kept:
        sizes = np.array(profile.resident(component, weights, unquantised), dtype=np.int64)
        blocks = (-(-sizes // UNIT_BYTES) * UNIT_BYTES).tolist()
        profile.kept[key] = sizes, blocks, tuple(f"{component}:moved{n}" for n in range(len(blocks)))
    return profile.kept[key]  # type: ignore[return-value]


def workspace_bytes_for(compute_capability: str) -> int:
    """torch's cuBLAS workspace of one thread on a card."""
    return WORKSPACE_BYTES_90 if int(compute_capability.split(".")[0]) >= WORKSPACE_90_FROM else WORKSPACE_BYTES


def workspace_of(gpu: Gpu) -> int:
    """The same of a card: as calibrated, else by compute capability."""
    return workspace_bytes_for(gpu.compute_capability) if gpu.workspace_bytes is None else gpu.workspace_bytes

def place_of(name: str) -> int:
    """Of "transformer:12.1": parameter 12 (its inner tensor 1)."""
    return int(name.partition(":")[2].partition(".")[0])


def first_in(key: str, workspace_at: Mapping[str, int]) -> bool:
    """Whether a part multiplies matrices in its forward."""
    return key.startswith(COMPUTE) or "forward" in workspace_at


def first_product(program: Program, tensors: Ints, events: Ints) -> int:
    """The event at which autograd's thread first multiplies matrices; 0 where it does not. `tensors`: of each event."""
    first = _made_at(tensors, program.first_in(BACKWARD_PRODUCT)) or 0
    again = _made_at(tensors, program.first_in(RECOMPUTED_PRODUCT))
    return first if again is None or again >= first else _result_of(program, tensors, events, again)


def _made_at(tensors: Ints, tensor: int | None) -> int | None:
    """The first event of a tensor's; None where it is in none."""
    at = int((tensors == tensor).argmax()) if tensor is not None and len(tensors) else 0
    return at if len(tensors) and tensors[at] == tensor else None


def _result_of(program: Program, tensors: Ints, events: Ints, first: int) -> int:
    """The event of a layer's result: the first of its tensors that is as large as samples or tokens ask, behind what its weight is rebuilt
    from. Where one sample's is of no such size, the first that is smaller than the rebuilt weight.
    """
    label, largest, smaller = program.labels[tensors[first]], 0, None
    for at in range(first, len(events)):
        if events[at] < 0:
            continue
        if program.labels[tensors[at]] != label:
            break
        if not program.constants[tensors[at]]:
            return at
        if events[at] < largest and smaller is None:
            smaller = at
        largest = max(largest, int(events[at]))
    return first if smaller is None else smaller


def first_text_product(program: Program) -> int:
    """The event behind a text encoder's first product, of parts that were recorded after others had multiplied; 0 where it is not known.

    A projection's product is the last tensor that is made there: what its weight is rebuilt from comes first.
    """
    return _behind_first(program, ANGLES, PROJECTION)


def first_forward_product(program: Program, key: str) -> int:
    """The event behind a part's first product in the forward, where no recording says it; 0 where it is not known."""
    if key.startswith("text"):
        return first_text_product(program)
    return _behind_first(program, EMBEDDED) if key.startswith("step.core") else 0


def _behind_first(program: Program, *moments: re.Pattern[str]) -> int:
    own = program.labels[: len(program.labels) - program.imports]
    wanted = {row for row, moment in enumerate(program.moments) if any(each.search(moment) for each in moments)}
    first = next((k for k, row in enumerate(own) if row in wanted), None)
    if first is None:
        return 0
    alike = next((n for n, row in enumerate(own[first:]) if row != own[first]), len(own) - first)
    product = first + (MADE_WITH_ANGLES if ANGLES.search(program.moments[own[first]]) else alike) - 1
    return int(np.flatnonzero(program.events == ALLOCATE)[product]) + 1
