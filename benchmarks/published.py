"""Published models as configurations alone, in diffusers folders without weights: to count what an edit takes.

The figures are those of diffusers' conversion scripts and of the models' own folders. Tokenizers are tiny ones; nothing
that is counted depends on them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, LlamaConfig, Qwen2_5_VLTextConfig, T5Config, T5Tokenizer, UMT5Config

XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
WAN = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, "text_dim": 4096}
UNIPC = ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0})
COGVIDEOX = {
    "beta_schedule": "scaled_linear", "clip_sample": False, "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A model: its pipeline, the class and configuration of each part, and the index's own settings."""

    pipeline: str
    transformer: tuple[str, dict[str, Any]]
    vae: tuple[str, dict[str, Any]]
    scheduler: tuple[str, dict[str, Any]]
    texts: dict[str, tuple[str, Any]]
    """By part: the class of a text encoder and its configuration."""
    settings: dict[str, Any] = field(default_factory=dict)
    second: bool = False  # whether there is a second expert like the first
    guiders: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    def write(self, folder: Path, **changes: Any) -> Path:
        """Write the model's folder without weights, with `changes` to the transformer's configuration."""
        kind, config = self.transformer
        parts = {"transformer": (kind, config | changes), "vae": self.vae}
        if self.second:
            parts["transformer_2"] = parts["transformer"]
        index: dict[str, Any] = {"_class_name": self.pipeline, "_diffusers_version": diffusers.__version__}
        for part, (name, settings) in parts.items():
            with torch.device("meta"):
                getattr(diffusers, name)(**settings).save_config(folder / part)
            index[part] = ["diffusers", name]
        for part, (name, settings) in {"scheduler": self.scheduler, **self.guiders}.items():
            getattr(diffusers, name)(**settings).save_pretrained(folder / part)
            index[part] = ["diffusers", name]
        for part, (name, settings) in self.texts.items():
            settings.save_pretrained(folder / part)
            index[part] = ["transformers", name]
            tokenizer = part.replace("text_encoder", "tokenizer")
            tiny_tokenizer().save_pretrained(folder / tokenizer)
            index[tokenizer] = ["transformers", "T5Tokenizer"]
        (folder / "model_index.json").write_text(json.dumps(index | self.settings))
        return folder


