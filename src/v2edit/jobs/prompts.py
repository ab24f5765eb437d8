"""The prompts of a job: from what the user gave, what lies beside the input, or its frames, to a `PromptPair`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2edit.backbones.families import BUILT_IN, PUBLISHED
from v2edit.backbones.hub import Checkpoint
from v2edit.errors import UserError
from v2edit.files import read_json
from v2edit.jobs.options import PromptOptions
from v2edit.prompts import PromptPair, read_prompts
from v2edit.prompts.lvlm import LVLMConfig
from v2edit.prompts.tokens import PromptTokenizer
from v2edit.runs.layout import SPLAT_SUFFIXES
from v2edit.scenes.config import SCENE_FACTS, TRANSFORMS

if TYPE_CHECKING:
    from v2edit.video.stream import Frames

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GivenPrompts:
    """What is known of an edit's prompts before its input is read: the pair, or None where it comes from the frames,
    and the source prompt that a language model is to keep."""

    pair: PromptPair | None
    instruction: str | None
    source: str | None = None

    @property
    def title(self) -> str:
        """The edit in a few words."""
        return self.instruction or (self.pair.target if self.pair else "")


def given_prompts(
    path: Path,
    instruction: str | None,
    options: PromptOptions,
    lvlm: LVLMConfig,
    model: str,
    source_prompt_beside: Callable[[], str | None],
) -> GivenPrompts:
    """Return the prompts of an edit as far as its options tell, without reading the video or scene at `path`. Raises
    `UserError` where two ways to get them are given, or none is left."""
    ways = {
        "--prompts": options.prompts is not None,
        "--lvlm": lvlm.model is not None,
        "--target-prompt": options.target_prompt is not None,
        "--source-prompt": options.source_prompt is not None and options.prompts is not None,
    }
    if len(several := [way for way, is_given in ways.items() if is_given]) > 1:
        raise UserError(f"prompts come from one place: give {', or '.join(several)}")
    if options.prompts is not None:
        pair, written_for = read_prompts(options.prompts)
        return GivenPrompts(pair, instruction or written_for)
    if lvlm.model is not None and not (instruction or "").strip():
        raise UserError("what is to change? --lvlm turns an INSTRUCTION into prompts: give one")
    source_prompt = source_prompt_beside() if options.source_prompt is None else options.source_prompt
    if lvlm.model is not None:
        return GivenPrompts(None, instruction, source_prompt)
    if model == BUILT_IN and source_prompt is None and options.target_prompt is None and (instruction or "").strip():
        return GivenPrompts(None, instruction)
    return GivenPrompts(resolve_prompts(path, instruction, source_prompt, options.target_prompt), instruction)


def resolve_prompts(
    path: Path, instruction: str | None, source_prompt: str | None, target_prompt: str | None
) -> PromptPair:
    """Return the prompt pair; the built-in grammar applies the instruction where no target prompt is given. Raises
    `UserError` where something is missing; the message names the options that give it."""
    if source_prompt is None:
        if target_prompt is not None:
            raise UserError(f"what does {path.name} show? Say it with --source-prompt")
        raise UserError(
            f"what does {path.name} show? Name a language model that looks and writes both prompts (--lvlm), or say "
            "what it shows with --source-prompt and what it is to show with --target-prompt"
        )
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
        more = "or anything else, use --lvlm, or say what it is to show with --target-prompt"
        raise UserError(f"{error}{' F' if str(error).endswith('?') else '; f'}{more}") from error


def check_token_limit(prompts: PromptPair, tokenizer: PromptTokenizer) -> None:
    """Raise `UserError` where two prompts that follow each other differ only behind the model's token limit, so that
    nothing could change."""
    from v2edit.prompts.comparison import compare_prompts

    for before, after in pairwise(prompts.chain):
        difference = compare_prompts(before, after, tokenizer)
        is_cut = max(difference.lengths) > difference.max_tokens
        if is_cut and before != after and not difference.changed + difference.added + difference.removed:
            cut = " and ".join(repr(f"…{text.strip()}") for kind, text in difference.pieces if kind == "cut")
            raise UserError(
                f"the prompts differ only behind the {difference.max_tokens} tokens that the model reads, so nothing "
                f"would change: {cut} is cut. Use fewer words, or say earlier what changes"
            )


def write_prompts_for(
    path: Path,
    frames: Frames,
    instruction: str,
    checkpoint: Checkpoint,
    lvlm: LVLMConfig,
    subtasks: int,
    device: str,
    source: str | None = None,
    is_scene: bool = False,
) -> PromptPair:
    """Return prompts written from frames, uint8 [T, H, W, 3]: by the language model, in the style of the video model,
    or without one by the built-in model's classifier and grammar. Both keep a known `source` prompt, which in the
    built-in world the classifier reads off the frames, so that no language model that sees badly misses what is there;
    of a scene (`is_scene`: the frames are views of it) without motions and camera.
    The language model is freed before this returns. Raises `UserError` where it gives no usable answer, or, without
    one, the frames do not look like the built-in world."""
    if lvlm.model is None:
        return caption_and_edit(path, frames, instruction, is_scene=is_scene)
    if source is None and checkpoint.name == BUILT_IN and (source := read_caption(frames, is_scene)) is not None:
        _log_caption(source, "the video")
    from v2edit import backbones
    from v2edit.prompts.lvlm import generate_prompts, open_chat
    from v2edit.prompts.style import read_style

    style = read_style(lvlm.style or checkpoint.prompt_style)
    tokenizer = backbones.read_info(checkpoint).tokenizer
    with open_chat(lvlm, device) as chat:
        return generate_prompts(chat, frames, instruction, style, tokenizer, lvlm, subtasks, source)


def describe_lvlm(lvlm: LVLMConfig, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Describe the language model for run.json, without what may be secret in its address; None where there is none."""
    if lvlm.model is None:
        return None
    from v2edit.prompts.endpoint import redact_url

    return {
        "model": lvlm.model,
        "url": redact_url(lvlm.url) if lvlm.url else None,
        "style": lvlm.style or checkpoint.prompt_style,
        "frames": lvlm.frames,
        "progression": lvlm.progression,
    }


