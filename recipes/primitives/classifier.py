"""Step 6: train the classifier that reads a clip's scene, what captions name and what they never do.

    python -m recipes.primitives.classifier --minutes 60

Answers for each slot (a place in a row) and for the scene; hidden objects are not asked for. Training clips are
mirrored at random (so are their scenes), half of them degraded like a video model's output, one in four comes as the
autoencoder gives it back; every other batch is of stills, which cost a ninth and tell all but motions. Writes
out/classifier/classifier.safetensors and prints the share of right answers by field on renders of fresh scenes (from
EVALUATION_SEED on), and on the same through the autoencoder: the classifier's own error, which every figure that it
reads off an edit has. Resumes from out/classifier/state.pt; without one, and with `--from FILE`, from those weights.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes.primitives.clips import EVALUATION_SEED, FRAMES, SHARDS, render_with_owners, shard_scenes
from recipes.primitives.encode import encode
from recipes.primitives.training import OUT, TrainingClock, choose_device, find_trained, save_state, to_frames
from v2edit.primitives.classifier import SceneClassifier
from v2edit.primitives.questions import OF_CLIPS, QUESTIONS, scene_labels
from v2edit.primitives.scene import (
    Scene,
    sample_scene,
)

WEIGHTS_FILE = "classifier.safetensors"
OPPOSITE = {"left": "right", "right": "left"}


def mirrored(scene: Scene) -> Scene:
    """Return the scene as a mirror shows it, left and right exchanged."""

    def turn(text: str) -> str:
        return " ".join(OPPOSITE.get(word, word) for word in text.split())

    objects = [
        replace(o, place=turn(o.place), motion=turn(o.motion), pattern=replace(o.pattern, angle=-o.pattern.angle))
        for o in scene.objects
    ]
    return replace(scene, objects=tuple(objects), camera=turn(scene.camera), light_azimuth=-scene.light_azimuth)


class Renders:
    """The rendered shards of one kind with their labels, as they are and mirrored, int64 [2, N, questions]; and what of
    them comes through the autoencoder, the first `reconstructed` of the first shard on."""

    def __init__(self, kind: str, reconstructed: int) -> None:
        self.kind, paths = kind, sorted((OUT / kind).glob("?????.npy"))
        self.arrays = [np.load(path, mmap_mode="r") for path in paths]
        labels, other = [], []
        for path, array in zip(paths, self.arrays, strict=True):
            for scene, clip in zip(shard_scenes(kind, int(path.stem)), array, strict=True):
                visible = np.bincount(clip[..., 3].ravel(), minlength=7)[1:] * FRAMES // clip.shape[0]
                labels.append(scene_labels(scene, visible))
                other.append(scene_labels(mirrored(scene), visible))
        self.answers = torch.tensor([labels, other])
        if kind == "stills":
            self.answers[..., [name in OF_CLIPS for _, _, name in QUESTIONS]] = -1
        cache = OUT / "classifier" / f"{kind}.npy"
        if not cache.exists():
            np.save(cache, autoencode(self.frames(np.arange(min(reconstructed, len(labels))))))
        self.reconstructed = np.load(cache, mmap_mode="r")

    def frames(self, indices: np.ndarray) -> np.ndarray:
        length = SHARDS[self.kind][0]
        return np.stack([self.arrays[i // length][i % length][..., :3] for i in indices])

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Return a batch, float [B, T, 3, H, W], and the right answers int64 [B, questions]."""
        if rng.random() < 0.25:
            indices = rng.integers(0, len(self.reconstructed), size)
            frames = self.reconstructed[indices]
        else:
            indices = rng.integers(0, self.answers.shape[1], size)
            frames = self.frames(indices)
        video, mirror = as_video(frames), torch.rand(size) < 0.5
        video = torch.where(mirror.view(-1, 1, 1, 1, 1), video.flip(4), video)
        return video, self.answers[mirror.long(), torch.from_numpy(indices)]


@torch.no_grad()
def autoencode(clips: np.ndarray) -> np.ndarray:
    """Return clips, uint8 [B, T, H, W, 3], as the trained autoencoder gives them back."""
    vae = AutoencoderKLCogVideoX.from_pretrained(find_trained("vae")).eval()
    out = []
    for k in range(0, len(clips), 10):
        latents = encode(vae, clips[k : k + 10]).transpose(1, 2) / vae.config.scaling_factor
        out += [to_frames(clip) for clip in vae.decode(latents).sample]
    return np.stack(out)


