"""One scene edit, from posed images to run folder: what `v2edit scene` and `v2edit.edit_scene` both are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from v2edit.backbones.families import BUILT_IN, DType, Offload
from v2edit.editing.config import EditConfig, ResolvedConfig
from v2edit.errors import UserError
from v2edit.jobs.video import described, given_prompts, loading_facts, reloaded, written_prompts
from v2edit.prompts import PromptPair, read_prompts
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs import MANIFEST, Request, RunWriter, check_save_every, default_run_folder, fingerprint_input
from v2edit.runs.snapshots import SAVE_EVERY, Snapshots
from v2edit.scenes.config import FitConfig
from v2edit.scenes.prompt import find_prompt

if TYPE_CHECKING:
    import numpy as np
    import torch

    from v2edit.backbones import Backbone
    from v2edit.backbones.loading import LoadedModel
    from v2edit.scenes.camera_paths import CameraPath
    from v2edit.scenes.dataset import Dataset
    from v2edit.scenes.gaussians import Gaussians
    from v2edit.scenes.reading import Scene
    from v2edit.scenes.rer import SceneEdit, Stage
else:
    Stage = LoadedModel = Any  # They bring torch; the command line that is made from the signature needs no more.

FPS = 8  # of the videos along a path
PICTURES = 9  # of a scene without photographs, for who writes its prompts
SIDE = {"cpu": 128, "cuda": 1024}  # longest side of a scene's images unless --side says otherwise
SPLAT, EDITED = "scene.ply", "edited.ply"


@dataclass(frozen=True)
class SceneRun:
    """A finished scene edit: where it lies, the edited scene's Gaussians, and the prompts that made it."""

    folder: Path
    edited: Gaussians
    prompts: PromptPair


def edit_scene(
    scene: Annotated[str | Path, Positional, arg(metavar="SCENE")],
    instruction: Annotated[str | None, Positional, arg(metavar="INSTRUCTION", help_behavior_hint="")] = None,
    *,
    path: Annotated[str, arg(metavar="PATH")] = "auto",
    frames: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    side: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None,
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
    revision: Annotated[str | None, arg(metavar="REVISION", help_behavior_hint="")] = None,
    allow_pickle: bool = False,
    save_every: Annotated[int, arg(metavar="STEPS")] = SAVE_EVERY,
    config: OmitArgPrefixes[EditConfig] = EditConfig(),  # noqa: B008 (frozen)
    fit: OmitArgPrefixes[FitConfig] = FitConfig(),  # noqa: B008 (frozen)
    on_stage: Annotated[Callable[[Stage], None] | None, Suppress] = None,
    command: Annotated[Sequence[str] | None, Suppress] = None,
    loaded: Annotated[LoadedModel | None, Suppress] = None,
) -> SceneRun:
    """Edit a 3D scene so that it shows what an instruction or a target prompt says.

    Args:
        scene: The scene: a folder with transforms.json (nerfstudio) or a COLMAP project, or a splat .ply.
        instruction: What to change, in one sentence, which the built-in model's grammar or a language model (--lvlm)
            turns into prompts.
        path: What the scene is filmed along: views (the dataset's own), orbit, or a nerfstudio camera-path .json;
            auto takes the one in the dataset's camera_paths folder, else its views, else an orbit.
        frames: Frames of that film (default: as many as the model was trained on).
        side: Longest side of the scene's images in pixels (default: 128 on a CPU, 1024 on a GPU).
        source_prompt: What the scene shows. Unless given, source_prompt in the dataset's scene.json, or what the
            built-in model's reader sees.
        target_prompt: What the scene is to show, as like the source prompt as the edit allows.
        prompts: The prompts in a file, from v2edit prompts -o or another run's run.json.
        lvlm: Let a language model that sees the scene write the prompts.
        model: The built-in model, a Hugging Face id or a local diffusers folder.
        out: The run folder to make (default: runs/<scene>-<instruction>); it must not exist.
        device: A torch device, such as cpu or cuda:1; auto takes a GPU where there is one.
        dtype: Number format; auto is what suits the device.
        offload: Bring whole parts (model) or single layers (group) to the device as needed: smaller, slower.
        vae_tiling: Encode and decode in tiles: smaller, slower.
        revision: Branch, tag or commit of a Hugging Face model.
        allow_pickle: Take weights that are pickles (.bin), too, where a model has no others; no code in them is run.
        save_every: Denoising steps after which the edit is kept, for v2edit resume to go on from.
        config: How to edit.
        fit: How to reconstruct.
        on_stage: Called after every step of reconstructing and editing.
        command: The command line to note in the manifest.
        loaded: The model, where it is in memory already and is to stay there for the next edit.

    Raises:
        UserError: for what the user can mend, in one line.
    """
    check_save_every(save_every)
    where = given_scene(scene, frames, side)
    pair, instruction = given_prompts(
        where, instruction, source_prompt, target_prompt, prompts, lvlm, model, find_prompt
    )
    about = instruction or (pair.target if pair else "")
    with RunWriter(Path(out) if out else default_run_folder(where, about)) as run:
        from v2edit import backbones
        from v2edit.editing.cost import loop_steps
        from v2edit.scenes.rasterise import rasteriser_device
        from v2edit.scenes.reading import choose_path, fingerprint, read_scene
        from v2edit.scenes.rer import plan_of

        on = rasteriser_device(device)
        side = side or SIDE[on.type]
        found = read_scene(where, side)
        checkpoint = loaded.checkpoint if loaded else backbones.find(model, revision, allow_pickle)
        choose_path(path, found, PICTURES, side)  # What is wrong with it is said before a language model is asked.
        if pair is None:
            pair = written_prompts(where, seen(found, path, side, on), about, checkpoint, lvlm, config, device)
        config = config.for_prompts(pair).resolve(checkpoint.defaults)
        backbone = loaded.backbone if loaded else backbones.load(checkpoint, device, dtype, offload, vae_tiling)
        filmed = choose_path(path, found, frames or backbone.native_size.frames, side)
        facts = {
            "input": fingerprint_input(where) | {"read": fingerprint(found, filmed)},
            "instruction": instruction,
            "prompts": pair,
            "lvlm": described(lvlm, checkpoint) if lvlm.model else None,
            **loading_facts(checkpoint, backbone, revision, offload, vae_tiling),
            "config": config,
            "fit": fit,
            "path": {
                "what": os.path.abspath(path) if Path(path).is_file() else path,
                "frames": len(filmed.cameras),
                "closed": filmed.closed,
            },
            "side": side,
            "scene_device": str(on),
        }
        steps = loop_steps(backbone.schedule(config.steps), config) | plan_of(
            fit, config.subtasks, found.gaussians is None
        )
        run.begin(Request("scene", facts, steps, save_every, command))
        done = _carried_out(run, found, filmed, pair, config, fit, backbone, on_stage)
    return SceneRun(run.out, done.gaussians, pair)


