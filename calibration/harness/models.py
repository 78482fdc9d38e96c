"""Models of the harness without weights, and what a step of each is given. Imports torch: only for the process that has the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from calibration.harness.families import Bucket, Family
from calibration.harness.values import answering
from calibration.trainer.models import build

BF16 = torch.bfloat16
GLYPHS, PICTURE = 256, 729  # tokens of HunyuanVideo15Pipeline: tokenizer_2_max_length, vision_num_semantic_tokens
TYPES = {"bf16": BF16, "fp32": torch.float32}


def transformer(family: Family, dtype: Any) -> Any:
    """On the host, its weights untouched. Buffers in its type, as the trainers' `.to(device, dtype=dtype)` makes them."""
    import diffusers

    name, arguments = family.transformer
    cls = getattr(diffusers, name)
    model = build(lambda: cls(**arguments), dtype, cls._keep_in_fp32_modules or (), name)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.to(dtype)
    return model


def others(family: Family) -> Iterator[tuple[str, Any]]:
    """Component and model, on the host: text encoders and VAE."""
    import diffusers
    import transformers

    for number, (name, config, arguments) in enumerate(family.encoders):
        cls, made = getattr(transformers, name), getattr(transformers, config)(**arguments)
        yield f"text_encoder{number}", build(lambda cls=cls, made=made: cls(made), BF16, (), name)
    name, given = family.vae
    yield "vae", build(lambda: getattr(diffusers, name)(**given), BF16, (), name)


def adapted(model: Any, rank: int, dtype: str, targets: tuple[str, ...]) -> list[Any]:
    """Give it PEFT's adapter, in the type of its weights or cast to fp32; the parameters that are trained."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=True, target_modules=list(targets))
    if hasattr(model, "add_adapter"):
        model.add_adapter(config)
    else:  # PixArt's class; it is what the others' does
        inject_adapter_in_model(config, model)
    if dtype == "fp32":
        cast_training_params([model], dtype=torch.float32)
    return [p for p in model.parameters() if p.requires_grad]


def under_autocast(model: Any) -> None:
    """What accelerate's `prepare` does with a model in mixed precision (accelerate.Accelerator.prepare_model)."""
    from accelerate.utils import convert_outputs_to_fp32

    model.forward = convert_outputs_to_fp32(torch.autocast("cuda", dtype=BF16)(model.forward))


