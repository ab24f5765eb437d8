"""Step 6: train the scene classifier.

    python -m recipes.primitives.classifier --minutes 20

Training clips are mirrored and reversed in time at random (with their labels), half of them degraded like a video
model's output (blur, colour shift, noise), and one in four comes as the autoencoder's reconstruction. Writes
src/v2edit/weights/classifier and prints the share of fresh clips (from EVALUATION_SEED on) with every answer right.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import save_file
from torch import Tensor

from recipes.primitives.render import EVALUATION_SEED, FRAMES, SIZE
from recipes.primitives.training import (
    OUT,
    TrainingClock,
    autoencoder_folder,
    batches,
    gather_clips,
    load_shards,
    save_state,
    to_frames,
)
from v2edit.primitives.captions import caption
from v2edit.primitives.classifier import QUESTIONS, WEIGHTS, SceneClassifier, scene_labels
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import sample_scene

SWAPPED = {"left": "right", "right": "left"}
REVERSED = {"slide left": "slide right", "slide right": "slide left", "orbit left": "orbit right",
           "orbit right": "orbit left"}  # fmt: skip


def label_permutation(places: bool) -> tuple[Tensor, dict[int, Tensor]]:
    """Return how labels change when a clip is mirrored (places and motions) or reversed in time (motions alone): the
    order of the questions, and for those about a motion the new index of each old answer."""
    keys = list(QUESTIONS)
    order = [keys.index((SWAPPED.get(place, place), field)) if places else k for k, (place, field) in enumerate(keys)]
    answers = {
        k: torch.tensor([QUESTIONS[key].index(REVERSED.get(answer, answer)) for answer in QUESTIONS[key]])
        for k, key in enumerate(keys)
        if key[1] in ("motion", "camera")
    }
    return torch.tensor(order), answers


def flip_labels(labels: Tensor, flipped: Tensor, places: bool) -> Tensor:
    """Return the labels [B, questions] of clips of which those in the mask `flipped` [B] are mirrored or reversed."""
    order, answers = label_permutation(places)
    new = labels[:, order]
    for question, mapping in answers.items():
        column = new[:, question]
        new[:, question] = torch.where(column < 0, column, mapping[column.clamp(min=0)])
    return torch.where(flipped[:, None], new, labels)


def degrade(video: Tensor) -> Tensor:
    """Degrade half of the clips [B, T, 3, H, W]: shift colours, blur, add noise."""
    batch = len(video)
    rough = video + 0.08 * torch.randn(batch, 1, 3, 1, 1)
    soft = F.avg_pool2d(rough.flatten(0, 1), 3, 1, 1).view_as(rough)
    rough = torch.lerp(rough, soft, torch.rand(batch, 1, 1, 1, 1))
    rough = rough + 0.15 * torch.rand(batch, 1, 1, 1, 1) * torch.randn_like(rough)
    return torch.where((torch.rand(batch) < 0.5).view(-1, 1, 1, 1, 1), rough, video)


def compute_loss(logits: Mapping[Any, Tensor], labels: Tensor) -> Tensor:
    """Sum the cross-entropy of all questions; a label of -1 is ignored."""
    losses = [
        F.cross_entropy(values, labels[:, k], ignore_index=-1)
        for k, values in enumerate(logits.values())
        if (labels[:, k] >= 0).any()
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def reconstructions(count: int) -> np.ndarray:
    """Return the autoencoder's reconstructions of the first clips, uint8 [count, 9, 64, 64, 3]; cached on disk."""
    path = OUT / "reconstructions.npy"
    if path.exists() and len(cached := np.load(path, mmap_mode="r")) >= count:
        return cached
    vae = AutoencoderKLCogVideoX.from_pretrained(autoencoder_folder()).eval()
    shards, clips = load_shards(OUT / "latents"), []
    for start in range(0, count, 20):
        latents = torch.from_numpy(gather_clips(shards, np.arange(start, start + 20))).float()
        video = vae.decode(latents.transpose(1, 2) / vae.config.scaling_factor).sample
        clips += [to_frames(clip) for clip in video]
    np.save(path, np.stack(clips))
    return np.load(path, mmap_mode="r")