def source_prompt_beside_video(video: Path) -> str | None:
    """Return `source_prompt` of the JSON file beside a video, or None. Raises `UserError` where it is no JSON."""
    video = Path(os.path.abspath(video))  # "." has no name of its own
    facts_file = video.parent / f"{video.stem}.json"
    if not facts_file.is_file():
        return None
    try:
        facts = read_json(facts_file)
    except ValueError as error:
        raise UserError(f"{facts_file} is no JSON ({error}); mend it or give --source-prompt") from error
    return _source_prompt(facts)


def source_prompt_beside_scene(scene: Path) -> str | None:
    """Return `source_prompt` of the `scene.json` in a dataset's folder, or None. The dataset may be given as its folder
    or its `transforms.json`; a file of another name beside it, or beside a splat, may belong to anything."""
    folder = scene.parent if scene.name == TRANSFORMS and scene.is_file() else scene
    try:
        return _source_prompt(read_json(folder / SCENE_FACTS))
    except (OSError, ValueError):
        return None


def _source_prompt(facts: Any) -> str | None:
    prompt = facts.get("source_prompt") if isinstance(facts, dict) else None
    return prompt if isinstance(prompt, str) else None


def caption_and_edit(
    path: Path, frames: Frames, instruction: str, name: str = "the video", is_scene: bool = False
) -> PromptPair:
    """Return the prompts of a clip of the built-in world, or of views of a scene: what its classifier reads off the
    frames, and what its grammar makes of that; the log says by what `name` the clip goes. Raises `UserError` where
    either cannot."""
    caption = _caption(path, frames, is_scene)
    try:
        pair = resolve_prompts(path, instruction, caption, None)
    except UserError as error:
        raise UserError(
            f"{error}. What {name} shows is read off its frames: if that is wrong, say it with --source-prompt"
        ) from error
    _log_caption(caption, name)
    return pair


def _log_caption(caption: str, name: str) -> None:
    log.warning("%s is taken to show: %s If that is wrong, say it with --source-prompt", name, caption)


def _caption(path: Path, frames: Frames, is_scene: bool) -> str:
    """Caption a clip of the built-in world. Raises `UserError` for one that does not look like that world."""
    caption = read_caption(frames, is_scene)
    if caption is None:
        looked = "It has no photographs, and its renders are" if path.suffix.lower() in SPLAT_SUFFIXES else "It is"
        raise UserError(
            f"what does {path.name} show? {looked} not of the built-in model's world: say it with --source-prompt and "
            f"--target-prompt, or name a language model that looks (--lvlm), and use --model {PUBLISHED}"
        )
    return caption


def read_caption(frames: Frames, is_scene: bool = False) -> str | None:
    """Return the caption that the classifier reads off a clip, or None where it is not of the built-in world. Nothing
    moves in a scene, and its views are no camera's path."""
    from v2edit.primitives.captions import describe
    from v2edit.primitives.classifier import SceneClassifier, matches_scene

    scene = SceneClassifier.load().classify(frames)
    return describe(scene, unsaid={"motion", "camera"} if is_scene else ()) if matches_scene(frames, scene) else None
