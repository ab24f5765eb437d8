"""Reconstruction: the optimisation of Gaussians towards posed images (Kerbl et al. 2023, Kheradmand et al. 2024).

Letters: N Gaussians, C views.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2edit.metrics.pixels import mse_to_psnr, ssim_map
from v2edit.runs.snapshots import LoopSnapshot, LoopState
from v2edit.scenes.cameras import Cameras, distance_of
from v2edit.scenes.config import FitConfig
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.initialise import initial_gaussians
from v2edit.scenes.rasterise import render
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
FINAL_RATE = 0.1  # of the initial learning rate, after exponential decay
COARSE = ((0.15, 4), (0.4, 2))  # until this share of the steps, images are downscaled by this factor
DEAD = 0.005  # opacity up to which a Gaussian is relocated
RELOCATE_EVERY, RELOCATE_UNTIL = 50, 0.8
TIMED_STEPS = 20  # of a short reconstruction, from which the time of the whole one is estimated
READ_EVERY = 25  # steps between readings of the PSNR from a GPU, each of which waits for all that it is given to do
SSIM_WEIGHT = 0.2  # of 1 - SSIM in the loss
OPACITY_COST, SCALE_COST = 5e-3, 5e-3  # regularisation, so that unneeded Gaussians fade (Kheradmand et al. 2024)


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
) -> Gaussians:
    """Reconstruct a scene from the training views of a dataset; held-out views are not used. `on_timed` is called with
    the seconds that it will take, about, before the first step; not where it resumes."""
    training, device = dataset.training, torch.device(device)
    fit = config.resolve(training.images[..., 0].size, device.type == "cuda")
    with single_thread():
        generator = torch.Generator().manual_seed(seed)
        start = initial_gaussians(training, fit.gaussians, fit.degree, generator, device)
    if on_timed is not None and snapshot.load() is None:
        on_timed(fit.fit_steps * time_step(start, training, min(TIMED_STEPS, fit.fit_steps)))
    return optimise_gaussians(start, training, fit.fit_steps, seed, None, on_progress, snapshot, coarse_to_fine=True)


def time_step(start: Gaussians, dataset: Dataset, steps: int) -> float:
    """Return the mean seconds of a step of a reconstruction, by a short one, whose result is not kept."""
    optimise_gaussians(start, dataset, 1)  # compiles
    began = time.perf_counter()
    optimise_gaussians(start, dataset, steps, coarse_to_fine=True).means.sum().item()  # waits for a GPU
    return (time.perf_counter() - began) / steps


def optimise_gaussians(
    start: Gaussians,
    dataset: Dataset,
    steps: int,
    seed: int = 0,
    editable: Tensor | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
    snapshot: LoopSnapshot = LoopSnapshot(),
    coarse_to_fine: bool = False,
) -> Gaussians:
    """Optimise Gaussians with Adam towards the images of every view of `dataset`, one view a step.

    The loss is that of Kerbl et al. 2023, 0.8 L1 + 0.2 (1 - SSIM). The number of Gaussians is constant: faded ones are
    relocated to where others have much to show (Kheradmand et al. 2024). Where `editable`, bool [N], is given, only
    these change, and those that have faded, which join them. `coarse_to_fine` begins with smaller images. A `snapshot`
    keeps the state, to resume from."""
    generator = torch.Generator().manual_seed(seed)
    device = start.means.device
    editable = None if editable is None else editable.clone()
    targets = Targets(dataset, {1, *(factor for _, factor in COARSE)}, device)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in _split_sh(start).items()}
    pixel = _pixel_size(dataset.cameras, start)
    rates = {**LEARNING_RATES, "means": LEARNING_RATES["means"] * pixel}
    optimiser = _make_optimiser(leaves, rates)
    state = FitState(0, [], None)
    if saved := snapshot.load():
        state = _restore(saved, leaves, optimiser, generator)
        editable = None if editable is None else saved.tensors["free"].to(device)
    with single_thread(), full_precision(device):
        save = lambda: _to_loop_state(state, leaves, optimiser, generator, editable)  # noqa: E731
        for step in snapshot.steps(state.step, steps, save):
            factor = next((f for until, f in COARSE if step < until * steps), 1) if coarse_to_fine else 1
            if not state.order:
                state.order = torch.randperm(len(dataset), generator=generator).tolist()
            k = state.order.pop()
            # Another background colour each step: dark surfaces must be dark, not holes in front of a dark background.
            red, green, blue = torch.rand(3, generator=generator).tolist()
            _set_rates(optimiser, rates, FINAL_RATE ** (step / steps))
            gaussians, (truth, mask) = _join_sh(leaves), targets.view(k, factor)
            image = render(gaussians, targets.cameras[factor][[k]], background=(red, green, blue)).colours[0]
            cost = loss(image, truth, mask)
            cost = cost + OPACITY_COST * gaussians.logit_opacities.sigmoid().mean()
            cost = cost + SCALE_COST * gaussians.log_scales.exp().mean() / (100 * pixel)
            _take_step(optimiser, leaves, cost, editable)
            if step % RELOCATE_EVERY == RELOCATE_EVERY - 1 and step < RELOCATE_UNTIL * steps:
                relocate(leaves, optimiser, generator, editable)
            state.step = step + 1
            if on_progress is not None:
                state.errors.append(_squared_error(image.detach(), truth, mask))
                if device.type == "cpu" or step % READ_EVERY == 0 or step + 1 == steps:
                    state.read_errors()
                on_progress(FitProgress(step + 1, steps, state.psnr))
    return _join_sh(leaves).detach()


def _make_optimiser(leaves: dict[str, Tensor], rates: dict[str, float]) -> torch.optim.Optimizer:
    """Return Adam over the parameters that have numbers, in one kernel on a GPU."""
    groups = [{"params": [leaf], "lr": rates[name], "name": name} for name, leaf in leaves.items() if leaf.numel()]
    return torch.optim.Adam(groups, eps=1e-15, fused=True if leaves["means"].is_cuda else None)


def _set_rates(optimiser: torch.optim.Optimizer, rates: dict[str, float], decay: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rates[group["name"]] * decay


def _take_step(
    optimiser: torch.optim.Optimizer, leaves: dict[str, Tensor], cost: Tensor, editable: Tensor | None
) -> None:
    """Take a step down the gradient of a cost; where `editable` is given, only of these Gaussians."""
    optimiser.zero_grad()
    cost.backward()
    if editable is not None:
        for leaf in leaves.values():
            if leaf.grad is not None:
                leaf.grad.masked_fill_(~editable.view(-1, *[1] * (leaf.dim() - 1)), 0)
    optimiser.step()


def _squared_error(image: Tensor, truth: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean squared error of images [H, W, 3] over a mask [H, W], 0-dimensional; nan where that is empty."""
    error = (image.clamp(0, 1) - truth) ** 2
    return error.mean() if mask is None else (error * mask[..., None]).sum() / (3 * mask.sum())


