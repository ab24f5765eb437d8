"""Step 7: put the trained parts together as a diffusers folder, and let it ship with the package.

    python -m recipes.primitives.export            (--keep: in the place of what ships)

Writes out/model: the transformer's averaged weights of out/transformer/state.pt (without one, those that ship), and the
autoencoder, the text encoder and the tokenizer as `find_trained` finds them. The transformer and the autoencoder are
stored in 16 bits. With `--keep` the model takes the place of src/v2edit/weights/primitives, the classifier that of
src/v2edit/weights/classifier, and the transformer's probe that of weights/: training goes on from there elsewhere.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, T5Tokenizer

from recipes.primitives.classifier import WEIGHTS_FILE
from recipes.primitives.clips import FRAMES, HEIGHT, WIDTH
from recipes.primitives.diffusion import new_scheduler
from recipes.primitives.training import OUT, PACKAGE, find_trained
from recipes.primitives.transformer import PROBE, new_transformer
from v2edit.primitives.captions import TEXT_LENGTH

MODEL, SHIPPED = OUT / "model", PACKAGE / "primitives"
CARD = f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---
# primitives

A small text-to-video model of CogVideoX's architecture, trained from nothing on one made-up world: up to four balls,
cubes, cones, cylinders, towers, rings and stars that stay, slide or hop on a floor under a sky, {WIDTH} x {HEIGHT}
pixels, {FRAMES} frames. It knows nothing else, and is no use for real videos. It exists so that V2Edit can be tried,
tested and measured anywhere: the true result of every edit in its world can be rendered.

```python
pipeline = CogVideoXPipeline.from_pretrained(folder)
pipeline("a big red ball on the left in front hops, on a gray floor, under a blue sky, the camera is still.",
         height={HEIGHT}, width={WIDTH}, num_frames={FRAMES}, guidance_scale=4.0, max_sequence_length={TEXT_LENGTH})
```

`max_sequence_length={TEXT_LENGTH}` matters: the model attends to its padding, and has seen no more of it than that.
Made by `recipes/primitives`; what was tried is in `LOG.md` there.
"""


def load_transformer() -> tuple[CogVideoXTransformer3DModel, int | None]:
    """Return the transformer's averaged weights, and how many samples they have seen since those that ship (None for
    those themselves)."""
    path = OUT / "transformer/state.pt"
    if not path.exists():
        return CogVideoXTransformer3DModel.from_pretrained(SHIPPED / "transformer"), None
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
    beside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.save_pretrained(beside)
    for config in beside.rglob("config.json"):  # drop local paths
        facts = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    (beside / "README.md").write_text(CARD, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return seen


def keep() -> None:
    """Put what was trained here in the place of what ships: the model, the classifier, its matrices in 16 bits, and,
    beside the recipe, the transformer's probe."""
    if (state := OUT / "transformer/state.pt").exists():
        save_file(torch.load(state, map_location="cpu")["probe"], PROBE)
    if (trained := OUT / "classifier" / WEIGHTS_FILE).exists():
        halved = {name: w.half() if w.ndim > 1 else w for name, w in load_file(trained).items()}
        save_file(halved, PACKAGE / "classifier" / WEIGHTS_FILE)
    export(SHIPPED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="in the place of what ships, too")
    options = parser.parse_args()
    seen = export()
    if options.keep:
        keep()
    total = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    print(f"{MODEL}: {total / 1e6:.1f} MB, {'as it ships' if seen is None else f'after {seen:,} more samples'}")


if __name__ == "__main__":
    main()
