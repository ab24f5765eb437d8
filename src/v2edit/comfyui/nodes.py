"""The nodes, in ComfyUI's V3 schema: a model, prompts, an edit of a video, and one of a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from comfy_api.latest import ComfyExtension, io, ui  # pyright: ignore[reportMissingImports]
from comfy_execution.graph import ExecutionBlocker  # pyright: ignore[reportMissingImports]

from v2edit.backbones.families import BUILT_IN, PUBLISHED, DType, Offload, Quantise
from v2edit.comfyui.clips import fits_a_batch, to_images, to_mask, to_mask_array
from v2edit.comfyui.options import MODEL_OPTIONS, help_of, read_options
from v2edit.comfyui.runs import (
    ModelHandle,
    NodeEdit,
    NodePrompts,
    choose_model,
    describe_preview,
    edited_file,
    fingerprint_files,
    fingerprint_scene,
    make_prompts,
)
from v2edit.comfyui.server import (
    comfy_terms,
    find_source,
    local_models,
    make_room,
    open_file,
    output_folder,
    own_device,
    progress_bar,
    show_text,
)
from v2edit.editing.config import EditConfig
from v2edit.editing.strength import STRENGTHS
from v2edit.errors import UserError
from v2edit.jobs.masks import MaskOptions
from v2edit.jobs.options import ModelOptions, PromptOptions
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.runs.layout import AFTER_VIDEO, EDITED_SPLAT, MASK_VIDEO

CATEGORY = "V2Edit"
MAX_SEED = 2**32 - 1
Model, Prompts = io.Custom("V2EDIT_MODEL"), io.Custom("V2EDIT_PROMPTS")
# What widgets, inputs and this pack itself set, and `options` may not.
TAKEN = frozenset({"video", "scene", "instruction", "source_prompt", "target_prompt", "prompts", "out", "output"})
TAKEN |= {"seeds"} | MODEL_OPTIONS
TRAINER = frozenset({"trainer", "trainer_env", "trainer_args", "trainer_timeout"})  # no workflow names programs to run
EDIT_WIDGETS = ("strength", "steps", "subtasks", "seed", "negative_prompt")
PROMPT_WIDGETS = frozenset({"lvlm", "lvlm_url"})
MODEL_WIDGETS = frozenset({"model", "dtype", "offload", "quantize", "vae_tiling", "resolution"})


def _more(command: str) -> Any:
    """Return the widget of all other options."""
    return io.String.Input(
        "options", multiline=True, optional=True, default="", placeholder="more options, one a line: alpha = 0.7",
        tooltip=f"Any other option of {command}, one a line, such as alpha = 0.7",
    )  # fmt: skip


def _edit_widgets() -> list[Any]:
    """Return the widgets of an edit's settings, with their defaults and help."""

    def described(name: str) -> dict[str, Any]:
        return {"default": getattr(EditConfig(), name), "tooltip": help_of(EditConfig, name)}

    return [
        io.Combo.Input("strength", options=list(STRENGTHS), **described("strength")),
        io.Int.Input("steps", min=1, max=1000, **described("steps")),
        io.Int.Input("subtasks", min=1, max=6, **described("subtasks")),
        io.Int.Input("seed", min=0, max=MAX_SEED, control_after_generate=True, **described("seed")),
        io.String.Input("negative_prompt", multiline=True, optional=True, **described("negative_prompt")),
    ]


def _video_inputs(optional: bool) -> list[Any]:
    return [
        io.MultiType.Input(
            "video", types=[io.Video, io.Image], optional=optional, tooltip="The video to edit, or its frames."
        ),
        io.Float.Input(
            "fps", default=24.0, min=0.01, max=1000.0, step=0.01, optional=True,
            tooltip="Frames a second of a batch of frames; a video has its own.",
        ),
    ]  # fmt: skip


