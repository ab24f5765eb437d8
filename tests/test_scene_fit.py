"""Reconstruction on scenes with a known truth, and the parts it is made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.scenes import cameras_of, gaussians_of

from v2edit.errors import UserError
from v2edit.metrics.pixels import psnr
from v2edit.scenes.camera_paths import along_views
from v2edit.scenes.cameras import look_at
from v2edit.scenes.config import FitConfig
from v2edit.scenes.dataset import Dataset, Points
from v2edit.scenes.formats.splats import read_splat
from v2edit.scenes.gaussians import Gaussians, sh_to_colour
from v2edit.scenes.initialise import initial_gaussians, plane_sweep, sample_surfaces, spacing
from v2edit.scenes.masks import spawn
from v2edit.scenes.measure import photograph_psnr, region_psnr
from v2edit.scenes.optimise import FitProgress, loss, optimise_gaussians, reconstruct, single_thread
from v2edit.scenes.primitives import sample_task
from v2edit.scenes.rasterise import render
from v2edit.scenes.relocation import compute_relocation, relocate
from v2edit.scenes.representation import EditedViews
from v2edit.scenes.rer import GaussianScene, render_video, resolve_fit

QUICK = FitConfig(gaussians=1000, fit_steps=80, refit_steps=60)


@pytest.fixture(scope="module")
def task():
    return sample_task(3, "recolour", views=16, side=40)


@pytest.fixture(scope="module")
def scene(task) -> Gaussians:
    return reconstruct(task.dataset, QUICK)


def held_out_psnr(scene: Gaussians, dataset: Dataset) -> float:
    kept = dataset.held_out
    return region_psnr(render_video(scene, kept.cameras), kept.images, kept.images).whole


def test_a_world_scene_is_reconstructed(task, scene):
    assert len(scene) == QUICK.gaussians and held_out_psnr(scene, task.dataset) > 28


def test_a_scene_fitted_with_antialiasing_is_edited_and_saved_with_it(task, tmp_path):
    """Whatever is made of it is rendered as it was fitted, here and from its file."""
    scene = reconstruct(task.dataset, FitConfig(gaussians=300, fit_steps=12, antialias=True))
    path = along_views(task.dataset.training.cameras)
    views = EditedViews(
        1, path.cameras, 255 - render_video(scene, path.cameras), torch.ones(len(path.cameras), 40, 40), 0
    )
    edited = GaussianScene(scene, resolve_fit(FitConfig(refit_steps=2), scene, path)).fit(views, lambda at: None)
    edited.save(tmp_path)
    one, two = (render_video(each, path.cameras) for each in (edited.gaussians, read_splat(tmp_path / "edited.ply")))
    np.testing.assert_array_equal(one, two)
    arrays = Gaussians.from_arrays(scene.arrays())
    np.testing.assert_array_equal(render_video(arrays, path.cameras), render_video(scene, path.cameras))
    assert (one != render_video(replace(edited.gaussians, antialiased=False), path.cameras)).mean() > 0.1


def test_held_out_views_are_never_looked_at(task):
    """What they show may be anything, and nothing comes out differently."""
    images = task.dataset.images.copy()
    images[task.dataset.is_held_out] = 255 - images[task.dataset.is_held_out]
    config = FitConfig(gaussians=300, fit_steps=12)
    one, two = (reconstruct(dataset, config) for dataset in (task.dataset, replace(task.dataset, images=images)))
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(getattr(two, name), tensor, rtol=0, atol=0)


def test_a_recoloured_scene_is_reached_from_the_one_before(task, scene):
    """A later fit starts warm: a few steps bring the truth's colours, and what did not change stays."""
    truth = task.truth
    after = optimise_gaussians(scene, truth.training, QUICK.refit_steps)
    kept, before = truth.held_out, task.dataset.held_out.images
    start, end = (region_psnr(render_video(one, kept.cameras), before, kept.images) for one in (scene, after))
    assert end.inside > start.inside + 3 and end.outside > 26  # 4.8 dB more: three little stars


def test_what_changed_is_seen_alike_from_everywhere(task, scene):
    """An edit's few views must not put half of a colour into harmonics: elsewhere it would be half of another."""
    training = task.truth.training
    every_other = np.arange(len(training)) % 2 == 0
    after = optimise_gaussians(scene, training.select(every_other), QUICK.refit_steps)
    kept, before = task.truth.held_out, task.dataset.held_out.images
    whole, plain = (
        region_psnr(render_video(one, kept.cameras), before, kept.images).inside
        for one in (after, replace(after, sh=after.sh[:, :1]))
    )
    assert plain > whole - 3


