"""The fast rasterisers against the reference, the reference against formulas, on random and degenerate scenes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import HEIGHT, WIDTH, cameras_of, gaussians_of

from v2edit.scenes.cameras import Cameras
from v2edit.scenes.gaussians import Gaussians, colour_to_sh
from v2edit.scenes.rasterise import render
from v2edit.scenes.rasterise.projection import harmonics, project, rotations
from v2edit.scenes.rasterise.reference import footprints, rasterise

BLUR, ALPHA_MIN, TRANSMITTANCE_MIN = 0.3, 1 / 255, 1e-4  # gsplat's: splats made elsewhere depend on them


def with_row(scene: Gaussians, row: int, **values: object) -> Gaussians:
    tensors = {name: one.clone() for name, one in scene.tensors().items()}
    for name, value in values.items():
        tensors[name][row] = torch.as_tensor(value, dtype=torch.float32)
    return replace(scene, **tensors)


def same_depth(seed: int) -> Gaussians:
    """Every Gaussian in pairs at the same place: their order is the list's."""
    scene = gaussians_of(seed)
    return replace(scene, means=scene.means.repeat_interleave(2, dim=0)[: len(scene)])


EYE = cameras_of(0).centres[0]
DEGENERATE = {
    "nothing": Gaussians(*(torch.zeros(0, *shape) for shape in [(3,), (4,), (3,), (), (1, 3)])),
    "one": gaussians_of(1, 1),
    "all behind": replace(gaussians_of(2), means=torch.tensor(EYE * 2, dtype=torch.float32).repeat(60, 1)),
    "at the camera": with_row(gaussians_of(3), 0, means=EYE),
    "just before the near plane": with_row(gaussians_of(3), 0, means=EYE * (1 - 0.0101 / 4)),
    "as big as the world": with_row(gaussians_of(4), 0, log_scales=[3.0, 3.0, 3.0]),
    "a needle": with_row(gaussians_of(5), 0, log_scales=[1.0, -14.0, -14.0], means=[0, 0, 0]),
    "a point": with_row(gaussians_of(6), 0, log_scales=[-30.0, -30.0, -30.0], means=[0, 0, 0], logit_opacities=8.0),
    "all opaque": replace(gaussians_of(7), logit_opacities=torch.full((60,), 20.0)),
    "all transparent": replace(gaussians_of(8), logit_opacities=torch.full((60,), -20.0)),
    "equal depths": same_depth(9),
    "far outside": replace(gaussians_of(10), means=gaussians_of(10).means * 40),
    "darker than black": replace(gaussians_of(11), sh=gaussians_of(11).sh - 2),
}
SCENES = {f"random {seed}": gaussians_of(seed, degree=seed % 4) for seed in range(20, 28)} | DEGENERATE
SCENES |= {f"{name}, antialiased": replace(scene, antialiased=True) for name, scene in SCENES.items()}


def close_calls(scene: Gaussians, cameras: Cameras) -> torch.Tensor:
    """Pixels [H, W] where rounding may decide: a Gaussian's share is within 1e-5 of the least that is drawn, or the
    transmittance of the least that ends a pixel. There neither answer is wrong."""
    double = replace(scene, **{name: one.double() for name, one in scene.tensors().items()})
    flat = project(double, cameras.world_to_camera[0], cameras.intrinsics[0], cameras.height, cameras.width)
    alphas = footprints(flat, flat.order(), cameras.height, cameras.width)
    after = torch.cumprod(1 - torch.where(alphas >= ALPHA_MIN, alphas, 0), dim=0)
    close = ((alphas / ALPHA_MIN - 1).abs() < 1e-5) | ((after / TRANSMITTANCE_MIN - 1).abs() < 1e-3)
    return close.any(0).view(cameras.height, cameras.width)


