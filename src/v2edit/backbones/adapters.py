"""LoRAs, such as those that were distilled to few steps: read, checked against the model, and added to its weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from diffusers.utils import is_peft_available
from safetensors import SafetensorError
from torch import Tensor, nn

from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.weight_files import WeightFile
from v2edit.errors import UserError, first_line
from v2edit.host import quiet_libraries

# The errors of diffusers and peft over files that are no LoRA of the model.
LORA_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, OSError,
    RuntimeError, SafetensorError, TypeError, ValueError,
)  # fmt: skip
FACTOR = re.compile(r"(.+)\.lora[._](A|B|down|up)\.weight")


def check_loras(backbone: PipelineBackbone, loras: Sequence[WeightFile]) -> None:
    """Check LoRAs against a model, which may be without its data. Raises `UserError` for one that cannot be read or is
    of another model."""
    for lora in loras:
        part = lora.part(backbone.name, len(backbone.networks))
        if not hasattr(backbone.pipeline, "load_lora_weights"):
            raise UserError(f"--lora: diffusers loads no LoRA into models such as {backbone.name}")
        if not is_peft_available():
            raise UserError("--lora needs peft: pip install 'v2edit[lora]'")
        options = locate(lora)
        try:
            with quiet_libraries():
                weights = type(backbone.pipeline).lora_state_dict(**options)
        except LORA_ERRORS as error:
            raise UserError(f"cannot read the LoRA {lora.source}: {first_line(error)}") from error
        factors = {key: FACTOR.fullmatch(key.removeprefix("transformer.")) for key in weights}
        layers = {found[1] for found in factors.values() if found}
        network = getattr(backbone.pipeline, part)
        wrong = {found[1] for key, found in factors.items() if found and not _fits(network, found, weights[key])}
        if wrong or not layers:
            what = f"{len(wrong)} of its {len(layers)} layers, such as {min(wrong)}," if layers else "its weights"
            raise UserError(f"the LoRA {lora.source} is of another model: {what} do not fit {backbone.name}'s {part}")


def _fits(network: nn.Module, factor: re.Match[str], weight: Tensor) -> bool:
    """Whether a factor of a LoRA, A [rank, in] or B [out, rank], is of a layer of a network."""
    try:
        shape = network.get_parameter(f"{factor[1]}.weight").shape
    except AttributeError:
        return False
    down = factor[2] in ("A", "down")
    return weight.ndim == len(shape) >= 2 and weight.shape[int(down)] == shape[int(down)]


def locate(lora: WeightFile) -> dict[str, Any]:
    """Return the options that tell diffusers where a LoRA is."""
    path = lora.fetch()
    return {
        "pretrained_model_name_or_path_or_dict": str(path.parent),
        "weight_name": path.name,
        "use_safetensors": True,
        "local_files_only": True,
    }


def add_loras(pipeline: Any, loras: Sequence[WeightFile], fuse: bool = True) -> None:
    """Add LoRAs that were checked to a pipeline's transformers: W + scale · B A. They are fused into the weights, so
    that a step takes as long as without; without `fuse`, as for quantised weights, they are computed beside them.
    Raises `UserError` where diffusers cannot load one."""
    added: dict[str, list[tuple[str, float]]] = {}
    for k, lora in enumerate(loras):
        part, name = "transformer_2" if lora.expert == "low" else "transformer", f"lora_{k}"
        second = {"load_into_transformer_2": True} if part == "transformer_2" else {}
        try:
            with quiet_libraries():
                pipeline.load_lora_weights(**locate(lora), adapter_name=name, **second)
                network = getattr(pipeline, part)
                if fuse:
                    network.fuse_lora(lora_scale=lora.scale, adapter_names=[name])
                    network.unload_lora()
                else:
                    added.setdefault(part, []).append((name, lora.scale))
        except LORA_ERRORS as error:
            raise UserError(f"cannot load the LoRA {lora.source}: {first_line(error)}") from error
    for part, adapters in added.items():
        names, scales = zip(*adapters, strict=True)
        getattr(pipeline, part).set_adapters(list(names), list(scales))
