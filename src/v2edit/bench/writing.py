"""Prompts of tasks that have an instruction alone, as OpenVE-Bench's: written once by a language model and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from v2edit.backbones.hub import Checkpoint
from v2edit.bench.file_tasks import FileTask
from v2edit.errors import UserError
from v2edit.prompts import read_prompts, write_prompts
from v2edit.prompts.lvlm import LVLMConfig


def write_prompts_for_tasks(
    tasks: Sequence[FileTask],
    checkpoint: Checkpoint,
    lvlm: LVLMConfig,
    folder: Path,
    on_progress: Callable[[int, int, str], None],
) -> list[FileTask]:
    """Return the tasks, all with prompts in the style of the video model; what is written is kept in the folder, one
    file a task, and read the next time. Raises `UserError` where some have none and no language model is named, or it
    does not answer."""
    if scenes := [task.name for task in tasks if task.line.is_scene and task.line.pair is None]:
        raise UserError(f"{scenes[0]} is a scene without prompts: give source_prompt and target_prompt")
    done = {task: _kept(task, folder) for task in tasks if task.line.pair is None}
    missing = [task for task, found in done.items() if found is None]
    if missing and lvlm.model is None:
        raise UserError(
            f"{len(missing)} of {len(tasks)} tasks have an instruction and no prompts, which methods need: name a "
            "language model that writes them (--lvlm), or measure what is there (--methods none --results NAME=FOLDER)"
        )
    if missing:
        from v2edit import backbones
        from v2edit.prompts.lvlm import generate_prompts, open_chat
        from v2edit.prompts.style import read_style

        style = read_style(lvlm.style or checkpoint.prompt_style)
        tokenizer = backbones.read_info(checkpoint).tokenizer
        folder.mkdir(parents=True, exist_ok=True)
        with open_chat(lvlm, "auto") as chat:
            for number, task in enumerate(missing, start=1):
                pair = generate_prompts(chat, task.source, task.instruction, style, tokenizer, lvlm)
                write_prompts(_file(task, folder), pair, task.instruction)
                done[task] = replace(task, line=replace(task.line, pair=pair))
                on_progress(number, len(missing), f"prompts of {task.name}")
    return [done.get(task) or task for task in tasks]


def _kept(task: FileTask, folder: Path) -> FileTask | None:
    """Return the task with the prompts that were written for its instruction, or None where there are none."""
    if not _file(task, folder).is_file():
        return None
    pair, instruction = read_prompts(_file(task, folder))
    if instruction == task.instruction:
        return replace(task, line=replace(task.line, pair=pair))
    _file(task, folder).unlink()  # another suite's task of this name
    return None


def _file(task: FileTask, folder: Path) -> Path:
    return folder / f"{task.name}.json"
