"""Step 5: export the averaged weights as the diffusers folder that ships with the package.

    python -m recipes.primitives.export

The transformer is stored in 16 bits (a quarter of a per mille of rounding, half the size), the rest in 32. The folder
is written beside the old one and then replaces it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline

from recipes.primitives.diffusion import new_scheduler
from recipes.primitives.training import MODEL, OUT, autoencoder_folder
from recipes.primitives.transformer import TEXT_LENGTH, new_text_encoder, new_tokenizer, new_transformer

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---
# primitives

A small text-to-video model of CogVideoX's architecture, trained from nothing on one made-up world: one or two balls,
cubes, cones and cylinders that stay, slide or hop on a floor under a sky, {size} x {size} pixels, {frames} frames. It
knows nothing else, and is no use for real videos. It exists so that V2Edit can be tried, tested and measured anywhere:
the true result of every edit in its world can be rendered.

```python
pipeline = CogVideoXPipeline.from_pretrained(folder)
pipeline("a big red ball on the left hops on a gray floor under a blue sky, the camera is still.",
         height={size}, width={size}, num_frames={frames}, guidance_scale=5.0, max_sequence_length={text})
```

`max_sequence_length={text}` matters: the model attends to its padding, and has seen no more of it than that.
Made by `recipes/primitives` ({seen:,} clips seen); what was tried is in `LOG.md` there.
"""


def replace_model(pipeline: CogVideoXPipeline, folder: Path, card: str = "") -> None:
    """Write a model, and its card if it has one, beside an old one, and put it in its place."""
    beside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.save_pretrained(beside)
    for config in beside.rglob("config.json"):  # drop local paths
        facts = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    if card:
        (beside / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    vae = AutoencoderKLCogVideoX.from_pretrained(autoencoder_folder())
    state = torch.load(OUT / "transformer/state.pt", map_location="cpu")
    layers = 1 + max(int(name.split(".")[1]) for name in state["averaged"] if name.startswith("transformer_blocks"))
    tokenizer = new_tokenizer()
    encoder, transformer = new_text_encoder(len(tokenizer)), new_transformer(layers, vae.config.latent_channels)
    encoder.load_state_dict(state["text_encoder"])
    transformer.load_state_dict(state["averaged"])
    pipeline = CogVideoXPipeline(tokenizer, encoder, vae, transformer, new_scheduler())
    pipeline.transformer.to(torch.float16)
    card = CARD.format(size=64, frames=9, text=TEXT_LENGTH, seen=state["seen"])
    replace_model(pipeline, MODEL, card)
    total = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    print(f"{MODEL}: {total / 1e6:.1f} MB, after {state['seen']:,} clips")


if __name__ == "__main__":
    main()
