"""The architectures of the harness: their classes and configurations, what a step is given, and how its recordings are read.

Configurations are the published config.json of each repository, where they are not the class's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from calibration.architectures.base import Layout
from calibration.harness.components import (
    BYT5_GLYPH,
    CLIP_G,
    CLIP_L,
    CLIP_L_PROJECTED,
    GEMMA2_2B,
    LLAMA_8B,
    QWEN25_7B,
    T5_XXL,
    VAE_4,
    VAE_16,
    VAE_32X,
)
from estimator.features import Cells

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of diffusers' own scripts and of finetrainers
RANKS = (8, 24)
ONE, MANY = 4, 3  # buckets of one sample and of several in a probe job of each rank
Bucket = tuple[int, int, int, int, int]
"""Width and height in pixels, samples, text tokens, frames."""


@dataclass(frozen=True)
class Kind:
    """How a model is trained: an adapter in a type over weights in bf16, or (`full`) all weights, in that type. `autocast`: the forward
    runs under torch.autocast, its result in fp32, as accelerate's mixed precision has it. `diffusers`: the version whose class it is,
    where that is not the profile's. `native`: at the size that the model was made for, where its class does something else then."""

    dtype: str
    autocast: bool = True
    full: bool = False
    diffusers: str = ""
    native: bool = False

    @property
    def weights(self) -> str:
        return self.dtype if self.full else "bf16"

    @property
    def part(self) -> str:
        """The part that holds forward, loss and backward (estimator.steponly names it likewise)."""
        how = f"step.core.{'full' if self.full else self.dtype}" + ("" if self.autocast else ".plain")
        return how + (f".diffusers-{self.diffusers}" if self.diffusers else "") + (".native" if self.native else "")

    @property
    def name(self) -> str:
        how = ("full-" if self.full else "") + f"{self.dtype}-{'autocast' if self.autocast else 'plain'}"
        return how + (f"-diffusers-{self.diffusers}" if self.diffusers else "") + ("-native" if self.native else "")

    @property
    def core_alone(self) -> bool:
        """Whether all but the core of a step is another kind's."""
        return bool(self.diffusers) or self.native


@dataclass(frozen=True)
class Older:
    """What is otherwise in an older diffusers' class: the masks that sizes depend on (none: those of the family's layout), and whether
    it takes several samples."""

    masks: tuple[str, ...] = ()
    several: bool = True


ADAPTERS = (Kind("bf16"), Kind("fp32"), Kind("bf16", autocast=False))
KINDS = ADAPTERS  # training all weights (`full`) goes through too, and is not extracted yet


@dataclass(frozen=True)
class Family:
    """`transformer`, `vae`: diffusers' class and its arguments; `encoders`: transformers' classes, of their configurations the class and
    arguments.

    `lists`: a list of layers -> the argument that sets its length, and the model's own length. `channels`: of a latent; `compression`:
    pixels each way and frames of one latent cell. `text_width`: of a prompt's embedding. `older`: kinds whose class was another one in an
    older diffusers. `native`: width, height and frames of Kind.native.
    `velocity`: trained by v-prediction on latents in fp32, sampled from the mean and variance that were stored (cogvideox-factory
    d81209bf); `noise`: to predict the noise in latents in bf16 (train_dreambooth_lora_sdxl.py); otherwise by flow matching on the same.
    `pictures`: its latents have no frames. `masked`: its prompts have a mask beside them. `padded`: tokens that every prompt is padded to,
    where the transformer is told which of them are words (a bucket's text is those). `targets`: the layers with an adapter.
    `convolved`: its patches come from a Conv2d, for which cuDNN takes a channels-last copy of what goes in, of the weight and of what comes
    out, at any batch: the table's 45 rows say so. So are a UNet's convolutions.
    """

    transformer: tuple[str, dict[str, Any]]
    encoders: tuple[tuple[str, str, dict[str, Any]], ...]
    vae: tuple[str, dict[str, Any]]
    layout: Layout
    channels: int
    compression: tuple[int, int]
    text_width: int
    buckets: tuple[Bucket, ...]
    lists: dict[str, tuple[str, int]]
    extra: dict[str, int] = field(default_factory=dict)
    older: dict[Kind, Older] = field(default_factory=dict)
    native: tuple[int, int, int] | None = None
    velocity: bool = False
    noise: bool = False
    masked: bool = True
    pictures: bool = False
    padded: int = 0
    targets: tuple[str, ...] = TARGETS
    convolved: bool = False

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """How it is trained in the probe jobs."""
        return (*KINDS, *self.older, *(replace(kind, native=True) for kind in KINDS if self.native))

    def layout_of(self, kind: Kind) -> Layout:
        """What sizes of this kind's recordings can depend on."""
        masks = self.older[kind].masks if kind in self.older else ()
        return replace(self.layout, masks=masks) if masks else self.layout

    def of_layers(self, count: int) -> Family:
        """The same with so many layers of each list."""
        name, arguments = self.transformer
        return replace(self, transformer=(name, {**arguments, **{argument: count for argument, _ in self.lists.values()}}))

    def probe_buckets(self, rank: int, kind: Kind) -> tuple[Bucket, ...]:
        """The buckets of a probe job: of each rank a part, some of both; all where no adapter is trained."""
        one, many = ([b for b in self.buckets if (b[2] > 1) is several] for several in (False, True))
        if kind.native and self.native:
            width, height, frames = self.native
            return tuple((width, height, count, self.buckets[0][3], frames) for count in ((1, 2, 4) if rank == RANKS[0] else (1, 2, 3)))
        if kind in self.older and not self.older[kind].several:
            return tuple(one[:ONE] if rank == RANKS[0] else one[-ONE:])
        if rank == RANKS[0]:
            return (*one[:ONE], *many[:MANY])
        return (*one[-ONE:], *many[-MANY:]) if rank else self.buckets


