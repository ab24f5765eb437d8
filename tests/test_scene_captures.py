"""Photographs of different exposure, and skies: what real captures have, and the built-in world does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.scenes import cameras_of, dataset_of, gaussians_of, ring

from v2edit.metrics.pixels import psnr, ssim_map
from v2edit.runs.snapshots import Snapshots
from v2edit.scenes import optimise
from v2edit.scenes.config import FitConfig
from v2edit.scenes.exposure import apply_exposure, expose, neutral_exposures, solve_exposure, update_exposure
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.measure import photograph_psnr
from v2edit.scenes.optimise import FitMethod, FitProgress, reconstruct
from v2edit.scenes.primitives import sample_task
from v2edit.scenes.rasterise import render
from v2edit.scenes.relocation import split
from v2edit.scenes.rer import render_video


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_exposure_is_found_again_from_valid_pixels():
    image = draw(30, 40, 3)
    matrix = torch.eye(3) * torch.tensor([1.3, 0.9, 0.6]) + 0.05
    truth = image @ matrix + torch.tensor([0.02, -0.03, 0.1])
    mask = torch.ones(30, 40, dtype=torch.bool)
    mask[:9] = False
    spoiled = torch.where(mask[..., None], truth, draw(30, 40, 3, seed=1))
    maps = solve_exposure(image, spoiled, mask)
    torch.testing.assert_close(maps, solve_exposure(image[9:], truth[9:]))
    assert (image @ maps[:3] + maps[3] - truth)[mask].abs().max() < 0.05


def test_an_exposure_of_nothing_is_neutral():
    flat = torch.full((8, 8, 3), 0.4)
    nothing = solve_exposure(flat, 1 - flat, torch.zeros(8, 8, dtype=torch.bool))
    torch.testing.assert_close(nothing, torch.eye(4, 3))
    assert solve_exposure(flat, flat * 1.5).isfinite().all()  # one colour leaves most of a map open


def test_the_mean_of_all_exposures_stays_neutral():
    exposures = neutral_exposures(5, torch.device("cpu"))
    image = draw(12, 12, 3)
    update_exposure(exposures, 2, image, image * 1.01, None, 0.5)
    assert torch.equal(exposures, neutral_exposures(5, exposures.device))  # no more than a scene's own errors
    for k, gain in enumerate((0.7, 0.8, 1.5, 1.6, 1.1)):
        update_exposure(exposures, k, image, image * gain, None, 0.5)
        torch.testing.assert_close(exposures.mean(0), torch.eye(4, 3), rtol=0, atol=1e-6)
    brightness = [float(apply_exposure(exposures[k], image).mean()) for k in range(5)]
    assert np.argmax(brightness) == 3 and np.argmin(brightness) == 0


@pytest.fixture(scope="module")
def exposed():
    """A scene of the built-in world, photographed by a camera that sets its exposure anew each time, and its gains."""
    dataset = sample_task(3, "recolour", views=16, side=40).dataset
    gains = np.exp(np.random.default_rng(0).uniform(-0.8, 0.8, (16, 1, 1, 3)))
    return replace(dataset, images=(dataset.images * 0.45 * gains).clip(0, 255).round().astype(np.uint8))


def test_a_scene_under_changing_light_is_reconstructed_as_in_constant_light(exposed):
    """Without exposures each view pulls the scene to its own colours."""
    config, held_out = FitConfig(gaussians=800, fit_steps=120), exposed.held_out
    quality = []
    for exposure in (True, False):
        scene = reconstruct(exposed, config, method=FitMethod(exposure=exposure))
        shown = expose(render_video(scene, held_out.cameras), held_out.images)
        quality.append(photograph_psnr(shown, held_out))
    assert quality[0] > quality[1] + 0.5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 60), (23, 17)])
def test_the_kernels_loss_is_l1_and_the_metrics_ssim(height, width):
    from v2edit.scenes.rasterise.cpu_ssim import ImageLoss

    truth, images = draw(height, width, 3), [draw(height, width, 3, seed=1).requires_grad_() for _ in range(2)]
    difference = (images[0] - truth).abs().mean()
    expected = 0.7 * difference + 0.3 * (1 - ssim_map(images[0], truth).mean())
    got = ImageLoss.apply(images[1], truth, 0.3)
    (3 * expected).backward()
    (3 * got).backward()
    torch.testing.assert_close(got, expected)
    assert images[0].grad is not None and images[1].grad is not None
    scale = float(images[0].grad.abs().max())
    torch.testing.assert_close(images[1].grad / scale, images[0].grad / scale, rtol=0, atol=1e-4)


def test_a_scene_grows_to_its_number_and_resumes_to_the_same_bytes(monkeypatch, tmp_path):
    """Also from a step after the first splits, with other sizes than the scene began with."""
    monkeypatch.setattr(optimise, "MIN_GROW_STEPS", 60)
    dataset, config = dataset_of(ring(6)), FitConfig(gaussians=101, fit_steps=130)
    whole = reconstruct(dataset, config)
    assert len(whole) == 101

    def stop(progress: FitProgress) -> None:
        if progress.step == 73:
            raise KeyboardInterrupt

    snapshot = Snapshots(tmp_path, 5).loop("fit")
    with pytest.raises(KeyboardInterrupt):
        reconstruct(dataset, config, stop, snapshot=snapshot)
    saved = snapshot.load()
    assert saved is not None and 40 < len(saved.tensors["means"]) < 101
    again = reconstruct(dataset, config, snapshot=snapshot)
    for name, tensor in whole.tensors().items():
        assert torch.equal(getattr(again, name), tensor), name


def test_the_mean_of_the_last_steps_is_kept_and_resumed(monkeypatch, tmp_path):
    """From 16 of 20 steps on; an interruption after 18 must not begin the mean anew."""
    dataset, config = dataset_of(ring(4)), FitConfig(gaussians=30, fit_steps=20)
    steps: list[torch.Tensor] = []
    take_step = optimise._Optimisation.take_step

    def note(self, step):
        result = take_step(self, step)
        steps.append(self.leaves["means"].detach().clone())
        return result

    monkeypatch.setattr(optimise._Optimisation, "take_step", note)
    whole = reconstruct(dataset, config)
    torch.testing.assert_close(whole.means, torch.stack(steps[16:]).mean(0))
    assert not torch.allclose(whole.means, steps[-1])
    assert torch.equal(reconstruct(dataset, config, method=FitMethod(average=False)).means, steps[-1])

    def stop(progress: FitProgress) -> None:
        if progress.step == 18:
            raise KeyboardInterrupt

    snapshot = Snapshots(tmp_path, 1).loop("fit")
    with pytest.raises(KeyboardInterrupt):
        reconstruct(dataset, config, stop, snapshot=snapshot)
    assert torch.equal(reconstruct(dataset, config, snapshot=snapshot).means, whole.means)


def test_halves_look_like_the_whole_and_start_without_momentum():
    scene, cameras = gaussians_of(3, 40, 1), cameras_of(3)
    before = render(scene, cameras).colours
    leaves = {name: one.clone().requires_grad_() for name, one in scene.tensors().items()}
    optimiser = torch.optim.Adam([{"params": [leaf]} for leaf in leaves.values()], lr=0.0)
    render(Gaussians(**leaves), cameras).colours.sum().backward()
    optimiser.step()
    needs = torch.arange(40.0)
    split(leaves, optimiser, needs, 10)
    after = Gaussians(**leaves).detach()
    assert len(after) == 50 and torch.equal(after.means[:30], scene.means[:30])
    middle = (after.means[30:40] + after.means[40:].flip(0)) / 2
    torch.testing.assert_close(middle, scene.means[30:])
    assert (after.log_scales[40:].exp().amax(1) < scene.log_scales[30:].flip(0).exp().amax(1)).all()
    assert psnr(render(after, cameras).colours, before, data_range=1.0) > 25
    for leaf in leaves.values():
        moments = optimiser.state[leaf]["exp_avg"]
        assert moments.shape == leaf.shape and not moments[30:].any() and moments[:30].any()
    render(Gaussians(**leaves), cameras).colours.sum().backward()
    optimiser.step()  # of all of them
    assert all(leaf in optimiser.state and leaf.grad is not None for leaf in leaves.values())
