"""Load a model: its weights as a `Backbone`, its small files as a `ModelInfo`, or its shapes alone as a `FakeModel`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING, Any

from v2edit.backbones.dtypes import resolve_dtype
from v2edit.backbones.families import BUILT_IN, INDEX, parse_resolution
from v2edit.backbones.hub import Checkpoint, find
from v2edit.backbones.memory import MemoryMode
from v2edit.backbones.options import LoadOptions
from v2edit.errors import UserError, first_line
from v2edit.host import find_device, quiet_libraries

if TYPE_CHECKING:
    import torch

    from v2edit.backbones.base import Backbone, ModelInfo
    from v2edit.backbones.core import PipelineBackbone
    from v2edit.backbones.fake import FakeModel

SMALL_FILES = [INDEX, "tokenizer*/*", "scheduler/*", "guider/*", "*/config.json"]

# The errors of diffusers and transformers over files that are no model.
LOAD_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    TypeError, ValueError, PickleError,
)  # fmt: skip


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, which several edits can use in turn."""

    checkpoint: Checkpoint
    backbone: Backbone


def read_info(checkpoint: Checkpoint, options: LoadOptions = LoadOptions()) -> ModelInfo:
    """Read a model without its weights. Raises `UserError` where its small files cannot be downloaded or read."""
    from v2edit.backbones.folder import read_info as read_info_of

    with _small_files(checkpoint) as folder:
        return read_info_of(folder, checkpoint.family, checkpoint.defaults, options.flow_shift)


def load_fake_model(checkpoint: Checkpoint, options: LoadOptions = LoadOptions()) -> FakeModel:
    """Build a model without data, to count costs. Raises `UserError` where its files cannot be downloaded or read."""
    from v2edit.backbones.fake import FakeModel
    from v2edit.backbones.quantisation import check_quantisation, weight_storage

    with _small_files(checkpoint) as folder:
        numbers = resolve_dtype(checkpoint, folder, options.dtype, find_device(options.device))
        fake = FakeModel(folder, checkpoint.family, numbers, checkpoint.defaults, checkpoint.name)
        check_quantisation(options, find_device(options.device), fake.backbone, folder)
        fake.schemes, fake.file_bytes = weight_storage(options, fake.backbone, folder)
    _configure(fake.backbone, options)
    if local := [lora for lora in options.loras if lora.is_local]:
        from v2edit.backbones.adapters import check_loras

        check_loras(fake.backbone, local)
    return fake


def _configure(backbone: PipelineBackbone, options: LoadOptions) -> None:
    """Set the size and the schedule that the options choose."""
    if options.resolution is not None:
        height, width = parse_resolution(options.resolution)
        backbone.native_size = replace(backbone.native_size, height=height, width=width)
    backbone.pipeline.scheduler = backbone.with_flow_shift(backbone.pipeline.scheduler, options.flow_shift)


@contextmanager
def _small_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """Provide the folder of a model's small files; errors over them become `UserError`."""
    from huggingface_hub import snapshot_download

    from v2edit.backbones.config_limits import check_configs

    try:
        folder = checkpoint.source
        if checkpoint.commit:
            folder = snapshot_download(
                folder, revision=checkpoint.commit, allow_patterns=SMALL_FILES, local_files_only=checkpoint.cached
            )
        with quiet_libraries():
            check_configs(Path(folder))
            yield Path(folder)
    except UserError:
        raise
    except LOAD_ERRORS as error:
        raise UserError(f"cannot read how {checkpoint.name} is made: {first_line(error)}") from error


