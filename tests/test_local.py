"""Local edits: what the mask keeps is the source's, in latents and to the last bit of the frames."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.clips import PAIR, SAME, frames_of
from support.families import FAMILIES
from support.models import pipeline_of

from v2edit.backbones import Size
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.backbones.core import PipelineBackbone
from v2edit.editing import EditConfig, Editor, change
from v2edit.editing.editor import EditResult
from v2edit.editing.local import EVERYWHERE, LatentBlend, LocalEdit, edited_size, latent_mask, on_frames, on_video
from v2edit.runs.snapshots import Snapshots

HARD = EditConfig(steps=6, subtasks=2, solver="dpm-sde", ending="same")  # noise of its own at every step
T, H, W = 9, 32, 32


@pytest.fixture(scope="module")
def backbone() -> CogVideoX:
    return CogVideoX(pipeline_of("5b"))


def edit(backbone: CogVideoX, config: EditConfig, local: LocalEdit = EVERYWHERE, frames=None) -> EditResult:
    return Editor(backbone).edit(frames_of(0) if frames is None else frames, PAIR, config, local=local)


def box(t: slice, y: slice, x: slice, size: tuple[int, int, int] = (T, H, W)) -> np.ndarray:
    share = np.zeros(size, np.float32)
    share[t, y, x] = 1
    return share


@pytest.mark.parametrize("config", [HARD, EditConfig(steps=6, beta=0.0)], ids=["two subtasks", "controls to the end"])
def test_a_mask_of_ones_changes_no_bit_and_one_of_zeros_gives_the_source(backbone, config):
    plain = edit(backbone, config)
    everywhere = edit(backbone, config, LocalEdit(np.ones((T, H, W), np.float32)))
    for a, b in zip(plain.subtasks, everywhere.subtasks, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(plain.frames, frames_of(0))
    np.testing.assert_array_equal(
        edit(backbone, config, LocalEdit(np.zeros((T, H, W), np.float32))).frames, frames_of(0)
    )


def test_latents_outside_the_mask_are_the_originals_to_the_last_bit(backbone):
    x0 = backbone.encode(frames_of(0))
    session = Editor(backbone).begin(PAIR, HARD)
    mask = torch.zeros_like(x0[:, :, :1])
    mask[:, 1:, :, 1:3, :2] = 1
    session.blend = LatentBlend(x0, mask)
    for latents in (session.next_latents(x0), session.next_latents()):
        assert torch.equal(latents[(mask == 0).expand_as(x0)], x0[(mask == 0).expand_as(x0)])
        assert not torch.equal(latents, x0)


@pytest.mark.parametrize(("size", "loop"), [((T, H, W), False), ((11, 27, 41), False), ((13, 32, 32), True)])
def test_frames_outside_the_mask_are_the_sources_whatever_the_size(backbone, size, loop):
    """Also where the model sees more frames than there are, other ones, or a loop."""
    share = box(slice(3, 8), slice(5, 20), slice(0, 9), size)
    frames = frames_of(1, *size)
    result = edit(backbone, replace(HARD, loop=loop), LocalEdit(share), frames)
    for video in result.subtasks:
        np.testing.assert_array_equal(video[share == 0], frames[share == 0])
        assert not np.array_equal(video[share == 1], frames[share == 1])


@pytest.mark.parametrize("area", [(slice(0, H), slice(0, W)), (slice(8, 24), slice(0, 16))], ids=["all", "a box"])
def test_a_span_of_time_is_edited_as_it_is_with_the_rest(backbone, area):
    """What does not change before and after does not hold the edit back."""
    some = edit(backbone, HARD, LocalEdit(box(slice(5, 7), *area), keep_colours=False)).frames
    whole = edit(backbone, HARD, LocalEdit(box(slice(0, T), *area), keep_colours=False)).frames
    np.testing.assert_array_equal(some[5:7], whole[5:7])
    np.testing.assert_array_equal(np.delete(some, [5, 6], 0), np.delete(frames_of(0), [5, 6], 0))
    assert not np.array_equal(some, frames_of(0))


def test_half_a_share_is_halfway_between_source_and_edit(backbone):
    share = np.full((T, H, W), 0.5, np.float32)
    latents = LatentBlend(torch.zeros(1, 3, 4, 2, 2), torch.full((1, 3, 1, 2, 2), 0.25))
    assert torch.equal(
        latents.blend(torch.ones(1, 3, 4, 2, 2), lambda: latents.original), torch.full((1, 3, 4, 2, 2), 0.25)
    )
    result = edit(backbone, EditConfig(steps=2), LocalEdit(share)).frames
    assert not np.array_equal(result, frames_of(0))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> PipelineBackbone:
    return FAMILIES[request.param]()


@pytest.mark.parametrize("loop", [False, True])
def test_a_frame_lies_in_the_latent_frame_that_is_the_first_to_change_with_it(family, loop):
    """The encoders are causal: a frame moves its own latent frame, and none before it but through norms of groups."""
    if loop and family.loop_obstacle:
        pytest.skip("no loops")
    size = family.nearest_size(Size(family.group + 1, 32, 32), loop)
    frames = frames_of(0, size.frames, size.height, size.width)
    index = family.latent_frame_of(size.frames, loop)
    latents = family.encode(frames, loop=loop)
    assert latents.shape[1] == index.max() + 1
    for k in {0, 1, family.temporal}:
        changed = frames.copy()
        changed[k] = 255 - changed[k]
        change = (family.encode(changed, loop=loop) - latents).flatten(2).norm(dim=2)[0]
        before = change[: index[k] + 1]
        assert change[index[k]] > 0 and (loop or family.coded_whole or before[-1] == before.max())


def test_a_latent_takes_the_edit_where_its_pixels_or_those_beside_it_do(backbone):
    frames, latent_frames = np.arange(T), backbone.latent_frame_of(T)
    share = box(slice(5, 9), slice(8, 16), slice(0, 8))
    share[5, 8, 0] = 0.25  # less than its neighbours: the most counts
    mask = latent_mask(share, frames, latent_frames, (3, 16, 4, 4))[0, :, 0]
    assert mask[:2].max() == 0 and mask[2].tolist() == [[1, 1, 0, 0]] * 3 + [[0, 0, 0, 0]]


def test_a_mask_of_latents_lies_on_the_frames_that_they_hold(backbone):
    frames, latent_frames = np.arange(T), backbone.latent_frame_of(T)
    mask = torch.zeros(1, 3, 1, 4, 4)
    mask[:, 2, :, 1:3, 0] = 1
    back = on_video(on_frames(mask, latent_frames, (H, W)), frames, (T, H, W))
    assert back[:5].max() == 0 and back[5:, 12:20, :4].min() == 1
    assert ((back > 0.5) != (box(slice(5, 9), slice(8, 24), slice(0, 8)) > 0.5)).mean() < 0.01  # the corners are round


def test_an_edit_that_finds_its_mask_resumes_with_the_same_bits(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(change, "MIN_CONTRAST", 1.0)  # random weights change everything alike
    for name in ("LARGE", "MOST"):  # and of 4x4 latents most are in a region that has grown
        monkeypatch.setattr(change, name, 1.0)
    config = replace(HARD, steps=8)
    whole = edit(backbone, config, LocalEdit(find=True))
    assert whole.share is not None and 0 < whole.share.mean() < 1
    for stop in (2, 5, 9):
        snapshots, left = Snapshots(tmp_path / str(stop), every=1), iter(range(stop))

        def interrupt(progress, left=left):
            if next(left, None) is None:
                raise InterruptedError

        snapshots.folder.mkdir()
        with pytest.raises(InterruptedError):
            Editor(backbone).edit(frames_of(0), PAIR, config, interrupt, snapshots, local=LocalEdit(find=True))
        again = Editor(backbone).edit(frames_of(0), PAIR, config, snapshots=snapshots, local=LocalEdit(find=True))
        np.testing.assert_array_equal(again.frames, whole.frames)
        np.testing.assert_array_equal(again.share, whole.share)


def test_an_edit_that_changes_nothing_finds_nothing_to_change(backbone):
    result = Editor(backbone).edit(frames_of(0), SAME, EditConfig(steps=4), local=LocalEdit(find=True))
    np.testing.assert_array_equal(result.frames, frames_of(0))


def test_a_small_region_is_edited_in_a_window_of_its_own(backbone):
    """What the model sees is the window, enlarged; what is beside it stays, and the mask found lies within it."""
    size, frames = (T, 96, 128), frames_of(2, T, 96, 128)
    share = box(slice(0, T), slice(60, 72), slice(80, 92), size)
    local = LocalEdit(share, crop=True)
    assert edited_size(local, frames, backbone.native_size) == Size(T, 20, 20)
    result = edit(backbone, EditConfig(steps=3), local, frames)
    np.testing.assert_array_equal(result.frames[share == 0], frames[share == 0])
    assert not np.array_equal(result.frames[share == 1], frames[share == 1])
    np.testing.assert_array_equal(result.share, share)
    assert not np.array_equal(result.frames, edit(backbone, EditConfig(steps=3), LocalEdit(share), frames).frames)
    found = edit(backbone, EditConfig(steps=3), LocalEdit(share, find=True, crop=True), frames)
    assert found.share is not None and found.share[share == 0].max() == 0


def test_every_family_keeps_what_the_mask_leaves_out(family):
    frames = frames_of(3, 11, 40, 56)
    share = box(slice(2, 9), slice(8, 30), slice(20, 44), (11, 40, 56))
    result = edit(family, EditConfig(steps=2, subtasks=2), LocalEdit(share, find=True), frames)
    for video in result.subtasks:
        np.testing.assert_array_equal(video[share == 0], frames[share == 0])
    assert result.share is not None and result.share.shape == share.shape and (result.share <= share).all()
