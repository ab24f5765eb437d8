"""Local edits: what an edit may not change stays the source's, in latents at every step and in pixels to the last bit.

The source's noisy state is known at every step, so that keeping a region costs nothing. Letters: T frames, F latent
frames, C channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.backbones import Size
from v2edit.editing.change import ChangeMap, grow
from v2edit.video.crop import extract, plan_crop
from v2edit.video.stream import Frames, clip_size, in_chunks

CHUNK = 64  # frames at a time


@dataclass(frozen=True, eq=False)
class LocalEdit:
    """What an edit may change of a video, and what it keeps of the rest.

    `share`: how much of the edit each pixel takes, float32 [T, H, W] at the video's size: where it is 0 the source's
    bytes stay, where it is 1 the edit's come; None for everywhere. `find`: narrow that to what the model itself changes
    (see `change`). `crop`: edit a small region at the model's full resolution. `keep_colours`: undo what the edit's
    colours drifted where nothing changed."""

    share: Frames | None = None
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


def edited_size(local: LocalEdit, frames: Frames, native_size: Size) -> Size:
    """Return the size of the clip that a local edit of frames, uint8 [T, H, W, 3], gives the model."""
    boxes = plan_window(local, native_size)
    return Size(*clip_size(frames)) if boxes is None else Size(len(frames), *map(int, boxes[0, 2:]))


@dataclass(eq=False)
class LatentBlend:
    """The latents of a local edit: those of the original, [1, F, C, h, w], and how much of the edit each may take,
    `allowed` [1, F, 1, h, w] of 0 to 1, None where all may take it. With `find` that is narrowed, once the controls of
    a subtask end, to what it and the subtasks before it change: `changed`, of 0 and 1."""

    original: Tensor
    allowed: Tensor | None = None
    find: bool = False
    changed: Tensor | None = field(default=None, init=False)
    earlier: Tensor | None = field(default=None, init=False)
    mask: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        self.mask = self.allowed

    def begin(self) -> None:
        """Begin a subtask, which may change more than the ones before it."""
        self.mask, self.earlier = self.allowed, self.changed

    def blend(self, edit: Tensor, source: Callable[[], Tensor], rows: slice = slice(None)) -> Tensor:
        """Return v' <- m v' + (1 - m) v, with the edit's v' and the original's v at one level of noise, of all latent
        frames or some. Where the mask is 0 that is v, where it is 1 v', to the last bit."""
        if self.mask is None:
            return edit
        mask = self.mask[:, rows]
        return torch.where(mask >= 1, edit, torch.where(mask <= 0, v := source(), v.lerp(edit, mask)))

    def narrow(self, changes: ChangeMap | None) -> None:
        """Narrow the mask to what the model changes, by the differences of a subtask's controlled steps."""
        if self.find and changes is not None:
            found = changes.find_region()
            self.changed = found if self.earlier is None else torch.maximum(found, self.earlier)
            self.mask = self.changed if self.allowed is None else torch.minimum(self.allowed, self.changed)


def latent_mask(share: Frames, frames: np.ndarray, latent_frames: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Return how much of an edit each latent takes, float32 [1, F, 1, h, w] of `shape` [F, C, h, w]: the most of its
    pixels and frames, and of the cells beside it, at which the decoder looks, too (without them the inside of an exact
    mask lost up to .5 dB). `frames`: the video's frame that each of the model's T' is; `latent_frames` [T']: the latent
    frame of each."""
    count, _, height, width = shape
    chunks = (torch.from_numpy(part)[:, None] for _, part in in_chunks(share, CHUNK))
    cells = torch.cat([F.adaptive_max_pool2d(part, (height, width)) for part in chunks])[torch.from_numpy(frames)]
    index = torch.from_numpy(latent_frames).view(-1, 1, 1, 1).expand_as(cells)
    mask = cells.new_zeros(count, 1, height, width).scatter_reduce(0, index, cells, "amax")
    first = int(latent_frames.min())  # those before it are copies of it
    mask[:first] = mask[first]
    return grow(mask[None])


def on_frames(mask: Tensor, latent_frames: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Return a mask of latents [1, F, 1, h, w] on the frames that they hold, float32 [T', H, W] of `size` (H, W),
    smooth between latents."""
    pixels = F.interpolate(mask[0].cpu().float(), size, mode="bilinear", align_corners=False)[:, 0]
    return pixels[torch.from_numpy(latent_frames)]


def on_video(share: Tensor, frames: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Return a share of the model's frames [T', h, w] on the video's, float32 [T, H, W] of `size`: the most of those
    that each is. `frames`: the video's frame that each of the model's is."""
    pixels = F.interpolate(share[:, None], size[1:], mode="bilinear", align_corners=False)[:, 0]
    out = np.zeros(size, np.float32)
    for frame, own in zip(frames, pixels.numpy(), strict=True):
        np.maximum(out[frame], own, out=out[frame])
    return out
