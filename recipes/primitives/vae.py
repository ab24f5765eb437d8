"""Step 2: train the autoencoder, diffusers' own `AutoencoderKLCogVideoX` at a small size.

    python -m recipes.primitives.vae --minutes 125 --batch 4

4x4 pixels and 4 frames to 16 values: three blocks instead of CogVideoX's four, because an object is only some 25 pixels
wide and a latent must still hold its stripes. Trained on crops around objects first (they are the hard part and
crops are cheap), on whole frames at the end (group norm sees other statistics there). Resumes from out/vae/state.pt;
without one, and with `--from DIR`, from the autoencoder there, such as src/v2edit/weights/primitives/vae.
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

from recipes.primitives.clips import HEIGHT, WIDTH
from recipes.primitives.training import (
    OUT,
    AveragedModel,
    TrainingClock,
    choose_device,
    gather_clips,
    load_shards,
    psnr,
    save_state,
    to_frames,
    write_sheet,
)

HELD_OUT = 16  # the last clips of the first shard, for evaluation
CROP = 32  # pixels of a side
ON_OBJECTS = 0.75  # share of crops that are laid on an object
OBJECT_WEIGHT = 3.0  # additional, of pixels there


def new_autoencoder() -> AutoencoderKLCogVideoX:
    """Build an autoencoder of three blocks: 4x4 pixels and 4 frames to a latent."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(32, 64, 96),
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=8,
        temporal_compression_ratio=4,
        sample_height=HEIGHT,
        sample_width=WIDTH,
        scaling_factor=1.0,
    )


def crop_clips(clips: np.ndarray, whole: bool, rng: np.random.Generator) -> Tensor:
    """Return crops float32 [B, 4, T, CROP, CROP] of clips uint8 [B, T, H, W, 4], most of them on an object, or `whole`
    clips: colours in -1..1, and 1 where the fourth channel names an object."""
    height, width = clips.shape[2:4] if whole else (CROP, CROP)
    out = []
    for clip in clips:
        y, x = (
            int(rng.integers(0, side - size + 1)) for side, size in zip(clip.shape[1:3], (height, width), strict=True)
        )
        if not whole and rng.random() < ON_OBJECTS:
            ys, xs = np.nonzero(clip[int(rng.integers(len(clip))), ..., 3])
            if len(ys):
                k = int(rng.integers(len(ys)))
                y = int(np.clip(ys[k] - rng.integers(4, height - 4), 0, clip.shape[1] - height))
                x = int(np.clip(xs[k] - rng.integers(4, width - 4), 0, clip.shape[2] - width))
        out.append(clip[:, y // 4 * 4 :, x // 4 * 4 :][:, :height, :width])
    video = torch.from_numpy(np.stack(out)).permute(0, 4, 1, 2, 3).float()
    return torch.cat([video[:, :3] / 127.5 - 1, (video[:, 3:] > 0).float()], 1)


def compute_loss(vae: AutoencoderKLCogVideoX, video: Tensor, object_weight: float, kl_weight: float) -> Tensor:
    """Return the weighted reconstruction loss, plus that of its edges, plus a small KL divergence."""
    colours, coverage = video[:, :3], video[:, 3:]
    posterior = vae.encode(colours).latent_dist
    error = vae.decode(posterior.sample()).sample.float() - colours
    # Pixels on an object or within two of it count more: these define its shape and pattern.
    near = F.max_pool3d(coverage, (1, 5, 5), 1, (0, 2, 2))
    weight = (1 + object_weight * near) / (1 + object_weight * near).mean()
    pixel = (weight * (error.abs() + 2 * error.square())).mean()
    edges = (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean() + (weight[..., 1:] * error.diff(dim=-1).abs()).mean()
    return pixel + 0.5 * edges + kl_weight * posterior.kl().sum() / video[:, 0].numel()


@torch.no_grad()
def evaluate(vae: AutoencoderKLCogVideoX, video: Tensor, path: Path) -> dict[str, float]:
    """Return the PSNR of whole clips `video` and inside their objects, and the latents' std; write a sheet of clips and
    reconstructions."""
    z = torch.cat([vae.encode(v[None, :3]).latent_dist.mode() for v in video])
    back = torch.cat([vae.decode(latent[None]).sample.float().clamp(-1, 1) for latent in z])
    error = (back - video[:, :3]).square().mean(1, keepdim=True)
    inside = (video[:, 3:] > 0.5).float()
    rows = [np.concatenate([to_frames(one)[1:8:3] for one in (v[:3], b)]) for v, b in zip(video, back, strict=True)]
    write_sheet(rows[:10], path)
    return {
        "psnr": round(psnr(error.mean()), 2),
        "psnr_objects": round(psnr((error * inside).sum() / inside.sum()), 2),
        "latent_std": round(float(z.std()), 4),
    }


def train(options: argparse.Namespace) -> None:
    """Train the autoencoder; shards that were rendered meanwhile join at each evaluation."""
    folder = OUT / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    device, autocast = choose_device()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shards = load_shards(OUT / "clips")
    last = gather_clips(shards, np.arange(len(shards[0]) - HELD_OUT, len(shards[0])))
    held_out = crop_clips(last, True, rng).to(device)
    vae = AutoencoderKLCogVideoX.from_pretrained(options.start) if options.start else new_autoencoder()
    vae = vae.to(device).train()
    averaged = AveragedModel(vae, 0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=options.lr, betas=(0.9, 0.97), weight_decay=0.0)
    clock, step = TrainingClock(options.minutes), 0
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", map_location=device)
        vae.load_state_dict(state["model"])
        averaged.model.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        clock.before, step = state["minutes"], state["step"]
    evaluated_at, running = clock.elapsed, 0.0
    while True:
        if clock.elapsed - evaluated_at > 4 or clock.done >= 1:
            evaluated_at, shards = clock.elapsed, load_shards(OUT / "clips")
            figures = evaluate(averaged.model, held_out, folder / "sheet.png")
            line = {"minutes": round(evaluated_at, 1), "step": step, "loss": round(running, 4)} | figures
            print(json.dumps(line), flush=True)
            save_state(folder / "state.pt", model=vae.state_dict(), averaged=averaged.model.state_dict(),
                       optimizer=optimizer.state_dict(), minutes=clock.elapsed, step=step)  # fmt: skip
            # scaling_factor gives the transformer latents of unit variance.
            averaged.model.register_to_config(scaling_factor=round(1 / figures["latent_std"], 4))
            averaged.model.save_pretrained(folder / "vae")
            if clock.done >= 1:
                return
        whole = clock.done > options.whole_from
        indices = rng.integers(0, len(shards) * len(shards[0]), max(2, options.batch // 4) if whole else options.batch)
        indices = indices[(indices < len(shards[0]) - HELD_OUT) | (indices >= len(shards[0]))]
        if not len(indices):
            continue
        video = crop_clips(gather_clips(shards, indices), whole, rng).to(device)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * clock.factor(step)
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            loss = compute_loss(vae, video, OBJECT_WEIGHT, options.kl)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        averaged.update(vae, step)
        running += (float(loss.detach()) - running) * (0.02 if step > 50 else 0.3)
        step += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=125)
    parser.add_argument("--batch", type=int, default=6, help="crops a step (whole clips: a quarter of it)")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=2e-5)
    parser.add_argument(
        "--whole-from", type=float, default=0.7, help="share of the time after which whole clips are used"
    )
    parser.add_argument("--from", dest="start", metavar="DIR", help="the autoencoder to go on from")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
