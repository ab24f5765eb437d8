"""Step 3: encode every clip to latents, once.

    python recipes/primitives/encode.py

Writes out/latents/00000.npy ...: float16 [1000, F, C, h, w], the posterior's mean times the scaling factor, in the
transformer's layout. Finished shards that are newer than the autoencoder are not encoded again.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from training import OUT, autoencoder_folder, choose_device


@torch.no_grad()
def encode(vae: AutoencoderKLCogVideoX, clips: np.ndarray) -> torch.Tensor:
    """Encode clips uint8 [B, T, H, W, 3] to scaled latents [B, F, C, h, w]."""
    video = torch.from_numpy(clips).to(vae.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return vae.encode(video).latent_dist.mode().transpose(1, 2) * vae.config.scaling_factor


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    weights = autoencoder_folder()
    device, _ = choose_device()
    vae = AutoencoderKLCogVideoX.from_pretrained(weights).to(device).eval()
    trained_at = (weights / "config.json").stat().st_mtime
    (OUT / "latents").mkdir(exist_ok=True)
    for path in sorted((OUT / "clips").glob("*.npy")):
        target = OUT / "latents" / path.name
        if target.exists() and target.stat().st_mtime > trained_at:
            continue
        clips = np.load(path, mmap_mode="r")[..., :3]
        latents = torch.cat([encode(vae, clips[k : k + 10].copy()) for k in range(0, len(clips), 10)])
        with target.with_suffix(".partial").open("wb") as file:
            np.save(file, latents.half().cpu().numpy())
        target.with_suffix(".partial").rename(target)
        print(f"{target.name}: std {float(latents.std()):.3f}", flush=True)


if __name__ == "__main__":
    main()
