"""Step 3: encode clips and stills to latents, once.

    python -m recipes.primitives.encode

Writes out/latents/clips/00000.npy ...: float16 [500, F, C, h, w], the posterior's mean times the scaling factor, in the
transformer's layout, and the same of stills (F = 1). Finished shards that are newer than the autoencoder are not
encoded again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX

from recipes.primitives.clips import SHARDS
from recipes.primitives.training import OUT, choose_device, find_trained


@torch.no_grad()
def encode(vae: AutoencoderKLCogVideoX, clips: np.ndarray) -> torch.Tensor:
    """Encode clips uint8 [B, T, H, W, 3] to scaled latents [B, F, C, h, w]."""
    video = torch.from_numpy(clips).to(vae.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return vae.encode(video).latent_dist.mode().transpose(1, 2).float() * vae.config.scaling_factor


def encode_shards(weights: Path, shards: Path, out: Path) -> None:
    """Encode the shards of a folder with the autoencoder of another. Finished ones that are newer than the autoencoder
    are not encoded again."""
    device, autocast = choose_device()
    vae = AutoencoderKLCogVideoX.from_pretrained(weights).to(device).eval()
    trained_at = (weights / "config.json").stat().st_mtime
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(shards.glob("?????.npy")):
        target = out / path.name
        if target.exists() and target.stat().st_mtime > trained_at:
            continue
        clips = np.load(path, mmap_mode="r")[..., :3]
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            latents = torch.cat([encode(vae, clips[k : k + 10].copy()) for k in range(0, len(clips), 10)])
        with target.with_suffix(".partial").open("wb") as file:
            np.save(file, latents.half().cpu().numpy())
        target.with_suffix(".partial").rename(target)
        print(f"{out.name} {target.name}: std {float(latents.std()):.3f}", flush=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for kind in SHARDS:
        encode_shards(find_trained("vae"), OUT / kind, OUT / "latents" / kind)


if __name__ == "__main__":
    main()
