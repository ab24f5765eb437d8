"""Reconstruction: the optimisation of Gaussians towards posed images (Kerbl et al. 2023, Kheradmand et al. 2024).

Letters: N Gaussians, C views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.metrics.pixels import psnr, ssim_map
from v2edit.runs.snapshots import LoopSnapshot, LoopState
from v2edit.scenes.cameras import Cameras, distance_of
from v2edit.scenes.config import FitConfig
from v2edit.scenes.dataset import Dataset
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.initialise import initial_gaussians
from v2edit.scenes.rasterise import render

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
MIN_COARSE_SIDE = 24  # pixels
DEAD = 0.005  # opacity up to which a Gaussian is relocated
RELOCATE_EVERY, RELOCATE_UNTIL = 50, 0.8
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
) -> Gaussians:
    """Reconstruct a scene from the training views of a dataset; held-out views are not used."""
    training = dataset.training
    with single_thread():
        generator = torch.Generator().manual_seed(seed)
        start = initial_gaussians(training, config.gaussians, config.degree, generator).to(device)
    return optimise_gaussians(start, training, config.fit_steps, seed, None, on_progress, snapshot, coarse_to_fine=True)


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
    levels = {factor: _level(dataset, factor, device) for factor in {1, *(factor for _, factor in COARSE)}}
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in _split_sh(start).items()}
    pixel = _pixel_size(dataset.cameras, start)
    rates = {**LEARNING_RATES, "means": LEARNING_RATES["means"] * pixel}
    groups = [{"params": [leaf], "lr": rates[name], "name": name} for name, leaf in leaves.items()]
    optimiser = torch.optim.Adam(groups, eps=1e-15)
    state = FitState(0, [], None)
    if saved := snapshot.load():
        state = _restore(saved, leaves, optimiser, generator)
        editable = None if editable is None else saved.tensors["free"].to(device)
    with single_thread():
        save = lambda: _to_loop_state(state, leaves, optimiser, generator, editable)  # noqa: E731
        for step in snapshot.steps(state.step, steps, save):
            factor = next((f for until, f in COARSE if step < until * steps), 1) if coarse_to_fine else 1
            cameras, images, masks = levels[factor]
            if not state.order:
                state.order = torch.randperm(len(dataset), generator=generator).tolist()
            k = state.order.pop()
            decay = FINAL_RATE ** (step / steps)
            for group in optimiser.param_groups:
                group["lr"] = rates[group["name"]] * decay
            gaussians = _join_sh(leaves)
            # Another background colour each step: dark surfaces must be dark, not holes in front of a dark background.
            red, green, blue = torch.rand(3, generator=generator).tolist()
            image = render(gaussians, cameras[[k]], background=(red, green, blue)).colours[0]
            mask = None if masks is None else masks[k]
            cost = loss(image, images[k], mask)
            cost = cost + OPACITY_COST * gaussians.logit_opacities.sigmoid().mean()
            cost = cost + SCALE_COST * gaussians.log_scales.exp().mean() / (100 * pixel)
            _take_step(optimiser, leaves, cost, editable)
            if step % RELOCATE_EVERY == RELOCATE_EVERY - 1 and step < RELOCATE_UNTIL * steps:
                relocate(leaves, optimiser, generator, editable)
            state.step = step + 1
            if on_progress is not None:
                if mask is None or mask.any():
                    now = psnr(image.detach().clamp(0, 1), images[k], mask, data_range=1.0, highest=100.0)
                    state.psnr = now if state.psnr is None else 0.9 * state.psnr + 0.1 * now
                on_progress(FitProgress(step + 1, steps, state.psnr))
    return _join_sh(leaves).detach()


def _take_step(
    optimiser: torch.optim.Optimizer, leaves: dict[str, Tensor], cost: Tensor, editable: Tensor | None
) -> None:
    """Take a step down the gradient of a cost; where `editable` is given, only of these Gaussians."""
    optimiser.zero_grad()
    cost.backward()
    if editable is not None:
        for leaf in leaves.values():
            if leaf.grad is not None:
                leaf.grad[~editable] = 0
    optimiser.step()


def _split_sh(gaussians: Gaussians) -> dict[str, Tensor]:
    """Return the parameters as they are optimised: the first harmonic, `sh`, apart from the `higher` ones."""
    return gaussians.tensors() | {"sh": gaussians.sh[:, :1], "higher": gaussians.sh[:, 1:]}


def _join_sh(leaves: dict[str, Tensor]) -> Gaussians:
    parameters = {name: leaf for name, leaf in leaves.items() if name != "higher"}
    return Gaussians(**parameters | {"sh": torch.cat([leaves["sh"], leaves["higher"]], dim=1)})


@dataclass
class FitState:
    """State of an optimisation, beside its Gaussians and its optimiser: the next `step`, the views left in this epoch
    (the next one last), and the running mean of the PSNR."""

    step: int
    order: list[int]
    psnr: float | None


def _to_loop_state(
    state: FitState,
    leaves: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    editable: Tensor | None,
) -> LoopState:
    moments = {f"{name}.{key}": value for name, leaf in leaves.items() for key, value in optimiser.state[leaf].items()}
    others = {"generator": generator.get_state()} | ({} if editable is None else {"free": editable})
    return LoopState({**leaves, **moments, **others}, asdict(state))


def _restore(
    saved: LoopState, leaves: dict[str, Tensor], optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> FitState:
    for name, leaf in leaves.items():
        leaf.data.copy_(saved.tensors[name])
        prefix = f"{name}."
        moments = {key.removeprefix(prefix): key for key in saved.tensors if key.startswith(prefix)}
        # Adam counts its steps on the CPU, wherever the parameters are.
        optimiser.state[leaf] = {
            key: saved.tensors[full] if key == "step" else saved.tensors[full].to(leaf.device)
            for key, full in moments.items()
        }
    generator.set_state(saved.tensors["generator"])
    return FitState(**saved.facts)


def loss(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return 0.8 L1 + 0.2 (1 - SSIM) of images [H, W, 3], over the pixels of a mask [H, W] where one is given."""
    if mask is not None:
        image, truth = (torch.where(mask[..., None], pixels, 0) for pixels in (image, truth))
    return (1 - SSIM_WEIGHT) * (image - truth).abs().mean() + SSIM_WEIGHT * (1 - ssim_map(image, truth).mean())


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


def _level(dataset: Dataset, factor: int, device: torch.device) -> tuple[Cameras, Tensor, Tensor | None]:
    """Return the cameras, images [C, h, w, 3] of 0..1 and masks of a dataset, downscaled by a factor."""
    cameras = dataset.cameras
    factor = max(1, min(factor, min(cameras.height, cameras.width) // MIN_COARSE_SIDE))
    size = max(1, round(cameras.height / factor)), max(1, round(cameras.width / factor))
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2)
    parts = [F.interpolate(part.float() / 255, size, mode="area") for part in images.split(8)]
    masks = None
    if dataset.masks is not None:
        share = F.interpolate(torch.from_numpy(dataset.masks)[:, None].float(), size, mode="area")[:, 0]
        masks = (share > 0.999).to(device)
    return cameras.resized(*size), torch.cat(parts).permute(0, 2, 3, 1).contiguous().to(device), masks


def _pixel_size(cameras: Cameras, scene: Gaussians) -> float:
    """Return the size of a pixel at the distance of what the cameras look at, in world units."""
    distance = distance_of(cameras, scene.means.detach().cpu().numpy())
    return distance / float(np.median(cameras.intrinsics[:, 0, 0]))