def tiny_tokenizer() -> T5Tokenizer:
    """Build a tokenizer of letters."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(97, 123)), ".", ","]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    return tokenizer


def cogvideox(layers: int, heads: int, rotary: bool, scaling: float, shift: float, kind: str, **more: Any) -> Published:
    transformer = {"num_layers": layers, "num_attention_heads": heads, "use_rotary_positional_embeddings": rotary}
    return Published(
        "CogVideoXPipeline",
        ("CogVideoXTransformer3DModel", transformer | more),
        ("AutoencoderKLCogVideoX", {"scaling_factor": scaling}),
        (f"CogVideoX{kind}Scheduler", COGVIDEOX | {"snr_shift_scale": shift}),
        {"text_encoder": ("T5EncoderModel", T5Config(vocab_size=32128, **XXL))},
    )


def ltx(transformer: dict[str, Any], scheduler: dict[str, Any], vae: dict[str, Any]) -> Published:
    return Published(
        "LTXConditionPipeline",
        ("LTXVideoTransformer3DModel", transformer),
        ("AutoencoderKLLTXVideo", LTX_VAE | vae),
        ("FlowMatchEulerDiscreteScheduler", scheduler),
        {"text_encoder": ("T5EncoderModel", T5Config(vocab_size=32128, **XXL))},
    )


LTX_VAE = {
    "block_out_channels": (128, 256, 512, 1024, 2048), "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "decoder_block_out_channels": (256, 512, 1024), "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5), "spatio_temporal_scaling": (True,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"), "upsample_residual": (True,) * 3,
    "upsample_factor": (2, 2, 2), "timestep_conditioning": True,
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
LTX_13B = {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}


def wan(transformer: dict[str, Any], vae: dict[str, Any] | None = None, shift: float = 3.0, **more: Any) -> Published:
    return Published(
        "WanPipeline",
        ("WanTransformer3DModel", WAN | transformer),
        ("AutoencoderKLWan", vae or {}),
        (UNIPC[0], UNIPC[1] | {"flow_shift": shift}),
        {"text_encoder": ("UMT5EncoderModel", UMT5Config(vocab_size=256384, **XXL))},
        **more,
    )


def hunyuan(
    version: str, transformer: dict[str, Any], shift: float, texts: dict[str, tuple[str, Any]], **more: Any
) -> Published:
    return Published(
        f"HunyuanVideo{version}Pipeline",
        (f"HunyuanVideo{version}Transformer3DModel", transformer),
        (f"AutoencoderKLHunyuanVideo{version}", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": shift}),
        texts,
        **more,
    )


HUNYUAN_TEXTS = {
    "text_encoder": (
        "LlamaModel",
        LlamaConfig(vocab_size=128320, hidden_size=4096, intermediate_size=14336, num_key_value_heads=8),
    ),
    "text_encoder_2": (
        "CLIPTextModel",
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
    ),
}
HUNYUAN_15_TEXTS = {
    "text_encoder": (
        "Qwen2_5_VLTextModel",
        Qwen2_5_VLTextConfig(
            vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
            num_attention_heads=28, num_key_value_heads=4,
        ),
    ),
    "text_encoder_2": (
        "T5EncoderModel",
        T5Config(
            vocab_size=1510, d_model=1472, d_kv=64, d_ff=3584, num_layers=12, num_heads=6,
            feed_forward_proj="gated-gelu",
        ),
    ),
}  # fmt: skip
GUIDER = {"guider": ("ClassifierFreeGuidance", {})}
MOCHI = Published(
    "MochiPipeline",
    ("MochiTransformer3DModel", {}),
    ("AutoencoderKLMochi", {}),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    {"text_encoder": ("T5EncoderModel", T5Config(vocab_size=32128, **XXL))},
)
WAN_22_VAE = {
    "base_dim": 160, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 256,
    "scale_factor_spatial": 16, "patch_size": 2, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip
COGVIDEOX_15 = {
    "patch_size_t": 2, "patch_bias": False, "sample_height": 300, "sample_width": 300, "sample_frames": 81,
}  # fmt: skip
TI2V = {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}
MODELS = {
    "CogVideoX-2b": cogvideox(30, 30, False, 1.15258426, 3.0, "DDIM"),
    "CogVideoX-5b": cogvideox(42, 48, True, 0.7, 1.0, "DPM"),
    "CogVideoX 1.5-5b": cogvideox(42, 48, True, 0.7, 1.0, "DDIM", **COGVIDEOX_15),
    "HunyuanVideo": hunyuan("", {}, 7.0, HUNYUAN_TEXTS),
    "HunyuanVideo 1.5": hunyuan("15", {"target_size": 640, "task_type": "t2v"}, 5.0, HUNYUAN_15_TEXTS, guiders=GUIDER),
    "Mochi": MOCHI,
    "LTX-Video 0.9.5 2B": ltx({}, {}, {}),
    "LTX-Video 0.9.8 13B": ltx(LTX_13B, {}, {}),
    "Wan 2.1 1.3B": wan({"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}),
    "Wan 2.1 14B": wan({}),
    "SkyReels-V2 14B": replace(
        wan({}, shift=8.0), pipeline="SkyReelsV2Pipeline", transformer=("SkyReelsV2Transformer3DModel", WAN)
    ),
    "Wan 2.2 TI2V-5B": wan(TI2V, WAN_22_VAE, 5.0, settings={"expand_timesteps": True}),
    "Wan 2.2 A14B": wan({}, settings={"boundary_ratio": 0.875}, second=True),
}
