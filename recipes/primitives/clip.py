"""Step 8: train the built-in CLIP (`v2edit.primitives.clip`) on rendered frames and captions of them.

    python -m recipes.primitives.clip --minutes 20

Pairs are a still, or every fourth step a random frame of a clip, and a caption that names some of its scene; half of
them mirrored. (Of a thousand clips alone the captions are learnt by heart.) Negatives are the other captions of the
batch and, for each frame, the same caption with one attribute changed (otherwise a CLIP need not learn attributes that
rarely tell captions apart). Frames are seen through the classifier's eyes, and the text tower is told beside the
contrast what each phrase says (`PhraseProbe`). Writes src/v2edit/weights/clip and prints how often frames prefer their
caption to those with one attribute changed.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTextConfig, CLIPTokenizer

from recipes.primitives.classifier import as_video, degrade, mirrored
from recipes.primitives.clip_probe import PhraseProbe, last_tokens
from recipes.primitives.clips import EVALUATION_SEED, HEIGHT, SHARDS, WIDTH, shard_scenes
from recipes.primitives.text import Phrase, phrases_of, sample_caption
from recipes.primitives.training import (
    OUT,
    AveragedModel,
    Muon,
    TrainingClock,
    batches,
    gather_clips,
    load_shards,
    save_state,
)
from v2edit.metrics.clip_score import WEIGHTS, ClipEncoder
from v2edit.primitives.captions import Named, caption
from v2edit.primitives.clip import PrimitivesClip
from v2edit.primitives.questions import COLOURS_ALONE
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import (
    COLOURS,
    FLOORS,
    LIGHTS,
    MATERIALS,
    SHAPES,
    SIZES,
    SKIES,
    STYLES,
    Scene,
    sample_scene,
)
from v2edit.video.stream import Frames

TEXT_LENGTH = 96  # tokens
OF_OBJECT = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "material": MATERIALS[1:]}
OF_SCENE = {"floor": tuple(FLOORS), "sky": tuple(SKIES), "light": tuple(LIGHTS), "style": STYLES[1:]}
SHAPE_WEIGHT = 4  # times as often: shapes are learnt last
PROBE_WEIGHT = 2.0  # of what is told phrase by phrase, in the loss


def new_clip() -> tuple[PrimitivesClip, CLIPProcessor]:
    rng = Random(0)
    texts = [sample_caption(rng, sample_scene(rng), 0.5)[0] for _ in range(5000)]
    tokenizer = CLIPTokenizer().train_new_from_iterator(texts, 400)
    tokenizer.model_max_length = TEXT_LENGTH
    images = CLIPImageProcessorPil(
        size={"height": HEIGHT, "width": WIDTH}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPTextConfig(
        hidden_size=128, intermediate_size=512, num_attention_heads=4, projection_dim=256, num_hidden_layers=2,
        vocab_size=len(tokenizer), max_position_embeddings=TEXT_LENGTH, **special,
    )  # fmt: skip
    return PrimitivesClip.new(config), CLIPProcessor(images, tokenizer)


def alternatives(scene: Scene, named: Named, rng: Random, shapes: int = 1) -> tuple[str, list[Scene]]:
    """Sample an attribute that a caption names and a frame shows, and return it with the scenes that differ in it
    alone, the original first; shapes are sampled `shapes` times as often as anything else."""
    fields: list[tuple[str, int | None]] = [(field, None) for field in OF_SCENE if field in named.scene]
    for k, names in enumerate(named.objects):
        if names is not None:
            fields += [(field, k) for field in OF_OBJECT if field in names] + [("shape", k)] * shapes
    if scene.style == "pencil":
        fields = [(field, k) for field, k in fields if field not in COLOURS_ALONE]
    field, index = rng.choice(fields)
    if index is None:
        values = [getattr(scene, field), *(v for v in OF_SCENE[field] if v != getattr(scene, field))]
        return field, [replace(scene, **{field: value}) for value in values]
    obj = scene.objects[index]
    values = [getattr(obj, field), *(v for v in OF_OBJECT[field] if v != getattr(obj, field))]
    changed = [replace(obj, **{field: value}) for value in values]
    # In the place of the original, for what is named of it.
    rest = scene.objects
    return field, [replace(scene, objects=(*rest[:index], one, *rest[index + 1 :])) for one in changed]


def contrast(images: Tensor, texts: Tensor, wrong: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of images [B, D] and texts [B, D]; wrong texts [B, D] are further negatives."""
    right = torch.arange(len(images))
    to_texts = scale * images @ torch.cat([texts, wrong]).T
    return (F.cross_entropy(to_texts, right) + F.cross_entropy(to_texts[:, : len(images)].T, right)) / 2


def evaluate(clip: ClipEncoder, fresh: list[tuple[Scene, Frames]]) -> dict[str, float]:
    """Return, for each attribute, how often frames of fresh clips prefer the right caption to its alternatives."""
    hits: dict[str, list[bool]] = {field: [] for field in (*OF_OBJECT, *OF_SCENE)}
    rng = Random(0)
    for scene, frames in fresh:
        images = clip.encode_images(frames).mean(0)
        for _ in range(3):
            _, named, wording = sample_caption(rng, scene, 1.0)
            field, scenes = alternatives(scene, named, rng)
            likeness = clip.encode_texts([caption(one, named, wording) for one in scenes]) @ images
            hits[field].append(int(likeness.argmax()) == 0)
    return {field: round(float(np.mean(values)), 3) for field, values in hits.items() if values}


