"""Step 3: encode every clip to latents, once.

    python recipes/primitives/encode.py

Writes out/latents/00000.npy ...: float16 [1000, F, C, h, w], the posterior's mean times the scaling factor, in the
transformer's layout. Finished shards are kept as long as they are newer than the autoencoder.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from training import OUT, autoencoder, device_and_autocast


@torch.no_grad()
def encode(vae: AutoencoderKLCogVideoX, clips: np.ndarray) -> torch.Tensor:
    """uint8 [B, T, H, W, 3] to latents [B, F, C, h, w], scaled."""
    video = torch.from_numpy(clips).to(vae.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return vae.encode(video).latent_dist.mode().transpose(1, 2) * vae.config.scaling_factor


def main() -> None:
    weights = autoencoder()
    device, _ = device_and_autocast()
    vae = AutoencoderKLCogVideoX.from_pretrained(weights).to(device).eval()
    made_at = (weights / "config.json").stat().st_mtime
    (OUT / "latents").mkdir(exist_ok=True)
    for path in sorted((OUT / "clips").glob("*.npy")):
        target = OUT / "latents" / path.name
        if target.exists() and target.stat().st_mtime > made_at:
            continue
        clips = np.load(path, mmap_mode="r")[..., :3]
        latents = torch.cat([encode(vae, clips[k : k + 10].copy()) for k in range(0, len(clips), 10)])
        with target.with_suffix(".partial").open("wb") as file:
            np.save(file, latents.half().cpu().numpy())
        target.with_suffix(".partial").rename(target)
        print(f"{target.name}: std {float(latents.std()):.3f}", flush=True)


if __name__ == "__main__":
    main()
