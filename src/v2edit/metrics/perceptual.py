"""Perceptual distances: LPIPS and the structure distance of DINO's keys.

Letters: T frames. Frames are uint8 [T, H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.errors import UserError
from v2edit.host import quiet_libraries
from v2edit.video.stream import Frames, in_chunks

Distance = Callable[[Frames, Frames], Tensor]  # two clips to a distance for each frame, [T]
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS's input, which is -1 ... 1
LAYERS = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # (stride, padding) of AlexNet's convolutions
POOLED = (1, 2)  # layers before which the largest of 3 x 3, each 2, is taken
BATCH = 8  # frames at a time
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, LONGEST = 224, 480  # of the images that DINO sees


def load_lpips(path: Path | None = None, device: str = "cpu") -> Distance:
    """Return LPIPS v0.1 with AlexNet (Zhang et al. 2018), by the package lpips or, with a `path`, by weights in an .npz
    file: conv0.weight, conv0.bias, lin0.weight and so on. Raises `UserError` where there is neither."""
    if path is not None:
        network = AlexNetLPIPS.load(path, device)
    else:
        try:
            import lpips  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                "the metric lpips needs the package lpips (pip install lpips), or its weights: --lpips FILE.npz"
            ) from error
        network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    @torch.no_grad()
    def distance(a: Frames, b: Frames) -> Tensor:
        parts = []
        for (_, first), (_, second) in zip(in_chunks(a, BATCH), in_chunks(b, BATCH), strict=True):
            pair = (_as_input(one, device) * 2 - 1 for one in (first, second))
            parts.append(network(*pair).flatten().cpu())
        return torch.cat(parts)

    return distance


class AlexNetLPIPS:
    """LPIPS of AlexNet's features after each ReLU: unit-normalised over channels, their squared differences weighted
    and averaged over the picture."""

    def __init__(self, convolutions: list[tuple[Tensor, Tensor]], weights: list[Tensor]) -> None:
        self.convolutions, self.weights = convolutions, weights

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> AlexNetLPIPS:
        try:
            with np.load(path) as file:
                arrays = {name: torch.from_numpy(file[name].astype(np.float32)).to(device) for name in file.files}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} holds no weights of LPIPS: {error}") from error
        try:
            layers = [(arrays[f"conv{k}.weight"], arrays[f"conv{k}.bias"]) for k in range(5)]
            return cls(layers, [arrays[f"lin{k}.weight"] for k in range(5)])
        except KeyError as error:
            raise UserError(f"{path} holds no weights of LPIPS: it has no {error}, only {list(arrays)[:12]}") from error

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances [T] of images [T, 3, H, W] of -1 ... 1."""
        pairs = zip(self._features(a), self._features(b), self.weights, strict=True)
        return sum(((_unit(x) - _unit(y)).square() * w).sum(1).mean((1, 2)) for x, y, w in pairs)  # pyright: ignore

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(one, device=images.device).view(1, 3, 1, 1) for one in (SHIFT, SCALE))
        x, found = (images - shift) / scale, []
        for k, ((weight, bias), (stride, padding)) in enumerate(zip(self.convolutions, LAYERS, strict=True)):
            if k in POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x)
        return found


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


class StructureDistance:
    """The structure distance (Tumanyan et al. 2022, Splice): the mean squared difference between two images'
    self-similarities, the cosines between the keys of all patches in DINO's last layer."""

    def __init__(self, model: Any, device: str = "cpu") -> None:
        self.model, self.device = model.to(device).eval().requires_grad_(False), device

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> StructureDistance:
        """Load a ViT of transformers, a Hugging Face id or a folder. Raises `UserError` where there is none."""
        from transformers import ViTModel

        try:
            with quiet_libraries():
                model = ViTModel.from_pretrained(name, add_pooling_layer=False)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"no DINO called {name}: {str(error).strip().splitlines()[0]}") from error
        return cls(model, device)

    @torch.no_grad()
    def __call__(self, a: Frames, b: Frames) -> Tensor:
        """Return the distance for each frame of two clips, [T]."""
        values = []
        for first, second in zip(a, b, strict=True):
            maps = [self.self_similarity(frame) for frame in (first, second)]
            values.append(F.mse_loss(maps[0], maps[1]))
        return torch.stack(values).cpu()

    def self_similarity(self, frame: np.ndarray) -> Tensor:
        """Return the cosines [N, N] between the N keys of a frame, uint8 [H, W, 3], heads side by side."""
        image = _as_input(frame[None], self.device)
        height, width = image.shape[2:]
        scale = min(SIDE / min(height, width), LONGEST / max(height, width))
        size = [round(side * scale) for side in (height, width)]
        image = F.interpolate(image, size, mode="bilinear", antialias=True)
        mean, spread = (torch.tensor(one, device=self.device).view(1, 3, 1, 1) for one in IMAGENET)
        keys: list[Any] = []
        layer = self._last_key()
        handle = layer.register_forward_hook(lambda module, inputs, output: keys.append(output))
        try:
            self.model((image - mean) / spread, interpolate_pos_encoding=True)
        finally:
            handle.remove()
        unit = F.normalize(keys[0][0], dim=-1)
        return unit @ unit.T

    def _last_key(self) -> torch.nn.Module:
        """Return the projection to keys of the last layer: its name differs between versions of transformers."""
        names = [name for name, _ in self.model.named_modules() if name.endswith(("attention.key", "k_proj"))]
        if not names:
            raise UserError(f"{type(self.model).__name__} has no projection to keys that is known here")
        return self.model.get_submodule(names[-1])


def _as_input(frames: np.ndarray, device: str) -> Tensor:
    """Return frames as float32 [T, 3, H, W] of 0 ... 1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float() / 255
