"""A video model's tokenizer, and the number of tokens that the model takes."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PromptTokenizer:
    """A transformers `tokenizer` and the `max_length` of the model's text in tokens."""

    tokenizer: Any
    max_length: int

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Return all token ids of a prompt with the end-of-sequence token, neither padded nor truncated."""
        return tuple(self.tokenizer(prompt, verbose=False).input_ids)

    def token_starts(self, prompt: str) -> list[int]:
        """Return the character at which each token of `encode` begins, never decreasing; special tokens stand at the
        end of the text."""
        offsets = self.tokenizer(prompt, verbose=False, return_offsets_mapping=True).offset_mapping
        starts: list[int] = []
        for start, end in offsets:
            position = start if end > start else len(prompt)
            starts.append(max(position, starts[-1] if starts else 0))
        return starts
