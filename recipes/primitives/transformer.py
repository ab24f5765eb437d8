"""Step 4: train the text encoder on captions, then the transformer on the latents.

    python -m recipes.primitives.transformer --minutes 90              (a CPU)
    python -m recipes.primitives.transformer --size large --minutes 20 --batch 256     (a GPU)

v-prediction on CogVideoX-5b's schedule, stratified timesteps, 10 % of the prompts dropped, a new wording of
the caption at every visit, averaged weights; a probe two thirds through the transformer predicts the attributes of
the object at each token; clips and (twice as many) stills, their first frames, alternate. The text encoder is trained
first, to predict what every word refers to, and then frozen, as CogVideoX's is. Muon trains the blocks' matrices,
AdamW the rest.
Resumes from out/transformer/state.pt; without one, and with `--from-model`, from the committed weights.
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
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from recipes.primitives.diffusion import (
    TokenProbe,
    new_scheduler,
    object_weight,
    optimizers,
    sample_timesteps,
    start_as_identity,
)
from recipes.primitives.training import (
    MODEL,
    OUT,
    AveragedModel,
    TrainingClock,
    autoencoder_folder,
    batches,
    choose_device,
    gather_clips,
    load_shards,
    save_state,
    write_sheet,
)
from v2edit.primitives.captions import WORDS, Wording, caption, describe_object, sample_wording
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import CAMERAS, COLOURS, FLOORS, MOTIONS, PLACES, SHAPES, SIZES, SKIES, Scene, sample_scene

TEXT_LENGTH = 40
DROPPED = 0.1
LAYERS = {"small": 6, "large": 12}
SHEET_SEEDS = range(1_000_000_000, 1_000_000_008)
ATTRIBUTES = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES, "place": tuple(PLACES),
              "motion": MOTIONS}  # fmt: skip


def new_tokenizer() -> T5Tokenizer:
    """Build a tokenizer with one token per word of the grammar; other words split into letters."""
    phrases = [w for words in WORDS.values() for w in words] + [*COLOURS, *FLOORS, *SKIES]
    words = sorted(
        {word for phrase in phrases for word in phrase.split()} | {"a", "and", "sky", "under", "nothing", "stands"}
    )
    letters = [chr(c) for c in range(33, 127)]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    scores += [(f"▁{word}", -1.0) for word in words] + [(letter, -4.0) for letter in letters]
    return T5Tokenizer(vocab=list(dict(scores).items()), extra_ids=0, model_max_length=TEXT_LENGTH)


def new_text_encoder(vocabulary: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=128, d_kv=32, num_heads=4, d_ff=256, num_layers=2, num_decoder_layers=0,
                 feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1)
    )  # fmt: skip


def new_transformer(layers: int, channels: int) -> CogVideoXTransformer3DModel:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=8,
        attention_head_dim=32,
        in_channels=channels,
        out_channels=channels,
        time_embed_dim=128,
        text_embed_dim=128,
        num_layers=layers,
        sample_width=16,
        sample_height=16,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=TEXT_LENGTH,
        use_rotary_positional_embeddings=True,
    )
    return start_as_identity(transformer)


class TextObjective(nn.Module):
    """Training objective in place of pretraining the text encoder: each token's embedding predicts its word and every
    attribute of the object that its phrase describes.

    With the diffusion loss alone, the encoder has no reason to separate words before the transformer uses them, and
    the transformer cannot use words that look alike: after 115,000 clips "green" and "orange" were still nearly one
    point, and with both losses at once it never learnt which of two objects a word describes (270,000 samples, every
    attribute a coin toss between the two). Trained first and alone, it is always right after 200 batches.
    Logits are cosines at a fixed scale, so that large weights cannot make up for small differences.
    """

    SCALE = 16.0

    def __init__(self, vocabulary: int, width: int = 128) -> None:
        super().__init__()
        sizes = {"word": vocabulary, **{field: len(values) for field, values in ATTRIBUTES.items()}}
        self.heads = nn.ParameterDict({k: nn.Parameter(torch.randn(n, width)) for k, n in sizes.items()})

    def forward(self, text: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of text [B, L, D], ids [B, L] and labels int64 [B, L, fields], -1 for tokens of no object."""
        text = F.normalize(text, dim=-1)

        def loss(field: str, right: Tensor) -> Tensor:
            logits = self.SCALE * text @ F.normalize(self.heads[field], dim=-1).T
            return F.cross_entropy(logits.flatten(0, 1), right.flatten(), ignore_index=-1)

        questions = [loss(field, labels[..., k]) for k, field in enumerate(ATTRIBUTES)]
        return loss("word", ids.masked_fill(ids == 0, -1)) + torch.stack(questions).mean()

    @staticmethod
    def labels(scene: Scene, wording: Wording, text: str, offsets: list[tuple[int, int]]) -> list[list[int]]:
        """Return for each token of a caption (by its offsets) the attributes of the object that it describes."""
        rows = [[-1] * len(ATTRIBUTES) for _ in offsets]
        for obj in scene.objects:
            phrase = describe_object(obj, wording)
            start = text.index(phrase)
            answers = [values.index(getattr(obj, field)) for field, values in ATTRIBUTES.items()]
            for k, (a, b) in enumerate(offsets):
                if start <= a < b <= start + len(phrase):
                    rows[k] = answers
        return rows


