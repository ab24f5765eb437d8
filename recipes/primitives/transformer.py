"""Step 4: train the text encoder on captions, then the transformer on the latents.

    python recipes/primitives/transformer.py --minutes 90              (a CPU)
    python recipes/primitives/transformer.py --size large --minutes 20 --batch 256     (a GPU)

v-prediction on CogVideoX-5b's schedule, stratified timesteps, 10 % of the prompts dropped, a new wording of
the caption at every visit, averaged weights; the transformer is asked, two thirds through, what it is about to draw
where; clips and (twice as many) stills, their first frames, in turn. The text encoder learns before, to tell what
every word is about, and then stays as it is, as CogVideoX's does. The blocks' matrices go by Muon, the rest by AdamW.
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
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch import Tensor, nn
from training import (
    MODEL,
    OUT,
    Averaged,
    Clock,
    Muon,
    autoencoder,
    batches,
    device_and_autocast,
    load_shards,
    pick,
    save_state,
    sheet,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from v2edit.primitives.captions import WORDS, Wording, caption, describe_object, sample_wording
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import CAMERAS, COLOURS, FLOORS, MOTIONS, PLACES, SHAPES, SIZES, SKIES, Scene, sample_scene

TEXT_LENGTH = 40
DROPPED = 0.1
LAYERS = {"small": 6, "large": 12}
SHEET_SEEDS = range(1_000_000_000, 1_000_000_008)
ASKED = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES, "place": tuple(PLACES), "motion": MOTIONS}


def new_tokenizer() -> T5Tokenizer:
    """One token a word that the world's grammar uses; other words fall apart into letters."""
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
    model = CogVideoXTransformer3DModel(
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
    # Every block starts as the identity and the output as zero (diffusers starts them at random).
    silent = [model.norm_out.linear, model.proj_out]
    for block in model.transformer_blocks:
        silent += [block.norm1.linear, block.norm2.linear]
    for linear in silent:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return model


def new_scheduler() -> CogVideoXDPMScheduler:
    """CogVideoX-5b's published configuration."""
    return CogVideoXDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0, timestep_spacing="trailing",
    )  # fmt: skip


