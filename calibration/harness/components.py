"""Text encoders and VAEs of the harness's architectures: transformers' and diffusers' classes with the published configurations.

Of an encoder its class, its configuration's class and arguments; of a VAE its class and arguments.
"""

from __future__ import annotations

T5_XXL = ("T5EncoderModel", "T5Config", {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
})  # fmt: skip
LLAMA_8B = ("LlamaModel", "LlamaConfig", {
    "vocab_size": 128320, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8,
})  # fmt: skip
CLIP_L = ("CLIPTextModel", "CLIPTextConfig", {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
})  # fmt: skip
CLIP_L_PROJECTED, CLIP_G = (
    ("CLIPTextModelWithProjection", "CLIPTextConfig", {
        "vocab_size": 49408, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "projection_dim": width, "hidden_act": activation,
    })
    for width, layers, activation in ((768, 12, "quick_gelu"), (1280, 32, "gelu"))
)  # fmt: skip
GEMMA2_2B = ("Gemma2Model", "Gemma2Config", {})
QWEN25_7B = ("Qwen2_5_VLTextModel", "Qwen2_5_VLTextConfig", {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1000000.0,
})  # fmt: skip
# google/byt5-small with the tokens of Glyph-SDXL-v2 added: text_encoder_2/config.json of HunyuanVideo-1.5-Diffusers
BYT5_GLYPH = ("T5EncoderModel", "T5Config", {
    "d_model": 1472, "d_kv": 64, "d_ff": 3584, "num_layers": 12, "num_heads": 6, "vocab_size": 1510, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
})  # fmt: skip
VAE_4 = ("AutoencoderKL", {
    "latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
})  # fmt: skip
VAE_16 = ("AutoencoderKL", {
    "latent_channels": 16, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "use_quant_conv": False,
    "use_post_quant_conv": False,
})  # fmt: skip
# AutoencoderDC of 32 pixels each way: vae/config.json of Sana_1600M_1024px_BF16_diffusers
_EFFICIENT = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
VAE_32X = ("AutoencoderDC", {
    "encoder_block_types": _EFFICIENT, "decoder_block_types": _EFFICIENT, "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
})  # fmt: skip
