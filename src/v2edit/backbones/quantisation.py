"""Smaller weights: quantised while they are loaded, or stored so. Loads no torch by itself.

All rows of a step take the same weights, so an edit whose prompts are equal still gives the source back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.backbones.families import Quantise
from v2edit.backbones.weight_files import WeightFile
from v2edit.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from v2edit.backbones.core import PipelineBackbone
    from v2edit.backbones.options import LoadOptions

LIBRARIES: dict[Quantise, str] = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
# The libraries that stored weights of a method are read with.
STORED_METHODS = {"torchao": "torchao", "bitsandbytes": "bitsandbytes"}
NF4_BLOCK = 64  # weights that share a scale of 4 bytes


def expect_library(library: str, what: str) -> None:
    """Raise `UserError` where a library is not installed."""
    if find_spec(library) is None:
        raise UserError(f"{what} needs {library}: pip install 'v2edit[quantize]'")


def check_stored(path: Path, config: Mapping[str, Any]) -> None:
    """Check the configuration of a part. Raises `UserError` for weights quantised by a method that is not read here, or
    whose library is not installed."""
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        if method not in STORED_METHODS:
            raise UserError(
                f"{path} says that its weights are quantised ({method!s:.40}), which edits do not run on: take the "
                f"model in bfloat16, float16 or float32, or of {' or '.join(STORED_METHODS)}"
            )
        expect_library(STORED_METHODS[method], f"{path} says that its weights are quantised, which")


def stored_scheme(config: Mapping[str, Any]) -> Quantise:
    """Return what a part's configuration says its weights are stored in, as the nearest way of --quantize."""
    quantised = config.get("quantization_config")
    if not isinstance(quantised, dict):
        return "none"
    if quantised.get("load_in_4bit"):
        return "nf4"
    return "fp8" if "float8" in str(quantised).lower() else "int8"


def check_quantisation(options: LoadOptions, device: torch.device, fake: PipelineBackbone, folder: Path) -> None:
    """Check the options for smaller weights, for a model without its data in a folder of its small files. Raises
    `UserError` for what is not installed or not possible."""
    from v2edit.backbones.folder import module_parts
    from v2edit.files import read_json

    for file in options.transformers:
        file.part(fake.name, len(fake.networks))
        if file.source.endswith(".gguf"):
            expect_library("gguf", f"--transformer {file.source}")
    stored = {part: stored_scheme(read_json(folder / part / "config.json")) for part in module_parts(folder)}
    if options.quantize != "none":
        expect_library(LIBRARIES[options.quantize], f"--quantize {options.quantize}")
        if quantised := [part for part in quantised_parts(fake) if stored[part] != "none"]:
            raise UserError(f"--quantize: the {quantised[0]} of {fake.name} is quantised already; leave it out")
    schemes = {options.quantize, *stored.values()}
    if "nf4" in schemes and device.type == "cpu":
        raise UserError(f"weights in nf4 need a GPU, and the device is {device}: take --quantize int8 or fp8")
    fixed = "nf4" in schemes or any(file.source.endswith(".gguf") for file in options.transformers)
    if fixed and "," in options.device:
        raise UserError(f"--device {options.device}: weights in nf4 and of .gguf files stay on one device")
    if "nf4" in schemes and options.offload == "group":
        raise UserError("--offload group moves no weights in nf4: take --offload model, or --quantize int8 or fp8")


def quantised_parts(backbone: PipelineBackbone) -> list[str]:
    """Return the names of the parts that --quantize acts on: the transformers and the large text encoder."""
    second = ["transformer_2"] if len(backbone.networks) == 2 else []
    return ["transformer", *second, "text_encoder"]


