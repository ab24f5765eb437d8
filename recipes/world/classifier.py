"""Step 5: train the classifier that reads a clip's scene, what captions name and what they never do.

    python -m recipes.world.classifier --minutes 60

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
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipes.primitives.classifier import degrade
from recipes.primitives.encode import encode
from recipes.primitives.training import TrainingClock, choose_device, save_state, to_frames
from recipes.world.clips import (
    EVALUATION_SEED,
    FRAMES,
    HEIGHT,
    OUT,
    SHARDS,
    WIDTH,
    find_trained,
    render_with_owners,
    shard_scenes,
)
from recipes.world.scene import (
    BACKDROPS,
    CAMERAS,
    COLOURS,
    FLOOR_PATTERNS,
    FLOORS,
    LIGHTS,
    MATERIALS,
    MOTIONS,
    PATTERNS,
    PLACES,
    ROWS,
    SHAPES,
    SIZES,
    SKIES,
    STYLES,
    Object,
    Scene,
    sample_scene,
)

WEIGHTS_FILE = "classifier.safetensors"
NONE = "none"
NEVER_CAPTIONED = ("pattern", "tone", "angle", "floor pattern", "backdrop", "light from")
ANGLES = ("0", "45", "90", "135")  # degrees, of stripes and checks: the nearest; checks repeat after 90
MIN_VISIBLE = 40  # pixels of all frames together, for an object to be asked for
OPPOSITE = {"left": "right", "right": "left"}


def angle_of(obj: Object) -> str | None:
    """Return the nearest of the angles to that of an object's stripes; None for other patterns."""
    if obj.pattern.kind != "stripes":
        return None
    return ANGLES[round(obj.pattern.angle / (math.pi / len(ANGLES))) % len(ANGLES)]


# Each field's possible answers, and how it is read off an object or a scene; None where it does not apply.
OF_OBJECT: dict[str, tuple[tuple[str, ...], Callable[[Object], str | None]]] = {
    "shape": ((NONE, *SHAPES), lambda o: o.shape),
    "colour": (tuple(COLOURS), lambda o: o.colour),
    "size": (tuple(SIZES), lambda o: o.size),
    "motion": (MOTIONS, lambda o: o.motion),
    "material": (MATERIALS, lambda o: o.material),
    "hat": ((NONE, *COLOURS), lambda o: o.hat or NONE),
    "copies": (("1", "3"), lambda o: str(o.copies)),
    "pattern": (PATTERNS, lambda o: o.pattern.kind if o.material == "matt" else None),
    "tone": (("white", "black"), lambda o: None if o.pattern.kind == "plain" else o.pattern.tone),
    "angle": (ANGLES, angle_of),
}
OF_SCENE: dict[str, tuple[tuple[str, ...], Callable[[Scene], str | None]]] = {
    "floor": (tuple(FLOORS), lambda s: s.floor),
    "sky": (tuple(SKIES), lambda s: s.sky),
    "camera": (CAMERAS, lambda s: s.camera),
    "light": (tuple(LIGHTS), lambda s: s.light),
    "style": (STYLES, lambda s: s.style),
    "balloon": ((NONE, *COLOURS), lambda s: s.balloon.colour if s.balloon else NONE),
    "floor pattern": (FLOOR_PATTERNS, lambda s: s.floor_pattern),
    "backdrop": (BACKDROPS, lambda s: s.backdrop.kind),
    "light from": (("left", "right"), lambda s: "right" if s.light_azimuth > 0 else "left"),
}
OF_CLIPS = ("motion", "camera")  # fields that a still does not show
COLOURS_ALONE = ("colour", "floor", "sky", "light")  # fields that a pencil drawing does not show
SLOTS = [(place, row) for place in PLACES for row in ROWS]
QUESTIONS: dict[tuple[str, str, str], tuple[str, ...]] = {
    **{(place, row, field): answers for place, row in SLOTS for field, (answers, _) in OF_OBJECT.items()},
    **{("", "", field): answers for field, (answers, _) in OF_SCENE.items()},
}


def scene_labels(scene: Scene, visible: np.ndarray) -> list[int]:
    """Return the index of the right answer to each question, -1 where there is none. `visible`: the pixels of each
    object, in the scene's order; one that is hidden is not asked for, nor for the colours of a pencil drawing."""
    slots = {(o.place, o.row): (o, pixels) for o, pixels in zip(scene.objects, visible, strict=False)}
    labels = []
    for (place, row, field), answers in QUESTIONS.items():
        if not place:
            answer = OF_SCENE[field][1](scene)
        elif (place, row) not in slots:
            answer = NONE if field == "shape" else None
        else:
            obj, pixels = slots[place, row]
            answer = OF_OBJECT[field][1](obj) if pixels >= MIN_VISIBLE else None
        if scene.style == "pencil" and (field in COLOURS_ALONE or (field in ("hat", "balloon") and answer != NONE)):
            answer = None
        labels.append(-1 if answer is None else answers.index(answer))
    return labels


