"""Run the trainer's own run.py on a config, on the device that torch finds, recording phases and allocator events.

Runs inside the CUDA environment (`python -m calibration.trainer` starts it there). Arguments: CONFIG OUT_DIR.
Environment: AITK (the trainer's checkout), TRAINER_WEIGHTS (stand-in adapter files), TRAINER_EVENTS=1 (record events),
TRAINER_PROBE=1 (a probe job: each step is made twice, with gradient checkpointing on and off), TRAINER_STOP=load or =prepare (stop there),
TRAINER_MODELS=real (the weights that the config names, nothing patched: a run on a real card; without it weights are untouched memory).
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import resource
import runpy
import sys
import traceback
from collections.abc import Callable
from typing import Any

CONFIG, OUT = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
REAL_MODELS = os.environ.get("TRAINER_MODELS") == "real"
os.environ.update(DISABLE_TELEMETRY="YES", NO_ALBUMENTATIONS_UPDATE="1", TOKENIZERS_PARALLELISM="false")
if not REAL_MODELS:
    os.environ["HF_HUB_OFFLINE"] = "1"
AITK = os.path.abspath(os.environ["AITK"])
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:1] = [PROJECT, AITK]  # not this folder: its module names are not for the trainer
os.chdir(AITK)

from calibration.trainer import import_stubs  # noqa: E402  (before torch: the trainer's imports must find the stubs)

import_stubs.install()

import torch  # noqa: E402

from calibration.trainer import labels, linears, models, patches, recorder, sounds, tensors, token_counts, trace, video  # noqa: E402
from calibration.trainer.conditions import record_conditions, sampled  # noqa: E402

if not REAL_MODELS:
    torch.set_num_threads(2)
    models.install(CONFIG)
    patches.values()
PROBE = os.environ.get("TRAINER_PROBE") == "1"
R = recorder.Recorder(events=os.environ.get("TRAINER_EVENTS") == "1")
LABELS = labels.Labels() if R.events else None
LINEARS = linears.Linears(R)
VERSIONED = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "torchao", "optimum-quanto", "prodigyopt")


def shape_of(x: Any) -> Any:
    return list(x.shape) if torch.is_tensor(x) else None


def patch(cls: Any, attribute: str, phase: str, info: Callable[..., dict[str, Any]] | None = None) -> None:
    """Record cls.attribute as a phase, unless one of that name is open already."""
    function = getattr(cls, attribute)

    @functools.wraps(function)
    def wrapped(self: Any, *a: Any, **k: Any) -> Any:
        if any(frame["phase"] == phase for frame in R.stack):
            return function(self, *a, **k)
        return R.wrap(function, phase, info)(self, *a, **k)

    setattr(cls, attribute, wrapped)


def bucket_info(batch: Any) -> dict[str, Any]:
    item, pixels = batch.file_items[0], getattr(batch, "tensor", None)
    return {
        "batch": len(batch.file_items), "width": item.crop_width, "height": item.crop_height, "frames": getattr(item, "num_frames", 1),
        "latents": shape_of(getattr(batch, "latents", None)), "pixels": shape_of(pixels), "text": token_counts.cached_tokens(batch),
        "sound": sounds.has_sound(batch), "begins": getattr(getattr(batch, "dataset_config", None), "do_i2v", False),
    }  # fmt: skip


def record_steps(trainer: Any) -> None:
    real = trainer.hook_train_loop

    def step(self: Any, batches: Any) -> Any:
        listed = batches if isinstance(batches, list) else [batches]
        for checkpointing in video.passes(getattr(self.sd, "arch", ""), PROBE):
            if checkpointing is not None:
                video.switch_checkpointing(self.sd.unet, checkpointing)
                for parameter in tensors.recovery_parameters(self.sd):  # each step is recorded as a run's first one, which makes them
                    parameter.grad = None
            info = {"step": self.step_num, "gradient_checkpointing": checkpointing, "buckets": [bucket_info(b) for b in listed]}
            result = R.wrap(real, "step", lambda *_, info=info, **__: info)(self, batches)
        return result

    trainer.hook_train_loop = step


def record_trainer() -> None:
    """Phases that belong to the trainer's classes."""
    import toolkit.data_loader as data_loader
    from extensions_built_in.sd_trainer.SDTrainer import SDTrainer
    from jobs.process.BaseSDTrainProcess import BaseSDTrainProcess as Base
    from toolkit.util.get_model import get_all_models

    get_all_models()
    if not REAL_MODELS:
        patches.install(os.environ["TRAINER_WEIGHTS"])
    record_steps(SDTrainer)
    video.record_first_frames(R)

    def sample_info(self: Any, step: Any = None, *_: Any, **__: Any) -> dict[str, Any]:
        return {"step": step, "samples": [sampled(one) for one in self.sample_config.samples]}

    patch(Base, "sample", "sample", sample_info)
    patch(Base, "save", "save")
    patch(Base, "validate", "validate")
    patch(SDTrainer, "hook_before_train_loop", "prepare")
    if os.environ.get("TRAINER_STOP") == "prepare":
        stop_after(SDTrainer, "hook_before_train_loop")
    patch(SDTrainer, "prepare_accelerator", "prepare_accelerator")
    patch(SDTrainer, "cache_sample_prompts", "cache_sample_prompts")
    patch(Base, "setup_ema", "setup_ema")
    dataset = data_loader.AiToolkitDataset
    patch(dataset, "cache_latents_all_latents", "cache_latents", lambda self: {"resolution": self.dataset_config.resolution})
    patch(dataset, "cache_text_embeddings", "cache_text", lambda self: {"resolution": self.dataset_config.resolution})
    record_setup(Base, SDTrainer)


