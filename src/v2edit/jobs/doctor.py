"""The doctor: what this machine has for edits, what of it is known to be bad, and which models fit it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from v2edit.backbones.families import PUBLISHED
from v2edit.errors import UserError
from v2edit.host import GPUS, available_cores, available_memory, count_devices, device_name, find_device

if TYPE_CHECKING:
    import torch

    from v2edit.backbones.costs import PublishedCost

GIB = 2**30
NEEDED = ("torch", "diffusers", "transformers", "safetensors", "av")
OPTIONAL = {
    "gsplat": "reconstructs scenes on a GPU", "numba": "reconstructs scenes on the CPU",
    "pycolmap": "finds the cameras of photographs", "peft": "--lora",
    "torchao": "--quantize int8 and fp8", "bitsandbytes": "--quantize nf4", "gguf": "GGUF weights",
    "flash_attn": "--attention flash2", "flash_attn_interface": "--attention flash3",
    "sageattention": "--attention sage", "ray": "batches on many machines",
}  # fmt: skip
LEAST_DISK = 30 * GIB  # a model of 5 billion parameters with its text encoder, and some runs
URL_TIMEOUT = 5.0  # seconds
Level = Literal["", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """A fact about this machine: `bad` stops edits, a `note` may."""

    name: str
    text: str
    level: Level = ""


@dataclass(frozen=True)
class ModelFit:
    """How an edit of a published model at its native size fits: the fastest memory mode that does (None: none), the
    counted peaks in bytes, and the least minutes at the device's measured rate (None where it was not measured)."""

    model: str
    clip: str
    mode: str | None
    peak: int
    main_memory: int
    petaflops: float
    minutes: float | None


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor found."""

    findings: list[Finding] = field(default_factory=list)
    fits: list[ModelFit] = field(default_factory=list)
    device: str = "cpu"

    @property
    def is_bad(self) -> bool:
        return any(finding.level == "bad" for finding in self.findings)

    @property
    def figures(self) -> dict[str, Any]:
        """The diagnosis for programs, in bytes and minutes."""
        return asdict(self)

    @property
    def text(self) -> str:
        """The diagnosis for people, one page."""
        width = max(len(finding.name) for finding in self.findings)
        marks = {"": "", "note": "NOTE: ", "bad": "BAD: "}
        lines = [f"{one.name:{width}}  {marks[one.level]}{one.text}" for one in self.findings]
        if self.fits:
            lines += ["", f"one subtask of 50 steps at each model's own size on {self.device}, counted and not run:"]
            names = ["model", "clip", "GiB", "main GiB", "PFLOP", "minutes", "runs with"]
            lines += table(names, map(self._row, self.fits))
            lines.append("minutes are the least, at the rate of large matrix products; a run takes longer")
            lines.append("--offload auto, the default, chooses so; --quantize, --resolution and fewer frames take less")
        return "\n".join(lines)

    @staticmethod
    def _row(fit: ModelFit) -> list[str]:
        minutes = "-" if fit.minutes is None else f"{fit.minutes:.0f}" if fit.minutes >= 1 else "< 1"
        sizes = [f"{fit.peak / GIB:.1f}", f"{fit.main_memory / GIB:.1f}"]
        return [fit.model, fit.clip, *sizes, f"{fit.petaflops:.1f}", minutes, fit.mode or "does not fit"]


@dataclass(frozen=True)
class Doctor:
    """Look at this machine: versions, devices, attention kernels, memory, and which models fit."""

    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """The torch device to look at."""
    simulate_gpu: Annotated[float | None, arg(metavar="GIB", help_behavior_hint="")] = None
    """Show which models would fit a GPU with so many GiB free, without one."""
    lvlm_url: Annotated[str | None, arg(metavar="URL", help_behavior_hint="")] = None
    """The address of a language model to ask whether it answers."""

    def __post_init__(self) -> None:
        if self.simulate_gpu is not None and not 0 < self.simulate_gpu < 10_000:
            raise UserError(f"--simulate-gpu is {self.simulate_gpu:g}, expected GiB above 0")

    def run(self) -> Diagnosis:
        """Examine the machine. Raises `UserError` for a device that it does not have."""
        device = find_device(self.device)
        findings = [*_packages(), *_faults(device), *_devices(device), *_kernels(device), *_room()]
        findings += _language_model(self.lvlm_url)
        if self.simulate_gpu is not None:
            free, rate, place = int(self.simulate_gpu * GIB), None, f"a GPU with {self.simulate_gpu:g} GiB free"
        elif device.type == "cpu":
            findings.append(Finding("models", "published models want a GPU; the built-in one runs anywhere", "note"))
            return Diagnosis(findings)
        else:
            from v2edit.editing.timing import matmul_flops_per_second

            free, rate = available_memory(device), matmul_flops_per_second(device, _dtype(device))
            place = device_name(device)
            findings.append(Finding("rate", f"{rate / 1e12:.0f} TFLOP/s of large matrix products, measured"))
        return Diagnosis(findings, fits_of(free, rate), place)


def fits_of(free: int | None, rate: float | None) -> list[ModelFit]:
    """Return how the published models fit into `free` bytes of a device's memory, at `rate` FLOP/s."""
    from v2edit.backbones.costs import published_costs

    return [_fit(cost, free, rate) for cost in published_costs()]


