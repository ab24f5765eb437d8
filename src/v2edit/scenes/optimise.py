"""Reconstruction: the optimisation of Gaussians towards posed images (Kerbl et al. 2023, Kheradmand et al. 2024).

Letters: N Gaussians, C views.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2edit.metrics.pixels import mse_to_psnr, ssim_map
from v2edit.runs.snapshots import LoopSnapshot, LoopState
from v2edit.scenes.cameras import Cameras, distance_of
from v2edit.scenes.config import FitConfig
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.exposure import apply_exposure, neutral_exposures, update_exposure
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.initialise import initial_gaussians
from v2edit.scenes.rasterise import render
from v2edit.scenes.rasterise.gsplat import to_device
from v2edit.scenes.relocation import relocate, split
from v2edit.scenes.targets import Targets

# Learning rates of Adam; that of the means in pixels of the training images.
LEARNING_RATES = {
    "means": 0.15,
    "quats": 4e-3,
    "log_scales": 1.5e-2,
    "logit_opacities": 4e-2,
    "sh": 5e-2,
    # The harmonics above the first learn slower: with few views a change of colour would otherwise be split between
    # the first and them, and only half of it would show from elsewhere, or in a viewer without harmonics.
    "higher": 1e-3,
}
FINAL_RATE, AVERAGED_RATE = 0.1, 0.3  # of the initial learning rate, after exponential decay: alone, and averaged
COARSE = ((0.15, 4), (0.4, 2))  # until this share of the steps, images are downscaled by this factor
EXPOSURE_FROM, EXPOSURE_SHARE = 0.1, 0.3  # of the steps, and of the way to the best map in each
START_SHARE, GROW_UNTIL = 0.4, 0.6  # of the Gaussians at the start, and of the steps until there are all
MIN_GROW_STEPS = 400  # of a reconstruction: a shorter one begins with all Gaussians
RELOCATE_EVERY, RELOCATE_UNTIL = 50, 0.8
TIMED_STEPS = 20  # of a short reconstruction, from which the time of the whole one is estimated
READ_EVERY = 25  # steps between readings of the PSNR from a GPU, each of which waits for all that it is given to do
MEAN = "mean of "  # prefix, in a snapshot, of the Gaussians' means over the last steps
STRETCH = (1.0, 30.0)  # the least and the most by which the learning rate of the means grows with the distance
SSIM_WEIGHT = 0.2  # of 1 - SSIM in the loss
OPACITY_COST, SCALE_COST = 5e-3, 5e-3  # regularisation, so that unneeded Gaussians fade (Kheradmand et al. 2024)


@dataclass(frozen=True)
class FitMethod:
    """The parts of a reconstruction that a later one, of an edited video, does without. `coarse_to_fine`: begin with
    smaller images. `exposure`: fit the exposure of each photograph. `growth`: begin with few Gaussians and split those
    that the images pull at. `far_rates`: let what is far away move as fast in the images as what is near. `average`:
    learn faster, and take the mean of the last steps (Polyak and Juditsky 1992)."""

    coarse_to_fine: bool = True
    exposure: bool = True
    growth: bool = True
    far_rates: bool = True
    average: bool = True


# Of an edited video: a scene is there to begin with, and colours that the edit changed must not pass for an exposure.
REFIT = FitMethod(coarse_to_fine=False, exposure=False, growth=False, far_rates=False, average=False)


@dataclass(frozen=True)
class FitProgress:
    """Progress of an optimisation: `step` of `steps`, counted from 1, and the running mean of the PSNR in dB of the
    training views (never of held-out ones); None where their masks have left nothing yet."""

    step: int
    steps: int
    psnr: float | None


def reconstruct(
    dataset: Dataset,
    config: FitConfig = FitConfig(),
    on_progress: Callable[[FitProgress], None] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    snapshot: LoopSnapshot = LoopSnapshot(),
    on_timed: Callable[[float], None] | None = None,
    method: FitMethod = FitMethod(),
) -> Gaussians:
    """Reconstruct a scene from the training views of a dataset; held-out views are not used. `on_timed` is called with
    the seconds that it will take, about, before the first step; not where it resumes."""
    training, device = dataset.training, torch.device(device)
    fit = config.resolve(training.images[..., 0].size, device.type == "cuda")
    with single_thread():
        generator = torch.Generator().manual_seed(seed)
        if fit.fit_steps < MIN_GROW_STEPS:
            method = replace(method, growth=False)
        count = round(START_SHARE * fit.gaussians) if method.growth else fit.gaussians
        start = initial_gaussians(training, max(1, count), fit.degree, generator, device)
        start = replace(start, antialiased=fit.antialias)
    if on_timed is not None and snapshot.load() is None:
        whole = start.select(torch.arange(fit.gaussians, device=device) % len(start))  # as many as there will be
        on_timed(fit.fit_steps * time_step(whole, training, min(TIMED_STEPS, fit.fit_steps), method))
    return optimise_gaussians(start, training, fit.fit_steps, seed, None, on_progress, snapshot, method, fit.gaussians)


def time_step(start: Gaussians, dataset: Dataset, steps: int, method: FitMethod) -> float:
    """Return the mean seconds of a step of a reconstruction, by a short one, whose result is not kept."""
    optimise_gaussians(start, dataset, 1)  # compiles
    began = time.perf_counter()
    optimise_gaussians(start, dataset, steps, method=method).means.sum().item()  # waits for a GPU
    return (time.perf_counter() - began) / steps


def optimise_gaussians(
    start: Gaussians,
    dataset: Dataset,
    steps: int,
    seed: int = 0,
    editable: Tensor | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
    snapshot: LoopSnapshot = LoopSnapshot(),
    method: FitMethod = REFIT,
    budget: int | None = None,
) -> Gaussians:
    """Optimise Gaussians with Adam towards the images of every view of `dataset`, one view a step.

    The loss is that of Kerbl et al. 2023, 0.8 L1 + 0.2 (1 - SSIM). Faded Gaussians are relocated to where others have
    much to show (Kheradmand et al. 2024); their number is constant, or grows to a `budget`. Where `editable`, bool [N],
    is given, only these change, and those that have faded, which join them. A `snapshot` keeps the state, to resume
    from."""
    fit = _Optimisation(start, dataset, steps, seed, editable, method, budget)
    if saved := snapshot.load():
        fit.restore(saved)
    on_cpu = start.means.device.type == "cpu"
    with single_thread(), full_precision(start.means.device):
        for step in snapshot.steps(fit.state.step, steps, fit.save):
            image, truth, mask = fit.take_step(step)
            if step % RELOCATE_EVERY == RELOCATE_EVERY - 1 and step < RELOCATE_UNTIL * steps:
                fit.relocate(step)
            fit.average(step)
            fit.state.step = step + 1
            if on_progress is not None:
                fit.state.errors.append(_squared_error(image, truth, mask))
                if on_cpu or step % READ_EVERY == 0 or step + 1 == steps:
                    fit.state.read_errors()
                on_progress(FitProgress(step + 1, steps, fit.state.psnr))
    return fit.result()


class _Optimisation:
    """An optimisation of Gaussians with all that changes in its steps. `others`: its tensors beside the `leaves` and
    the moments of the optimiser: `free`, which Gaussians may change; `exposures` of the views; `needs`, how much the
    images have pulled at each Gaussian since the last split; the leaves' means over the last steps."""

    def __init__(
        self,
        start: Gaussians,
        dataset: Dataset,
        steps: int,
        seed: int,
        editable: Tensor | None,
        method: FitMethod,
        budget: int | None,
    ) -> None:
        device = start.means.device
        self.steps, self.method, self.budget = steps, method, budget
        self.generator = torch.Generator().manual_seed(seed)
        self.targets = Targets(dataset, {1, *(factor for _, factor in COARSE)}, device)
        self.leaves = {name: one.detach().clone().requires_grad_() for name, one in _split_sh(start).items()}
        self.antialiased = start.antialiased
        self.pixel = _pixel_size(dataset.cameras, start)
        self.rates = {**LEARNING_RATES, "means": LEARNING_RATES["means"] * self.pixel}
        self.optimiser = _make_optimiser(self.leaves, self.rates)
        self.distances = _Distances(dataset.cameras, self.pixel, device) if method.far_rates else None
        self.final_rate = AVERAGED_RATE if method.average else FINAL_RATE
        self.state = FitState(0, [], None)
        self.others: dict[str, Tensor] = {}
        if editable is not None:
            self.others["free"] = editable.clone()
        if method.exposure:
            self.others["exposures"] = neutral_exposures(len(dataset), device)
        if method.growth:
            self.others["needs"] = torch.zeros(len(start), device=device)

    def take_step(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take a step towards the next view; return its render [h, w, 3], its image and its mask [h, w], if any."""
        progress, method = step / self.steps, self.method
        factor = next((f for until, f in COARSE if progress < until), 1) if method.coarse_to_fine else 1
        if not self.state.order:
            self.state.order = torch.randperm(self.targets.count, generator=self.generator).tolist()
        k = self.state.order.pop()
        # Another background colour each step: dark surfaces must be dark, not holes in front of a dark background.
        red, green, blue = torch.rand(3, generator=self.generator).tolist()
        _set_rates(self.optimiser, self.rates, self.final_rate**progress)
        gaussians, (truth, mask) = _join_sh(self.leaves, self.antialiased), self.targets.view(k, factor)
        image = render(gaussians, self.targets.cameras[factor][[k]], background=(red, green, blue)).colours[0]
        if method.exposure:
            if progress >= EXPOSURE_FROM:
                update_exposure(self.others["exposures"], k, image.detach(), truth, mask, EXPOSURE_SHARE)
            image = apply_exposure(self.others["exposures"][k], image)
        cost = loss(image, truth, mask)
        cost = cost + OPACITY_COST * gaussians.logit_opacities.sigmoid().mean()
        cost = cost + SCALE_COST * gaussians.log_scales.exp().mean() / (100 * self.pixel)
        stretch = None if self.distances is None else self.distances.relative(self.leaves["means"].detach())
        _take_step(self.optimiser, self.leaves, cost, self.others.get("free"), stretch)
        pull = self.leaves["means"].grad
        if method.growth and pull is not None:
            self.others["needs"] += pull.norm(dim=1) * (1 if stretch is None else stretch)
        return image.detach(), truth, mask

    def relocate(self, step: int) -> None:
        """Relocate faded Gaussians, and split others where there are fewer than there should be by now."""
        relocate(self.leaves, self.optimiser, self.generator, self.others.get("free"))
        if self.method.growth and self.budget is not None:
            needs = self.others["needs"]
            wanted = round(self.budget * START_SHARE ** max(0.0, 1 - step / (GROW_UNTIL * self.steps)))
            split(self.leaves, self.optimiser, needs, max(0, min(len(needs), wanted - len(needs))))
            self.others["needs"] = needs.new_zeros(len(self.leaves["means"]))

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Take the leaves after a step into their means, from the last relocation on."""
        count = step + 1 - math.ceil(RELOCATE_UNTIL * self.steps)
        if self.method.average and count > 0:
            for name, leaf in self.leaves.items():
                self.others[MEAN + name] = torch.lerp(self.others.get(MEAN + name, leaf), leaf, 1 / count)

    def result(self) -> Gaussians:
        """Return the Gaussians, or their means over the last steps, where these are taken."""
        leaves = {name: self.others.get(MEAN + name, leaf) for name, leaf in self.leaves.items()}
        return _join_sh(leaves, self.antialiased).detach()

    def save(self) -> LoopState:
        """Return the state, for a snapshot."""
        state = self.optimiser.state
        moments = {f"{name}.{key}": value for name, leaf in self.leaves.items() for key, value in state[leaf].items()}
        others = self.others | {"generator": self.generator.get_state()}
        return LoopState({**self.leaves, **moments, **others}, self.state.facts())

    def restore(self, saved: LoopState) -> None:
        """Return to a saved state."""
        self.state = _restore(saved, self.leaves, self.optimiser, self.generator)
        device = self.leaves["means"].device
        names = [name for name in saved.tensors if name in self.others or name.startswith(MEAN)]
        self.others = {name: saved.tensors[name].to(device) for name in names}


def _make_optimiser(leaves: dict[str, Tensor], rates: dict[str, float]) -> torch.optim.Optimizer:
    """Return Adam over the parameters that have numbers, in one kernel."""
    groups = [{"params": [leaf], "lr": rates[name], "name": name} for name, leaf in leaves.items() if leaf.numel()]
    return torch.optim.Adam(groups, eps=1e-15, fused=None if leaves["means"].is_meta else True)


def _set_rates(optimiser: torch.optim.Optimizer, rates: dict[str, float], decay: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rates[group["name"]] * decay


def _take_step(
    optimiser: torch.optim.Optimizer,
    leaves: dict[str, Tensor],
    cost: Tensor,
    editable: Tensor | None,
    stretch: Tensor | None,
) -> None:
    """Take a step down the gradient of a cost; where `editable` is given, only of these Gaussians. `stretch` [N]: by
    how much each moves further than by the learning rate."""
    optimiser.zero_grad()
    cost.backward()
    if editable is not None:
        for leaf in leaves.values():
            if leaf.grad is not None:
                leaf.grad.masked_fill_(~editable.view(-1, *[1] * (leaf.dim() - 1)), 0)
    before = None if stretch is None else leaves["means"].detach().clone()
    optimiser.step()
    if before is not None and stretch is not None:
        with torch.no_grad():
            leaves["means"].copy_(torch.lerp(before, leaves["means"], stretch[:, None]))


def _squared_error(image: Tensor, truth: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean squared error of images [H, W, 3] over a mask [H, W], 0-dimensional; nan where that is empty."""
    error = (image.clamp(0, 1) - truth) ** 2
    return error.mean() if mask is None else (error * mask[..., None]).sum() / (3 * mask.sum())


def _split_sh(gaussians: Gaussians) -> dict[str, Tensor]:
    """Return the parameters as they are optimised: the first harmonic, `sh`, apart from the `higher` ones."""
    return gaussians.tensors() | {"sh": gaussians.sh[:, :1], "higher": gaussians.sh[:, 1:]}


def _join_sh(leaves: dict[str, Tensor], antialiased: bool) -> Gaussians:
    parameters = {name: leaf for name, leaf in leaves.items() if name != "higher"}
    parameters["sh"] = torch.cat([leaves["sh"], leaves["higher"]], dim=1)
    return Gaussians(**parameters, antialiased=antialiased)


@dataclass
class FitState:
    """State of an optimisation, beside its Gaussians and its optimiser: the next `step`, the views left in this epoch
    (the next one last), and the running mean of the PSNR, without the `errors` of the last steps, which are still on
    the device."""

    step: int
    order: list[int]
    psnr: float | None
    errors: list[Tensor] = field(default_factory=list)

    def read_errors(self) -> None:
        """Read the squared errors from the device into the mean."""
        for error in torch.stack(self.errors).tolist() if self.errors else []:
            if not math.isnan(error):
                now = mse_to_psnr(error, 1.0, highest=100.0)
                self.psnr = now if self.psnr is None else 0.9 * self.psnr + 0.1 * now
        self.errors.clear()

    def facts(self) -> dict[str, Any]:
        """Return the state for JSON; the errors are read."""
        self.read_errors()
        return {"step": self.step, "order": self.order, "psnr": self.psnr}


def _restore(
    saved: LoopState, leaves: dict[str, Tensor], optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> FitState:
    for name, leaf in leaves.items():
        leaf.data = saved.tensors[name].to(leaf.device)
        prefix = f"{name}."
        moments = {key.removeprefix(prefix): key for key in saved.tensors if key.startswith(prefix)}
        # Adam counts its steps on the CPU, wherever the parameters are, unless it is fused.
        on_cpu = {"step"} if not optimiser.defaults["fused"] else set()
        optimiser.state[leaf] = {
            key: saved.tensors[full] if key in on_cpu else saved.tensors[full].to(leaf.device)
            for key, full in moments.items()
        }
    generator.set_state(saved.tensors["generator"])
    return FitState(**saved.facts)


def loss(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return 0.8 L1 + 0.2 (1 - SSIM) of images [H, W, 3], over the pixels of a mask [H, W] where one is given."""
    if mask is not None:
        image, truth = (torch.where(mask[..., None], pixels, 0) for pixels in (image, truth))
    if image.device.type == "cpu":  # by kernels, which take a fiftieth of the time
        from v2edit.scenes.rasterise.cpu_ssim import ImageLoss

        return ImageLoss.apply(image, truth, SSIM_WEIGHT)  # pyright: ignore[reportReturnType]
    return (1 - SSIM_WEIGHT) * (image - truth).abs().mean() + SSIM_WEIGHT * (1 - ssim_map(image, truth).mean())


@contextmanager
def single_thread() -> Iterator[None]:
    """Limit torch to one thread: the arrays are small, and its spinning threads would take the rasteriser's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep CUDA's convolutions from rounding to TF32, as they do by default: SSIM's variances are differences of
    nearly equal numbers."""
    before = torch.backends.cudnn.allow_tf32 if device.type == "cuda" else False
    if before:
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if before:
            torch.backends.cudnn.allow_tf32 = True


class _Distances:
    """Distances from the cameras in those of what these look at, at which a pixel has the size `pixel`."""

    def __init__(self, cameras: Cameras, pixel: float, device: torch.device) -> None:
        middle = cameras.centres.mean(0)
        self.middle = to_device(torch.from_numpy(middle).float(), device)
        self.spread = float(np.square(cameras.centres - middle).sum(1).mean())
        self.unit = pixel * float(np.median(cameras.intrinsics[:, 0, 0]))

    def relative(self, means: Tensor) -> Tensor:
        """Return the relative distances [N] of means [N, 3]: root mean squares over the cameras, within STRETCH."""
        return (((means - self.middle).square().sum(1) + self.spread).sqrt() / self.unit).clamp(*STRETCH)


def _pixel_size(cameras: Cameras, scene: Gaussians) -> float:
    """Return the size of a pixel at the distance of what the cameras look at, in world units."""
    distance = distance_of(cameras, scene.means.detach().cpu().numpy())
    return distance / float(np.median(cameras.intrinsics[:, 0, 0]))
