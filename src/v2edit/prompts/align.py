"""Laying two prompts out on common slots, so that "the same token" means "the same column".

A video transformer that gives positions to video tokens alone sees its encoded text as a set: reordering the
encoded tokens changes nothing. Both prompts may therefore be permuted until what they share lies on the same
slots. One prefix length then says which columns of an attention map the two branches share, and interpolating
the two encodings slot by slot means something (V2Edit Sec. 3.2 and 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Alignment:
    """Two padded token sequences of length L on common slots, laid out as three contiguous blocks:

        [ shared tokens | padding beside padding | changed ]

    `source_order` and `target_order` are permutations of range(L): slot -> index into the padded sequence, so
    `encoded[order]` is the laid-out text. In the changed block a slot holds two different tokens that stand
    for each other, or a token beside padding (an insertion or a deletion).
    """

    source_order: tuple[int, ...]
    target_order: tuple[int, ...]
    tokens_shared: int
    paddings_shared: int

    def prefix(self, padding: bool = True) -> int:
        """How many leading slots both prompts share, padding beside padding counted or not."""
        return self.tokens_shared + self.paddings_shared * padding

    @property
    def shared(self) -> tuple[bool, ...]:
        """Slot -> do both prompts hold the same token there (padding beside padding included)? [L]"""
        return tuple(slot < self.prefix() for slot in range(len(self.source_order)))


def align(source_ids: Sequence[int], target_ids: Sequence[int], length: int, pad_id: int) -> Alignment:
    """Lay two token sequences, both padded at their end with `pad_id` to `length`, on common slots.

    The ids come from the model's own tokenizer, with their end-of-sequence token (a token like any other) and
    with or without the padding. Shared are the longest common subsequence's tokens. Between two shared runs,
    the changed tokens of one prompt are paired in order with those of the other; what is left over is paired
    with padding, or, when a prompt is so long that it has none left, with the other's left-overs.

    `align(b, a)` is `align(a, b)` with the two orders swapped. Raises `ValueError` when a sequence is longer
    than `length`.
    """
    source, target = _without_padding(source_ids, pad_id), _without_padding(target_ids, pad_id)
    if max(len(source), len(target)) > length:
        raise ValueError(f"prompts of {len(source)} and {len(target)} tokens do not fit into {length} slots")

    if target < source:  # Ties are broken the same way whichever prompt comes first: hence symmetry.
        laid = align(target, source, length, pad_id)
        return replace(laid, source_order=laid.target_order, target_order=laid.source_order)

    shared = common_subsequence(source, target)
    changed: list[tuple[int, int]] = []
    alone_source: list[int] = []
    alone_target: list[int] = []
    i, j = 0, 0
    for next_i, next_j in [*shared, (len(source), len(target))]:
        paired = min(next_i - i, next_j - j)
        changed += zip(range(i, i + paired), range(j, j + paired), strict=True)
        alone_source += range(i + paired, next_i)
        alone_target += range(j + paired, next_j)
        i, j = next_i + 1, next_j + 1

    room = length - len(shared) - len(changed)
    for _ in range(len(alone_source) + len(alone_target) - room):
        changed.append((alone_source.pop(), alone_target.pop()))

    # Of the padding, the first serves what stands alone; the rest pairs up, index with equal index.
    changed += zip(alone_source, range(len(target), length), strict=False)
    changed += zip(range(len(source), length), alone_target, strict=False)
    paddings = range(len(shared) + len(changed), length)
    slots = [*shared, *((k, k) for k in paddings), *changed]
    assert len(slots) == length
    return Alignment(tuple(i for i, _ in slots), tuple(j for _, j in slots), len(shared), len(paddings))


@dataclass(frozen=True)
class TripleAlignment:
    """Several padded token sequences of length L on common slots, [ shared tokens | padding in all | the rest ].

    `orders` holds a permutation of range(L) for each, slot -> index, as in `Alignment`. In the rest, what a slot holds
    in one sequence says nothing of the others.
    """

    orders: tuple[tuple[int, ...], ...]
    tokens_shared: int
    paddings_shared: int

    def prefix(self, padding: bool = True) -> int:
        """How many leading slots all share, padding counted or not."""
        return self.tokens_shared + self.paddings_shared * padding


def align_triple(
    first: Sequence[int], middle: Sequence[int], last: Sequence[int], length: int, pad_id: int
) -> TripleAlignment:
    """Lay three token sequences on common slots: those of an original, a current and an edit branch, whose prompts are
    written and not interpolated, so that only what all three share need correspond.

    Shared are the tokens of the middle one that have a partner in both of its neighbours, each aligned with it as in
    `align`. Raises `ValueError` when a sequence is longer than `length`.
    """
    sequences = [_without_padding(ids, pad_id) for ids in (first, middle, last)]
    if (longest := max(map(len, sequences))) > length:
        raise ValueError(f"prompts of up to {longest} tokens do not fit into {length} slots")
    before, after = (dict(common_subsequence(sequences[1], other)) for other in (sequences[0], sequences[2]))
    shared = [(before[k], k, after[k]) for k in sorted(before.keys() & after.keys())]
    # Index k is padding in all from the longest on; padding before that serves as a partner for the rest.
    paddings = range(longest, length)
    orders = []
    for which in range(3):
        laid = [*(indices[which] for indices in shared), *paddings]
        rest = sorted(set(range(length)) - set(laid))
        orders.append((*laid, *rest))
    return TripleAlignment(tuple(orders), len(shared), len(paddings))


def common_subsequence(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """Index pairs (i, j) with a[i] == b[j], increasing in both: as many as possible, in as few runs as that
    allows. O(len(a)·len(b))."""
    run = 1  # What opening a run costs; a match is worth more than all runs together can cost.
    match = min(len(a), len(b)) + 1
    # best[i][j]: the score of a[i:] against b[j:]; inside[i][j]: the same when a run reaches up to (i, j).
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    inside = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        for j in range(len(b) - 1, -1, -1):
            skip = max(best[i + 1][j], best[i][j + 1])
            if a[i] == b[j]:
                here = match + inside[i + 1][j + 1]
                best[i][j], inside[i][j] = max(skip, here - run), max(skip, here)
            else:
                best[i][j] = inside[i][j] = skip

    pairs: list[tuple[int, int]] = []
    i, j, score = 0, 0, best
    while i < len(a) and j < len(b):
        opening = run if score is best else 0
        if a[i] == b[j] and score[i][j] == match + inside[i + 1][j + 1] - opening:
            pairs.append((i, j))
            i, j, score = i + 1, j + 1, inside
        else:
            i, j = (i + 1, j) if best[i + 1][j] >= best[i][j + 1] else (i, j + 1)
            score = best
    return pairs


def _without_padding(ids: Sequence[int], pad_id: int) -> list[int]:
    end = len(ids)
    while end and ids[end - 1] == pad_id:
        end -= 1
    return list(ids[:end])
