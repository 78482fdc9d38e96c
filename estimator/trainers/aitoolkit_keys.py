"""Every key that AI Toolkit reads, and what it does to memory: read into the Job, neutral, or without a model yet.

Source: ostris/ai-toolkit 27a03a91: toolkit/config_modules.py (what each section reads), jobs/process/BaseSDTrainProcess.py (the process),
extensions_built_in/sd_trainer/SDTrainer.py (what the settings of `train` do in a step), ui/src/types.ts (what the web UI writes).
"Neutral" means: changes no phase's memory by as much as a thousandth on the architectures that are modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from estimator.trainers.section import MAX_REPORTED, Section, nearest


@dataclass(frozen=True, slots=True)
class NoModel:
    """A setting without a model. `why`: what it does; `neutral`: values that do nothing, besides the falsy ones if `off_is_neutral`."""

    why: str
    neutral: tuple[object, ...] = ()
    off_is_neutral: bool = True

    def is_neutral(self, value: object) -> bool:
        return (self.off_is_neutral and not value) or any(value == one and type(value) is type(one) for one in self.neutral)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EXTRA_PASS = "an extra pass through the transformer in every step"
_MORE_INPUTS = "adds inputs that are encoded and held on the card"

READ: Mapping[str, frozenset[str]] = {
    "file": _words("job config meta"),
    "config": _words("name process"),
    "process": _words("type name training_folder trigger_word network train model datasets sample save slider"),
    "network": _words("type linear rank network_kwargs lokr_full_rank lokr_factor dropout transformer_only"),
    "network.network_kwargs": _words("ignore_if_contains only_if_contains"),
    "train": _words(
        "batch_size steps gradient_accumulation gradient_accumulation_steps dtype optimizer optimizer_params"
        " gradient_checkpointing noise_scheduler ema_config unload_text_encoder cache_text_embeddings skip_first_sample"
        " force_first_sample disable_sampling start_step timestep_type train_text_encoder bypass_guidance_embedding"
        " do_guidance_loss prompt_saturation_chance diff_output_preservation blank_prompt_preservation switch_boundary_every"
        " linear_timesteps linear_timesteps2 diff_output_preservation_class inverted_mask_prior do_cfg do_random_cfg correct_pred_norm"
        " do_prior_divergence validation_config unconditional_prompt negative_prompt max_negative_prompts"
    ),
    "slider": _words("positive_prompt negative_prompt target_class anchor_class"),
    "train.ema_config": _words("use_ema"),
    "train.validation_config": _words("validation_items resolution validate_every_n_steps validation_sigmas"),
    "train.validation_config.validation_items": _words("image_path prompt"),
    "model": _words(
        "name_or_path arch quantize quantize_te qtype qtype_te quantize_kwargs low_vram layer_offloading auto_memory"
        " assistant_lora_path layer_offloading_transformer_percent layer_offloading_text_encoder_percent accuracy_recovery_adapter"
        " split_model_over_gpus attn_masking is_v2 is_v3 is_xl is_pixart is_pixart_sigma is_auraflow is_flux is_lumina2 is_vega"
        " is_ssd dtype vae_dtype te_dtype use_flux_cfg model_kwargs compile block_compile compile_mode"
    ),
    "datasets": _words(
        "folder_path dataset_path type alpha_mask mask_path resolution batch_size buckets square_crop scale num_repeats flip_x flip_y"
        " caption_ext caption_type default_caption trigger_word cache_latents cache_latents_to_disk cache_text_embeddings is_reg"
        " caption_dropout_rate augments augmentations poi prior_reg num_frames auto_frame_count fps trim_auto_frame_count_tail do_i2v"
    ),
    "sample": _words("width height neg guidance_scale prompts samples sample_every num_frames"),
    "sample.samples": _words("prompt width height neg guidance_scale num_frames"),
    "save": _words("save_every"),
}

NEUTRAL: Mapping[str, frozenset[str]] = {
    "config": _words("device training_folder log_dir training_seed"),
    "process": _words(
        "process device sqlite_db_path performance_log_every logging training_seed log_dir lorm_extract_mode lorm_extract_mode_param"
    ),
    "network": _words(
        "alpha linear_alpha conv conv_alpha old_lokr_format split_multistage_loras pretrained_lora_path"
    ),
    "train": _words(
        "content_or_style lr unet_lr text_encoder_lr refiner_lr embedding_lr adapter_lr lr_scheduler lr_scheduler_params"
        " min_denoising_steps max_denoising_steps sdp train_refiner min_snr_gamma snr_gamma learnable_snr_gos noise_offset"
        " weight_jitter merge_network_on_save_strength max_grad_norm free_u adapter_assist_type noise_multiplier"
        " target_noise_multiplier random_noise_multiplier do_signal_correction_noise do_batch_noise_correction"
        " batch_noise_correction_scale do_signal_amplification signal_amplification_strength signal_correction_noise_scale"
        " random_noise_shift img_multiplier noisy_latent_multiplier latent_multiplier"
        " reg_weight num_train_timesteps adaptive_scaling_factor prompt_dropout_prob match_noise_norm"
        " short_and_long_captions_encoder_split match_adapter_assist match_adapter_chance inverted_mask_prior_multiplier"
        " diff_output_preservation_multiplier blank_prompt_preservation_multiplier"
        " standardize_images standardize_latents dynamic_noise_offset cfg_scale max_cfg_scale cfg_rescale"
        " correct_pred_norm_multiplier t0_loss_target t0_velocity_equiv_weight do_fft_loss do_fft_velocity_equiv_weight"
        " pred_scaler target_norm_std target_norm_std_value next_sample_timesteps"
        " paramiter_swapping_factor latent_feature_loss_weight diffusion_feature_extractor_weight"
        " optimal_noise_pairing_samples force_consistent_noise blended_blur_noise guidance_loss_target do_guidance_loss_cfg_zero"
        " guidance_loss_schedule do_differential_guidance differential_guidance_scale"
        " do_blank_stabilization audio_loss_multiplier max_loss_debug max_loss"
    ),
    "slider": _words("guidance_strength anchor_strength"),
    "train.ema_config": _words("ema_decay use_feedback param_multiplier"),
    "model": _words(
        "is_v_pred refiner_start_at latent_space_version use_text_encoder_1 use_text_encoder_2 experimental_xl"
        " text_encoder_bits unet_path unet_sample_size vae_device te_device split_model_other_module_param_count_scale"
        " te_name_or_path extras_name_or_path compile_fullgraph compile_dynamic cache_size_limit model_paths"
        " in_context ignore_if_contains only_if_contains"
    ),
    "datasets": _words(
        "bucket_tolerance random_triggers random_triggers_max random_scale random_crop network_weight token_dropout_rate"
        " shuffle_tokens keep_tokens control_transparent_color full_size_control_images"
        " invert_mask mask_min_value num_controls_from_same_folder use_short_captions standardize_images shuffle_augmentations"
        " guidance_type clip_image_augmentations clip_image_shuffle_augmentations replacements loss_multiplier num_workers"
        " prefetch_factor cache_latents_num_workers extra_values replay_transforms shrink_video_to_frames"
        " debug fast_image_size do_audio audio_preserve_pitch audio_normalize"
        " diff_output_preservation diff_output_preservation_class"
    ),
    "sample": _words(
        "sampler sample_start_step seed walk_seed sample_steps network_multiplier guidance_rescale format"
        " adapter_conditioning_scale refiner_start_at extra_values fps do_cfg_norm"
    ),
    "sample.samples": _words(
        "seed sample_steps fps ctrl_img ctrl_idx ctrl_img_1 ctrl_img_2 ctrl_img_3 network_multiplier do_cfg_norm"
    ),
    "save": _words("dtype max_step_saves_to_keep save_format push_to_hub hf_repo_id hf_private"),
}

UNMODELLED: Mapping[str, Mapping[str, NoModel]] = {
    "process": {
        "first_sample": NoModel("previews of other sizes before the first step"),
        "adapter": NoModel("trains an adapter with its own encoder"),
        "embedding": NoModel("trains a text embedding, with gradients through the text encoder"),
        "decorator": NoModel("trains extra prompt tokens"),
        "guidance": NoModel("targeted guidance runs extra passes"),
        "do_lorm": NoModel("distils into a smaller model"),
        "torch_profiler": NoModel("the profiler keeps buffers on the card"),
    },
    "network": {
        "layer_offloading": NoModel("moves the adapter's weights in and out of the card"),
        "all_layers": NoModel("trains full-weight differences of layers that LoRA leaves alone"),
        "lorm": NoModel("distils into a smaller model"),
    },
    "train": {
        "train_unet": NoModel("trains something else than the transformer", (True,), off_is_neutral=False),
        "train_turbo": NoModel("decodes images with gradients inside the loss"),
        "show_turbo_outputs": NoModel("loads a preview decoder"),
        "attention_backend": NoModel("another attention kernel saves other tensors", ("native",)),
        "xformers": NoModel("another attention kernel saves other tensors"),
        "merge_network_on_save": NoModel("merges the adapter into the weights, layer by layer"),
        "adapter_assist_name_or_path": NoModel("loads an assistant adapter"),
        "short_and_long_captions": NoModel("doubles the batch"),
        "single_item_batching": NoModel("runs a batch item by item"),
        "loss_target": NoModel("encodes images again in every step", ("noise",)),
        "loss_type": NoModel(_EXTRA_PASS, ("mse", "mae", "pseudo_huber", "wavelet", "stepped", "mean_flow")),
        "do_paramiter_swapping": NoModel("trains a changing subset of the parameters"),
        "latent_feature_extractor_path": NoModel("loads a feature extractor and runs it with gradients"),
        "diffusion_feature_extractor_path": NoModel("loads a feature extractor and runs it with gradients"),
    },
    "model": {
        "vae_path": NoModel("another VAE"),
        "refiner_name_or_path": NoModel("loads a second model"),
        "lora_path": NoModel("fuses an adapter into the weights at load"),
        "inference_lora_path": NoModel("loads a second adapter for previews"),
        "unconditional_lora_path": NoModel("loads a second adapter for the negative prompt"),
    },
    "datasets": {
        "control_path": NoModel(_MORE_INPUTS),
        "control_path_1": NoModel(_MORE_INPUTS),
        "control_path_2": NoModel(_MORE_INPUTS),
        "control_path_3": NoModel(_MORE_INPUTS),
        "control_from_same_folder": NoModel(_MORE_INPUTS),
        "controls": NoModel("makes control images with models of its own, on the card"),
        "inpaint_path": NoModel(_MORE_INPUTS),
        "unconditional_path": NoModel(_MORE_INPUTS),
        "clip_image_path": NoModel(_MORE_INPUTS),
        "clip_image_from_same_folder": NoModel(_MORE_INPUTS),
        "cache_clip_vision_to_disk": NoModel("runs an image encoder while caching"),
        "cache_tensors_to_disk": NoModel("keeps the pixels beside the cached latents"),
        "load_image_when_caching_latents": NoModel("keeps the pixels beside the cached latents"),
    },
}


@cache
def known_keys(table: str) -> frozenset[str]:
    """All keys that the trainer knows in a section."""
    return READ.get(table, frozenset()) | NEUTRAL.get(table, frozenset()) | frozenset(UNMODELLED.get(table, {}))


def check_keys(section: Section, table: str, modelled: frozenset[str] = frozenset()) -> None:
    """Report the section's unmodelled settings, and warn of keys the trainer does not know, with the nearest that it does.

    `modelled`: keys that are read for this architecture, though not for others.
    """
    known, unmodelled, unknown = known_keys(table), UNMODELLED.get(table, {}), 0
    for key, value in section.values.items():
        if key in modelled:
            continue
        if key in unmodelled and not unmodelled[key].is_neutral(value):
            section.found.not_modelled(section.at(key), value, unmodelled[key].why)
        elif key not in known:
            unknown += 1
            if unknown <= MAX_REPORTED:
                section.found.warn(section.at(key), f"unknown key here, the trainer ignores it{_better(key, known)}")
    if unknown > MAX_REPORTED:
        section.found.warn(section.path, f"{unknown - MAX_REPORTED:,} further unknown keys, which the trainer ignores")


def _better(key: str, known: frozenset[str]) -> str:
    """Where a key belongs that the trainer reads in another section; else the one that may have been meant."""
    homes = [table for table, keys in READ.items() if key in keys and table not in ("file", "config")]
    if homes:
        return f"; it belongs below {' or '.join(homes)}"
    near = nearest(key, known)
    return f"; did you mean {near!r}?" if near else ""
