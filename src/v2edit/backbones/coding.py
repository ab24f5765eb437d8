"""Clips to latents and back: a model's autoencoder with its chunks in turn, and loops.

Letters: T frames, F latent frames."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2edit.backbones.finite import check_finite
from v2edit.host import retry_smaller_on_oom

# The loop is cut open one frame late: where it closes, the last and the first frame then share a latent frame, and
# its later half; between latent frames the autoencoder's steps are the largest.
CUT = 1


class VideoCoding:
    """The encoding and decoding of a `Backbone`, by diffusers' autoencoder `vae`."""

    # Of a family; `configure` may set them.
    temporal: int  # frames of a latent frame
    spatial: int  # pixels of a latent's side
    group: int  # frames that the autoencoder takes together, after a first one
    unit = 1  # latent frames of a token; a clip's first one, which stands for one frame, is repeated to fill its token
    # An autoencoder that is causal in time codes a loop as if it had been playing for so many groups: its first latent
    # frame then is one like the others.
    lead_groups = 4
    trail_groups = 0  # of a loop, decoded after it where the decoder looks ahead
    coded_whole = False  # whether a clip is coded all at once, in memory that grows with it
    coded_frame_by_frame = False  # whether what the decoder gives at a time is final, and may become bytes at once
    vae: Any

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    def shrink_coding(self) -> str | None:
        raise NotImplementedError

    @property
    def latent_group(self) -> int:
        """The latent frames of a group."""
        return self.group // self.temporal

    @property
    def coding_period(self) -> float:
        """The number of frames after which the autoencoder's work repeats; infinite where it takes a clip whole."""
        return math.inf if self.coded_whole else self.group

    def scaled(self, latents: Tensor) -> Tensor:
        """Scale the autoencoder's latents [1, F, C, h, w] to what the network takes."""
        return latents * self.vae.config.scaling_factor

    def unscaled(self, latents: Tensor) -> Tensor:
        """Undo `scaled`."""
        return latents / self.vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode the autoencoder's latents [1, C, F, h, w] to a video [1, 3, T, H, W], -1 to 1."""
        return self.vae.decode(latents).sample

    @torch.no_grad()
    def encode(self, frames: np.ndarray, generator: torch.Generator | None = None, loop: bool = False) -> Tensor:
        lead, latent_lead = self.loop_lead() if loop else (0, 0)
        if loop:
            frames = frames[np.arange(CUT - lead, CUT + len(frames)) % len(frames)]

        def load_frames(encoder: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            return ((args[0].to(self.device).float() / 255 * 2 - 1).to(self.vae.dtype),)

        # Only the frames that the encoder takes at a time are moved to the device and converted there.
        hook = self.vae.encoder.register_forward_pre_hook(load_frames)
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
        try:
            posterior = retry_smaller_on_oom(lambda: self.vae.encode(video), self.shrink_coding).latent_dist
        finally:
            hook.remove()
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        latents = latents.transpose(1, 2)[:, latent_lead:]
        check_finite(latents, "the video's latents", self.vae.dtype)
        if not loop:
            latents = latents[:, torch.arange(1 - self.unit, latents.shape[1]).clamp(min=0)]
        return self.scaled(latents.float())

    @torch.no_grad()
    def decode(self, latents: Tensor, loop: bool = False) -> np.ndarray:
        lead, latent_lead = self.loop_lead() if loop else (0, 0)
        frames = latents.shape[1] * self.temporal if loop else None
        if loop:
            trail = self.group * self.trail_groups // self.temporal
            latents = latents[:, torch.arange(-latent_lead, latents.shape[1] + trail) % latents.shape[1]]
        else:
            latents = latents[:, self.unit - 1 :]
        finite = torch.ones((), dtype=torch.bool, device=latents.device)
        as_bytes = self.coded_frame_by_frame and not self.vae.use_tiling  # tiles are blended before

        def store_frames(decoder: Any, args: Any, output: Any) -> Any:
            video, *rest = output if isinstance(output, tuple) else (output,)
            finite.logical_and_(torch.isfinite(video).all())
            video = (to_uint8(video) if as_bytes else video).cpu()
            return (video, *rest) if isinstance(output, tuple) else video

        # The autoencoder gives a few frames at a time: the clip is put together in main memory.
        hook = self.vae.decoder.register_forward_hook(store_frames)
        try:
            latents = self.unscaled(latents).transpose(1, 2)
            video = retry_smaller_on_oom(lambda: self.decode_latents(latents.to(self.vae.dtype)), self.shrink_coding)
        finally:
            hook.remove()
        check_finite(torch.where(finite, 0.0, math.nan), "the decoded frames", self.vae.dtype)
        video = (video if as_bytes else to_uint8(video))[0].permute(1, 2, 3, 0).numpy()[lead:][:frames]
        return np.roll(video, CUT, axis=0) if loop else video

    def latent_frame_of(self, frames: int, loop: bool = False) -> np.ndarray:
        """Return the latent frame that holds each of so many frames, int [T]."""
        index = np.arange(frames)
        if loop:
            return (index - CUT) // self.temporal % (frames // self.temporal)
        return np.where(index > 0, (index - 1) // self.temporal + self.unit, self.unit - 1)

    def chunk_of(self, frames: int, loop: bool = False) -> np.ndarray:
        """Return the chunk of frames that the autoencoder decodes together for each of so many, int [T]."""
        index = (np.arange(frames) - CUT) % frames if loop else np.maximum(np.arange(frames) - 1, 0)
        return np.zeros(frames, int) if math.isinf(self.coding_period) else (index // self.coding_period).astype(int)

    def loop_lead(self) -> tuple[int, int]:
        """Return the number of frames, and of latent frames, that are coded before a loop and thrown away."""
        frames = self.group * self.lead_groups + 1
        return frames, (frames - 1) // self.temporal + 1


class StandardisedCoding(VideoCoding):
    """Coding where the autoencoder's configuration has a mean and a deviation for each channel of its latents."""

    def latent_statistics(self, latents: Tensor) -> list[Tensor]:
        """Return the mean and the deviation [1, 1, C, 1, 1] of latents."""
        config = self.vae.config
        return [latents.new_tensor(values).view(1, 1, -1, 1, 1) for values in (config.latents_mean, config.latents_std)]

    def scaled(self, latents: Tensor) -> Tensor:
        mean, std = self.latent_statistics(latents)
        return (latents - mean) * self.vae.config.get("scaling_factor", 1.0) / std

    def unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self.latent_statistics(latents)
        return latents * std / self.vae.config.get("scaling_factor", 1.0) + mean


def to_uint8(video: Tensor) -> Tensor:
    """Convert the decoder's output, -1 to 1, to bytes."""
    return ((video.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
