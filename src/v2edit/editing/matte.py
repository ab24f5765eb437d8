"""The matte of an edit: how much of it each pixel takes, by what it changed in the decoded frames and by the source's
own edges.

An autoencoder blurs, so an edit bleeds over the outline of what it changes, where the source's pixels are right.
Letters: T frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.editing.local import on_frames, on_video
from v2edit.video.spool import spool
from v2edit.video.stream import Frames, FrameStream, as_stream, map_frames

UNCHANGED, CHANGED = (
    5.0,
    10.0,
)  # of 255: a pixel takes nothing of the edit below the one difference, all above the other
RADIUS = 1.5  # latents: of the squares in which a mask is fitted to the source's colours
OUTSIDE, INSIDE = 0.3, 0.6  # of a fitted mask: less is outside of an outline, more inside
SMOOTHNESS = 1e-3  # the variance of a colour, of 1, that is no edge


def find_share(
    changed: Tensor,
    edited: np.ndarray,
    autoencode: Callable[[], np.ndarray],
    source: Callable[[], np.ndarray],
    frames: np.ndarray,
    latent_frames: np.ndarray,
    size: tuple[int, int, int],
) -> np.ndarray:
    """Return how much of an edit each pixel of a video takes, float32 [T, H, W] of `size`, by the latents that it
    `changed`, [1, F, 1, h, w], and the matte of its decoded frames, uint8 [T', h', w', 3] like what `autoencode` and
    `source` return; these are asked only where something stays. `frames`, `latent_frames`: as in `latent_mask`."""
    share = on_frames(changed, latent_frames, edited.shape[1:3])
    if share.min() < 1:
        share = find_matte(edited, autoencode(), source(), share, edited.shape[1] // changed.shape[-2])
    return on_video(share, frames, size)


def stream_share(
    changed: Tensor,
    edited: np.ndarray,
    autoencoded: np.ndarray,
    source: Frames,
    frames: np.ndarray,
    latent_frames: np.ndarray,
    size: tuple[int, int, int],
) -> FrameStream:
    """Return the same as `find_share` as a stream, of which the matte, at the size of the edited frames, is in a
    temporary file."""
    latents, cell = changed[0].cpu().float(), edited.shape[1] // changed.shape[-2]

    def find(number: int, edit: np.ndarray, autoencode: np.ndarray, original: np.ndarray) -> np.ndarray:
        latent = latents[latent_frames[number]][None]
        region = F.interpolate(latent, edited.shape[1:3], mode="bilinear", align_corners=False)[0, 0]
        return (_frame_matte(edit, autoencode, original, region, cell) if region.any() else region).numpy()

    clips = [as_stream(edited), as_stream(autoencoded), as_stream(source)]
    matte = spool(map_frames(find, clips, edited.shape[1:3], np.float32))

    def read(first: int, stop: int) -> Iterator[np.ndarray]:
        begin, end = np.searchsorted(frames, (first, stop)).tolist()
        for _, of_frame in groupby(zip(frames[begin:end], matte[begin:end], strict=True), key=lambda pair: pair[0]):
            small = torch.stack([torch.from_numpy(share.copy()) for _, share in of_frame])[:, None]
            yield F.interpolate(small, size[1:], mode="bilinear", align_corners=False)[:, 0].amax(0).numpy()

    return FrameStream(read, size, np.float32)


def find_matte(edited: np.ndarray, autoencoded: np.ndarray, source: np.ndarray, region: Tensor, cell: int) -> Tensor:
    """Return how much of an edit each pixel takes, float32 [T, h, w] of 0 to 1: what `edited` frames differ in from the
    source as the same autoencoder gives it back, within a region [T, h, w], and up to the source's edges where these
    are the change's own. Frames are uint8 [T, h, w, 3]; a latent is `cell` pixels wide."""
    frames = zip(edited, autoencoded, source, region, strict=True)
    return torch.stack([_frame_matte(*frame, cell) if frame[-1].any() else frame[-1] for frame in frames])


def _frame_matte(edited: np.ndarray, autoencoded: np.ndarray, source: np.ndarray, region: Tensor, cell: int) -> Tensor:
    difference = torch.from_numpy(edited.astype(np.float32) - autoencoded).permute(2, 0, 1)
    strength = box_mean(difference, cell // 4).abs().amax(0)
    share = torch.minimum(smooth_step(strength, UNCHANGED, CHANGED), region)
    guide = torch.from_numpy(source.astype(np.float32) / 255).permute(2, 0, 1)
    fitted, explained = guided_filter((share > 0.5).float(), guide, round(RADIUS * cell))
    return torch.minimum(share, torch.lerp(share, smooth_step(fitted, OUTSIDE, INSIDE, 1), explained))


def smooth_step(x: Tensor, low: float, high: float, order: int = 3) -> Tensor:
    """Return 0 below `low`, 1 above `high`, and a smooth cubic between, or a line (`order` 1)."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t if order == 1 else t * t * (3 - 2 * t)


def guided_filter(mask: Tensor, guide: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Fit a mask [h, w] by a linear function of a guide's colours [3, h, w] in each square (He et al. 2013). Return the
    fit, and how much of the mask's variance it explains, both [h, w] of 0 to 1."""
    mean, mask_mean = box_mean(guide, radius), box_mean(mask[None], radius)[0]
    covariance = box_mean(guide * mask, radius) - mean * mask_mean
    squares = torch.stack(
        [box_mean(guide * one, radius) - mean * centre for one, centre in zip(guide, mean, strict=True)]
    )
    matrix = squares.permute(2, 3, 0, 1) + SMOOTHNESS * torch.eye(3)
    slope = torch.linalg.solve(matrix, covariance.permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)
    variance = box_mean((mask * mask)[None], radius)[0] - mask_mean**2
    explained = ((slope * covariance).sum(0) / variance.clamp(min=1e-4)).clamp(0, 1) * (variance > 1e-4)
    offset = mask_mean - (slope * mean).sum(0)
    of_pixels = box_mean(torch.cat([slope, offset[None], explained[None]]), radius)
    return ((of_pixels[:3] * guide).sum(0) + of_pixels[3]).clamp(0, 1), of_pixels[4].clamp(0, 1)


def box_mean(x: Tensor, radius: int) -> Tensor:
    """Return the mean over the square of a radius around each pixel, within the picture, of images [C, h, w]."""
    side = 2 * radius + 1
    along = F.avg_pool2d(x[None], (1, side), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(along, (side, 1), 1, (radius, 0), count_include_pad=False)[0]
