"""The `train` section of AI Toolkit.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (TrainConfig),
toolkit/optimizer.py, jobs/process/BaseSDTrainProcess.py (run).
"""

from __future__ import annotations

from typing import Any

from estimator.job import Train
from estimator.trainers import modelled
from estimator.trainers.aitoolkit_keys import check_keys
from estimator.trainers.aitoolkit_passes import BLANK_PRESERVED, CLASS_PRESERVED
from estimator.trainers.section import Section, did_you_mean, shown

# Above these no card and no trainer helps; they keep a slip of the pen (1e9) from being taken for a job.
MAX_BATCH = 4096
MAX_STEPS = 10**9

OPTIMIZERS = (
    "adam", "adamw", "adam8bit", "adamw8bit", "ademamix8bit", "lion8bit", "adam8", "adamw8", "lion", "adagrad", "adafactor", "prodigy",
    "prodigy8bit", "dadaptation", "dadaptationadam", "dadaptationlion", "automagic", "automagic2", "automagic3", "automagicexperiment",
)  # fmt: skip
OUTSIDE = {
    "lion": "lion-pytorch", "dadaptation": "dadaptation", "dadaptationadam": "dadaptation", "dadaptationlion": "dadaptation",
}  # fmt: skip
# Arguments of optimizers that change neither the state nor the temporary tensors of a step.
NEUTRAL_OPTIMIZER_PARAMS = (
    "weight_decay", "betas", "beta2", "beta3", "lr", "min_lr", "max_lr", "lr_bump", "eps", "d0", "d_coef", "growth_rate", "decouple",
    "use_bias_correction", "safeguard_warmup", "clip_threshold", "decay_rate", "relative_step", "scale_parameter", "warmup_init",
)  # fmt: skip
TIMESTEP_TYPES = (
    "sigmoid", "linear", "weighted", "shift", "flux_shift", "lumina2_shift", "lognorm_blend", "one_step", "two_step", "four_step",
    "eight_step", "next_sample",
)  # fmt: skip
DEFAULT_TIMESTEPS = "sigmoid"


def read_train(train: Section) -> Train:
    """The training loop's settings; those without a model are reported."""
    found = train.found
    check_keys(train, "train")
    batch = train.whole("batch_size", 1, 1, MAX_BATCH)
    accumulation = train.whole("gradient_accumulation", 1, 1, MAX_STEPS)
    older = train.whole("gradient_accumulation_steps", 1, -1, MAX_STEPS, floats=True)  # -1: a whole epoch; 0: as 1
    if accumulation > 1 and older != 1:
        what = "gradient_accumulation and gradient_accumulation_steps exclude each other"
        found.problem(train.at("gradient_accumulation_steps"), what, "the trainer refuses them together", "remove this one, the older")
    elif older not in (0, 1):
        text = "the trainer drops gradients at the start of each step all the same, and keeps them through previews"
        found.warn(train.at("gradient_accumulation_steps"), text)
    ema = train.section("ema_config")
    if ema is not None:
        check_keys(ema, "train.ema_config")
    scheduler = train.text("noise_scheduler", "ddpm") or "ddpm"
    _check_switches(train)
    return Train(
        steps=train.whole("steps", 1000, 0, MAX_STEPS),
        batch_size=batch,
        gradient_accumulation=accumulation,
        gradients_stay=older not in (0, 1),
        gradient_checkpointing=train.truth("gradient_checkpointing", True),
        optimizer=_optimizer(train),
        weight_decay=_decays(train),
        ema=ema is not None and ema.truth("use_ema", False),
        unload_text_encoder=train.truth("unload_text_encoder", False),
        cache_text_embeddings=train.truth("cache_text_embeddings", False),
        skip_first_sample=train.truth("skip_first_sample", False) or _starts_late(train),
        force_first_sample=train.truth("force_first_sample", False),
        disable_sampling=train.truth("disable_sampling", False),
        noise_scheduler=scheduler,
        saturates_prompts=train.number("prompt_saturation_chance", 0.0) > 0,
        switch_boundary_every=max(1, train.whole("switch_boundary_every", 1, 0, MAX_STEPS)),
        weighs_timesteps=_weighs_timesteps(train),
        **_preserved(train),
    )


