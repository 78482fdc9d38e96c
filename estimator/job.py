"""What a training job is, once its config has been read: the only thing that the later steps see of a config.

A `Job` holds resolved values only: aliases, coercions and defaults of the trainer's dialect have been applied by the
reader in `estimator.trainers`, datasets have been expanded (one entry per resolution) and scanned for their buckets.
Sizes are pixels, counts are counts, and nothing here knows about bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from estimator.dtypes import Held

_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\\w")  # C:\data, C:/data, \\server\share


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the user's file something stands. `line` is 1-based; None where the reader cannot know it (a default)."""

    file: str
    key: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Unmodelled:
    """A setting that changes memory and that the estimator has no model of: makes the verdict "unknown" (exit status 3)."""

    place: Place
    value: object
    why: str


@dataclass(frozen=True, slots=True)
class Model(Held):
    """The base model and how its weights are held.

    `weights` / `te_weights`: "bf16", "fp16", "fp32" or a qtype of the trainer: what the transformer's / text encoder's linear weights are
    after loading. `dtype`: train.dtype. `assistant_lora`: a training adapter is merged at load (FLUX schnell, Z-Image turbo).
    `offload_seed`: the seed of Python's random numbers (the trainer's environment variable SEED), where it is known: which layers are
    offloaded at a percentage then follows. `quantize_exclude`: patterns (fnmatch) of modules that stay unquantised, besides the trainer's.
    `match_target_res`: control images are scaled to the area of the image that is trained, instead of a megapixel.
    `experts`: those that are trained, of a model with two (0: high noise, 1: low noise; empty: both).
    `vae_tiling`: previews are decoded in tiles without low_vram too (Wan). `compiled`: the transformer's blocks are compiled.
    `merges`: an adapter is merged into unquantised weights for previews (where quantisation is asked for and the trainer's class has none,
    it is not).
    """

    name_or_path: str
    dtype: str = "bf16"
    weights: str = "bf16"
    te_weights: str = "bf16"
    low_vram: bool = False
    assistant_lora: str | None = None
    layer_offloading: bool = False
    layer_offloading_transformer_percent: float = 1.0
    layer_offloading_text_encoder_percent: float = 1.0
    offload_seed: int | None = None
    quantize_exclude: tuple[str, ...] = ()
    match_target_res: bool = False
    experts: tuple[int, ...] = ()
    vae_tiling: bool = False
    compiled: bool = False
    merges: bool = True


