"""Step 5: train the transformer on the latents.

    python -m recipes.primitives.transformer --minutes 600              (a CPU)
    python -m recipes.primitives.transformer --minutes 20 --batch 256   (a GPU)
    torchrun --nproc-per-node 2 -m recipes.primitives.transformer       (a process a core, which average their weights)

v-prediction on CogVideoX-5b's schedule, stratified timesteps, 10 % of the prompts dropped, a new caption at every visit
that names some of what is seen and leaves the rest out (at first half of them leave nothing out), averaged weights; a
probe two thirds through the transformer predicts the attributes of the object at each token, attention is told which
words are about it (`PhraseAttention`); clips and (twice as many) stills alternate. Muon trains the blocks'
matrices, AdamW the rest. Resumes from out/transformer/state.pt; without one, and with `--from DIR`, from the weights
there, as of src/v2edit/weights/primitives/transformer, and the committed probe. Shards that were encoded meanwhile join
at each checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random
from typing import ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from recipes.primitives.clips import FRAMES, HEIGHT, SHARDS, WIDTH, shard_scenes
from recipes.primitives.diffusion import (
    PhraseAttention,
    TokenProbe,
    new_scheduler,
    object_weight,
    optimizers,
    sample_timesteps,
    start_as_identity,
)
from recipes.primitives.text import DROPPED, phrases_of, sample_caption, token_owners, tokenise
from recipes.primitives.training import (
    OUT,
    WEIGHTS,
    AveragedModel,
    Replicas,
    TrainingClock,
    choose_device,
    find_trained,
    save_state,
    write_sheet,
)
from v2edit.primitives.captions import TEXT_LENGTH, caption, sample_named
from v2edit.primitives.scene import (
    CAMERAS,
    COLOURS,
    MATERIALS,
    MOTIONS,
    PATTERNS,
    PLACES,
    ROWS,
    SHAPES,
    SIZES,
    STYLES,
    Object,
    Scene,
    sample_scene,
)

Batch = tuple[Tensor, Tensor, Tensor, list[Scene]]
Rotary = tuple[Tensor, Tensor]  # cosines and sines of the positions [N, D]
TOKEN_ROWS, TOKEN_COLUMNS = HEIGHT // 8, WIDTH // 8
WINDOW = 4, 6  # rows and columns of tokens of a crop
CROPS_BELOW = 600  # the timesteps of crops: at more noise a crop does not show where it lies
PROBE = WEIGHTS / "probe.safetensors"  # of the transformer that ships
SHEET_SEEDS = range(1_000_000_000, 1_000_000_010)
# What the probe reads off each token under an object; hats and patterns as seen.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "place": tuple(PLACES), "row": tuple(ROWS),
    "material": MATERIALS, "hat": ("none", *COLOURS), "copies": ("1", "3"), "pattern": PATTERNS, "motion": MOTIONS,
}  # fmt: skip


def new_transformer(layers: int = 8, heads: int = 8) -> CogVideoXTransformer3DModel:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        time_embed_dim=128,
        text_embed_dim=128,
        num_layers=layers,
        sample_width=WIDTH // 4,
        sample_height=HEIGHT // 4,
        sample_frames=FRAMES,
        patch_size=2,
        max_text_seq_length=TEXT_LENGTH,
        use_rotary_positional_embeddings=True,
    )
    return start_as_identity(transformer)


def attribute_index(obj: Object, field: str) -> int:
    """Return which of a field's values an object has, -1 for the colour of gold, which shows its own."""
    if field == "colour" and obj.material == "gold":
        return -1
    value = {"hat": obj.hat or "none", "copies": str(obj.copies), "pattern": obj.pattern.kind}.get(field)
    return ATTRIBUTES[field].index(value or getattr(obj, field))


