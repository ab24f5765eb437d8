"""One edit, from a video file to a run folder: what `v2edit edit` and `v2edit.edit_video` both are."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from v2edit.backbones.families import BUILT_IN, PUBLISHED, DType, Offload
from v2edit.editing.config import EditConfig, ResolvedConfig
from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.primitives.captions import caption, is_caption
from v2edit.primitives.scene import SHAPES
from v2edit.prompts import PromptPair, read_prompts, write_prompts
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import (
    MANIFEST,
    Request,
    RunWriter,
    check_input,
    check_save_every,
    default_run_folder,
    fingerprint_input,
)
from v2edit.runs.snapshots import SAVE_EVERY

if TYPE_CHECKING:
    import numpy as np

    from v2edit.backbones import Backbone, Checkpoint
    from v2edit.backbones.loading import LoadedModel
    from v2edit.editing.editor import Progress
    from v2edit.prompts.comparison import PromptComparison
    from v2edit.video import Video
else:
    Progress = LoadedModel = Any  # They bring torch; the command line that is made from the signature needs no more.

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EditRun:
    """A finished edit: where it lies, the edited video, and the prompts that made it."""

    folder: Path
    edited: "Video"
    prompts: PromptPair


def edit_video(
    video: Annotated[str | Path, Positional, arg(metavar="VIDEO")],
    instruction: Annotated[str | None, Positional, arg(metavar="INSTRUCTION", help_behavior_hint="")] = None,
    *,
    source_prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    target_prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    prompts: Annotated[str | Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    lvlm: OmitArgPrefixes[LVLMConfig] = LVLMConfig(),  # noqa: B008 (frozen)
    model: Annotated[str, arg(metavar="MODEL")] = BUILT_IN,
    out: Annotated[str | Path | None, arg(aliases=["-o"], metavar="FOLDER", help_behavior_hint="")] = None,
    device: Annotated[str, arg(metavar="DEVICE")] = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    vae_tiling: bool = False,
    frames: bool = False,
    revision: Annotated[str | None, arg(metavar="REVISION", help_behavior_hint="")] = None,
    allow_pickle: bool = False,
    save_every: Annotated[int, arg(metavar="STEPS")] = SAVE_EVERY,
    config: OmitArgPrefixes[EditConfig] = EditConfig(),  # noqa: B008 (frozen)
    on_progress: Annotated[Callable[[Progress], None] | None, Suppress] = None,
    command: Annotated[Sequence[str] | None, Suppress] = None,
    loaded: Annotated[LoadedModel | None, Suppress] = None,
) -> EditRun:
    """Edit a video so that it shows what an instruction or a target prompt says.

    Args:
        video: The video to edit: a file, or a folder of images.
        instruction: What to change, in one sentence, which the grammar of the built-in world or a language model
            (--lvlm) turns into prompts.
        source_prompt: What the video shows. Unless given, `source_prompt` in the .json beside the video, or what the
            built-in model's reader sees.
        target_prompt: What the video is to show, as like the source prompt as the edit allows.
        prompts: The prompts in a file, from v2edit prompts -o or another run's run.json.
        lvlm: Let a language model that sees the video write the prompts.
        model: The built-in model, a Hugging Face id or a local diffusers folder.
        out: The run folder to make (default: runs/<video>-<instruction>); it must not exist.
        device: A torch device, such as cpu or cuda:1; auto takes a GPU where there is one.
        dtype: Number format; auto is what suits the device.
        offload: Bring whole parts (model) or single layers (group) to the device as needed: smaller, slower.
        vae_tiling: Encode and decode in tiles: smaller, slower.
        frames: Write the edited frames as PNG files, too, into a folder `edited`; for a folder of images they are
            anyway, by the same names, and for a single image as `edited.png`.
        revision: Branch, tag or commit of a Hugging Face model.
        allow_pickle: Take weights that are pickles (.bin), too, where a model has no others; no code in them is run.
        save_every: Denoising steps after which the edit is kept, for v2edit resume to go on from.
        config: How to edit.
        on_progress: Called after every step.
        command: The command line to note in the manifest.
        loaded: The model, where it is in memory already and is to stay there for the next edit.

    Raises:
        UserError: for what the user can mend, in one line.
    """
    path = Path(video)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    check_save_every(save_every)
    pair, instruction = given_prompts(path, instruction, source_prompt, target_prompt, prompts, lvlm, model)
    about = instruction or (pair.target if pair else "")
    with RunWriter(Path(out) if out else default_run_folder(path, about)) as run:
        from v2edit import backbones
        from v2edit import video as videos
        from v2edit.backbones import Size
        from v2edit.editing.cost import loop_steps

        # What is wrong with the video or the model's name is said before the whole of either is read.
        videos.read(path, max_frames=1)
        checkpoint = loaded.checkpoint if loaded else backbones.find(model, revision, allow_pickle)
        source, identity = videos.read(path), fingerprint_input(path)
        if pair is None:
            pair = written_prompts(path, source.frames, about, checkpoint, lvlm, config, device)
        config = config.for_prompts(pair).resolve(checkpoint.defaults)

        backbone = loaded.backbone if loaded else backbones.load(checkpoint, device, dtype, offload, vae_tiling)
        if doubts := _doubts(model, pair, len(source.frames), backbone):
            log.warning("%s", doubts)
        backbone.nearest_size(
            Size(*source.frames.shape[:3]), config.loop
        )  # What cannot be edited at all is refused here.
        facts = {
            "input": identity,
            "instruction": instruction,
            "prompts": pair,
            "lvlm": described(lvlm, checkpoint) if lvlm.model else None,
            **loading_facts(checkpoint, backbone, revision, offload, vae_tiling),
            "frames": frames,
            "config": config,
            "seed": config.seed,
            "guidance": config.guidance,
            "solver": backbone.solver if config.solver == "auto" else config.solver,
        }
        steps = loop_steps(backbone.schedule(config.steps), config)
        run.begin(Request("edit", facts, steps, save_every, command))
        edited = _carried_out(run, path, source, pair, config, backbone, on_progress)
    return EditRun(run.out, edited, pair)


def resume_edit(
    run: RunWriter, on_progress: Callable[[Progress], None] | None = None, loaded: "LoadedModel | None" = None
) -> EditRun:
    """Goes on with an edit that was ended, and comes to the same as if it had not been.

    Raises:
        UserError: its video is gone or has changed, or its model or device is not here.
    """
    assert run.request is not None and run.request.kind == "edit"
    with run:
        from v2edit import video as videos

        facts = run.request.facts
        path = Path(facts["input"]["path"])
        check_input(path, facts["input"]["sha256"])
        pair, config = PromptPair(**facts["prompts"]), ResolvedConfig(**facts["config"])
        source = videos.read(path)
        backbone = loaded.backbone if loaded else reloaded(facts)
        edited = _carried_out(run, path, source, pair, config, backbone, on_progress)
    return EditRun(run.out, edited, pair)


def loading_facts(
    checkpoint: "Checkpoint", backbone: "Backbone", revision: str | None, offload: Offload, vae_tiling: bool
) -> dict[str, Any]:
    """How a run's model was loaded, as its record says it and `reloaded` reads it."""
    name = checkpoint.name
    return {
        "model": {
            "name": name if checkpoint.commit or name == BUILT_IN else os.path.abspath(name),
            "revision": revision,
            "commit": checkpoint.commit,
            "device": str(backbone.device),
            "dtype": str(backbone.dtype).removeprefix("torch."),
        },
        "offload": offload,
        "vae_tiling": vae_tiling,
        "allow_pickle": checkpoint.pickles,
    }