def degrade(video: Tensor) -> Tensor:
    """Degrade half of the clips [B, T, 3, H, W]: shift colours, blur, add noise."""
    batch = len(video)
    rough = video + 0.08 * torch.randn(batch, 1, 3, 1, 1)
    soft = F.avg_pool2d(rough.flatten(0, 1), 3, 1, 1).view_as(rough)
    rough = torch.lerp(rough, soft, torch.rand(batch, 1, 1, 1, 1))
    rough = rough + 0.15 * torch.rand(batch, 1, 1, 1, 1) * torch.randn_like(rough)
    return torch.where((torch.rand(batch) < 0.5).view(-1, 1, 1, 1, 1), rough, video)


def as_video(clips: np.ndarray) -> Tensor:
    return torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def load_classifier() -> SceneClassifier:
    """Load the classifier that was trained here, else the one that ships."""
    own = OUT / "classifier" / WEIGHTS_FILE
    if not own.exists():
        return SceneClassifier.load()
    classifier = SceneClassifier()
    classifier.load_state_dict(load_file(own))
    return classifier.float().eval()


def compute_loss(logits: dict[tuple[str, str, str], Tensor], answers: Tensor) -> Tensor:
    """Sum the mean cross-entropy of each field, of all places together; an answer of -1 is ignored. (A mean by place
    rests on a few answers at most places and drowns what is asked once of a scene, as where the light comes from.)"""
    fields = {}
    for k, (_, _, name) in enumerate(QUESTIONS):
        fields.setdefault(name, []).append(k)
    questions, losses = list(QUESTIONS), []
    for asked in fields.values():
        values, right = torch.cat([logits[questions[k]] for k in asked]), torch.cat([answers[:, k] for k in asked])
        if (right >= 0).any():
            losses.append(F.cross_entropy(values, right, ignore_index=-1))
    return torch.stack(losses).sum()


@torch.no_grad()
def evaluate(classifier: SceneClassifier, clips: np.ndarray, answers: Tensor) -> dict[str, float]:
    """Return the share of right answers by field."""
    classifier.eval()
    batches = [classifier(as_video(clips[k : k + 20])) for k in range(0, len(clips), 20)]
    logits = [torch.cat([batch[question] for batch in batches]) for question in QUESTIONS]
    classifier.train()
    right: dict[str, list[float]] = {}
    for (_, _, name), values, own in zip(QUESTIONS, logits, answers.T, strict=True):
        hits = (values.argmax(1) == own)[own >= 0]
        right.setdefault(name, []).extend(hits.float().tolist())
    return {name: round(float(np.mean(hits)), 3) for name, hits in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--reconstructed", type=int, default=1000, help="clips that also come through the autoencoder")
    parser.add_argument("--fresh", type=int, default=200, help="clips to measure on")
    parser.add_argument("--from", dest="start", metavar="FILE", help="the weights to go on from")
    options = parser.parse_args()
    folder = OUT / "classifier"
    folder.mkdir(parents=True, exist_ok=True)
    data = [Renders("clips", options.reconstructed), Renders("stills", 2 * options.reconstructed)]
    scenes = [sample_scene(Random(EVALUATION_SEED + k)) for k in range(options.fresh)]
    fresh = np.stack([render_with_owners(scene, FRAMES) for scene in scenes])
    counts = [np.bincount(clip[..., 3].ravel(), minlength=7)[1:] for clip in fresh]
    wanted = torch.tensor([scene_labels(s, visible) for s, visible in zip(scenes, counts, strict=True)])
    sets = {"renders": fresh[..., :3], "autoencoded": autoencode(fresh[..., :3])}
    classifier, autocast = SceneClassifier().train(), choose_device()[1]
    if options.start:
        classifier.load_state_dict(load_file(options.start))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=options.lr, weight_decay=0.02)
    clock, step, saved_at, running = TrainingClock(options.minutes, fall=0.8), 0, 0.0, 0.0
    path = folder / "state.pt"
    if path.exists():
        state = torch.load(path)
        classifier.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        clock.before, step = state["minutes"], state["step"]
    rng = np.random.default_rng(step)
    torch.manual_seed(step)
    while True:
        if clock.elapsed - saved_at > 4 or clock.done >= 1:
            saved_at = clock.elapsed
            states = {"model": classifier.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(path, **states, minutes=saved_at, step=step)
            line = {"minutes": round(saved_at, 1), "step": step, "loss": round(running, 3)}
            print(json.dumps(line | evaluate(classifier, sets["renders"], wanted)), flush=True)
        if clock.done >= 1:
            break
        video, answers = data[step % 2].batch(rng, options.batch * (4 if step % 2 else 1))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * clock.factor(step)
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            logits = classifier(degrade(video))
        loss = compute_loss(logits, answers)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 5.0)
        optimizer.step()
        running += (float(loss.detach()) - running) * (0.02 if step else 1.0)
        step += 1
    save_file(classifier.state_dict(), folder / WEIGHTS_FILE)
    print(json.dumps({name: evaluate(classifier, clips, wanted) for name, clips in sets.items()}))


if __name__ == "__main__":
    main()
