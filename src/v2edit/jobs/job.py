"""What the jobs of videos and scenes share: their groups of options, prompts, preview, and the record of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from tyro.conf import OmitArgPrefixes, arg

from v2edit.backbones.hub import check_family
from v2edit.editing.config import EditConfig, ResolvedConfig
from v2edit.host import available_memory
from v2edit.jobs.inputs import check_input
from v2edit.jobs.memory import choose_memory_mode, cost_model_of, is_open, load_fake_model, settle_long
from v2edit.jobs.options import ModelOptions, PromptOptions, RunOptions
from v2edit.jobs.plan import clip_schedule, noise_window
from v2edit.jobs.prompts import GivenPrompts, check_token_limit, describe_lvlm, given_prompts, write_prompts_for
from v2edit.prompts import PromptPair
from v2edit.prompts.lvlm import LVLMConfig, check_chat
from v2edit.prompts.style import read_style
from v2edit.runs import RunWriter

if TYPE_CHECKING:
    from v2edit.backbones import Backbone, Checkpoint, LoadedModel, Size
    from v2edit.jobs.memory import ClipOf
    from v2edit.jobs.preview import Preview
    from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
# In place of the prompts that a language model would write, where it is not asked.
STAND_INS = PromptPair("a video", "an edited video")


@dataclass(frozen=True)
class Prepared:
    """What an edit takes beside its input and the model's weights: the prompts and the settings, settled."""

    prompts: PromptPair
    instruction: str | None
    checkpoint: Checkpoint
    open_config: EditConfig  # with what the model decides left open
    config: ResolvedConfig

    def for_clip(self, backbone: Backbone, size: Size) -> Self:
        """Return the same with the settings for clips of a size, on which a model's noise levels may depend."""
        schedule = clip_schedule(backbone, self.open_config, size)
        return replace(self, config=self.open_config.resolve(backbone.defaults, schedule))


