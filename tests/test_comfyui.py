"""ComfyUI: its images, sound and masks as clips and back, a node's edit that is made once, and the pack's files. The
nodes themselves are in test_comfyui_nodes.py; benchmarks/comfyui.py runs them in ComfyUI's server."""

import json
import tomllib
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from support.clips import PAIR, frames_of, images_of
from support.videos import NTSC, clip, make, tone

from v2edit import video as videos
from v2edit.comfyui.clips import to_images, to_levels, to_mask, to_mask_array, write_bytes, write_source
from v2edit.comfyui.options import help_of, name_widgets, read_options
from v2edit.comfyui.progress import PARTS, describe_progress, draw_sketch, measure_progress
from v2edit.comfyui.runs import NodeEdit, NodePrompts, choose_model, describe_preview, edited_file, make_prompts
from v2edit.editing.config import EditConfig
from v2edit.editing.session import Progress
from v2edit.errors import UserError
from v2edit.jobs.options import ModelOptions
from v2edit.prompts import PromptPair
from v2edit.runs import read_run_state
from v2edit.scenes.rer import SceneProgress
from v2edit.video.masks import mask_from_array, open_share
from v2edit.video.stream import as_stream

ROOT = Path(__file__).resolve().parent.parent
PACK = ROOT / "comfyui"


@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 47)])
def test_images_go_through_a_file_without_loss(tmp_path: Path, height: int, width: int) -> None:
    frames = frames_of(1, 5, height, width)
    path = write_source(images_of(frames), NTSC, tmp_path)
    read = videos.read(path)
    assert np.array_equal(read.frames[:], frames) and read.fps == NTSC
    assert torch.equal(to_images(read), images_of(frames))
    assert torch.equal(to_images(replace(read, frames=as_stream(read.frames))), images_of(frames))


def test_the_same_images_are_one_file(tmp_path: Path) -> None:
    images = images_of(frames_of(2, 3))
    path = write_source(images, 8.0, tmp_path)
    before = path.read_bytes()
    assert write_source(images, 8, tmp_path) == path and path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    others = {
        write_source(images, 9, tmp_path),
        write_source(1 - images, 8, tmp_path),
        write_source(images[:2], 8, tmp_path),
    }
    assert len({path, *others}) == 4


def test_images_with_alpha_and_out_of_range(tmp_path: Path) -> None:
    frames = frames_of(3, 2)
    with_alpha = torch.cat([images_of(frames), torch.zeros(2, 32, 32, 1)], -1)
    assert np.array_equal(videos.read(write_source(with_alpha, 8, tmp_path)).frames[:], frames)
    odd = torch.tensor([[[-0.5, 1.5, float("nan")], [0.5, 0.1, 0.9]]])
    assert to_levels(odd).tolist() == [[[0, 255, 0], [128, 26, 230]]]