def _fit(cost: PublishedCost, free: int | None, rate: float | None) -> ModelFit:
    way = next((way for way in cost.ways if free is None or way.needed <= free), None)
    shown = way or cost.ways[-1]
    minutes = None if rate is None else cost.flops / rate / 60
    return ModelFit(
        cost.model, cost.clip, None if way is None else way.mode.text, shown.peak, shown.main_memory,
        cost.flops / 1e15, minutes,
    )  # fmt: skip


def table(names: list[str], rows: Any) -> list[str]:
    """Lay out rows of text in columns."""
    cells = [names, *rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(names))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _packages() -> Iterator[Finding]:
    yield Finding("system", f"Python {platform.python_version()}, {platform.platform()}")
    versions = {name: _version(name) for name in ("v2edit", *NEEDED)}
    missing = [name for name, found in versions.items() if found is None]
    text = ", ".join(f"{name} {found or 'MISSING'}" for name, found in versions.items())
    yield Finding("packages", text, "bad" if missing else "")
    there = [f"{name} {found}" for name in OPTIONAL if (found := _version(name))]
    lacking = [f"{name} ({use})" for name, use in OPTIONAL.items() if _version(name) is None]
    yield Finding("optional", f"{', '.join(there) or 'none'}; not here: {', '.join(lacking) or 'none'}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _faults(device: torch.device) -> Iterator[Finding]:
    import torch

    from v2edit.backbones.versions import installed_faults

    backend = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    if not (torch.version.cuda or torch.version.hip):
        backend = "no CUDA or ROCm"
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    yield Finding("torch", f"{torch.__version__}, built with {backend}{f', cuDNN {cudnn}' if cudnn else ''}")
    for fault in installed_faults(device):
        yield Finding("fault", fault.text, "bad" if fault.fatal else "note")


def _devices(device: torch.device) -> Iterator[Finding]:
    import torch

    found = [f"{kind}:{k}" for kind in GPUS for k in range(count_devices(kind))]
    if not found:
        yield Finding("devices", f"no GPU that torch can use; {available_cores()} cores", "note")
    for name in found:
        one = torch.device(name)
        free = available_memory(one)
        dtype = str(_dtype(one)).removeprefix("torch.")
        chosen = ", taken" if one.type == device.type and (device.index or 0) == one.index else ""
        room = "" if free is None else f", {free / GIB:.1f} GiB free"
        yield Finding(name, f"{device_name(one)}{room}, computes in {dtype}{chosen}")


def _dtype(device: torch.device) -> torch.dtype:
    import torch

    from v2edit.backbones.dtypes import lacks_bfloat16

    return torch.float16 if lacks_bfloat16(device) else torch.bfloat16


def _kernels(device: torch.device) -> Iterator[Finding]:
    """Check attention kernels that return a log-sum-exp, in the formats that edits run in."""
    import torch

    from v2edit.attention.kernels import survey_kernels

    half = torch.float32 if device.type == "cpu" else _dtype(device)
    checks = {}
    for check in (check for head in (64, 128) for check in survey_kernels(device, half, head)):
        if check.name not in checks or checks[check.name].result == "right":  # a fault at any size of heads is told
            checks[check.name] = check
    for check in checks.values():
        level: Level = "note" if check.result in ("corrected", "wrong", "failed") else ""
        yield Finding(f"attention {check.name}", ": ".join(filter(None, (check.result, check.reason))), level)
    if not any(check.usable for check in checks.values()):
        yield Finding("attention", "no kernel here returns a log-sum-exp: edits take explicit maps, slowly", "note")


def _room() -> Iterator[Finding]:
    import torch

    memory = available_memory(torch.device("cpu"))
    yield Finding("main memory", "unknown" if memory is None else f"{memory / GIB:.1f} GiB free")
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, folder in (("downloads", Path(HF_HUB_CACHE)), ("this folder", Path.cwd())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        few = name == "downloads" and free < LEAST_DISK
        hint = f"; {PUBLISHED} takes about 21 GiB (HF_HOME names another place)" if few else ""
        yield Finding(name, f"{free / GIB:.0f} GiB of disk free at {folder}{hint}", "note" if few else "")


def _language_model(url: str | None) -> Iterator[Finding]:
    """Ask the address of a language model for its list of models."""
    from v2edit.prompts.endpoint import OPENAI_URL, EndpointChat

    address = url or os.environ.get(OPENAI_URL)
    if address is None:
        yield Finding("language model", "no address given (--lvlm-url)")
        return
    try:
        with closing(EndpointChat("any", address, URL_TIMEOUT)) as chat:
            models = chat.list_models()
            named = ", such as ".join([f"{len(models)} models", *models[:1]])
            yield Finding("language model", f"{chat.url} answers and lists {named}")
    except UserError as error:
        yield Finding("language model", str(error), "note")
