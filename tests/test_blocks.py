"""Long clips in overlapping blocks: the blocks themselves, exactness on the source, and resuming."""

import errno
import os
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clips import PAIR, SAME, frames_of
from support.families import FAMILIES
from support.models import fake_model_of, pipeline_of

from v2edit import backbones
from v2edit.backbones import Size
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.stretches import decode_in_stretches, encode_in_stretches, plan_stretches
from v2edit.editing import EditConfig, Editor, Progress
from v2edit.editing.blocks import BlendedFrames, Blocks
from v2edit.editing.cost import AT_ONCE, CostModel
from v2edit.editing.latents import LatentStore, stream_file
from v2edit.editing.local import LatentBlend, LocalEdit
from v2edit.editing.matte import find_share, stream_share
from v2edit.editing.microbatch import MicroBatcher
from v2edit.editing.progression import aligned_text
from v2edit.editing.resize import frame_index
from v2edit.editing.session import EditSession
from v2edit.errors import UserError
from v2edit.jobs.memory import settle_long
from v2edit.primitives.render import render_clip
from v2edit.primitives.scene import sample_scene
from v2edit.runs.snapshots import Snapshots
from v2edit.video.stream import Frames, FrameStream, as_stream

CONFIG = EditConfig(steps=6, beta=0.0, long="blocks")


@pytest.fixture(scope="module")
def tiny() -> CogVideoX:
    return CogVideoX(pipeline_of("5b"))


