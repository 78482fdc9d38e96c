"""What this version has memory programs for. Everything else that a config asks for and that changes memory is reported as not modelled.

Widening a set here is all that the readers need when a profile has learnt something; `modelled:` in profiles/archs.yaml is the set of
architectures.
"""

from __future__ import annotations

from estimator.derived_weights import DERIVED
from estimator.optimizer_rules import load_rules
from estimator.recipes import KINDS as RECIPES

METHODS = frozenset({"lora"})
ADAPTERS = frozenset({"lora", "lokr", "dora"})
# Architecture -> weights of the transformer with a LoKr: architectures and kinds of weights were each held against whole runs
LOKR = {
    "chroma": frozenset({"bf16", "qfloat8", "uint4"}), "flex1": frozenset({"bf16", "qfloat8", "uint4"}), "flex2": frozenset({"qfloat8"}),
    "flux1-dev": frozenset({"bf16", "qfloat8", "float8", "uint4"}), "flux1-kontext": frozenset({"qfloat8", "uint4"}),
    "flux1-schnell": frozenset({"qfloat8"}), "flux2-dev": frozenset({"qfloat8"}), "flux2-klein-4b": frozenset({"bf16", "qfloat8", "uint4"}),
    "flux2-klein-9b": frozenset({"bf16", "qfloat8", "float8", "uint4"}), "hidream": frozenset({"qfloat8"}), "ltx2": frozenset({"qfloat8"}),
    "ltx2.3": frozenset({"qfloat8"}), "lumina2-aitk": frozenset({"bf16", "qfloat8"}), "omnigen2": frozenset({"bf16", "qfloat8"}),
    "qwen-image": frozenset({"bf16", "qfloat8", "float8", "uint4"}), "qwen-image-edit": frozenset({"qfloat8"}),
    "qwen-image-edit-2509": frozenset({"qfloat8"}), "qwen-image-edit-2511": frozenset({"qfloat8", "uint4"}),
    "sd35-large-aitk": frozenset({"qfloat8"}), "sd35-medium-aitk": frozenset({"qfloat8"}), "wan21-1.3b": frozenset({"bf16", "qfloat8"}),
    "wan21-14b": frozenset({"qfloat8"}), "wan21-i2v-14b": frozenset({"qfloat8"}), "wan22-14b": frozenset({"qfloat8"}),
    "wan22-5b": frozenset({"qfloat8"}), "wan22-i2v-14b": frozenset({"qfloat8"}),
    "zimage": frozenset({"bf16", "qfloat8", "float8", "uint4"}), "zimage-turbo": frozenset({"bf16", "float8", "uint4"}),
}  # fmt: skip
# Kinds that are made of those by rule, too: held against whole runs of Z-Image in uint6 and of Flex.1 in qint8
LOKR = {arch: kinds | {kind for kind, one in DERIVED.items() if one.base in kinds} for arch, kinds in LOKR.items()}
# Likewise, with a DoRA
DORA = {
    "chroma": frozenset({"bf16", "qfloat8", "uint4"}), "flex1": frozenset({"bf16", "qfloat8", "uint4"}), "flex2": frozenset({"qfloat8"}),
    "flux1-dev": frozenset({"bf16", "qfloat8", "uint4"}), "flux1-kontext": frozenset({"qfloat8", "uint4"}),
    "flux1-schnell": frozenset({"qfloat8"}), "flux2-dev": frozenset({"qfloat8"}), "flux2-klein-4b": frozenset({"qfloat8"}),
    "flux2-klein-9b": frozenset({"bf16", "qfloat8", "uint4"}), "lumina2-aitk": frozenset({"bf16", "qfloat8"}),
    "omnigen2": frozenset({"bf16", "qfloat8"}), "qwen-image": frozenset({"bf16", "qfloat8", "uint4"}),
    "qwen-image-edit": frozenset({"qfloat8"}), "qwen-image-edit-2509": frozenset({"qfloat8"}),
    "qwen-image-edit-2511": frozenset({"qfloat8"}), "sd35-large-aitk": frozenset({"qfloat8"}), "sd35-medium-aitk": frozenset({"qfloat8"}),
    "wan21-1.3b": frozenset({"bf16", "qfloat8"}), "wan21-14b": frozenset({"qfloat8"}), "wan21-i2v-14b": frozenset({"qfloat8"}),
    "wan22-14b": frozenset({"qfloat8"}), "wan22-5b": frozenset({"qfloat8"}), "zimage": frozenset({"bf16", "qfloat8", "uint4"}),
    "zimage-turbo": frozenset({"bf16", "uint4"}),
}  # fmt: skip
# Where an adapter on some layers was held against whole runs (FLUX.1 dev, Z-Image), and the architectures of the same classes
FILTERED = frozenset({"flux1-dev", "flux1-schnell", "flex1", "zimage", "zimage-turbo"})
DROPPING = FILTERED  # dropout in adapters: held against whole runs of FLUX.1 dev and Z-Image, the others are of the same classes
# Architectures that are trained as a whole, without a network section, and the optimizers whose step was recorded on parameters in bf16
WHOLE = frozenset({
    "chroma", "flex1", "flux1-dev", "flux1-schnell", "flux2-klein-4b", "flux2-klein-9b", "lumina2-aitk", "qwen-image", "sd15-aitk",
    "sd35-large-aitk", "sd35-medium-aitk", "sdxl-aitk", "wan21-1.3b", "wan21-14b", "wan22-5b", "zimage", "zimage-turbo",
})  # fmt: skip
# Whose classes write the transformer by diffusers' save_pretrained (save_model of each), which stops on layers of the trainer's own kinds
SAVED_BY_DIFFUSERS = frozenset({
    "qwen-image", "qwen-image-edit", "qwen-image-edit-2509", "qwen-image-edit-2511", "wan21-1.3b", "wan21-14b", "wan22-5b", "zimage",
    "zimage-turbo",
})  # fmt: skip
# Those whose parameters' names were recorded, of which some may be left out
WHOLE_FILTERED = frozenset({"flex1", "flux1-dev", "zimage", "zimage-turbo"})
WHOLE_GUIDED = frozenset({"flex1", "flux1-dev"})  # those with an embedding of the guidance, which is trained or bypassed
# Kinds of weights of such a model -> architectures that were held against whole runs in them
WHOLE_WEIGHTS = {"bf16": WHOLE, "float8": frozenset({"flux1-dev", "zimage"}), "qfloat8": WHOLE_FILTERED - {"zimage-turbo"}}
TEXTED = frozenset({"sd15-aitk", "sdxl-aitk"})  # those that were recorded with an adapter on their text encoders too
WHOLE_OPTIMIZERS = frozenset({
    "adafactor", "adam", "adam8bit", "adamw", "adamw8bit", "ademamix8bit", "automagic", "automagic2", "lion8bit", "prodigy",
})  # fmt: skip
# Compute types (train.dtype) other than bf16: type -> architecture -> weights, each held against whole runs
_QUANTO = frozenset({"qfloat8"})
_BARE = frozenset({"bf16"})
_RECORDED = frozenset({"bf16", "qfloat8"})
_PLAIN = frozenset({"bf16", "qfloat8", "float8", "uint4"})  # quanto's qint4 and qint8 have other kernels in fp16
TYPED: dict[str, dict[str, frozenset[str]]] = {
    "fp16": {
        "sd15-aitk": _BARE, "sdxl-aitk": _BARE, "wan21-1.3b": _RECORDED, "zimage": _PLAIN, "zimage-turbo": _PLAIN,
        "flux1-dev": _QUANTO, "qwen-image": _QUANTO,
    },
    "fp32": {"sd15-aitk": _BARE, "sdxl-aitk": _BARE, "zimage": _QUANTO},
}  # fmt: skip
# Of these blocks clip what they put out in fp16, and keep what goes into the clip where nothing is checkpointed: not recorded
CLIPPED = frozenset({"qwen-image"})
WEIGHTS = frozenset({"bf16", "qfloat8", "float8", "uint4", *DERIVED})  # of the transformer
# Kinds of weights that have a recipe (estimator.recipes): architectures with whole runs in some of them, and those of the same classes
BY_RECIPE = {
    **dict.fromkeys(("flux1-dev", "flux1-schnell", "flex1", "flux2-dev", "flux2-klein-4b", "flux2-klein-9b"), frozenset(RECIPES)),
    **dict.fromkeys(("zimage", "zimage-turbo", "zimage-l2p", "qwen-image"), frozenset(RECIPES)),
    **dict.fromkeys(("qwen-image-edit", "qwen-image-edit-2509", "qwen-image-edit-2511"), frozenset(RECIPES)),
    **dict.fromkeys(("sd35-medium-aitk", "sd35-large-aitk", "ltx2", "ltx2.3"), frozenset(RECIPES)),
    **dict.fromkeys(("wan21-1.3b", "wan21-14b", "wan21-i2v-14b", "wan22-14b", "wan22-i2v-14b", "wan22-5b"), frozenset(RECIPES)),
}
# Of the text encoder: not where prompts are encoded with pictures, whose layers' uses nobody saw
TEXT_BY_RECIPE = {
    arch: kinds for arch, kinds in BY_RECIPE.items() if not arch.startswith("qwen-image-edit")
}
# Likewise of the transformer, beside a LoKr and beside dropout
LOKR = {arch: kinds | (BY_RECIPE[arch] if arch in {"flux1-dev", "zimage"} else frozenset()) for arch, kinds in LOKR.items()}
# The transformer with an accuracy recovery adapter: architecture -> its weights
RECOVERED = {
    "qwen-image": "uint3", "qwen-image-edit": "uint3", "qwen-image-edit-2509": "uint3", "qwen-image-edit-2511": "uint3",
    "wan22-14b": "uint4", "wan22-i2v-14b": "uint4",
}  # fmt: skip
# Of the stand-in that was recorded, and of the published one of Qwen-Image (README of the hub's ostris/accuracy_recovery_adapters)
RECOVERY_RANK = 16
TE_WEIGHTS = WEIGHTS  # of the text encoder
PRESERVING = FILTERED  # steps that preserve outputs: held against whole runs of FLUX.1 dev, Z-Image and Turbo; the others by the same rule
# Further passes of steps (estimator.passes), held against whole runs of FLUX.1 dev, Z-Image and Turbo, others of the same classes by the
# same rule. Validation batches and a prior also of Qwen-Image; guidance in the loss with the former of Wan 2.1 1.3B, with a prior of Chroma
PASSES = FILTERED
VALIDATED = FILTERED | {"qwen-image", "wan21-1.3b", "wan21-14b"}
PRIORED = FILTERED | {"chroma", "qwen-image"}
GUIDING = FILTERED | {"chroma", "wan21-1.3b", "wan21-14b"}
MEAN_FLOW = frozenset({"flex1", "flux1-dev", "flux1-kontext", "flux1-schnell"})
# Architectures that stop on a validation: their stand-in for CLIP has no weights to be asked for their device, or they ask the batch for
# control images, and there is none
VALIDATION_STOPS = frozenset({"chroma", "flux2-dev", "flux2-klein-4b", "flux2-klein-9b"})
# An assertion in the class's unpatchify; Chroma joins two samples with one; Flex.2's latents lack the channels beside them
MEAN_FLOW_STOPS = frozenset({"chroma", "flex2", "zimage", "zimage-turbo"})
# Compiled blocks: architecture -> its weights. Whole runs with the compiler's choice of what is kept, and architectures of the same blocks
# (docs/log.md, Compiled blocks)
FLUX1_BLOCKS = frozenset({"flux1-dev", "flux1-schnell", "flex1", "flux1-kontext", "flex2"})
FLUX2_BLOCKS = frozenset({"flux2-dev", "flux2-klein-4b", "flux2-klein-9b"})
# Weights that are tensor subclasses (quanto's, torchao's), with which torch stops on blocks that return two parts of one tensor (FLUX.1's)
SUBCLASSES = frozenset({"qfloat8", "float8", *(kind for kind, one in DERIVED.items() if one.base == "qfloat8")})
COMPILED = {
    **dict.fromkeys(FLUX1_BLOCKS, WEIGHTS - SUBCLASSES),
    **dict.fromkeys((*FLUX2_BLOCKS, "zimage", "zimage-turbo", "qwen-image", "qwen-image-edit", "qwen-image-edit-2509"), WEIGHTS),
    **dict.fromkeys(("wan21-1.3b", "wan21-14b", "wan21-i2v-14b", "wan22-5b", "qwen-image-edit-2511", "chroma", "ltx2", "ltx2.3"), WEIGHTS),
    **dict.fromkeys(("sd35-medium-aitk", "sd35-large-aitk", "lumina2-aitk", "omnigen2", "hidream"), WEIGHTS),
    **dict.fromkeys(("chroma-radiance", "zimage-l2p"), WEIGHTS),
}  # fmt: skip
COMPILE_STOPS = FLUX1_BLOCKS
# Adapter -> architectures whose compiled blocks it was in (FLUX.1 dev and Z-Image, and architectures of the same blocks)
COMPILED_ADAPTERS = {"lora": frozenset(COMPILED), **dict.fromkeys(("lokr", "dora"), FLUX1_BLOCKS | {"zimage", "zimage-turbo"})}
OPTIMIZERS = frozenset(load_rules())  # those that were recorded
ASSISTANT_LORA_ARCHS = frozenset({"flux1-schnell", "zimage-turbo"})
# Architectures with records of where each layer is used
OFFLOADING = frozenset({
    "flux2-dev", "flux2-klein-4b", "flux2-klein-9b", "ltx2", "ltx2.3", "ltx2.5", "qwen-image", "qwen-image-edit",
    "qwen-image-edit-2509", "qwen-image-edit-2511", "wan21-1.3b", "wan21-14b", "wan21-i2v-14b", "wan22-14b", "wan22-i2v-14b", "wan22-5b",
    "zimage", "zimage-turbo", "zimage-l2p",
})  # fmt: skip
UNMERGED: frozenset[str] = frozenset()  # those that offloading takes nothing of, with such records of their float8 previews
OFFLOADED_WEIGHTS = frozenset({"float8", "uint4", *(kind for kind in DERIVED if kind.startswith("uint"))})
# Kinds that have a recipe, of the transformer alone
OFFLOADED_BY_RECIPE = {
    arch: kinds for arch, kinds in BY_RECIPE.items()
    if arch in {"flux2-dev", "flux2-klein-4b", "flux2-klein-9b", "ltx2", "ltx2.3", "qwen-image", "wan22-14b", "zimage"}
}
# Architectures of which this is so in some kinds of the transformer's weights only
OFFLOADED_ALONE = dict.fromkeys(("wan21-1.3b", "wan21-14b", "wan21-i2v-14b", "wan22-5b"), frozenset({"bf16"}))
QUANTIZE_EXCLUDES = frozenset({"*time_text_embed*"})  # the trainer's own Flex.1 example leaves this embedder unquantised
ATTENTION = frozenset({"sdpa"})
MAX_CONTROL_IMAGES = 0