class V2EditModel(io.ComfyNode):
    """Choose a video model."""

    @classmethod
    def define_schema(cls) -> Any:
        def described(name: str) -> dict[str, Any]:
            return {"default": getattr(ModelOptions(), name) or "", "tooltip": help_of(ModelOptions, name)}

        return io.Schema(
            node_id="V2EditModel",
            display_name="V2Edit Model",
            category=CATEGORY,
            description="A video model for V2Edit. It is loaded for the first edit and stays in memory.",
            inputs=[
                io.Combo.Input("model", options=[BUILT_IN, PUBLISHED, *local_models()], **described("model")),
                io.String.Input(
                    "other_model", default="", optional=True,
                    tooltip="Another Hugging Face id or diffusers folder, which goes before the one above.",
                ),
                io.Combo.Input("dtype", options=list(get_args(DType)), **described("dtype")),
                io.Combo.Input("offload", options=["auto", *get_args(Offload)], **described("offload")),
                io.Combo.Input("quantize", options=list(get_args(Quantise)), **described("quantize")),
                io.Boolean.Input("vae_tiling", default=False, tooltip=help_of(ModelOptions, "vae_tiling")),
                io.String.Input("resolution", optional=True, **described("resolution")),
                _more("the model in v2edit edit"),
            ],
            outputs=[Model.Output(display_name="model")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: str, other_model: str = "", resolution: str = "", options: str = "", **widgets: Any) -> Any:
        more = read_options(options, MODEL_WIDGETS)
        if odd := more.keys() - MODEL_OPTIONS:
            raise UserError(f"options has {', '.join(sorted(odd))}, which is no option of a model")
        widgets |= {"model": other_model.strip() or model, "resolution": resolution.strip() or None}
        return io.NodeOutput(choose_model(**{"device": own_device()} | widgets | more))

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> Any:
        return fingerprint_files(cls.execute(**widgets).args[0].options)


class V2EditPrompts(io.ComfyNode):
    """Make the prompts of an edit, and show what they share."""

    @classmethod
    def define_schema(cls) -> Any:
        def text(name: str) -> dict[str, Any]:
            return {
                "default": "",
                "multiline": True,
                "tooltip": f"{help_of(PromptOptions, name)} Empty: it is written.",
            }

        return io.Schema(
            node_id="V2EditPrompts",
            display_name="V2Edit Prompts",
            category=CATEGORY,
            description="The prompts of an edit: written from an instruction, or your own. Words that both share are "
            "held, the others edited: shared words are plain, [-removed-] and {+added+} ones marked.",
            inputs=[
                Model.Input("model"),
                *_video_inputs(optional=True),
                io.String.Input(
                    "instruction", default="", multiline=True, placeholder="make the surfer a polar bear",
                    tooltip="What to change, in one sentence.",
                ),
                io.String.Input("source_prompt", **text("source_prompt")),
                io.String.Input("target_prompt", **text("target_prompt")),
                io.String.Input("lvlm", default="", optional=True, tooltip=help_of(LVLMConfig, "model")),
                io.String.Input("lvlm_url", default="", optional=True, tooltip=help_of(LVLMConfig, "url")),
                _more("v2edit prompts"),
            ],
            outputs=[
                Prompts.Output(display_name="prompts"),
                io.String.Output(display_name="source_prompt"),
                io.String.Output(display_name="target_prompt"),
                io.String.Output(display_name="comparison"),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelHandle, instruction: str, video: Any = None, fps: float = 24.0, options: str = "", **texts: str
    ) -> Any:
        more = read_options(options, TAKEN | PROMPT_WIDGETS)
        given = {name: text.strip() for name, text in texts.items() if text.strip()}
        with comfy_terms():
            path = None if video is None else find_source(video, fps)
            found = make_prompts(path, instruction.strip() or None, model, **given, **more)
        pair, comparison = found.prompts, describe_preview(found)
        prompts = NodePrompts(pair, found.instruction)
        show_text(comparison)
        return io.NodeOutput(prompts, pair.source, pair.target, comparison, ui=ui.PreviewText(comparison))


class V2EditVideo(io.ComfyNode):
    """Edit a video."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="V2Edit",
            display_name="V2Edit",
            category=CATEGORY,
            description="Edit a video: what the prompts differ in changes, everything else stays. The result, its "
            "settings and a comparison are in output/v2edit; an edit that was interrupted goes on where it stopped.",
            inputs=[
                Model.Input("model"),
                Prompts.Input("prompts"),
                *_video_inputs(optional=False),
                io.Mask.Input(
                    "mask", optional=True, tooltip="White may change, the rest stays the source's: one, or one a frame."
                ),
                *_edit_widgets(),
                io.Boolean.Input(
                    "auto_mask", default=False, optional=True,
                    tooltip="Limit the edit to what the model itself changes.",
                ),
                io.Int.Input(
                    "grow", default=-1, min=-1, max=4096, optional=True,
                    tooltip=f"{help_of(MaskOptions, 'grow')} -1: the default.",
                ),
                _more("v2edit edit"),
            ],
            outputs=[
                io.Video.Output(display_name="video"),
                io.Image.Output(display_name="images"),
                io.Mask.Output(display_name="mask", tooltip="What was edited: white everywhere without a mask."),
                io.String.Output(display_name="source_prompt"),
                io.String.Output(display_name="target_prompt"),
                io.String.Output(display_name="run_folder"),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: ModelHandle,
        prompts: NodePrompts,
        video: Any,
        fps: float = 24.0,
        mask: Any = None,
        auto_mask: bool = False,
        grow: int = -1,
        options: str = "",
        **settings: Any,
    ) -> Any:
        more = read_options(options, TAKEN | {*EDIT_WIDGETS, "mask", "grow"}) | settings
        if mask is not None and auto_mask:
            raise UserError("a mask is connected, and auto_mask lets the model find one: use one of them")
        if more.get("format") == "png":
            raise UserError("options has format = png, which makes no video: leave it out, or take save_frames = true")
        if mask is not None or auto_mask:
            more["mask"] = "auto" if mask is None else to_mask_array(mask)
        if grow >= 0:
            more["grow"] = grow
        with comfy_terms():
            make_room(model)
            edit = NodeEdit(find_source(video, fps), prompts, model, more, output_folder())
            run = edit.edit_video(progress_bar())
            file, edited = edited_file(run, more), run.edited
            if fits_a_batch(edited):
                images, masks = to_images(edited), to_mask(run.folder / MASK_VIDEO, edited)
            else:
                images = masks = ExecutionBlocker(
                    f"{edited!r} is too long for a batch in memory: take the video output, or {run.folder / MASK_VIDEO}"
                )
        result = io.NodeOutput(open_file(file), images, masks, run.prompts.source, run.prompts.target, str(run.folder))
        result.ui = _preview(file)
        return result


class V2EditScene(io.ComfyNode):
    """Edit a 3D scene."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="V2EditScene",
            display_name="V2Edit Scene",
            category=CATEGORY,
            description="Edit a 3D scene: the edited splat, and a video along its camera path.",
            inputs=[
                Model.Input("model"),
                io.String.Input(
                    "scene", default="",
                    tooltip="A folder with transforms.json (nerfstudio), a COLMAP project, or a splat .ply.",
                ),
                io.String.Input("instruction", default="", multiline=True, tooltip="What to change, without prompts."),
                Prompts.Input("prompts", optional=True),
                *_edit_widgets(),
                _more("v2edit scene"),
            ],
            outputs=[
                io.String.Output(display_name="splat"),
                io.Video.Output(display_name="video"),
                io.String.Output(display_name="run_folder"),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: ModelHandle,
        scene: str,
        instruction: str = "",
        prompts: NodePrompts | None = None,
        options: str = "",
        **settings: Any,
    ) -> Any:
        more = read_options(options, TAKEN | TRAINER | {*EDIT_WIDGETS}) | settings
        path = Path(scene.strip().strip('"')).expanduser().absolute()
        with comfy_terms():
            make_room(model)
            edit = NodeEdit(path, prompts, model, more, output_folder(), instruction.strip() or None)
            run = edit.edit_scene(progress_bar())
        video = run.folder / AFTER_VIDEO
        result = io.NodeOutput(str(run.folder / EDITED_SPLAT), open_file(video), str(run.folder))
        result.ui = _preview(video)
        return result

    @classmethod
    def fingerprint_inputs(cls, scene: str, **widgets: Any) -> Any:
        return fingerprint_scene(Path(scene.strip().strip('"')).expanduser())


def _preview(file: Path) -> Any:
    """Return a file in the output folder as what a node shows of its result."""
    folder = file.parent.relative_to(output_folder().absolute())
    return ui.PreviewVideo([ui.SavedResult(file.name, folder.as_posix(), io.FolderType.output)])


class V2EditExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[Any]]:
        return [V2EditModel, V2EditPrompts, V2EditVideo, V2EditScene]


async def comfy_entrypoint() -> V2EditExtension:
    """Return the pack, for ComfyUI."""
    return V2EditExtension()