def reloaded(facts: dict[str, Any]) -> "Backbone":
    """The model that a run was begun with, by its `loading_facts`."""
    from v2edit import backbones

    model = facts["model"]
    checkpoint = backbones.find(model["name"], model["commit"] or model["revision"], facts["allow_pickle"])
    return backbones.load(checkpoint, model["device"], model["dtype"], facts["offload"], facts["vae_tiling"])


def finished_edit(folder: Path) -> EditRun:
    """An edit that is done, as its folder has it: the frames are those of `edited.mp4`."""
    from v2edit import video as videos

    pair, _ = read_prompts(folder / MANIFEST)
    return EditRun(folder, videos.read(folder / "edited.mp4"), pair)


def _carried_out(
    run: RunWriter,
    path: Path,
    source: "Video",
    pair: PromptPair,
    config: EditConfig,
    backbone: "Backbone",
    on_progress: Callable[[Progress], None] | None,
) -> "Video":
    """From where the run stands to its results; the edited video."""
    from v2edit import video as videos
    from v2edit.editing.editor import Editor

    assert run.request is not None
    asked = run.request.facts
    result = Editor(backbone).edit(source.frames, pair, config, on_progress, snapshots=run.snapshots)
    *stations, edited = (replace(source, frames=frames) for frames in result.subtasks)

    rows = {"source": source.frames}
    for number, station in enumerate(stations, start=1):
        videos.write(station, run.folder / f"subtask-{number}.mp4")
        rows[f"subtask {number}"] = station.frames
    rows[f"edited: {asked['instruction'] or pair.target}"] = edited.frames
    videos.write(edited, run.folder / "edited.mp4")
    if asked["frames"] or path.is_dir():
        videos.write_frames(edited, run.folder / "edited")
    if edited.names and not path.is_dir():
        videos.write_still(edited.frames[0], run.folder / "edited.png")
    videos.write_compare(
        source.frames, edited.frames, run.folder / "compare.mp4", source.fps, source.path, source.times
    )
    videos.contact_sheet(rows, run.folder / "contact.png")
    run.write_manifest()
    return edited


