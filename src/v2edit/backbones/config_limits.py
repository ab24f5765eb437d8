"""Limits on what a model's configuration files may claim, checked before anything is built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from v2edit.backbones.folder import build_part, module_parts, part_class
from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.prompts.chat import to_single_line

MAX_LAYERS, MAX_SIDE, MAX_NUMBER, MAX_TABLE = 100, 4096, 2**24, 2**28
# The errors of diffusers and transformers over settings that make no sense.
CONFIG_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, OSError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


def check_config_sizes(folder: Path) -> None:
    """Check that no part of a pipeline folder describes itself as larger than its weights are: it would fill the memory
    before anything is compared. Raises `UserError` where one does, or describes no model that can be built."""
    for part in module_parts(folder):
        path, kind = folder / part / "config.json", part_class(folder, part)
        try:
            config = read_json(path)
            if not isinstance(config, dict):
                raise TypeError(f"it is no object of settings for a {kind.__name__}")
            _check_numbers(config)
            with torch.device("meta"):
                model = build_part(kind, config)
            if (tables := sum(buffer.numel() for buffer in model.buffers())) > MAX_TABLE:
                raise ValueError(f"it has tables of {tables:,} numbers")
            weights = sum(parameter.numel() for parameter in model.parameters())
        except CONFIG_ERRORS as error:
            reason = to_single_line(str(error))[:160] or type(error).__name__
            raise UserError(f"{path} describes no model that can be built: {reason}") from error
        size = sum(file.stat().st_size for ending in ("safetensors", "bin") for file in path.parent.glob(f"*.{ending}"))
        if weights > size:  # a weight has a byte at least
            raise UserError(
                f"{path} describes {weights:,} weights, and the files beside it hold {size:,} bytes: they were cut "
                "off, or are of another model; copy them again"
            )


def _check_numbers(config: dict[str, Any]) -> None:
    """Raise `ValueError` for a number that no network has, or with which one takes minutes to build."""
    for name, value in config.items():
        values = value if isinstance(value, list) else [value]
        limit = MAX_LAYERS if "layers" in name else MAX_SIDE if name.startswith("sample_") else MAX_NUMBER
        if len(values) > MAX_LAYERS or any(isinstance(x, int | float) and not abs(x) <= limit for x in values):
            raise ValueError(f"{name} is {str(value)[:40]}")
