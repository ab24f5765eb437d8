"""What the nodes take from ComfyUI's server: its folders, its VIDEO type, its progress bar and its interrupt."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as model_management  # pyright: ignore[reportMissingImports]
import comfy.utils  # pyright: ignore[reportMissingImports]
import folder_paths  # pyright: ignore[reportMissingImports]
import torch
from comfy_api.latest import InputImpl  # pyright: ignore[reportMissingImports]
from comfy_execution.utils import get_executing_context  # pyright: ignore[reportMissingImports]
from server import PromptServer  # pyright: ignore[reportMissingImports]

from v2edit.comfyui.clips import write_bytes, write_source
from v2edit.comfyui.options import name_widgets
from v2edit.comfyui.progress import PARTS, describe_progress, draw_sketch, measure_progress
from v2edit.comfyui.runs import SOURCES, ModelHandle
from v2edit.errors import UserError
from v2edit.host import GPUS, find_device, memory_advice

SUFFIXES = {"mov": ".mp4", "matroska": ".mkv"}  # by the first name of a container; of others the name is the suffix
PREVIEW_SIDE = 768  # pixels, of pictures that are shown while an edit runs
TRIMMED = 1e-3  # seconds by which a trimmed video is shorter than its file, at least


def output_folder() -> Path:
    """Return ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory())


def local_models() -> list[str]:
    """Return the folders in ComfyUI's models/diffusers that hold a model."""
    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    return sorted(str(index.parent) for root in roots for index in root.glob("*/model_index.json"))


def find_source(video: Any, fps: float) -> Path:
    """Return a file with a VIDEO or an IMAGE batch: the one that it came from, where there is one, or a new one without
    loss in the output folder. `fps` is that of an IMAGE batch. Raises `UserError` where it cannot be written."""
    folder = output_folder() / SOURCES
    if isinstance(video, torch.Tensor):
        return write_source(video, fps, folder)
    if isinstance(video, InputImpl.VideoFromFile):
        source = video.get_stream_source()
        # Later versions of ComfyUI cut a video without writing it.
        if abs(video.get_duration() - InputImpl.VideoFromFile(source).get_duration()) < TRIMMED:
            if not isinstance(source, io.BytesIO):
                return Path(source)
            name = video.get_container_format().partition(",")[0]
            return write_bytes(source.getvalue(), SUFFIXES.get(name, f".{name}"), folder)
    parts = video.get_components()
    return write_source(parts.images, parts.frame_rate, folder, parts.audio)


def open_file(path: Path) -> Any:
    """Return the VIDEO of a file, which is not read."""
    return InputImpl.VideoFromFile(str(path))


def own_device() -> str:
    """Return the device that ComfyUI computes on, where V2Edit can, too: that of its own options, such as --cpu."""
    device = model_management.get_torch_device()
    return str(device) if device.type in ("cpu", *GPUS) else "auto"


def make_room(model: ModelHandle) -> None:
    """Let ComfyUI's own models leave the GPU, whose free memory decides how an edit runs."""
    if find_device(model.options.device).type != "cpu":
        model_management.unload_all_models()
        model_management.soft_empty_cache()


def show_text(text: str) -> None:
    """Show a text in the node that is executed."""
    if (context := get_executing_context()) is not None:
        PromptServer.instance.send_progress_text(text, context.node_id)


def progress_bar() -> Callable[[Any], None]:
    """Return a callback for the steps of a job, which moves the node's bar, shows the edit so far, and stops the job
    where the user has asked for that: then it raises `KeyboardInterrupt`, by which a run says that it was stopped."""
    bar = comfy.utils.ProgressBar(PARTS)

    def report(progress: Any) -> None:
        try:
            model_management.throw_exception_if_processing_interrupted()
            picture = draw_sketch(progress)
            preview = None if picture is None else ("JPEG", picture, PREVIEW_SIDE)
            bar.update_absolute(*measure_progress(progress), preview)  # which looks for it, too
        except model_management.InterruptProcessingException:
            raise KeyboardInterrupt from None
        show_text(describe_progress(progress))

    return report


@contextmanager
def comfy_terms() -> Iterator[None]:
    """Run a job as ComfyUI expects it: interrupted with its exception, mistakes and a lack of memory told in the words
    of its widgets. The job computes outside of inference mode, in which ComfyUI runs its nodes and nothing can be
    optimised."""
    try:
        with torch.inference_mode(False):
            yield
    except KeyboardInterrupt:
        raise model_management.InterruptProcessingException from None
    except UserError as mistake:
        raise UserError(name_widgets(str(mistake))) from mistake
    except (MemoryError, RuntimeError) as error:
        if (advice := memory_advice(error)) is None:
            raise
        raise UserError(name_widgets(advice)) from error