def images_and_gradients(
    scene: Gaussians, cameras: Cameras, backend: str, weights: torch.Tensor, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    scene = scene.to(device)
    leaves = {name: one.clone().requires_grad_() for name, one in scene.tensors().items()}
    got = render(replace(scene, **leaves), cameras, backend, (0.2, 0.5, 0.9))
    weights = weights.to(got.colours)
    ((got.colours * weights[..., :3]).sum() + (got.alphas * weights[..., 3]).sum()).backward()
    gradients = {name: one.grad.cpu() for name, one in leaves.items() if one.grad is not None}
    return got.colours.detach().cpu(), got.alphas.detach().cpu(), gradients


def assert_same(scene: Gaussians, backend: str, device: str = "cpu", image: float = 1e-5, gradient: float = 1e-4):
    """Images to `image`, gradients of a random function of them to `gradient` of the largest in the scene."""
    cameras = cameras_of(0)
    weights = torch.randn(1, HEIGHT, WIDTH, 4, generator=torch.Generator().manual_seed(0))
    if len(scene):
        weights[0, close_calls(scene, cameras)] = 0
    expected = images_and_gradients(scene, cameras, "reference", weights)
    got = images_and_gradients(scene, cameras, backend, weights, device)
    where = weights[..., 3] != 0
    assert where.float().mean() > 0.9
    assert (got[0] - expected[0])[where].abs().max() <= image * max(1.0, float(expected[0].max()))
    assert (got[1] - expected[1])[where].abs().max() <= image
    for name, one in expected[2].items():
        scale = max(float(one.abs().max()), 1e-3) if len(scene) else 1.0
        torch.testing.assert_close(
            got[2][name] / scale, one / scale, rtol=0, atol=gradient, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("name", SCENES)
def test_the_cpu_rasteriser_is_the_reference(name):
    assert_same(SCENES[name], "cpu")


@pytest.mark.heavy
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", [name for name in SCENES if not name.startswith("nothing")])
def test_gsplat_is_the_reference(name):
    pytest.importorskip("gsplat")
    assert_same(SCENES[name], "gsplat", "cuda", image=1e-3, gradient=1e-2)  # its exponential is the GPU's fast one


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("size", [1, 4])
def test_antialiased_gaussians_are_as_bold_in_images_of_any_size(backend, size):
    """Thin Gaussians seen in small images, and in large ones: as their images in fine pixels, averaged over areas."""
    scene = replace(gaussians_of(0, 200), log_scales=gaussians_of(0, 200).log_scales - 3)
    cameras = cameras_of(0, 1, 24, 32)
    fine = render(scene, cameras.resized(24 * 16, 32 * 16), backend).colours[0].permute(2, 0, 1)
    truth = F.avg_pool2d(fine, 16 // size).permute(1, 2, 0)
    shown = [
        render(replace(scene, antialiased=on), cameras.resized(24 * size, 32 * size), backend).colours[0]
        for on in (True, False)
    ]
    errors = [float((image - truth).square().mean()) for image in shown]
    assert errors[0] < 0.5 * errors[1]


def test_antialiased_opacities_are_gsplats_ratio():
    """By the covariances of random Gaussians without and with the blur."""
    scene, cameras = gaussians_of(31, 40, 0), cameras_of(0)
    camera = cameras.world_to_camera[0], cameras.intrinsics[0], HEIGHT, WIDTH
    plain, flat = (project(replace(scene, antialiased=on), *camera) for on in (False, True))
    a, b, c = plain.conics.double().unbind(1)
    blurred = torch.stack([c, -b, -b, a], dim=1).view(-1, 2, 2) / (a * c - b * b)[:, None, None]
    ratio = (blurred - BLUR * torch.eye(2)).det() / blurred.det()
    assert ratio.min() < 0.8
    torch.testing.assert_close(flat.opacities.double(), plain.opacities * ratio.sqrt(), rtol=1e-3, atol=1e-5)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40))
def test_any_image_size(seed, height, width):
    scene, cameras = gaussians_of(seed, 12, 0), cameras_of(seed, 1, height, width)
    expected, got = (render(scene, cameras, backend) for backend in ("reference", "cpu"))
    calm = ~close_calls(scene, cameras)
    torch.testing.assert_close(got.colours[0][calm], expected.colours[0][calm], rtol=0, atol=1e-5)


def test_each_camera_of_several_has_its_own_image():
    scene, cameras = gaussians_of(0), cameras_of(5, 3)
    together = render(scene, cameras).colours
    for k in range(3):
        torch.testing.assert_close(together[k], render(scene, cameras[[k]]).colours[0], rtol=0, atol=0)


def test_one_gaussian_by_hand():
    """A ball of colour before the camera: its share falls as a Gaussian whose variance is (f s / z)² and the blur."""
    scale, opacity, colour = 0.2, 0.7, torch.tensor([0.9, 0.1, 0.4])
    scene = Gaussians(
        means=torch.zeros(1, 3),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        log_scales=torch.full((1, 3), math.log(scale)),
        logit_opacities=torch.tensor([math.log(opacity / (1 - opacity))]),
        sh=colour_to_sh(colour).view(1, 1, 3),
    )
    cameras = Cameras(np.array([[[40.0, 0, 16], [0, 40, 16], [0, 0, 1]]]), np.eye(4)[None], 32, 32)
    cameras.camera_to_world[0, 2, 3] = 4.0  # looks along -z at the origin, 4 away
    image = render(scene, cameras).colours[0]
    variance = (40 * scale / 4) ** 2 + BLUR
    for row, column in ((15, 15), (12, 20), (16, 11)):
        distance = (row + 0.5 - 16) ** 2 + (column + 0.5 - 16) ** 2
        share = opacity * math.exp(-0.5 * distance / variance)
        torch.testing.assert_close(image[row, column], colour * share, rtol=1e-5, atol=1e-6)
    assert (image[0, 0] == 0).all()


def test_what_is_nearer_hides_what_is_behind():
    near, far = ([0.0, 0, 1], [1.0, 0, 0]), ([0.0, 0, -1], [0, 1.0, 0])
    cameras = Cameras(np.array([[[40.0, 0, 8], [0, 40, 8], [0, 0, 1]]]), np.eye(4)[None], 16, 16)
    cameras.camera_to_world[0, 2, 3] = 6.0
    for pair in ((near, far), (far, near)):
        means, colours = (torch.tensor(values) for values in zip(*pair, strict=True))
        upright = torch.tensor([[1.0, 0, 0, 0]] * 2)
        scene = Gaussians(means, upright, torch.zeros(2, 3), torch.full((2,), 6.0), colour_to_sh(colours)[:, None])
        centre = render(scene, cameras).colours[0, 8, 8]
        assert centre[0] > 0.98 and centre[1] < 0.02


@pytest.mark.parametrize("antialiased", [False, True])
def test_gradients_of_the_reference_are_those_of_finite_differences(antialiased):
    scene = gaussians_of(31, 4, 1)
    cameras = cameras_of(0)
    double = Gaussians(**{name: one.double() for name, one in scene.tensors().items()})

    def colours(*tensors: torch.Tensor) -> torch.Tensor:
        flat = project(
            Gaussians(*tensors, antialiased=antialiased),
            cameras.world_to_camera[0],
            cameras.intrinsics[0],
            HEIGHT,
            WIDTH,
        )
        return rasterise(flat, HEIGHT, WIDTH, torch.zeros(3))[0][8:16:3, 10:26:5]

    assert torch.autograd.gradcheck(colours, [one.requires_grad_() for one in double.tensors().values()], atol=1e-4)


def test_quaternions_turn_as_they_should():
    turn = torch.tensor([[math.cos(0.4), 0, 0, math.sin(0.4)], [2 * math.cos(0.4), 2 * math.sin(0.4), 0, 0]])
    about_z, about_x = rotations(turn)
    c, s = math.cos(0.8), math.sin(0.8)
    torch.testing.assert_close(about_z, torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]))
    torch.testing.assert_close(about_x, torch.tensor([[1.0, 0, 0], [0, c, -s], [0, s, c]]))