def mirrored(scene: Scene) -> Scene:
    """Return the scene as a mirror shows it, left and right exchanged."""

    def turn(text: str) -> str:
        return " ".join(OPPOSITE.get(word, word) for word in text.split())

    objects = [
        replace(o, place=turn(o.place), motion=turn(o.motion), pattern=replace(o.pattern, angle=-o.pattern.angle))
        for o in scene.objects
    ]
    return replace(scene, objects=tuple(objects), camera=turn(scene.camera), light_azimuth=-scene.light_azimuth)


class Reader(nn.Module):
    """A block in which queries read a picture: attention to its cells, then a network of each query."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, cells: Tensor) -> Tensor:
        queries = queries + self.attention(self.before(queries), cells, cells, need_weights=False)[0]
        return queries + self.network(self.between(queries))


class WorldClassifier(nn.Module):
    """A network from frames to the logits of each question. In each frame (with its difference to the next) a query of
    each slot and four of the scene read cells of 8 x 8 pixels; what they read in all frames answers the questions. All
    slots have the same answering network, so that a shape is learnt wherever it stands; it also hears what the scene's
    queries read, as a motion is one against the camera's. Where the light comes from is the slots' mean: each object's
    shading and shadow tell it, and the scene's queries alone had not begun to learn it."""

    OF_SCENE = 4  # queries
    LIGHT_FROM = "", "", "light from"  # the last of the questions

    def __init__(self, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        sizes, layers = [6, width, 2 * width, 4 * width], []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.frame = nn.Sequential(*layers, nn.Conv2d(sizes[-1], 128, 1))
        self.places = nn.Parameter(0.5 * torch.randn(HEIGHT // 8 * (WIDTH // 8), 128))
        self.queries = nn.Parameter(0.5 * torch.randn(len(SLOTS) + self.OF_SCENE, 128))
        self.readers = nn.ModuleList(Reader(128) for _ in range(depth))
        self.about_scene = nn.Linear(128 * self.OF_SCENE, 128)
        of_slot = sum(len(answers) for answers, _ in OF_OBJECT.values())
        of_light = len(QUESTIONS[self.LIGHT_FROM])
        of_scene = sum(len(answers) for answers, _ in OF_SCENE.values()) - of_light
        self.slot, self.light = (self._answering(FRAMES * 256, outputs) for outputs in (of_slot, of_light))
        self.scene = self._answering(FRAMES * 128 * self.OF_SCENE, of_scene)

    @staticmethod
    def _answering(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, 384), nn.GELU(), nn.Linear(384, outputs))

    def forward(self, clips: Tensor) -> dict[tuple[str, str, str], Tensor]:
        """Map clips, float [B, T, 3, H, W] in -1..1, or stills (T = 1), to the logits [B, K] of each question."""
        change = (F.pad(clips.diff(dim=1), (0, 0, 0, 0, 0, 0, 0, 1)) * 8).clamp(-1, 1)
        inputs = torch.cat([clips, change], dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        cells = self.frame(inputs).flatten(2).transpose(1, 2) + self.places
        queries = self.queries.expand(len(cells), -1, -1)
        for reader in self.readers:
            queries = reader(queries, cells)
        seen = queries.unflatten(0, clips.shape[:2]).expand(-1, FRAMES, -1, -1).transpose(1, 2)  # [B, queries, T, 128]
        slots, scene = seen[:, : len(SLOTS)], seen[:, len(SLOTS) :]
        heard = self.about_scene(scene.transpose(1, 2).flatten(2))[:, None].expand_as(slots)
        slots = torch.cat([slots, heard], dim=-1).flatten(2)
        parts = self.slot(slots).flatten(1), self.scene(scene.flatten(1)), self.light(slots).mean(1)
        sizes = [len(answers) for answers in QUESTIONS.values()]
        return dict(zip(QUESTIONS, torch.cat(parts, dim=1).float().split(sizes, dim=1), strict=True))


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


def as_video(clips: np.ndarray) -> Tensor:
    return torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


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
def evaluate(classifier: WorldClassifier, clips: np.ndarray, answers: Tensor) -> dict[str, float]:
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
    classifier, autocast = WorldClassifier().train(), choose_device()[1]
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
