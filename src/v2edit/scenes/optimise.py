"""Reconstruction: Gaussians that show what posed images show.

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

# Steps of Adam, in what each parameter is measured in; positions in pixels of the images that are fitted.
RATES = {
    "means": 0.15,
    "quats": 4e-3,
    "log_scales": 1.5e-2,
    "logit_opacities": 4e-2,
    "sh": 5e-2,
    # The harmonics above the first, slower: few views would else have a colour's change shared out between what all
    # views see and what only they do, and from elsewhere, or in a viewer without harmonics, it would be half of one.
    "higher": 1e-3,
}
LAST = 0.1  # of its rate each ends with
COARSE = ((0.15, 4), (0.4, 2))  # until this share of the steps, images are this many times smaller
SMALLEST = 24  # pixels: no smaller for the sake of coarseness
DEAD = 0.005  # an opacity below which a Gaussian is put to use elsewhere
RELOCATE_EVERY, RELOCATE_UNTIL = 50, 0.8
STRUCTURE = 0.2  # the weight of D-SSIM in the loss
OPACITY_COST, SIZE_COST = 5e-3, 5e-3  # what is not needed fades (Kheradmand et al. 2024)


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
    keeps the state, to resume from.
    """
    generator = torch.Generator().manual_seed(seed)
    device = start.means.device
    editable = None if editable is None else editable.clone()
    levels = {factor: _level(dataset, factor, device) for factor in {1, *(factor for _, factor in COARSE)}}
    leaves = {name: one.detach().clone().requires_grad_() for name, one in _split(start).items()}
    pixel = _pixel_size(dataset.cameras, start)
    rates = {**RATES, "means": RATES["means"] * pixel}
    optimiser = torch.optim.Adam(
        [{"params": [one], "lr": rates[name], "name": name} for name, one in leaves.items()], eps=1e-15
    )
    at = FitState(0, [], None)
    if kept := snapshot.load():
        at = _restored(kept, leaves, optimiser, generator)
        editable = None if editable is None else kept.tensors["free"].to(device)
    with single_thread():
        for step in snapshot.steps(at.step, steps, lambda: _kept(at, leaves, optimiser, generator, editable)):
            factor = next((f for until, f in COARSE if step < until * steps), 1) if coarse_to_fine else 1
            cameras, images, masks = levels[factor]
            if not at.order:
                at.order = torch.randperm(len(dataset), generator=generator).tolist()
            k = at.order.pop()
            decay = LAST ** (step / steps)
            for group in optimiser.param_groups:
                group["lr"] = rates[group["name"]] * decay
            gaussians = _joined(leaves)
            # Before another colour each time: what is dark must be dark, and not a hole before a dark background.
            red, green, blue = torch.rand(3, generator=generator).tolist()
            image = render(gaussians, cameras[[k]], background=(red, green, blue)).colours[0]
            mask = None if masks is None else masks[k]
            cost = loss(image, images[k], mask)
            cost = cost + OPACITY_COST * gaussians.logit_opacities.sigmoid().mean()
            cost = cost + SIZE_COST * gaussians.log_scales.exp().mean() / (100 * pixel)
            optimiser.zero_grad()
            cost.backward()
            if editable is not None:
                for one in leaves.values():
                    if one.grad is not None:
                        one.grad[~editable] = 0
            optimiser.step()
            if step % RELOCATE_EVERY == RELOCATE_EVERY - 1 and step < RELOCATE_UNTIL * steps:
                relocate(leaves, optimiser, generator, editable)
            at.step = step + 1
            if on_progress is not None:
                if mask is None or mask.any():
                    now = psnr(image.detach().clamp(0, 1), images[k], mask, data_range=1.0, highest=100.0)
                    at.psnr = now if at.psnr is None else 0.9 * at.psnr + 0.1 * now
                on_progress(FitProgress(step + 1, steps, at.psnr))
    return _joined(leaves).detach()


def _split(gaussians: Gaussians) -> dict[str, Tensor]:
    """The parameters as they are optimised: the first harmonic, `sh`, apart from the `higher` ones."""
    return gaussians.tensors() | {"sh": gaussians.sh[:, :1], "higher": gaussians.sh[:, 1:]}


def _joined(leaves: dict[str, Tensor]) -> Gaussians:
    own = {name: one for name, one in leaves.items() if name != "higher"}
    return Gaussians(**own | {"sh": torch.cat([leaves["sh"], leaves["higher"]], dim=1)})