def batch_of(family: Family, bucket: Bucket) -> dict[str, Any]:
    """Latents and prompts, as they wait on the host for a step."""
    width, height, count, text, frames = bucket
    pixels, latent = family.compression
    shape: tuple[int, ...] = (count, family.channels * (1 + family.velocity), 1 + (frames - 1) // latent, height // pixels, width // pixels)
    shape = (*shape[:2], *shape[3:]) if family.pictures else shape
    tokens = family.padded or text
    made: dict[str, Any] = {"latents": torch.empty(shape, dtype=BF16), "prompt": torch.empty(count, tokens, family.text_width, dtype=BF16)}
    if family.masked:
        made["mask"] = (torch.arange(tokens) < text).long().expand(count, tokens).contiguous()
    if family.padded:
        made["words"] = [text] * count  # known on the host alone (calibration.harness.values)
    if "pooled" in family.extra:
        made["pooled"] = torch.empty(count, family.extra["pooled"], dtype=BF16)
    if "times" in family.extra:  # sizes of the picture, of what was cut off and of what was aimed at
        made["times"] = torch.empty(count, family.extra["times"], dtype=BF16)
    if "glyphs" in family.extra:  # no words in quotes: zeros, as the pipeline has them then
        made["glyphs"] = torch.zeros(count, GLYPHS, family.extra["glyphs"], dtype=BF16)
        made["glyphs_mask"] = torch.zeros(count, GLYPHS, dtype=torch.int64)
    return made


def hunyuan(model: Any, noisy: Any, times: Any, batch: dict[str, Any]) -> Any:
    guidance = torch.full((noisy.shape[0],), 1000.0, device="cuda", dtype=BF16)
    return model(
        hidden_states=noisy, timestep=times, encoder_hidden_states=batch["prompt"], encoder_attention_mask=batch["mask"],
        pooled_projections=batch["pooled"], guidance=guidance, return_dict=False,
    )[0]  # fmt: skip


def collated(waiting: dict[str, Any]) -> dict[str, Any]:
    """A batch as cogvideox-factory's collate function leaves it: prompts; latents from their mean and log-variance, as [samples, frames,
    channels, ...] in fp32. What was stored goes as soon as it was sampled from: the latents come to lie in its place."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    prompts, latents = waiting["prompt"].to("cuda"), waiting["latents"].to("cuda")
    latents = DiagonalGaussianDistribution(latents).sample() * 0.7
    latents = latents.permute(0, 2, 1, 3, 4)
    return {"prompt": prompts, "latents": latents.contiguous().float()}


def rotary(model: Any, latents: Any) -> tuple[Any, ...] | None:
    """The angles of each place, as the training loop makes them: before the noisy latents."""
    _, frames, _, height, width = latents.shape
    patch = model.config.patch_size
    if not model.config.use_rotary_positional_embeddings:
        return None
    places = frames * (height // patch) * (width // patch)
    return tuple(torch.empty(places, model.config.attention_head_dim, device="cuda") for _ in range(2))


def cogvideox(model: Any, noisy: Any, times: Any, batch: dict[str, Any]) -> Any:
    return model(
        hidden_states=noisy, encoder_hidden_states=batch["prompt"], timestep=times, image_rotary_emb=batch["rotary"], return_dict=False
    )[0]  # fmt: skip


def ltx(model: Any, noisy: Any, times: Any, batch: dict[str, Any]) -> Any:
    count, channels, frames, height, width = noisy.shape
    tokens = noisy.flatten(2).transpose(1, 2).contiguous()
    out = model(
        hidden_states=tokens, encoder_hidden_states=batch["prompt"], timestep=times, encoder_attention_mask=batch["mask"],
        num_frames=frames, height=height, width=width, rope_interpolation_scale=(8 / 25, 32, 32), return_dict=False,
    )[0]  # fmt: skip
    return out.transpose(1, 2).reshape(count, channels, frames, height, width)


def sd3(model: Any, noisy: Any, times: Any, batch: dict[str, Any]) -> Any:
    return model(
        hidden_states=noisy, timestep=times, encoder_hidden_states=batch["prompt"], pooled_projections=batch["pooled"], return_dict=False
    )[0]


def lumina2(model: Any, noisy: Any, times: Any, batch: dict[str, Any]) -> Any:
    """How many words each prompt has is read back from the device, which has no values: the batch's own count stands in."""
    with answering(lists=batch["words"]):
        return model(
            hidden_states=noisy, timestep=times, encoder_hidden_states=batch["prompt"], encoder_attention_mask=batch["mask"],
            return_dict=False,
        )[0]  # fmt: skip


def hunyuan15(model: Any, noisy: Any, times: Any, batch: dict[str, Any]) -> Any:
    """As text to video in its pipeline: empty latents and mask of a first frame behind the latents, an empty picture. Which tokens are
    words is read back from the device, which has no values: all of the prompt, none of the glyphs and of the picture."""
    count, _, frames, height, width = noisy.shape
    first = torch.zeros_like(noisy), torch.zeros(count, 1, frames, height, width, device="cuda", dtype=noisy.dtype)
    picture = torch.zeros(count, PICTURE, model.config.image_embed_dim, device="cuda", dtype=noisy.dtype)
    words = batch["prompt"].shape[1]
    # The valid of picture, glyphs and prompt, then what is not valid of each; of embeddings and once more of masks
    with answering(masked=(0, 0, words, PICTURE, GLYPHS, 0), all_true=True, rounds=2):
        return model(
            hidden_states=torch.cat([noisy, *first], dim=1), timestep=times.to(noisy.dtype), encoder_hidden_states=batch["prompt"],
            encoder_attention_mask=batch["mask"], encoder_hidden_states_2=batch["glyphs"], encoder_attention_mask_2=batch["glyphs_mask"],
            image_embeds=picture, return_dict=False,
        )[0]  # fmt: skip


def unet(model: Any, noisy: Any, times: Any, batch: dict[str, Any]) -> Any:
    beside = {"text_embeds": batch["pooled"], "time_ids": batch["times"]} if "pooled" in batch else None
    return model(noisy, times, batch["prompt"], added_cond_kwargs=beside, return_dict=False)[0]


def pixart(model: Any, noisy: Any, times: Any, batch: dict[str, Any]) -> Any:
    both = model(
        noisy, encoder_hidden_states=batch["prompt"], encoder_attention_mask=batch["mask"], timestep=times,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
    )[0]  # fmt: skip
    return both.chunk(2, dim=1)[0]


def sana(model: Any, noisy: Any, times: Any, batch: dict[str, Any]) -> Any:
    return model(
        hidden_states=noisy, encoder_hidden_states=batch["prompt"], encoder_attention_mask=batch["mask"], timestep=times, return_dict=False
    )[0]


FORWARDS: dict[str, Callable[..., Any]] = {
    "HunyuanVideoTransformer3DModel": hunyuan, "CogVideoXTransformer3DModel": cogvideox, "LTXVideoTransformer3DModel": ltx,
    "SD3Transformer2DModel": sd3, "Lumina2Transformer2DModel": lumina2, "HunyuanVideo15Transformer3DModel": hunyuan15,
    "UNet2DConditionModel": unet, "PixArtTransformer2DModel": pixart, "SanaTransformer2DModel": sana,
}  # fmt: skip
