"""Each family of models on diffusers' own classes at tiny sizes: exactness, AMR, windows, loops and rows in turn."""

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.attention import explicit_attention
from support.clips import PAIR, SAME, frames_of
from support.families import FAMILIES, SMALL
from torch import Tensor

from v2edit import backbones, video
from v2edit.attention import Replacement, sites
from v2edit.backbones import LoadOptions, Size, Text, ltx
from v2edit.backbones.core import PipelineBackbone
from v2edit.backbones.fake import count
from v2edit.cli.app import main
from v2edit.editing import EditConfig, Editor
from v2edit.editing.cost import count_forwards
from v2edit.editing.progression import aligned_text
from v2edit.editing.state import noise_stream
from v2edit.errors import UserError
from v2edit.jobs.plan import log_plan
from v2edit.prompts import PromptPair
from v2edit.scenes.primitives import write_task

ROTARY = [name for name in FAMILIES if name != "CogVideoX 2b"]
# A source, and an edit that takes its maps.
TAKEN = (((0, 1.0),), ((0, 1.0),))


@pytest.fixture(scope="module")
def sample_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    write_task(3, folder, "recolour", views=4, side=32)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def backbone(request) -> PipelineBackbone:
    return FAMILIES[request.param]()


@pytest.fixture(scope="module", params=ROTARY)
def rotary(request) -> PipelineBackbone:
    return FAMILIES[request.param]()


def latents_of(backbone: PipelineBackbone, rows: int, frames: int | None = None, seed: int = 0) -> Tensor:
    """Return noise in the shape of a small clip's latents, of F latent `frames` if given."""
    shape = list(backbone.latent_shape(backbone.native_size))
    shape[0] = shape[0] if frames is None else frames
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def text_of(backbone: PipelineBackbone) -> tuple[list[Text], int]:
    """Return the texts of a source and an edit on common slots, and how many they share."""
    text = aligned_text(backbone, PAIR)
    return [text.source, text.target], text.shared


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm-ode", "dpm-sde"])
@pytest.mark.parametrize("subtasks", [1, 3])
def test_the_source_prompt_gives_the_source_back(backbone, solver, subtasks):
    """With the target prompt equal to the source's and the controls on throughout, nothing may change."""
    config = EditConfig(steps=6, beta=0.0, solver=solver, subtasks=subtasks)
    x0 = latents_of(backbone, 1)
    *_, back = Editor(backbone).subtasks(x0, aligned_text(backbone, SAME), config)
    assert far(back, x0) <= 1e-5


def test_an_edit_changes_the_video(backbone):
    x0 = latents_of(backbone, 1)
    (edited,) = Editor(backbone).subtasks(x0, aligned_text(backbone, PAIR), EditConfig(steps=6))
    assert torch.isfinite(edited).all() and far(edited, x0) > 1e-3


def test_the_network_computes_what_diffusers_own_does(backbone):
    """`denoise` without AMR against the same weights with diffusers' own processors."""
    schedule, (text, _) = backbone.schedule(10), text_of(backbone)
    v = latents_of(backbone, 2)
    for step in (0, 8):  # of two experts each has one
        got = backbone.denoise(v, step, schedule, text)
        network = backbone.networks[schedule.expert(step)]
        backbone.uninstall(network)
        try:
            expected = stock_x0(backbone, network, v, step, schedule, text)
        finally:
            backbone.install(network, backbone.call)
        assert far(got, expected) <= 1e-6


