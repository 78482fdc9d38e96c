"""The table of architectures (profiles/archs.yaml): what the estimator models, and what a trainer's key may mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from estimator.controls import BLANK, SINGLE, Size, cells, vision_area
from estimator.features import spectrogram_frames
from estimator.padded import scaled_to_area
from estimator.paths import profiles_dir
from estimator.tokens import IMAGE_TEMPLATES, MAX_TEXT_TOKENS, TEMPLATES

FIRST_FRAME, GIVEN_FRAME = "first_frame", "given_frame"
"""`control_images` of a model whose clips begin with a picture: in training their own first frame, in previews a given one. Always
(first_frame), or where a dataset (do_i2v) or a preview (ctrl_img) says so."""
PICTURED = (FIRST_FRAME, GIVEN_FRAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One architecture; the fields are explained at the head of profiles/archs.yaml."""

    key: str
    name: str
    modelled: bool = False
    nearest: str | None = None
    bucket_divisor: int = 16
    sample_divisor: int = 16
    preview_sides: int = 8
    fixed_text_tokens: int | None = None
    max_text_tokens: int = MAX_TEXT_TOKENS
    te_qtype_key: str = "qtype_te"
    text_as_transformer: bool = False
    prequantised: str | None = None
    guidance: str = "none"
    always_guided: bool = False
    assisted: bool = False
    attention: tuple[int, int] | None = None
    model_class: str = "base"
    template: str | None = None
    model_kwargs: tuple[str, ...] = ()
    vae_tiling: str = "never"
    caches_text: bool = True
    low_vram_previews: bool = True
    offloaded_previews: bool = True
    offloads_as_it_is: bool = False
    layer_offloading: str | None = None
    embedder_linears: int = 0
    keeps_positions: bool = False
    measures_kernels: bool = False
    by_flash_attn: str = ""
    preview_most: int = 0
    bare_previews: bool = False
    without_gradient: tuple[int, ...] = ()
    pipeline_apart: bool = False
    padded_to: int = 0
    preview_side: int = 0
    single_captions: bool = False
    masks_uneven: bool = False
    previews_need_text: bool = False
    decodes_in_fp32: bool = False
    cached_previews: bool = True
    te_path: bool = False
    needs_checkpointing: bool = False
    recorded_without: tuple[str, ...] = ()
    no_layers: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    name_contains: tuple[str, ...] = ()
    video: bool = False
    image_to_video: bool = False
    cell_pixels: int = 16
    cell_frames: int = 4
    sound_per_second: int = 0
    control_images: str | None = None
    transformer_config: Mapping[str, object] = field(default_factory=dict)
    harness: bool = False
    lora_targets: tuple[str, ...] = ()
    adapter_dtypes: tuple[str, ...] = ("fp32",)
    older_diffusers: tuple[str, ...] = ()
    native_size: tuple[int, int, int] | None = None
    padded_text: bool = False
    unet: bool = False

    def sound_tokens(self, frames: int, per_second: float) -> int:
        """Tokens of the sound of a clip taken at so many frames a second, or of an image; 0 where a model has none."""
        return round(frames / per_second * self.sound_per_second) if self.sound_per_second else 0

    def spectrogram_frames(self, frames: int, per_second: float) -> int:
        """Frames of the spectrogram of a clip's own sound."""
        return spectrogram_frames(frames, per_second, self.sound_per_second)

    def text_tokens(self, prompt: str, pictures: Sequence[Size] | None = None) -> int:
        """Estimated text tokens that the transformer gets for a prompt or caption. ValueError where no template is known.

        `pictures`: the control images that are encoded with it, where they are (a text without one has a blank one).
        """
        if self.fixed_text_tokens is not None:
            return self.fixed_text_tokens
        if self.template in IMAGE_TEMPLATES:
            shown = pictures if pictures is not None else () if self.control_images == SINGLE else (BLANK,)
            return IMAGE_TEMPLATES[self.template](prompt, [cells(one, vision_area(self.control_images)) for one in shown])
        if self.template is None:
            raise ValueError(f"{self.key}: neither fixed_text_tokens nor a template in archs.yaml")
        return TEMPLATES[self.template](prompt)

    def preview_size(self, width: int, height: int) -> tuple[int, int]:
        """The size that a preview is really made in, where its pipeline scales it to an area, or down to one."""
        if self.preview_most and width * height > self.preview_most**2:
            return scaled_to_area(width, height, self.preview_most, self.sample_divisor)
        return scaled_to_area(width, height, self.preview_side, self.sample_divisor) if self.preview_side else (width, height)

    @property
    def caches_latents(self) -> bool:
        """Whether latents may be cached: not where each step takes a first frame from the pictures, on which the trainer stops then."""
        return self.control_images != FIRST_FRAME

    @property
    def unloads_text(self) -> bool:
        """Whether the text encoder may be unloaded with captions not cached: not where every prompt has its control image."""
        return self.control_images != SINGLE

    @property
    def most_text_tokens(self) -> int:
        """Of any prompt."""
        return self.max_text_tokens if self.fixed_text_tokens is None else self.fixed_text_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerArch:
    """A value of AI Toolkit's model.arch and the architectures it can stand for; `nearest`: the modelled relative if it is none of them.

    `tags`: what its web UI writes behind the key and a colon.
    """

    key: str
    name: str
    archs: tuple[str, ...] = ()
    nearest: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def written(self) -> tuple[str, ...]:
        """The key, alone and with each tag."""
        return (self.key, *(f"{self.key}:{tag}" for tag in self.tags))


