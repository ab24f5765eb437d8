"""Removal: what an edit took away goes from the scene, instead of being painted over with what lies behind it.

From the few views of a path, a painted surface looks as good as none. What the scene has behind the object decides: are
the opacities alone optimised, and do the renders come to what the edited frames show, then the object has gone.

Letters: N Gaussians, T frames.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from v2edit.scenes.dataset import Dataset
from v2edit.scenes.gaussians import Gaussians
from v2edit.scenes.masks import weights_on
from v2edit.scenes.optimise import single_thread
from v2edit.scenes.rasterise import render

ROUNDS = 8  # steps a frame
RATE = 0.5  # of Adam, in logits
GONE = -10.0  # logit of the opacity of what was taken away
FADED = 0.3  # share of its opacity that a Gaussian must lose, to be a candidate
CLOSE = 0.1  # of 1: mean difference in colour up to which a render shows what the edited frame does
BETTER = 0.5  # the share of the scene's own difference that it must be below, too
SMOOTHING = 5  # pixels: side of the squares over which differences are averaged
MOST = 0.5  # the share of a faded Gaussian's weight that must lie on such pixels


def remove_vanished(scene: Gaussians, target: Dataset, mask: Tensor, editable: Tensor, seed: int) -> Gaussians:
    """Return the scene with the opacity of what the edited frames of `target` no longer show taken away. `mask` [T, H,
    W]: how much of each pixel is edited; `editable`, bool [N]: what may change."""
    with single_thread():
        faded = _fade(scene, target, mask, editable, seed)
        before, after = scene.logit_opacities.sigmoid(), faded.logit_opacities.sigmoid()
        candidates = editable & (after < (1 - FADED) * before)
        if not candidates.any():
            return scene
        shown = _explained(scene, faded, target, mask, candidates)
    return replace(scene, logit_opacities=torch.where(candidates & shown, GONE, scene.logit_opacities))


def _fade(scene: Gaussians, target: Dataset, mask: Tensor, editable: Tensor, seed: int) -> Gaussians:
    """Optimise the opacities alone towards the edited frames, downwards."""
    generator = torch.Generator().manual_seed(seed)
    device = scene.means.device
    opacities = scene.logit_opacities.clone().requires_grad_()
    optimiser = torch.optim.Adam([opacities], lr=RATE)
    for step in range(ROUNDS * len(target)):
        k = step % len(target)
        background = torch.rand(3, generator=generator).tolist()  # a hole must not look like a dark surface
        image = render(replace(scene, logit_opacities=opacities), target.cameras[[k]], background=tuple(background))
        truth, share = _frame(target, k, device), mask[k].to(device)
        cost = ((image.colours[0] - truth).abs().mean(-1) * share).mean()
        optimiser.zero_grad()
        cost.backward()
        assert opacities.grad is not None
        opacities.grad.masked_fill_(~editable, 0)
        optimiser.step()
        with torch.no_grad():
            opacities.copy_(torch.minimum(opacities, scene.logit_opacities))
    return replace(scene, logit_opacities=opacities.detach())


def _explained(scene: Gaussians, faded: Gaussians, target: Dataset, mask: Tensor, candidates: Tensor) -> Tensor:
    """Return which Gaussians lie mostly on pixels where the scene without the candidates shows what the edited frames
    do, bool [N]."""
    device = scene.means.device
    without = replace(scene, logit_opacities=torch.where(candidates, faded.logit_opacities, scene.logit_opacities))
    edited, good = mask > 0.5, []
    for k in range(len(target)):
        camera, truth = target.cameras[[k]], _frame(target, k, device)
        with torch.no_grad():
            own, other = (_smooth((render(one, camera).colours[0] - truth).abs().mean(-1)) for one in (scene, without))
        good.append((other < CLOSE) & (other < BETTER * own) & edited[k].to(device))
    on_good, total = weights_on(scene, target.cameras, torch.stack(good), edited)
    return on_good >= MOST * total  # what is hidden in the object goes with it


def _frame(target: Dataset, k: int, device: torch.device) -> Tensor:
    return torch.from_numpy(target.images[k]).to(device).float() / 255


def _smooth(error: Tensor) -> Tensor:
    return F.avg_pool2d(error[None], SMOOTHING, 1, SMOOTHING // 2, count_include_pad=False)[0]