def evaluate(classifier: SceneClassifier, count: int = 200) -> dict[str, float]:
    """Return the share of fresh clips with every answer right, and of each kind of answer alone."""
    classifier.eval()
    scenes = [sample_scene(Random(EVALUATION_SEED + k)) for k in range(count)]
    results = [classifier.classify(render_clip(scene, FRAMES, SIZE, SIZE).frames) for scene in scenes]
    classifier.train()
    whole = np.mean([caption(a) == caption(b) for a, b in zip(scenes, results, strict=True)])
    questions = list(QUESTIONS)
    pairs = [list(zip(scene_labels(a), scene_labels(b), strict=True)) for a, b in zip(scenes, results, strict=True)]
    shares = {"captions": float(whole)}
    for field in dict.fromkeys(field for _, field in questions):
        hits = [a == b for rows in pairs for (a, b), key in zip(rows, questions, strict=True) if key[1] == field]
        shares[field] = round(float(np.mean(hits)), 4)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--reconstructed", type=int, default=1000, help="clips that also come as reconstructions")
    options = parser.parse_args()
    shards = load_shards(OUT / "clips")
    count = len(shards) * len(shards[0])
    reconstructed = reconstructions(options.reconstructed)
    scenes = [sample_scene(Random(seed)) for seed in range(count)]
    labels = torch.tensor([scene_labels(scene) for scene in scenes])
    # Around a single object in the middle only the floor shows whether the camera turns: the hardest clips.
    hard = [k for k, scene in enumerate(scenes) if [obj.place for obj in scene.objects] == ["middle"]]
    pool = np.concatenate([np.arange(count), *[hard] * 4])
    classifier = SceneClassifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=options.lr, weight_decay=0.02)
    clock, step, saved_at = TrainingClock(options.minutes, fall=0.8), 0, 0.0
    path = OUT / "classifier.pt"
    if path.exists():
        state = torch.load(path)
        classifier.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        clock.before, step = state["minutes"], state["step"]
    running = 0.0
    rng = np.random.default_rng(step)
    torch.manual_seed(step)
    for indices in batches(rng, pool, options.batch):
        if clock.elapsed - saved_at > 3 or clock.done >= 1:
            saved_at = clock.elapsed
            save_state(
                path, model=classifier.state_dict(), optimizer=optimizer.state_dict(), minutes=saved_at, step=step
            )
            line = {"minutes": round(saved_at, 1), "step": step, "loss": round(running, 4)}
            print(json.dumps(line | evaluate(classifier)), flush=True)
        if clock.done >= 1:
            break
        clips = gather_clips(shards, indices)[..., :3]
        if rng.random() < 0.25:
            indices = rng.integers(0, len(reconstructed), options.batch)
            clips = reconstructed[np.sort(indices)]
            indices = np.sort(indices)
        video = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        right = labels[indices]
        mirror, reverse = torch.rand(len(video)) < 0.5, torch.rand(len(video)) < 0.5
        video = torch.where(mirror.view(-1, 1, 1, 1, 1), video.flip(4), video)
        video = torch.where(reverse.view(-1, 1, 1, 1, 1), video.flip(1), video)
        right = flip_labels(flip_labels(right, mirror, places=True), reverse, places=False)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * clock.factor(step)
        loss = compute_loss(classifier(degrade(video)), right)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 5.0)
        optimizer.step()
        running += (float(loss.detach()) - running) * (0.02 if step else 1.0)
        step += 1
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), WEIGHTS)
    print(f"{WEIGHTS}: {WEIGHTS.stat().st_size / 1e6:.1f} MB", json.dumps(evaluate(classifier, 1000)))


if __name__ == "__main__":
    main()
