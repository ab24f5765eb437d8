"""Frames that are read as they are needed: like arrays, and never whole in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from v2edit.video.stream import FrameStream, concatenate, in_chunks

CLIP = np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), np.uint8)


class Reader:
    """Reads the clip, and counts how many frames it was asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, first: int, stop: int) -> Iterator[np.ndarray]:
        for frame in CLIP[first:stop]:
            self.count += 1
            yield frame


def stream(read: Reader | None = None) -> FrameStream:
    return FrameStream(read or Reader(), CLIP.shape)


INDEX = st.one_of(
    st.integers(-23, 22),
    st.lists(st.integers(-23, 22), max_size=9).map(lambda some: np.array(some, int)),
    st.builds(slice, *[st.one_of(st.none(), st.integers(-30, 30))] * 2, st.one_of(st.none(), st.integers(1, 7))),
)


@given(INDEX)
def test_an_index_gives_what_it_gives_of_an_array(index: int | slice | np.ndarray) -> None:
    assert np.array_equal(np.asarray(stream()[index]), CLIP[index])


@given(st.integers(0, 23), st.integers(0, 23), st.integers(1, 5))
def test_slices_of_slices(first: int, stop: int, step: int) -> None:
    assert np.array_equal(np.asarray(stream()[first:stop][::step]), CLIP[first:stop][::step])


def test_a_slice_reads_nothing_and_a_frame_no_more_than_itself() -> None:
    reader = Reader()
    part = stream(reader)[5:20]
    assert reader.count == 0
    assert np.array_equal(part[3], CLIP[8])
    assert reader.count == 1


def test_an_index_outside_is_an_error() -> None:
    with pytest.raises(IndexError):
        stream()[23]


@given(st.integers(1, 30))
def test_chunks_are_the_clip(size: int) -> None:
    for frames in (CLIP, stream()):
        chunks = list(in_chunks(frames, size))
        assert np.array_equal(np.concatenate([chunk for _, chunk in chunks]), CLIP)
        assert all(np.array_equal(CLIP[place], chunk) and len(chunk) <= size for place, chunk in chunks)


def test_parts_one_after_the_other_are_the_clip() -> None:
    for parts in ([CLIP[:7], CLIP[7:]], [stream()[:7], CLIP[7:9], stream()[9:]]):
        whole = concatenate(parts)
        assert np.array_equal(np.asarray(whole), CLIP)
        assert np.array_equal(np.asarray(whole[5:12]), CLIP[5:12])


def test_mapped_frames() -> None:
    grey = stream().map(lambda frame: frame.mean(-1, dtype=np.float32), (4, 5), np.float32)
    assert grey.shape == (23, 4, 5)
    assert np.array_equal(np.asarray(grey), CLIP.mean(-1, dtype=np.float32))