def test_progress_has_a_psnr_that_rises(task):
    reports: list[FitProgress] = []
    reconstruct(task.dataset, FitConfig(gaussians=300, fit_steps=30), reports.append)
    assert [at.step for at in reports] == [*range(1, 31)] and {at.steps for at in reports} == {30}
    first, last = reports[0].psnr, reports[-1].psnr
    assert first is not None and last is not None and last > first + 0.5


def test_the_same_seed_gives_the_same_scene(task):
    config = FitConfig(gaussians=200, fit_steps=5)
    one, two = (reconstruct(task.dataset, config, seed=4) for _ in range(2))
    other = reconstruct(task.dataset, config, seed=5)
    torch.testing.assert_close(one.means, two.means, rtol=0, atol=0)
    assert not torch.equal(one.means, other.means)


def test_masked_pixels_teach_nothing(task):
    masks = np.ones(task.dataset.images.shape[:3], bool)
    masks[:, :, :20] = False
    images = task.dataset.images.copy()
    images[~masks] = 0
    start = initial_gaussians(task.dataset, 300, 1, torch.Generator().manual_seed(0))
    one, two = (
        optimise_gaussians(start, replace(task.dataset, images=pictures, masks=masks), 8)
        for pictures in (task.dataset.images, images)
    )
    torch.testing.assert_close(one.sh, two.sh, rtol=0, atol=1e-4)


def test_seeds_lie_on_what_is_not_masked(task):
    """No loss reaches what a mask hides: a seed there would stay in whatever colour it has."""
    masks = np.ones(task.dataset.images.shape[:3], bool)
    masks[:, :, :20] = False
    images = task.dataset.images.copy()
    images[~masks] = (255, 0, 255)
    made = initial_gaussians(
        replace(task.dataset, images=images, masks=masks), 400, 0, torch.Generator().manual_seed(0)
    )
    magenta = (sh_to_colour(made.sh[:, 0]) - torch.tensor([1.0, 0, 1])).abs().amax(1) < 0.2
    assert magenta.float().mean() < 0.02
    hidden = replace(task.dataset, masks=np.zeros_like(masks))  # nothing to go by: seeds all the same
    assert initial_gaussians(hidden, 50, 0, torch.Generator().manual_seed(0)).means.isfinite().all()


def test_a_view_without_a_valid_pixel_has_no_psnr(task):
    masks = np.zeros(task.dataset.images.shape[:3], bool)
    reports: list[FitProgress] = []
    reconstruct(replace(task.dataset, masks=masks), FitConfig(gaussians=50, fit_steps=3), reports.append)
    assert [at.psnr for at in reports] == [None] * 3


def test_from_one_spot_a_scene_is_refitted_as_from_around_it(task, scene):
    """Cameras that turn where they stand meet nowhere: how far away things are, the scene itself says."""
    centre = task.dataset.cameras.centres[0]
    ahead = task.dataset.cameras.directions[0]
    angles = np.radians(np.linspace(-15, 15, 5))
    turns = [ahead * np.cos(a) + np.cross([0, 0, 1.0], ahead) * np.sin(a) for a in angles]
    poses = np.concatenate([look_at(centre[None], centre + way, np.array([0, 0, 1.0])) for way in turns])
    cameras = replace(task.dataset.cameras[np.zeros(5, int)], camera_to_world=poses)
    shown = render_video(scene, cameras)
    target = Dataset(cameras, shown, tuple("abcde"), np.zeros(5, bool))
    again = optimise_gaussians(scene, target, 20)
    assert region_psnr(render_video(again, cameras), shown, shown).whole > 30
    assert spawn(scene, shown, target, torch.ones(5, 40, 40), torch.Generator()) is None


def test_seeds_lie_where_the_scene_is(task):
    """Swept seeds alone, at their colours, show the scene roughly; at random depths they do not."""
    training = task.dataset.training
    swept = initial_gaussians(training, 3000, 0, torch.Generator().manual_seed(0))
    centre = torch.from_numpy(training.cameras.centres.mean(0)).float()
    stretch = torch.rand(3000, 1, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
    astray = replace(swept, means=centre + (swept.means - centre) * stretch)
    assert held_out_psnr(swept, task.dataset) > held_out_psnr(astray, task.dataset) + 2


def test_seeds_begin_with_the_sparse_points(task):
    points = Points(np.random.default_rng(0).normal(size=(50, 3)), np.full((50, 3), 200, np.uint8))
    made = initial_gaussians(replace(task.dataset, points=points), 80, 2, torch.Generator().manual_seed(0))
    assert len(made) == 80 and made.degree == 2
    found = {tuple(row) for row in made.means[:50].tolist()}
    assert found == {tuple(row) for row in torch.from_numpy(points.positions).float().tolist()}
    few = initial_gaussians(replace(task.dataset, points=points), 20, 0, torch.Generator().manual_seed(0))
    assert len(few) == 20


def test_one_camera_without_neighbours_still_gives_seeds(task):
    alone = task.dataset.select(np.array([0]))
    positions, colours, sizes = sample_surfaces(
        plane_sweep(alone, np.empty((0, 3))), 30, torch.Generator().manual_seed(0)
    )
    assert positions.isfinite().all() and len(colours) == len(sizes) == 30


def test_spacing_is_the_distance_to_neighbours():
    grid = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), dim=-1).view(-1, 3)
    torch.testing.assert_close(spacing(2.5 * grid), torch.full((64,), 2.5))
    assert spacing(torch.zeros(1, 3)).isfinite().all() and (spacing(torch.zeros(9, 3)) > 0).all()


