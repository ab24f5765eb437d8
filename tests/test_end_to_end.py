"""The built-in model and `v2edit edit` on it: real processes, real files."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from diffusers import CogVideoXPipeline
from support.processes import run_command
from support.world import BALL, EASY_KIND, EASY_SEED, easy_edit

from v2edit import video
from v2edit.backbones.families import BUILT_IN_FOLDER
from v2edit.jobs.evaluate import Evaluate
from v2edit.primitives.captions import describe

QUICK = ["--steps", "4"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "primitives"
    result = run_command("sample", "--seed", EASY_SEED, "--kind", EASY_KIND, "-o", folder, cwd=folder.parent)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_built_in_model_is_a_plain_diffusers_folder():
    files = [path for path in BUILT_IN_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    pipeline = CogVideoXPipeline.from_pretrained(BUILT_IN_FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    length = pipeline.transformer.config.max_text_seq_length
    frames = pipeline(BALL, height=64, width=96, num_frames=9, num_inference_steps=2, output_type="np",
                      max_sequence_length=length).frames  # fmt: skip
    assert frames.shape == (1, 9, 64, 96, 3) and np.isfinite(frames).all()


def test_an_instruction_edits_a_clip_of_primitives(sample, tmp_path):
    instruction = json.loads((sample / "clip.json").read_text())["instruction"]
    runs = [
        run_command("edit", sample / "clip.mp4", instruction, *QUICK, "--subtasks", 2, "-o", name, cwd=tmp_path)
        for name in ("one", "two")
    ]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert "note:" not in run.stderr and "subtask 2/2" in run.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert {p.name for p in one.iterdir()} == {
        "run.json", "subtask-1.mp4", "edited.mp4", "compare.mp4", "contact.png"
    }  # fmt: skip
    assert (one / "edited.mp4").read_bytes() == (two / "edited.mp4").read_bytes()
    facts = json.loads((one / "run.json").read_text())
    assert facts["config"]["subtasks"] == 2 and facts["instruction"] == instruction
    edited, source = video.read(one / "edited.mp4"), video.read(sample / "clip.mp4")
    assert edited.frames.shape == source.frames.shape and edited.fps == source.fps
    assert [p for p in tmp_path.iterdir() if p.name not in ("one", "two")] == []  # no partial file is left
    figures = Evaluate((one,)).run().rows["one"]
    assert figures["success"] == figures["hue"] == 1 and figures["psnr_outside"] > 18


@pytest.mark.heavy  # `test_odd` has shorter files with sound
def test_a_real_video_keeps_its_length_size_and_sound(data, tmp_path):
    path = data / "videos" / "mallard-water.mp4"
    words = ["--source-prompt", "a mallard on the water", "--target-prompt", "a swan on the water"]
    run = run_command("edit", path, *words, "--steps", 2, "--guidance", 1, "-o", "out", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    notes = [line for line in run.stderr.splitlines() if "note:" in line]
    assert len(notes) == 1 and "built-in model" in notes[0]
    source, edited = video.read(path), video.read(tmp_path / "out" / "edited.mp4")
    assert edited.frames.shape == source.frames.shape
    assert edited.fps == source.fps and edited.duration == source.duration
    np.testing.assert_allclose(edited.times, source.times, atol=1e-4)
    assert sound_of(tmp_path / "out" / "edited.mp4") == sound_of(path) != []


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_the_source_prompt_comes_from_the_frames_alone(sample, tmp_path):
    (tmp_path / "alone.mp4").write_bytes((sample / "clip.mp4").read_bytes())
    facts = json.loads((sample / "clip.json").read_text())
    run = run_command("edit", "alone.mp4", facts["instruction"], *QUICK, "-o", "run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    prompt = json.loads((tmp_path / "run/run.json").read_text())["prompts"]["source"]
    assert prompt == describe(easy_edit().source)
    assert run.stderr.count("note:") == 1 and prompt in run.stderr


def test_a_video_without_primitives_needs_a_source_prompt(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
    video.write(noise, tmp_path / "noise.mp4", fps=8)
    run = run_command("edit", "noise.mp4", "make the red ball blue", *QUICK, cwd=tmp_path)
    assert run.returncode == 2 and "noise.mp4" in run.stderr and "--source-prompt" in run.stderr
    assert not (tmp_path / "runs").exists()