class Examination(nn.Module):
    """What a pretrained text encoder brings along, taught: each token's embedding has to tell which word it is and,
    of the object that its phrase is about, every attribute.

    Learning from the diffusion loss, an encoder has no reason to tell words apart before the transformer heeds them,
    nor the transformer to heed words that look alike: after 115,000 clips "green" and "orange" were still nearly one
    point, and with both losses at once it never learnt which of two objects a word is about (270,000 samples, every
    attribute a coin's toss between the two). Alone, a fresh one is always right after 200 batches.
    Cosines at a fixed scale, so that the answer is not had from a hair's breadth by large weights.
    """

    SCALE = 16.0

    def __init__(self, vocabulary: int, width: int = 128) -> None:
        super().__init__()
        sizes = {"word": vocabulary, **{field: len(values) for field, values in ASKED.items()}}
        self.heads = nn.ParameterDict({k: nn.Parameter(torch.randn(n, width)) for k, n in sizes.items()})

    def forward(self, text: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """text [B, L, D], ids [B, L], labels int64 [B, L, fields] with -1 for tokens that are about no object."""
        text = F.normalize(text, dim=-1)

        def loss(field: str, right: Tensor) -> Tensor:
            logits = self.SCALE * text @ F.normalize(self.heads[field], dim=-1).T
            return F.cross_entropy(logits.flatten(0, 1), right.flatten(), ignore_index=-1)

        questions = [loss(field, labels[..., k]) for k, field in enumerate(ASKED)]
        return loss("word", ids.masked_fill(ids == 0, -1)) + torch.stack(questions).mean()

    @staticmethod
    def labels(scene: Scene, wording: Wording, text: str, offsets: list[tuple[int, int]]) -> list[list[int]]:
        """Of each token of a caption (by its place in the text), the attributes of the object it speaks of."""
        rows = [[-1] * len(ASKED) for _ in offsets]
        for one in scene.objects:
            phrase = describe_object(one, wording)
            start = text.index(phrase)
            answers = [values.index(getattr(one, field)) for field, values in ASKED.items()]
            for k, (a, b) in enumerate(offsets):
                if start <= a < b <= start + len(phrase):
                    rows[k] = answers
        return rows


class Probe(nn.Module):
    """Asks the hidden video tokens in the middle of the transformer what will be seen at their place: whether an
    object is there, and if so, of what size, colour, shape, place and motion; and how the camera moves.

    The diffusion loss says the same only in a few latents of a few noisy pictures, and learns last which words belong
    to which of two objects. Told at the place itself, a network learns several times faster (REPA, Yu et al. 2025,
    with a pretrained encoder's features, where this world has the answers themselves).
    """

    FIELDS: ClassVar = {"there": ("no", "yes"), "camera": CAMERAS, **ASKED}
    MOVING = ("camera", "motion")  # what a still does not show

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({field: nn.Linear(width, len(values)) for field, values in self.FIELDS.items()})
        self.seen = torch.empty(0)

    def watch(self, transformer: CogVideoXTransformer3DModel) -> None:
        """From now on keeps the video tokens that leave the block two thirds through."""
        blocks = transformer.transformer_blocks
        blocks[len(blocks) * 2 // 3 - 1].register_forward_hook(
            lambda _module, _inputs, out: self.__setattr__("seen", out[0])
        )

    def forward(self, answers: dict[str, Tensor]) -> tuple[Tensor, float]:
        """The mean of all questions' cross-entropies, and how many objects' colours are told right (0..1).

        answers: of each field int64 [B, N], -1 where it is not asked."""
        hidden = self.norm(self.seen.float())
        losses, told = [], 0.0
        for field, right in answers.items():
            logits = self.heads[field](hidden).flatten(0, 1)
            losses.append(F.cross_entropy(logits, right.flatten(), ignore_index=-1))
            if field == "colour":
                asked = right.flatten() >= 0
                told = float((logits.argmax(-1) == right.flatten())[asked].float().mean())
        return torch.stack(losses).mean(), told

    @classmethod
    def answers(cls, scenes: list[Scene], owners: np.ndarray) -> dict[str, Tensor]:
        """owners [B, F, h, w]: the object at each token, -1 for none."""
        owner = torch.from_numpy(owners).long().flatten(1)
        fields = [field for field in cls.FIELDS if owners.shape[1] > 1 or field not in cls.MOVING]
        found = {"there": (owner >= 0).long()}
        if "camera" in fields:
            found["camera"] = torch.tensor([CAMERAS.index(s.camera) for s in scenes])[:, None].expand_as(owner)
        for field in (f for f in ASKED if f in fields):
            table = [[ASKED[field].index(getattr(o, field)) for o in s.objects] + [0] * (2 - len(s.objects)) + [-1]
                     for s in scenes]  # fmt: skip
            found[field] = torch.tensor(table).gather(1, owner.where(owner >= 0, 2))
        return found


def owners_of(scenes: list[Scene], path: Path) -> np.ndarray:
    """int8 [clips, F, 8, 8]: the object that fills the most of each token of the transformer, -1 below a quarter.
    Rendered once (a minute), kept at `path`."""
    if not path.exists():
        owners = []
        for scene in scenes:
            cover = render_clip(scene, 9, 8, 8, samples=4).coverage  # [objects, T, 8, 8]
            late = cover[:, 1:].reshape(len(cover), 2, 4, 8, 8).mean(2)  # a causal latent: one frame, then four each
            cover = np.concatenate([cover[:, :1], late], 1)
            owners.append(np.where(cover.max(0) >= 0.25, cover.argmax(0), -1).astype(np.int8))
        np.save(path, np.stack(owners))
    return np.load(path)


def captions_of(scenes: list[Scene], indices: np.ndarray, tokenizer: T5Tokenizer, rng: Random) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] of a caption of each scene in a random wording, some dropped, and the examination's labels."""
    wordings = [None if rng.random() < DROPPED else sample_wording(rng) for _ in indices]
    texts = ["" if w is None else caption(scenes[i], w) for i, w in zip(indices, wordings, strict=True)]
    tokens = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt",
                       return_offsets_mapping=True)  # fmt: skip
    labels = [
        Examination.labels(scenes[i] if w else Scene((), "", ""), w or Wording(), text, offsets.tolist())
        for i, w, text, offsets in zip(indices, wordings, texts, tokens.offset_mapping, strict=True)
    ]
    return tokens.input_ids, torch.tensor(labels)


