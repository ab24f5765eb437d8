"""Clips longer than the model was trained on, and loops: attention and the autoencoder on diffusers' own classes."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention import Watch
from support.clips import PAIR, SAME, frames_of
from support.models import pipeline_of

from v2edit import backbones, video
from v2edit.attention import Replacement
from v2edit.backbones import Size, Text
from v2edit.backbones.cogvideox import CogVideoX
from v2edit.editing import EditConfig, Editor
from v2edit.editing.progression import aligned_text
from v2edit.editing.resize import resize_clip
from v2edit.errors import UserError
from v2edit.primitives.render import HEIGHT, orbit_cameras, render_clip
from v2edit.primitives.scene import Object, Scene

SPAN = 3  # latent frames of 9, which the tiny models and the built-in one are trained on
# Sources by the editor's layouts: a source and an edit that takes its maps; an original, a current source and an edit.
MAPS = [None, (((0, 1.0),), ((0, 1.0),)), (((0, 1.0),), ((1, 1.0),), ((0, 0.3), (1, 0.7)))]


@pytest.fixture(scope="module")
def tiny() -> CogVideoX:
    return CogVideoX(pipeline_of("5b"))


@pytest.fixture(scope="module")
def built_in() -> CogVideoX:
    backbone = backbones.load()
    assert isinstance(backbone, CogVideoX)
    return backbone


def latents_of(rows: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, frames, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def text_of(backbone: CogVideoX, rows: int) -> list[Text]:
    return backbone.encode_text([PAIR.source, PAIR.target, "a ball"][:rows])


class FrameByFrame:
    """Windowed attention written out: for each frame, the frames that it sees are gathered and rotated at their own
    positions, which in a loop lie before the first frame or after the last one."""

    def __init__(self, backbone: CogVideoX, frames: int, loop: bool, replacement: Replacement | None) -> None:
        self.frames, self.loop = frames, loop
        self.shared, self.sources = (replacement.shared, replacement.sources) if replacement else (0, ())
        self.span = min(SPAN, frames)
        table = backbone.pipeline._prepare_rotary_positional_embeddings(32, 32, 3 * frames, torch.device("cpu"))
        self.table = [part.unflatten(0, (3 * frames, -1)) for part in table]

    def at(self, x: torch.Tensor, position: int) -> torch.Tensor:
        """Rotate a frame's tokens for a position of 0 to 3 frames - 1."""
        cos, sin = (part[position] for part in self.table)
        return CogVideoX.rotate(x, (cos, sin))

    def in_clip(self, x: torch.Tensor, position: int) -> torch.Tensor:
        """Rotate a frame's tokens for a position of -frames to 2 frames - 1 in the clip: rotation is relative."""
        return self.at(x, self.frames + position)

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states,
        attention_mask=None,
        image_rotary_emb=None,
    ):
        text = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], 1)
        q, k, v = (f(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        q_of, k_of, v_of = (part[:, :, text:].chunk(self.frames, 2) for part in (q, k, v))
        outs, k_of_text = [], []
        for frame in range(self.frames):
            first = frame - self.span // 2
            if not self.loop:
                first = min(max(first, 0), self.frames - self.span)
            seen = range(first, first + self.span)
            keys = torch.cat([self.in_clip(k_of[j % self.frames], j) for j in seen], 2)
            values = torch.cat([v[:, :, :text], *(v_of[j % self.frames] for j in seen)], 2)
            of_text = self.at(q_of[frame], frame - first) @ k[:, :, :text].mT
            logits = torch.cat([of_text, self.in_clip(q_of[frame], frame) @ keys.mT], 3) / q.shape[3] ** 0.5
            maps = logits.softmax(-1)
            for row, sources in enumerate(self.sources):
                shared = self.shared
                maps[row] = sum(
                    w * torch.cat([logits[s, :, :, :shared], logits[row, :, :, shared:]], -1).softmax(-1)
                    for s, w in sources
                )
            outs.append(maps @ values)
            k_of_text.append(self.at(k_of[frame], frame - first))
        maps = (q[:, :, :text] @ torch.cat([k[:, :, :text], *k_of_text], 2).mT / q.shape[3] ** 0.5).softmax(-1)
        out = attn.to_out[0](torch.cat([maps @ v, *outs], 2).transpose(1, 2).flatten(2))
        return out[:, text:], out[:, :text]


@pytest.mark.parametrize("maps", MAPS, ids=["plain", "replaced", "mixed"])
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7])
def test_it_is_attention_frame_by_frame(tiny, frames, loop, maps):
    rows = 3 if maps is None else len(maps)
    replacement = None if maps is None else Replacement(5, maps)
    v, text, schedule = latents_of(rows, frames), text_of(tiny, rows), tiny.schedule(10)
    got = tiny.denoise(v, 4, schedule, text, replacement, loop)
    peer = CogVideoX(pipeline_of("5b"))
    peer.networks[0].set_attn_processor(FrameByFrame(peer, frames, loop, replacement))
    torch.testing.assert_close(got, peer.denoise(v, 4, schedule, text), rtol=1e-4, atol=1e-5)