class Pairs:
    """Frames of the rendered shards with captions of their scenes, as they are and mirrored."""

    def __init__(self, batch: int, seed: int) -> None:
        self.rng, self.words = np.random.default_rng(seed), Random(seed)
        self.shards = [load_shards(OUT / kind) for kind in SHARDS]
        found = [[s for path in sorted((OUT / kind).glob("*.npy")) for s in shard_scenes(kind, int(path.stem))]
                 for kind in SHARDS]  # fmt: skip
        self.scenes = [[(scene, mirrored(scene)) for scene in one] for one in found]
        self.drawn = [batches(self.rng, len(one), batch) for one in found]

    def draw(self, kind: int) -> tuple[Tensor, list[Scene]]:
        """Return frames of one kind, float [B, 1, 3, H, W], and their scenes."""
        indices = next(self.drawn[kind])
        clips, mirror = gather_clips(self.shards[kind], indices), self.rng.random(len(indices)) < 0.5
        frames = clips[np.arange(len(indices)), self.rng.integers(0, clips.shape[1], len(indices)), :, :, :3]
        frames = np.where(mirror[:, None, None, None], frames[:, :, ::-1], frames)
        scenes = [self.scenes[kind][k][int(turned)] for k, turned in zip(indices, mirror, strict=True)]
        return as_video(frames[:, None]), scenes

    def captions(self, scenes: list[Scene]) -> tuple[list[str], list[list[Phrase]]]:
        """Return a caption of each scene, then one of each with one attribute changed, and the phrases of all."""
        right, wrong = [], []
        for scene in scenes:
            text, named, wording = sample_caption(self.words, scene)
            other = self.words.choice(alternatives(scene, named, self.words, SHAPE_WEIGHT)[1][1:])
            right.append((text, phrases_of(scene, named, wording, text)))
            text = caption(other, named, wording)
            wrong.append((text, phrases_of(other, named, wording, text)))
        texts, phrases = zip(*right, *wrong, strict=True)
        return list(texts), list(phrases)


class ClipObjective(nn.Module):
    """The loss of a batch: the contrast's, and that of what each phrase says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.probe = nn.Parameter(torch.tensor(math.log(14.0))), PhraseProbe(width)

    def forward(self, model: PrimitivesClip, processor: CLIPProcessor, pairs: Pairs, kind: int) -> Tensor:
        video, scenes = pairs.draw(kind)
        texts, phrases = pairs.captions(scenes)
        tokens = processor.tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)  # pyright: ignore
        offsets = tokens.pop("offset_mapping").tolist()
        read = model.text(**tokens)
        images = F.normalize(model.get_image_features(degrade(video)[:, 0]), dim=-1)
        right, wrong = F.normalize(read.text_embeds, dim=-1).chunk(2)
        told = [last_tokens(one, own) for one, own in zip(phrases, offsets, strict=True)]
        rows = [k for k, (last, _) in enumerate(told) for _ in last]
        columns, labels = ([item for one in told for item in one[k]] for k in range(2))
        lessons = self.probe(read.last_hidden_state[rows, columns], torch.tensor(labels))
        return contrast(images, right, wrong, self.scale.exp().clamp(max=100)) + PROBE_WEIGHT * lessons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--from-model", action="store_true", help="start from the committed weights")
    options = parser.parse_args()
    unseen = [sample_scene(Random(seed)) for seed in range(EVALUATION_SEED, EVALUATION_SEED + 300)]
    fresh = [(scene, render_clip(scene, 3).frames) for scene in unseen]
    model, processor = new_clip()
    if options.from_model:  # with its tokenizer, which the weights depend on
        model, processor = PrimitivesClip.load(WEIGHTS), ClipEncoder.load().processor
    objective = ClipObjective(model.config.hidden_size)
    model.train()
    averaged = AveragedModel(model, 0.995)
    learnt = [p for p in [*model.parameters(), *objective.parameters()] if p.requires_grad]
    inside = [p for n, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and "layers" in n]
    rest = [p for p in learnt if all(p is not q for q in inside)]
    optimizers = [Muon(inside, lr=options.lr), torch.optim.AdamW(rest, lr=options.lr, weight_decay=0.0)]
    clock, step, saved_at, running = TrainingClock(options.minutes, fall=0.7), 0, 0.0, 0.0
    path = OUT / "clip.pt"
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        objective.load_state_dict(state["objective"])
        averaged.model.load_state_dict(state["averaged"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        clock.before, step = state["minutes"], state["step"]
    torch.manual_seed(step)
    pairs = Pairs(options.batch, step)
    while True:
        if clock.elapsed - saved_at > 3 or clock.done >= 1:
            saved_at = clock.elapsed
            save_state(path, model=model.state_dict(), objective=objective.state_dict(),
                       averaged=averaged.model.state_dict(), optimizers=[s.state_dict() for s in optimizers],
                       minutes=saved_at, step=step)  # fmt: skip
            line = {"minutes": round(saved_at, 1), "step": step, "loss": round(running, 3)}
            print(json.dumps(line | evaluate(ClipEncoder(averaged.model, processor), fresh[::3])), flush=True)
        if clock.done >= 1:
            break
        loss = objective(model, processor, pairs, kind=int(step % 4 > 0))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.lr * clock.factor(step)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        averaged.update(model, step)
        running += (float(loss.detach()) - running) * (0.02 if step else 1.0)
        step += 1
    averaged.model.save(WEIGHTS)
    processor.save_pretrained(WEIGHTS)
    print(WEIGHTS, json.dumps(evaluate(ClipEncoder.load(), fresh)))


if __name__ == "__main__":
    main()