# Sides in odd numbers of 16 (32) pixels, tokens that are no multiples of 8, 32 or 128, texts of many lengths; no two features proportional
BUCKETS: tuple[Bucket, ...] = (
    (512, 512, 1, 256, 1), (336, 624, 1, 100, 9), (256, 320, 1, 41, 17), (640, 384, 1, 226, 33), (272, 304, 1, 67, 5),
    (448, 320, 1, 150, 21),
    (256, 448, 2, 130, 13), (320, 384, 3, 43, 9), (288, 256, 4, 77, 17), (480, 640, 2, 256, 1), (336, 416, 2, 203, 5),
)  # fmt: skip
LAYOUT = Layout({}, ("T", "X", "S", "S32", "S64", "S128", "T128"), 3072, ("T", "X", "S"))
# Texts in multiples of 8: others have a padded copy of the mask, of some KB, which moves everything behind it
LTX_BUCKETS: tuple[Bucket, ...] = (
    (768, 640, 1, 128, 1), (672, 1248, 1, 104, 9), (512, 640, 1, 40, 17), (1280, 768, 1, 128, 33), (544, 608, 1, 64, 9),
    (896, 640, 1, 88, 49), (512, 896, 2, 112, 25), (640, 768, 3, 48, 9), (576, 512, 4, 80, 17), (960, 1280, 2, 128, 1),
    (672, 832, 2, 120, 17),
)  # fmt: skip
PICTURES: tuple[Bucket, ...] = (
    (512, 512, 1, 154, 1), (768, 640, 1, 333, 1), (1024, 1024, 1, 205, 1), (1248, 800, 1, 97, 1), (352, 608, 1, 290, 1),
    (592, 976, 1, 181, 1),
    (512, 512, 2, 154, 1), (656, 992, 2, 333, 1), (640, 448, 3, 131, 1), (544, 800, 4, 250, 1), (464, 736, 3, 88, 1),
)  # fmt: skip
# A UNet's sides are whole in its lowest level, where it has a place for 32 x 32 pixels, or 64 x 64; an odd number of these among them
LEVELS: tuple[Bucket, ...] = (
    (512, 512, 1, 77, 1), (768, 640, 1, 231, 1), (1024, 1024, 1, 77, 1), (1216, 832, 1, 154, 1), (320, 704, 1, 100, 1),
    (960, 576, 1, 60, 1),
    (512, 512, 2, 77, 1), (640, 1024, 2, 154, 1), (640, 448, 3, 100, 1), (576, 768, 4, 231, 1), (448, 768, 3, 60, 1),
)  # fmt: skip
# Prompts that are padded to 256 tokens
PADDED_PICTURES: tuple[Bucket, ...] = tuple(
    (width, height, batch, words, frames)
    for (width, height, batch, _, frames), words in zip(PICTURES, (154, 77, 205, 97, 40, 256, 154, 77, 131, 250, 88), strict=True)
)