def _weighs_timesteps(train: Section) -> bool:
    """Models trained by flow matching (all that are modelled) weigh the loss of each sample by its timestep (SDTrainer.calculate_loss)."""
    older = [train.truth(key, False) for key in ("linear_timesteps", "linear_timesteps2")]
    return any(older) or train.values.get("timestep_type", DEFAULT_TIMESTEPS) == "weighted"


PRESERVED_CLASS = ""  # diff_output_preservation_class


def _preserved(train: Section) -> dict[str, Any]:
    """Fields of `Train`: on which prompt a step preserves the model's output."""
    if train.truth(CLASS_PRESERVED, False):
        return {"preserves": train.text("diff_output_preservation_class", PRESERVED_CLASS) or "", "preserves_captions": True}
    return {"preserves": ""} if train.truth(BLANK_PRESERVED, False) else {}


def _starts_late(train: Section) -> bool:
    """A start step above 1 skips the baseline previews, unless they are forced (BaseSDTrainProcess.run)."""
    start = train.values.get("start_step")
    if start is None:
        return False
    return train.whole("start_step", 0, 0, MAX_STEPS) > 1 and not train.truth("force_first_sample", False)


def _check_switches(train: Section) -> None:
    """Settings whose meaning hangs on one another, and what the trainer refuses."""
    found = train.found
    on = {
        key: train.truth(key, False)
        for key in (
            "train_text_encoder", "do_guidance_loss", "bypass_guidance_embedding", "diff_output_preservation", "blank_prompt_preservation",
            "unload_text_encoder", "cache_text_embeddings",
        )
    }  # fmt: skip
    refused = [
        ("bypass_guidance_embedding", "do_guidance_loss"),
        ("diff_output_preservation", "blank_prompt_preservation"),
        ("train_text_encoder", "unload_text_encoder"),
        ("train_text_encoder", "cache_text_embeddings"),
    ]
    for one, other in refused:
        if on[one] and on[other]:
            found.problem(
                train.at(other), f"{one} and {other} exclude each other", "the trainer refuses them together", "switch one of them off"
            )
    kind = train.values.get("timestep_type", DEFAULT_TIMESTEPS)
    if kind not in TIMESTEP_TYPES:
        fix = did_you_mean(str(kind), TIMESTEP_TYPES)
        found.problem(train.at("timestep_type"), f"unknown timestep_type {shown(kind)}", "the trainer stops on it", fix)
    elif kind == "next_sample":
        found.not_modelled(train.at("timestep_type"), kind, "an extra pass through the transformer in every step")


def _optimizer(train: Section) -> str:
    """The optimizer in the trainer's canonical name: any case, "prodigyopt" is prodigy."""
    written = train.values.get("optimizer", "adamw")
    name = written.lower() if isinstance(written, str) else ""
    for prefix in ("prodigy8bit", "prodigy"):  # the trainer looks at how the name begins
        if name.startswith(prefix):
            name = prefix
            break
    if name not in OPTIMIZERS:
        fix = did_you_mean(str(written), OPTIMIZERS)
        train.found.problem(train.at("optimizer"), f"unknown optimizer {shown(written)}", "the trainer stops on it", fix)
        return "adamw"
    if name in OUTSIDE:
        why = f"it needs the package {OUTSIDE[name]}, which the trainer does not install"
        train.found.not_modelled(train.at("optimizer"), written, why)
    elif name not in modelled.OPTIMIZERS:
        train.found.not_modelled(train.at("optimizer"), written, "its state and the temporary tensors of its step")
    params = train.section("optimizer_params")
    if params is not None:
        for key, value in params.values.items():
            if key not in NEUTRAL_OPTIMIZER_PARAMS:
                train.found.not_modelled(params.at(key), value, "changes what the optimizer keeps or how it steps")
    return name


def _decays(train: Section) -> bool:
    """A weight decay is set and not 0."""
    params = train.section("optimizer_params")
    return params is not None and bool(params.values.get("weight_decay"))
