"""A language model that sees the video turns an instruction into the prompt pair (V2Edit Sec. B.4), and is asked again
when the pair is not what the method needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from v2edit.errors import UserError
from v2edit.prompts.chat import Chat, InvalidAnswer, Picture, ask, sample_frames, to_single_line
from v2edit.prompts.comparison import compare_prompts
from v2edit.prompts.pair import MAX_INTERMEDIATE, PromptPair
from v2edit.prompts.style import Style
from v2edit.prompts.tokens import PromptTokenizer

if TYPE_CHECKING:
    import numpy as np

LOCAL = "local:"
# Two prompts of one edit share this part of the longer one's tokens. Of 448 published pairs 95 % share 0.42 and more;
# of pairs thrown together from different edits, 95 % share less than 0.24 (benchmarks/alignment.py).
MIN_SHARED = 0.4


@dataclass(frozen=True)
class LVLMConfig:
    """Which language model writes the prompts, and how it is asked. Its key comes from the environment alone."""

    model: Annotated[str | None, arg(name="lvlm", metavar="MODEL", help_behavior_hint="")] = None
    """A model that sees pictures, at an OpenAI-compatible address, or local:HUB_ID_OR_FOLDER to run one here."""
    url: Annotated[str | None, arg(name="lvlm-url", metavar="URL", help_behavior_hint="")] = None
    """Where the model is served, such as http://localhost:11434/v1 (default: OPENAI_BASE_URL, or OpenAI)."""
    frames: Annotated[int, arg(name="lvlm-frames")] = 8
    """How many of the video's frames it is shown."""
    timeout: Annotated[float, arg(name="lvlm-timeout", metavar="SECONDS")] = 120.0
    """How long to wait for an answer."""
    progression: Annotated[bool, arg(name="lvlm-progression")] = False
    """It also writes the prompts of the subtasks between, and says how many there are (unless --subtasks does)."""
    style: Annotated[str | None, arg(name="prompt-style", metavar="FOLDER", help_behavior_hint="")] = None
    """A folder with a style.toml that shows it how to write (default: the style of the video model)."""

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


@contextmanager
def open_chat(config: LVLMConfig, device: str = "auto") -> Iterator[Chat]:
    """The model to ask. What it takes is given back on leaving, before the video model needs the memory."""
    assert config.model is not None
    if config.model.startswith(LOCAL):
        from v2edit.prompts.local import LocalChat

        chat: Chat = LocalChat(config.model.removeprefix(LOCAL), device)
    else:
        from v2edit.prompts.endpoint import EndpointChat

        chat = EndpointChat(config.model, config.url, config.timeout)
    try:
        yield chat
    finally:
        chat.close()


def generate_prompts(
    chat: Chat,
    frames: np.ndarray,
    instruction: str,
    style: Style,
    tokenizer: PromptTokenizer,
    config: LVLMConfig = LVLMConfig(),
    subtasks: int = 1,
) -> PromptPair:
    """Has a prompt pair written for a video, uint8 [T, H, W, 3], and an instruction.

    Args:
        style: how to write, with its examples.
        tokenizer: the video model's: what is shared is counted in its tokens.
        subtasks: with `config.progression`, how many there are to be; 1 leaves that to the language model.

    Raises:
        UserError: no answer, or none that can be used after asking three times.
    """
    pictures = [Picture.from_frame(frame) for frame in sample_frames(frames, config.frames)]

    def read(answer: dict[str, Any]) -> PromptPair:
        prompts = _prompts_in(answer, config.progression)
        if wrong := faults(prompts, style, tokenizer, subtasks if config.progression else 1):
            raise InvalidAnswer(*wrong)
        return prompts

    messages = style.conversation(pictures, instruction, config.progression, subtasks)
    otherwise = "write the prompts yourself with --source-prompt and --target-prompt"
    return ask(chat, messages, schema(config.progression), read, otherwise)


def schema(between: bool) -> dict[str, Any]:
    """The JSON schema of an answer, with or without the prompts between."""
    properties: dict[str, Any] = {"source": {"type": "string"}, "target": {"type": "string"}}
    if between:
        properties["intermediate"] = {"type": "array", "items": {"type": "string"}}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _prompts_in(answer: dict[str, Any], between: bool) -> PromptPair:
    """The prompts of an answer and nothing else of it, each as one line of visible text."""
    found = {name: answer.get(name) for name in ("source", "target")}
    wrong = [name for name, text in found.items() if not isinstance(text, str) or not to_single_line(text)]
    steps = answer.get("intermediate") or [] if between else []
    if not isinstance(steps, list) or not all(isinstance(text, str) and to_single_line(text) for text in steps):
        wrong, steps = [*wrong, "intermediate"], []
    if wrong:
        raise InvalidAnswer(f"it has no text in {' and '.join(map(repr, wrong))}")
    if len(steps) > MAX_INTERMEDIATE:
        raise InvalidAnswer(f"it has {len(steps)} intermediate prompts; {MAX_INTERMEDIATE} are the most")
    return PromptPair(
        to_single_line(str(found["source"])), to_single_line(str(found["target"])), tuple(map(to_single_line, steps))
    )


def faults(prompts: PromptPair, style: Style, tokenizer: PromptTokenizer, subtasks: int = 1) -> list[str]:
    """What is wrong with prompts for the method, said so that who wrote them can mend it. Empty where nothing is."""
    names = ["source", *(f"intermediate {k}" for k, _ in enumerate(prompts.intermediate, start=1)), "target"]
    wrong = []
    for name, text in zip(names, prompts.chain, strict=True):
        if not style.speaks_like(text):
            wrong.append(f"the {name} prompt is not in the language of the examples")
        if (length := len(tokenizer.ids(text))) > tokenizer.length:
            wrong.append(
                f"the {name} prompt is too long for the video model: {length} tokens, and it reads {tokenizer.length}; "
                "use fewer words"
            )
    if wrong:
        return wrong
    for (name, text), (following, other) in pairwise(zip(names, prompts.chain, strict=True)):
        pair = f"the {name} and the {following} prompt"
        found = compare_prompts(text, other, tokenizer)
        if not found.changed + found.added + found.removed:
            wrong.append(f"{pair} are the same; the {following} prompt must say what the edit changes")
        elif found.share < MIN_SHARED:
            wrong.append(
                f"{pair} share only {found.share:.0%} of their words, and {MIN_SHARED:.0%} are the least; copy the "
                f"{name} prompt and change only the words that the edit changes"
            )
    if subtasks > 1 and len(prompts.intermediate) != subtasks - 1:
        wrong.append(f"there are {len(prompts.intermediate)} intermediate prompts; write exactly {subtasks - 1}")
    return wrong
