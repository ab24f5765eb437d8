"""How a video model reads a prompt: its own tokenizer, and how many tokens it takes."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PromptTokenizer:
    """A model's `whole` tokenizer (of transformers) and the `length` of its text in tokens."""

    whole: Any
    length: int

    @property
    def pad_id(self) -> int:
        return self.whole.pad_token_id

    def ids(self, prompt: str) -> tuple[int, ...]:
        """All tokens of a prompt with the end-of-sequence token: neither padded nor cut."""
        return tuple(self.whole(prompt, verbose=False).input_ids)

    def starts(self, prompt: str) -> list[int]:
        """Where in the text each token of `ids` begins, never decreasing; tokens of no text stand at its end."""
        offsets = self.whole(prompt, verbose=False, return_offsets_mapping=True).offset_mapping
        starts: list[int] = []
        for start, end in offsets:
            place = start if end > start else len(prompt)
            starts.append(max(place, starts[-1] if starts else 0))
        return starts