def record_setup(base: Any, trainer: Any) -> None:
    """The model object as soon as there is one, and the optimizer where the set-up ends."""
    real_after = base.hook_after_sd_init_before_load

    def after_init(self: Any) -> Any:
        R.names = tensors.Names(self)
        record_model(self)
        return real_after(self)

    base.hook_after_sd_init_before_load = after_init
    real_before = trainer.before_dataset_load

    def before_dataset(self: Any) -> Any:
        while len(R.stack) > 1:  # ends the set-up phase
            R.close(R.stack[-1])
        record_optimizer(self)
        return real_before(self)

    trainer.before_dataset_load = before_dataset


def stop_after(cls: Any, attribute: str) -> None:
    function = getattr(cls, attribute)

    def stopping(self: Any, *a: Any, **k: Any) -> None:
        function(self, *a, **k)
        sys.exit(0)

    setattr(cls, attribute, stopping)


def record_model(process: Any) -> None:
    """Phases that belong to the model object: loading, encoding, predicting, moving."""
    sd = process.sd
    record_loading(sd, process.is_fine_tuning)
    record_encoding(sd)
    record_conditions(R, sd)
    sd.predict_noise = R.wrap(sd.predict_noise, "predict_noise", lambda *_, **__: {"grad": torch.is_grad_enabled()})
    for name in ("set_device_state", "restore_device_state", "generate_single_image", "text_encoder_to"):
        if hasattr(sd, name):
            setattr(sd, name, R.wrap(getattr(sd, name), name))
    process.accelerator.backward = R.wrap(process.accelerator.backward, "backward")
    process.accelerator.clip_grad_norm_ = R.wrap(process.accelerator.clip_grad_norm_, "clip_grad")


def record_loading(sd: Any, whole: bool) -> None:
    """A phase for each status text of the loader, and what can be recorded once the modules are there. `whole`: all is trained."""
    load, status = sd.load_model, sd.print_and_status_update

    def status_update(message: Any, *a: Any, **k: Any) -> Any:
        if any(frame["phase"] == "load" for frame in R.stack):
            R.sibling("load", "load: " + str(message).strip())
        return status(message, *a, **k)

    def load_model() -> None:
        frame = R.open("load")
        R.within(frame, load)
        R.close(frame)
        name_modules(sd, whole)
        if os.environ.get("TRAINER_STOP") == "load":
            sys.exit(0)
        video.record_experts(R, sd)
        R.open("setup")
        record_vae(sounds.record(R, sd))

    sd.print_and_status_update, sd.load_model = status_update, load_model


def record_encoding(sd: Any) -> None:
    """Prompts that are encoded, with the tokens and images of each."""
    encode = sd.encode_prompt

    def encode_prompt(*a: Any, **k: Any) -> Any:
        frame = R.open("encode_prompt", autograd=torch.is_grad_enabled())
        out = R.within(frame, encode, *a, **k)
        frame["tokens"] = list(token_counts.LAST_COUNTS)
        frame["images"] = list(token_counts.LAST_IMAGES)
        R.mark("info", tokens=frame["tokens"], images=frame["images"])
        R.close(frame)
        return out

    sd.encode_prompt = encode_prompt