class Probe(TokenProbe):
    """What is asked at each video token: whether an object covers it, that object's size, colour, shape,
    place and motion, and how the camera moves."""

    FIELDS: ClassVar = {"present": ("no", "yes"), "camera": CAMERAS, **ATTRIBUTES}
    MOVING = ("camera", "motion")  # not visible in a still

    def __init__(self, width: int = 256) -> None:
        super().__init__(self.FIELDS, width)

    @classmethod
    def answers(cls, scenes: list[Scene], owners: np.ndarray) -> dict[str, Tensor]:
        """Return the labels of each field for owners [B, F, h, w], the object at each token, -1 for none."""
        owner = torch.from_numpy(owners).long().flatten(1)
        fields = [field for field in cls.FIELDS if owners.shape[1] > 1 or field not in cls.MOVING]
        labels = {"present": (owner >= 0).long()}
        if "camera" in fields:
            labels["camera"] = torch.tensor([CAMERAS.index(s.camera) for s in scenes])[:, None].expand_as(owner)
        for field in (f for f in ATTRIBUTES if f in fields):
            table = [[ATTRIBUTES[field].index(getattr(o, field)) for o in s.objects] + [0] * (2 - len(s.objects)) + [-1]
                     for s in scenes]  # fmt: skip
            labels[field] = torch.tensor(table).gather(1, owner.where(owner >= 0, 2))
        return labels


def token_owners(scenes: list[Scene], path: Path) -> np.ndarray:
    """Return the object that covers most of each token, int8 [clips, F, 8, 8], -1 below a quarter. Rendered once (a
    minute) and cached at `path`."""
    if not path.exists():
        owners = []
        for scene in scenes:
            cover = render_clip(scene, 9, 8, 8, samples=4).coverage  # [objects, T, 8, 8]
            late = cover[:, 1:].reshape(len(cover), 2, 4, 8, 8).mean(2)  # a causal latent: one frame, then four each
            cover = np.concatenate([cover[:, :1], late], 1)
            owners.append(np.where(cover.max(0) >= 0.25, cover.argmax(0), -1).astype(np.int8))
        np.save(path, np.stack(owners))
    return np.load(path)


def caption_ids(scenes: list[Scene], indices: np.ndarray, tokenizer: T5Tokenizer, rng: Random) -> tuple[Tensor, Tensor]:
    """Return token ids [B, L] of a caption of each scene in a random wording, some dropped, and the text objective's
    labels."""
    wordings = [None if rng.random() < DROPPED else sample_wording(rng) for _ in indices]
    texts = ["" if w is None else caption(scenes[i], w) for i, w in zip(indices, wordings, strict=True)]
    tokens = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt",
                       return_offsets_mapping=True)  # fmt: skip
    labels = [
        TextObjective.labels(scenes[i] if w else Scene((), "", ""), w or Wording(), text, offsets.tolist())
        for i, w, text, offsets in zip(indices, wordings, texts, tokens.offset_mapping, strict=True)
    ]
    return tokens.input_ids, torch.tensor(labels)


