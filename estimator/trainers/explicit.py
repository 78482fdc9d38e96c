"""The explicit run file: one training step (and one preview) with everything said, for other trainers and for measured rows.

    run:
      arch: zimage                  # a key of `estimate archs`
      method: lora                  # lora | full | inference
      lora: {rank: 16}              # dtype: fp32 (default), bf16 or fp16; targets: trainer default (default), all-linear or a list of names
      autocast: true                # of architectures that AI Toolkit does not have: the forward runs under torch.autocast (default)
      weights: bf16                 # of the base model: fp32, bf16, fp16 or a quantisation type
      width: 1024
      height: 1024
      frames: 1                     # default
      text_tokens: 256              # left out: the architecture's maximum
      control_images: 0             # default
      batch_size: 1
      gradient_checkpointing: true  # default
      optimizer: adamw              # default
      optimizer_state_dtype: fp32   # left out: the optimizer's own
      resident: [transformer]       # default; text_encoder and vae besides, where they stay on the card during the step
      attention: sdpa               # default
      torch: "2.9.1"                # left out: the recorded one; before 2.13 torch reuses other free blocks
      sample: null                  # default; or {width, height, frames: 1, cfg: none|sequential|batched, vae_tiling: false}

Unknown keys are errors, and everything without a default above must be there. What is particular to architectures that AI Toolkit does not
have is in explicit_harness.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from estimator.archs import Arch, load_archs
from estimator.configfile import ConfigFile
from estimator.job import Bucket, Dataset, Job, Model, Network, Sample, Train
from estimator.trainers import explicit_harness, explicit_versions, modelled
from estimator.trainers.aitoolkit_arch import instead_of
from estimator.trainers.aitoolkit_model import QTYPES
from estimator.trainers.aitoolkit_network import MAX_RANK
from estimator.trainers.aitoolkit_sample import MAX_SIDE
from estimator.trainers.aitoolkit_train import MAX_BATCH, OPTIMIZERS
from estimator.trainers.aitoolkit_video import SOUND_PER_SECOND
from estimator.trainers.overrides import apply_overrides
from estimator.trainers.section import Findings, Section, did_you_mean, nearest, shown
from estimator.tree import KeyPath

RUN = ("run",)
RUN_KEYS = frozenset({
    "arch", "method", "lora", "weights", "width", "height", "frames", "text_tokens", "control_images", "batch_size",
    "gradient_checkpointing", "optimizer", "optimizer_state_dtype", "resident", "attention", "sample", "autocast", "torch",
}) | explicit_harness.KEYS  # fmt: skip
LORA_KEYS = frozenset({"rank", "dtype", "targets"})
SAMPLE_KEYS = frozenset({"width", "height", "frames", "cfg", "vae_tiling"})
REQUIRED = ("arch", "method", "weights", "width", "height", "batch_size")
METHODS = ("lora", "full", "inference")
FLOATS = ("fp32", "bf16", "fp16")
ATTENTION = ("sdpa", "flash", "xformers", "sage", "math")
CFG = ("none", "sequential", "batched")
TRAINER_TARGETS = ("trainer default", "all-linear")
AS_AI_TOOLKIT = "loading, caching and saving are estimated as AI Toolkit does them: another trainer's may need more or less"
MAX_FRAMES, MAX_TEXT_TOKENS, MAX_CONTROL_IMAGES = 10_000, 100_000, 100


def read_explicit(file: ConfigFile, overrides: Sequence[str] = (), arch_override: str | None = None) -> tuple[Job, ...]:
    """The one job of an explicit run file. Raises InputError with all problems at once, CannotTell for an architecture without a model."""
    file = apply_overrides(file, overrides, RUN, {"run": ()}, _known_children)
    found = Findings(file)
    _only(Section(found, (), file.data), frozenset(RUN))
    run = Section(found, (), file.data).section("run")
    if run is None:
        found.problem(RUN, "the section run is empty", "", f"it needs at least {', '.join(REQUIRED)}")
        found.stop_if_unusable()
        return ()
    job = _read_run(run, arch_override)
    found.stop_if_unusable()
    return () if job is None else (job,)


def _known_children(path: KeyPath) -> frozenset[str] | None:
    tables: dict[KeyPath, frozenset[str]] = {(): frozenset(RUN), RUN: RUN_KEYS, (*RUN, "lora"): LORA_KEYS, (*RUN, "sample"): SAMPLE_KEYS}
    return tables.get(path)


def _only(section: Section, keys: frozenset[str]) -> None:
    for key in section.values:
        if key not in keys:
            near = nearest(key, keys)
            fix = f"did you mean {near!r}?" if near else f"known are: {', '.join(sorted(keys))}"
            section.found.problem(section.at(key), f"unknown key {shown(key)}", "every key of a run file must be understood", fix)


def _one_of(section: Section, key: str, choices: Sequence[str], default: str) -> str:
    """The text under `key`, which must be one of `choices`."""
    value = section.values.get(key, default)
    if value is None and key in REQUIRED:  # missing, which is said already
        return default
    if not isinstance(value, str) or value not in choices:
        section.found.problem(section.at(key), f"{shown(value)} is not one of the choices", "", did_you_mean(str(value), choices))
        return default
    return value


def _side(section: Section, key: str, arch: Arch | None) -> int:
    side, unit = section.whole(key, 1024, 1, MAX_SIDE, needed=True), arch.cell_pixels if arch is not None else 1
    if side % unit and arch is not None and arch.unet:
        section.found.not_modelled(section.at(key), side, f"{arch.name} was recorded at multiples of {unit} pixels: another size")
    elif side % unit and arch is not None:
        why, fix = f"{arch.name} takes whole tokens of {unit} x {unit} pixels", f"write {max(side // unit, 1) * unit}"
        section.found.problem(section.at(key), f"{side} is no multiple of {unit}", why, fix)
    return side


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the transformer gets in one step. `text_tokens` None: the architecture's maximum."""

    bucket: Bucket
    batch_size: int
    text_tokens: int | None
    control_images: int