def record_vae(vae: Any) -> None:
    def shape(z: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return {"shape": shape_of(z)}

    if vae is None:
        return
    vae.decode, vae.encode = R.wrap(vae.decode, "vae_decode", shape), R.wrap(vae.encode, "vae_encode", shape)
    if hasattr(vae, "tiled_decode"):  # each tile of a tiled decode
        vae.decoder.forward = R.wrap(vae.decoder.forward, "vae_decoder", shape)
    if tensors.works_in_chunks(vae) or hasattr(vae, "_temporal_tiled_encode"):
        vae.encoder.forward = R.wrap(vae.encoder.forward, "vae_encoder", shape)


def name_modules(sd: Any, whole: bool) -> None:
    """`whole`: all of it is trained: offloading takes none of its layers."""
    if LABELS is None:
        return
    encoders = sd.text_encoder if isinstance(sd.text_encoder, (list, tuple)) else [sd.text_encoder]
    named = [("transformer", sd.unet), ("vae", sd.vae), *((f"text_encoder{i}", m) for i, m in enumerate(encoders)), *tensors.beside(sd)]
    for prefix, module in named:
        if isinstance(module, torch.nn.Module):
            experts = video.experts(module)
            for expert in experts:
                LABELS.name_modules(expert, prefix)
            recovered = prefix == "transformer" and tensors.recovery_parameters(sd)  # its layers have an adapter's forward around theirs
            if PROBE and not whole and prefix.startswith(("transformer", "text_encoder")) and not recovered:
                LINEARS.watch(experts[0], prefix)  # of two the first is trained throughout


def record_optimizer(process: Any) -> None:
    """A hook pair, not a wrapper: learning-rate schedulers look at optimizer.step itself."""
    optimizer = getattr(process.optimizer, "optimizer", process.optimizer)
    box: dict[str, Any] = {}

    def before(*_: Any) -> None:
        box["frame"] = R.open("optimizer_step", step=process.step_num)

    def after(*_: Any) -> None:
        R.close(box["frame"])
        patches.TRAINED[0] = True

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    if process.ema is not None:
        process.ema.update = R.wrap(process.ema.update, "ema_update")


def versions() -> dict[str, str]:
    installed = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions() if each.metadata["Name"]}
    out = {name: installed.get(name, "not installed") for name in VERSIONED}
    out["ai-toolkit"] = runpy.run_path(os.path.join(AITK, "version.py"))["VERSION"]
    return out


def main() -> None:
    root = R.open("run")
    outcome, error_text = "ok", None
    sys.argv = ["run.py", CONFIG]
    try:
        record_trainer()
        runpy.run_path(os.path.join(AITK, "run.py"), run_name="__main__")
    except SystemExit as stop:
        outcome = "ok" if not stop.code else f"exit {stop.code}"
    except BaseException as error:
        traceback.print_exc()
        outcome = "oom" if recorder.is_oom(error) or "OOM" in str(error) else "error"
        error_text = f"{type(error).__name__}: {error}"[:1500]
    R.close(root, outcome)
    if outcome == "ok" and any(row["outcome"] == "oom" for row in R.rows):
        outcome = "ok_but_steps_oom"  # the trainer skips up to three out-of-memory steps in a row
    stats, device = torch.cuda.memory_stats(), torch.cuda.get_device_properties(0)
    result = {
        "config": os.path.basename(CONFIG), "outcome": outcome, "error": error_text,
        "oom_phases": [row["phase"] for row in R.rows if row["outcome"] == "oom"],
        "num_ooms": stats.get("num_ooms"), "num_alloc_retries": stats.get("num_alloc_retries"),
        "gpu": device.name, "total_bytes": device.total_memory, "compute_capability": f"{device.major}.{device.minor}",
        "context_bytes_assumed": recorder.context_bytes(), "cudnn_workspace": os.environ.get("FAKECUDA_CUDNN_WS", "0"),
        "versions": versions(), "models": models.LOADED, "stubbed": sorted(import_stubs.used), "notes": patches.NOTES,
        "host_maxrss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "phases": R.rows, "linears": LINEARS.table,
        "trained": getattr(R.names, "trained", list)(), "trained_names": getattr(R.names, "trained_names", []),
    }  # fmt: skip
    if R.events:
        trace.save(os.path.join(OUT, "trace.npz"), R)
    with open(os.path.join(OUT, "result.json"), "w") as file:
        json.dump(result, file, indent=1)
    print("RESULT", outcome, error_text, flush=True)
    os._exit(0)  # interpreter shutdown would run module destructors against the emulated device


main()
