"""A video model's tokenizer, and the number of tokens that the model takes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptTokenizer:
    """A transformers `tokenizer` and the `max_length` of the model's text in tokens. Some models see a prompt within a
    `template`, of whose encoding the first `cropped` tokens, those before the prompt, are thrown away."""

    tokenizer: Any
    max_length: int
    template: str = "{}"
    cropped: int = 0

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Return all token ids of a prompt with the end-of-sequence token, neither padded nor truncated."""
        return tuple(self.tokenizer(self.template.format(prompt), verbose=False).input_ids[self.cropped :])

    def pad(self, prompts: Sequence[str]) -> tuple[Any, list[int]]:
        """Return the prompts' tokens, padded to `max_length` after those that are cropped, and how many each has; a
        longer one is cut with a warning."""
        uncut = [self.encode(prompt) for prompt in prompts]
        tokens = self.tokenizer(
            [self.template.format(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.cropped + self.max_length,
            truncation=True,
            return_tensors="pt",
        )
        for prompt, ids in zip(prompts, uncut, strict=True):
            if len(ids) > self.max_length:
                kept = self.max_length - (ids[-1] == self.tokenizer.eos_token_id)  # which stays at the end
                cut = prompt[self.token_starts(prompt)[kept] :]
                log.warning("prompt cut to %d of its %d tokens, without %.60r", self.max_length, len(ids), cut)
        return tokens, [min(len(ids), self.max_length) for ids in uncut]

    def token_starts(self, prompt: str) -> list[int]:
        """Return the character at which each token of `encode` begins, never decreasing; special tokens stand at the
        end of the text."""
        text, before = self.template.format(prompt), self.template.index("{}")
        offsets = self.tokenizer(text, verbose=False, return_offsets_mapping=True).offset_mapping
        starts: list[int] = []
        for start, end in offsets[self.cropped :]:
            position = min(max(start - before, 0), len(prompt)) if end > start else len(prompt)
            starts.append(max(position, starts[-1] if starts else 0))
        return starts
