"""Training steps that others measured on real cards, gone through on the emulated device: how far the device itself is from a card.

    python -m calibration.published_steps list
    (on the emulated device) python -m calibration.published_steps run STEP

The programs that estimates rest on are recorded on the emulated device. Few published peaks are of a trainer and a model that are
modelled; but a step whose script, sizes and software are all published can be repeated on the device, whatever trainer it is of. Here:
CogVideoX LoRA by cogvideox-factory (a-r-r-o-w/finetrainers d81209bf, training/cogvideox_text_to_video_lora.py, October 2024): latents and
prompts computed before, the text encoder and the VAE on the card until training starts and released then, fp16 autocast through accelerate
with outputs in fp32, PEFT adapter on to_q, to_k, to_v and to_out.0 in fp32 (which its table of memory before training confirms: 4.1 bytes
a parameter), v-prediction loss in fp32, clipping, two steps. Written from that description for the device; figures are torch's own.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "data" / "published_steps.jsonl"
RESULTS = Path(__file__).parent / "data" / "published_steps_emulated.jsonl"  # what `run` printed, a line for each step
SOURCE = "github.com/a-r-r-o-w/finetrainers"
LATENT = (32, 13, 60, 90)  # 49 frames of 720x480: mean and log-variance of 16 channels, a quarter of the frames, an eighth of the sides
TEXT = (226, 4096)  # tokens, padded, and width of T5-XXL
TEXT_ENCODER_PARAMETERS, VAE_PARAMETERS = 4_762_310_656, 215_583_907  # T5-XXL's encoder; AutoencoderKLCogVideoX
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
CONFIGS: dict[str, dict[str, object]] = {
    "2b": {},  # the class's defaults
    "5b": {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
}


@dataclass(frozen=True)
class Step:
    """`published_gib`: max_memory_reserved before validation on an A100-80G, as the table has it. `row`: its id."""

    row: str
    model: str
    rank: int
    batch: int
    checkpointing: bool
    optimizer: str
    published_gib: float


def steps(path: Path = ROWS) -> tuple[Step, ...]:
    """The steps of the data file."""
    names = Step.__dataclass_fields__
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple(Step(**{name: one[name] for name in names}) for one in raw)


@dataclass(frozen=True)
class Result(Step):
    """A step with what the emulated device came to."""

    emulated_allocated_bytes: int
    emulated_reserved_bytes: int
    torch: str


def results(path: Path = RESULTS) -> tuple[Result, ...]:
    """The steps that were gone through."""
    return tuple(Result(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())


def run(step: Step) -> dict[str, Any]:
    """Go through the step on this process's CUDA device; bytes allocated and reserved at most."""
    import torch

    model, trained = _model(step)
    before = [torch.empty(count, dtype=torch.float16, device="cuda") for count in (TEXT_ENCODER_PARAMETERS, VAE_PARAMETERS)]
    optimizer = _optimizer(step, trained)
    del before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    kept = torch.linspace(0.99, 0.01, 1000, device="cuda")  # the scheduler's cumulated alphas: their values do not matter
    for _ in range(2):
        _one_step(step, model, optimizer, kept)
    return {
        **asdict(step),
        "emulated_allocated_bytes": torch.cuda.max_memory_allocated(),
        "emulated_reserved_bytes": torch.cuda.max_memory_reserved(),
        "torch": torch.__version__,
    }


def _model(step: Step) -> tuple[Any, list[Any]]:
    """The transformer as from_pretrained and `.to` leave it, with its adapter; and the parameters that are trained."""
    import accelerate
    import torch
    from accelerate.utils import convert_outputs_to_fp32
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    with accelerate.init_empty_weights():
        model = CogVideoXTransformer3DModel(**CONFIGS[step.model])
    model = model.to(torch.float16)
    model._apply(lambda t: torch.empty_like(t, device="cuda") if t.is_meta else t.to("cuda"))
    model.requires_grad_(False)
    if step.checkpointing:
        model.enable_gradient_checkpointing()
    model.add_adapter(LoraConfig(r=step.rank, lora_alpha=step.rank, init_lora_weights=True, target_modules=TARGETS))
    cast_training_params([model], dtype=torch.float32)
    model.forward = convert_outputs_to_fp32(torch.autocast("cuda", dtype=torch.float16)(model.forward))
    model.train()
    return model, [p for p in model.parameters() if p.requires_grad]


def _optimizer(step: Step, trained: list[Any]) -> Any:
    import torch

    if step.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=1e-4)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(trained, lr=1e-4)


def _one_step(step: Step, model: Any, optimizer: Any, kept: Any) -> None:
    import torch
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    stored = torch.randn(step.batch, *LATENT, device="cuda", dtype=torch.float16)
    latents = (DiagonalGaussianDistribution(stored).sample() * 1.15).permute(0, 2, 1, 3, 4).contiguous().float()
    prompts = torch.randn(step.batch, *TEXT, device="cuda", dtype=torch.float16)
    noise, times = torch.randn_like(latents), torch.zeros(step.batch, dtype=torch.int64, device="cuda")
    rotary = None
    if step.model == "5b":
        places = LATENT[1] * (LATENT[2] // 2) * (LATENT[3] // 2)
        rotary = tuple(torch.randn(places, 64, device="cuda") for _ in range(2))
    alpha = kept[times].view(-1, 1, 1, 1, 1)
    noisy = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
    output = model(hidden_states=noisy, encoder_hidden_states=prompts, timestep=times, image_rotary_emb=rotary, return_dict=False)[0]
    predicted = alpha**0.5 * noisy - (1 - alpha) ** 0.5 * output
    loss = torch.mean((1 / (1 - alpha) * (predicted - latents) ** 2).reshape(step.batch, -1), dim=1).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m calibration.published_steps", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["list", "run"])
    parser.add_argument("step", nargs="?", help="id of a row")
    args = parser.parse_args()
    if args.what == "list":
        print("\n".join(step.row for step in steps()))
        return 0
    (step,) = [step for step in steps() if step.row == args.step]
    print(json.dumps(run(step)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
