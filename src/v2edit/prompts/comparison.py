"""Word diff of two prompts in the video model's tokens: words shared, changed, added, removed, truncated."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Literal

from v2edit.prompts.align import Alignment, align
from v2edit.prompts.tokens import PromptTokenizer

Kind = Literal["shared", "removed", "added", "cut"]
Pieces = tuple[tuple[Kind, str], ...]
# Plain marks, as wdiff and `git diff --word-diff` write them.
MARKS: dict[Kind, tuple[str, str]] = {
    "shared": ("", ""), "removed": ("[-", "-]"), "added": ("{+", "+}"), "cut": ("[…", "…]"),
}  # fmt: skip


@dataclass(frozen=True)
class PromptComparison:
    """The difference of two prompts. `pieces`, in reading order, are texts and their kind: without the added ones they
    read as the source, without the removed ones as the target, and removed beside added is a change. `cut` is the end
    of a prompt that is longer than the model's text. The counts are of tokens, without the end-of-sequence token;
    `changed` ones replace each other."""

    pieces: Pieces
    shared: int
    changed: int
    added: int
    removed: int
    lengths: tuple[int, int]  # of both prompts, not truncated
    max_tokens: int

    @property
    def shared_fraction(self) -> float:
        """Return the shared part of the longer prompt, 0 to 1."""
        return self.shared / max(*self.lengths, 1)

    @property
    def marked(self) -> str:
        """Return the pieces in plain marks: "a big [-red-] {+blue+} ball"."""
        return "".join(text for _, text in mark_pieces(self.pieces))

    @property
    def summary(self) -> str:
        """Return the counts in one line."""
        cut = " (the rest is cut)" if max(self.lengths) > self.max_tokens else ""
        return (
            f"{self.shared} tokens shared ({self.shared_fraction:.0%}), {self.changed} changed, {self.added} added, "
            f"{self.removed} removed; {self.lengths[0]} and {self.lengths[1]} of at most {self.max_tokens}{cut}"
        )


def mark_pieces(pieces: Iterable[tuple[Kind, str]]) -> Iterator[tuple[Kind, str]]:
    """Put plain marks around each piece; the spaces at its ends stay outside."""
    for kind, text in pieces:
        before, after = MARKS[kind]
        bare = text.strip()
        yield kind, text.replace(bare, f"{before}{bare}{after}", 1) if bare else text


def compare_prompts(source: str, target: str, tokenizer: PromptTokenizer) -> PromptComparison:
    """Align two prompts on a model's own tokens, truncated as the model truncates them, and describe the difference."""
    a, b = _tokenize(source, tokenizer), _tokenize(target, tokenizer)
    alignment = align(a.ids, b.ids, tokenizer.max_length, tokenizer.pad_id)
    slots = list(zip(*alignment.orders, strict=True))[alignment.tokens_shared :]
    unshared = [(i < len(a.ids), j < len(b.ids)) for i, j in slots]
    tails: Pieces = tuple(("cut", tail) for tail in dict.fromkeys((a.tail, b.tail)) if tail)
    changed, added, removed = (unshared.count(kind) for kind in ((True, True), (False, True), (True, False)))
    pieces, shared = (*_merge_runs(_split_pieces(alignment, a, b)), *tails), alignment.tokens_shared - 1
    return PromptComparison(pieces, shared, changed, added, removed, (a.length, b.length), tokenizer.max_length - 1)


@dataclass(frozen=True)
class _TokenizedPrompt:
    """A prompt as the model sees it: its ids with the end-of-sequence token, the text of each of the other tokens, the
    text that is truncated, and the number of tokens before truncation."""

    ids: tuple[int, ...]
    words: list[str]
    tail: str
    length: int


def _tokenize(text: str, tokenizer: PromptTokenizer) -> _TokenizedPrompt:
    ids, starts = tokenizer.encode(text), tokenizer.token_starts(text)
    count = min(len(ids), tokenizer.max_length) - 1
    bounds = [0, *starts[1 : count + 1]] if count else [0]
    tail = text[bounds[-1] :] if count + 1 < len(ids) else ""
    return _TokenizedPrompt((*ids[:count], ids[-1]), [text[p:q] for p, q in pairwise(bounds)], tail, len(ids) - 1)


def _split_pieces(alignment: Alignment, a: _TokenizedPrompt, b: _TokenizedPrompt) -> Iterator[tuple[Kind, str]]:
    i = j = 0
    for next_i, next_j in zip(*alignment.orders, strict=True):
        yield "removed", "".join(a.words[i:next_i])
        yield "added", "".join(b.words[j:next_j])
        if next_i == len(a.words):
            return
        source, target = a.words[next_i], b.words[next_j]
        if source.split() == target.split():
            yield "shared", max(source, target, key=len)  # they may differ in the space that follows
        else:  # The same token may stand for two texts: the unknown token, above all.
            yield "removed", source
            yield "added", target
        i, j = next_i + 1, next_j + 1


def _merge_runs(pieces: Iterable[tuple[Kind, str]]) -> Pieces:
    """Merge runs of one kind into one piece each; drop empty ones."""
    runs = groupby((piece for piece in pieces if piece[1]), key=itemgetter(0))
    return tuple((kind, "".join(text for _, text in run)) for kind, run in runs)
