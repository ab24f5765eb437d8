"""What the training steps share: clips on disk, a clock that survives kills, averaged weights, sample sheets."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

OUT = Path(__file__).parent / "out"
MODEL = Path(__file__).parents[2] / "src/v2edit/weights/primitives"


def load_shards(folder: Path) -> list[np.ndarray]:
    """The shards of a folder, memory-mapped."""
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise SystemExit(f"nothing in {folder}: run the step before this one first")
    return [np.load(path, mmap_mode="r") for path in paths]


def autoencoder() -> Path:
    """The autoencoder trained here, else the committed one."""
    return OUT / "vae/vae" if (OUT / "vae/vae").is_dir() else MODEL / "vae"


def pick(shards: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """The clips of these indices, counted through all shards of equal length."""
    length = len(shards[0])
    return np.stack([shards[i // length][i % length] for i in indices])


def device_and_autocast() -> tuple[torch.device, torch.dtype | None]:
    """A GPU in bf16; a CPU in bf16 where it has the instructions for it (elsewhere float32 is three times faster)."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return torch.device("cpu"), torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else None


class Clock:
    """Counts training time over kills, and gives the learning rate's factor: warm up, stay, fall to nothing."""

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


class Averaged:
    """An exponential moving average of weights, warmed up so that early noise is forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - decay)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), at AdamW's scale of updates (Liu et al. 2025).

    torch.optim.Muon iterates in bf16, which takes a CPU without bf16 instructions 3.7 times as long as this: float32,
    and all matrices of one shape in one batch.
    """

    def __init__(
        self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

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
                for matrix, update in zip(matrices, orthogonal(torch.stack(updates)), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def orthogonal(x: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices of a batch [N, rows, columns], by five Newton-Schulz steps."""
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


def save_state(path: Path, **state: object) -> None:
    """Writes a checkpoint beside and renames it, so that a kill leaves the one before."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def sheet(rows: list[np.ndarray], path: Path, scale: int = 2) -> None:
    """A PNG of clips, one a row, frames side by side. Each is uint8 [T, H, W, 3]."""
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    image = Image.fromarray(picture)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)


def to_frames(video: Tensor) -> np.ndarray:
    """[3, T, H, W] in -1..1 to uint8 [T, H, W, 3]."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def psnr(error: Tensor) -> float:
    """Of a mean squared error over values in -1..1."""
    return 10 * math.log10(4.0 / max(float(error), 1e-12))


def batches(rng: np.random.Generator, pool: int | np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Endless batches of indices, out of a pool of them or below a number, each as often as it is there in an epoch."""
    while True:
        order = rng.permutation(pool)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]
