"""PyTorch's own tracker on a published row's step: the harness's job on fake tensors.

The tracker (calibration.peers_fake) gets the very job that the harness goes through (calibration.harness.worker): the same class, adapter,
checkpointing, autocast, inputs, loss, clipping and optimizer, the same models on the card before training. It is what torchtitan's
scripts/estimate was made of. No tensor has memory on the emulated device: it is there so that torch finds a card, for autocast and for the
choice of attention kernels. Imports torch.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from calibration.harness import models, worker
from calibration.harness.families import FAMILIES
from calibration.peers_fake import tracking

STEP_NEEDS = ("diffusers.training_utils", "diffusers.models.autoencoders.vae", "accelerate.utils", "peft", "bitsandbytes")


class Unrecorded:
    """A recorder that keeps nothing, for the harness's job."""

    events = False

    def open(self, *_: Any, **__: Any) -> None:
        return None

    def close(self, *_: Any, **__: Any) -> None:
        return None


@contextlib.contextmanager
def made_outside() -> Iterator[None]:
    """Inside, models and optimizers are made as the harness does it, on untouched memory of the host: a model becomes fake on its way to
    the card. What is computed from values (bitsandbytes' tables) cannot be fake."""
    places = ((models, "transformer"), (models, "others"), (worker, "optimizer_of"))
    kept = [getattr(module, name) for module, name in places]

    def outside(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*given: Any) -> Any:
            with _disable_current_modes():
                found = make(*given)
                return iter(list(found)) if isinstance(found, Iterator) else found

        return made

    for (module, name), make in zip(places, kept, strict=True):
        setattr(module, name, outside(make))
    try:
        yield
    finally:
        for (module, name), make in zip(places, kept, strict=True):
            setattr(module, name, make)


class OnHost:
    """torchao's CPUOffloadOptimizer(offload_gradients=True) as the card sees it: each gradient goes to the host when it is whole, where the
    states are. Its streams and pinned memory have no fake counterpart."""

    def __init__(self, parameters: list[Any]) -> None:
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._take)

    def _take(self, parameter: Any) -> None:
        parameter.grad = None

    def step(self) -> None:
        pass

    zero_grad = step


class Tracked(worker.Job):
    """The harness's job. Its optimizer's states are made by an update with gradients of zeros, so that one step has them."""

    def give_state(self) -> None:
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()


def imported(job: dict[str, Any]) -> None:
    """All that a job imports on its way: what a module makes at import must not be fake."""
    import importlib

    import diffusers
    import transformers

    family = FAMILIES[job["arch"]]
    for name in (family.transformer[0], family.vae[0]):
        getattr(diffusers, name)
    for name, config, _ in family.encoders:
        getattr(transformers, name), getattr(transformers, config)
    for name in STEP_NEEDS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def tracked(job: dict[str, Any], until: str = "train", on_host: bool = False) -> int:
    """The tracker's peak of a job on the card, in bytes: until it is loaded ("load"), its adapter is made ("prepare") or a training step is
    over ("train"). `on_host`: the optimizer is the host's.
    """
    imported(job)
    with made_outside(), tracking() as tracker:
        made = Tracked(job, Unrecorded())  # type: ignore[arg-type]
        made.load()
        if until != "load":
            made.set_up()
        if until == "train":
            if on_host:
                made.optimizer = OnHost(list(made.network.parameters()))
            else:
                made.give_state()
            made.step(0, tuple(job["buckets"][0]), job["checkpointing"][0])  # type: ignore[arg-type]
        peak = tracker.peak_bytes
    del made
    gc.collect()
    return peak
