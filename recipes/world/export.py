"""Step 6: put the trained parts together as a diffusers folder.

    python -m recipes.world.export

Writes out/model: the transformer's averaged weights of out/transformer/state.pt (without one, the committed ones), and
the autoencoder, the text encoder and the tokenizer as `find_trained` finds them. The transformer and the autoencoder
are stored in 16 bits. With `--keep`, they, the transformer's probe and the classifier also take the place of those in
weights/, which training goes on from on another machine.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, T5Tokenizer

from recipes.primitives.diffusion import new_scheduler
from recipes.primitives.export import replace_model
from recipes.world.classifier import WEIGHTS_FILE
from recipes.world.clips import OUT, WEIGHTS, find_trained
from recipes.world.transformer import PROBE, new_transformer

MODEL = OUT / "model"


def load_transformer() -> tuple[CogVideoXTransformer3DModel, int | None]:
    """Return the transformer's averaged weights, and how many samples they have seen since the committed ones (None for
    those themselves)."""
    path = OUT / "transformer/state.pt"
    if not path.exists():
        return CogVideoXTransformer3DModel.from_pretrained(WEIGHTS / "transformer"), None
    state = torch.load(path, map_location="cpu")
    layers = 1 + max(int(name.split(".")[1]) for name in state["averaged"] if name.startswith("transformer_blocks"))
    transformer = new_transformer(layers)
    transformer.load_state_dict(state["averaged"])
    return transformer, state["seen"]


def export(folder: Path = MODEL) -> int | None:
    """Write the model beside an old one and put it in its place; return what `load_transformer` says of it."""
    transformer, seen = load_transformer()
    pipeline = CogVideoXPipeline(
        T5Tokenizer.from_pretrained(find_trained("tokenizer")),
        T5EncoderModel.from_pretrained(find_trained("text_encoder"), dtype=torch.float32),
        AutoencoderKLCogVideoX.from_pretrained(find_trained("vae")).half(),
        transformer.half(),
        new_scheduler(),
    )
    replace_model(pipeline, folder)
    return seen


def keep() -> None:
    """Put what was trained here in the place of the committed weights: the transformer's average, its probe, the text
    encoder, and the classifier, its matrices in 16 bits."""
    load_transformer()[0].half().save_pretrained(WEIGHTS / "transformer")
    save_file(torch.load(OUT / "transformer/state.pt", map_location="cpu")["probe"], WEIGHTS / PROBE)
    for part in ("text_encoder", "tokenizer"):
        if (trained := find_trained(part)) != WEIGHTS / part:
            shutil.copytree(trained, WEIGHTS / part, dirs_exist_ok=True)
    if (trained := OUT / "classifier" / WEIGHTS_FILE).exists():
        halved = {name: w.half() if w.ndim > 1 else w for name, w in load_file(trained).items()}
        save_file(halved, WEIGHTS / "classifier" / WEIGHTS_FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="as the weights to go on from, too")
    options = parser.parse_args()
    seen = export()
    if options.keep:
        keep()
    total = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    print(f"{MODEL}: {total / 1e6:.1f} MB, {'as committed' if seen is None else f'after {seen:,} more samples'}")


if __name__ == "__main__":
    main()