@given(
    frames=st.integers(1, 9),
    shift=st.integers(1, 8),
    shared=st.integers(0, 16),
    maps=st.sampled_from(MAPS),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=25)
def test_a_loop_has_no_first_frame(tiny, frames, shift, shared, maps, seed):
    """Rolling what goes into the transformer rolls what comes out."""
    rows = 3 if maps is None else len(maps)
    replacement = None if maps is None else Replacement(shared, maps)
    v, text, schedule = latents_of(rows, frames, seed), text_of(tiny, rows), tiny.schedule(10)
    straight, rolled = (tiny.denoise(x, 4, schedule, text, replacement, loop=True) for x in (v, v.roll(shift, 1)))
    torch.testing.assert_close(rolled, straight.roll(shift, 1), rtol=1e-4, atol=1e-4)


def test_what_a_frame_depends_on(tiny):
    """In one layer, beyond the text: the neighbours, those across the seam in a loop only."""
    tiny = CogVideoX(pipeline_of("5b"))
    tiny.networks[0].transformer_blocks = tiny.networks[0].transformer_blocks[:1]
    v, text, schedule = latents_of(1, 7), text_of(tiny, 1), tiny.schedule(10)
    other = v.clone()
    other[:, 6] = 0
    for loop, seen in ((False, {4, 5, 6}), (True, {5, 6, 0})):  # an open clip's last windows are moved inwards
        one, two = (tiny.denoise(x, 4, schedule, text, None, loop) for x in (v, other))
        changed = {frame for frame in range(7) if (one - two)[:, frame].abs().max() > 1e-6}
        assert changed == (seen - {4} | {5} if loop else {5, 6}), changed


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_windows_begin_where_the_training_ended(variant):
    backbone, seen = CogVideoX(pipeline_of(variant)), []
    backbone.networks[0].register_forward_pre_hook(lambda module, args: seen.append(backbone.call.windows is not None))
    for frames in (1, 3, 4):
        backbone.denoise(latents_of(1, frames), 4, backbone.schedule(10), text_of(backbone, 1))
    assert seen == [False, False, backbone.has_rotary_time] and backbone.has_rotary_time == (variant == "5b")


def test_absolute_positions_cannot_loop():
    backbone = CogVideoX(pipeline_of("2b"), name="some/model")
    with pytest.raises(UserError, match=r"--loop: some/model .* absolute positions") as error:
        Editor(backbone).edit(frames_of(0), PAIR, EditConfig(loop=True))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("subtasks", [1, 2])
@pytest.mark.parametrize("solver", ["ddim", "dpm-sde"])
def test_the_source_prompt_gives_a_long_source_back(tiny, loop, subtasks, solver):
    config = EditConfig(steps=8, beta=0.0, subtasks=subtasks, solver=solver, loop=loop)
    x0 = tiny.encode(frames_of(0, 24 if loop else 25), loop=loop)
    *_, back = Editor(tiny).subtasks(x0, aligned_text(tiny, SAME), config)
    assert (back - x0).norm() <= 1e-4 * x0.norm()


@pytest.mark.parametrize("loop", [False, True])
def test_the_same_seed_gives_the_same_bytes(tiny, loop):
    config = EditConfig(steps=2, loop=loop)
    one, two, other = (
        Editor(tiny).edit(frames_of(2, 15), PAIR, replace(config, seed=seed)).frames for seed in (0, 0, 1)
    )
    assert np.array_equal(one, two) and not np.array_equal(one, other)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 23])
def test_any_clip_comes_back_with_its_own_length(tiny, count, loop):
    frames = frames_of(3, count)
    edited = Editor(tiny).edit(frames, PAIR, EditConfig(steps=2, loop=loop)).frames
    assert edited.shape == frames.shape