@dataclass
class FitState:
    """Where a fit stands, beside its Gaussians and its optimiser: before `step`, the views still to come in this round
    (the next one last), and the PSNR as it is reported."""

    step: int
    order: list[int]
    psnr: float | None


def _kept(
    at: FitState,
    leaves: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    free: Tensor | None,
) -> LoopState:
    moments = {f"{name}.{key}": value for name, one in leaves.items() for key, value in optimiser.state[one].items()}
    more = {"generator": generator.get_state()} | ({} if free is None else {"free": free})
    return LoopState({**leaves, **moments, **more}, asdict(at))


def _restored(
    kept: LoopState, leaves: dict[str, Tensor], optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> FitState:
    for name, one in leaves.items():
        one.data.copy_(kept.tensors[name])
        prefix = f"{name}."
        moments = {key.removeprefix(prefix): key for key in kept.tensors if key.startswith(prefix)}
        # Adam counts its steps on the CPU, wherever the parameters are.
        optimiser.state[one] = {
            key: kept.tensors[full] if key == "step" else kept.tensors[full].to(one.device)
            for key, full in moments.items()
        }
    generator.set_state(kept.tensors["generator"])
    return FitState(**kept.facts)


def loss(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """0.8 L1 + 0.2 (1 - SSIM) of images [H, W, 3], over the pixels of a mask [H, W] where one is given."""
    if mask is not None:
        image, truth = (torch.where(mask[..., None], one, 0) for one in (image, truth))
    return (1 - STRUCTURE) * (image - truth).abs().mean() + STRUCTURE * (1 - ssim_map(image, truth).mean())


@torch.no_grad()
def relocate(
    leaves: dict[str, Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    free: Tensor | None = None,
) -> int:
    """Moves Gaussians that have faded onto others, chosen by opacity, and shares the load between them so that the
    image stays (Kheradmand et al. 2024, Eq. 9); how many were moved. Where `free`, bool [N], is given, onto these
    alone, and what was moved is free from then on."""
    opacities = leaves["logit_opacities"].sigmoid().cpu()
    dead = (opacities <= DEAD).nonzero()[:, 0]
    alive = ((opacities > DEAD) & (True if free is None else free.cpu())).nonzero()[:, 0]
    if not len(dead) or not len(alive):
        return 0
    drawn = torch.multinomial(opacities[alive], len(dead), replacement=True, generator=generator)
    onto, copies = alive[drawn], torch.bincount(drawn, minlength=len(alive))[drawn] + 1
    opacity, shrink = compute_relocation(opacities[onto], copies)
    device = leaves["means"].device
    dead, onto = dead.to(device), onto.to(device)
    if free is not None:
        free[dead] = True
    leaves["logit_opacities"][onto] = torch.logit(opacity.clamp(DEAD, 1 - 1e-6)).to(device)
    leaves["log_scales"][onto] += shrink.log()[:, None].to(device)
    for one in leaves.values():
        one[dead] = one[onto]
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimiser.state[one]:
                optimiser.state[one][name][onto] = 0
                optimiser.state[one][name][dead] = 0
    return len(dead)


def compute_relocation(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """The opacity, and the factor of the scale, with which each of n Gaussians in one place does 1/n of the work:
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
    """One torch thread: the arrays are small, and its waiting threads would take the rasteriser's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _level(dataset: Dataset, factor: int, device: torch.device) -> tuple[Cameras, Tensor, Tensor | None]:
    """Cameras, images [C, h, w, 3] of 0..1 and masks of the dataset made smaller by a factor."""
    cameras = dataset.cameras
    factor = max(1, min(factor, min(cameras.height, cameras.width) // SMALLEST))
    size = max(1, round(cameras.height / factor)), max(1, round(cameras.width / factor))
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2)
    parts = [F.interpolate(part.float() / 255, size, mode="area") for part in images.split(8)]
    masks = None
    if dataset.masks is not None:
        share = F.interpolate(torch.from_numpy(dataset.masks)[:, None].float(), size, mode="area")[:, 0]
        masks = (share > 0.999).to(device)
    return cameras.resized(*size), torch.cat(parts).permute(0, 2, 3, 1).contiguous().to(device), masks


def _pixel_size(cameras: Cameras, scene: Gaussians) -> float:
    """What a pixel spans at the distance of what the cameras look at, in world units."""
    distance = distance_of(cameras, scene.means.detach().cpu().numpy())
    return distance / float(np.median(cameras.intrinsics[:, 0, 0]))
