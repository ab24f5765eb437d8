"""Alignment of prompts: equal tokens on equal slots, so that "the same token" means "the same column".

A video transformer that gives positions to video tokens alone sees its encoded text as a set: reordering the encoded
tokens changes nothing. Prompts may therefore be permuted until the tokens they share lie on the same slots. One prefix
length then says which columns of an attention map the branches share, and interpolating two encodings slot by slot is
meaningful (V2Edit Sec. 3.2 and 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Alignment:
    """Two or three padded token sequences of length L on common slots, in three contiguous blocks:

        [ shared tokens | padding in all | the rest ]

    `orders` holds a permutation of range(L) for each sequence, slot -> index into it, so `encoded[order]` is the text
    in the order of the slots. Of two prompts, a slot in the last block holds two different tokens that replace each
    other, or a token beside padding (an insertion or a deletion). Of three, tokens there do not correspond."""

    orders: tuple[tuple[int, ...], ...]
    tokens_shared: int
    paddings_shared: int

    def shared_prefix(self, padding: bool = True) -> int:
        """Return the number of leading slots that all prompts share, with or without the shared padding."""
        return self.tokens_shared + self.paddings_shared * padding


def align(source_ids: Sequence[int], target_ids: Sequence[int], length: int, pad_id: int) -> Alignment:
    """Align the tokens of two prompts, both padded at their end with `pad_id` to `length`.

    The ids come from the model's own tokenizer, with their end-of-sequence token (a token like any other) and with or
    without the padding. Shared are the tokens of the longest common subsequence. Between two shared runs, the changed
    tokens of one prompt are paired in order with those of the other. Left-over tokens are paired with padding or, when
    a prompt is so long that it has none left, with the left-over tokens of the other. `align(b, a)` is `align(a, b)`
    with the two orders swapped. Raises `ValueError` when a sequence is longer than `length`."""
    source, target = _without_padding(source_ids, pad_id), _without_padding(target_ids, pad_id)
    if max(len(source), len(target)) > length:
        raise ValueError(f"prompts of {len(source)} and {len(target)} tokens do not fit into {length} slots")
    if target < source:  # Ties are broken alike whichever prompt comes first: hence the symmetry.
        swapped = align(target, source, length, pad_id)
        return Alignment(swapped.orders[::-1], swapped.tokens_shared, swapped.paddings_shared)
    shared = longest_common_subsequence(source, target)
    changed: list[tuple[int, int]] = []
    unpaired_source: list[int] = []
    unpaired_target: list[int] = []
    i = j = 0
    for next_i, next_j in [*shared, (len(source), len(target))]:
        count = min(next_i - i, next_j - j)
        changed += zip(range(i, i + count), range(j, j + count), strict=True)
        unpaired_source += range(i + count, next_i)
        unpaired_target += range(j + count, next_j)
        i, j = next_i + 1, next_j + 1

    free_slots = length - len(shared) - len(changed)
    for _ in range(len(unpaired_source) + len(unpaired_target) - free_slots):
        changed.append((unpaired_source.pop(), unpaired_target.pop()))

    # Unpaired tokens use up the first of the padding; the rest pairs up, index with equal index.
    changed += zip(unpaired_source, range(len(target), length), strict=False)
    changed += zip(range(len(source), length), unpaired_target, strict=False)
    paddings = range(len(shared) + len(changed), length)
    slots = [*shared, *((k, k) for k in paddings), *changed]
    assert len(slots) == length
    orders = tuple(i for i, _ in slots), tuple(j for _, j in slots)
    return Alignment(orders, len(shared), len(paddings))


def align_triple(
    first: Sequence[int], middle: Sequence[int], last: Sequence[int], length: int, pad_id: int
) -> Alignment:
    """Align the tokens of three prompts: those of the original, the current and the edit branch, where each subtask's
    prompt is written and not interpolated, so that only what all three share need correspond. Shared are the tokens of
    the middle prompt that `align` pairs with an equal token in both of its neighbours. Raises `ValueError` when a
    sequence is longer than `length`."""
    sequences = [_without_padding(ids, pad_id) for ids in (first, middle, last)]
    if (longest := max(map(len, sequences))) > length:
        raise ValueError(f"prompts of up to {longest} tokens do not fit into {length} slots")
    before, after = (dict(longest_common_subsequence(sequences[1], other)) for other in (sequences[0], sequences[2]))
    shared = [(before[k], k, after[k]) for k in sorted(before.keys() & after.keys())]
    # From the longest prompt's end on, an index is padding in all; padding before that is a partner for the rest.
    paddings = range(longest, length)
    orders = []
    for which in range(3):
        prefix = [*(indices[which] for indices in shared), *paddings]
        orders.append((*prefix, *sorted(set(range(length)) - set(prefix))))
    return Alignment(tuple(orders), len(shared), len(paddings))


def longest_common_subsequence(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """Return index pairs (i, j) with a[i] == b[j], increasing in both: as many as possible, in as few runs as that
    allows. O(len(a)·len(b))."""
    run = 1  # The cost of opening a run; a match is worth more than all runs together can cost.
    match = min(len(a), len(b)) + 1
    # best[i][j]: the score of a[i:] against b[j:]; inside[i][j]: the same when a run reaches up to (i, j).
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    inside = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        for j in range(len(b) - 1, -1, -1):
            skip = max(best[i + 1][j], best[i][j + 1])
            if a[i] == b[j]:
                extended = match + inside[i + 1][j + 1]
                best[i][j], inside[i][j] = max(skip, extended - run), max(skip, extended)
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
