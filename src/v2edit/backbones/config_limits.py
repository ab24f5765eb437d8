"""Limits on what a model's configuration files may claim, checked before anything is built from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from v2edit.backbones.folder import CONFIG_ERRORS, describe_config_error, module_parts
from v2edit.backbones.quantisation import check_stored, stored_scheme
from v2edit.errors import UserError
from v2edit.files import read_json

MAX_LAYERS, MAX_SIDE, MAX_NUMBER, MAX_TABLE = 100, 4096, 2**24, 2**28


def check_configs(folder: Path) -> None:
    """Check what a pipeline folder's configuration files say, before anything is built from them. Raises `UserError`
    for numbers that no network has, and for quantised weights that cannot be read here."""
    for part in module_parts(folder):
        path = folder / part / "config.json"
        try:
            config = read_json(path)
            if not isinstance(config, dict):
                raise TypeError("it is no object of settings")
            _check_numbers(config)
        except CONFIG_ERRORS as error:
            raise describe_config_error(path, error) from error
        check_stored(path, config)


def check_config_sizes(folder: Path, parts: Mapping[str, nn.Module], elsewhere: Sequence[str] = ()) -> None:
    """Check that no part of a pipeline folder, built without data, is larger than its weights are: it would fill the
    memory before anything is compared. The weights of parts in `elsewhere` are not there. Raises `UserError` where one
    is."""
    for part in module_parts(folder):
        if part in elsewhere:
            continue
        path, model = folder / part / "config.json", parts[part]
        if (tables := sum(buffer.numel() for buffer in model.buffers())) > MAX_TABLE:
            raise describe_config_error(path, ValueError(f"it has tables of {tables:,} numbers"))
        weights = sum(parameter.numel() for parameter in model.parameters())
        size = sum(file.stat().st_size for ending in ("safetensors", "bin") for file in path.parent.glob(f"*.{ending}"))
        in_a_byte = 2 if stored_scheme(read_json(path)) == "nf4" else 1  # weights at most
        if weights > in_a_byte * size:
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