class Probe(TokenProbe):
    """What the transformer is asked at each video token: whether an object covers it and that object's attributes, and
    how the camera moves and what style the scene has."""

    SCENE: ClassVar = {"camera": CAMERAS, "style": STYLES}
    MOVING = ("camera", "motion")  # not visible in a still

    def __init__(self, width: int) -> None:
        super().__init__({"present": ("no", "yes"), **self.SCENE, **ATTRIBUTES}, width)

    @classmethod
    def answers(cls, scenes: list[Scene], owners: Tensor) -> dict[str, Tensor]:
        """Return the labels of each field for owners int64 [B, F, h, w], the object at each token, -1 for none."""
        moves, owner = owners.shape[1] > 1, owners.flatten(1)
        labels = {"present": (owner >= 0).long()}
        for field, values in cls.SCENE.items():
            if moves or field not in cls.MOVING:
                labels[field] = torch.tensor([values.index(getattr(s, field)) for s in scenes])[:, None].expand_as(
                    owner
                )
        for field in ATTRIBUTES:
            if moves or field not in cls.MOVING:
                # A balloon is the last of the owners and has no attributes.
                table = torch.full((len(scenes), 6), -1)
                for row, scene in zip(table, scenes, strict=True):
                    row[: len(scene.objects)] = torch.tensor([attribute_index(o, field) for o in scene.objects])
                labels[field] = table.gather(1, owner.where(owner >= 0, 5))
        return labels


