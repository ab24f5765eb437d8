"""The sections of the first run on a GPU; each writes what it finds as one JSON file.

A result has `tables` (by title, rows of equal keys), `text`, and `wrong`: what is not as it should be, a line each."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.models import moving_clip, write_json, write_random_model

from v2edit import backbones, video
from v2edit.attention.kernels import survey_kernels
from v2edit.backbones import LoadOptions, Size
from v2edit.backbones.fake import FakeModel
from v2edit.backbones.memory import MemoryMode
from v2edit.editing import EditConfig, Editor
from v2edit.editing.cost import CostModel
from v2edit.editing.progression import aligned_text
from v2edit.editing.timing import denoise_call, matmul_flops_per_second
from v2edit.host import process_memory, release_memory
from v2edit.prompts import PromptPair

GIB = 2**30
PAIR = PromptPair("a red ball on the floor", "a blue cube on the floor")
SAME = PromptPair(PAIR.source, PAIR.source)
IDENTITY = 2e-2  # of the latents' norm, in bfloat16
COUNTED = 0.15  # how far a peak may be above the counted one


class Trial:
    """The options of a run of sections: the device, the models and their sizes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tiny, self.out = options.tiny, options.out
        self.models = options.models[:1] if options.tiny else options.models
        self.device = "cpu" if options.tiny else "cuda"
        self.folder = options.models_folder
        self.frames = (9,) if options.tiny else (9, 49)
        self.resolution = "48x32" if options.tiny else None
        self.wrong: list[str] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def model(self, name: str) -> backbones.Checkpoint:
        """Return a published model with random weights, written at its first use."""
        folder = self.folder / name.replace(" ", "-")
        return backbones.find(str(write_random_model(folder, name, self.device, 1 if self.tiny else None)))

    def options(self, **changes: Any) -> LoadOptions:
        return LoadOptions(device=self.device, resolution=self.resolution, **changes)

    def clip(self, size: Size) -> np.ndarray:
        return moving_clip(size.frames, size.height, size.width)

    def expect(self, good: bool, text: str) -> str:
        """Note what is not as it should be; return a word for the table."""
        if not good:
            self.wrong.append(text)
        return "yes" if good else "NO"

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def run(name: str, options: argparse.Namespace) -> None:
    """Run a section and write its result."""
    trial = Trial(options)
    text = SECTIONS[name](trial)
    write_json(options.out / f"{name}.json", {"tables": trial.tables, "wrong": trial.wrong, "text": text or ""})


