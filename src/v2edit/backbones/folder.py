"""Read a diffusers folder by its index: the classes of its parts, its small files, and its parts without their data."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from v2edit.backbones.base import ModelInfo
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.families import INDEX, LIBRARIES, Defaults, Family, names
from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.prompts.chat import to_single_line

# The errors of diffusers and transformers over settings that make no sense.
CONFIG_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, OSError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


def family_class(family: Family) -> type[PipelineBackbone]:
    """Return the class of a family's backbones."""
    module, _, name = family.backbone.partition(":")
    return getattr(import_module(module), name)


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a diffusers folder."""
    return read_json(folder / INDEX)


def part_class(folder: Path, part: str) -> Any:
    """Return the class of a part as the index names it. Raises `UserError` for a class that its library lacks."""
    library, name = read_index(folder)[part]
    assert library in LIBRARIES, library
    try:
        return getattr(import_module(library), name)
    except AttributeError:
        raise UserError(f"{folder} wants a {name:.60} for its {part}, which this {library} does not have") from None


def build_part(folder: Path, part: str) -> nn.Module:
    """Build a part from its configuration alone, in torch's default dtype and on its default device. Raises `UserError`
    where the configuration is of no model."""
    path, kind = folder / part / "config.json", part_class(folder, part)
    try:
        config = read_json(path)
        config.pop("quantization_config", None)  # which is about the weights alone
        if hasattr(kind, "config_class") and kind.config_class is not None:  # of transformers
            return kind(kind.config_class.from_dict(config))
        return kind.from_config(config)
    except CONFIG_ERRORS as error:
        raise describe_config_error(path, error) from error


def describe_config_error(path: Path, error: Exception) -> UserError:
    """Return the error of a configuration file that describes no model."""
    reason = to_single_line(str(error))[:160] or type(error).__name__
    return UserError(f"{path} describes no model that can be built: {reason}")


def module_parts(folder: Path) -> list[str]:
    """Return the names of the parts that hold weights."""
    index = read_index(folder)
    named = [part for part in index if names(index, part)]
    return [part for part in named if (folder / part / "config.json").is_file() and not part.startswith("tokenizer")]


def read_small_parts(folder: Path) -> dict[str, Any]:
    """Read the parts of a folder without weights: tokenizers and schedulers."""
    index = read_index(folder)
    weighty = module_parts(folder)
    small = {}
    for part in index:
        if names(index, part) and part not in weighty:
            small[part] = part_class(folder, part).from_pretrained(folder / part, local_files_only=True)
    return small


def pipeline_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a pipeline's own that its index holds, such as `boundary_ratio`."""
    return {k: v for k, v in read_index(folder).items() if not k.startswith("_") and not isinstance(v, list)}


def read_info(folder: Path, family: Family, defaults: Defaults, flow_shift: float | None = None) -> ModelInfo:
    """Read the `ModelInfo` of a pipeline folder, where the weights may be missing; `flow_shift` as in `LoadOptions`."""
    kind = family_class(family)
    config, index, small = (
        read_json(folder / "transformer" / "config.json"),
        read_index(folder),
        read_small_parts(folder),
    )
    kind.check_scheduler(small["scheduler"])
    tokenizer = kind.prompt_tokenizer(small["tokenizer"], config)
    schedule = partial(kind.schedule_of, kind.with_flow_shift(small["scheduler"], flow_shift), index)
    return ModelInfo(tokenizer, kind.defaults_of(index, defaults), schedule, kind.classifier_free)


def fake_backbone(
    folder: Path,
    family: Family,
    dtype: torch.dtype,
    without_data: AbstractContextManager[Any],
    name: str,
    defaults: Defaults,
) -> PipelineBackbone:
    """Build the backbone of a folder from its configuration alone, in a context that gives tensors no data."""
    kind = family_class(family)
    parts = read_small_parts(folder)
    before = torch.get_default_dtype()
    try:
        for part in module_parts(folder):
            torch.set_default_dtype(torch.float32 if part in kind.float32_parts else dtype)
            with without_data:
                parts[part] = build_part(folder, part)
    finally:
        torch.set_default_dtype(before)
    pipeline = pipeline_class(family)(**parts, **pipeline_settings(folder))
    return kind(pipeline, name, defaults)


def pipeline_class(family: Family) -> Any:
    """Return the diffusers pipeline that a family's folders are loaded as."""
    return getattr(diffusers, family.pipelines[0])