@dataclass(frozen=True, slots=True)
class Network:
    """The adapter that is trained. `kind`: "lora" | "lokr" | ... ("whole": none, all of the transformer is); `rank` is network.linear;
    `dtype`: of the weights that are trained (in AI Toolkit fp32, of a whole transformer bf16); `targets`: modules it sits on (empty: the
    trainer's choice); `factor`: of a LoKr (-1: the trainer chooses); `dropout`: some of what goes through a LoRA is dropped in each step;
    `conv`: rank of the adapter on a UNet's 3 x 3 convolutions (none: they have none); `bypassed`: nothing trains what embeds guidance;
    `texted`: text encoders have it too.
    """
    kind: str = "lora"
    rank: int = 4
    ignore_if_contains: tuple[str, ...] = ()
    only_if_contains: tuple[str, ...] = ()
    dtype: str = "fp32"
    targets: tuple[str, ...] = ()
    factor: int | None = None
    dropout: bool = False
    conv: int | None = None
    bypassed: bool | None = None
    texted: bool = False

    @property
    def variables(self) -> dict[str, int]:
        """What the sizes of the adapter's tensors depend on (estimator.features)."""
        if self.factor is not None:
            return {"f": self.factor}
        return {"r": self.rank, **({"c": self.conv} if self.conv else {})}


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A training size in pixels; `count` is how many items of the dataset fall into it (0: not scanned, assumed).

    `text_tokens`: tokens of the longest caption among its items, as estimated (0: unknown, or the same for every text).
    `controls`: sizes of the control images of the item that has most of them, as they lie on the disk.
    `sound_tokens`: of the sound that a model of video with sound makes beside the pictures; `sound`: it is trained too,
    and comes from a spectrogram of `sound_frames`.
    `begins`: its clips begin with their own first frame, or its images are in a dataset that asks for it (Wan 2.2 5B: do_i2v).
    `masked`: masks are put beside its pictures (Flex.2). `uneven`: captions of a batch may differ in length (Lumina2).
    """

    width: int
    height: int
    frames: int = 1
    count: int = 0
    text_tokens: int = 0
    controls: tuple[tuple[int, int], ...] = ()
    sound_tokens: int = 0
    sound: bool = False
    sound_frames: int = 0
    begins: bool = False
    masked: bool = False
    uneven: bool = False


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset entry after expansion to one resolution.

    `scanned` says that `buckets` come from real files; otherwise they hold the worst bucket of the resolution.
    `text_tokens`: tokens of the longest caption as the transformer gets it (None: unknown, assume the architecture's maximum).
    `drops_captions`: an empty caption takes a caption's place now and then, and is cached with each.
    `longer_captions`: tokens of each caption that is longer than all before it (none: unknown, or all alike), by the files' names: the
    trainer takes the order in which the disk lists them, which on another disk is another. `own_lengths`: clips are as long as their files.
    """

    folder: str
    resolution: int
    batch_size: int
    buckets: tuple[Bucket, ...]
    scanned: bool = False
    cache_latents: bool = False
    cache_latents_to_disk: bool = False
    cache_text_embeddings: bool = False
    text_tokens: int | None = None
    is_reg: bool = False
    drops_captions: bool = False
    longer_captions: tuple[int, ...] = ()
    own_lengths: bool = False

    @property
    def latents_cached(self) -> bool:
        """In memory or on disk: either way images are encoded before training."""
        return self.cache_latents or self.cache_latents_to_disk


@dataclass(frozen=True, slots=True)
class Validation:
    """Pictures that are predicted between steps: (width, height, text tokens) of each, at so many noise levels at once, in the first
    step and in each whose number `every` divides (0: in the first alone)."""

    pictures: tuple[tuple[int, int, int], ...]
    levels: int
    every: int


