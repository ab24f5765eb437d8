"""Real diffusers pipelines at tiny sizes with random weights, seeded."""

import re
import shutil
from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from v2edit.backbones import FakeModel
from v2edit.backbones.families import FAMILIES, PUBLISHED_DEFAULTS

Variant = Literal["2b", "5b", "1.5"]
TEXT_LENGTH = 16

# The published configurations of CogVideoX-2b and -5b, where they differ from diffusers' own defaults.
PUBLISHED = {
    "2b": {"num_attention_heads": 30, "use_rotary_positional_embeddings": False},
    "5b": {"num_attention_heads": 48, "use_rotary_positional_embeddings": True},
}
SNR_SHIFT = {"2b": 3.0, "5b": 1.0, "1.5": 1.0}


def scheduler_of(variant: Variant) -> CogVideoXDDIMScheduler | CogVideoXDPMScheduler:
    """Build the published scheduler: DPM for 5b, DDIM for the others."""
    kind = CogVideoXDPMScheduler if variant == "5b" else CogVideoXDDIMScheduler
    return kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=SNR_SHIFT[variant],
        timestep_spacing="trailing",
    )


def tokenizer_of(length: int, more: str = "") -> T5Tokenizer:
    """Build a tokenizer of some words, those of the text `more`, and the letters."""
    words = dict.fromkeys(["a", "red", "blue", "ball", "cube", "on", "the", "floor", *re.findall(r"\w+", more)])
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{w}" for w in words), *map(chr, range(97, 123)), ".", ","]
    pieces = list(dict.fromkeys(pieces))
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=length)


def pipeline_of(variant: Variant, seed: int = 0, **published: object) -> CogVideoXPipeline:
    """Build a tiny pipeline of a variant with seeded weights; with `published` transformer settings, at that size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        length = 226 if published else TEXT_LENGTH
        width = 4096 if published else 16
        tokenizer = tokenizer_of(length)
        text = T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=8,
            num_heads=2,
            d_ff=32,
            num_layers=1,
            dropout_rate=0.0,
        )
        settings = published or {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": width,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "max_text_seq_length": length,
            "use_rotary_positional_embeddings": variant != "2b",
            "patch_size_t": 2 if variant == "1.5" else None,
        }
        channels = 16 if published else 4
        vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 3,
            up_block_types=("CogVideoXUpBlock3D",) * 3,
            block_out_channels=(8, 8, 8),
            latent_channels=channels,
            layers_per_block=1,
            norm_num_groups=2,
            sample_height=32,
            sample_width=32,
            scaling_factor=0.7,
        )
        return CogVideoXPipeline(
            tokenizer,
            T5EncoderModel(text),
            vae,
            CogVideoXTransformer3DModel(**settings),
            scheduler_of(variant),
        )


def fake_model_of(folder: Path) -> FakeModel:
    """Build the fake model of a CogVideoX folder."""
    return FakeModel(folder, FAMILIES[0], torch.float32, PUBLISHED_DEFAULTS)


def pickled(model: Path, out: Path, *evil: object) -> Path:
    """Copy a model with its weights as pickles, which hold `evil` objects besides."""
    shutil.copytree(model, out)
    for part, name in (("transformer", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"),
                       ("text_encoder", "pytorch_model")):  # fmt: skip
        (safe,) = (out / part).glob("*.safetensors")
        torch.save(load_file(safe) | {f"evil{k}": one for k, one in enumerate(evil)}, out / part / f"{name}.bin")
        safe.unlink()
    return out
