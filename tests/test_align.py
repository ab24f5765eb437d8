"""Alignment of two prompts: the properties that map replacement and interpolation rely on."""

import json
import zlib
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2edit.errors import UserError
from v2edit.prompts import Alignment, PromptPair, align
from v2edit.prompts.align import longest_common_subsequence

PAD, EOS = 0, 1
words = st.lists(st.integers(2, 7), max_size=12)
prompts = words.map(lambda ids: [*ids, EOS])


def padded(ids: list[int], length: int) -> list[int]:
    return ids + [PAD] * (length - len(ids))


def check_alignment(a: list[int], b: list[int], length: int) -> Alignment:
    """Assert what holds for any two prompts; return their alignment."""
    alignment = align(a, b, length, PAD)
    assert sorted(alignment.orders[0]) == sorted(alignment.orders[1]) == list(range(length))
    slots = [(padded(a, length)[i], padded(b, length)[j]) for i, j in zip(*alignment.orders, strict=True)]
    tokens, rest = slots[: alignment.tokens_shared], slots[alignment.tokens_shared :]
    paddings, changed = rest[: alignment.paddings_shared], rest[alignment.paddings_shared :]
    assert all(x == y != PAD for x, y in tokens)
    assert all(pair == (PAD, PAD) for pair in paddings)
    assert (PAD, PAD) not in changed
    assert alignment.shared_prefix(padding=False) == len(tokens)
    assert alignment.shared_prefix() == len(tokens) + len(paddings)
    mirrored = align(b, a, length, PAD)
    assert mirrored == Alignment(alignment.orders[::-1], len(tokens), len(paddings))
    assert align(padded(a, length), padded(b, length), length, PAD) == alignment
    return alignment


@given(prompts, prompts, st.integers(0, 20))
def test_any_two_prompts(a: list[int], b: list[int], spare: int) -> None:
    check_alignment(a, b, max(len(a), len(b)) + spare)


@given(prompts, st.integers(0, 10))
def test_identical_prompts_share_everything_in_place(a: list[int], spare: int) -> None:
    length = len(a) + spare
    alignment = check_alignment(a, a, length)
    assert alignment.orders[0] == alignment.orders[1] == tuple(range(length))
    assert alignment.tokens_shared == len(a) and alignment.shared_prefix() == length


@given(words, words, st.integers(0, 10))
def test_disjoint_prompts_share_the_end_alone(a: list[int], b: list[int], spare: int) -> None:
    alignment = check_alignment([*a, EOS], [*(token + 10 for token in b), EOS], max(len(a), len(b)) + 1 + spare)
    assert alignment.tokens_shared == 1
    assert (alignment.orders[0][0], alignment.orders[1][0]) == (len(a), len(b))


def runs(pairs: list[tuple[int, int]]) -> int:
    return sum((i - 1, j - 1) not in pairs for i, j in pairs)


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_common_subsequence_is_longest_in_fewest_runs(a: list[int], b: list[int]) -> None:
    """Compared with every possible matching of short sequences."""
    pairs = longest_common_subsequence(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    best = max(
        (len(rows), -runs(list(zip(rows, columns, strict=True))))
        for size in range(min(len(a), len(b)) + 1)
        for rows in combinations(range(len(a)), size)
        for columns in combinations(range(len(b)), size)
        if [a[i] for i in rows] == [b[j] for j in columns]
    )
    assert (len(pairs), -runs(pairs)) == best


def test_one_word_replaced_by_two() -> None:
    """ "a red ball </s>" to "a dark blue ball </s>": red meets dark, blue meets padding."""
    alignment = check_alignment([2, 3, 4, EOS], [2, 5, 6, 4, EOS], 8)
    slots = list(zip(*alignment.orders, strict=True))
    assert slots == [(0, 0), (2, 3), (3, 4), (5, 5), (6, 6), (7, 7), (1, 1), (4, 2)]


def test_a_deletion_and_an_insertion() -> None:
    """Each meets the other prompt's padding; in sequences that have none, they meet each other."""
    alignment = check_alignment([2, 3, 4, EOS], [3, 4, 5, EOS], 6)
    slots = list(zip(*alignment.orders, strict=True))
    assert slots == [(1, 0), (2, 1), (3, 3), (5, 5), (0, 4), (4, 2)]
    alignment = check_alignment([2, 3, 4, EOS], [3, 4, 5, EOS], 4)
    slots = list(zip(*alignment.orders, strict=True))
    assert slots == [(1, 0), (2, 1), (3, 3), (0, 2)]


def test_a_prompt_longer_than_the_model_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="5 and 1 tokens"):
        align([2, 3, 4, 5, EOS], [EOS], 4, PAD)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="--target-prompt"):
        PromptPair("a ball", "  ")
    with pytest.raises(UserError, match="--source-prompt"):
        PromptPair("", "a ball")


def test_real_prompts(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "prompts" / "edit_prompts.jsonl").read_text().splitlines()]
    pairs = [(row["source"], row["target"]) for row in rows if row["source"] and row["target"]]
    assert len(pairs) > 300
    shares: list[float] = []
    for source, target in pairs:
        a, b = ([*(zlib.crc32(w.encode()) + 2 for w in text.lower().split()), EOS] for text in (source, target))
        alignment = check_alignment(a, b, 226)
        shares.append(alignment.tokens_shared / max(len(a), len(b)))
    # These are edits: most of a prompt stays.
    assert sorted(shares)[len(shares) // 2] > 0.5
