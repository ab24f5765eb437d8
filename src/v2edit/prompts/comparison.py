"""Two prompts side by side as the video model sees them: which of their words are shared, changed, added, removed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from v2edit.prompts.align import Alignment, align
from v2edit.prompts.tokens import PromptTokenizer

Kind = Literal["shared", "removed", "added", "cut"]
Pieces = tuple[tuple[Kind, str], ...]
# Plain marks, as wdiff and `git diff --word-diff` write them.
MARKS: dict[Kind, tuple[str, str]] = {
    "shared": ("", ""),
    "removed": ("[-", "-]"),
    "added": ("{+", "+}"),
    "cut": ("[…", "…]"),
}


@dataclass(frozen=True)
class PromptComparison:
    """How two prompts line up.

    `pieces`, in reading order, are texts and what becomes of them: without the added ones they read as the source,
    without the removed ones as the target, and removed beside added is a change. `cut` is what the model's text has no
    room for. The counts are of tokens, without the end-of-sequence token; `changed` ones stand for one another.
    """

    pieces: Pieces
    shared: int
    changed: int
    added: int
    removed: int
    lengths: tuple[int, int]  # of both prompts, uncut
    room: int

    @property
    def share(self) -> float:
        """Which part of the longer prompt both share, 0 to 1."""
        return self.shared / max(*self.lengths, 1)

    @property
    def marked(self) -> str:
        """The pieces in plain marks: "a big [-red-] {+blue+} ball"."""
        return "".join(text for _, text in with_marks(self.pieces))

    @property
    def summary(self) -> str:
        """The counts in one line."""
        cut = " (what is beyond is cut)" if max(self.lengths) > self.room else ""
        return (
            f"{self.shared} tokens shared ({self.share:.0%}), {self.changed} changed, {self.added} added, "
            f"{self.removed} removed; {self.lengths[0]} and {self.lengths[1]} of at most {self.room}{cut}"
        )


def with_marks(pieces: Iterable[tuple[Kind, str]]) -> Iterator[tuple[Kind, str]]:
    """The pieces with plain marks around them; the space at a piece's ends is left outside."""
    for kind, text in pieces:
        before, after = MARKS[kind]
        bare = text.strip()
        yield kind, text.replace(bare, f"{before}{bare}{after}", 1) if bare else text


def compare_prompts(source: str, target: str, tokenizer: PromptTokenizer) -> PromptComparison:
    """Aligns two prompts on a model's own tokens, cut as the model cuts them, and tells it in words."""
    a, b = _read(source, tokenizer), _read(target, tokenizer)
    laid = align(a.ids, b.ids, tokenizer.length, tokenizer.pad_id)
    slots = zip(laid.source_order, laid.target_order, strict=True)
    apart = [(i < len(a.ids), j < len(b.ids)) for i, j in list(slots)[laid.tokens_shared :]]
    tails: Pieces = tuple(("cut", tail) for tail in dict.fromkeys((a.tail, b.tail)) if tail)
    return PromptComparison(
        (*_joined(_pieces(laid, a, b)), *tails),
        laid.tokens_shared - 1,
        apart.count((True, True)),
        apart.count((False, True)),
        apart.count((True, False)),
        (a.length, b.length),
        tokenizer.length - 1,
    )


@dataclass(frozen=True)
class _Read:
    """A prompt as the model reads it: its ids with the end-of-sequence token, the text of each of the others, the
    text that is cut, and how many tokens there would be without cutting."""

    ids: tuple[int, ...]
    words: list[str]
    tail: str
    length: int


def _read(text: str, tokenizer: PromptTokenizer) -> _Read:
    whole, starts = tokenizer.ids(text), tokenizer.starts(text)
    count = min(len(whole), tokenizer.length) - 1
    bounds = [0, *starts[1 : count + 1]] if count else [0]
    tail = text[bounds[-1] :] if count + 1 < len(whole) else ""
    return _Read((*whole[:count], whole[-1]), [text[p:q] for p, q in pairwise(bounds)], tail, len(whole) - 1)


def _pieces(laid: Alignment, a: _Read, b: _Read) -> Iterator[tuple[Kind, str]]:
    i = j = 0
    for next_i, next_j in zip(laid.source_order, laid.target_order, strict=True):
        yield "removed", "".join(a.words[i:next_i])
        yield "added", "".join(b.words[j:next_j])
        if next_i == len(a.words):
            return
        one, other = a.words[next_i], b.words[next_j]
        if one.split() == other.split():
            yield "shared", max(one, other, key=len)  # they may differ in the space that follows
        else:  # One and the same token may stand for two texts: the unknown one, above all.
            yield "removed", one
            yield "added", other
        i, j = next_i + 1, next_j + 1


def _joined(pieces: Iterable[tuple[Kind, str]]) -> Pieces:
    """Runs of a kind as one piece each, empty ones left out."""

    def kind_of(piece: tuple[Kind, str]) -> Kind:
        return piece[0]

    runs = groupby((piece for piece in pieces if piece[1]), key=kind_of)
    return tuple((kind, "".join(text for _, text in run)) for kind, run in runs)