@given(count=st.integers(1, 40), more=st.integers(0, 40))
def test_frames_repeated_in_a_loop_are_the_ones_cut_again(count, more):
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    longer = resize_clip(frames, Size(count + more, 1, 1), loop=True)
    assert np.array_equal(resize_clip(longer, Size(count, 1, 1), loop=True), frames)
    times = np.bincount(longer[:, 0, 0, 0], minlength=count)
    assert times.max() - times.min() <= 1, "evenly"


@pytest.mark.parametrize("tiling", [False, True])
@pytest.mark.parametrize("count", [1, 9, 33])
def test_coding_in_parts_is_diffusers_own_coding(count, tiling):
    backbone, vae = CogVideoX(pipeline_of("5b")), pipeline_of("5b").vae
    if tiling:
        for one in (backbone.vae, vae):
            one.enable_tiling(16, 16, 0.25, 0.25)
    frames = frames_of(1, count)
    numbers = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255 * 2 - 1
    z = backbone.encode(frames)
    with torch.no_grad():
        posterior = vae.encode(numbers).latent_dist
        expected = vae.decode(z.transpose(1, 2) / vae.config.scaling_factor).sample[0].permute(1, 2, 3, 0)
    assert torch.equal(z, posterior.mode().transpose(1, 2) * vae.config.scaling_factor)
    drawn, expected_draw = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    sample = posterior.sample(expected_draw).transpose(1, 2) * vae.config.scaling_factor
    assert torch.equal(backbone.encode(frames, drawn), sample)
    assert np.array_equal(backbone.decode(z), ((expected / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy())
    assert not backbone.vae.encoder._forward_pre_hooks and not backbone.vae.decoder._forward_hooks


def test_a_long_clip_is_coded_a_few_frames_at_a_time(tiny):
    def largest(count: int) -> tuple[int, ...]:
        """Return the size of the largest float tensor in encoding and in decoding a clip."""
        with Watch() as encoding:
            z = tiny.encode(frames_of(1, count))
        with Watch() as decoding:
            tiny.decode(z)
        return tuple(max(n for dtype, n in watch.made if dtype.is_floating_point) for watch in (encoding, decoding))

    assert largest(65) == largest(17)


def loop_of(count: int) -> np.ndarray:
    """Return a clip of a scene that the camera circles once."""
    cameras = orbit_cameras([(2 * math.pi * k / count, HEIGHT) for k in range(count)], 32, 32)
    return render_clip(Scene((Object("ball", "red", "big", "left"),), "gray", "blue"), count, 32, 32, 2, cameras).frames


def test_the_autoencoder_of_a_loop_has_no_first_frame_either(built_in):
    frames = loop_of(16)
    z = built_in.encode(frames, loop=True)
    assert z.shape[1] == 4
    torch.testing.assert_close(built_in.encode(np.roll(frames, 8, 0), loop=True), z.roll(2, 1), rtol=0, atol=0.02)
    straight, rolled = (built_in.decode(x, loop=True).astype(int) for x in (z, z.roll(2, 1)))
    assert np.abs(rolled - np.roll(straight, 8, 0)).max() <= 2
    apart = {shift: np.abs(straight - np.roll(frames, shift, 0)).mean() for shift in range(-8, 8)}
    assert min(apart, key=lambda shift: apart[shift]) == 0, "every frame comes back in its place"


def test_a_loop_closes_within_a_latent_frame(built_in):
    z = built_in.encode(loop_of(16), loop=True)
    other = z.clone()
    other[:, -1] += 1
    change = np.abs(built_in.decode(z, loop=True).astype(int) - built_in.decode(other, loop=True)).mean((1, 2, 3))
    assert set(np.argsort(change)[-5:]) == {13, 14, 15, 0, 1}  # the last one in a neighbouring latent frame


@pytest.mark.heavy
def test_a_193_frame_clip_is_edited_within_two_gigabytes(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    video.write(loop_of(193), path, fps=8)
    prompts = ["--source-prompt", "a big red ball", "--target-prompt", "a big blue ball"]
    code = (
        "import resource, sys; from v2edit.cli.app import main; assert main(sys.argv[1:]) == 0;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    words = ["edit", path, *prompts, "--steps", "10", "--subtasks", "2", "-o", tmp_path / "out"]
    ran = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=3000)
    assert ran.returncode == 0, ran.stderr
    assert len(video.read(tmp_path / "out" / "edited.mp4").frames) == 193
    assert int(ran.stdout.split()[-1]) < 2e9 / 1024, "kilobytes at the peak"
