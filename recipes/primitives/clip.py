"""Step 7: train a small CLIP on rendered frames and their captions.

    python -m recipes.primitives.clip --minutes 20

Pairs are a random frame of a clip and a random wording of its caption. Negatives are the other captions of the batch
and, for each frame, a caption with one attribute changed (otherwise a CLIP need not learn attributes that rarely tell
captions apart). Writes src/v2edit/weights/clip and prints how often frames prefer their caption to those with one
attribute changed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from recipes.primitives.classifier import degrade
from recipes.primitives.render import EVALUATION_SEED, FRAMES, SIZE
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
from v2edit.primitives.captions import Wording, caption, sample_wording
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import COLOURS, FLOORS, SHAPES, SIZES, SKIES, Scene, sample_scene

TEXT_LENGTH = 56
OF_OBJECT = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES)}
SHAPE_WEIGHT = 4  # times as often: shapes are learnt last
OF_SCENE = {"floor": tuple(FLOORS), "sky": tuple(SKIES)}


def new_clip() -> tuple[CLIPModel, CLIPProcessor]:
    rng = Random(0)
    texts = [caption(sample_scene(rng), sample_wording(rng)) for _ in range(5000)]
    tokenizer = CLIPTokenizer().train_new_from_iterator(texts, 400)
    tokenizer.model_max_length = TEXT_LENGTH
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    tower = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 128}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPConfig(
        text_config={**tower, **special, "vocab_size": len(tokenizer), "num_hidden_layers": 2,
                     "max_position_embeddings": TEXT_LENGTH},
        vision_config={**tower, "num_hidden_layers": 4, "image_size": SIZE, "patch_size": 8},
        projection_dim=128,
    )  # fmt: skip
    return CLIPModel(config), CLIPProcessor(images, tokenizer)


def alternatives(scene: Scene, rng: Random, shapes: int = 1) -> tuple[str, list[Scene]]:
    """Sample an attribute, and return it with the scenes that differ in it alone, the original first; the shape is
    sampled `shapes` times as often as any other."""
    field = rng.choice([*OF_OBJECT, *OF_SCENE, *["shape"] * (shapes - 1)])
    if field in OF_SCENE:
        values = [getattr(scene, field), *(v for v in OF_SCENE[field] if v != getattr(scene, field))]
        return field, [replace(scene, **{field: value}) for value in values]
    index = rng.randrange(len(scene.objects))
    now = getattr(scene.objects[index], field)
    return field, [scene.with_object(index, **{field: v}) for v in (now, *(v for v in OF_OBJECT[field] if v != now))]


def contrast(images: Tensor, texts: Tensor, wrong: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of images [B, D] and texts [B, D]; wrong texts [B, D] are further negatives."""
    right = torch.arange(len(images))
    to_texts = scale * images @ torch.cat([texts, wrong]).T
    return (F.cross_entropy(to_texts, right) + F.cross_entropy(to_texts[:, : len(images)].T, right)) / 2


def evaluate(clip: ClipEncoder, count: int = 200) -> dict[str, float]:
    """Return, for each attribute, how often the frames of fresh clips prefer the right caption to its alternatives."""
    hits: dict[str, list[bool]] = {field: [] for field in (*OF_OBJECT, *OF_SCENE)}
    rng = Random(0)
    for seed in range(EVALUATION_SEED, EVALUATION_SEED + count):
        scene = sample_scene(Random(seed))
        images = clip.encode_images(render_clip(scene, FRAMES, SIZE, SIZE).frames[::4]).mean(0)
        for _ in range(3):
            field, scenes = alternatives(scene, rng)
            likeness = clip.encode_texts([caption(one, Wording()) for one in scenes]) @ images
            hits[field].append(int(likeness.argmax()) == 0)
    return {field: round(float(np.mean(values)), 3) for field, values in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--from-model", action="store_true", help="start from the committed weights")
    options = parser.parse_args()
    shards = load_shards(OUT / "clips")
    count = len(shards) * len(shards[0])
    scenes = [sample_scene(Random(seed)) for seed in range(count)]
    model, processor = new_clip()
    if options.from_model:  # with its tokenizer, which the weights depend on
        model, processor = CLIPModel.from_pretrained(WEIGHTS).float(), ClipEncoder.load().processor
    model.train()
    averaged = AveragedModel(model, 0.998)
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = [p for p in model.parameters() if all(p is not q for q in inside)]
    optimizers = [Muon(inside, lr=options.lr), torch.optim.AdamW(rest, lr=options.lr, weight_decay=0.0)]
    clock, step, saved_at, running = TrainingClock(options.minutes, fall=0.7), 0, 0.0, 0.0
    path = OUT / "clip.pt"
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        averaged.model.load_state_dict(state["averaged"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        clock.before, step = state["minutes"], state["step"]
    rng, words = np.random.default_rng(step), Random(step)
    torch.manual_seed(step)
    for indices in batches(rng, count, options.batch):
        if clock.elapsed - saved_at > 3 or clock.done >= 1:
            saved_at = clock.elapsed
            save_state(path, model=model.state_dict(), averaged=averaged.model.state_dict(),
                       optimizers=[s.state_dict() for s in optimizers], minutes=saved_at, step=step)  # fmt: skip
            line = {"minutes": round(saved_at, 1), "step": step, "loss": round(running, 3)}
            print(json.dumps(line | evaluate(ClipEncoder(averaged.model, processor))), flush=True)
        if clock.done >= 1:
            break
        frames = gather_clips(shards, indices)[np.arange(len(indices)), rng.integers(0, FRAMES, len(indices)), :, :, :3]
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)[:, None].float() / 127.5 - 1
        right, wrong = [], []
        for index in indices:
            wording = sample_wording(words)
            others = alternatives(scenes[index], words, SHAPE_WEIGHT)[1][1:]
            right.append(caption(scenes[index], wording))
            wrong.append(caption(words.choice(others), wording))
        inputs = processor.tokenizer(right + wrong, padding=True, return_tensors="pt")
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.lr * clock.factor(step)
        images = F.normalize(model.get_image_features(degrade(video)[:, 0]).pooler_output, dim=-1)
        texts = F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)
        loss = contrast(images, *texts.chunk(2), scale=model.logit_scale.exp().clamp(max=100))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        averaged.update(model, step)
        running += (float(loss.detach()) - running) * (0.02 if step else 1.0)
        step += 1
    averaged.model.half().save_pretrained(WEIGHTS)
    processor.save_pretrained(WEIGHTS)
    print(WEIGHTS, json.dumps(evaluate(ClipEncoder.load(), 400)))


if __name__ == "__main__":
    main()
