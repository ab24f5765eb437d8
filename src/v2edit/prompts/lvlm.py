"""Prompts by a vision-language model: from frames and an instruction to a checked prompt pair (V2Edit Sec. B.4)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any

from tyro.conf import arg

from v2edit.errors import UserError
from v2edit.prompts.chat import Chat, InvalidAnswer, Message, Picture, ask_for_json, sample_frames, to_single_line
from v2edit.prompts.comparison import compare_prompts
from v2edit.prompts.pair import MAX_INTERMEDIATE, PromptPair
from v2edit.prompts.style import PromptStyle
from v2edit.prompts.tokens import PromptTokenizer
from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
LOCAL = "local:"
# The least part of the longer prompt's tokens that both prompts of an edit share. Of 448 published pairs 95 % share
# 0.42 and more; of pairs mixed from different edits, 95 % share less than 0.24 (benchmarks/alignment.py).
MIN_SHARED = 0.4


@dataclass(frozen=True)
class LVLMConfig:
    """The vision-language model that writes the prompts. Its key comes from the environment alone."""

    model: Annotated[str | None, arg(name="lvlm", metavar="MODEL", help_behavior_hint="")] = None
    """A vision-language model at an OpenAI-compatible address, or local:HUB_ID_OR_FOLDER to run one on this machine."""
    url: Annotated[str | None, arg(name="lvlm-url", metavar="URL", help_behavior_hint="")] = None
    """The address of its server, such as http://localhost:11434/v1 (default: OPENAI_BASE_URL, or OpenAI)."""
    frames: Annotated[int, arg(name="lvlm-frames")] = 8
    """Number of frames of the video to send."""
    timeout: Annotated[float, arg(name="lvlm-timeout", metavar="SECONDS")] = 120.0
    """Seconds to wait for an answer, or for the next piece of a long one."""
    progression: Annotated[bool, arg(name="lvlm-progression")] = False
    """Also let it write the prompts of the intermediate subtasks, and their number (unless --subtasks sets it)."""
    style: Annotated[str | None, arg(name="prompt-style", metavar="FOLDER", help_behavior_hint="")] = None
    """A folder with a style.toml, the examples it writes after (default: the style of the video model)."""

    def __post_init__(self) -> None:
        if self.model is None:
            for name, option in (("url", "lvlm-url"), ("progression", "lvlm-progression"), ("style", "prompt-style")):
                if getattr(self, name):
                    raise UserError(f"--{option} is for a language model: name one with --lvlm")
        elif not self.model.removeprefix(LOCAL).strip():
            raise UserError(f"--lvlm is {self.model!r}, expected a model's name, or local: and a hub id or folder")
        elif self.url and self.model.startswith(LOCAL):
            raise UserError(f"--lvlm {self.model} runs here; leave --lvlm-url out, or leave local: out")
        if self.frames < 1:
            raise UserError(f"--lvlm-frames is {self.frames}, expected 1 or more")
        if not 0 < self.timeout < float("inf"):
            raise UserError(f"--lvlm-timeout is {self.timeout}, expected seconds above 0")


def check_chat(config: LVLMConfig) -> None:
    """Raise `UserError` for what stops a language model from being asked, as far as that shows without asking it: an
    address, a key or a folder."""
    assert config.model is not None
    if config.model.startswith(LOCAL):
        from v2edit.prompts.local import find_folder

        find_folder(config.model.removeprefix(LOCAL))
    else:
        from v2edit.prompts.endpoint import EndpointChat

        EndpointChat(config.model, config.url, config.timeout).close()


@contextmanager
def open_chat(config: LVLMConfig, device: str = "auto") -> Iterator[Chat]:
    """Open the model to ask. Its memory is released on exit, before the video model needs it."""
    assert config.model is not None
    if config.model.startswith(LOCAL):
        from v2edit.prompts.local import LocalChat

        chat: Chat = LocalChat(config.model.removeprefix(LOCAL), device)
    else:
        from v2edit.prompts.endpoint import EndpointChat

        chat = EndpointChat(config.model, config.url, config.timeout)
    log.info("asking %s", config.model)
    try:
        yield chat
    finally:
        chat.close()


def generate_prompts(
    chat: Chat,
    frames: Frames,
    instruction: str,
    style: PromptStyle,
    tokenizer: PromptTokenizer,
    config: LVLMConfig = LVLMConfig(),
    subtasks: int = 1,
    source: str | None = None,
) -> PromptPair:
    """Let a language model write the prompt pair for a video, uint8 [T, H, W, 3], and an instruction; a known `source`
    prompt is kept, and the others are written after it. The two prompts must share tokens of `tokenizer`, the video
    model's. With `config.progression`, `subtasks` is their number; 1 leaves it to the language model. Raises
    `UserError` for no answer, or three that cannot be used."""
    pictures = [Picture.from_frame(frame) for frame in sample_frames(frames, config.frames)]

    def parse(answer: dict[str, Any]) -> PromptPair:
        prompts = parse_prompts(answer if source is None else {**answer, "source": source}, config.progression)
        prompts = prompts if source is None else replace(prompts, source=source)
        number = subtasks if config.progression else 1
        if faults := find_faults(prompts, style, tokenizer, number, source is not None):
            raise InvalidAnswer(*faults)
        return prompts

    messages = style.build_messages(pictures, instruction, config.progression, subtasks, source)
    advice = "write the prompts yourself with --source-prompt and --target-prompt"
    return ask_for_json(chat, messages, answer_schema(config.progression), parse, advice)


