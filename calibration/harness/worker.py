"""One recorded run of the harness, on the device that torch finds. `python -m calibration.harness` starts it. Arguments: JOB.json OUT_DIR.

A job: `arch`, `dtype`, `autocast`, `full`, `diffusers` and `native` (families.Kind), the adapter's `rank`, `buckets`, `components` (text
encoders and VAE are brought to the card once, so that their tensors are known), `resident` (those that stay there), `left_in_cache` (those
that are gone when the transformer comes, without torch.cuda.empty_cache()), `given_back` (those that are gone when training starts, with
it), `optimizer`, `checkpointing` (which of both), `events`, `layers` (of each list; 0: the model's own).
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import traceback
from types import SimpleNamespace
from typing import Any

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[0] = PROJECT
os.environ.update(HF_HUB_OFFLINE="1", DISABLE_TELEMETRY="YES", TOKENIZERS_PARALLELISM="false")

import torch  # noqa: E402

from calibration.harness import models  # noqa: E402
from calibration.harness.families import FAMILIES, Bucket  # noqa: E402
from calibration.trainer import labels, recorder, tensors, trace  # noqa: E402

VERSIONED = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")


class Job:
    """The models and the optimizer of one run; what the recorder asks for names."""

    def __init__(self, job: dict[str, Any], record: recorder.Recorder) -> None:
        family = FAMILIES[job["arch"]]
        self.job, self.record, self.family = job, record, family.of_layers(job["layers"]) if job["layers"] else family
        self.sd = SimpleNamespace(unet=None, vae=None, text_encoder=[])
        self.network: Any = None
        self.optimizer: Any = None
        self.kept: dict[str, Any] = {}
        self.names = labels.Labels() if record.events else None

    def load(self) -> None:
        """Text encoders, transformer, VAE, as the trainers move them; the VAE before where it is gone before the transformer comes."""
        frame = self.record.open("load")
        stay, leave = {*self.job["resident"], *self.job["given_back"]}, self.job["left_in_cache"]
        before: list[Any] = []
        for component, model in models.others(self.family) if self.job["components"] or stay or leave else ():
            name = component.rstrip("012")
            if not (name in stay or name in leave or self.job["components"]):
                continue
            if name == "vae" and name in stay:
                self._bring_transformer(before)
            inner = self.record.open(f"load: {component}")
            moved = model.to("cuda")
            if component == "vae":
                self.sd.vae = moved
            else:
                self.sd.text_encoder.append(moved)
            self.record.close(inner)
            if name not in stay:
                self._let_go(component)
            if name in leave:
                before.append(moved)
            del model, moved
        if self.sd.unet is None:
            self._bring_transformer(before)
        self.record.close(frame)

    def _bring_transformer(self, before: list[Any]) -> None:
        before.clear()
        inner = self.record.open("load: transformer")
        dtype = models.TYPES[self.job["dtype"] if self.job["full"] else "bf16"]
        self.sd.unet = models.transformer(self.family, dtype).to("cuda").requires_grad_(self.job["full"])
        self.record.close(inner)

    def _let_go(self, component: str) -> None:
        if component == "vae":
            self.sd.vae = None
        else:
            self.sd.text_encoder[int(component.removeprefix("text_encoder"))] = None  # its place is its number

    def set_up(self) -> None:
        frame = self.record.open("setup")
        if self.job["full"]:
            parameters = list(self.sd.unet.parameters())
        else:
            parameters = models.adapted(self.sd.unet, self.job["rank"], self.job["dtype"], self.family.targets)
        self.network = torch.nn.ParameterList(parameters)
        self.optimizer = optimizer_of(self.job["optimizer"], parameters)
        if self.job["given_back"]:
            self._give_back()
        self.record.close(frame)
        if self.names is not None:
            self.names.name_modules(self.sd.unet, "transformer")
        if self.job["autocast"]:
            models.under_autocast(self.sd.unet)
        self.sd.unet.train()

    def _give_back(self) -> None:
        """What is there until training starts. Before it goes, the script prints what is there, without what the adapter's making left
        in the cache."""
        torch.cuda.empty_cache()
        if "text_encoder" in self.job["given_back"]:
            self.sd.text_encoder.clear()
        if "vae" in self.job["given_back"]:
            self.sd.vae = None
        gc.collect()
        torch.cuda.empty_cache()

    def step(self, number: int, bucket: Bucket, checkpointing: bool) -> None:
        width, height, count, text, frames = bucket
        (self.sd.unet.enable_gradient_checkpointing if checkpointing else self.sd.unet.disable_gradient_checkpointing)()
        waiting = models.batch_of(self.family, bucket)
        info = {"batch": count, "width": width, "height": height, "frames": frames, "text": text, "latents": list(waiting["latents"].shape)}
        frame = self.record.open("step", step=number, gradient_checkpointing=checkpointing, buckets=[info])
        self._one(waiting)
        self.record.close(frame)

    def _one(self, waiting: dict[str, Any]) -> None:
        """What a step has made of its batch stays until it is over, as the locals of the trainers' loops do."""
        if self.family.velocity:
            batch = models.collated(waiting)
        else:
            batch = {name: given.to("cuda") if torch.is_tensor(given) else given for name, given in waiting.items()}
        frame = self.record.open("predict_noise")
        made = (self._velocity if self.family.velocity else self._noise if self.family.noise else self._flow)(batch)
        self.record.close(frame)
        frame = self.record.open("backward")
        made[0].backward()
        self.record.close(frame)
        frame = self.record.open("clip_grad")
        torch.nn.utils.clip_grad_norm_(self.sd.unet.parameters(), 1.0)
        self.record.close(frame)
        frame = self.record.open("optimizer_step")
        self.optimizer.step()
        self.record.close(frame)
        self.optimizer.zero_grad()

    def _flow(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        """Flow matching's loss, as finetrainers and diffusers' scripts have it, in fp32; and what is left of making it."""
        latents = batch["latents"]
        noise = torch.randn_like(latents)
        sigmas = torch.rand(latents.shape[0], device="cuda").view(-1, *(1,) * (latents.dim() - 1))
        noisy = ((1.0 - sigmas) * latents + sigmas * noise).to(latents.dtype)
        times = (sigmas.view(-1) * 1000.0).long()
        predicted = models.FORWARDS[self.family.transformer[0]](self.sd.unet, noisy, times, batch)
        loss = (predicted.float() - (noise - latents).float()).pow(2).mean(dim=tuple(range(1, latents.dim()))).mean()
        return loss, noise, sigmas, noisy, times, predicted

    def _noise(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        """The noise's prediction, as diffusers' scripts of UNets have it: DDPMScheduler.add_noise with cumulated alphas, whose values do
        not matter, in the latents' type; the loss in fp32."""
        latents = batch["latents"]
        noise, times = torch.randn_like(latents), torch.zeros(latents.shape[0], dtype=torch.int64, device="cuda")
        alphas = torch.linspace(0.99, 0.01, 1000, device="cuda").to(latents.dtype)
        kept, added = (part.view(-1, 1, 1, 1) for part in (alphas[times] ** 0.5, (1 - alphas[times]) ** 0.5))
        noisy = kept * latents + added * noise
        predicted = models.FORWARDS[self.family.transformer[0]](self.sd.unet, noisy, times, batch)
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
        return loss, noise, times, noisy, predicted

    def _velocity(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        """V-prediction's, as cogvideox-factory has it: the scheduler's cumulated alphas, whose values do not matter."""
        latents = batch["latents"]
        noise, times = torch.randn_like(latents), torch.zeros(latents.shape[0], dtype=torch.int64, device="cuda")
        batch["rotary"] = models.rotary(self.sd.unet, latents)
        alpha = torch.linspace(0.99, 0.01, 1000, device="cuda")[times].view(-1, 1, 1, 1, 1)
        noisy = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
        output = models.FORWARDS[self.family.transformer[0]](self.sd.unet, noisy, times, batch)
        predicted = alpha**0.5 * noisy - (1 - alpha) ** 0.5 * output
        loss = torch.mean((1 / (1 - alpha) * (predicted - latents) ** 2).reshape(latents.shape[0], -1), dim=1).mean()
        return loss, noise, times, alpha, noisy, output, predicted


def optimizer_of(name: str, parameters: list[Any]) -> Any:
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-4)
    import bitsandbytes

    return {"adamw8bit": bitsandbytes.optim.AdamW8bit}[name](parameters, lr=1e-4)


def versions() -> dict[str, str]:
    import diffusers

    installed = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions() if each.metadata["Name"]}
    return {name: installed.get(name, "not installed") for name in VERSIONED} | {"diffusers": diffusers.__version__}


def main(path: str, out: str) -> None:
    with open(path) as file:
        given = json.load(file)
    import diffusers

    if not diffusers.__version__.startswith(given["diffusers"]):
        raise SystemExit(f"this job is of diffusers {given['diffusers']}: here is {diffusers.__version__}")
    torch.set_num_threads(2)
    record = recorder.Recorder(events=given["events"])
    root, outcome, error_text = record.open("run"), "ok", None
    job = Job(given, record)
    record.names = tensors.Names(job)
    try:
        job.load()
        job.set_up()
        number = 0
        for bucket in given["buckets"]:
            for checkpointing in given["checkpointing"]:
                job.step(number, tuple(bucket), checkpointing)
                number += 1
    except BaseException as error:
        traceback.print_exc()
        outcome, error_text = "oom" if recorder.is_oom(error) else "error", f"{type(error).__name__}: {error}"[:1500]
    record.close(root, outcome)
    device = torch.cuda.get_device_properties(0)
    result = {
        "outcome": outcome, "error": error_text, "gpu": device.name, "total_bytes": device.total_memory,
        "compute_capability": f"{device.major}.{device.minor}", "versions": versions(), "phases": record.rows, "linears": [],
        "parameters": [[name, *p.shape] for name, p in job.sd.unet.named_parameters() if p.requires_grad] if job.sd.unet else [],
    }  # fmt: skip
    if record.events:
        trace.save(os.path.join(out, "trace.npz"), record)
    with open(os.path.join(out, "result.json"), "w") as file:
        json.dump(result, file, indent=1)
    print("RESULT", outcome, error_text, flush=True)
    os._exit(0)  # interpreter shutdown would run module destructors against the emulated device


if __name__ == "__main__":
    main(*sys.argv[1:])
