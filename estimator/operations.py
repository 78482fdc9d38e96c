"""The operations that a timeline is made of: what happens to the card, by name; sizes come later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from estimator.estimate import Variant

# Forward, loss, backward of a step: alone, with control images, with the sound of clips, with outputs that are preserved; with a
# timestep for each token, of clips that begin with a given picture or of single images; of captions that differ in length (Lumina2)
CORE, CONTROLLED_CORE, SOUND_CORE, PRESERVING_CORE = "step.core", "step.core.controlled", "step.core.sound", "step.core.preserving"
TIMED_CORE, TIMED_IMAGE_CORE, UNEVEN_CORE = "step.core.timed", "step.core.timed_image", "step.core.uneven"
PREVIEW, BEGUN_PREVIEW = "preview", "preview.begun"  # denoising; from a first latent frame that is given and held


@dataclass(frozen=True, slots=True)
class Begin:
    """A phase begins: peaks are reset."""

    phase: str
    detail: str = ""
    variant: Variant = field(default_factory=Variant)


@dataclass(frozen=True, slots=True)
class End:
    """The phase is over: its peaks are read."""


@dataclass(frozen=True, slots=True)
class Part:
    """Run a program. Unnamed tensors that outlive it belong to `scope` until that is released; a step's latents to `holds`, where given.

    `accumulate`: gradients are there already: new ones are added to them and freed at once. `inside`: what happens in the middle of a
    step's core, just before its transformer begins, and when its forward is over (see `flat`). `between`: what happens between the steps
    of a preview of two experts with offloaded layers (estimator.offload_rounds).
    """

    key: str
    values: Mapping[str, int] = field(default_factory=dict)
    scope: str = "job"
    accumulate: bool = False
    inside: tuple[tuple[Operation, ...], tuple[Operation, ...]] = ((), ())
    holds: str = ""
    between: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True)
class MoveIn:
    """`component.to(device)`: nothing happens if it is there."""

    component: str


@dataclass(frozen=True, slots=True)
class MoveOut:
    """`component.to("cpu")`, or its end."""

    component: str


@dataclass(frozen=True, slots=True)
class Recast:
    """`component.to(dtype)` where it lies: each tensor is made anew, with `times` as many bytes as were recorded, and the old one goes."""

    component: str
    times: int


@dataclass(frozen=True, slots=True)
class Release:
    """Free the unnamed tensors of a scope."""

    scope: str


@dataclass(frozen=True, slots=True)
class Copy:
    """Clone the unnamed tensors of a scope into another."""

    scope: str
    into: str


@dataclass(frozen=True, slots=True)
class EmptyCache:
    """torch.cuda.empty_cache()."""


Operation = Begin | End | Part | MoveIn | MoveOut | Recast | Release | Copy | EmptyCache


def flat(operations: Iterable[Operation]) -> Iterator[Operation]:
    """What happens inside a part before it, for those who do not look into parts."""
    for operation in operations:
        if isinstance(operation, Part) and (any(operation.inside) or operation.between):
            yield from (each for group in (*operation.inside, operation.between) for each in group)
            operation = replace(operation, inside=((), ()), between=())
        yield operation