SHOWS = (
    "These pictures are frames of one shot of a video that has several, in order. The video is to be edited: {}\n"
    "Does this shot show what that edit is about, so that it has to be edited, too? Yes where what is to change can be "
    "seen in it, or where something is to be put onto or beside it; yes also where the edit is about the look of the "
    "whole video, such as its style, the weather or the time of day. No where the subject of the edit is not in it."
)


def shows_subject(chat: Chat, frames: Frames, instruction: str, count: int) -> bool:
    """Ask a vision-language model, by `count` frames of a shot, uint8 [T, H, W, 3], whether it shows what an
    instruction is about. Raises `UserError` for no answer, or three that cannot be used."""
    pictures = [Picture.from_frame(frame) for frame in sample_frames(frames, count)]
    schema = {"type": "object", "properties": {"shows": {"type": "boolean"}}, "required": ["shows"]}

    def parse(answer: dict[str, Any]) -> bool:
        words = {"true": True, "yes": True, "false": False, "no": False}
        if (said := str(answer["shows"]).strip().lower()) not in words:
            raise InvalidAnswer("'shows' is neither true nor false")
        return words[said]

    advice = "name the shots to edit with --only-shots"
    message = Message("user", (SHOWS.format(instruction), *pictures))
    return ask_for_json(chat, [message], {**schema, "additionalProperties": False}, parse, advice)


def answer_schema(intermediate: bool) -> dict[str, Any]:
    """Return the JSON schema of an answer, with or without intermediate prompts."""
    properties: dict[str, Any] = {"source": {"type": "string"}, "target": {"type": "string"}}
    if intermediate:
        properties["intermediate"] = {"type": "array", "items": {"type": "string"}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def parse_prompts(answer: dict[str, Any], intermediate: bool) -> PromptPair:
    """Return the prompts of an answer, each as one line of visible text. Raises `InvalidAnswer`."""
    texts = {name: answer.get(name) for name in ("source", "target")}
    steps = answer.get("intermediate") or [] if intermediate else []
    missing = [name for name, text in texts.items() if not _is_text(text)]
    if not isinstance(steps, list) or not all(map(_is_text, steps)):
        missing, steps = [*missing, "intermediate"], []
    if missing:
        raise InvalidAnswer(f"it has no text in {' and '.join(map(repr, missing))}")
    if len(steps) > MAX_INTERMEDIATE:
        raise InvalidAnswer(f"it has {len(steps)} intermediate prompts; {MAX_INTERMEDIATE} are the most")
    source, target, *between = (to_single_line(str(text)) for text in (*texts.values(), *steps))
    return PromptPair(source, target, tuple(between))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(to_single_line(value))


def find_faults(
    prompts: PromptPair,
    style: PromptStyle,
    tokenizer: PromptTokenizer,
    subtasks: int = 1,
    source_is_given: bool = False,
) -> list[str]:
    """Return what makes prompts unfit for the method, worded for the model that wrote them; empty if nothing does. A
    source prompt that was given to the model is no fault of its own."""
    names = ["source", *(f"intermediate {k}" for k, _ in enumerate(prompts.intermediate, start=1)), "target"]
    faults = []
    for name, text in list(zip(names, prompts.chain, strict=True))[source_is_given:]:
        if not style.is_same_language(text):
            faults.append(f"the {name} prompt is not in the language of the examples")
        if (length := len(tokenizer.encode(text))) > tokenizer.max_length:
            faults.append(
                f"the {name} prompt is too long for the video model: {length} tokens, and it reads "
                f"{tokenizer.max_length}; use fewer words"
            )
    if faults:
        return faults
    for (name, text), (next_name, next_text) in pairwise(zip(names, prompts.chain, strict=True)):
        pair = f"the {name} and the {next_name} prompt"
        comparison = compare_prompts(text, next_text, tokenizer)
        if not comparison.changed + comparison.added + comparison.removed:
            faults.append(f"{pair} are the same; the {next_name} prompt must say what the edit changes")
        elif comparison.shared_fraction < MIN_SHARED:
            faults.append(
                f"{pair} share only {comparison.shared_fraction:.0%} of their words, and {MIN_SHARED:.0%} are the "
                f"least; copy the {name} prompt and change only the words that the edit changes"
            )
    if subtasks > 1 and len(prompts.intermediate) != subtasks - 1:
        faults.append(f"there are {len(prompts.intermediate)} intermediate prompts; write exactly {subtasks - 1}")
    return faults
