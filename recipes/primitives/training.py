"""Shared by the training steps: clips on disk, a clock that resumes, averaged weights, Muon, sample sheets."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

OUT = Path(__file__).parent / "out"
WEIGHTS = Path(__file__).parent / "weights"  # committed: what training goes on from and the package does not need
PACKAGE = Path(__file__).parents[2] / "src/v2edit/weights"  # what ships
# Folders of a part that is trained here, and of the one that ships.
TRAINED = {
    "vae": ("vae/vae", "primitives/vae"),
    "text_encoder": ("text/text_encoder", "primitives/text_encoder"),
    "tokenizer": ("text/tokenizer", "primitives/tokenizer"),
}  # fmt: skip


def load_shards(folder: Path) -> list[np.ndarray]:
    """Load the shards of a folder, memory-mapped."""
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise SystemExit(f"{folder} is empty: run the previous step first")
    return [np.load(path, mmap_mode="r") for path in paths]


def find_trained(part: str) -> Path:
    """Return the folder of a part of the model that was trained here, else of the one that ships with the package."""
    own, shipped = TRAINED[part]
    return OUT / own if (OUT / own).is_dir() else PACKAGE / shipped


def gather_clips(shards: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Return clips by index, counted through all shards (of equal length)."""
    length = len(shards[0])
    return np.stack([shards[i // length][i % length] for i in indices])


def choose_device() -> tuple[torch.device, torch.dtype | None]:
    """Return a GPU with bf16, or the CPU, with bf16 only where it has the instructions (else float32 is three times
    faster)."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return torch.device("cpu"), torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else None


class TrainingClock:
    """Counts training time across interruptions, and schedules the learning rate: warm-up, constant, decay to zero."""

    def __init__(self, minutes: float, warmup: int = 200, fall: float = 0.5) -> None:
        self.minutes, self.warmup, self.fall = minutes, warmup, fall
        self.before, self.started = 0.0, time.time()

    @property
    def elapsed(self) -> float:
        return self.before + (time.time() - self.started) / 60

    @property
    def done(self) -> float:
        return min(1.0, self.elapsed / self.minutes)

    def factor(self, step: int) -> float:
        left = min(1.0, (1.0 - self.done) / self.fall)
        return min(1.0, (step + 1) / self.warmup) * max(left, 0.0)


class AveragedModel:
    """An exponential moving average of a model's weights, warmed up so that early noise is forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, current = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(averages, current, 1 - decay)


class Replicas:
    """Processes that train one model on batches of their own and average their weights every half a minute, weighted by
    their steps (local SGD: Stich 2019), as torchrun starts them; alone where it started none. The first of them keeps
    the checkpoints; the others end when it does."""

    EVERY = 30.0  # seconds

    def __init__(self) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        # Steps and samples since the last average, and whether the first process ends.
        self.own = torch.zeros(3, dtype=torch.float64)
        if self.count > 1:
            dist.init_process_group("gloo")
            now = torch.tensor(time.time(), dtype=torch.float64)
            dist.broadcast(now, 0)
            self.due = float(now) + self.EVERY

    def after_step(self, model: nn.Module, samples: int) -> int:
        """Count a step, average the weights if it is time to, and return how many samples all have seen since the last
        call that returned any."""
        if self.count == 1:
            return samples
        self.own += torch.tensor([1.0, samples, 0.0])
        total = 0
        while time.time() > self.due:  # as often as the others, also after a long step
            self.due += self.EVERY
            total += self._average(model)
        return total

    def close(self, model: nn.Module) -> None:
        """Average the weights once more and end the other processes."""
        if self.count > 1:
            self.own[2] = 1.0
            self._average(model)
            dist.destroy_process_group()

    @torch.no_grad()
    def _average(self, model: nn.Module) -> int:
        weights, steps = list(model.parameters()), float(self.own[0])
        dist.all_reduce(self.own)
        all_steps, samples, ends = self.own.tolist()
        self.own.zero_()
        if all_steps:
            flat = torch.cat([w.flatten() for w in weights]) * (steps / all_steps)
            dist.all_reduce(flat)
            for weight, mean in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
                weight.copy_(mean.view_as(weight))
        if ends and self.rank:
            dist.destroy_process_group()
            raise SystemExit(0)
        return round(samples)


class Muon(torch.optim.Optimizer):
    """The Muon optimizer: orthogonalised momentum (Jordan et al. 2024) at AdamW's update scale (Liu et al. 2025).

    torch.optim.Muon iterates in bf16, which takes a CPU without bf16 instructions 3.7 times as long as float32; here
    that is so only where the device has them, and all matrices of one shape are one batch.
    """

    def __init__(
        self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = choose_device()[1] or torch.float32

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in shapes.items():
                updates = []
                for matrix in matrices:
                    buffer = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                    buffer.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(matrix.grad, buffer, group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for matrix, update in zip(matrices, orthogonal(torch.stack(updates).to(self.dtype)), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonal(x: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices of a batch [N, rows, columns] by five Newton-Schulz steps."""
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


def save_state(path: Path, **state: object) -> None:
    """Write a checkpoint atomically, so that an interruption leaves the previous one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def write_sheet(rows: list[np.ndarray], path: Path, scale: int = 2) -> None:
    """Write a PNG of clips, uint8 [T, H, W, 3] each: one per row, frames side by side."""
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    image = Image.fromarray(picture)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)


def to_frames(video: Tensor) -> np.ndarray:
    """Convert [3, T, H, W] in -1..1 to uint8 [T, H, W, 3]."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def psnr(error: Tensor) -> float:
    """Return the PSNR in dB of a mean squared error over values in -1..1."""
    return 10 * math.log10(4.0 / max(float(error), 1e-12))


def batches(rng: np.random.Generator, pool: int | np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield batches of indices without end, from a pool or below a number, shuffled anew in each epoch."""
    while True:
        order = rng.permutation(pool)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]