def taught_text_encoder(tokenizer: T5Tokenizer, scenes: list[Scene], batches_: int = 600) -> T5EncoderModel:
    """A text encoder that passes the examination (two minutes of a CPU)."""
    encoder, examination = new_text_encoder(len(tokenizer)), Examination(len(tokenizer))
    stepper = torch.optim.AdamW([*encoder.parameters(), *examination.parameters()], betas=(0.9, 0.98), weight_decay=0.0)
    rng, words, loss = np.random.default_rng(), Random(), torch.zeros(())
    for step in range(batches_):
        for group in stepper.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * min(1.0, (batches_ - step) / (0.5 * batches_))
        ids, labels = captions_of(scenes, rng.integers(0, len(scenes), 128), tokenizer, words)
        loss = examination(encoder(ids)[0], ids, labels)
        stepper.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        stepper.step()
    print(json.dumps({"examination": round(loss.item(), 4)}), flush=True)
    return encoder.eval().requires_grad_(False)


def object_share(latent_frames: int) -> np.ndarray:
    """float16 [clips, F, 1, h, w]: the largest share of a pixel under each latent that objects fill."""
    parts = []
    for clips in load_shards(OUT / "clips"):
        cover = clips[..., 3].reshape(*clips.shape[:2], 16, 4, 16, 4).max((3, 5))  # [1000, T, h, w]
        first, rest = cover[:, :1], cover[:, 1:]  # a causal latent: one frame, then four each
        parts.append(np.concatenate([first, rest.reshape(len(rest), latent_frames - 1, 4, 16, 16).max(2)], 1) / 255)
    return np.concatenate(parts).astype(np.float16)[:, :, None]


def attention_to_objects(done: float) -> float:
    """How many times more a latent under an object counts: 4 at first, 0 for the last 7 % of the time.

    Objects are a few per cent of the frame, and a plain loss learns them long after the ground. The weight leans
    the network towards more object than there is where noise hides it, so it must be gone in the end.
    """
    return 4.0 * min(1.0, max(0.0, (0.93 - done) / 0.13))


def timesteps(count: int) -> Tensor:
    """int64 [B]: half of them anywhere, half where the prompt decides (from 500 of 1000 on an object's place, colour,
    shape and motion are resolved); stratified, one out of each of B equal parts."""
    u = (torch.rand(count) + torch.randperm(count)) / count
    anywhere = torch.rand(count) < 0.5
    return (torch.where(anywhere, u, 0.5 + 0.5 * u) * 1000).long()


def optimizers(transformer: CogVideoXTransformer3DModel, probe: Probe, lr: float) -> list[torch.optim.Optimizer]:
    named = transformer.transformer_blocks.named_parameters()
    matrices = [parameter for name, parameter in named if parameter.ndim == 2 and ".norm" not in name]
    inside = {id(parameter) for parameter in matrices}
    rest = [p for p in [*transformer.parameters(), *probe.parameters()] if id(p) not in inside]
    return [Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]