def _read_run(run: Section, arch_override: str | None) -> Job | None:
    found = run.found
    _only(run, RUN_KEYS)
    for key in REQUIRED:
        if run.values.get(key) is None:
            found.problem(run.at(key), f"{key} is missing", "nothing is assumed in a run file", f"write {key}: below run:")
    arch = _arch(run, arch_override)
    method = _one_of(run, "method", METHODS, "lora")
    if method not in modelled.METHODS:
        found.not_modelled(run.at("method"), method, "this method")
    shape = _shape(run, arch)
    weights = _one_of(run, "weights", (*FLOATS, *QTYPES), "bf16")
    if weights not in modelled.WEIGHTS and not (arch is not None and (arch.harness or weights == arch.prequantised)):
        found.not_modelled(run.at("weights"), weights, "the transformer in this type")
    network = _lora(run, method, arch)
    optimizer, state = _optimizer(run)
    on_host = explicit_harness.on_host(run, arch, optimizer)
    resident = explicit_harness.resident(run)
    (left, back), diffusers = explicit_harness.gone(run, arch, resident), explicit_versions.older_diffusers(run, arch)
    attention = _one_of(run, "attention", ATTENTION, "sdpa")
    if attention not in modelled.ATTENTION:
        found.not_modelled(run.at("attention"), attention, "another attention kernel saves other tensors")
    checkpointing = run.flag("gradient_checkpointing", True)
    samples = () if arch is None else _sample(run, arch)
    autocast = run.flag("autocast", arch is not None and arch.harness)
    if arch is None:
        return None
    _check_arch(run, arch, network, resident, autocast)
    torch, name = explicit_versions.torch(run), os.path.splitext(os.path.basename(found.file.name))[0]
    train = Train(
        batch_size=shape.batch_size, gradient_checkpointing=checkpointing, optimizer=optimizer,
        unload_text_encoder="text_encoder" not in resident, disable_sampling=not samples,
    )  # fmt: skip
    return Job(
        name=name, trainer="explicit", arch=arch.key, trainer_arch=arch.key, method=method, torch=torch, diffusers=diffusers,
        model=Model(name_or_path=arch.hub[0] if arch.hub else arch.key, weights=weights),
        network=network, train=train, datasets=(_dataset(shape, arch, resident),), samples=samples, sample_every=0, save_every=0,
        unmodelled=found.unmodelled, warnings=found.warnings, resident=resident, attention=attention, left_in_cache=left, given_back=back,
        control_images=shape.control_images, optimizer_state_dtype=state, autocast=autocast, optimizer_on_host=on_host,
    )  # fmt: skip


