"""Scenes on a GPU, as far as they can be tested without one: gsplat as it is called, loaded and found broken, the steps
of a fit on tensors without data, and the settings that a GPU gets."""

import json
import logging
import re
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import gsplat as plain_gsplat
from support.scenes import cameras_of, dataset_of, gaussians_of, ring
from torch.utils._python_dispatch import TorchDispatchMode

from v2edit.errors import UserError
from v2edit.jobs.options import ModelOptions
from v2edit.jobs.scene import SceneEdit
from v2edit.runs.snapshots import LoopState, Snapshots
from v2edit.scenes import optimise, rasterise, targets
from v2edit.scenes.config import PIXELS_PER_GAUSSIAN, PRESETS, SMALL, FitConfig, ResolvedFit
from v2edit.scenes.optimise import FitMethod, FitProgress, full_precision, optimise_gaussians, reconstruct
from v2edit.scenes.primitives import sample_task, write_task
from v2edit.scenes.rasterise import gsplat, rasteriser_device, render
from v2edit.scenes.targets import Targets

find_fault = gsplat.find_fault
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that puts a package gsplat in some state on the path."""

    def install(state: str) -> None:
        plain_gsplat.write_package(tmp_path, state)
        monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        find_fault.cache_clear()
        for name in [name for name in sys.modules if name.split(".")[0] == "gsplat"]:
            del sys.modules[name]

    forget()
    yield install
    forget()


@pytest.mark.parametrize("degree", range(4))
def test_gsplat_is_called_by_its_conventions(package, degree):
    """Several cameras at once, images and gradients."""
    package("works")
    cameras, pair = cameras_of(degree, 3), []
    for backend in ("reference", "gsplat"):
        scene = gaussians_of(degree, degree=degree)
        leaves = [one.requires_grad_() for one in scene.tensors().values()]
        shown = render(scene, cameras, backend, (0.2, 0.5, 0.9))
        assert shown.alphas.shape == shown.colours.shape[:3] == (3, cameras.height, cameras.width)
        (shown.colours.square().sum() + shown.alphas.sum()).backward()
        pair.append([*shown, *(leaf.grad for leaf in leaves)])
    for expected, got in zip(*pair, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * max(1, float(expected.detach().abs().max())))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("works", None),
        ("not compiled", "its kernels are not compiled"),
        ("compiler fails", r"its kernels are not compiled.*\(RuntimeError: Error building extension"),
        ("lacks a package", "it needs a_package_that_is_not_there, which is not installed"),
        ("import fails", "it needs a_package_that_is_not_there, which is not installed"),
        ("other convention", "its images are not those of the reference"),
    ],
)
def test_kernels_are_tried_before_they_are_relied_on(package, capsys, state, says):
    package(state)
    fault = gsplat.find_fault(CPU)
    if says is None:
        assert fault is None
    else:
        assert fault is not None and "\n" not in fault and re.search(says, fault)
    assert capsys.readouterr().out == ""  # gsplat prints; our output may be JSON


@pytest.mark.parametrize("state", ["works", "not compiled", None])
def test_a_scene_goes_where_gsplat_works(package, monkeypatch, caplog, state):
    """With one warning where it does not; a run that was begun on the GPU is refused instead."""
    if state is not None:
        package(state)
    monkeypatch.setattr(gsplat, "find_fault", lambda device: find_fault(CPU))
    monkeypatch.setattr(rasterise, "find_device", torch.device)
    with caplog.at_level(logging.WARNING):
        assert rasteriser_device("cuda:0") == (CUDA if state == "works" else CPU)
    assert len(caplog.records) == (state != "works")
    if state != "works":
        with pytest.raises(UserError, match="was begun on cuda:0, where gsplat cannot be used now"):
            rasteriser_device("cuda:0", required=True)


def test_without_a_rasteriser_nothing_begins(monkeypatch):
    monkeypatch.setattr(rasterise, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="scenes need numba"):
        rasteriser_device("cpu")


def test_other_accelerators_leave_the_scene_to_the_cpu(monkeypatch, caplog):
    monkeypatch.setattr(rasterise, "find_device", torch.device)
    assert rasteriser_device("mps") == CPU
    assert "it needs CUDA" in caplog.text


class NoWaiting(TorchDispatchMode):
    """Raise where an operation brings numbers from the device to the program, or waits for a copy to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::_to_copy", "aten::copy_"):
            source = args[1] if func._schema.name == "aten::copy_" else args[0]
            if source.device.type != result.device.type:
                assert source.device.type == "cpu", f"{func} reads from the device"
                assert (kwargs or {}).get("non_blocking"), f"{func} waits"
        if "index" in func._schema.name and len(args) > 1 and isinstance(args[1], list | tuple):
            assert not any(one is not None and one.dtype == torch.bool for one in args[1]), f"{func} counts a mask"
        return result


