"""The number format of a model's networks: its publisher's where the device computes in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.backbones.families import BUILT_IN, DType
from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.host import device_name

if TYPE_CHECKING:
    import torch

    from v2edit.backbones.hub import Checkpoint

STORED = {"F16": "float16", "BF16": "bfloat16"}


def resolve_dtype(checkpoint: Checkpoint, folder: Path, dtype: DType, device: torch.device) -> torch.dtype:
    """Return the dtype of a model in a diffusers folder (its weights may be missing) on a device. `auto` is float32 on
    the CPU and for the built-in model; else the 16-bit format that the model was published in, or float16 where the
    device has no bfloat16. Raises `UserError` for bfloat16 on such a device: torch would compute it by kernels that
    hold whole attention maps."""
    import torch

    if dtype == "bfloat16" and lacks_bfloat16(device):
        raise UserError(f"--dtype is bfloat16, which {device_name(device)} does not compute in; take float16")
    if dtype == "auto" and (device.type == "cpu" or checkpoint.name == BUILT_IN):
        return torch.float32
    if dtype == "auto":
        dtype = "float16" if lacks_bfloat16(device) else published_dtype(checkpoint, folder)
    return getattr(torch, dtype)


def published_dtype(checkpoint: Checkpoint, folder: Path) -> DType:
    """Return the 16-bit format that a model was published in: that of its weights, where they are here, or what its
    family says."""
    from v2edit.backbones.folder import family_class

    stored = stored_dtype(folder / "transformer")
    if stored in STORED:
        return STORED[stored]  # pyright: ignore[reportReturnType]
    config: Mapping[str, Any] = read_json(folder / "transformer" / "config.json")
    return family_class(checkpoint.family).published_dtype(config)


def stored_dtype(part: Path) -> str | None:
    """Return the format of most tensors of a part's first safetensors file, in that format's words; None without a file
    that can be read."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(part.glob("*.safetensors")):
        try:
            with safe_open(str(path), "pt") as file:
                formats = Counter(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
        return formats.most_common(1)[0][0] if formats else None
    return None


def lacks_bfloat16(device: torch.device) -> bool:
    """Whether a device is a GPU that does not compute in bfloat16."""
    return device.type in ("cuda", "mps") and not has_bfloat16(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16: NVIDIA's from Ampere on, AMD's, Apple's from macOS 14 on."""
    import torch

    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)