@torch.no_grad()
def stock_x0(backbone, network, v, step, schedule, text, pair=PAIR) -> Tensor:
    """Predict x0 as diffusers' pipelines call their networks, without anything of this project."""
    embedding, t = torch.stack([one.embedding for one in text]), schedule.timesteps[step].expand(len(v))
    video, pipeline, prompts = v.transpose(1, 2), backbone.pipeline, [pair.source, pair.target]
    match type(pipeline).__name__:
        case "CogVideoXPipeline":
            rotary, sides = None, [side * backbone.spatial for side in v.shape[3:]]
            if backbone.has_rotary_time:
                rotary = pipeline._prepare_rotary_positional_embeddings(*sides, v.shape[1], v.device)
            out = network(v, embedding, t, image_rotary_emb=rotary, return_dict=False)[0].transpose(1, 2)
        case "LTXPipeline" | "LTXConditionPipeline" as kind:
            embedding, mask, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
            grid = v.shape[1], *v.shape[3:]
            positions: dict[str, Any] = {"rope_interpolation_scale": (8 / 25, 32, 32)}
            if kind == "LTXConditionPipeline":
                size = [side * 32 for side in grid[1:]]
                _, _, places, _ = pipeline.prepare_latents([], None, None, 2, 4, *size, 8 * grid[0] - 7, dtype=v.dtype)
                positions = {"video_coords": places * torch.tensor([1 / 25, 1, 1])[:, None]}
            packed = pipeline._pack_latents(video)
            out = network(packed, embedding, t, mask, *grid, **positions, return_dict=False)[0]
            out = pipeline._unpack_latents(out, *grid)
        case "WanPipeline" | "SkyReelsV2Pipeline":
            if pipeline.config.get("expand_timesteps"):
                t = t[:, None].expand(-1, v.shape[1] * v.shape[3] * v.shape[4] // 4)
            out = network(video, t, embedding, return_dict=False)[0]
        case "HunyuanVideoPipeline":
            embedding, pooled, mask = pipeline.encode_prompt(prompts)
            told = torch.full((len(v),), 1000.0)
            out = network(video, t, embedding, mask.float(), pooled, told, return_dict=False)[0]
        case "HunyuanVideo15Pipeline":
            embedding, mask, *glyphs = pipeline.encode_prompt(prompts, batch_size=2)
            video = torch.nn.functional.pad(v, (0, 0, 0, 0, 0, 5)).transpose(1, 2)
            pictures = torch.zeros(2, pipeline.vision_num_semantic_tokens, pipeline.vision_states_dim)
            out = network(video, t, embedding, mask, None, *glyphs, pictures, return_dict=False)[0]
        case "MochiPipeline":
            embedding, mask, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
            out = network(video, embedding, t, mask, return_dict=False)[0]
        case name:
            raise AssertionError(name)
    return backbone.x0_from(v, out.transpose(1, 2), *schedule.level(step))


@pytest.mark.parametrize(("name", "guidance"), [("HunyuanVideo", 6.0), ("HunyuanVideo 1.5", 6.0), ("Mochi", 4.5)])
def test_an_edit_without_controls_is_what_diffusers_pipeline_generates(name, guidance):
    """From the same noise: the prompt, the steps' levels, guidance and the direction of the flow."""
    backbone = FAMILIES[name]()
    size, x0 = backbone.native_size, latents_of(backbone, 1)
    config = EditConfig(steps=5, inc=False, pnc=False, amr=False, guidance=guidance)
    (edited,) = Editor(backbone).subtasks(x0, aligned_text(backbone, PAIR), config)
    backbone.uninstall(backbone.networks[0])
    backbone.pipeline.set_progress_bar_config(disable=True)
    told = {} if "guider" in backbone.pipeline.components else {"guidance_scale": guidance}
    generated = backbone.pipeline(
        PAIR.target, height=size.height, width=size.width, num_frames=size.frames, num_inference_steps=config.steps,
        latents=next(noise_stream(config.seed, 1, x0)).transpose(1, 2), output_type="latent", **told,
    ).frames  # fmt: skip
    assert far(edited, generated.transpose(1, 2)) <= 1e-5


@pytest.mark.parametrize("unconditional", [False, True])
def test_replaced_maps_are_explicit_ones(backbone, unconditional, monkeypatch):
    schedule, (text, shared) = backbone.schedule(10), text_of(backbone)
    v, replacement = latents_of(backbone, 2), Replacement(shared, TAKEN)
    assert shared > 0
    got = backbone.denoise(v, 4, schedule, text, replacement)
    monkeypatch.setattr(sites, "replaced_attention", explicit_attention)
    assert far(got, backbone.denoise(v, 4, schedule, text, replacement)) <= 1e-5
    assert far(got, backbone.denoise(v, 4, schedule, text)) > 1e-5  # and they matter


def test_a_source_is_the_same_to_the_bit_with_and_without_a_taker(backbone):
    schedule, (text, shared) = backbone.schedule(10), text_of(backbone)
    v = latents_of(backbone, 2)
    with_taker = backbone.denoise(v, 4, schedule, text, Replacement(shared, TAKEN))
    alone = backbone.denoise(v, 4, schedule, text, Replacement(shared, (((0, 1.0),), ((1, 1.0),))))
    assert torch.equal(with_taker[0], alone[0]) and not torch.equal(with_taker[1], alone[1])


def test_rows_one_at_a_time_are_all_at_once(backbone):
    schedule, (text, shared) = backbone.schedule(10), text_of(backbone)
    v, replacement = latents_of(backbone, 2), Replacement(shared, TAKEN)
    whole = backbone.denoise(v, 4, schedule, text, replacement)
    kinds = [(layer, type(layer)) for network in backbone.networks for layer in backbone.layers(network)]
    try:
        assert "one at a time" in str(backbone.shrink())
        assert far(backbone.denoise(v, 4, schedule, text, replacement), whole) <= 1e-6
    finally:
        for layer, kind in kinds:
            layer.__class__ = kind


def test_a_window_as_long_as_the_clip_is_full_attention(rotary, monkeypatch):
    schedule, (text, shared) = rotary.schedule(10), text_of(rotary)
    v, replacement = latents_of(rotary, 2), Replacement(shared, TAKEN)
    full = rotary.denoise(v, 4, schedule, text, replacement)
    monkeypatch.setattr(type(rotary), "_in_windows", lambda *_: True)
    assert far(rotary.denoise(v, 4, schedule, text, replacement), full) <= 1e-6


def test_a_long_clip_is_edited_in_windows(rotary, monkeypatch):
    schedule, (text, shared) = rotary.schedule(10), text_of(rotary)
    v, replacement, native = (
        latents_of(rotary, 2, frames=7 * rotary.unit),
        Replacement(shared, TAKEN),
        rotary.native_size,
    )
    windowed = rotary.denoise(v, 4, schedule, text, replacement)
    monkeypatch.setattr(rotary, "native_size", replace(native, frames=10**6))
    assert 1e-6 < far(windowed, rotary.denoise(v, 4, schedule, text, replacement)) < 1


def test_a_loop_has_no_first_frame(rotary):
    """Rolling what goes into the network rolls what comes out."""
    schedule, (text, shared) = rotary.schedule(10), text_of(rotary)
    v, shift = latents_of(rotary, 2, frames=5 * rotary.unit), 2 * rotary.unit
    straight, rolled = (
        rotary.denoise(x, 4, schedule, text, Replacement(shared, TAKEN), loop=True) for x in (v, v.roll(shift, 1))
    )
    assert far(rolled, straight.roll(shift, 1)) <= 1e-5


@pytest.mark.parametrize("frames", [1, 9, 11])
def test_clips_are_coded_with_all_their_frames(backbone, frames):
    native = backbone.native_size
    size = backbone.nearest_size(Size(frames, native.height, native.width))
    clip = frames_of(0, size.frames, size.height, size.width)
    latents = backbone.encode(clip)
    assert latents.shape[1:] == backbone.latent_shape(size) and latents.dtype == torch.float32
    assert backbone.decode(latents).shape == clip.shape


def test_a_loop_is_coded_as_one(rotary, monkeypatch):
    """Rolling a loop by a group of frames rolls its latents, and back. Random weights forget its ends late. Where the
    autoencoder never forgets its start, loops are refused."""
    groups = 160 // rotary.group
    monkeypatch.setattr(rotary, "lead_groups", groups)
    monkeypatch.setattr(rotary, "trail_groups", groups if rotary.trail_groups else 0)
    monkeypatch.setattr(ltx, "DECODE_NOISE", 0.0)
    group, native = rotary.group, rotary.native_size
    if rotary.loop_obstacle:
        with pytest.raises(UserError, match=r"--loop: .*, so that a loop has a first frame"):
            rotary.nearest_size(native, loop=True)
        return
    size = rotary.nearest_size(Size(2 * group, native.height, native.width), loop=True)
    clip = frames_of(0, size.frames, size.height, size.width)
    latents, rolled = rotary.encode(clip, loop=True), rotary.encode(np.roll(clip, group, axis=0), loop=True)
    assert latents.shape[1:] == rotary.latent_shape(size, loop=True)
    assert far(rolled, latents.roll(group // rotary.temporal, 1)) <= 1e-3
    decoded, rolled = (rotary.decode(x, loop=True) for x in (latents, latents.roll(group // rotary.temporal, 1)))
    assert decoded.shape == clip.shape
    assert np.abs(np.roll(decoded, group, axis=0).astype(int) - rolled).max() <= 1


# The others differ from these in ways that the whole command does not see.
OTHERS = {"CogVideoX 2b", "CogVideoX 1.5", "Wan A14B", "Wan TI2V", "SkyReels-V2", "LTX 0.9.0"}


@pytest.mark.parametrize("name", [pytest.param(k, marks=pytest.mark.heavy) if k in OTHERS else k for k in FAMILIES])
def test_a_video_and_a_scene_are_edited_from_a_folder(name, tmp_path, sample_scene, capsys):
    """The whole command, on a folder as diffusers saves it."""
    backbone = FAMILIES[name]()
    backbone.pipeline.save_pretrained(tmp_path / "model")
    video.write(frames_of(0, 9, 32, 48), tmp_path / "clip.mp4", fps=8)
    prompts = ["--source-prompt", PAIR.source, "--target-prompt", PAIR.target]
    options = [*prompts, "--model", str(tmp_path / "model"), "--resolution", "32x32", "--steps", "3"]
    assert main(["edit", str(tmp_path / "clip.mp4"), *options, "-o", str(tmp_path / "video")]) == 0
    assert video.read(tmp_path / "video/edited.mp4").frames.shape == (9, 32, 48, 3)
    record = json.loads((tmp_path / "video/run.json").read_text())
    assert record["resolution"] == "32x32" and 1 > record["sigma"][0] > record["sigma"][1] >= 0
    few = ["--frames", "9", "--fit-steps", "3", "--refit-steps", "3", "--side", "32"]
    few += ["--path", "orbit"] if backbone.loop_obstacle else []  # a closed path is a loop where the model makes one
    assert main(["scene", str(sample_scene), *options, *few, "-o", str(tmp_path / "scene")]) == 0
    assert (tmp_path / "scene/edited.ply").is_file()
    assert main(["edit", str(tmp_path / "clip.mp4"), *options, "--dry-run"]) == 0
    assert "sigma from" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["HunyuanVideo", "HunyuanVideo 1.5", "Mochi"])
def test_a_folder_is_loaded_by_all_its_parts(name, tmp_path):
    """Loading gives the same model, and a model without data costs what it does."""
    made = FAMILIES[name]()
    made.pipeline.save_pretrained(tmp_path)
    checkpoint = backbones.find(str(tmp_path))
    loaded, info = backbones.load(checkpoint, device="cpu"), backbones.read_info(checkpoint)
    assert (checkpoint.family.name, info.classifier_free) == (name, made.classifier_free)
    (text,), schedule, v = made.encode_text([PAIR.source]), made.schedule(10), latents_of(made, 2)
    assert loaded.encode_text([PAIR.source])[0].ids == info.tokenizer.encode(PAIR.source) == text.ids
    assert far(loaded.denoise(v, 4, schedule, [text] * 2), made.denoise(v, 4, schedule, [text] * 2)) <= 1e-5
    assert PAIR.source[info.tokenizer.token_starts(PAIR.source)[1] :].startswith("red ball")

    fake, size, maps = (
        backbones.load_fake_model(checkpoint, LoadOptions(device="cpu")),
        Size(49, 32, 32),
        Replacement(5, TAKEN),
    )
    made.native_size = fake.backbone.native_size  # windows are the same
    clip = torch.zeros(1, 3, 61, 32, 32)
    v, blank = torch.randn(2, *made.latent_shape(size)), [made.blank_text()] * 2
    made.denoise(v, 0, schedule, blank, maps)  # Tables of positions are made once.
    for counted, took in (
        (fake.forward(2, size, maps=maps), count(lambda: made.denoise(v, 0, schedule, blank, maps))),
        (fake.encoding(Size(61, 32, 32)), count(lambda: made.vae.encode(clip))),
        (fake.decoding(size), count(lambda: made.vae.decode(v[:1].transpose(1, 2)))),
    ):
        assert counted.flops == pytest.approx(took.flops, rel=0.01) and took.flops > 0
        assert counted.peak == pytest.approx(took.peak, rel=0.05)


def test_a_model_that_is_told_its_guidance_needs_no_unconditional_rows(caplog):
    backbone = FAMILIES["HunyuanVideo"]()
    schedule, config = backbone.schedule(6), EditConfig(steps=6, guidance=5.0, source_guidance=2.0)
    seen: list[Tensor] = []
    handle = backbone.networks[0].register_forward_pre_hook(lambda _, args: seen.append(args[5]))
    x0, text = latents_of(backbone, 1), aligned_text(backbone, PAIR)
    (edited,) = Editor(backbone).subtasks(x0, text, config)
    handle.remove()
    resolved = config.resolve(backbone.defaults, schedule)
    assert sum(map(len, seen)) == sum(count_forwards(schedule, resolved, backbone.classifier_free))
    assert [told.tolist() for told in (seen[0], seen[-1])] == [[2000.0, 5000.0], [5000.0]]
    editor = Editor(backbone)
    editor.batcher.max_rows = 1
    (in_calls,) = editor.subtasks(x0, text, replace(config, amr=False))
    (whole,) = Editor(backbone).subtasks(x0, text, replace(config, amr=False))
    assert far(in_calls, whole) <= 1e-5 < far(in_calls, edited)
    log_plan(PAIR, replace(resolved, negative_prompt="fog"), SMALL, backbone)
    assert "--negative-prompt: HunyuanVideo takes none" in caplog.text


def test_an_empty_prompt_may_have_no_tokens():
    """Mochi's unconditional rows then have no text at all."""
    backbone, config = FAMILIES["Mochi"](), EditConfig(steps=4, beta=0.0, amr_unconditional=True)
    assert backbone.encode_text([""])[0].present == ()
    text, x0 = aligned_text(backbone, SAME), latents_of(backbone, 1, frames=5)
    (back,) = Editor(backbone).subtasks(x0, text, config)  # in windows
    assert far(back, x0) <= 1e-5


def test_quoted_text_is_spelled_beside_the_prompt():
    """HunyuanVideo 1.5 has a second encoder for it, and one prompt may quote more than the other, or nothing."""
    backbone, pair = FAMILIES["HunyuanVideo 1.5"](), PromptPair('a ball "Oh"', "a blue cube on the floor")
    schedule, network, v = backbone.schedule(10), backbone.networks[0], latents_of(backbone, 2)
    got = backbone.denoise(v, 4, schedule, backbone.encode_text([pair.source, pair.target]))
    silent = backbone.denoise(v, 4, schedule, backbone.encode_text(["a ball Oh", pair.target]))
    backbone.uninstall(network)
    expected = stock_x0(backbone, network, v, 4, schedule, backbone.encode_text(["a"]), pair)
    assert far(got, expected) <= 1e-6 < far(silent[0], expected[0]) and far(silent[1], expected[1]) <= 1e-6
    backbone.install(network, backbone.call)
    x0, config = latents_of(backbone, 1), EditConfig(steps=4, subtasks=2)
    *_, edited = Editor(backbone).subtasks(x0, aligned_text(backbone, pair), config)
    assert torch.isfinite(edited).all()


SAVED = {"CogVideoX 1.5": "CogVideoXPipeline", "Wan TI2V": "WanPipeline", "LTX 0.9.7": "LTXConditionPipeline"}


@pytest.mark.parametrize(("name", "pipeline"), SAVED.items())
def test_a_folder_is_loaded_and_counted(name, pipeline, tmp_path):
    """Weights from a folder compute the same; a model without data costs what they do: a step, and coding a loop."""
    backbone = FAMILIES[name]()
    backbone.pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": pipeline}))
    checkpoint = backbones.find(str(tmp_path))
    loaded, fake = backbones.load(checkpoint), backbones.load_fake_model(checkpoint, LoadOptions(device="cpu"))
    loaded.native_size = fake.backbone.native_size = backbone.native_size
    size = backbone.nearest_size(replace(backbone.native_size, frames=2 * backbone.group), loop=True)
    v = torch.randn(2, *backbone.latent_shape(size, loop=True), generator=torch.Generator().manual_seed(0))
    schedule, (text, shared) = backbone.schedule(10, v.shape[1:]), text_of(backbone)
    maps = Replacement(shared, TAKEN)
    x0 = backbone.denoise(v, 4, schedule, text, maps, loop=True)
    assert far(loaded.denoise(v, 4, schedule, text_of(loaded)[0], maps, loop=True), x0) <= 1e-5

    blank, clip = [backbone.blank_text()] * 2, frames_of(0, *astuple(size))
    took = [
        count(work).flops
        for work in (
            lambda: backbone.denoise(v, 0, schedule, blank, maps, loop=True),
            lambda: backbone.encode(clip, loop=True),
            lambda: backbone.decode(v[:1], loop=True),
        )
    ]
    counted = [fake.forward(2, size, True, maps), fake.encoding(size, loop=True), fake.decoding(size, loop=True)]
    assert [one.flops for one in counted] == pytest.approx(took, rel=0.01)
    if backbone.coded_whole:  # in memory that grows with the clip
        peak = count(lambda: backbone.decode_latents(torch.randn(1, v.shape[2], 6, *v.shape[3:]))).peak
        assert fake.decoding(replace(size, frames=41)).peak == pytest.approx(peak, rel=0.01)