def load(
    model: str | Checkpoint = BUILT_IN,
    options: LoadOptions = LoadOptions(),
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    mode: MemoryMode | None = None,
    **changes: Any,
) -> Backbone:
    """Load a video model. Raises `UserError` where it cannot be found, is not of a known family, or lacks a part.

    Args:
        model: "primitives" (built in), a Hugging Face id such as "zai-org/CogVideoX-5b", a diffusers folder, or
            the `Checkpoint` that `find` returned for one of them.
        options: where it runs, and in which numbers; its fields are also taken as keywords: `load(dtype="float16")`.
        revision: of a hub id.
        allow_pickle: take weights that are pickles (.bin) where there are no others. They are unpickled as tensors and
            nothing else, so that code in them is refused and not run.
        mode: the memory mode that edits start from (default: what `options` say; with `--offload auto` parts stay on
            the device as long as there is room)."""
    options = replace(options, **changes)
    checkpoint = find(model, revision, allow_pickle) if isinstance(model, str) else model

    import torch

    from v2edit.attention.kernels import expect_kernel
    from v2edit.backbones.adapters import check_loras
    from v2edit.backbones.compiled import expect_compiler
    from v2edit.backbones.folder import fake_backbone
    from v2edit.backbones.quantisation import check_quantisation
    from v2edit.backbones.replica import replicate
    from v2edit.backbones.versions import check_versions

    target = find_device(options.device)
    check_versions(target)
    expect_kernel(options.attention)
    if options.compile:
        expect_compiler(target)
    if options.offload not in ("auto", "none") and target.type == "cpu":
        raise UserError(f"--offload {options.offload} moves parts to a GPU, and the device is the CPU; leave it out")
    with _small_files(checkpoint) as small:  # what is no model for edits is refused before its weights are fetched
        fake = fake_backbone(
            small, checkpoint.family, torch.float32, torch.device("meta"), checkpoint.name, checkpoint.defaults
        )
        _configure(fake, options)
        check_quantisation(options, target, fake, small)
        if options.lora:
            check_loras(fake, options.loras)
    pipeline = _load_pipeline(checkpoint, options, fake, target)
    backbone = type(fake)(pipeline, checkpoint.name, checkpoint.defaults)
    _configure(backbone, options)
    backbone.call.kernel = options.attention
    if options.compile:
        backbone.compile_layers()
    _, _, second = options.device.partition(",")
    if second:
        if not backbone.classifier_free:
            raise UserError(f"--device {options.device}: {checkpoint.name} is told its guidance, which has no halves")
        backbone.replica = replicate(backbone, find_device(second))
    backbone.checkpoint, backbone.load_options = checkpoint, options
    backbone.place(target, mode or options.memory_mode)
    backbone.check_attention()
    if backbone.replica is not None:
        backbone.replica.check_attention()
    return backbone


def _load_pipeline(checkpoint: Checkpoint, options: LoadOptions, fake: PipelineBackbone, target: torch.device) -> Any:
    """Fetch and load the diffusers pipeline of a model that was built as `fake`, without its data."""
    import torch
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    from v2edit.backbones.adapters import add_loras
    from v2edit.backbones.config_limits import check_config_sizes
    from v2edit.backbones.folder import pipeline_class
    from v2edit.backbones.quantisation import is_quantised, load_transformers, pipeline_quantisation, quantised_parts

    safe = None if checkpoint.pickles else True
    try:
        with quiet_libraries():
            folder = checkpoint.source
            elsewhere = [file.part(fake.name, len(fake.networks)) for file in options.transformers]
            if checkpoint.commit:
                folder = DiffusionPipeline.download(
                    folder, revision=checkpoint.commit, local_files_only=checkpoint.cached, use_safetensors=safe,
                    **dict.fromkeys(elsewhere),
                )  # fmt: skip
            check_config_sizes(Path(folder), fake.pipeline.components, elsewhere)
            dtype = resolve_dtype(checkpoint, Path(folder), options.dtype, target)
            given = load_transformers(options.transformers, Path(folder), dtype, options.quantize)
            quantised = [part for part in quantised_parts(fake) if part not in given]
            numbers: Any = dtype
            if fake.float32_parts:
                numbers = {"default": numbers} | dict.fromkeys(fake.float32_parts, torch.float32)
            pipeline = pipeline_class(checkpoint.family).from_pretrained(
                folder, dtype=numbers, use_safetensors=safe, **given,
                quantization_config=pipeline_quantisation(options.quantize, quantised),
            )  # fmt: skip
            add_loras(pipeline, options.loras, fuse=not is_quantised(pipeline.transformer))
            return pipeline
    except UserError:
        raise
    except (*LOAD_ERRORS, SafetensorError) as error:
        raise UserError(f"cannot load the model {checkpoint.name}: {first_line(error)}") from error