@contextmanager
def peaks_by_phase(trial: Trial, backbone: Any) -> Iterator[dict[str, dict[str, float]]]:
    """Measure seconds and the peak of tensors on the device, or of the process, in each phase of edits within."""
    phases: dict[str, dict[str, float]] = {}
    names = {"encode_text": "encoding prompts", "encode": "encoding", "denoise": "denoising", "decode": "decoding"}

    def measured(phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            trial.synchronise()
            if trial.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            result = work(*args, **more)
            trial.synchronise()
            seconds = time.perf_counter() - begin
            peak = torch.cuda.max_memory_allocated() if trial.device == "cuda" else process_memory()
            so_far = phases.setdefault(phase, {"seconds": 0.0, "GiB": 0.0})
            so_far["seconds"] += seconds
            so_far["GiB"] = max(so_far["GiB"], peak / GIB)
            return result

        return call

    for name, phase in names.items():
        setattr(backbone, name, measured(phase, getattr(backbone, name)))
    try:
        yield phases
    finally:
        for name in names:
            delattr(backbone, name)


def machine(trial: Trial) -> str:
    """Describe the machine as `v2edit doctor` does."""
    words = [sys.executable, "-m", "v2edit", "doctor"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=150)
    trial.expect(done.returncode == 0, f"v2edit doctor ended with exit code {done.returncode}")
    if trial.device == "cuda":
        flops = matmul_flops_per_second(torch.device("cuda"), torch.bfloat16)
        trial.tables["rate"] = [
            {"card": torch.cuda.get_device_name(), "bfloat16 TFLOP/s of large matrices": flops / 1e12}
        ]
    return done.stdout + done.stderr


def kernels(trial: Trial) -> None:
    """Check each attention kernel, its log-sum-exp included, against explicit logits."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for head_size in (64, 128):
            for check in survey_kernels(torch.device(trial.device), dtype, head_size):
                what = f"{check.name} in {str(dtype)[6:]}, heads of {head_size}"
                if check.result in ("corrected", "wrong"):
                    trial.wrong.append(f"{what}: {check.reason}")
                rows.append({"kernel": check.name, "dtype": str(dtype)[6:], "head": head_size,
                             "result": check.result, "reason": check.reason})  # fmt: skip
    trial.tables["kernels"] = rows


def attention(trial: Trial) -> str:
    """Time AMR and windows against plain attention and explicit maps, at CogVideoX-5b's sizes."""
    script = Path(__file__).parents[1] / "attention.py"
    sizes = ["--tokens", "256", "--repeats", "1", "--no-windows"] if trial.tiny else []
    words = [sys.executable, str(script), "--device", trial.device, *sizes]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    trial.expect(done.returncode == 0, f"benchmarks/attention.py ended with exit code {done.returncode}")
    return done.stdout + done.stderr[-2000:]


def edits(trial: Trial) -> None:
    """Run whole edits: peaks against the counted ones, offload ways, determinism, and the source given back."""
    rows, phases_rows, identity_rows = [], [], []
    for name in trial.models:
        checkpoint = trial.model(name)
        for frames in trial.frames:
            first: np.ndarray | None = None
            for offload in ("none", "model", "group") if trial.device == "cuda" else ("none",):
                config = EditConfig(steps=3 if trial.tiny else 8, subtasks=2)
                backbone = backbones.load(checkpoint, trial.options(offload=offload))
                size = backbone.nearest_size(replace(backbone.native_size, frames=frames))
                clip = trial.clip(size)
                counted = count_peaks(trial, checkpoint, size, config, MemoryMode(offload))
                with peaks_by_phase(trial, backbone) as phases:
                    edited = Editor(backbone).edit(clip, PAIR, config).frames
                again = Editor(backbone).edit(clip, PAIR, config).frames
                what = f"{name}, {size.frames} frames, --offload {offload}"
                first = np.asarray(edited) if first is None else first
                rows.append({
                    "model": name, "frames": size.frames, "offload": offload,
                    "seconds": sum(phase["seconds"] for phase in phases.values()),
                    "two runs equal": trial.expect(np.array_equal(edited, again), f"{what}: two runs differ"),
                    "levels from --offload none": int(np.abs(edited.astype(int) - first.astype(int)).max()),
                })  # fmt: skip
                for phase, figures in phases.items():
                    expected = counted[phase] / GIB
                    above = trial.device == "cuda" and figures["GiB"] > expected * (1 + COUNTED) + 0.1
                    trial.expect(not above, f"{what}, {phase}: {figures['GiB']:.2f} GiB, counted {expected:.2f}")
                    phases_rows.append({"run": what, "phase": phase, **figures, "counted GiB": expected})
                if offload == "none":
                    identity_rows.append({"run": what, **give_back(trial, backbone, clip, what)})
                del backbone
                release_memory()
    trial.tables |= {"edits": rows, "by phase": phases_rows, "target = source, beta = 0": identity_rows}


def count_peaks(
    trial: Trial, checkpoint: backbones.Checkpoint, size: Size, config: EditConfig, mode: MemoryMode
) -> dict[str, int]:
    """Return the counted peaks of an edit by phase."""
    fake: FakeModel = backbones.load_fake_model(checkpoint, trial.options())
    shape = fake.backbone.latent_shape(size)
    resolved = config.resolve(fake.backbone.defaults, fake.backbone.schedule(config.steps, shape))
    return CostModel(fake, resolved).peaks(size, mode)


def give_back(trial: Trial, backbone: Any, clip: np.ndarray, what: str) -> dict[str, float]:
    """Edit with equal prompts under control to the end; return how far the latents are from the source's."""
    x0 = backbone.encode(clip)
    config = EditConfig(steps=4 if trial.tiny else 8, beta=0.0)
    (latents,) = Editor(backbone).subtasks(x0, aligned_text(backbone, SAME), config)
    error = float((latents - x0).norm() / x0.norm())
    trial.expect(error <= IDENTITY, f"{what}: the source comes back {error:.2g} off")
    return {"off by": error}


def command(trial: Trial) -> str:
    """Run the command itself, from a file to a run folder, twice."""
    checkpoint = trial.model(trial.models[0])
    frames, (height, width) = trial.frames[-1], (32, 48) if trial.tiny else (480, 720)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "clip.mp4")
        video.write(moving_clip(frames, height, width), clip, fps=8)
        words = [sys.executable, "-m", "v2edit", "edit", str(clip), "--model", checkpoint.source]
        words += ["--steps", "3" if trial.tiny else "8", "--device", trial.device]
        words += ["--source-prompt", PAIR.source, "--target-prompt", PAIR.target]
        words += ["--resolution", trial.resolution] if trial.resolution else []
        outputs, printed = [], ""
        for number in range(2):
            run_folder = Path(folder, f"run-{number}")
            begin = time.perf_counter()
            done = subprocess.run([*words, "-o", str(run_folder)], capture_output=True, text=True)
            printed += f"{done.stdout}{done.stderr}exit code {done.returncode}, {time.perf_counter() - begin:.0f} s\n"
            trial.expect(done.returncode == 0, f"v2edit edit ended with exit code {done.returncode}")
            if done.returncode == 0:
                outputs.append((run_folder / "edited.mp4").read_bytes())
    trial.expect(len(set(outputs)) == 1, "two runs of the same command gave other bytes")
    return printed