def shapes_alone(*positional, **named):
    """Gradients reach all that is optimised; meta tensors have no numbers that could be read."""
    given = plain_gsplat.check_arguments(*positional, **named)
    total = sum(one.sum() for one in positional if isinstance(one, torch.Tensor))
    assert isinstance(total, torch.Tensor)
    shown = total.expand(len(given.viewmats), given.height, given.width, 3) + given.backgrounds[:, None, None]
    return shown, shown[..., :1], {}


@pytest.mark.parametrize(("degree", "masks"), [(0, False), (2, True)])
def test_a_step_never_waits_for_the_device(monkeypatch, degree, masks):
    """Tensors without numbers stand for those of a GPU: what reads one raises."""
    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=shapes_alone))
    copy = lambda tensor, device: tensor.to(device, non_blocking=True)  # noqa: E731  # from page-locked memory on CUDA
    monkeypatch.setattr(gsplat, "to_device", copy)
    monkeypatch.setattr(targets, "to_device", copy)
    monkeypatch.setattr(optimise, "to_device", copy)
    monkeypatch.setattr(optimise, "_pixel_size", lambda cameras, start: 0.01)
    monkeypatch.setattr(optimise, "READ_EVERY", 4)
    readings: list[int] = []
    monkeypatch.setattr(
        optimise.FitState, "read_errors", lambda self: readings.append(len(self.errors)) or self.errors.clear()
    )
    start = gaussians_of(0, 60, degree).to("meta")
    dataset, editable = dataset_of(ring(6, height=50, width=60), masks=masks), torch.ones(60).bool().to("meta")
    reports: list[FitProgress] = []
    with NoWaiting():
        optimise_gaussians(start, dataset, 11, 0, editable, reports.append, method=FitMethod())
    assert len(reports) == 11 and readings == [1, 4, 4, 2]


