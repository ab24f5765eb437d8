"""How well the transformer denoises, level by level: what progress of a training is measured by.

    python -m recipes.primitives.denoising [FOLDER ...]

The mean squared error of v (as in training, unweighted) on clips that are never trained on, with the same noise for
every transformer, so that small differences show: a row of each, by timestep; of 200 and 500 also of the latents under
objects and of the others. Without a FOLDER, of the transformer that ships and of
the average of out/transformer/state.pt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from recipes.primitives.clips import EVALUATION_SEED, FRAMES, HEIGHT, WIDTH, render_with_owners
from recipes.primitives.diffusion import new_scheduler
from recipes.primitives.encode import encode
from recipes.primitives.export import load_transformer
from recipes.primitives.text import sample_caption, tokenise
from recipes.primitives.training import OUT, PACKAGE, choose_device, find_trained
from recipes.primitives.transformer import covered_latents, new_transformer
from v2edit.primitives.scene import sample_scene

TIMESTEPS, BY_REGION = (100, 200, 350, 500, 700, 850, 999), (200, 500)
FROM = EVALUATION_SEED + 100_000  # of the scenes
AT_ONCE = 8


class FreshClips:
    """Clips that are never trained on: latents [N, F, C, h, w], where objects are [N, F, 1, h, w], and captions that
    name what they can."""

    def __init__(self, count: int) -> None:
        scenes = [sample_scene(Random(FROM + k)) for k in range(count)]
        rendered = np.stack([render_with_owners(scene, FRAMES) for scene in scenes])
        vae = AutoencoderKLCogVideoX.from_pretrained(find_trained("vae")).eval()
        tokenizer = T5Tokenizer.from_pretrained(find_trained("tokenizer"))
        encoder = T5EncoderModel.from_pretrained(find_trained("text_encoder"), dtype=torch.float32).eval()
        ids, _ = tokenise(tokenizer, [sample_caption(Random(k), scene, 0.5)[0] for k, scene in enumerate(scenes)])
        self.text = encoder(ids)[0]
        self.latents = torch.cat([encode(vae, rendered[k : k + 4, ..., :3]) for k in range(0, count, 4)])
        self.objects = torch.from_numpy(covered_latents(rendered[..., 3]))
        transformer = new_transformer()  # for the positions' configuration alone
        pipeline = CogVideoXPipeline(tokenizer, encoder, vae, transformer, new_scheduler())
        frames = self.latents.shape[1]
        self.rotary = pipeline._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, frames, torch.device("cpu"))

    def errors(self, transformer: CogVideoXTransformer3DModel, timestep: int) -> Tensor:
        """Return the squared error of v at a timestep [N, F, 1, h, w], the mean over channels."""
        alpha = new_scheduler().alphas_cumprod[timestep].float()
        a, s = alpha.sqrt(), (1 - alpha).sqrt()
        eps = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(timestep))
        noisy, v, autocast = a * self.latents + s * eps, a * eps - s * self.latents, choose_device()[1]
        errors = []
        for k in range(0, len(noisy), AT_ONCE):
            own = slice(k, k + AT_ONCE)
            t = torch.full((len(noisy[own]),), timestep)
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                out = transformer(noisy[own], self.text[own], t, image_rotary_emb=self.rotary, return_dict=False)[0]
            errors.append((out.float() - v[own]).square().mean(2, keepdim=True))
        return torch.cat(errors)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=32, help="clips")
    options = parser.parse_args()
    folders = options.folders or [PACKAGE / "primitives/transformer"]
    named = {str(f): CogVideoXTransformer3DModel.from_pretrained(f, torch_dtype=torch.float32) for f in folders}
    if not options.folders and (OUT / "transformer/state.pt").exists():
        transformer, seen = load_transformer()
        named[f"after {seen:,} samples more"] = transformer
    clips = FreshClips(options.count)
    heads = [*map(str, TIMESTEPS), *(f"{t}, {where}" for t in BY_REGION for where in ("objects", "others"))]
    print(f"| timestep | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
    for name, transformer in named.items():
        errors = {t: clips.errors(transformer.eval(), t) for t in TIMESTEPS}
        cells = [float(errors[t].mean()) for t in TIMESTEPS]
        for t in BY_REGION:
            cells += [float(errors[t][clips.objects == on].mean()) for on in (1, 0)]
        print(f"| {name} | {' | '.join(f'{cell:.4f}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