def subtask(trial: Trial) -> None:
    """Time the steps of a subtask, and what makes them faster or smaller."""
    name = trial.models[0]
    checkpoint, config = trial.model(name), EditConfig(steps=50)
    rate = matmul_flops_per_second(torch.device(trial.device), torch.bfloat16)
    rows = []
    for frames in trial.frames[-1:] if trial.tiny else (49, 73):
        for title, changes, max_rows, row_by_row in VARIANTS:
            if trial.device == "cpu" and (changes.get("offload") or changes.get("compile")):
                continue
            try:
                figures = time_steps(trial, checkpoint, frames, config, changes, max_rows, row_by_row, rate)
                rows.append({"frames": frames, "variant": title, **figures})
            except Exception as error:
                trial.wrong.append(f"{frames} frames, {title}: {type(error).__name__}: {str(error)[:300]}")
            release_memory()
    trial.tables[f"steps of {name}"] = rows


VARIANTS: list[tuple[str, dict[str, Any], int | None, bool]] = [
    ("all rows at once", {}, None, False),
    ("one row at a time where maps allow", {}, 1, False),
    ("layers row by row", {}, 1, True),
    ("--compile", {"compile": True}, None, False),
    ("--quantize int8", {"quantize": "int8"}, None, False),
    ("--quantize fp8", {"quantize": "fp8"}, None, False),
    ("--offload model", {"offload": "model"}, None, False),
    ("--offload group", {"offload": "group"}, None, False),
]


