"""Exposure and white balance of each photograph, as an affine map of the scene's colours.

A phone's camera brightens the dark side of a thing and warms the cool one; a scene has one colour. Without these maps
it takes on the mean, and shows floaters in front of the cameras that disagree.

Letters: C views. An exposure [4, 3] is a matrix above an offset, in row vectors.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

RIDGE = 3e-3  # of 1, squared: how strongly a map is held to the identity, against the variance of an image's colours
ENOUGH = 4096  # pixels to fit the twelve numbers of an exposure to in a step, evenly over the image
LEAST = 0.02  # of 1: the root mean square change of an image from which on an exposure counts


def neutral_exposures(count: int, device: torch.device) -> Tensor:
    """Return the identity for each of `count` photographs, [C, 4, 3]."""
    return torch.eye(4, 3, device=device).repeat(count, 1, 1)


def apply_exposure(exposure: Tensor, image: Tensor) -> Tensor:
    """Return an image [H, W, 3] of the scene as a photograph of an exposure [4, 3] would show it."""
    return image @ exposure[:3] + exposure[3]


@torch.no_grad()
def update_exposure(exposures: Tensor, k: int, image: Tensor, truth: Tensor, mask: Tensor | None, share: float) -> None:
    """Move the exposure of photograph `k`, of all [C, 4, 3], by a `share` of the way to the one that fits a render
    `image` [H, W, 3] best. Then shift all so that their mean is the identity (the gauge): a scene twice as bright under
    exposures half as high would look the same."""
    neutral = torch.eye(4, 3, device=exposures.device)
    every = max(1, math.isqrt(image[..., 0].numel() // ENOUGH))
    image, truth = image[::every, ::every], truth[::every, ::every]
    mask = None if mask is None else mask[::every, ::every]
    best = solve_exposure(image, truth, mask) - neutral
    # Shrunk as by James and Stein: what is no more than a scene's own errors is no exposure, and none is neutral.
    strength = (image @ best[:3] + best[3]).square().mean()
    best = best * (1 - LEAST**2 / strength.clamp(min=1e-12)).clamp(min=0)
    exposures[k] += share * (neutral + best - exposures[k])
    exposures -= exposures.mean(0) - neutral


def solve_exposure(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the map [4, 3] of colours that takes an image [H, W, 3] nearest to another, over a mask [H, W], in the
    least-squares sense, held to the identity where colours leave it open."""
    pixels, wanted = image.reshape(-1, 3), truth.reshape(-1, 3)
    valid = torch.ones_like(pixels[:, :1]) if mask is None else mask.reshape(-1, 1).to(pixels)
    columns = torch.cat([pixels * valid, valid], dim=1)
    count = valid.sum().clamp(min=1)
    ridge = RIDGE * torch.eye(4, device=image.device)
    # By the difference from the identity: then the regularisation is towards it.
    change = torch.linalg.solve_ex(columns.T @ columns / count + ridge, columns.T @ (wanted - pixels) / count)[0]
    return torch.eye(4, 3, device=image.device) + change


def expose(images: np.ndarray, photographs: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """Return renders, uint8 [C, H, W, 3], each under the exposure that takes it nearest to its photograph: what is
    left is the error of the scene, not of the camera's automatic settings."""
    shown = []
    for k, (render, photograph) in enumerate(zip(images, photographs, strict=True)):
        image, truth = (torch.from_numpy(one).float() / 255 for one in (render, photograph))
        mask = None if masks is None else torch.from_numpy(masks[k])
        exposed = apply_exposure(solve_exposure(image, truth, mask), image)
        shown.append((exposed.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    return np.stack(shown)