@dataclass(frozen=True, kw_only=True)
class EditJob:
    """The options that edits of videos and of scenes share."""

    prompt_options: Annotated[OmitArgPrefixes[PromptOptions], arg(name="prompt")] = PromptOptions()
    lvlm: Annotated[OmitArgPrefixes[LVLMConfig], arg(name="language-model")] = LVLMConfig()
    model_options: Annotated[OmitArgPrefixes[ModelOptions], arg(name="model")] = ModelOptions()
    run_options: Annotated[OmitArgPrefixes[RunOptions], arg(name="run")] = RunOptions()
    config: Annotated[OmitArgPrefixes[EditConfig], arg(name="edit")] = EditConfig()

    kind: ClassVar[Literal["file", "scene"]]

    # Fields of each job, since they are positional.
    @property
    def path(self) -> Path:
        """The video or scene."""
        raise NotImplementedError

    @property
    def instruction(self) -> str | None:
        """What to change."""
        raise NotImplementedError

    def source_prompt_beside(self) -> str | None:
        """Return the source prompt that lies beside the input, or None."""
        raise NotImplementedError

    def prepare(self, given: GivenPrompts | None = None) -> Prepared:
        """Read the input and settle the prompts and settings; `given` is the result of `given_prompts`."""
        raise NotImplementedError

    def given_prompts(self) -> GivenPrompts:
        """Return the prompts as far as the options tell. Raises `UserError` where there is no such input or family of
        models, or no way to get the prompts, or several."""
        check_input(self.path, self.instruction, self.kind)
        check_family(self.model_options.model)
        model, beside = self.model_options.model, self.source_prompt_beside
        return given_prompts(self.path, self.instruction, self.prompt_options, self.lvlm, model, beside)

    def settle(
        self,
        given: GivenPrompts,
        checkpoint: Checkpoint,
        frames: Callable[[], Frames],
        ask: bool,
        loaded: LoadedModel | None,
    ) -> Prepared:
        """Settle prompts and settings for the model of `checkpoint`, `loaded` or not. The prompts are written from
        `frames` where none are given, or, where a language model would write them and is not to be asked, they are
        `STAND_INS`. Raises `UserError` for prompts that differ only behind the model's token limit."""
        prompts = given.pair
        if prompts is None and self.lvlm.model is not None and not ask:
            read_style(self.lvlm.style or checkpoint.prompt_style)
            check_chat(self.lvlm)
            prompts = STAND_INS
        if prompts is None:
            device, subtasks = self.model_options.device, self.config.subtasks
            prompts = write_prompts_for(
                self.path, frames(), given.title, checkpoint, self.lvlm, subtasks, device, given.source,
                is_scene=self.kind == "scene",
            )  # fmt: skip
        from v2edit import backbones

        model = loaded.backbone if loaded else backbones.read_info(checkpoint, self.model_options)
        check_token_limit(prompts, model.tokenizer)
        open_config = self.config.for_prompts(prompts)
        schedule = model.schedule(self.config.steps)
        if self.config.guidance_2 is not None and schedule.second_expert is None:
            log.warning("--guidance-2: %s has no second expert, so it changes nothing", checkpoint.name)
        if self.config.guidance_until and not model.classifier_free:
            log.warning("--guidance-until: %s is told its guidance in one row, so it changes nothing", checkpoint.name)
        config = open_config.resolve(model.defaults, schedule)
        return Prepared(prompts, given.instruction, checkpoint, open_config, config)

    def load(self, prepared: Prepared, clip_of: ClipOf, loaded: LoadedModel | None) -> Backbone:
        """Load the model, or take the one in memory, to run in the memory there is; `clip_of` returns the settings and
        the size of the edit's clips. Raises `UserError` where no memory mode fits, before it loads anything."""
        mode = choose_memory_mode(self.model_options, prepared.checkpoint, clip_of, loaded)
        if loaded is None:
            return self.model_options.load(prepared.checkpoint, mode)
        loaded.backbone.place(loaded.backbone.device, mode)
        return loaded.backbone

    def settle_long(self, prepared: Prepared, backbone: Backbone, clip_of: ClipOf) -> tuple[ResolvedConfig, Size]:
        """Return the settings and the size of the edit's clips on a loaded model, with the way to denoise long ones
        that has room in its free memory."""
        config, size = clip_of(backbone)
        if not is_open(config, backbone.nearest_size(size, config.loop), backbone):
            return config, size
        cost_model, fitted = cost_model_of(load_fake_model(prepared.checkpoint, self.model_options), clip_of)
        free = available_memory(backbone.device)
        free = None if free is None else free + backbone.resident_bytes
        return settle_long(cost_model, fitted, backbone.memory_mode, free), size

    def preview(self) -> Preview:
        """Return the prompts, what they share and what the edit costs; the input is read only if they come from it."""
        from v2edit.jobs.preview import preview

        given = self.given_prompts()
        if given.pair is not None:
            return preview(given.pair, given.instruction, self.model_options.find(), self.config, self.model_options)
        prepared = self.prepare(given)
        return preview(prepared.prompts, given.instruction, prepared.checkpoint, self.config, self.model_options)

    def check_out(self) -> None:
        """Raise `UserError` where the run folder is taken."""
        if self.run_options.out is not None:
            RunWriter(self.run_options.out)

    def record(self, prepared: Prepared, backbone: Backbone, size: Size, identity: dict[str, str]) -> dict[str, Any]:
        """Return what run.json says of every job on clips of a size, beside what is a job's own."""
        return {
            "input": identity,
            "instruction": prepared.instruction,
            "prompts": prepared.prompts,
            "lvlm": describe_lvlm(self.lvlm, prepared.checkpoint),
            **self.model_options.record(prepared.checkpoint, backbone),
            "config": prepared.config,
            "sigma": noise_window(clip_schedule(backbone, prepared.config, size), prepared.config),
        }
