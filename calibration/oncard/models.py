"""What a cell runs: an architecture's transformer with few blocks and random weights made on the card, an adapter on its linear layers,
inputs of a size, and its VAE. Runs where torch is; nothing is downloaded.

The configurations are those of `calibration.architectures`; the calls are those of the trainer for the same family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from calibration.architectures import MODULES
from calibration.oncard.families import FAMILIES, Family

BF16 = torch.bfloat16


@contextlib.contextmanager
def on_card() -> Iterator[None]:
    """Inside, modules are made on the card and in bf16."""
    torch.set_default_dtype(BF16)
    try:
        with torch.device("cuda"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def config_of(name: str, place: str) -> dict[str, Any]:
    """Constructor arguments of a diffusers class for a checkpoint: of the first family that knows them."""
    return next(dict(known) for module in MODULES if (known := module.diffusers(name, place.lower())) is not None)


def make_transformer(family: Family, depth: tuple[int, ...]) -> Any:
    import diffusers

    sizes = {**config_of(family.transformer, family.place), **dict(zip(family.depth_keys, depth, strict=True))}
    cls = getattr(diffusers, family.transformer)
    with on_card():
        model = cls(**sizes)
    keep = cls._keep_in_fp32_modules or ()
    for name, parameter in model.named_parameters():
        if any(part in name.split(".") for part in keep):
            parameter.data = parameter.data.float()
    return model.requires_grad_(False).train()


def make_vae(family: Family) -> Any:
    import diffusers

    with on_card():
        return getattr(diffusers, family.vae)(**config_of(family.vae, family.place)).requires_grad_(False).eval()


class Adapter:
    """fp32 low-rank matrices beside every linear layer in blocks: y + up(down(x)) scale multiplier, as AI Toolkit's LoRA computes it."""

    def __init__(self, model: Any, blocks: tuple[str, ...], rank: int, batch: int) -> None:
        self.parameters: list[torch.nn.Parameter] = []
        self._undo: list[Callable[[], None]] = []
        self.scale = torch.ones((), device="cuda")
        self.multiplier = torch.ones(batch, device="cuda")
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name.split(".")[0] in blocks:
                self._attach(module, rank)

    def _attach(self, linear: torch.nn.Linear, rank: int) -> None:
        down = torch.nn.Parameter(torch.empty(rank, linear.in_features, device="cuda").normal_(0, 1 / rank))
        up = torch.nn.Parameter(torch.zeros(linear.out_features, rank, device="cuda"))
        self.parameters += [down, up]
        plain, functional = linear.forward, torch.nn.functional

        def low_rank(x: Any) -> Any:
            out = functional.linear(functional.linear(x, down), up)
            return out * self.scale

        def forward(x: Any) -> Any:  # what is held in variables, and until when, is AI Toolkit's way: it shows in the peaks
            base = plain(x)
            given = x.to(down.dtype)
            beside = low_rank(given)
            multiplier = self.multiplier
            if len(multiplier) != beside.shape[0]:
                multiplier = multiplier.repeat_interleave(beside.shape[0] // len(multiplier))
            scaled = beside * multiplier.view(-1, *[1] * (beside.dim() - 1))
            scaled = scaled.to(base.dtype)
            return base + scaled

        linear.forward = forward  # type: ignore[method-assign]


@dataclass
class Step:
    """One training step of a cell: forward, loss, backward."""

    model: Any
    adapter: Adapter
    inputs: dict[str, Any]
    target: Any
    listed: bool

    def run(self) -> None:
        out = self.model(**self.inputs, return_dict=False)[0]
        if self.listed:
            out = torch.stack([one.float() for one in out], dim=0)
        loss = torch.nn.functional.mse_loss(out.float(), self.target, reduction="none").mean()
        loss.backward()


def make_inputs(family: Family, width: int, height: int, text: int, batch: int) -> tuple[dict[str, Any], Any, bool]:
    """The transformer's arguments, the loss's target, and whether the model takes and gives lists of samples."""
    rows, columns = height // 8, width // 8
    if family.calls == "flux":
        tokens = rows * columns // 4
        inputs = {
            "hidden_states": torch.randn(batch, tokens, 64, device="cuda", dtype=BF16),
            "timestep": torch.full((batch,), 0.5, device="cuda"),
            "encoder_hidden_states": torch.randn(batch, text, 4096, device="cuda", dtype=BF16),
            "pooled_projections": torch.randn(batch, 768, device="cuda", dtype=BF16),
            "txt_ids": torch.zeros(text, 3, device="cuda"),
            "img_ids": torch.zeros(tokens, 3, device="cuda"),
            "guidance": torch.ones(batch, device="cuda"),
        }
        return inputs, torch.zeros(batch, tokens, 64, device="cuda"), False
    latents = torch.randn(batch, 16, 1, rows, columns, device="cuda", dtype=BF16)
    prompts = [torch.randn(text, 2560, device="cuda", dtype=BF16) for _ in range(batch)]
    inputs = {"x": list(latents.unbind(0)), "t": torch.full((batch,), 0.5, device="cuda"), "cap_feats": prompts}
    return inputs, torch.zeros(batch, 16, 1, rows, columns, device="cuda"), True


def family_of(arch: str) -> Family:
    return FAMILIES[arch]
