"""From a model's name (built in, a hub id or a folder) to a `Backbone`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from v2edit.backbones.base import Backbone
from v2edit.errors import UserError

BUILT_IN = "primitives"
BUILT_IN_FOLDER = Path(__file__).parents[1] / "models" / BUILT_IN
FAMILIES = {"CogVideoXPipeline": "CogVideoX", "CogVideoXVideoToVideoPipeline": "CogVideoX"}

Offload = Literal["none", "model", "group"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


def load(
    model: str = BUILT_IN,
    device: str = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    vae_tiling: bool = False,
    revision: str | None = None,
) -> Backbone:
    """Loads a video model.

    Args:
        model: "primitives" (built in), a Hugging Face id such as "zai-org/CogVideoX-5b", or a diffusers folder.
        device: a torch device; "auto" takes CUDA where there is one.
        dtype: "auto" is bfloat16 on CUDA and float32 elsewhere (and always for the built-in model).
        offload: "model" moves the parts from main memory to the GPU in turn, "group" streams layer by layer.
        vae_tiling: decode in tiles, for less memory.
        revision: of a hub id.

    Raises:
        UserError: the model cannot be found, is not of a known family, or lacks a part.
    """
    index = _index_of(model, revision)
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is None:
        raise UserError(
            f"{model} is a {index.get('_class_name')}, which cannot be edited with; known are the families "
            f"{', '.join(sorted(set(FAMILIES.values())))} (such as zai-org/CogVideoX-5b) and the built-in {BUILT_IN!r}"
        )

    import torch
    from diffusers import CogVideoXPipeline

    from v2edit.backbones.cogvideox import CogVideoX

    target = _device(device)
    if dtype == "auto":
        dtype = "bfloat16" if target.type == "cuda" and model != BUILT_IN else "float32"
    source = BUILT_IN_FOLDER if model == BUILT_IN else model
    try:
        with _no_bars():  # of parts being read: they are many and short, and downloads have bars of their own
            pipeline = CogVideoXPipeline.from_pretrained(
                source, dtype=getattr(torch, dtype), revision=revision, use_safetensors=True
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"cannot load the model {model}: {_first_line(error)}") from error
    if offload != "none" and target.type == "cpu":
        raise UserError(f"--offload {offload} moves parts to a GPU, and the device is the CPU; leave it out")
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=target)
    elif offload == "group":
        pipeline.enable_group_offload(onload_device=target, offload_type="leaf_level", use_stream=True)
    else:
        pipeline.to(target)
    if vae_tiling:
        pipeline.vae.enable_tiling()
    return CogVideoX(pipeline, name=model)


def _index_of(model: str, revision: str | None) -> dict[str, Any]:
    """The pipeline's `model_index.json`, from a folder or the hub."""
    folder = BUILT_IN_FOLDER if model == BUILT_IN else Path(model)
    if folder.is_dir():
        path = folder / "model_index.json"
        if not path.is_file():
            raise UserError(f"{folder} is not a model: a diffusers folder has a model_index.json")
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {_first_line(error)}") from error
        parts = [name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None]
        missing = [name for name in parts if not (folder / name).is_dir()]
        if missing:
            raise UserError(f"the model in {folder} lacks its {' and '.join(missing)}; download it again, whole")
        return index
    if folder.exists() or model.count("/") != 1 or model.startswith((".", "/")):
        raise UserError(
            f"no model {model!r}: give {BUILT_IN!r}, a Hugging Face id such as zai-org/CogVideoX-5b, or a folder"
        )
    from diffusers import DiffusionPipeline

    try:
        config: Any = DiffusionPipeline.load_config(model, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot find the model {model}: {_first_line(error)}") from error
    return dict(config)


@contextmanager
def _no_bars() -> Iterator[None]:
    import diffusers
    import transformers

    loggers = diffusers.utils.logging, transformers.utils.logging
    for logger in loggers:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in loggers:
            logger.enable_progress_bar()


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {name!r} cannot be used here: {_first_line(error)}") from error
    return device


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
