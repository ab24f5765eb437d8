"""A sketch of an edit while it runs: its x0 in colours, by a linear map that is fitted to the source's own latents.

No decoder is called: the source's latents and frames are both at hand, and those of one frame of colours that it may
not have, so for any model the map costs the encoding of that frame and a least-squares fit of C + 1 numbers a colour.
Letters: F latent frames, C channels, S frames of the sketch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from v2edit.backbones import Backbone
from v2edit.video.stream import Frames

FITTED, SHOWN = 8, 48  # latent frames, at most: that the map is fitted to, and that a sketch shows
FIRST = 32  # latent frames that the fitted ones are of: of a stream those behind them would have to be read
RIDGE = 1e-4  # of the latents' mean square: channels that say nothing of colours get no weight
CHART_CELLS = 12  # colours along the short side of the chart
SKETCHING = "sketching"  # the stage of progress that has a new sketch alone
EVERY = 1.0  # seconds between two sketches of a whole clip, whose latents may be on a GPU


@dataclass(frozen=True, eq=False)
class LatentColours:
    """A linear map from latents to colours: `weights`, float32 [C + 1, 3], give levels, the last row their offset."""

    weights: Tensor

    @classmethod
    def fit(cls, backbone: Backbone, latents: Tensor, frames: Frames, latent_frame_of: np.ndarray) -> LatentColours:
        """Fit the map to a clip's latents [1, F, C, h, w] and its frames, uint8 [T, H, W, 3], each in the latent frame
        that `latent_frame_of`, int [T], says, by least squares over some frames, averaged to the latents' size."""
        *_, height, width = latents.shape
        chart = colour_chart(*frames.shape[1:3])
        inputs = [_with_one(backbone.encode(chart[None])[0, 0].float().cpu().flatten(1).T)]
        colours = [_averaged(chart.astype(np.float32), height, width)]
        for one in spread(min(latents.shape[1], FIRST), FITTED):
            members = np.flatnonzero(latent_frame_of == one)
            if len(members) == 0:
                continue
            colours.append(_averaged(frames[members].mean(0, dtype=np.float32), height, width))
            inputs.append(_with_one(latents[0, one].float().cpu().flatten(1).T))
        x, y = torch.cat(inputs).double(), torch.cat(colours).double()
        gram = x.T @ x
        gram.diagonal()[:-1].add_(RIDGE * gram.diagonal().mean())
        return cls(torch.linalg.solve(gram, x.T @ y).float())

    def render(self, latents: Tensor) -> np.ndarray:
        """Return the colours of latents [1, F, C, h, w], uint8 [F, h, w, 3]."""
        pixels = _with_one(latents[0].float().cpu().permute(0, 2, 3, 1)) @ self.weights
        return pixels.round_().clamp_(0, 255).byte().numpy()


@dataclass(eq=False)
class Sketch:
    """The sketch of a clip: `frames`, uint8 [S, h, w, 3], at first the source's, some of all where there are many."""

    colours: LatentColours
    shown: np.ndarray  # latent frames, int [S]
    frames: np.ndarray
    _updated: float = field(default=-EVERY, init=False)

    @classmethod
    def of(cls, backbone: Backbone, latents: Tensor, frames: Frames, latent_frame_of: np.ndarray) -> Sketch:
        """Return the sketch of the source, of which `LatentColours.fit` has the shapes."""
        colours, shown = LatentColours.fit(backbone, latents, frames, latent_frame_of), spread(latents.shape[1], SHOWN)
        return cls(colours, shown, colours.render(latents[:, torch.from_numpy(shown)]))

    def update(self, rows: slice, x0: Tensor) -> None:
        """Show the edit's x0 [1, rows, C, h, w] in some latent frames."""
        if x0.device.type != "cpu":
            if time.monotonic() < self._updated + EVERY:
                return  # A GPU would wait for each copy.
            self._updated = time.monotonic()
        start, stop = rows.start or 0, (rows.start or 0) + x0.shape[1]
        places = np.flatnonzero((self.shown >= start) & (self.shown < stop))
        if len(places):
            self.frames[places] = self.colours.render(x0.cpu()[:, torch.from_numpy(self.shown[places] - start)])


def spread(count: int, most: int) -> np.ndarray:
    """Return the numbers of at most so many of `count` frames, int, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def colour_chart(height: int, width: int) -> np.ndarray:
    """Return a picture of many colours side by side, uint8 [H, W, 3]."""
    side = max(1, min(height, width) // CHART_CELLS)
    rows, columns = -(-height // side), -(-width // side)
    colours = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return colours.repeat(side, 0).repeat(side, 1)[:height, :width]


def _averaged(frame: np.ndarray, height: int, width: int) -> Tensor:
    """Return a frame, float32 [H, W, 3], averaged to a smaller size, [height * width, 3]."""
    return adaptive_avg_pool2d(torch.from_numpy(frame).permute(2, 0, 1), (height, width)).flatten(1).T


def _with_one(values: Tensor) -> Tensor:
    return torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
