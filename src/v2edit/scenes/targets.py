"""The images that Gaussians are optimised towards, kept as bytes and made into a step's target on its device.

Letters: C views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.host import available_memory
from v2edit.scenes.cameras import Cameras
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.rasterise.gsplat import to_device

MIN_COARSE_SIDE = 24  # pixels
MAX_SHARE = 0.25  # of a GPU's free memory that images may take; more stay in main memory, and are brought one by one
VALID = 0.999  # the share of a downscaled pixel that a mask must cover


class Targets:
    """The views of a dataset at some scales. `count`: of the views. `cameras`: by the factor that images are downscaled
    by."""

    def __init__(self, dataset: Dataset, factors: set[int], device: torch.device) -> None:
        """Keep the images and masks on `device` where they fit, else in main memory."""
        self.device, self.count = device, len(dataset)
        self._images = torch.from_numpy(dataset.images)
        self._masks = None if dataset.masks is None else torch.from_numpy(dataset.masks)
        held = self._images.numel() + (0 if self._masks is None else self._masks.numel())
        if device.type == "cuda" and held < MAX_SHARE * (available_memory(device) or 0):
            self._images = self._images.to(device)
            self._masks = None if self._masks is None else self._masks.to(device)
        self.cameras = {factor: _coarse(dataset.cameras, factor) for factor in factors}

    def view(self, k: int, factor: int) -> tuple[Tensor, Tensor | None]:
        """Return the image [h, w, 3] of 0..1 and the mask [h, w], if any, of view `k` downscaled by a factor."""
        cameras = self.cameras[factor]
        size, whole = (cameras.height, cameras.width), tuple(self._images.shape[1:3])
        image = to_device(self._images[k], self.device).float() / 255
        mask = None if self._masks is None else to_device(self._masks[k], self.device)
        if size == whole:
            return image, mask
        image = F.interpolate(image.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0).contiguous()
        if mask is not None:
            mask = F.interpolate(mask[None, None].float(), size, mode="area")[0, 0] > VALID
        return image, mask


def _coarse(cameras: Cameras, factor: int) -> Cameras:
    factor = max(1, min(factor, min(cameras.height, cameras.width) // MIN_COARSE_SIDE))
    return cameras.resized(max(1, round(cameras.height / factor)), max(1, round(cameras.width / factor)))