class Latents:
    """The encoded shards of one kind, with their scenes and the object under each token and latent."""

    def __init__(self, kind: str) -> None:
        self.kind, self.latents, self.owners, self.objects = kind, [], [], []
        self.scenes: list[Scene] = []

    def load(self) -> None:
        """Load the shards that were encoded since the last time."""
        for path in sorted((OUT / "latents" / self.kind).glob("?????.npy"))[len(self.latents) :]:
            index = int(path.stem)
            self.latents.append(np.load(path, mmap_mode="r"))
            self.scenes += shard_scenes(self.kind, index)
            owners, objects = owners_of(OUT / self.kind / path.name)
            self.owners.append(owners)
            self.objects.append(objects)

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, indices: np.ndarray) -> Batch:
        """Return latents float32 [B, F, C, h, w], the share of objects [B, F, 1, h, w], owners [B, F, h', w'] and the
        scenes."""
        length = SHARDS[self.kind][0]
        parts = [
            torch.from_numpy(np.stack([arrays[i // length][i % length] for i in indices]))
            for arrays in (self.latents, self.objects, self.owners)
        ]
        return parts[0].float(), parts[1].float(), parts[2].long(), [self.scenes[i] for i in indices]

    def crops(self, rng: np.random.Generator, size: int, rotary: Rotary) -> tuple[Batch, Rotary]:
        """Return a batch of one window of clips, of four times as many those that show most of objects in it, and its
        positions."""
        top, left = (int(rng.integers(0, n - k + 1)) for n, k in zip((TOKEN_ROWS, TOKEN_COLUMNS), WINDOW, strict=True))
        latents, objects, owners, scenes = self.batch(rng.integers(0, len(self), 4 * size))
        objects = crop(objects, 2 * top, 2 * left, 2)
        best = objects.mean((1, 2, 3, 4)).argsort()[-size:]
        latents, owners = crop(latents[best], 2 * top, 2 * left, 2), crop(owners[best], top, left)
        grids = (r.unflatten(0, (-1, TOKEN_ROWS, TOKEN_COLUMNS)).movedim(3, 0) for r in rotary)
        cos, sin = (crop(grid, top, left).movedim(0, 3).flatten(0, 2) for grid in grids)
        return (latents, objects[best], owners, [scenes[k] for k in best]), (cos, sin)


def owners_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return for a shard the object that covers most of each token, int8 [clips, F, 8, 12], -1 below a quarter, and
    whether any covers a latent, bool [clips, F, 1, 16, 24]; cached beside it."""
    cache = OUT / "latents" / f"{path.parent.name}-{path.stem}-owners.npz"
    if not cache.exists():
        owner = np.load(path, mmap_mode="r")[..., 3]  # [clips, T, H, W]
        clips, frames = owner.shape[:2]
        late = (frames - 1) // 4  # a causal latent: one frame, then four each
        shares = []
        for index in range(1, 6):
            share = (
                (owner == index).reshape(clips, frames, TOKEN_ROWS, 8, TOKEN_COLUMNS, 8).mean((3, 5), dtype=np.float32)
            )
            later = share[:, 1:].reshape(clips, late, 4, TOKEN_ROWS, TOKEN_COLUMNS).mean(2)
            shares.append(np.concatenate([share[:, :1], later], 1))
        best = np.stack(shares)
        owners = np.where(best.max(0) >= 0.25, best.argmax(0), -1).astype(np.int8)
        np.savez_compressed(cache, owners=owners, objects=covered_latents(owner))
    stored = np.load(cache)
    return stored["owners"], stored["objects"]


def covered_latents(owner: np.ndarray) -> np.ndarray:
    """Return whether any object covers a latent, bool [clips, F, 1, 16, 24], of clips' owners [clips, T, H, W]."""
    clips, frames = owner.shape[:2]
    cover = np.any((owner > 0).reshape(clips, frames, HEIGHT // 4, 4, WIDTH // 4, 4), (3, 5))
    later = cover[:, 1:].reshape(clips, (frames - 1) // 4, 4, HEIGHT // 4, WIDTH // 4).any(2)
    return np.concatenate([cover[:, :1], later], 1)[:, :, None]


def crop(grid: Tensor, top: int, left: int, scale: int = 1) -> Tensor:
    """Return the window of a grid [..., rows, columns] at a row and a column, `scale` cells to a token."""
    return grid[..., top : top + scale * WINDOW[0], left : left + scale * WINDOW[1]]


def sample_words(scenes: list[Scene], tokenizer: T5Tokenizer, rng: Random, full: float) -> tuple[Tensor, Tensor]:
    """Return token ids [B, L] of a caption of each scene, some dropped, a share of `full` naming all they can; and the
    object that each token is about [B, L], -1 for none."""
    told = [None if rng.random() < DROPPED else sample_caption(rng, scene, full) for scene in scenes]
    ids, offsets = tokenise(tokenizer, ["" if one is None else one[0] for one in told])
    owners = [
        [-1] * TEXT_LENGTH if one is None else token_owners(phrases_of(scene, one[1], one[2], one[0]), places)
        for scene, one, places in zip(scenes, told, offsets, strict=True)
    ]
    return ids, torch.tensor(owners)


@torch.no_grad()
def write_samples(pipeline: CogVideoXPipeline, path: Path) -> None:
    """Write a sheet of clips generated from prompts, and the prompts beside it."""
    pipeline.set_progress_bar_config(disable=True)
    scenes = [sample_scene(Random(seed)) for seed in SHEET_SEEDS]
    prompts = [caption(s, sample_named(Random(k), s, rate=0.7)) for k, s in enumerate(scenes)]
    clips = pipeline(
        prompts, height=HEIGHT, width=WIDTH, num_frames=FRAMES, num_inference_steps=20, guidance_scale=4.0,
        output_type="np", max_sequence_length=TEXT_LENGTH, generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    write_sheet([(clip[::3] * 255).round().astype(np.uint8) for clip in clips], path)
    path.with_suffix(".txt").write_text("\n".join(prompts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.6e-3)
    parser.add_argument("--full", type=float, default=0.5, help="share of captions that name all, for 3/5 of the time")
    parser.add_argument("--probe", type=float, default=1.0, help="weight of the probe's loss")
    parser.add_argument("--attention", type=float, default=0.2, help="weight of the loss on attention to phrases")
    parser.add_argument("--look", type=float, default=15, help="minutes between sample sheets")
    parser.add_argument("--objects", type=float, default=4.0, help="additional weight of a latent under an object")
    parser.add_argument("--upper", type=float, default=0.5, help="share of timesteps drawn from the upper half")
    parser.add_argument("--crops", action="store_true", help="every third batch is of crops, at little noise")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--from", dest="start", metavar="DIR", help="the transformer to go on from")
    options = parser.parse_args()
    folder = OUT / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    replicas = Replicas()
    device, autocast = choose_device()
    rng, words = np.random.default_rng(time.time_ns()), Random()
    data = {kind: Latents(kind) for kind in SHARDS}
    for part in data.values():
        part.load()
    vae = AutoencoderKLCogVideoX.from_pretrained(find_trained("vae")).to(device).eval()
    tokenizer = T5Tokenizer.from_pretrained(find_trained("tokenizer"))
    encoder = T5EncoderModel.from_pretrained(find_trained("text_encoder"), dtype=torch.float32)
    encoder = encoder.to(device).eval().requires_grad_(False)
    transformer = (
        CogVideoXTransformer3DModel.from_pretrained(options.start, torch_dtype=torch.float32)
        if options.start
        else new_transformer(options.layers)
    )
    transformer = transformer.to(device).train()
    averaged, probe = AveragedModel(transformer, 0.998), Probe(transformer.norm_final.normalized_shape[0]).to(device)
    if options.start:
        probe.load_state_dict(load_file(PROBE))
    probe.attach(transformer)
    looking = PhraseAttention(transformer, device.type == "cpu" and autocast is not None)
    optimizer_list = optimizers(transformer, probe, options.lr)
    scheduler = new_scheduler()
    alphas = scheduler.alphas_cumprod.float().to(device)
    pipeline = CogVideoXPipeline(tokenizer, encoder, vae, averaged.model, scheduler)
    latent_frames = (FRAMES - 1) // 4 + 1
    rotary = pipeline._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, latent_frames, device)
    clock, step, seen = TrainingClock(options.minutes, fall=0.2), 0, 0
    parts = {"model": transformer, "averaged": averaged.model, "probe": probe}
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", map_location=device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        for optimizer, saved in zip(optimizer_list, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        clock.before, step, seen = state["minutes"], state["step"], state["seen"]
    sampled_at, saved_at, running, right = clock.elapsed, clock.elapsed, 1.0, {}
    torch.manual_seed(step + 1_000_003 * replicas.rank)
    while True:
        if clock.elapsed - saved_at > 4 or clock.done >= 1:
            saved_at = clock.elapsed
            for part in data.values():
                part.load()
            if replicas.rank == 0:
                line = {"minutes": round(saved_at, 1), "step": step, "seen": seen}
                line |= {"of": [len(d) for d in data.values()], "loss": round(running, 4)}
                print(json.dumps(line | {k: round(v, 3) for k, v in sorted(right.items())}), flush=True)
                states = {name: part.state_dict() for name, part in parts.items()}
                states["optimizers"] = [optimizer.state_dict() for optimizer in optimizer_list]
                save_state(folder / "state.pt", **states, minutes=saved_at, step=step, seen=seen)
        if replicas.rank == 0 and (clock.elapsed - sampled_at > options.look or clock.done >= 1):
            sampled_at = clock.elapsed
            write_samples(pipeline, folder / f"sheet-{seen:08d}.png")
        if replicas.rank == 0 and clock.done >= 1:
            replicas.close(transformer)
            break
        # A still costs less than half of a clip and teaches all words but those of motion; a crop, too, and shows more
        # of objects, which are the hard part at little noise.
        kind = ("clips", "stills", "crops")[step % (3 if options.crops else 2)]
        if kind == "crops":
            batch, positions = data["clips"].crops(rng, options.batch * 5 // 2, rotary)
            levels = 0.0, CROPS_BELOW
        else:
            size = options.batch * (2 if kind == "stills" else 1)
            batch = data[kind].batch(rng.integers(0, len(data[kind]), size))
            positions = tuple(r[: batch[0].shape[1] * TOKEN_ROWS * TOKEN_COLUMNS] for r in rotary)
            levels = options.upper, 1000
        x0, objects, owners, scenes = batch
        x0 = x0.to(device)
        # Words are learnt from what is named; what is not named takes over later.
        ids, about = sample_words(scenes, tokenizer, words, options.full * (clock.done < 0.6))
        ids = ids.to(device)
        t = sample_timesteps(len(x0), *levels).to(device)
        a, s = (x.sqrt().view(-1, 1, 1, 1, 1) for x in (alphas[t], 1 - alphas[t]))
        eps = torch.randn_like(x0)
        for optimizer in optimizer_list:
            for group in optimizer.param_groups:
                group["lr"] = options.lr * clock.factor(step)
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            with torch.no_grad():
                text = encoder(ids)[0]
            noisy = a * x0 + s * eps
            out = transformer(noisy, text, t, image_rotary_emb=positions, return_dict=False)[0]
        weight = 1 + object_weight(clock.done, options.objects) * objects.to(device)
        loss = (weight * (out.float() - (a * eps - s * x0)).square()).mean()
        probed, accuracy = probe({field: answer.to(device) for field, answer in Probe.answers(scenes, owners).items()})
        for optimizer in optimizer_list:
            optimizer.zero_grad(set_to_none=True)
        looked, accuracy["attention"] = looking.loss(about.to(device), owners.to(device))
        (loss + options.probe * probed + options.attention * looked).backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for optimizer in optimizer_list:
            optimizer.step()
        averaged.update(transformer, step)
        running += (float(loss.detach()) - running) * 0.01
        for field, share in accuracy.items():
            right[field] = right.get(field, share) + (share - right.get(field, share)) * 0.02
        step, seen = step + 1, seen + replicas.after_step(transformer, len(x0))


if __name__ == "__main__":
    main()
