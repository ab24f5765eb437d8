"""Local edits: what an edit may not change stays the source's, in latents at every step and in pixels to the last bit.

The source's noisy state is known at every step, so that keeping a region costs nothing. Letters: T frames, F latent
frames, C channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.backbones import Size
from v2edit.editing.change import ChangeMap
from v2edit.video.crop import extract, plan_crop


@dataclass(frozen=True, eq=False)
class LocalEdit:
    """What an edit may change of a video, and what it keeps of the rest.

    `share`: how much of the edit each pixel takes, float32 [T, H, W] at the video's size: where it is 0 the source's
    bytes stay, where it is 1 the edit's come; None for everywhere. `find`: narrow that to what the model itself changes
    (see `change`). `crop`: edit a small region at the model's full resolution. `keep_colours`: undo what the edit's
    colours drifted where nothing changed."""

    share: np.ndarray | None = None
    find: bool = False
    crop: bool = False
    keep_colours: bool = True

    def __post_init__(self) -> None:
        if self.share is not None:
            assert self.share.ndim == 3 and self.share.dtype == np.float32, (self.share.shape, self.share.dtype)

    def in_window(self, boxes: np.ndarray) -> LocalEdit:
        """Return the same of a clip that shows a window of each frame alone, int [T, 4]."""
        assert self.share is not None
        return replace(self, share=extract(self.share, boxes), crop=False)


EVERYWHERE = LocalEdit()


def plan_window(local: LocalEdit, native_size: Size) -> np.ndarray | None:
    """Return the windows of the frames, int [T, 4], in which a local edit is made; None where that is the whole."""
    if not local.crop or local.share is None:
        return None
    return plan_crop(local.share, native_size.height, native_size.width)


def edited_size(local: LocalEdit, frames: np.ndarray, native_size: Size) -> Size:
    """Return the size of the clip that a local edit of frames, uint8 [T, H, W, 3], gives the model."""
    boxes = plan_window(local, native_size)
    return Size(*frames.shape[:3]) if boxes is None else Size(len(frames), *map(int, boxes[0, 2:]))


@dataclass(eq=False)
class LatentBlend:
    """The latents of a local edit: those of the original, [1, F, C, h, w], and how much of the edit each takes, `mask`
    [1, F, 1, h, w] of 0 to 1, None where all take it. With `find` the mask is narrowed once the controls end."""

    original: Tensor
    mask: Tensor | None = None
    find: bool = False

    def blend(self, edit: Tensor, source: Callable[[], Tensor]) -> Tensor:
        """Return v' <- m v' + (1 - m) v, with the edit's v' and the original's v at one level of noise. Where the mask
        is 0 that is v, where it is 1 v', to the last bit."""
        if self.mask is None:
            return edit
        return torch.where(self.mask >= 1, edit, torch.where(self.mask <= 0, v := source(), v.lerp(edit, self.mask)))

    def narrow(self, changes: ChangeMap | None) -> None:
        """Narrow the mask to what the model changes, by the differences of a subtask's controlled steps."""
        if self.find and changes is not None and (found := changes.find_mask()) is not None:
            self.mask = found if self.mask is None else torch.minimum(self.mask, found)


def latent_mask(share: np.ndarray, frames: np.ndarray, latent_frames: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Return how much of an edit each latent takes, float32 [1, F, 1, h, w] of `shape` [F, C, h, w]: the most of its
    pixels and frames. `frames`: the video's frame that each of the model's T' is; `latent_frames` [T']: the latent
    frame of each."""
    count, _, height, width = shape
    cells = F.adaptive_max_pool2d(torch.from_numpy(share)[:, None], (height, width))[torch.from_numpy(frames)]
    index = torch.from_numpy(latent_frames).view(-1, 1, 1, 1).expand_as(cells)
    mask = cells.new_zeros(count, 1, height, width).scatter_reduce(0, index, cells, "amax")
    first = int(latent_frames.min())  # those before it are copies of it
    mask[:first] = mask[first]
    return mask[None]


def pixel_share(mask: Tensor, frames: np.ndarray, latent_frames: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Return how much of an edit each pixel takes, float32 [T, H, W] of `size`, by a mask of latents [1, F, 1, h, w]:
    the inverse of `latent_mask`, smooth between latents."""
    count, height, width = size
    cells = mask[0].cpu().float()
    share = F.interpolate(cells, (height, width), mode="bilinear", align_corners=False)[:, 0]
    out = share.new_zeros(count, height, width)
    for frame, latent_frame in zip(frames, latent_frames, strict=True):
        torch.maximum(out[frame], share[latent_frame], out=out[frame])
    return out.numpy()