@given(
    length=st.integers(1, 6), longer=st.integers(1, 20), stride=st.integers(1, 6), group=st.integers(1, 2),
    loop=st.booleans(), weights=st.sampled_from(["cosine", "triangle", "flat"]), lead=st.sampled_from([0.25, 1e-6]),
    shifted=st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_blocks_cover_a_clip_and_blend_what_they_agree_on(length, longer, stride, group, loop, weights, lead, shifted):
    frames, stride = (length + longer) * group, min(stride, length) * group
    first = -1 if loop else 0
    blocks = Blocks(frames, length * group, stride, group, loop, first, weights, lead, group, shifted)
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


def test_a_later_block_gives_little_of_the_frames_that_the_network_takes_for_the_first():
    """They are the clip's first frame alone elsewhere, without motion; what they weigh less goes to the block before,
    and to none other."""
    even, less = (Blocks(9, 3, 2, 2, lead=lead).of_step(0) for lead in (1.0, 0.25))
    assert [block.weights.tolist() for block in even[1:3]] == [[0.5, 1, 0.5]] * 2
    for number, block in enumerate(less):
        lead = [0.2] if number else [1.0]
        last = [0.8] if number < len(less) - 1 else [1.0]
        torch.testing.assert_close(block.weights, torch.tensor([*lead, 1.0, *last]))
    alone = Blocks(6, 2, 2, lead=1e-6)
    assert all(block.weights.tolist() == [1, 1] for block in alone.of_step(0))
    around = Blocks(6, 3, 2, loop=True, lead=0.25)
    assert {tuple(block.weights.tolist()) for block in around.of_step(0)} == {
        (torch.tensor(0.2).item(), 1.0, torch.tensor(0.8).item())
    }


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("subtasks", [1, 2])
def test_an_edit_of_nothing_in_blocks_is_the_source(tiny, loop, subtasks):
    x0 = torch.randn(1, 8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    config = replace(CONFIG, loop=loop, subtasks=subtasks)
    *_, back = Editor(tiny).subtasks(x0, aligned_text(tiny, SAME), config)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-5)
    *_, edited = Editor(tiny).subtasks(x0, aligned_text(tiny, PAIR), config)
    assert (edited - x0).abs().amax((2, 3, 4)).min() > 1e-3


def test_where_a_mask_keeps_the_source_blocks_keep_its_latents(tiny):
    """To the last bit, also below the controls' window; and only there."""
    x0 = torch.randn(1, 8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    allowed = torch.zeros(1, 8, 1, 8, 8)
    allowed[:, 2:, :, :, 4:] = 1
    session = EditSession(MicroBatcher(tiny), aligned_text(tiny, PAIR), replace(CONFIG, beta=0.4))
    session.blend = LatentBlend(x0, allowed)
    edited = session.next_latents(x0)
    kept = (edited == x0).all(2, keepdim=True)
    assert kept[allowed == 0].all() and not kept[allowed == 1].any()


@pytest.mark.parametrize(
    "moments, find, pause",
    [((1,), True, 0), ((4, 9), False, 0), ((7, 6, 5, 9), True, 0), ((13,), True, 7), ((11,), False, 5)],
)
def test_an_edit_that_dies_anywhere_goes_on_to_the_same_bits(tiny, tmp_path: Path, monkeypatch, moments, find, pause):
    """It dies after so many calls of the model, whatever of its latents has gone to files since the last snapshot,
    which may be steps ago: one is due once the time has been asked for as often as `pause` says."""
    x0 = torch.randn(1, 8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text, config = aligned_text(tiny, PAIR), replace(CONFIG, subtasks=2, beta=0.4)
    monkeypatch.setattr("v2edit.runs.snapshots.PAUSE", pause)
    monkeypatch.setattr("v2edit.runs.snapshots.time", SimpleNamespace(monotonic=partial(next, count(0.0))))
    monkeypatch.setattr("v2edit.runs.snapshots.SHARE", 1e9)

    def edit(snapshots: Snapshots | None = None, calls: float = float("inf")) -> list[torch.Tensor]:
        denoise, made = CogVideoX.denoise, []

        def counted(*args, **options):
            made.append(1)
            if len(made) > calls:
                raise RuntimeError("dead")
            return denoise(*args, **options)

        monkeypatch.setattr(CogVideoX, "denoise", counted)
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
        assert list(tmp_path.glob("*.raw"))
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


@pytest.mark.parametrize("name, loop", [("5b", False), ("5b", True), ("1.5", False), ("Wan 2.1", True)])
def test_stretches_of_a_clip_are_its_frames_in_their_order(name, loop):
    """Told apart by their brightness: whatever is at a stretch's begin, it is not another frame."""
    backbone = FAMILIES[name]() if name in FAMILIES else CogVideoX(pipeline_of(name))
    groups = backbone.lead_groups + 4
    size = Size(groups * backbone.group + (0 if loop else 1), 32, 32)
    stretches = plan_stretches(backbone, size, loop, groups=2)
    assert len(stretches) > 2
    kept = np.concatenate([one.kept_frames for one in stretches])
    assert sorted(kept.tolist()) == list(range(size.frames))
    kept = np.concatenate([one.kept_latents for one in stretches])
    assert sorted(kept.tolist()) == list(range(backbone.latent_shape(size, loop)[0]))
    for one in stretches:
        assert np.array_equal(one.frames[one.lead :][: len(one.kept_frames)], one.kept_frames)
        latents = one.latents[one.latent_lead :][: len(one.kept_latents)]
        assert np.array_equal(latents, one.kept_latents) or (one.kept_latents[0] == 0 and not one.latent_lead)
        assert len(one.latents) == backbone.latent_shape(replace(size, frames=len(one.frames)))[0]


def test_a_clip_in_stretches_is_nearly_the_whole_clip():
    built_in = backbones.load()
    clip = render_clip(sample_scene(Random(3)), 49, 32, 48).frames
    stretches = plan_stretches(built_in, Size(49, 32, 48), groups=5)
    whole = built_in.encode(clip)
    latents = encode_in_stretches(built_in, clip, stretches, lambda count: iter(range(count)), torch.zeros_like(whole))
    assert float((latents - whole).abs().max()) < 0.05 * float(whole.std())
    frames = built_in.decode(whole)
    out = decode_in_stretches(built_in, whole, stretches, lambda count: iter(range(count)), np.zeros_like(frames))
    assert np.abs(out.astype(int) - frames).max() <= 2


def test_a_stream_in_stretches_and_blocks_is_edited_as_its_array_is(tiny, tmp_path, monkeypatch):
    """Of another size than the model's, with a mask; killed while it is coded, and resumed."""
    monkeypatch.setattr("v2edit.backbones.stretches.STRETCH", 0)
    clip = frames_of(3, 60, 40, 48)
    share = np.zeros(clip.shape[:3], np.float32)
    share[:, 10:30, 10:30] = 1
    config = replace(CONFIG, steps=2)

    def edit(frames: Frames, share: Frames, **options) -> Frames:
        return Editor(tiny).edit(frames, PAIR, config, local=LocalEdit(share), **options).frames

    whole = edit(clip, share)
    stages, sketches = [], []

    def stop(at: Progress) -> None:
        stages.append(at.stage)
        if at.sketch is not None and "editing" not in stages:
            sketches.append(at.sketch.copy())
        if at.stage == "decoding" and stages.count("decoding") == 2:
            raise KeyboardInterrupt

    streams = as_stream(clip), as_stream(share)
    with pytest.raises(KeyboardInterrupt):
        edit(*streams, snapshots=Snapshots(tmp_path), on_progress=stop)
    result = edit(*streams, snapshots=Snapshots(tmp_path))
    assert isinstance(result, FrameStream) and {"encoding", "editing", "decoding"} <= set(stages)
    # What is there can be seen before the first step is done: the clip's frames change one after the other.
    assert (
        len(sketches) > 1 and (sketches[0] == sketches[-1]).all((1, 2, 3)).any() and (sketches[0] != sketches[-1]).any()
    )
    assert np.array_equal(np.asarray(result), whole)
    assert np.array_equal(whole[:, :8], clip[:, :8])


def test_memory_decides_between_all_of_a_long_clip_and_blocks(tiny_model: Path):
    fake = fake_model_of(tiny_model)
    config = replace(CONFIG, long="auto").resolve(fake.backbone.defaults, fake.backbone.schedule(CONFIG.steps))
    cost_model, size, much = CostModel(fake, config), fake.backbone.nearest_size(Size(65, 32, 32)), 2**40
    for free in (None, much):
        assert settle_long(cost_model, size, AT_ONCE, free).long == "auto"
    in_blocks = replace(cost_model, config=settle_long(cost_model, size, AT_ONCE, 1))
    assert in_blocks.config.long == "blocks"
    longer = fake.backbone.nearest_size(Size(129, 32, 32))
    assert in_blocks.peak("denoising", longer, AT_ONCE) == in_blocks.peak("denoising", size, AT_ONCE)
    assert in_blocks.peak("denoising", size, AT_ONCE) < cost_model.peak("denoising", size, AT_ONCE)
    assert in_blocks.disk(longer) > in_blocks.disk(size) > cost_model.disk(size) == 0
    short = fake.backbone.native_size
    assert settle_long(cost_model, short, AT_ONCE, 1).long == "auto"


@pytest.mark.parametrize("loop", [False, True])
def test_the_matte_of_a_stream_is_that_of_its_array(loop):
    source, edited, original = (frames_of(seed, 9 if not loop else 8) for seed in range(3))
    frames = frame_index(7, len(edited), loop)
    latent_frames = np.arange(len(edited)) // 4
    changed = torch.zeros(1, 3, 1, 4, 4)
    changed[:, 1:, :, 1:3, 2:] = 1
    whole = find_share(changed, edited, lambda: original, lambda: source, frames, latent_frames, (7, 40, 48))
    stream = stream_share(changed, edited, original, as_stream(source), frames, latent_frames, (7, 40, 48))
    assert 0 < whole.mean() < 1
    assert np.array_equal(np.asarray(stream), whole)
    assert np.array_equal(np.asarray(stream[3:6]), whole[3:6])


def test_what_is_mapped_has_its_room_on_the_disk_and_a_full_one_is_told(tmp_path: Path, monkeypatch):
    """Writing to a mapped file without room would end the process without a word."""
    store = LatentStore(tmp_path)
    store.open("x", (1, 50, 4, 8, 8))[:] = 3
    store.open_frames("frames", (2, 64, 64, 3))[:] = 7
    for path in tmp_path.iterdir():
        assert path.stat().st_blocks * 512 >= path.stat().st_size > 0 or not hasattr(os, "posix_fallocate")
    streamed = stream_file(store.open_frames("frames", (2, 64, 64, 3)))
    assert (np.asarray(streamed) == 7).all() and (streamed[1] == 7).all()
    again = LatentStore(tmp_path)
    assert (again.open("x", (1, 50, 4, 8, 8)) == 3).all()
    assert (again.open_frames("frames", (2, 64, 64, 3)) == 7).all()

    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    for open_one in (lambda: again.open("y", (9,)), lambda: again.open_frames("z", (1, 2, 2, 3))):
        with pytest.raises(UserError, match="No space left"):
            open_one()