def _split_sh(gaussians: Gaussians) -> dict[str, Tensor]:
    """Return the parameters as they are optimised: the first harmonic, `sh`, apart from the `higher` ones."""
    return gaussians.tensors() | {"sh": gaussians.sh[:, :1], "higher": gaussians.sh[:, 1:]}


def _join_sh(leaves: dict[str, Tensor]) -> Gaussians:
    parameters = {name: leaf for name, leaf in leaves.items() if name != "higher"}
    return Gaussians(**parameters | {"sh": torch.cat([leaves["sh"], leaves["higher"]], dim=1)})


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


def _to_loop_state(
    state: FitState,
    leaves: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    editable: Tensor | None,
) -> LoopState:
    moments = {f"{name}.{key}": value for name, leaf in leaves.items() for key, value in optimiser.state[leaf].items()}
    others = {"generator": generator.get_state()} | ({} if editable is None else {"free": editable})
    return LoopState({**leaves, **moments, **others}, state.facts())


def _restore(
    saved: LoopState, leaves: dict[str, Tensor], optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> FitState:
    for name, leaf in leaves.items():
        leaf.data.copy_(saved.tensors[name])
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
    return (1 - SSIM_WEIGHT) * (image - truth).abs().mean() + SSIM_WEIGHT * (1 - mean_ssim(image, truth))


def mean_ssim(image: Tensor, truth: Tensor) -> Tensor:
    """Return the mean SSIM of images [H, W, 3]; on a CPU by the kernels, which take a fiftieth of the time."""
    if image.device.type != "cpu":
        return ssim_map(image, truth).mean()
    from v2edit.scenes.rasterise.cpu_ssim import MeanSSIM

    return MeanSSIM.apply(image, truth)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def relocate(
    leaves: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    editable: Tensor | None = None,
) -> int:
    """Move faded Gaussians onto others, drawn by opacity, and reduce the opacity and scale of both so that the image
    stays (Kheradmand et al. 2024, Eq. 9); return how many were moved. Where `editable`, bool [N], is given, they move
    only onto these, and become editable."""
    opacities = leaves["logit_opacities"].sigmoid().cpu()
    dead = (opacities <= DEAD).nonzero()[:, 0]
    alive = ((opacities > DEAD) & (True if editable is None else editable.cpu())).nonzero()[:, 0]
    if not len(dead) or not len(alive):
        return 0
    drawn = torch.multinomial(opacities[alive], len(dead), replacement=True, generator=generator)
    onto, copies = alive[drawn], torch.bincount(drawn, minlength=len(alive))[drawn] + 1
    opacity, shrink = compute_relocation(opacities[onto], copies)
    device = leaves["means"].device
    dead, onto = dead.to(device), onto.to(device)
    if editable is not None:
        editable[dead] = True
    leaves["logit_opacities"][onto] = torch.logit(opacity.clamp(DEAD, 1 - 1e-6)).to(device)
    leaves["log_scales"][onto] += shrink.log()[:, None].to(device)
    for leaf in leaves.values():
        leaf[dead] = leaf[onto]
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimiser.state[leaf]:
                optimiser.state[leaf][name][onto] = 0
                optimiser.state[leaf][name][dead] = 0
    return len(dead)


def compute_relocation(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return the opacity, and the factor of the scale, of n copies of a Gaussian that together look like the one
    (Kheradmand et al. 2024, Eq. 9; gsplat's `compute_relocation`):
    o' = 1 - (1 - o)^(1/n), and s'/s = o / sum_k C(n, k) (-1)^(k-1) o'^k / sqrt(k), k = 1..n."""
    copies = copies.clamp(max=20).double()
    opacities = opacities.double().clamp(max=1 - 1e-7)
    new = 1 - (1 - opacities) ** (1 / copies)
    k = torch.arange(1, int(copies.max()) + 1, dtype=torch.float64)
    choose = torch.exp(
        torch.lgamma(copies[:, None] + 1) - torch.lgamma(k + 1) - torch.lgamma((copies[:, None] - k).clamp(min=0) + 1)
    )
    terms = torch.where(k <= copies[:, None], choose * (-1.0) ** (k - 1) * new[:, None] ** k / k.sqrt(), 0)
    return new.float(), (opacities / terms.sum(1)).float()


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


def _pixel_size(cameras: Cameras, scene: Gaussians) -> float:
    """Return the size of a pixel at the distance of what the cameras look at, in world units."""
    distance = distance_of(cameras, scene.means.detach().cpu().numpy())
    return distance / float(np.median(cameras.intrinsics[:, 0, 0]))