def test_harmonics_are_orthonormal():
    """Summed over the sphere, any two of the sixteen are independent: a wrong sign or factor of one would show."""
    points, weights = np.polynomial.legendre.leggauss(8)
    turns = torch.arange(16) * (2 * math.pi / 16)
    z, turn = (one.flatten() for one in torch.meshgrid(torch.tensor(points), turns.double(), indexing="ij"))
    r = (1 - z * z).sqrt()
    values = harmonics(torch.stack([r * turn.cos(), r * turn.sin(), z], dim=1), 3)
    weight = torch.tensor(weights).repeat_interleave(16) * (2 * math.pi / 16)
    torch.testing.assert_close((values * weight[:, None]).T @ values, torch.eye(16).double(), rtol=0, atol=1e-6)


def test_projection_is_gsplats_own():
    """Against gsplat's torch code, which needs no GPU."""
    theirs = pytest.importorskip("gsplat.cuda._torch_impl")
    scene, cameras = gaussians_of(40, 200, 3), cameras_of(2)
    view, matrix = (torch.from_numpy(one).float() for one in (cameras.world_to_camera, cameras.intrinsics))
    covariances, _ = theirs._quat_scale_to_covar_preci(scene.quats, scene.log_scales.exp(), compute_preci=False)
    radii, means, depths, conics, _ = theirs._fully_fused_projection(
        scene.means, covariances, view, matrix, WIDTH, HEIGHT, eps2d=BLUR
    )
    flat = project(scene, cameras.world_to_camera[0], cameras.intrinsics[0], HEIGHT, WIDTH)
    seen = (flat.radii > 0).all(1)
    assert seen.sum() > 50 and (radii[0][seen] > 0).all()
    for got, expected in ((flat.means, means), (flat.conics, conics), (flat.depths, depths)):
        torch.testing.assert_close(got[seen], expected[0][seen], rtol=1e-4, atol=1e-4)
    ways = scene.means - torch.from_numpy(cameras.centres[0]).float()
    colours = (theirs._spherical_harmonics(3, ways, scene.sh) + 0.5).clamp(min=0)
    torch.testing.assert_close(flat.colours, colours, rtol=1e-4, atol=1e-5)