def _check_arch(run: Section, arch: Arch, network: Network | None, resident: tuple[str, ...], autocast: bool) -> None:
    """What of the settings has no model for this architecture, and what is estimated as AI Toolkit does it."""
    if arch.harness:
        explicit_harness.check(run, arch, network, resident, autocast)
        return
    run.found.warn((), AS_AI_TOOLKIT)
    if "autocast" in run.values:
        run.found.not_modelled(run.at("autocast"), autocast, "the step was recorded as AI Toolkit makes it")


def _arch(run: Section, override: str | None) -> Arch | None:
    archs = load_archs().archs
    key = override if override is not None else run.text("arch")
    if key is None:
        return None
    path: KeyPath = () if override is not None else run.at("arch")
    prefix = "--arch " if override is not None else ""
    if key not in archs:
        run.found.problem(path, f"{prefix}{key[:80]}: no such architecture", "", instead_of(key, load_archs()))
        return None
    if not archs[key].modelled:
        near = archs[key].nearest
        fix = f"the nearest that is modelled is {near}" if near else f"modelled are {', '.join(load_archs().modelled())}"
        run.found.cannot_tell(path, f"not modelled: {prefix}{key} ({archs[key].name})", "", fix)
        return None
    return archs[key]


def _shape(run: Section, arch: Arch | None) -> _Shape:
    frames = run.whole("frames", 1, 1, MAX_FRAMES)
    if frames > 1 and arch is not None and not arch.video:
        run.found.not_modelled(run.at("frames"), frames, "video")
    elif arch is not None and arch.video and (over := (frames - 1) % arch.cell_frames):
        counted = f"counted as {frames - over}: its VAE makes a latent frame of the first and of each {arch.cell_frames} behind it"
        run.found.warn(run.at("frames"), counted)
    images = run.whole("control_images", 0, 0, MAX_CONTROL_IMAGES)
    if images > modelled.MAX_CONTROL_IMAGES:
        run.found.not_modelled(run.at("control_images"), images, "control images")
    sound = 0 if arch is None else arch.sound_tokens(frames, SOUND_PER_SECOND)
    bucket = Bucket(_side(run, "width", arch), _side(run, "height", arch), frames, count=1, sound_tokens=sound)
    text = run.whole("text_tokens", 1, 1, MAX_TEXT_TOKENS, needed=True) if run.values.get("text_tokens") is not None else None
    return _Shape(bucket, run.whole("batch_size", 1, 1, MAX_BATCH, needed=True), text, images)


def _dataset(shape: _Shape, arch: Arch, resident: tuple[str, ...]) -> Dataset:
    return Dataset(
        folder="",
        resolution=max(shape.bucket.width, shape.bucket.height),
        batch_size=shape.batch_size,
        buckets=(shape.bucket,),
        scanned=True,
        cache_latents=arch.harness or "vae" not in resident,
        cache_text_embeddings=arch.harness or "text_encoder" not in resident,
        text_tokens=arch.fixed_text_tokens if shape.text_tokens is None else shape.text_tokens,
    )