def time_steps(
    trial: Trial, checkpoint: backbones.Checkpoint, frames: int, config: EditConfig, changes: dict[str, Any],
    max_rows: int | None, row_by_row: bool, rate: float,
) -> dict[str, float]:  # fmt: skip
    """Time a controlled step and a free one; return their seconds, the peak and the share of the card's rate."""
    from v2edit.editing.cost import count_steps
    from v2edit.editing.microbatch import MicroBatcher

    fake = backbones.load_fake_model(checkpoint, trial.options())
    backbone: Any = backbones.load(checkpoint, trial.options(**({"offload": "none"} | changes)))
    size = backbone.nearest_size(replace(backbone.native_size, frames=frames))
    resolved = config.resolve(backbone.defaults, backbone.schedule(50, backbone.latent_shape(size)))
    text = aligned_text(backbone, PAIR)
    v = torch.randn(1, *backbone.latent_shape(size), device=backbone.device)
    backbone.memory_mode = replace(backbone.memory_mode, max_rows=max_rows, row_by_row=row_by_row)
    batcher = MicroBatcher(backbone)
    cost_model, figures, flops, seconds = CostModel(fake, resolved), {}, 0.0, 0.0
    if trial.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    (counts,) = count_steps(backbone.schedule(50, backbone.latent_shape(size)), resolved, backbone.classifier_free)
    for kind, count in counts.items():
        step = denoise_call(batcher, v, text, kind, resolved)
        step()  # kernels are checked and compiled
        times = []
        for _ in range(1 if trial.tiny else 3):
            trial.synchronise()
            begin = time.perf_counter()
            step()
            trial.synchronise()
            times.append(time.perf_counter() - begin)
        figures[f"s a step of {kind.rows} rows"] = min(times)
        seconds += count * min(times)
        flops += count * cost_model.step(kind, size).flops
    peak = torch.cuda.max_memory_allocated() if trial.device == "cuda" else process_memory()
    return figures | {"s a subtask": seconds, "peak GiB": peak / GIB, "TFLOP/s": flops / seconds / 1e12,
                      "share of the rate": flops / seconds / rate}  # fmt: skip


def scenes(trial: Trial) -> None:
    """Compare gsplat's images and gradients with the project's own, and time a fit of 300,000 Gaussians."""
    from v2edit.scenes.cameras import Cameras
    from v2edit.scenes.gaussians import Gaussians
    from v2edit.scenes.rasterise import render

    draw = torch.Generator().manual_seed(0)
    count = 200 if trial.tiny else 20_000
    values = {
        "means": torch.randn(count, 3, generator=draw), "quats": torch.randn(count, 4, generator=draw),
        "log_scales": torch.randn(count, 3, generator=draw) * 0.3 - 3.5,
        "logit_opacities": torch.randn(count, generator=draw), "sh": torch.randn(count, 16, 3, generator=draw) * 0.2,
    }  # fmt: skip
    pose = np.eye(4)[None]
    pose[0, 2, 3] = 5.0  # looks along -z
    side = 32 if trial.tiny else 256
    intrinsics = np.array([[[side, 0, side / 2], [0, side, side / 2], [0, 0, 1.0]]])
    cameras = Cameras(intrinsics, pose, side, side)
    weights = torch.randn(1, side, side, 3, generator=draw)
    backends = ["reference", "cpu"] if trial.tiny else ["cpu", "gsplat"]
    found = []
    for backend in backends:
        device = "cuda" if backend == "gsplat" else "cpu"
        leaves = {key: value.to(device).clone().requires_grad_() for key, value in values.items()}
        begin = time.perf_counter()
        image = render(Gaussians(**leaves), cameras, backend).colours  # pyright: ignore[reportArgumentType]
        (image * weights.to(device)).sum().backward()
        trial.synchronise()
        gradients = {key: leaf.grad.cpu() for key, leaf in leaves.items() if leaf.grad is not None}
        found.append((image.detach().cpu(), gradients, time.perf_counter() - begin))
    (one, own, seconds), (other, others, other_seconds) = found
    rows = [{"what": "image", "largest difference": float((one - other).abs().max())}]
    rows += [{"what": f"gradient of {key}", "largest difference": float((own[key] - others[key]).abs().max()
              / own[key].abs().max())} for key in own]  # fmt: skip
    for row in rows:
        limit = 2e-3 if row["what"] == "image" else 2e-2
        trial.expect(row["largest difference"] <= limit, f"{row['what']}: {row['largest difference']:.2g} apart")
    trial.tables["rasterisers"] = rows
    trial.tables["seconds"] = [{backends[0]: seconds, f"{backends[1]} (with its start)": other_seconds}]


SECTIONS: dict[str, Callable[[Trial], str | None]] = {
    "machine": machine, "kernels": kernels, "attention": attention, "edits": edits, "command": command,
    "subtask": subtask, "scenes": scenes,
}  # fmt: skip
