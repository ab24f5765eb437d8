"""nerfstudio's methods (Tancik et al. 2023) as trainers: nerfacto and splatfacto, by ns-train, ns-render, ns-export."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2edit.errors import UserError
from v2edit.scenes.trainers.base import DATASET, MODEL, FitRequest

PREFIX = "nerfstudio:"
METHODS = ("nerfacto", "nerfacto-big", "nerfacto-huge", "splatfacto", "splatfacto-big")
STEP = re.compile(r"^\s*(\d+) \(\d+", re.MULTILINE)  # of its table of steps
CHECKPOINT = re.compile(r"step-(\d+)\.ckpt")
# Of nerfacto: what is sized by the number of its images would not load with another number of them.
SAME_SIZE = ("--pipeline.model.use-appearance-embedding", "False", "--pipeline.model.camera-optimizer.mode", "off")


@dataclass(frozen=True)
class Nerfstudio:
    """A method of nerfstudio. `arguments` are the user's own for ns-train, before its dataparser. Poses are left as
    they are, so that what is rendered later is seen from the cameras that are asked for."""

    method: str
    on_cpu: bool = False
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(
                f"--trainer is {PREFIX}{self.method}, expected {' or '.join(PREFIX + one for one in METHODS[::3])}; "
                "a .toml file names the commands of any other"
            )

    @property
    def name(self) -> str:
        return PREFIX + self.method

    @property
    def programs(self) -> tuple[str, ...]:
        return "ns-train", "ns-render", *(["ns-export"] if self._is_splat else [])

    @property
    def starts_warm(self) -> bool:
        # splatfacto of nerfstudio 1.1.5 loads Gaussians that its optimisers do not hold: it would train no further.
        return not self._is_splat

    @property
    def continues(self) -> bool:
        return self.starts_warm

    @property
    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": list(self.arguments), "on_cpu": self.on_cpu}

    @property
    def _is_splat(self) -> bool:
        return self.method.startswith("splatfacto")

    def fit_command(self, request: FitRequest) -> list[str]:
        """Return the ns-train command; one that was ended before it was done goes on from its last checkpoint."""
        first, done = self._first_step(request), self._last_step(request.folder) if self.continues else None
        start = request.folder if done is not None else request.previous
        steps = request.steps - (0 if done is None else done + 1 - first)
        words = ["ns-train", self.method, "--data", DATASET, "--output-dir", MODEL, "--experiment-name", "scene"]
        words += ["--timestamp", "run", "--vis", "tensorboard", "--max-num-iterations", str(max(1, steps))]
        words += ["--machine.seed", str(request.seed)]
        # Its evaluation measures training views anew, and takes longer than the steps between.
        words += [word for what in ("batch", "image", "all-images") for word in (f"--steps-per-eval-{what}", "0")]
        if not self._is_splat:
            words += SAME_SIZE
        if self.on_cpu:
            words += ["--machine.device-type", "cpu"]
            words += [] if self._is_splat else ["--pipeline.model.implementation", "torch"]
        if start is not None:
            words += ["--load-dir", os.path.relpath(self._checkpoints(start), request.folder)]
        untouched = ["--orientation-method", "none", "--center-method", "none", "--auto-scale-poses", "False"]
        return [*words, *self.arguments, "nerfstudio-data", *untouched, "--downscale-factor", "1"]

    def find_fault(self, request: FitRequest) -> str | None:
        if not (self._base(request.folder) / "config.yml").is_file():
            return "wrote no config.yml"
        last, expected = self._last_step(request.folder), self._first_step(request) + request.steps - 1
        if last is None:
            return "wrote no checkpoint"
        return None if last >= expected else f"trained to step {last} only, of {expected}"

    def read_share(self, request: FitRequest, text: str) -> float | None:
        steps = STEP.findall(text)
        return (int(steps[-1]) + 1 - self._first_step(request)) / request.steps if steps else None

    def render_command(self, folder: Path, cameras: Path, output: Path) -> list[str]:
        config, given, written = (
            os.path.relpath(path, folder) for path in (self._base(folder) / "config.yml", cameras, output)
        )
        words = ["ns-render", "dataset", "--load-config", config, "--data", given, "--output-path", written]
        return [*words, "--split", "train", "--rendered-output-names", "rgb", "--image-format", "png"]

    def export_command(self, folder: Path, output: Path) -> list[str] | None:
        if not self._is_splat:
            return None
        config, written = (os.path.relpath(path, folder) for path in (self._base(folder) / "config.yml", output))
        return ["ns-export", "gaussian-splat", "--load-config", config, "--output-dir", written]

    def _first_step(self, request: FitRequest) -> int:
        """Return the number of a fit's first step: steps are counted on from the fit that it starts from."""
        last = None if request.previous is None else self._last_step(request.previous)
        return 0 if last is None else last + 1

    def _base(self, folder: Path) -> Path:
        return folder / MODEL / "scene" / self.method / "run"

    def _checkpoints(self, folder: Path) -> Path:
        return self._base(folder) / "nerfstudio_models"

    def _last_step(self, folder: Path) -> int | None:
        """Return the step of the last checkpoint of a fit; None where there is none."""
        files = self._checkpoints(folder)
        found = [CHECKPOINT.fullmatch(file.name) for file in files.iterdir()] if files.is_dir() else []
        return max((int(match.group(1)) for match in found if match), default=None)