def _lora(run: Section, method: str, arch: Arch | None) -> Network | None:
    lora = run.section("lora")
    if lora is None or method != "lora":
        if method == "lora":
            run.found.problem(run.at("lora"), "the section lora is missing", "method: lora needs it", "for instance lora: {rank: 16}")
        elif lora is not None:
            run.found.problem(run.at("lora"), f"a section lora with method: {method}", "", "remove it, or write method: lora")
        return None
    _only(lora, LORA_KEYS)
    if lora.values.get("rank") is None:
        run.found.problem(lora.at("rank"), "rank is missing", "", "for instance rank: 16")
    dtype = _one_of(lora, "dtype", FLOATS, "fp32")
    if dtype not in (recorded := arch.adapter_dtypes if arch else ("fp32",)):
        run.found.not_modelled(lora.at("dtype"), dtype, f"an adapter in another type than {' or '.join(recorded)}")
    targets = lora.values.get("targets", TRAINER_TARGETS[0])
    names: tuple[str, ...] = ()
    if isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets):
        names = tuple(targets)
    elif targets not in TRAINER_TARGETS:
        what = f"expected a list of module names, got {'an empty one' if targets == [] else shown(targets)}"
        run.found.problem(lora.at("targets"), what, "", f"or one of: {', '.join(TRAINER_TARGETS)}")
    own = arch.lora_targets if arch else ()
    if targets == TRAINER_TARGETS[0] and own:
        run.found.warn(lora.at("targets"), f"the adapter is taken to be on {', '.join(own)}")
    elif targets != TRAINER_TARGETS[0] and (not names or set(names) != set(own)):
        names = names or (str(targets),)
        recorded_layers = f"those recorded ({', '.join(own)})" if own else "the trainer's"
        run.found.not_modelled(lora.at("targets"), shown(targets), f"the adapter on other layers than {recorded_layers}")
    return Network(kind="lora", rank=lora.whole("rank", 4, 1, MAX_RANK, needed=True), dtype=dtype, targets=names)


def _optimizer(run: Section) -> tuple[str, str | None]:
    optimizer = _one_of(run, "optimizer", OPTIMIZERS, "adamw")
    if optimizer not in modelled.OPTIMIZERS:
        run.found.not_modelled(run.at("optimizer"), optimizer, "its state and the temporary tensors of its step")
    if run.values.get("optimizer_state_dtype") is None:
        return optimizer, None
    state = _one_of(run, "optimizer_state_dtype", (*FLOATS, "int8"), "fp32")
    run.found.not_modelled(
        run.at("optimizer_state_dtype"), state, "optimizer state in a type of your choice; leave it out for the optimizer's own"
    )
    return optimizer, state


def _sample(run: Section, arch: Arch) -> tuple[Sample, ...]:
    sample = run.section("sample")
    if sample is None:
        return ()
    _only(sample, SAMPLE_KEYS)
    for key in ("width", "height"):
        if sample.values.get(key) is None:
            run.found.problem(sample.at(key), f"{key} is missing", "nothing is assumed in a run file", f"write {key}: below sample:")
    cfg = _one_of(sample, "cfg", CFG, "none")
    frames = sample.whole("frames", 1, 1, MAX_FRAMES)
    tiling = sample.flag("vae_tiling", False)
    if frames > 1 and not arch.video:
        run.found.not_modelled(sample.at("frames"), frames, "video")
    if tiling:
        run.found.not_modelled(sample.at("vae_tiling"), True, "decoding in tiles")
    if cfg != arch.guidance and (cfg != "none" or arch.always_guided):
        run.found.not_modelled(sample.at("cfg"), cfg, f"guidance in this form on {arch.name}")
    return (
        Sample(
            *arch.preview_size(_side(sample, "width", arch), _side(sample, "height", arch)), frames=frames,
            cfg=1.0 if cfg == "none" else 2.0, batch=2 if cfg == "batched" else 1, guided=cfg != "none", vae_tiling=tiling,
            text_tokens=arch.fixed_text_tokens, negative_tokens=arch.fixed_text_tokens,
            sound_tokens=arch.sound_tokens(frames, SOUND_PER_SECOND),
        ),
    )  # fmt: skip