def pipeline_quantisation(scheme: Quantise, parts: Sequence[str]) -> Any:
    """Return the `quantization_config` of a pipeline's `from_pretrained`; None where nothing is quantised."""
    if scheme == "none" or not parts:
        return None
    import diffusers
    import transformers

    libraries = {part: transformers if part.startswith("text_encoder") else diffusers for part in parts}
    configs = {part: _config(scheme, library) for part, library in libraries.items()}
    return diffusers.PipelineQuantizationConfig(quant_mapping=configs)


def _config(scheme: Quantise, library: Any) -> Any:
    if scheme == "nf4":
        return library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    from torchao.quantization import (  # pyright: ignore[reportMissingImports] (optional)
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
    )

    return library.TorchAoConfig(Int8WeightOnlyConfig() if scheme == "int8" else Float8WeightOnlyConfig())


def load_transformers(
    files: Sequence[WeightFile], folder: Path, dtype: torch.dtype, scheme: Quantise
) -> dict[str, nn.Module]:
    """Load the transformers of a pipeline folder from single files, by part: .gguf as it is quantised, .safetensors in
    a dtype and, of a scheme, quantised. Raises `UserError` where a weight is missing."""
    import diffusers

    from v2edit.backbones.folder import part_class

    loaded = {}
    for file in files:
        part = "transformer_2" if file.expert == "low" else "transformer"
        kind: Any = part_class(folder, part)
        if not hasattr(kind, "from_single_file"):
            raise UserError(f"--transformer: diffusers loads no {kind.__name__} from one file; try --quantize")
        path, quantised = file.fetch(), None
        if path.suffix == ".gguf":
            quantised = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
        elif scheme != "none":
            quantised = _config(scheme, diffusers)
        options = {"quantization_config": quantised} if quantised else {}
        loaded[part] = kind.from_single_file(str(path), config=str(folder / part), dtype=dtype, **options)
        if missing := [name for name, weight in loaded[part].named_parameters() if weight.is_meta]:
            raise UserError(f"--transformer {file.source} is of another model: it lacks {missing[0]}")
    return loaded


def stored_bytes(part: nn.Module, scheme: Quantise = "none") -> float:
    """Return the bytes of a part's parameters and buffers; of a scheme, its linear layers' weights are stored so."""
    from diffusers import ModelMixin
    from torch import nn

    # These diffusers leaves as they are, and transformers does not.
    kept = (isinstance(part, ModelMixin) and part._keep_in_fp32_modules) or ()
    total, seen = float(sum(buffer.numel() * buffer.element_size() for buffer in part.buffers())), set()
    for path, module in part.named_modules():
        is_float = scheme == "none" or not isinstance(module, nn.Linear) or any(name in path for name in kept)
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in seen:  # tied
                continue
            seen.add(id(weight))
            if is_float or name != "weight":
                total += weight.numel() * weight.element_size()
            elif scheme == "nf4":
                total += weight.numel() / 2 + 4 * weight.numel() / NF4_BLOCK
            else:  # a scale for each output
                total += weight.numel() + len(weight) * weight.element_size()
    return total


def is_quantised(network: Any) -> bool:
    """Whether diffusers loaded a network with quantised weights."""
    return getattr(network, "hf_quantizer", None) is not None


def weight_storage(
    options: LoadOptions, backbone: PipelineBackbone, folder: Path
) -> tuple[dict[str, Quantise], dict[str, int]]:
    """Return how the weights of a model's parts are stored, and the bytes of those in .gguf files that are here."""
    from v2edit.backbones.folder import module_parts
    from v2edit.files import read_json

    schemes: dict[str, Quantise] = {
        part: stored_scheme(read_json(folder / part / "config.json")) for part in module_parts(folder)
    }
    if options.quantize != "none":
        schemes |= dict.fromkeys(quantised_parts(backbone), options.quantize)
    files = {file.part(backbone.name, len(backbone.networks)): file for file in options.transformers}
    sizes = {part: Path(file.source).stat().st_size for part, file in files.items() if file.is_local}
    return schemes, {part: size for part, size in sizes.items() if files[part].source.endswith(".gguf")}
