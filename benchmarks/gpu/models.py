"""Published models with random weights, in diffusers folders: what a GPU can be tried on without a download."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from published import MODELS, tiny_tokenizer

from v2edit.backbones.families import family_of
from v2edit.backbones.folder import build_part, family_class, module_parts

TEXT_LAYERS = 2  # of a text encoder: more would be gigabytes of other random numbers
SHARD = "4GB"


def write_random_model(folder: Path, name: str, device: str, layers: int | None = None) -> Path:
    """Write a published model with seeded random weights, as large as the real one but for its text encoders, whose
    vocabulary is a tiny one and whose layers are few. With `layers` the transformers have so many, and text encoders,
    of T5's kind, are narrow."""
    if (folder / "done").exists():
        return folder
    published = MODELS[name]
    texts = {}
    for part, (kind, config) in published.texts.items():
        small = copy.deepcopy(config)
        small.vocab_size, small.num_hidden_layers = len(tiny_tokenizer()), TEXT_LAYERS
        if layers is not None:
            small.num_hidden_layers, small.d_ff, small.num_heads = 1, 64, 2
        texts[part] = kind, small
    changes = {} if layers is None else {"num_layers": layers}
    replace(published, texts=texts).write(folder, **changes)
    family = family_of(published.pipeline)
    assert family is not None
    float32 = family_class(family).float32_parts
    torch.manual_seed(0)
    for part in module_parts(folder):
        torch.set_default_dtype(torch.float32 if part in float32 else torch.bfloat16)
        with torch.device(device), torch.no_grad():
            model: Any = build_part(folder, part)
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder / part, max_shard_size=SHARD)
        del model
    (folder / "done").touch()
    return folder


def moving_clip(frames: int, height: int, width: int) -> np.ndarray:
    """Draw a disc that crosses a patterned floor: uint8 [T, H, W, 3], smooth in space and time."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    clip = np.empty((frames, height, width, 3), np.uint8)
    for k in range(frames):
        floor = np.stack([128 + 60 * np.sin(x / 37 + c) * np.cos(y / 53 + 2 * c) for c in range(3)], -1)
        inside = np.hypot(x - width * (0.2 + 0.6 * k / max(1, frames - 1)), y - height / 2) < height / 6
        clip[k] = np.where(inside[..., None], np.array([200, 60, 40], np.float32), floor)
    return clip


def write_json(path: Path, value: object) -> None:
    """Write a result."""
    path.write_text(json.dumps(value, indent=1, default=str))