@torch.no_grad()
def look(pipeline: CogVideoXPipeline, path: Path) -> None:
    """A sheet of clips generated from prompts alone, and the prompts beside it."""
    pipeline.set_progress_bar_config(disable=True)
    prompts = [caption(sample_scene(Random(seed))) for seed in SHEET_SEEDS]
    clips = pipeline(
        prompts, height=64, width=64, num_frames=9, num_inference_steps=25, guidance_scale=5.0, output_type="np",
        max_sequence_length=TEXT_LENGTH, generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    sheet([(clip[::2] * 255).round().astype(np.uint8) for clip in clips], path)
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
    device, autocast = device_and_autocast()
    rng, words = np.random.default_rng(time.time_ns()), Random()
    shards = load_shards(OUT / "latents")
    count, channels = len(shards) * len(shards[0]), shards[0].shape[2]
    objects = object_share(shards[0].shape[1])
    scenes = [sample_scene(Random(seed)) for seed in range(count)]
    owners = owners_of(scenes, OUT / "owners.npy")
    vae = AutoencoderKLCogVideoX.from_pretrained(autoencoder()).to(device).eval()
    tokenizer = new_tokenizer()
    if options.from_model:
        encoder = T5EncoderModel.from_pretrained(MODEL / "text_encoder", dtype=torch.float32)
        transformer = CogVideoXTransformer3DModel.from_pretrained(MODEL / "transformer", dtype=torch.float32)
    else:
        transformer = new_transformer(LAYERS[options.size], channels)
        at_hand = (folder / "state.pt").exists()
        encoder = new_text_encoder(len(tokenizer)) if at_hand else taught_text_encoder(tokenizer, scenes)
    encoder, transformer = encoder.to(device).eval(), transformer.to(device).train()
    averaged, probe = Averaged(transformer, 0.997), Probe().to(device)
    probe.watch(transformer)
    steppers = optimizers(transformer, probe, options.lr)
    scheduler = new_scheduler()
    alphas = scheduler.alphas_cumprod.float().to(device)
    pipeline = CogVideoXPipeline(tokenizer, encoder, vae, averaged.model, scheduler)
    rotary = pipeline._prepare_rotary_positional_embeddings(64, 64, shards[0].shape[1], device)
    clock, step, seen = Clock(options.minutes, fall=0.2), 0, 0
    parts = {"text_encoder": encoder, "model": transformer, "averaged": averaged.model, "probe": probe}
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", map_location=device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        for stepper, saved in zip(steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(saved)
        clock.before, step, seen = state["minutes"], state["step"], state["seen"]
    looked, saved_at, running, unseen, told = clock.elapsed, clock.elapsed, 1.0, 1.0, 0.0
    torch.manual_seed(step)
    # Which of two objects a word is about is learned last; clips of two count three times.
    pool = np.array([k for k, scene in enumerate(scenes) for _ in range(3 if len(scene.objects) == 2 else 1)])
    clips, stills = (batches(rng, pool, size) for size in (options.batch, 2 * options.batch))
    while True:
        if clock.elapsed - saved_at > 3 or clock.done >= 1:
            saved_at = clock.elapsed
            line = {"minutes": saved_at, "loss": running, "probe": unseen, "colours told": told}
            print(json.dumps({"step": step, "seen": seen} | {k: round(v, 4) for k, v in line.items()}), flush=True)
            states = {name: part.state_dict() for name, part in parts.items()}
            states["optimizers"] = [stepper.state_dict() for stepper in steppers]
            save_state(folder / "state.pt", **states, minutes=saved_at, step=step, seen=seen)
        if clock.elapsed - looked > options.look or clock.done >= 1:
            looked = clock.elapsed
            look(pipeline, folder / f"sheet-{seen:08d}.png")
        if clock.done >= 1:
            break
        # A still costs less than half of a clip, teaches all words but those of motion, and is what a picture is.
        frames = 1 if step % 2 else shards[0].shape[1]
        indices = next(stills if frames == 1 else clips)
        x0 = torch.from_numpy(pick(shards, indices)[:, :frames]).to(device).float()
        ids = captions_of(scenes, indices, tokenizer, words)[0].to(device)
        t = timesteps(len(x0)).to(device)
        a, s = (x.sqrt().view(-1, 1, 1, 1, 1) for x in (alphas[t], 1 - alphas[t]))
        eps = torch.randn_like(x0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = options.lr * clock.factor(step)
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            positions = tuple(r[: frames * 64] for r in rotary)
            with torch.no_grad():
                text = encoder(ids)[0]
            noisy = a * x0 + s * eps
            out = transformer(noisy, text, t, image_rotary_emb=positions, return_dict=False)[0]
        weight = 1 + attention_to_objects(clock.done) * torch.from_numpy(objects[indices, :frames]).to(device).float()
        loss = (weight * (out.float() - (a * eps - s * x0)).square()).mean()
        answers = Probe.answers([scenes[i] for i in indices], owners[indices, :frames])
        drawn, right = probe({field: answer.to(device) for field, answer in answers.items()})
        for stepper in steppers:
            stepper.zero_grad(set_to_none=True)
        (loss + 0.05 * drawn).backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        averaged.update(transformer, step)
        running += (float(loss.detach()) - running) * 0.01
        unseen += (float(drawn.detach()) - unseen) * 0.01
        told += (right - told) * 0.01
        step, seen = step + 1, seen + len(x0)


if __name__ == "__main__":
    main()