def test_the_loss_of_equal_images_is_nothing():
    image = torch.rand(20, 20, 3)
    assert float(loss(image, image)) == pytest.approx(0, abs=1e-6)


def test_sharing_the_load_keeps_the_image():
    """n Gaussians in one place at the shared opacity and scale cover what the one did, Kheradmand et al. Eq. 9."""
    opacities, copies = torch.tensor([0.3, 0.8, 0.95]), torch.tensor([2, 3, 5])
    new, factor = compute_relocation(opacities, copies)
    torch.testing.assert_close(1 - (1 - new) ** copies, opacities, rtol=1e-5, atol=1e-6)
    # The coverage integrated along a line through the middle is the same.
    x = torch.linspace(-8, 8, 4001)
    for o, n, k, s in zip(opacities, copies, new, factor, strict=True):
        one = (o * torch.exp(-0.5 * x**2)).sum()
        many = (1 - (1 - k * torch.exp(-0.5 * (x / s) ** 2)) ** int(n)).sum()
        torch.testing.assert_close(many, one, rtol=1e-3, atol=0)


def test_faded_gaussians_are_moved_and_their_number_stays():
    scene = gaussians_of(0, 50, 1)
    faded = scene.logit_opacities.clone()
    faded[:20] = -8
    leaves = {n: one.clone().requires_grad_() for n, one in replace(scene, logit_opacities=faded).tensors().items()}
    optimiser = torch.optim.Adam(list(leaves.values()), lr=1e-3)
    cameras = cameras_of(0)
    render(Gaussians(**leaves), cameras).colours.sum().backward()
    optimiser.step()
    optimiser.state[leaves["means"]]["exp_avg"].fill_(1.0)
    before = render(Gaussians(**leaves), cameras).colours.detach()
    moved = relocate(leaves, optimiser, torch.Generator().manual_seed(0))
    after = render(Gaussians(**leaves), cameras).colours.detach()
    assert moved >= 20 and len(leaves["means"]) == 50
    assert (leaves["logit_opacities"].sigmoid() > 0.005 - 1e-6).all()
    assert (optimiser.state[leaves["means"]]["exp_avg"][:20] == 0).all()
    assert psnr(after, before, data_range=1.0) > 20


def test_torch_gets_its_threads_back():
    threads = torch.get_num_threads()
    with single_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("wrong", [{"gaussians": 0}, {"fit_steps": 0}, {"refit_steps": -1}, {"degree": 4}])
def test_settings_are_refused_in_one_line(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong)).replace('_', '-')} is .*, expected"):
        FitConfig(**wrong)


def test_psnr_is_split_by_what_changes():
    before = np.zeros((1, 4, 4, 3), np.uint8)
    target = before.copy()
    target[0, :, :2] = 200
    perfect, nothing = region_psnr(target, before, target), region_psnr(before, before, target)
    assert perfect.inside == perfect.outside == 60
    assert nothing.outside == 60 and nothing.inside == pytest.approx(20 * np.log10(255 / 200))
    assert np.isnan(region_psnr(before, before, before).inside)


def test_photographs_count_where_they_are_valid(task):
    shown = task.dataset.images.copy()
    masks = np.ones(shown.shape[:3], bool)
    masks[:, :5] = False
    shown[:, :5] = 255 - shown[:, :5]
    assert photograph_psnr(shown, replace(task.dataset, masks=masks)) == 60
    assert photograph_psnr(shown, task.dataset) < 25
    assert np.isnan(photograph_psnr(shown, replace(task.dataset, masks=np.zeros_like(masks))))


def test_a_scene_is_solid(task, scene):
    """Viewers have backgrounds of their own: a dark scene must not be a hole in front of a black one."""
    alphas = render(scene, task.dataset.cameras).alphas
    assert alphas.mean() > 0.98