@dataclass(frozen=True)
class Archs:
    """The whole table, by key."""

    archs: Mapping[str, Arch]
    trainer: Mapping[str, TrainerArch]

    @cached_property
    def of_hub(self) -> Mapping[str, tuple[str, ...]]:
        """By the name of a published model, in lower case: the architectures that it may be."""
        found: dict[str, tuple[str, ...]] = {}
        for key, arch in self.archs.items():
            for hub in map(str.lower, arch.hub):
                found[hub] = (*found.get(hub, ()), key)
        return found

    def modelled(self) -> tuple[str, ...]:
        return tuple(key for key, arch in self.archs.items() if arch.modelled)

    def trained(self) -> tuple[str, ...]:
        """Those of them that AI Toolkit trains; the others are for run files only."""
        return tuple(key for key in self.modelled() if not self.archs[key].harness)

    def nearest(self, trainer_key: str) -> str | None:
        """The modelled relative of a trainer's key that is not modelled itself."""
        entry = self.trainer[trainer_key]
        return entry.nearest or next((self.archs[key].nearest for key in entry.archs if self.archs[key].nearest), None)


class ArchTableError(Exception):
    """profiles/archs.yaml is not as its head says: a mistake of ours, not the user's."""


@lru_cache(maxsize=1)
def load_archs() -> Archs:
    """The shipped table. Raises ArchTableError naming the entry that is wrong."""
    return read_archs(profiles_dir() / "archs.yaml")


def read_archs(path: Path) -> Archs:
    """The table in the file at `path`, strictly: unknown fields and dangling references are errors (ArchTableError)."""
    import yaml

    raw = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if raw.keys() != {"schema", "archs", "trainer_archs"} or raw["schema"] != 1:
        raise ArchTableError(f"{path}: expected schema 1 with archs and trainer_archs")
    archs = {key: _entry(Arch, key, fields, path) for key, fields in raw["archs"].items()}
    trainer = {key: _entry(TrainerArch, key, fields, path) for key, fields in raw["trainer_archs"].items()}
    references = [
        *(a.nearest for a in archs.values()),
        *(t.nearest for t in trainer.values()),
        *(k for t in trainer.values() for k in t.archs),
    ]
    dangling = {key for key in references if key is not None} - archs.keys()
    if dangling:
        raise ArchTableError(f"{path}: no such architecture: {sorted(dangling)}")
    return Archs(archs, trainer)


def _entry(cls: type, key: str, fields: Mapping[str, Any], path: Path) -> Any:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    try:
        return cls(key=key, **values)
    except TypeError as error:
        raise ArchTableError(f"{path}: {key}: {error}") from None
