"""The file of what `v2edit calibrate` measured of a model, for step caching. Loads no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

from v2edit.errors import UserError, first_line
from v2edit.files import read_json

CACHE_FILE = "step_cache.json"  # in a model's folder
Magnitudes = tuple[tuple[float, float], ...]  # pairs of a noise's share and the layers' magnitude there


def write_magnitudes(path: Path, model: str, magnitudes: Magnitudes) -> None:
    """Write a model's magnitudes as JSON, to five digits."""
    pairs = [[float(f"{number:.5g}") for number in pair] for pair in magnitudes]
    path.write_text(json.dumps({"model": model, "magnitudes": pairs}) + "\n", encoding="utf-8")


def read_magnitudes(path: Path) -> Magnitudes:
    """Read a file that `write_magnitudes` wrote. Raises `UserError` for anything else."""
    try:
        pairs = tuple((float(noise), float(value)) for noise, value in read_json(path)["magnitudes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of v2edit calibrate: {first_line(error)}") from error
    if not pairs or not all(0 <= noise <= 1 and 0 < value < math.inf for noise, value in pairs):
        raise UserError(f"{path} is no file of v2edit calibrate: its numbers are out of range")
    return pairs