def test_fused_steps_resume_as_they_were(monkeypatch, tmp_path):
    make = optimise._make_optimiser

    def fused(leaves, rates):
        return torch.optim.Adam(make(leaves, rates).param_groups, eps=1e-15, fused=True)

    start, dataset = gaussians_of(0, 40, 1), dataset_of(ring(6))
    plain = optimise_gaussians(start, dataset, 12)
    monkeypatch.setattr(optimise, "_make_optimiser", fused)
    whole = optimise_gaussians(start, dataset, 12)
    torch.testing.assert_close(whole.sh, plain.sh, rtol=1e-3, atol=1e-3)

    def stop(progress: FitProgress) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    snapshot = Snapshots(tmp_path, 5).loop("fit")
    with pytest.raises(KeyboardInterrupt):
        optimise_gaussians(start, dataset, 12, on_progress=stop, snapshot=snapshot)
    again = optimise_gaussians(start, dataset, 12, snapshot=snapshot)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(getattr(again, name), tensor, rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_moments_go_back_to_where_adam_has_them(fused):
    """Fused Adam counts its steps beside the parameters, plain Adam in main memory."""
    leaf = torch.zeros(3, device="meta", requires_grad=True)
    optimiser = torch.optim.Adam([leaf])
    optimiser.defaults["fused"] = fused  # which Adam itself refuses on tensors without numbers
    moments = {f"means.{key}": torch.ones(()) for key in ("step", "exp_avg", "exp_avg_sq")}
    saved = {"means": torch.zeros(3), "generator": torch.Generator().get_state(), **moments}
    facts = {"step": 1, "order": [], "psnr": None}
    optimise._restore(LoopState(saved, facts), {"means": leaf}, optimiser, torch.Generator())
    devices = {key: value.device.type for key, value in optimiser.state[leaf].items()}
    assert devices == {"step": "meta" if fused else "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_a_fit_with_gsplat_is_that_of_the_cpu(package, monkeypatch):
    package("works")
    start, dataset = gaussians_of(1, 40, 1), dataset_of(ring(5), masks=True)
    expected = optimise_gaussians(start, dataset, 8)
    monkeypatch.setattr(optimise, "render", partial(render, backend="gsplat"))
    got = optimise_gaussians(start, dataset, 8)
    moved = float((expected.sh - start.sh).abs().mean())
    assert moved > 0.01 and float((got.sh - expected.sh).abs().mean()) < 0.05 * moved


def test_the_time_is_told_before_the_first_step_and_changes_nothing(tmp_path):
    dataset, config = dataset_of(ring(5)), FitConfig(gaussians=30, fit_steps=3)
    order: list[object] = []
    plain = reconstruct(dataset, config)
    timed = reconstruct(dataset, config, order.append, on_timed=order.append)
    assert isinstance(order[0], float) and order[0] > 0 and len(order) == 4
    assert torch.equal(plain.means, timed.means) and torch.equal(plain.sh, timed.sh)
    snapshot = Snapshots(tmp_path, 1).loop("fit")
    reconstruct(dataset, config, snapshot=snapshot)
    reconstruct(dataset, config, snapshot=snapshot, on_timed=pytest.fail)  # it resumes: nothing is timed


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_targets_are_the_images_averaged_over_areas(factor):
    dataset = dataset_of(ring(5, height=100, width=70), masks=True)
    kept = Targets(dataset, {1, 2, 4}, CPU)
    small = kept.cameras[factor]
    assert min(small.height, small.width) >= targets.MIN_COARSE_SIDE
    assert dataset.masks is not None
    for k in range(5):
        image, mask = kept.view(k, factor)
        whole = torch.from_numpy(dataset.images[k]).permute(2, 0, 1)[None].double() / 255
        expected = F.interpolate(whole, (small.height, small.width), mode="area")[0].permute(1, 2, 0)
        torch.testing.assert_close(image.double(), expected, rtol=0, atol=1e-6)
        invalid = F.adaptive_max_pool2d(torch.from_numpy(~dataset.masks[k])[None].float(), expected.shape[:2])[0]
        assert mask is not None and torch.equal(mask, invalid == 0)


def test_a_gpu_keeps_full_precision_for_ssim():
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        with full_precision(CUDA):
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_a_job_finds_out_before_the_model_is_loaded(package, monkeypatch, caplog, tmp_path):
    """One warning, and what is feasible on the CPU, since that is where the scene goes."""
    package("not compiled")
    (tmp_path / "scene").mkdir()
    write_task(3, tmp_path / "scene", "recolour", views=16, side=40)
    monkeypatch.setattr(gsplat, "find_fault", lambda device: find_fault(CPU))
    monkeypatch.setattr(rasterise, "find_device", torch.device)
    instruction = json.loads((tmp_path / "scene" / "scene.json").read_text())["instruction"]
    job = SceneEdit(tmp_path / "scene", instruction, model_options=ModelOptions(device="cuda:0"))
    prepared = job.prepare()
    assert prepared.device == CPU and prepared.side == 128 and "are not compiled" in caplog.text
    assert prepared.fit == FitConfig().resolve(0, False)


PHOTOGRAPHS = 200 * 1024 * 683  # pixels


def test_the_quality_goes_by_the_images_and_the_device():
    world = sample_task(3, views=16, side=40).dataset  # the smallest anyone makes: all of them get the same
    for on_gpu in (False, True):
        small = FitConfig().resolve(world.training.images[..., 0].size, on_gpu)
        assert (small.gaussians, small.fit_steps, small.refit_steps, small.degree) == (8000, 800, 300, 1)
    assert FitConfig().resolve(48 * 96 * 96, False) == small  # the built-in world's own
    cpu, gpu = (FitConfig().resolve(PHOTOGRAPHS, on_gpu) for on_gpu in (False, True))
    assert gpu.gaussians == 300_000 and gpu.fit_steps >= 5000 and cpu.gaussians < 30_000
    few = FitConfig(quality="high").resolve(3 * 1024 * 683, True)  # three photographs teach no million
    assert few.gaussians == 3 * 1024 * 683 // PIXELS_PER_GAUSSIAN


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("pixels", [10_000, PHOTOGRAPHS])
def test_a_higher_quality_is_more_of_everything(pixels, on_gpu):
    draft, normal, high = (
        FitConfig(quality=one).resolve(pixels, on_gpu) for one in ("draft", "normal", "high")
    )  # fmt: skip
    for name in ("gaussians", "fit_steps", "refit_steps"):
        assert getattr(draft, name) < getattr(normal, name) < getattr(high, name)


def test_numbers_that_are_given_go_over_the_quality():
    given = FitConfig(gaussians=7, degree=0, quality="high").resolve(PHOTOGRAPHS, True)
    assert (given.gaussians, given.degree) == (7, 0)
    assert given.fit_steps == FitConfig(quality="high").resolve(PHOTOGRAPHS, True).fit_steps
    assert ResolvedFit(**asdict(given)) == given == given.resolve(0, False)  # as a run that resumes reads it
    assert replace(given, fit_steps=3).resolve(0, False).fit_steps == 3


def test_the_documented_table_is_the_presets():
    text = (Path(__file__).parent.parent / "docs" / "scenes.md").read_text()
    rows = [
        re.findall(r"\d[\d,]*", line.split("|", 2)[2])
        for line in text.splitlines()
        if re.match(r"\| (up to|photographs, .PU)", line)
    ]
    expected = [
        [f"{number:,}" for preset in by_quality.values() for number in preset] for by_quality in PRESETS.values()
    ]
    assert rows == expected and f"| up to {SMALL:,} pixels in all |" in text
