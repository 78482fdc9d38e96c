"""What calibration has to know of an architecture: how its probe jobs look, how to read their recordings, how to build it without weights.

Each family of models is one module of this package; `calibration.architectures.ARCHITECTURES` holds them all by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from calibration.architectures.candidates import candidates
from estimator.features import IMAGE_CELLS, Cells
from estimator.operations import PREVIEW
from estimator.shared import ALL, TEXT, VAE

# Kinds of base weights, and the optimizer that is recorded with each
OPTIMIZER_WITH = {"bf16": "adamw8bit", "qfloat8": "adamw", "float8": "adafactor", "uint4": "prodigy"}
OPTIMIZER_WITH_OTHERS = "adamw8bit"
Texts = tuple[tuple[int, tuple[tuple[int, int], ...]], ...]  # (caption words, sizes of control images) of each
# Buckets and previews of probe jobs, as an Architecture has them
Brief = tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, int, float, int, *tuple[int, ...]], ...]]


def kind_of(qtype: str) -> str:
    """The kind of base weights that a qtype stands for, as parts and run folders are named; behind a bar stands a recovery adapter."""
    base, _, adapter = qtype.partition("|")
    return f"{base}-recovery" if adapter else base


# Without checkpointing the trainer stops in the first backward pass: sums over experts are made in place, and each one's is saved
CHECKPOINTED_ALONE = ("hidream",)


def passes(architecture: str, probe: bool) -> tuple[bool | None, ...]:
    """How often a step is made, and with gradient checkpointing or not (None: as the config has it)."""
    return (None,) if not probe else (True,) if architecture in CHECKPOINTED_ALONE else (True, False)


CONTROL_ENCODE = "control_encode"  # phase of a step: the VAE over control images that go beside its noisy latents
# Parts that the adapter is in, where its kind is all that is recorded anew; and their previews from the start
WITH_ADAPTER = ("setup.network", "setup.ema", "sample.enter", "sample.leave", "preview", "step.core", "step.ema", "save")
SAMPLED = {"skip_first_sample": False}
ENCODED_MEANS, DECODED_MEANS = ("mean2048_T", "mean1024_W2"), ("mean1024_T",)  # over channels, of LTX-2's VAE


@dataclass(frozen=True)
class Layout:
    """How to cut and fit a recording.

    `load`: part -> beginnings of the loader's status texts that belong to it. `lengths`: sequence lengths that sizes depend on.
    `masks`: sizes of a dense attention mask. `width`: of the transformer's stream. `reduced`: lengths that column sums run over.
    `template_tokens`: what a prompt has beside its words. `padded_tokens`: what every prompt has, where prompts are padded.
    `guidance`: how a guided preview runs its two prompts: in one forward ("batched"), one after the other ("sequential"), or there is
    one prompt only ("none"). `tiled_vae`: with low_vram the trainer decodes previews tile by tile, so that decoding is a part of its
    own; `decode_apart`: it is one anyway (control images add tokens to denoising and not to decoding).
    `unloaded_apart`: steps whose text encoder was unloaded without cached text have heads of their own.
    `text_on_host`: text encoders are quantised on the host: how they are loaded depends on low_vram, and they move to the card at the end
    of loading. `text_unnamed`: they are loaded on the card, and with low_vram gone from it before the trainer's object holds them: how they
    are loaded is taken from runs without. `prompts_apart`: cached prompts of previews, which stay on the card, and what a step does with
    prompts that it encoded are parts of their own. `sample_by_sample`: a step has tensors of each sample alone. `heads_by_sample`: so has
    its head, where noise is put on each by itself, which counts where latents are pixels.
    `video`: the VAE works in chunks of frames, which are parts of their own (calibration.extract.clips). `scratch`: features of kernels'
    scratch memory, besides those of column sums. `flash`: of the text encoder's attention over a text with control images, `flash_text`:
    over one without. `cells`: what a token is of pixels and frames. `sound_per_second`: tokens of sound that video has beside its own,
    silent or not; its VAE then takes a clip whole, or in tiles of frames (calibration.extract.sounded). `norms`: of a decoder in chunks,
    its sums over channels. `adapted`: inputs and outputs of the layers that a LoKr sits on, one pair for each size (estimator.kronecker);
    none: the adapter is a LoRA. `pixels`: a preview has those of the picture that it begins with, whatever its length.
    `pipeline_apart`: previews with low_vram are made by a pipeline of the trainer's own, and are parts of their own. `always_guided`: a
    preview runs both prompts whatever its scale. `single_scratch`: scratch memory of a guided preview's forwards of one prompt alone,
    where it makes some behind that of both (features of half the heads: `B` is 2). `means`: partial results of means over channels, of
    a VAE's encoder and decoder. `conditioned`: every step puts more channels beside its noisy latents, whether it has control images
    and masks or not (calibration.extract.conditions). `padded_to`: tokens of every picture that is no square
    (calibration.extract.padded), with three texts beside them; `preview_side`: previews have the area of a square of so many pixels'
    side. `silent`: the loader says nothing, and `load` names beginnings of components instead. `unet`: sizes depend on places of its
    levels (`u`, `v`). `convolved`: convolutions have an adapter too, of rank `c`. `int8_rows`: linear layers are int8 products
    (ConvRot), whose rows are padded. `beside`: of parts with a control image, where previews may have none.
    """

    load: dict[str, tuple[str, ...]]
    lengths: tuple[str, ...]
    width: int
    reduced: tuple[str, ...]
    template_tokens: int = 0
    padded_tokens: int | None = None
    guidance: str = "none"
    scratch: tuple[str, ...] = ()
    flash: tuple[str, ...] = ()
    flash_text: tuple[str, ...] = ()
    tiled_vae: bool = False
    decode_apart: bool = False
    pipeline_apart: bool = False
    unloaded_apart: bool = False
    text_on_host: bool = False
    text_unnamed: bool = False
    masks: tuple[str, ...] = ()
    prompts_apart: bool = False
    sample_by_sample: bool = False
    heads_by_sample: bool = False
    video: bool = False
    cells: Cells = IMAGE_CELLS
    sound_per_second: int = 0
    adapted: tuple[tuple[int, int], ...] = ()
    norms: tuple[str, ...] = ()
    pixels: bool = False
    always_guided: bool = False
    single_scratch: tuple[str, ...] = ()
    means: tuple[tuple[str, ...], tuple[str, ...]] = (ENCODED_MEANS, DECODED_MEANS)
    conditioned: bool = False
    padded_to: int = 0
    preview_side: int = 0
    silent: bool = False
    unet: bool = False
    convolved: bool = False
    int8_rows: bool = False
    beside: Layout | None = None

    def caption_tokens(self, words: int) -> int:
        """Text tokens of a probe job's caption of so many words (each is one token of the stand-in tokenizer)."""
        return words + self.template_tokens if self.padded_tokens is None else self.padded_tokens

    def features(self, key: str) -> tuple[str, ...]:
        """Candidate features of a part, the likelier first."""
        return candidates(self, key)