CONVOLVED = replace(LAYOUT, lengths=(*LAYOUT.lengths, "T2"))  # copies in cuDNN's workspace begin at multiples of 256 bytes, of two tokens
COGVIDEOX_2B = Family(
    ("CogVideoXTransformer3DModel", {}), (T5_XXL,), ("AutoencoderKLCogVideoX", {}), replace(CONVOLVED, width=1920), 16, (8, 4), 4096,
    BUCKETS, {"transformer_blocks": ("num_layers", 30)}, velocity=True, masked=False, convolved=True,
)  # fmt: skip
# Three text encoders: CLIP's 77 tokens and T5's behind them, 77 in diffusers' training script, 256 in its pipeline
SD35_LARGE = Family(
    ("SD3Transformer2DModel", {
        "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192, "qk_norm": "rms_norm",
    }),
    (CLIP_L_PROJECTED, CLIP_G, T5_XXL), VAE_16, replace(LAYOUT, width=2432, lengths=("T", "X", "S", "S128")), 16, (8, 1), 4096, PICTURES,
    {"transformer_blocks": ("num_layers", 38)}, {"pooled": 2048}, pictures=True,
    targets=(
        "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out", "attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v",
    ),
)  # fmt: skip
# Published unet/config.json; attention at two of three levels, in heads of 64, whose forward is split over the keys of small pictures
SDXL = Family(
    ("UNet2DConditionModel", {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }),
    (CLIP_L, CLIP_G), VAE_4, Layout(
        {}, ("T", "X", "T2", "T128", "L128"), 1280, (), scratch=("T*narrow20_T", "L*narrow10_L"), cells=Cells(32),
    ), 4, (8, 1), 2048, LEVELS, {}, {"pooled": 1280, "times": 6}, pictures=True, noise=True, masked=False, convolved=True,
)  # fmt: skip
# Attention at all four levels (the lowest: in its middle alone), in eight heads of 40, 80 and 160
SD15 = replace(
    SDXL, transformer=("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}), encoders=(CLIP_L,), text_width=768,
    extra={},
    layout=replace(
        SDXL.layout, lengths=("T", "X", "T2", "T128", "L128", "LL128", "LLL128"), cells=Cells(64),
        scratch=(
            *("T*wide8_T", "L*wide8_L", "LL*flash8_LL", "LLL*narrow8_LLL"),  # over the picture, and over the text
            *("T*wide8_T_X", "L*wide8_L_X", "LL*flash8_LL_X"),
        ),
    ),
)  # fmt: skip
# Texts in multiples of 8, as the longest is; with a pixel area times latent frames of 7 more than a multiple of 8 all tokens are one too
HUNYUAN15_BUCKETS: tuple[Bucket, ...] = (
    (512, 512, 1, 1000, 1), (336, 624, 1, 104, 9), (208, 272, 1, 40, 9), (640, 384, 1, 232, 33), (272, 304, 1, 64, 5),
    (336, 560, 1, 152, 1),
    (256, 448, 2, 136, 13), (208, 272, 3, 48, 9), (288, 256, 4, 80, 17), (336, 560, 2, 256, 1), (336, 416, 3, 200, 5),
)  # fmt: skip
FAMILIES = {
    "hunyuan-video": Family(
        ("HunyuanVideoTransformer3DModel", {}), (LLAMA_8B, CLIP_L), ("AutoencoderKLHunyuanVideo", {}),
        replace(LAYOUT, masks=("X*X", "X*X8"), scratch=("splits24_S", "splits24_X")), 16, (8, 4), 4096, BUCKETS,
        {"transformer_blocks": ("num_layers", 20), "single_transformer_blocks": ("num_single_layers", 40)}, {"pooled": 768},
        # diffusers 0.32.0 and 0.32.1 give each attention a mask of tokens x tokens, and take one sample only; later ones have one row
        # (#10482 of diffusers)
        {Kind("bf16", diffusers="0.32.0"): Older(("X*X", "X*X8", "S*S", "S*S8"), several=False)},
    ),
    # its positions are of 226 tokens of text, no more and no fewer; they are made anew for each size but its own
    "cogvideox-2b": replace(
        COGVIDEOX_2B, buckets=tuple((w, h, count, 226, frames) for w, h, count, _, frames in BUCKETS),
        layout=replace(COGVIDEOX_2B.layout, lengths=(*CONVOLVED.lengths, "A", "F")), native=(720, 480, 49),
    ),
    "cogvideox-5b": replace(
        COGVIDEOX_2B, lists={"transformer_blocks": ("num_layers", 42)}, layout=CONVOLVED,
        vae=("AutoencoderKLCogVideoX", {"scaling_factor": 0.7}),
        transformer=(
            "CogVideoXTransformer3DModel", {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
        ),
        # before diffusers 0.33.0 (#10789) its last norm, which 5B alone has so, was of text and image joined
        older={Kind("fp32", diffusers="0.32.0"): Older()},
    ),
    "ltx-video": Family(
        ("LTXVideoTransformer3DModel", {}), (T5_XXL,), ("AutoencoderKLLTXVideo", {}),
        replace(LAYOUT, width=2048, lengths=("T", "X", "T32", "T64", "T128", "X32", "X64"), cells=Cells(32, 8), scratch=("splits32_X",)),
        128, (32, 8), 4096, LTX_BUCKETS, {"transformer_blocks": ("num_layers", 28)},
    ),
    "sdxl": SDXL,
    "sd15": SD15,
    # prompts padded to 300 tokens, with a mask; noise and its variance come out, of which the first is trained
    "pixart-sigma": Family(
        ("PixArtTransformer2DModel", {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False}),
        (T5_XXL,), VAE_4, Layout({}, ("T", "T8", "T32", "T128"), 1152, ("T",), scratch=("splits16_300",)), 4, (8, 1), 4096,
        # the workspace's copy of a batch's latents is of whole 256 bytes, 8 tokens: batches of whole ones
        tuple((w - w % 32 * (count > 1), h, count, 300, 1) for w, h, count, *_ in PICTURES), {}, pictures=True, noise=True,
        convolved=True,
    ),
    "sana": Family(
        ("SanaTransformer2DModel", {}), (GEMMA2_2B,), VAE_32X,
        Layout({}, ("T", "T2", "T32", "T64", "T128"), 2240, ("T",), scratch=("splits20_300",), cells=Cells(32)), 32, (32, 1), 2304,
        tuple((w, h, count, 300, 1) for w, h, count, *_ in LEVELS), {}, pictures=True,
        targets=("to_k", "to_q", "to_v"), convolved=True,
    ),
    "sd35-large": SD35_LARGE,
    # its first 13 layers have a second attention, over the picture alone: recorded whole
    "sd35-medium": replace(
        SD35_LARGE, lists={}, layout=replace(SD35_LARGE.layout, width=1536, lengths=(*SD35_LARGE.layout.lengths, "T128")),
        transformer=("SD3Transformer2DModel", {
            "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384,
            "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)),
        }),
    ),
    "lumina2": Family(
        ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}), (GEMMA2_2B,), VAE_16,
        replace(LAYOUT, width=2304, lengths=("T", "X", "S", "S128", "T128"), scratch=("splits24_256",), sample_by_sample=True),
        16, (8, 1), 2304, PADDED_PICTURES, {"layers": ("num_layers", 26)}, pictures=True, padded=256,
    ),
    "hunyuan-video-1.5": Family(
        ("HunyuanVideo15Transformer3DModel", {"task_type": "t2v"}), (QWEN25_7B, BYT5_GLYPH), ("AutoencoderKLHunyuanVideo15", {}),
        replace(
            LAYOUT, width=2048, lengths=("T", "X", "Q", "Q32", "Q64", "X32", "X64"), masks=("X*X", "Q*Q", "Q*Q8", "Q*MQ8"),
            scratch=("splits16_Q", "splits16_X"), reduced=("T", "X", "Q"), sample_by_sample=True,
        ),
        32, (16, 4), 3584, HUNYUAN15_BUCKETS, {"transformer_blocks": ("num_layers", 54)}, {"glyphs": 1472, "picture": 1152},
    ),
}  # fmt: skip