@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 32, 32, 1), (0, 32, 32, 3)])
def test_what_is_no_batch_of_images_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"images are \[T, H, W, 3\]"):
        write_source(torch.zeros(shape), 8, tmp_path)
    with pytest.raises(UserError, match="fps is 0"):
        write_source(torch.zeros(2, 32, 32, 3), 0, tmp_path)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_sound_is_kept_as_long_as_the_frames(tmp_path: Path, channels: int) -> None:
    wave = torch.sin(torch.arange(44100) * 0.05).repeat(channels, 1)[None] * 0.5
    audio = {"waveform": wave, "sample_rate": 44100}
    path = write_source(images_of(frames_of(4, 6)), 12, tmp_path, audio)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.channels) == (44100, min(channels, 2))
        samples = np.concatenate([one.to_ndarray() for one in container.decode(audio=0)], 1)
    heard = samples.reshape(-1, min(channels, 2))[:, 0]
    assert len(heard) == 22050 and np.array_equal(heard, wave[0, 0, :22050].numpy())
    edited = videos.write(videos.read(path), tmp_path / "edited.mp4")  # as a job writes it
    with av.open(str(edited)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


def test_a_real_clip_and_its_sound_go_through_comfyuis_tensors(data: Path, tmp_path: Path) -> None:
    with av.open(str(data / "odd" / "pancake.mkv")) as container:  # as ComfyUI decodes it
        decoded = islice(container.decode(video=0), 12)
        frames = np.stack([one.to_ndarray(format="rgb24")[::2, ::2] for one in decoded])
        container.seek(0)
        sound = np.concatenate([one.to_ndarray() for one in container.decode(audio=0)], 1)[
            :, 48000:
        ]  # it begins silent
    audio = {"waveform": torch.from_numpy(sound)[None], "sample_rate": 48000}
    written = write_source(images_of(frames), 30, tmp_path, audio)
    assert np.array_equal(videos.read(written).frames[:], frames)
    edited = videos.write(videos.read(written), tmp_path / "edited.mp4")  # as a job writes it
    with av.open(str(edited)) as container:
        heard = np.concatenate([one.to_ndarray() for one in container.decode(audio=0)], 1)[:, : 48000 * 12 // 30]
        assert container.streams.video[0].average_rate == 30
    assert heard.shape == (1, 19200)
    assert np.corrcoef(heard.ravel(), sound[:, : heard.shape[1]].ravel())[0, 1] > 0.95


def test_a_real_mask_goes_through_comfyuis_tensor(data: Path) -> None:
    source = videos.read(data / "masks" / "BigBen.mp4", max_frames=4)
    levels = videos.read(data / "masks" / "BigBen-mask.mp4", max_frames=4).frames[..., 0]
    mask = torch.from_numpy(levels)[:, ::2, ::2].float() / 255  # of another size, and with what coding left
    taken = mask_from_array(to_mask_array(mask), source.frames.shape[:3])
    assert taken.shape == source.frames.shape[:3]
    assert np.abs(taken[:, ::2, ::2] - mask.numpy()).mean() < 0.02


def test_a_video_in_memory_is_written_as_it_is(tmp_path: Path) -> None:
    tone(tmp_path / "clip.mp4", "aac", 1.0, pictures=clip(10))
    content = (tmp_path / "clip.mp4").read_bytes()
    path = write_bytes(content, ".mp4", tmp_path / "sources")
    assert path.read_bytes() == content and write_bytes(content, ".mp4", tmp_path / "sources") == path


def test_masks(tmp_path: Path) -> None:
    source = videos.read(make(tmp_path / "clip.mp4", list(clip(4))))
    share = np.zeros((4, 48, 64), np.float32)
    share[1:, 8:24, 16:40] = 1
    with open_share(tmp_path / "mask.mp4", source) as write_share:
        for one in share:
            write_share(one)
    found = to_mask(tmp_path / "mask.mp4", source)
    assert found.shape == (4, 48, 64) and found.dtype == torch.float32
    assert np.abs(found.numpy() - share).max() <= 3 / 255
    assert torch.equal(to_mask(tmp_path / "none.mp4", source), torch.ones(4, 48, 64))
    mask = torch.rand(4, 48, 64).half()
    assert to_mask_array(mask).shape == to_mask_array(mask[:, None]).shape == (4, 48, 64)
    assert to_mask_array(mask).dtype == np.float32


def test_options_are_lines() -> None:
    text = "alpha = 0.7\n\n# text\n--guidance-2 = 3  # or more\npnc = false\nbox = 1,2,3,4\nstart = 1:30\nformat = gif"
    expected = {"alpha": 0.7, "guidance_2": 3, "pnc": False, "box": (1, 2, 3, 4), "start": "1:30", "format": "gif"}
    assert read_options(text) == expected
    for line, words in (
        ("alpha", "'alpha', expected"),
        ("a b = 1", "expected"),
        ("seed = 1", "'seed', which a widget"),
    ):
        with pytest.raises(UserError, match=words):
            read_options(line, frozenset({"seed"}))
    with pytest.raises(UserError, match="'alpha' twice"):
        read_options("alpha = 1\nalpha = 2")


def test_every_option_has_a_tooltip() -> None:
    for options in (EditConfig, ModelOptions):
        for one in fields(options):
            text = help_of(options, one.name)
            assert text.endswith((".", ")")) and "--" not in text, one.name
    assert name_widgets("say it with --target-prompt (--lvlm-url): v2edit-x -- y") == (
        "say it with target_prompt (lvlm_url): v2edit-x -- y"
    )
    assert help_of(ModelOptions, "model").startswith("The built-in model")  # of the class that has the field


def test_progress_is_one_bar() -> None:
    states = [
        Progress(subtask, 2, step, 4, shot_number=shot, shots=2)
        for shot in (1, 2)
        for subtask in (1, 2)
        for step in (1, 2, 3, 4)
    ]
    done = [measure_progress(state)[0] for state in states]
    assert done == sorted(set(done)) and done[-1] == PARTS
    assert measure_progress(Progress(1, 2, 3, 4, stage="writing")) == (750, PARTS)
    assert measure_progress(SceneProgress("reconstructing", 1, 4)) == (250, PARTS)
    assert describe_progress(Progress(1, 1, 3, 4, seconds_left=12.0)) == "subtask 1/1, 3 of 4, 12 s left"


def test_the_edit_so_far_is_shown() -> None:
    sketch = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.full((5, 4, 6, 3), 40, np.uint8)
    picture = draw_sketch(Progress(1, 1, 1, 2, sketch=sketch))
    assert picture is not None and picture.size == (3 * 6 * 40, 4 * 40)
    assert [picture.getpixel((x, 80)) for x in (120, 360, 600)] == [(0, 0, 0), (80, 80, 80), (160, 160, 160)]
    one = draw_sketch(Progress(1, 1, 1, 2, sketch=sketch[:1]))
    assert one is not None and one.size == (6 * 40, 4 * 40)
    assert draw_sketch(Progress(1, 1, 1, 2)) is None and draw_sketch(SceneProgress("reconstructing", 1, 4)) is None


def test_a_model_is_chosen_by_its_options() -> None:
    handle = choose_model(model="some/model", dtype="float16", lora="a.safetensors")
    assert handle.options == ModelOptions(model="some/model", dtype="float16", lora=("a.safetensors",))
    assert not handle.is_loaded
    with pytest.raises(UserError, match=r"'dtipe'.*'dtype'"):
        choose_model(dtipe="float16")
    with pytest.raises(UserError, match="--dtype is 'float8'"):
        choose_model(dtype="float8")


def test_prompts_without_a_video(tiny_model: Path) -> None:
    model = choose_model(model=str(tiny_model))
    found = make_prompts(None, None, model, source_prompt=PAIR.source, target_prompt=PAIR.target)
    assert found.prompts == PAIR and "[-red ball-] {+blue cube+}" in describe_preview(found)
    with pytest.raises(UserError, match="connect the video"):
        make_prompts(None, "make it blue", model, source_prompt=PAIR.source)


@pytest.fixture
def edit(tmp_path: Path, tiny_model: Path) -> NodeEdit:
    source = write_source(images_of(frames_of(5)), 8, tmp_path / "sources")
    options = {"steps": 5, "seed": 1, "save_every": 1}
    return NodeEdit(source, NodePrompts(PAIR), choose_model(model=str(tiny_model)), options, tmp_path / "output")


def test_an_edit_is_made_once_and_goes_on_where_it_stopped(edit: NodeEdit) -> None:
    """Its folder is named by its inputs; interrupting it is what a user does in ComfyUI."""
    steps: list[int] = []

    def stop(progress: Any) -> None:
        assert draw_sketch(progress) is not None
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit.edit_video(stop)
    (folder,) = (edit.output / "v2edit").iterdir()
    assert read_run_state(folder).state == "stopped" and edit.model.is_loaded
    loaded = edit.model.load()
    run = edit.edit_video(lambda progress: steps.append(progress.step))
    assert run.folder == folder and steps == [3, 4] and edit.model.load() is loaded

    count = len(steps)
    again = edit.edit_video(lambda progress: steps.append(progress.step))
    assert again.folder == folder and len(steps) == count and again.edited.frames.shape == run.edited.frames.shape
    resumed = edited_file(run, edit.options).rename(edit.output / "resumed.mp4")  # then it is made anew, in one go
    whole = edit.edit_video(lambda progress: steps.append(progress.step))
    assert whole.folder == folder.with_name(f"{folder.name}-2") and steps[count:] == [1, 2, 3, 4]
    assert edited_file(whole, edit.options).read_bytes() == resumed.read_bytes()


def test_whatever_decides_the_result_names_the_folder(edit: NodeEdit, tmp_path: Path) -> None:
    mask = np.ones((9, 32, 32), np.float32)
    other = write_source(images_of(frames_of(6)), 8, tmp_path / "sources")
    changed = [
        (edit, {}),
        (edit, {"alpha": 0.5}),
        (edit, {"mask": mask}),
        (edit, {"mask": mask * 0.5}),
        (replace(edit, path=other), {}),
        (replace(edit, prompts=NodePrompts(PromptPair(PAIR.source, "a red cube"))), {}),
        (replace(edit, model=choose_model(model=edit.model.options.model, dtype="float16")), {}),
    ]
    names = [one.fingerprint({**one.options, **more}) for one, more in changed]
    assert len(set(names)) == len(names)
    assert edit.fingerprint({"mask": mask.copy(), **edit.options}) == names[2]


def test_mistakes_are_one_line_before_the_model_is_loaded(edit: NodeEdit) -> None:
    for options, words in (
        ({"guidence": 3}, "'guidence'.*'guidance'"),
        ({"steps": 0}, "--steps is 0"),
        ({"alpha": "much"}, "--alpha is 'much'"),
    ):
        with pytest.raises(UserError, match=words):
            replace(edit, options=options).edit_video(lambda progress: None)
    with pytest.raises(UserError, match="there is no"):
        replace(edit, path=Path("gone.mp4")).edit_video(lambda progress: None)
    assert not edit.model.is_loaded and not edit.output.exists()


def test_prompts_between_go_through_a_file(tmp_path: Path) -> None:
    prompts = NodePrompts(PromptPair("a red ball", "a blue cube", ("a blue ball",)), "make it a blue cube")
    keywords = prompts.keywords(tmp_path)
    assert prompts.keywords(tmp_path) == keywords and keywords.keys() == {"prompts"}
    assert json.loads(keywords["prompts"].read_text())["prompts"]["intermediate"] == ["a blue ball"]


@pytest.mark.parametrize("name", ["edit_video.json", "edit_with_mask.json"])
def test_both_forms_of_a_workflow_are_the_same(name: str) -> None:
    api = json.loads((PACK / "api_workflows" / name).read_text())
    page = json.loads((PACK / "example_workflows" / name).read_text())
    assert {str(node["id"]): node["type"] for node in page["nodes"]} == {
        key: node["class_type"] for key, node in api.items()
    }
    names = {(node["id"], slot): one["name"] for node in page["nodes"] for slot, one in enumerate(node["inputs"])}
    links = {(str(to), names[to, slot]): [str(source), output] for _, source, output, to, slot, _ in page["links"]}
    given = {
        (key, name): value
        for key, node in api.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
    }
    assert links == given


def test_the_pack_is_described() -> None:
    described = tomllib.loads((PACK / "pyproject.toml").read_text())
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert described["project"]["version"] == own["project"]["version"]
    assert described["project"]["requires-python"] == own["project"]["requires-python"]
    assert described["project"]["name"] == own["project"]["name"] and described["tool"]["comfy"]["DisplayName"]