def given_scene(scene: str | Path, frames: int | None, side: int | None) -> Path:
    """Where the scene of an edit is. Raises `UserError` for what is wrong before anything is read."""
    where = Path(scene)
    if not where.exists():
        raise UserError(f"no such scene: {where}")
    for name, value, least in (("frames", frames, 2), ("side", side, 1)):
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}, expected {least} or more")
    return where


def seen(scene: Scene, path: str, side: int, on: torch.device) -> np.ndarray:
    """What a scene's prompts are written from, uint8 [T, H, W, 3]: its photographs or, where there are none, what it
    shows along the path."""
    if scene.dataset is not None:
        return scene.dataset.training.images
    from v2edit.scenes.reading import choose_path
    from v2edit.scenes.rer import render_video

    assert scene.gaussians is not None
    return render_video(scene.gaussians.to(on), choose_path(path, scene, PICTURES, side).cameras)


def resume_scene(
    run: RunWriter, on_stage: Callable[[Stage], None] | None = None, loaded: LoadedModel | None = None
) -> SceneRun:
    """Goes on with a scene edit that was ended, and comes to the same as if it had not been.

    Raises:
        UserError: the scene or its path is gone or has changed, or the model or the device is not here.
    """
    assert run.request is not None and run.request.kind == "scene"
    with run:
        from v2edit.scenes.reading import choose_path, fingerprint, read_scene

        facts = run.request.facts
        where, path = Path(facts["input"]["path"]), facts["path"]
        prompts, config, fit = (
            PromptPair(**facts["prompts"]),
            ResolvedConfig(**facts["config"]),
            FitConfig(**facts["fit"]),
        )
        found = read_scene(where, facts["side"])
        filmed = choose_path(path["what"], found, path["frames"], facts["side"])
        if fingerprint(found, filmed) != facts["input"]["read"]:
            raise UserError(f"{where}, or the path, is not what it was when the run began; put that back")
        backbone = loaded.backbone if loaded else reloaded(facts)
        done = _carried_out(run, found, filmed, prompts, config, fit, backbone, on_stage)
    return SceneRun(run.out, done.gaussians, prompts)


