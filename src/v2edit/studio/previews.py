"""What the tools tell of edits before they run, and of this machine; these functions load torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.jobs.scene import SceneEdit
from v2edit.jobs.video import VideoEdit
from v2edit.studio.messages import for_browser

if TYPE_CHECKING:
    from v2edit.jobs.estimate import Estimate

GIB = 2**30
BUILT_IN_LABEL = "Built-in (a world of simple shapes)"


def preview_prompts(job: VideoEdit | SceneEdit) -> dict[str, Any]:
    """Return the prompts of an edit, what they share, and how many forwards it takes. Raises `UserError`."""
    preview, source = job.preview(), job.source_prompt_beside()
    options = job.prompt_options
    if job.lvlm.model is not None:
        writer = "vision model"
    elif options.target_prompt is not None:
        writer = "you"
    else:
        writer = "grammar"
    seen = options.source_prompt is None and source is None and job.lvlm.model is None
    return {
        "source": preview.prompts.source,
        "target": preview.prompts.target,
        "chain": list(preview.prompts.chain),
        "comparisons": [
            {"pieces": [list(piece) for piece in one.pieces], "summary": one.summary} for one in preview.comparisons
        ],
        "steps": preview.steps,
        "of_steps": preview.of_steps,
        "forwards": list(preview.forwards),
        "written_by": writer,
        "source_by": "classifier" if seen else "you" if options.source_prompt is not None else "file",
    }


def estimate(job: VideoEdit | SceneEdit) -> dict[str, Any]:
    """Return how long an edit takes and in how much memory, counted. A scene's whole time is None: most of it goes into
    reconstructions, which are not counted. Raises `UserError` for what would stop it."""
    found: Estimate = job.estimate()
    options = [
        {
            "name": one.name,
            "gib": round(one.peak / GIB, 2),
            "fits": found.available is None or one.peak <= found.available,
        }
        for one in found.memory_options
    ]
    return {
        "seconds": {name: round(value, 1) for name, value in found.seconds.items()},
        "total_seconds": None if job.kind == "scene" else round(found.total_seconds, 1),
        "memory_gib": round(found.peak / GIB, 2),
        "free_gib": None if found.available is None else round(found.available / GIB, 2),
        "memory_parts": options,
        "fits": found.fits,
        "note": "; ".join(map(for_browser, [found.method, *found.remarks])),
        "limits": {name: for_browser(text) for name, text in found.limits.items()},
        "summary": found.summary if job.kind != "scene" else found.summary.rpartition(", ")[0],  # without its time
    }


def caption(path: str) -> dict[str, Any]:
    """Return the source prompt that the built-in classifier reads off a clip, None where it is not of its world."""
    from v2edit import video as videos
    from v2edit.jobs.prompts import read_caption

    return {"source_prompt": read_caption(videos.read(path).frames)}


def describe_machine(devices: list[str], model: str) -> dict[str, Any]:
    """Return the devices, the models and how they fit, and what is wrong with this machine."""
    import torch

    from v2edit.backbones.costs import HUB_IDS
    from v2edit.backbones.families import BUILT_IN
    from v2edit.host import available_memory, device_name, find_device
    from v2edit.jobs.doctor import Doctor, fits_of

    found = []
    for name in devices:
        device = find_device(name)
        free = available_memory(device)
        total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
        found.append(
            {
                "name": str(device),
                "kind": device_name(device),
                "memory_gib": None if total is None else round(total / GIB, 1),
                "free_gib": None if free is None else round(free / GIB, 1),
            }
        )
    first = find_device(devices[0])
    free = None if first.type == "cpu" else available_memory(first)
    models = [_model(BUILT_IN, "primitives", BUILT_IN_LABEL, True, "yes", "runs anywhere")]
    for one in fits_of(free, None):
        fits = (
            "no"
            if first.type == "cpu" or one.mode is None
            else "yes"
            if one.mode == "--offload none"
            else for_browser(f"with {one.mode}")
        )
        note = f"{one.clip}; about {one.peak / GIB:.0f} GiB"
        models.append(_model(HUB_IDS[one.model], one.model.split()[0], one.model, False, fits, note))
    if model not in [one["name"] for one in models]:
        models.insert(0, _model(model, "", Path(model).name, False, None, "named with --model"))
    diagnosis = Doctor(device=devices[0]).run()
    problems = [for_browser(f"{one.name}: {one.text}") for one in diagnosis.findings if one.level == "bad"]
    return {"devices": found, "models": models, "problems": problems, "default_model": model}


def _model(name: str, family: str, label: str, built_in: bool, fits: str | None, note: str) -> dict[str, Any]:
    return {"name": name, "family": family, "label": label, "built_in": built_in, "fits": fits, "note": note}
