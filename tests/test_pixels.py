"""PSNR, SSIM and flicker, on cases worked out by hand and against scikit-image."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from v2edit.metrics.pixels import flicker, harmonic_mean, psnr, ssim, ssim_map


def clip_of(seed: int, frames: int = 5, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 190, (frames, side, side, 3), dtype=np.uint8)


def left_half(clip: np.ndarray) -> np.ndarray:
    where = np.zeros(clip.shape[:3], bool)
    where[:, :, : clip.shape[2] // 2] = True
    return where


def test_psnr_by_hand():
    clip = clip_of(0)
    inside, wrong = left_half(clip), clip.copy()
    wrong[inside] += 10
    assert psnr(wrong, clip, inside) == pytest.approx(10 * math.log10(255**2 / 100))
    assert psnr(wrong, clip, ~inside, highest=60) == 60
    assert psnr(wrong, clip, np.ones_like(inside)) == pytest.approx(10 * math.log10(255**2 / 50))
    assert math.isnan(psnr(wrong, clip, np.zeros_like(inside)))


def test_psnr_of_floats_and_of_everything():
    image = torch.rand(20, 20, 3)
    assert psnr(image, image + 0.1, data_range=1.0) == pytest.approx(20, abs=0.01)
    assert psnr(image, image) == math.inf


def test_ssim_keeps_to_its_side_of_the_border():
    clip = clip_of(1)
    inside, wrong = left_half(clip), clip.copy()
    wrong[inside] = clip_of(2)[inside]
    assert ssim(wrong, clip, ~inside) == pytest.approx(1.0, abs=1e-12)
    assert ssim(wrong, clip, inside) < 0.5
    assert math.isnan(ssim(wrong, clip, np.zeros_like(inside)))


@pytest.mark.parametrize("size", [(24, 24), (11, 60), (37, 16)])
def test_ssim_is_scikit_images(size):
    """scikit-image takes its moments by scipy's Gaussian filter, symmetric at the edge."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (3, *size, 3), dtype=np.uint8)
    wrong = (clip // 2 + rng.integers(0, 128, clip.shape)).astype(np.uint8)
    mask = rng.random(clip.shape[:3]) < 0.7
    composite = np.where(mask[..., None], wrong, clip)
    options = {"channel_axis": -1, "data_range": 255, "gaussian_weights": True, "use_sample_covariance": False}
    pairs = zip(composite / 1.0, clip / 1.0, strict=True)
    maps = [structural_similarity(a, b, full=True, **options)[1] for a, b in pairs]
    for frame, ideal, expected in zip(composite, clip, maps, strict=True):
        ours = ssim_map(*(torch.from_numpy(one / 1.0) for one in (frame, ideal)), data_range=255, padding="symmetric")
        np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), expected, atol=1e-10, rtol=0)
    assert ssim(wrong, clip, mask) == pytest.approx(np.stack(maps)[mask].mean(), abs=1e-10)


def test_flicker_is_what_goes_to_and_fro():
    clip, time = clip_of(3), np.arange(5)[:, None, None, None]
    everywhere = np.ones(clip.shape[:3], bool)
    assert flicker(clip, clip, everywhere) == 0
    assert flicker(clip + np.uint8(7), clip, everywhere) == 0  # a wrong colour
    assert flicker((clip + 3 * time).astype(np.uint8), clip, everywhere) == 0  # a steady drift
    shaking = (clip + 5 * (-1) ** time).astype(np.uint8)
    assert flicker(shaking, clip, everywhere) == 4 * 5  # 5 - 2 (-5) + 5
    moved = clip.copy()
    moved[left_half(clip)] = shaking[left_half(clip)]
    assert flicker(moved, clip, ~left_half(clip)) == 0
    assert math.isnan(flicker(clip[:2], clip[:2], everywhere[:2]))


def test_the_harmonic_mean_forgives_neither_half():
    assert harmonic_mean(1, 1) == 1 and harmonic_mean(0, 0) == 0 and harmonic_mean(1, 0) == 0
    assert harmonic_mean(0.5, 1) == pytest.approx(2 / 3)