def finished_scene(folder: Path) -> SceneRun:
    """A scene edit that is done, as its folder has it."""
    from v2edit.scenes.formats.ply import read_splat

    prompts, _ = read_prompts(folder / MANIFEST)
    return SceneRun(folder, read_splat(folder / EDITED), prompts)


def _carried_out(
    run: RunWriter,
    scene: Scene,
    path: CameraPath,
    prompts: PromptPair,
    config: EditConfig,
    fit: FitConfig,
    backbone: Backbone,
    on_stage: Callable[[Stage], None] | None,
) -> SceneEdit:
    """From where the run stands to its results; the edited scene."""
    from v2edit.editing.editor import Editor
    from v2edit.scenes.rer import edit_gaussians

    assert run.request is not None
    asked, show, snapshots = run.request.facts, on_stage or (lambda stage: None), run.snapshots
    before = _reconstructed(scene, fit, show, asked["scene_device"], config.seed, snapshots)
    done = edit_gaussians(Editor(backbone), before, path, prompts, config, fit, show, snapshots=snapshots)
    title = asked["instruction"] or prompts.target
    run.write_manifest(write_results(run.folder, scene.dataset, path, before, done, title))
    return done


def write_results(
    folder: Path, dataset: Dataset | None, path: CameraPath, before: Gaussians, done: SceneEdit, title: str
) -> dict[str, Any]:
    """Everything in a run folder but the manifest; figures for it. The folder exists."""
    from PIL import Image

    from v2edit import video as videos
    from v2edit.scenes.camera_paths import write_path
    from v2edit.scenes.dataset import views_dataset
    from v2edit.scenes.formats.nerfstudio import file_names, write_transforms
    from v2edit.scenes.formats.ply import write_splat
    from v2edit.scenes.measure import against_photographs
    from v2edit.scenes.rer import render_video

    write_splat(folder / SPLAT, before)
    write_splat(folder / EDITED, done.gaussians)
    write_path(folder / "camera_path.json", path, FPS, None if dataset is None else dataset.applied)
    source, edited = render_video(before, path.cameras), render_video(done.gaussians, path.cameras)
    videos.write(source, folder / "before.mp4", fps=FPS)
    videos.write(edited, folder / "after.mp4", fps=FPS)
    videos.write_compare(source, edited, folder / "compare.mp4", FPS)
    rows = {"before": source}
    for number, (made, shown) in enumerate(zip(done.videos, done.renders, strict=True), start=1):
        videos.write(made, folder / f"subtask-{number}.mp4", fps=FPS)
        rows |= {f"subtask {number}, the video": made, f"subtask {number}, the scene": shown}
    videos.contact_sheet(rows | {f"after: {title}": edited}, folder / "contact.png")
    figures: dict[str, Any] = {"changes": [asdict(change) for change in done.changes]}

    shown = views_dataset(dataset, path.cameras)
    (folder / "dataset").mkdir()
    write_transforms(folder / "dataset", replace(shown, images=render_video(done.gaussians, shown.cameras)))
    if dataset is not None and dataset.held_out.any():
        kept = dataset.kept_out
        (folder / "held-out").mkdir()
        first, last = render_video(before, kept.cameras), render_video(done.gaussians, kept.cameras)
        for name, image in zip(file_names(kept.names), last, strict=True):
            Image.fromarray(image).save(folder / "held-out" / f"{name}.png")
        sheet = {"photographs": kept.images, "reconstructed": first, f"after: {title}": last}
        videos.contact_sheet(sheet, folder / "held-out.png")
        if (psnr := against_photographs(first, kept)) is not None:
            figures["reconstruction_psnr"] = psnr
    return figures


def _reconstructed(
    scene: Scene, fit: FitConfig, show: Callable[[Stage], None], on: str, seed: int, snapshots: Snapshots
) -> Gaussians:
    """The scene's Gaussians: those that it came as, or fitted to its images."""
    from v2edit.scenes.optimise import reconstruct
    from v2edit.scenes.rer import Stage, fit_snapshot

    if scene.gaussians is not None:
        return scene.gaussians.to(on)
    assert scene.dataset is not None
    told = lambda at: show(Stage("reconstructing", at.step, at.steps, at.psnr))  # noqa: E731
    return reconstruct(scene.dataset, fit, told, on, seed, fit_snapshot(snapshots, 0))