@dataclass(frozen=True, slots=True)
class Slider:
    """Text tokens of the prompts that a concept slider is trained on: positive, of the class, negative, and of the anchor, if any."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Settings of the training loop that decide memory. `weight_decay`: set, and not 0: some optimizers then need temporaries.

    `gradients_stay`: not every step ends with an update (gradient_accumulation_steps); those that do not leave their gradients on the card.
    `saturates_prompts`: short captions are repeated now and then, where a step encodes them.
    `switch_boundary_every`: batches after which a model with two experts trains the other one. `weighs_timesteps`: the loss is multiplied
    by a weight of each sample's timestep.
    `preserves`: the prompt on which the model's output is preserved (None: it is not); `preserves_captions`: each caption with this in
    place of the trigger word, where the step has captions.
    Passes besides the one that is trained (estimator.passes): `prior`: one without the adapter before it, of each step; `guides_loss`: one
    on `unconditional_prompt` inside the loss; `guided`: `negative_prompt` goes through the transformer along with each caption. `slider`: a
    step is a concept slider's. `mean_flow`: the loss of that name, with two timesteps of each sample.
    """

    steps: int = 1000
    batch_size: int = 1
    gradient_accumulation: int = 1
    gradients_stay: bool = False
    gradient_checkpointing: bool = True
    optimizer: str = "adamw"
    weight_decay: bool = False
    ema: bool = False
    unload_text_encoder: bool = False
    cache_text_embeddings: bool = False
    skip_first_sample: bool = False
    force_first_sample: bool = False
    disable_sampling: bool = False
    noise_scheduler: str = "flowmatch"
    saturates_prompts: bool = False
    switch_boundary_every: int = 1
    weighs_timesteps: bool = False
    preserves: str | None = None
    preserves_captions: bool = False
    prior: bool = False
    guides_loss: bool = False
    unconditional_prompt: str = ""
    guided: bool = False
    negative_prompt: str = ""
    validation: Validation | None = None
    slider: Slider | None = None
    mean_flow: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One preview image or clip, in the size that is really made (rounded as the trainer and its pipeline do).

    `cfg` is the guidance scale; `batch` is what one forward of the transformer gets: 2 where guidance runs the negative prompt
    along with the positive one; `guided`: it runs, in the same forward or in one of its own.
    `text_tokens` / `negative_tokens`: as estimated from the prompts (None: unknown).
    `controls`: sizes of the control images that the transformer gets, `seen`: of those that the prompts are encoded with (the trainer
    shows the text encoder a picture given as ctrl_img twice). `sound_tokens`: as of a Bucket.
    """

    width: int
    height: int
    frames: int = 1
    cfg: float = 1.0
    text_tokens: int | None = None
    negative_tokens: int | None = None
    batch: int = 1
    guided: bool = False
    vae_tiling: bool = False
    controls: tuple[tuple[int, int], ...] = ()
    seen: tuple[tuple[int, int], ...] = ()
    sound_tokens: int = 0

    @property
    def memory_key(self) -> tuple[object, ...]:
        """Equal for previews that take the same memory."""
        text = self.text_tokens, self.negative_tokens, self.controls, self.seen
        return self.width, self.height, self.frames, self.batch, self.guided, *text


@dataclass(frozen=True, slots=True)
class Job:
    """A whole training job of one process.

    `arch` is a profile key ("flux1-dev", "zimage-turbo", ...), `trainer_arch` the key as the trainer's config has it.
    `method`: "lora" | "full" | "inference". `save_every` / `sample_every` in steps (0: never during training).
    `unmodelled` makes the verdict unknown; `warnings` are shown and change nothing.
    `expandable_segments`: PYTORCH_CUDA_ALLOC_CONF turns them on; False in the trainer's default. `torch`: the version, where it is said and
    its allocator may be another one than that of the recordings (estimator.allocator).
    `resident`, `attention`, `control_images`, `optimizer_state_dtype`: as explicit run files say them. What is not resident ("transformer",
    "text_encoder", "vae") is unloaded or cached in `train` and `datasets`, which the timeline follows; the others have no model but their
    defaults. `autocast`: the forward runs under torch.autocast, its result in fp32; `left_in_cache`: what was on the card before the
    transformer came, and left its memory to torch; `given_back`: what is there until training starts, and torch.cuda.empty_cache() gives
    back; `diffusers`: the version of the transformer's class, where that is an older one than the profile's; `optimizer_on_host`: it
    holds no state on the card, and takes each gradient away as it comes (all of our own harness).
    `trainer_version`: where the config or the user names one.
    """

    name: str
    trainer: str
    arch: str
    trainer_arch: str
    method: str
    model: Model
    network: Network | None
    train: Train
    datasets: tuple[Dataset, ...]
    samples: tuple[Sample, ...] = ()
    sample_every: int = 100
    save_every: int = 1000
    expandable_segments: bool = False
    torch: str = ""
    unmodelled: tuple[Unmodelled, ...] = ()
    warnings: tuple[str, ...] = ()
    resident: tuple[str, ...] | None = None
    left_in_cache: tuple[str, ...] = ()
    given_back: tuple[str, ...] = ()
    attention: str = "sdpa"
    control_images: int = 0
    optimizer_state_dtype: str | None = None
    autocast: bool = False
    diffusers: str = ""
    optimizer_on_host: bool = False
    trainer_version: str | None = None

    @property
    def text_cached(self) -> bool:
        """Prompts are encoded before training: for all datasets, since the trainer refuses a mixture."""
        return self.train.cache_text_embeddings or any(dataset.cache_text_embeddings for dataset in self.datasets)

    @property
    def windows_path(self) -> str | None:
        """The first of its paths that only Windows has: with a drive's letter, or of a share."""
        paths = (*(dataset.folder for dataset in self.datasets), self.model.name_or_path)
        return next((path for path in paths if _OF_WINDOWS.match(path)), None)