@dataclass(frozen=True)
class Architecture:
    """`model`: the section of a config. `buckets`: (width, height, batch, caption words). `samples`: (width, height, guidance, words).
    Video models have the number of frames at the end of both. `other_buckets`: instead of `buckets` with a kind of base weights, so that
    what does not depend on weights is seen at more sizes. `other_samples`: the same instead of `samples`. `negatives`: words of each
    preview's negative prompt (none: all empty). `relative`: an architecture with the same text encoder and VAE, whose recordings of them
    serve where an own one is lacking (text encoder and transformer may be quantised differently, and not every pair was recorded).
    `caches_text`: the trainer can (and make previews); else the text encoder is unloaded instead. `weights`: qtypes, as a config has them.
    `texts`: (caption words, sizes of control images) of each text, where only the text encoder is recorded. `own`: beginnings of the parts
    that are recorded; all else is the relative's, to the last weight (none: all parts are its own). `left`: beginnings of parts that are
    left to the relative. `unloaded`: buckets of a further job, whose text encoder is unloaded without its text being cached, with cached
    latents for each second one; heads of steps are taken from it alone. `controlled`: each image and preview has a control image of its
    own size, but for the `uncontrolled` buckets, which the two jobs of each kind of weights have besides, and the `bare` first previews.
    `encodes`: the first job caches no latents. `pictured`: each preview begins with a given picture, and latents cannot be cached.
    `begins`: 1 behind a bucket's frames has its clips begin with their own first frame, behind a preview's it begins with a given picture;
    images among such buckets are never cached (the trainer stops on them). `train`: settings of the `train` section that its probe jobs
    have besides. `second`: buckets and previews of the second job of each kind of weights (none: those of the first). `loaded`: the
    trainer stops on previews with low_vram: neither job has it, and how it loads is recorded in a further one that stops there. `factors`:
    of a LoKr that is trained instead of a LoRA, of the two jobs. `text_only`: the relative has the same text encoder, and another VAE;
    `vae_only`: the other way round. `ignored`: parts of names of layers that have no adapter (network_kwargs.ignore_if_contains).
    `captioned`: buckets and previews of a further job with cached text, which then the second one has not (batches of several stop, or
    previews do: then it makes none). `uncached`: buckets of a further job whose steps encode all of their latents, without previews.
    `brief`: kinds of weights whose steps, texts and (where it names previews) previews are qfloat8's by rule (estimator.rebuilt_weights),
    with the few buckets and previews of either job. `loads`: kinds that are recorded up to the first previews. `conv`: ranks of the
    adapter on convolutions, of the two jobs. `unmerged`: its jobs ask for quantisation, which the trainer has not there: all is as in
    bf16, but that previews are made with the adapter beside the weights. `fewer`: with these kinds buckets and previews of the first job
    and of the second, where other kinds show already what does not depend on weights. `quantised`: kinds of which only loading is
    recorded, without and with low_vram: all else is by rule (calibration.extract.requantised). `beside`: the folder below the
    relative's profile, of what is trained otherwise than a LoRA on its blocks; `network`: settings of that (none: all of it is trained).
    """

    model: dict[str, Any]
    buckets: tuple[tuple[int, ...], ...]
    samples: tuple[tuple[int, int, float, int, *tuple[int, ...]], ...]
    layout: Layout
    relative: str | None = None
    weights: tuple[str, ...] = field(default=tuple(OPTIMIZER_WITH))
    other_buckets: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    other_samples: dict[str, tuple[tuple[int, int, float, int, *tuple[int, ...]], ...]] = field(default_factory=dict)
    caches_text: bool = True
    negatives: tuple[int, ...] = ()
    texts: Texts = ()
    own: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    unloaded: tuple[tuple[int, ...], ...] = ()
    controlled: bool = False
    bare: int = 0
    encodes: bool = False
    uncontrolled: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]] = ((), ())
    pictured: bool = False
    begins: bool = False
    train: dict[str, Any] = field(default_factory=dict)
    second: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, int, float, int, *tuple[int, ...]], ...]] | None = None
    loaded: bool = False
    factors: tuple[int, int] | None = None
    text_only: bool = False
    vae_only: bool = False
    ignored: tuple[str, ...] = ()
    captioned: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, int, float, int, *tuple[int, ...]], ...]] | None = None
    uncached: tuple[tuple[int, ...], ...] = ()
    brief: dict[str, Brief] = field(default_factory=dict)
    loads: tuple[str, ...] = ()
    conv: tuple[int, int] | None = None
    unmerged: bool = False
    fewer: dict[str, tuple[Brief, Brief]] = field(default_factory=dict)
    quantised: tuple[str, ...] = ()
    beside: str = ""
    network: dict[str, Any] = field(default_factory=dict)

    @property
    def shares(self) -> str | None:
        """What the relative's recordings serve for, as the profile says it."""
        return ALL if self.own else TEXT if self.text_only else VAE if self.vae_only else None

    def by_rule(self, key: str, settings: Mapping[str, Any]) -> bool:
        """Whether a part is by rule, however a run with such settings recorded it: an optimizer's always is."""
        (name, *rest), ruled = key.split("/"), ("text",) * ("/plain/" in key) + ("step.core",)
        seen = self.brief.get(rest[0]) if rest else None
        updates = name == "step.update" and settings["weights"] in self.brief
        return updates or (seen is not None and (name.startswith(ruled) or (name == PREVIEW and bool(seen[1]))))

    def owns(self, key: str) -> bool:
        """Whether a part was recorded for it alone, where all else is the relative's."""
        return not self.own or key in self.own or key.startswith(tuple(f"{kind}/" for kind in self.own))


def words_of(text: Any) -> int:
    return len(str(text).split())


def in_type(family: Architecture, arch: str, dtype: str, **changes: Any) -> Architecture:
    """An architecture in another compute type (train.dtype), recorded below its profile: all of it, or what is otherwise there (`own`)."""
    return replace(family, relative=arch, beside=dtype, train={**family.train, "dtype": dtype}, **changes)
