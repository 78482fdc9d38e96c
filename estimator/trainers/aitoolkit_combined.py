"""Settings of the `model` section that the trainer refuses together, and FLUX.1's attention masking and splitting over several cards.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (ModelConfig), toolkit/models/flux.py (add_model_gpu_splitter_to_flux,
split_gpu_single_block_forward, which gives the block's forward `temb` as its second argument, where that of the diffusers which the trainer
asks for has `encoder_hidden_states`; tried on the emulated device: docs/log.md).
"""

from __future__ import annotations

from estimator.archs import Arch
from estimator.trainers.section import Section

MASKING, OVER_GPUS = "attn_masking", "split_model_over_gpus"


def check_combinations(model: Section, arch: Arch, assistant: str | None) -> None:
    """What the trainer refuses."""
    found = model.found
    is_flux = model.truth("is_flux", False)
    for key, what in ((MASKING, "attention masking"), (OVER_GPUS, "splitting over several cards")):
        if model.truth(key, False) and not is_flux:
            found.problem(
                model.at(key), f"the trainer refuses {what} unless model.is_flux is true", "`arch: flux` is not enough", "remove it"
            )
        elif model.truth(key, False) and key == MASKING:
            found.not_modelled(model.at(key), True, what)
        elif model.truth(key, False):
            why = "the trainer stops in its first forward: it calls single blocks as an older diffusers had them, with one card or several"
            found.problem(model.at(key), f"FLUX.1 cannot be split over several cards ({key})", why, "remove it, and see low_vram")
    recovery = model.values.get("accuracy_recovery_adapter")
    qtype = model.values.get("qtype")
    if isinstance(qtype, str) and "|" in qtype:
        recovery = qtype
    if recovery is not None and assistant is not None:
        what = "an accuracy recovery adapter and an assistant LoRA exclude each other"
        found.problem(model.at("assistant_lora_path"), what, "the trainer refuses them together", "remove one of the two")
    if arch.te_qtype_key == "qtype" and assistant is not None:
        for key in ("inference_lora_path", "lora_path"):
            if model.values.get(key):
                found.problem(
                    model.at(key), f"{key} and assistant_lora_path exclude each other", "the trainer refuses them together", "remove one"
                )
