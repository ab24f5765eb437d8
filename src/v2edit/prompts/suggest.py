"""Editing tasks suggested by a vision model (V2Edit Sec. 4.1): of several kinds and difficulties, with their prompts.

As in the paper the model sees the video and thinks of edits; the prompts of each are checked on the video model's own
tokens, and edits that say the same are asked for anew.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from v2edit.errors import UserError
from v2edit.prompts.chat import Chat, InvalidAnswer, Message, Picture, ask_for_json, sample_frames
from v2edit.prompts.lvlm import find_faults
from v2edit.prompts.pair import PromptPair
from v2edit.prompts.style import QUESTION, PromptStyle
from v2edit.prompts.tokens import PromptTokenizer
from v2edit.video.stream import Frames

log = logging.getLogger(__name__)
KINDS = {
    "appearance": "another colour or material of something that is there",
    "replacement": "something in the place of something else, its motion kept",
    "insertion": "something new that the video has not",
    "removal": "something gone",
    "background": "other surroundings, the subject kept",
    "style": "the whole video in another style, or at another time or in another weather",
}
DIFFICULTIES = {
    "easy": "a small change of looks",
    "medium": "a clear change of a part, shapes nearly kept",
    "hard": "a large change of shape, of fast motion, or of several things at once",
}
SAME = 0.8  # share of two target prompts' changed words from which on their edits are one
TASK = """
Suggest {count} edits of the video whose frames you are shown, for a test of programs that edit videos. Take turns \
through these kinds:
{kinds}
and through these difficulties:
{difficulties}
Each edit must be possible with what is seen, differ from the others, and have one instruction in plain English. Write \
one source prompt for the video and copy it word for word for every edit; each target prompt changes in it only what \
the edit changes. "before" names in a few words what the source shows that is to change, "after" what the edited video \
shows in its place.
Answer with one JSON object and nothing else: {{"edits": [{{"kind": "…", "difficulty": "…", "instruction": "…", \
"source": "…", "target": "…", "before": "…", "after": "…"}}, …]}}"""


@dataclass(frozen=True)
class Suggestion:
    """A suggested edit: its instruction, prompts, and words for what changes."""

    kind: str
    difficulty: str
    instruction: str
    source: str
    target: str
    before: str
    after: str

    def line(self, video: str, field: str) -> dict[str, Any]:
        """Return the line of a suite (`bench.suite_files`) for the edit of a "video" or a "scene"."""
        words = {"words": [self.before, self.after]} if self.before and self.after else {}
        known = {"kind": self.kind, "difficulty": self.difficulty, "instruction": self.instruction}
        return {field: video, **known, "source_prompt": self.source, "target_prompt": self.target, **words}


FIELDS = tuple(Suggestion.__dataclass_fields__)


def suggest_edits(
    chat: Chat,
    frames: Frames,
    style: PromptStyle,
    tokenizer: PromptTokenizer,
    count: int,
    kinds: Sequence[str] = tuple(KINDS),
    pictures: int = 8,
) -> list[Suggestion]:
    """Return `count` edits of a video, uint8 [T, H, W, 3], of these kinds in turn, checked and all different. Where the
    model thinks of fewer that are good, these, with a warning. Raises `UserError` where it thinks of none."""
    shown = [Picture.from_frame(frame) for frame in sample_frames(frames, pictures)]
    good: list[Suggestion] = []

    def parse(answer: dict[str, Any]) -> list[Suggestion]:
        edits = answer.get("edits")
        if not isinstance(edits, list):
            raise InvalidAnswer('it has no list "edits"')
        faults = []
        for number, one in enumerate(edits, start=1):
            try:
                good.append(_check(one, good, kinds, style, tokenizer))
            except InvalidAnswer as error:
                faults.append(f"edit {number}: {'; '.join(error.args)}")
        if len(good) < count:
            known = "; ".join(one.instruction for one in good)
            faults.append(f"{count - len(good)} more are wanted, other than these: {known or 'none was good'}")
            raise InvalidAnswer(*faults)
        return good[:count]

    try:
        return ask_for_json(chat, _messages(style, shown, count, kinds), SCHEMA, parse, "write the suite by hand")
    except UserError as error:
        if not good:
            raise
        log.warning("%d of %d edits could be used: %s", len(good), count, error)
        return good


def _messages(style: PromptStyle, shown: Sequence[Picture], count: int, kinds: Sequence[str]) -> list[Message]:
    listed = "\n".join(f"- {name}: {KINDS.get(name, 'as its name says')}" for name in kinds)
    levels = "\n".join(f"- {name}: {what}" for name, what in DIFFICULTIES.items())
    task = TASK.format(count=count, kinds=listed, difficulties=levels)
    messages = [Message("system", (style.system.partition("Rules:")[2] or style.system,))]
    for frames, prompt in style.describing:
        messages += [Message("user", (QUESTION, *frames)), Message("assistant", (prompt,))]
    return [*messages, Message("user", (task.strip(), *shown))]


EDIT = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in FIELDS},
    "required": list(FIELDS),
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"edits": {"type": "array", "items": EDIT}},
    "required": ["edits"],
    "additionalProperties": False,
}


def _check(
    one: Any, good: Sequence[Suggestion], kinds: Sequence[str], style: PromptStyle, tokenizer: PromptTokenizer
) -> Suggestion:
    """Return a suggestion as it was answered. Raises `InvalidAnswer` with what is wrong with it."""
    if not isinstance(one, dict):
        raise InvalidAnswer("it is no object")
    texts = {name: " ".join(str(one.get(name) or "").split()) for name in FIELDS}
    if missing := [name for name in ("kind", "instruction", "source", "target") if not texts[name]]:
        raise InvalidAnswer(f"it has no {', '.join(missing)}")
    texts["kind"] = texts["kind"].lower()
    if texts["kind"] not in kinds:
        raise InvalidAnswer(f"its kind is {texts['kind']!r}, and the kinds are {', '.join(kinds)}")
    if texts["difficulty"] not in DIFFICULTIES:
        texts["difficulty"] = "medium"
    found = Suggestion(**texts)
    try:
        pair = PromptPair(found.source, found.target)
    except UserError as error:
        raise InvalidAnswer(str(error)) from None
    if faults := find_faults(pair, style, tokenizer):
        raise InvalidAnswer(*faults)
    if same := next((other for other in good if is_same_edit(found, other)), None):
        raise InvalidAnswer(f"it is the same as {same.instruction!r}")
    return found


def is_same_edit(one: Suggestion, other: Suggestion) -> bool:
    """Return whether two suggestions ask for the same: by their instructions, or the words that their target prompts
    add to the source's."""
    if _words(one.instruction) == _words(other.instruction):
        return True
    first, second = (_words(edit.target) - _words(edit.source) for edit in (one, other))
    return bool(first | second) and len(first & second) >= SAME * len(first | second)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
