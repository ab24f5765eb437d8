"""Long clips in overlapping blocks: the blocks themselves, exactness on the source, and resuming."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clips import PAIR, SAME
from support.models import pipeline_of

from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing import EditConfig, Editor
from v2edit.editing.blocks import BlendedFrames, Blocks
from v2edit.editing.local import LatentBlend, LocalEdit
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.progression import aligned_text
from v2edit.editing.session import EditSession
from v2edit.runs.snapshots import Snapshots

CONFIG = EditConfig(steps=6, beta=0.0, long="blocks")


@pytest.fixture(scope="module")
def tiny() -> CogVideoX:
    return CogVideoX(pipeline_of("5b"))


@given(
    length=st.integers(1, 6), longer=st.integers(1, 20), stride=st.integers(1, 6), group=st.integers(1, 2),
    loop=st.booleans(), weights=st.sampled_from(["cosine", "triangle", "flat"]), shifted=st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_blocks_cover_a_clip_and_blend_what_they_agree_on(length, longer, stride, group, loop, weights, shifted):
    frames, stride = (length + longer) * group, min(stride, length) * group
    first = -1 if loop else 0
    blocks = Blocks(frames, length * group, stride, group, loop, first, weights, shifted)
    whole = torch.randn(frames, 2, 1, 1)
    for k in range(2):
        placed = blocks.of_step(k)
        blend, got = BlendedFrames.of(placed, frames), torch.full_like(whole, torch.nan)
        for block in placed:
            assert len(set(block.frames)) == length * group and (block.frames[0] - first) % group == 0
            assert loop or block.frames == tuple(range(block.frames[0], block.frames[0] + length * group))
            for rows, values in blend.add(block, whole[list(block.frames)]):
                assert got[rows].isnan().all()
                got[rows] = values
        torch.testing.assert_close(got, whole)
        assert not blend.sums


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("subtasks", [1, 2])
def test_an_edit_of_nothing_in_blocks_is_the_source(tiny, loop, subtasks):
    x0 = torch.randn(1, 8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    config = replace(CONFIG, loop=loop, subtasks=subtasks)
    *_, back = Editor(tiny).subtasks(x0, aligned_text(tiny, SAME), config)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-5)
    *_, edited = Editor(tiny).subtasks(x0, aligned_text(tiny, PAIR), config)
    assert (edited - x0).abs().amax((2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("moments, find", [((1,), True), ((4, 9), False), ((7, 6, 5, 9), True)])
def test_an_edit_that_dies_anywhere_goes_on_to_the_same_bits(tiny, tmp_path: Path, monkeypatch, moments, find):
    """It dies after so many calls of the model, whatever of its latents has gone to files since the last snapshot."""
    x0 = torch.randn(1, 8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text, config = aligned_text(tiny, PAIR), replace(CONFIG, subtasks=2, beta=0.4)
    monkeypatch.setattr("v2edit.runs.snapshots.PAUSE", 0.0)
    monkeypatch.setattr("v2edit.runs.snapshots.SHARE", 1e9)

    def edit(snapshots: Snapshots | None = None, calls: float = float("inf")) -> list[torch.Tensor]:
        denoise, made = CogVideoX.denoise, []

        def count(*args, **options):
            made.append(1)
            if len(made) > calls:
                raise RuntimeError("dead")
            return denoise(*args, **options)

        monkeypatch.setattr(CogVideoX, "denoise", count)
        session = EditSession(MicroBatcher(tiny), text, config, None, snapshots, LocalEdit(find=find))
        try:
            session.blend = LatentBlend(x0, find=True) if find else None
            return [session.next_latents(x0).clone(), session.next_latents().clone()]
        finally:
            monkeypatch.setattr(CogVideoX, "denoise", denoise)

    whole = edit()
    for calls in moments:
        with pytest.raises(RuntimeError, match="dead"):
            edit(Snapshots(tmp_path), calls)
        assert list(tmp_path.glob("*.latents"))
    for one, other in zip(edit(Snapshots(tmp_path)), whole, strict=True):
        assert torch.equal(one, other)
    assert all(
        torch.equal(*pair) for pair in zip(edit(Snapshots(tmp_path), 0), whole, strict=True)
    )  # nothing is done twice


def test_a_model_of_absolute_positions_makes_long_clips_in_blocks():
    learned = CogVideoX(pipeline_of("2b"))
    x0 = torch.randn(1, 7, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    (back,) = Editor(learned).subtasks(x0, aligned_text(learned, SAME), replace(CONFIG, long="auto"))
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-5)