@dataclass(frozen=True)
class Preview:
    """An edit before it is run: its prompts, how each lines up with the next, and what it will cost.

    `forwards` are rows through the network, one number a subtask; each takes `steps` denoising steps of `of_steps`.
    """

    prompts: PromptPair
    comparisons: "list[PromptComparison]"
    steps: int
    of_steps: int
    forwards: list[int]


def preview_edit(
    video: Annotated[str | Path, Positional, arg(metavar="VIDEO")],
    instruction: Annotated[str | None, Positional, arg(metavar="INSTRUCTION", help_behavior_hint="")] = None,
    *,
    source_prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    target_prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    prompts: Annotated[str | Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    lvlm: OmitArgPrefixes[LVLMConfig] = LVLMConfig(),  # noqa: B008 (frozen)
    model: Annotated[str, arg(metavar="MODEL")] = BUILT_IN,
    revision: Annotated[str | None, arg(metavar="REVISION", help_behavior_hint="")] = None,
    allow_pickle: bool = False,
    device: Annotated[str, arg(metavar="DEVICE")] = "auto",
    out: Annotated[str | Path | None, arg(aliases=["-o"], metavar="FILE", help_behavior_hint="")] = None,
    config: OmitArgPrefixes[EditConfig] = EditConfig(),  # noqa: B008 (frozen)
) -> Preview:
    """Show the prompts of an edit, word for word what they share, and what the edit costs. Loads no video model.

    Args:
        video: The video to edit: a file, or a folder of images.
        instruction: What to change, in one sentence, which the grammar of the built-in world or a language model
            (--lvlm) turns into prompts.
        source_prompt: What the video shows. Unless given, `source_prompt` in the .json beside the video, or what the
            built-in model's reader sees.
        target_prompt: What the video is to show, as like the source prompt as the edit allows.
        prompts: The prompts in a file, from v2edit prompts -o or another run's run.json.
        lvlm: Let a language model that sees the video write the prompts.
        model: The video model to edit with: the built-in one, a Hugging Face id or a local diffusers folder.
        revision: Branch, tag or commit of a Hugging Face model.
        allow_pickle: Take weights that are pickles (.bin), too, where a model has no others; no code in them is run.
        device: Where a language model of local: runs; auto takes a GPU where there is one.
        out: A JSON file to save the prompts in, to edit by hand and to give to v2edit edit as --prompts.
        config: How the edit would be done.

    Raises:
        UserError: for what the user can mend, in one line.
    """
    path = Path(video)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if out and Path(out).exists():
        raise UserError(f"{out} exists; choose another -o or remove it")
    pair, instruction = given_prompts(path, instruction, source_prompt, target_prompt, prompts, lvlm, model)

    from v2edit import backbones
    from v2edit import video as videos
    from v2edit.editing.cost import count_forwards, steps_per_subtask
    from v2edit.prompts.comparison import compare_prompts

    checkpoint = backbones.find(model, revision, allow_pickle)
    if pair is None:
        frames = videos.read(path).frames
        pair = written_prompts(path, frames, instruction or "", checkpoint, lvlm, config, device)
    info = backbones.read_info(checkpoint)
    config = config.for_prompts(pair).resolve(info.defaults)
    if out:
        write_prompts(Path(out), pair, instruction)
    schedule = info.schedule(config.steps)
    return Preview(
        pair,
        [compare_prompts(one, other, info.tokenizer) for one, other in pairwise(pair.chain)],
        steps_per_subtask(schedule, config),
        config.steps,
        count_forwards(schedule, config),
    )


def prompt_beside(video: Path) -> str | None:
    """`source_prompt` in the JSON file of the same name, as `v2edit sample` writes it."""
    video = Path(os.path.abspath(video))  # "." has no name of its own
    sidecar = video.parent / f"{video.stem}.json"
    if not sidecar.is_file():
        return None
    try:
        facts = read_json(sidecar)
    except ValueError as error:
        raise UserError(f"{sidecar} is no JSON ({error}); mend it or give --source-prompt") from error
    prompt = facts.get("source_prompt") if isinstance(facts, dict) else None
    return prompt if isinstance(prompt, str) else None


def given_prompts(
    video: Path,
    instruction: str | None,
    source_prompt: str | None,
    target_prompt: str | None,
    file: str | Path | None,
    lvlm: LVLMConfig,
    model: str,
    beside: Callable[[Path], str | None] = prompt_beside,
) -> tuple[PromptPair | None, str | None]:
    """The prompts of an edit and its instruction; no prompts yet where they come from the frames: a language model
    writes them, or the reader of the built-in world says what they show. `beside` finds a source prompt with what is
    to be edited.

    Raises `UserError` when two ways to get them are asked for, or none is left.
    """
    ways = {
        "--prompts": file is not None,
        "--lvlm": lvlm.model is not None,
        "--source-prompt or --target-prompt": source_prompt is not None or target_prompt is not None,
    }
    if len(asked := [way for way, there in ways.items() if there]) > 1:
        raise UserError(f"prompts come from one place: give {', or '.join(asked)}")
    if file is not None:
        prompts, written_for = read_prompts(Path(file))
        return prompts, instruction or written_for
    if lvlm.model is not None:
        if not instruction or not instruction.strip():
            raise UserError("what is to change? --lvlm turns an INSTRUCTION into prompts: give one")
        return None, instruction
    if source_prompt is None:
        source_prompt = beside(video)
    unsaid = source_prompt is None and target_prompt is None
    if model == BUILT_IN and unsaid and instruction and instruction.strip():
        return None, instruction
    return resolve_prompts(video, instruction, source_prompt, target_prompt), instruction


def written_prompts(
    video: Path,
    frames: "np.ndarray",
    instruction: str,
    checkpoint: "Checkpoint",
    lvlm: LVLMConfig,
    config: EditConfig,
    device: str,
) -> PromptPair:
    """The prompts that a language model writes for a video, in the style of the video model (it is gone from memory
    when this returns); without one, those of a clip of the built-in world, as its reader sees it."""
    if lvlm.model is None:
        return resolve_prompts(video, instruction, _read_caption(video, frames), None)
    from v2edit import backbones
    from v2edit.prompts.lvlm import generate_prompts, open_chat
    from v2edit.prompts.style import read_style

    style = read_style(lvlm.style or checkpoint.prompt_style)
    tokenizer = backbones.read_info(checkpoint).tokenizer
    with open_chat(lvlm, device) as chat:
        return generate_prompts(chat, frames, instruction, style, tokenizer, lvlm, config.subtasks)


def described(lvlm: LVLMConfig, checkpoint: "Checkpoint") -> dict[str, Any]:
    """A language model as the manifest names it: without what may be secret in its address."""
    from v2edit.prompts.endpoint import redact_url

    return {
        "model": lvlm.model,
        "url": redact_url(lvlm.url) if lvlm.url else None,
        "style": lvlm.style or checkpoint.prompt_style,
        "frames": lvlm.frames,
        "progression": lvlm.progression,
    }


def resolve_prompts(
    video: Path, instruction: str | None, source_prompt: str | None, target_prompt: str | None
) -> PromptPair:
    """The prompt pair of an edit, from what the user said and what lies beside the video.

    Raises `UserError` that names the options to give when something is missing.
    """
    if source_prompt is None:
        source_prompt = prompt_beside(video)
    if source_prompt is None:
        also = "" if target_prompt else ", and what it is to show with --target-prompt"
        raise UserError(f"what does {video.name} show? Say it with --source-prompt{also}")
    if target_prompt is not None:
        return PromptPair(source_prompt, target_prompt)
    if not source_prompt.strip():
        raise UserError("the source prompt is empty: say what the video shows with --source-prompt")
    if not instruction or not instruction.strip():
        raise UserError("what is to change? Give an INSTRUCTION, or describe the edited video with --target-prompt")
    from v2edit.primitives.grammar import edit_prompt

    try:
        return edit_prompt(source_prompt, instruction)
    except UserError as error:
        raise UserError(f"{error}; for anything else, say what the video is to show with --target-prompt") from error


def _read_caption(video: Path, frames: "np.ndarray") -> str:
    """What a clip of the built-in world shows. Raises `UserError` for one that does not look like that world."""
    from v2edit.primitives.classifier import SceneClassifier, matches_scene

    scene = SceneClassifier.load().classify(frames)
    if not matches_scene(frames, scene):
        raise UserError(
            f"what does {video.name} show? The built-in model knows only its own world: say it with --source-prompt, "
            f"and use --model {PUBLISHED} for other videos"
        )
    log.warning("the video is taken to show: %s If that is wrong, say it with --source-prompt", caption(scene))
    return caption(scene)


def _doubts(model: str, prompts: PromptPair, frames: int, backbone: "Backbone") -> str:
    """What speaks against a good result, in one line."""
    doubts = []
    if model == BUILT_IN and not (is_caption(prompts.source) and is_caption(prompts.target)):
        shapes = ", ".join(f"{shape}s" for shape in SHAPES)
        doubts.append(
            f"the built-in model knows only its own world of {shapes} on a floor under a sky: expect nonsense for "
            f"other videos, and use --model {PUBLISHED} for them"
        )
    if frames > backbone.native_size.frames and not backbone.has_rotary_time:
        doubts.append(
            f"{frames} frames, and the model, whose positions are absolute, was trained on "
            f"{backbone.native_size.frames}: it drifts; shorter clips are better, or a model with relative positions, "
            f"such as {PUBLISHED}"
        )
    return "; ".join(doubts)