def train_text_encoder(tokenizer: T5Tokenizer, scenes: list[Scene], batches_: int = 600) -> T5EncoderModel:
    """Train a text encoder by `TextObjective` (two minutes on a CPU)."""
    encoder, objective = new_text_encoder(len(tokenizer)), TextObjective(len(tokenizer))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], betas=(0.9, 0.98), weight_decay=0.0)
    rng, words, loss = np.random.default_rng(), Random(), torch.zeros(())
    for step in range(batches_):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * min(1.0, (batches_ - step) / (0.5 * batches_))
        ids, labels = caption_ids(scenes, rng.integers(0, len(scenes), 128), tokenizer, words)
        loss = objective(encoder(ids)[0], ids, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
    print(json.dumps({"objective": round(loss.item(), 4)}), flush=True)
    return encoder.eval().requires_grad_(False)


def object_share(latent_frames: int) -> np.ndarray:
    """Return the largest object coverage of a pixel under each latent, float16 [clips, F, 1, h, w]."""
    parts = []
    for clips in load_shards(OUT / "clips"):
        cover = clips[..., 3].reshape(*clips.shape[:2], 16, 4, 16, 4).max((3, 5))  # [1000, T, h, w]
        first, rest = cover[:, :1], cover[:, 1:]  # a causal latent: one frame, then four each
        parts.append(np.concatenate([first, rest.reshape(len(rest), latent_frames - 1, 4, 16, 16).max(2)], 1) / 255)
    return np.concatenate(parts).astype(np.float16)[:, :, None]


@torch.no_grad()
def write_samples(pipeline: CogVideoXPipeline, path: Path) -> None:
    """Write a sheet of clips generated from prompts, and the prompts beside it."""
    pipeline.set_progress_bar_config(disable=True)
    prompts = [caption(sample_scene(Random(seed))) for seed in SHEET_SEEDS]
    clips = pipeline(
        prompts, height=64, width=64, num_frames=9, num_inference_steps=25, guidance_scale=5.0, output_type="np",
        max_sequence_length=TEXT_LENGTH, generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    write_sheet([(clip[::2] * 255).round().astype(np.uint8) for clip in clips], path)
    path.with_suffix(".txt").write_text("\n".join(prompts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--size", choices=tuple(LAYERS), default="small")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--look", type=float, default=8, help="minutes between sample sheets")
    parser.add_argument("--from-model", action="store_true")
    options = parser.parse_args()
    folder = OUT / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    device, autocast = choose_device()
    rng, words = np.random.default_rng(time.time_ns()), Random()
    shards = load_shards(OUT / "latents")
    count, channels = len(shards) * len(shards[0]), shards[0].shape[2]
    objects = object_share(shards[0].shape[1])
    scenes = [sample_scene(Random(seed)) for seed in range(count)]
    owners = token_owners(scenes, OUT / "owners.npy")
    vae = AutoencoderKLCogVideoX.from_pretrained(autoencoder_folder()).to(device).eval()
    tokenizer = new_tokenizer()
    if options.from_model:
        encoder = T5EncoderModel.from_pretrained(MODEL / "text_encoder", dtype=torch.float32)
        transformer = CogVideoXTransformer3DModel.from_pretrained(MODEL / "transformer", dtype=torch.float32)
    else:
        transformer = new_transformer(LAYERS[options.size], channels)
        resuming = (folder / "state.pt").exists()
        encoder = new_text_encoder(len(tokenizer)) if resuming else train_text_encoder(tokenizer, scenes)
    encoder, transformer = encoder.to(device).eval(), transformer.to(device).train()
    averaged, probe = AveragedModel(transformer, 0.997), Probe().to(device)
    probe.attach(transformer)
    optimizer_list = optimizers(transformer, probe, options.lr)
    scheduler = new_scheduler()
    alphas = scheduler.alphas_cumprod.float().to(device)
    pipeline = CogVideoXPipeline(tokenizer, encoder, vae, averaged.model, scheduler)
    rotary = pipeline._prepare_rotary_positional_embeddings(64, 64, shards[0].shape[1], device)
    clock, step, seen = TrainingClock(options.minutes, fall=0.2), 0, 0
    parts = {"text_encoder": encoder, "model": transformer, "averaged": averaged.model, "probe": probe}
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", map_location=device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        for optimizer, saved in zip(optimizer_list, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        clock.before, step, seen = state["minutes"], state["step"], state["seen"]
    sampled_at, saved_at, running, probe_loss, colour_accuracy = clock.elapsed, clock.elapsed, 1.0, 1.0, 0.0
    torch.manual_seed(step)
    # Which of two objects a word describes is learnt last; clips of two count three times.
    pool = np.array([k for k, scene in enumerate(scenes) for _ in range(3 if len(scene.objects) == 2 else 1)])
    clips, stills = (batches(rng, pool, size) for size in (options.batch, 2 * options.batch))
    while True:
        if clock.elapsed - saved_at > 3 or clock.done >= 1:
            saved_at = clock.elapsed
            line = {"minutes": saved_at, "loss": running, "probe": probe_loss, "colour accuracy": colour_accuracy}
            print(json.dumps({"step": step, "seen": seen} | {k: round(v, 4) for k, v in line.items()}), flush=True)
            states = {name: part.state_dict() for name, part in parts.items()}
            states["optimizers"] = [optimizer.state_dict() for optimizer in optimizer_list]
            save_state(folder / "state.pt", **states, minutes=saved_at, step=step, seen=seen)
        if clock.elapsed - sampled_at > options.look or clock.done >= 1:
            sampled_at = clock.elapsed
            write_samples(pipeline, folder / f"sheet-{seen:08d}.png")
        if clock.done >= 1:
            break
        # A still costs less than half of a clip and teaches all words but those of motion.
        frames = 1 if step % 2 else shards[0].shape[1]
        indices = next(stills if frames == 1 else clips)
        x0 = torch.from_numpy(gather_clips(shards, indices)[:, :frames]).to(device).float()
        ids = caption_ids(scenes, indices, tokenizer, words)[0].to(device)
        t = sample_timesteps(len(x0)).to(device)
        a, s = (x.sqrt().view(-1, 1, 1, 1, 1) for x in (alphas[t], 1 - alphas[t]))
        eps = torch.randn_like(x0)
        for optimizer in optimizer_list:
            for group in optimizer.param_groups:
                group["lr"] = options.lr * clock.factor(step)
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            positions = tuple(r[: frames * 64] for r in rotary)
            with torch.no_grad():
                text = encoder(ids)[0]
            noisy = a * x0 + s * eps
            out = transformer(noisy, text, t, image_rotary_emb=positions, return_dict=False)[0]
        weight = 1 + object_weight(clock.done) * torch.from_numpy(objects[indices, :frames]).to(device).float()
        loss = (weight * (out.float() - (a * eps - s * x0)).square()).mean()
        answers = Probe.answers([scenes[i] for i in indices], owners[indices, :frames])
        probed, accuracy = probe({field: answer.to(device) for field, answer in answers.items()})
        for optimizer in optimizer_list:
            optimizer.zero_grad(set_to_none=True)
        (loss + 0.05 * probed).backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for optimizer in optimizer_list:
            optimizer.step()
        averaged.update(transformer, step)
        running += (float(loss.detach()) - running) * 0.01
        probe_loss += (float(probed.detach()) - probe_loss) * 0.01
        colour_accuracy += (accuracy.get("colour", colour_accuracy) - colour_accuracy) * 0.01
        step, seen = step + 1, seen + len(x0)


if __name__ == "__main__":
    main()
