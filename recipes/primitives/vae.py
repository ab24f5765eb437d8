"""Step 2: train the autoencoder, diffusers' own `AutoencoderKLCogVideoX` at a small size.

    python recipes/primitives/vae.py --minutes 45

4x4 pixels and 4 frames to 12 values: three blocks instead of CogVideoX's four, because at 64 pixels an object is only
some 20 wide and a latent must still hold its edge. Trained on crops around objects first (they are the hard part and
crops are cheap), on whole frames at the end (group norm sees other statistics there). Resumes from out/vae/state.pt;
without one, and with `--from-model`, from the committed weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor
from training import (
    MODEL,
    OUT,
    Averaged,
    Clock,
    device_and_autocast,
    load_shards,
    pick,
    psnr,
    save_state,
    sheet,
    to_frames,
)

HELD_OUT = 16  # the last clips of the training set are kept for looking at


def new_vae() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(16, 32, 64),
        latent_channels=12,
        layers_per_block=1,
        norm_num_groups=8,
        temporal_compression_ratio=4,
        sample_height=64,
        sample_width=64,
        scaling_factor=1.0,
    )


def crops(clips: np.ndarray, size: int, rng: np.random.Generator) -> Tensor:
    """float32 [B, 4, T, size, size]: crops of uint8 [B, T, H, W, 4], most of them on an object.

    Colours come in -1..1, coverage in 0..1."""
    out = []
    for clip in clips:
        height, width = clip.shape[1:3]
        y, x = (int(rng.integers(0, side - size + 1)) for side in (height, width))
        if size < height and rng.random() < 0.85:
            ys, xs = np.nonzero(clip[int(rng.integers(len(clip))), ..., 3])
            if len(ys):
                at = int(rng.integers(len(ys)))
                y = int(np.clip(ys[at] - rng.integers(4, size - 4), 0, height - size))
                x = int(np.clip(xs[at] - rng.integers(4, size - 4), 0, width - size))
        out.append(clip[:, y // 4 * 4 :, x // 4 * 4 :][:, :size, :size])
    video = torch.from_numpy(np.stack(out)).permute(0, 4, 1, 2, 3).float()
    return torch.cat([video[:, :3] / 127.5 - 1, video[:, 3:] / 255], 1)


def loss_of(vae: AutoencoderKLCogVideoX, video: Tensor, kl_weight: float) -> Tensor:
    """Weighted reconstruction, its edges, and a light pull of the latents towards unit normal."""
    colours, coverage = video[:, :3], video[:, 3:]
    posterior = vae.encode(colours).latent_dist
    error = vae.decode(posterior.sample()).sample.float() - colours
    # A pixel on an object or within two of it counts five times: that is where the shape is.
    near = F.max_pool3d(coverage, (1, 5, 5), 1, (0, 2, 2))
    weight = (1 + 4 * near) / (1 + 4 * near).mean()
    pixel = (weight * (error.abs() + 2 * error.square())).mean()
    edges = (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean() + (weight[..., 1:] * error.diff(dim=-1).abs()).mean()
    return pixel + 0.5 * edges + kl_weight * posterior.kl().sum() / video[:, 0].numel()


@torch.no_grad()
def look(vae: AutoencoderKLCogVideoX, clips: np.ndarray, path: Path, device: torch.device) -> dict[str, float]:
    """PSNR over held-out frames and inside their objects, the latents' spread; a sheet render | reconstruction."""
    video = crops(clips, clips.shape[2], np.random.default_rng(0)).to(device)
    z = torch.cat([vae.encode(v[None, :3]).latent_dist.mode() for v in video])
    back = torch.cat([vae.decode(one[None]).sample.float().clamp(-1, 1) for one in z])
    error = (back - video[:, :3]).square().mean(1, keepdim=True)
    inside = (video[:, 3:] > 0.5).float()
    rows = [np.concatenate([c[:4, ..., :3], to_frames(b)[:4]]) for c, b in zip(clips, back, strict=True)]
    sheet(rows[:8], path)
    return {
        "psnr": round(psnr(error.mean()), 2),
        "psnr_objects": round(psnr((error * inside).sum() / inside.sum()), 2),
        "latent_std": round(float(z.std()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--batch", type=int, default=6, help="crops a step (whole frames: a quarter of it)")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=2e-5)
    parser.add_argument(
        "--whole-from", type=float, default=0.7, help="share of the time after which whole frames are used"
    )
    parser.add_argument("--from-model", action="store_true")
    options = parser.parse_args()
    folder = OUT / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    device, autocast = device_and_autocast()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shards = load_shards(OUT / "clips")
    held_out = pick(shards, np.arange(len(shards[0]) - HELD_OUT, len(shards[0])))  # of the first shard: always the same

    vae = AutoencoderKLCogVideoX.from_pretrained(MODEL / "vae") if options.from_model else new_vae()
    vae = vae.to(device).train()
    averaged = Averaged(vae, 0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=options.lr, betas=(0.9, 0.97), weight_decay=0.0)
    clock, step = Clock(options.minutes), 0
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", map_location=device)
        vae.load_state_dict(state["model"])
        averaged.model.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        clock.before, step = state["minutes"], state["step"]
    looked, running = clock.elapsed, 0.0
    while True:
        if clock.elapsed - looked > 2 or clock.done >= 1:
            looked = clock.elapsed
            figures = look(averaged.model, held_out, folder / "sheet.png", device)
            line = {"minutes": round(looked, 1), "step": step, "loss": round(running, 4)} | figures
            print(json.dumps(line), flush=True)
            save_state(folder / "state.pt", model=vae.state_dict(), averaged=averaged.model.state_dict(),
                       optimizer=optimizer.state_dict(), minutes=clock.elapsed, step=step)  # fmt: skip
            if clock.done >= 1:
                break
        whole = clock.done > options.whole_from
        indices = rng.integers(0, len(shards) * len(shards[0]), max(2, options.batch // 4) if whole else options.batch)
        indices = indices[(indices < len(shards[0]) - HELD_OUT) | (indices >= len(shards[0]))]
        if not len(indices):
            continue
        video = crops(pick(shards, indices), 64 if whole else 32, rng).to(device)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * clock.factor(step)
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            loss = loss_of(vae, video, options.kl)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        averaged.update(vae, step)
        running += (float(loss.detach()) - running) * (0.02 if step > 50 else 0.3)
        step += 1
    # The transformer's latents should have unit spread: that is what scaling_factor is for.
    averaged.model.register_to_config(scaling_factor=round(1 / figures["latent_std"], 4))
    averaged.model.save_pretrained(folder / "vae")


if __name__ == "__main__":
    main()
