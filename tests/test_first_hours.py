"""What a newcomer types in the first hour, and what the program answers: names of options, prompts, sizes, devices."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.scenes import gaussians_of
from test_docs import README, commands

from v2edit import video
from v2edit.cli.app import COMMANDS, main, parse
from v2edit.cli.foreign_options import FOREIGN_OPTIONS, suggest_option
from v2edit.jobs.estimate import COUNTED, TIMED
from v2edit.scenes.formats.ply import write_splat

WORDS = ["--source-prompt", "a red ball on the floor", "--target-prompt", "a blue cube on the floor"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clip that no model here edits at its own size."""
    path = tmp_path_factory.mktemp("clip") / "man-surfing.mp4"
    generator = np.random.default_rng(0)
    video.write(generator.integers(0, 255, (9, 192, 256, 3), np.uint8), path, fps=8)
    return str(path)


@pytest.fixture(scope="module")
def splat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A scene without photographs."""
    return str(write_splat(tmp_path_factory.mktemp("splat") / "garden.ply", gaussians_of(0)))


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a command which must fail with one line, and returns that line."""

    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("v2edit: error: ") and printed.err.count("\n") == 1
        assert len(printed.err) < 500
        return printed.err.removeprefix("v2edit: error: ").strip()

    return refused


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("v2edit.backbones.hub._fetch_index", fetch)


@pytest.mark.parametrize("command", ["edit", "scene", "prompts"])
def test_who_writes_the_prompts_is_said(clip: str, command: str, refusal) -> None:
    message = refusal(command, clip, "make the surfer a polar bear", "--model", "zai-org/CogVideoX-5b")
    assert "--lvlm" in message and "--source-prompt" in message and "--target-prompt" in message


def test_readme_gives_an_instruction_or_prompts() -> None:
    for words in commands(README):
        if words[0] in ("edit", "scene"):
            job = parse(words).options["job"]
            assert (job.instruction is None) == job.prompt_options.by_hand, words


# --- options ----------------------------------------------------------------------------------------


def test_names_of_diffusers_are_other_names_of_options() -> None:
    theirs = ["--strength", "0.6", "--guidance-scale", "3", "--num-inference-steps", "8", "--output", "run"]
    ours = ["--alpha", "0.6", "--guidance", "3", "--steps", "8", "--out", "run"]
    for command in ("edit", "scene"):
        jobs = [parse([command, "clip.mp4", "make it red", *words]).options["job"] for words in (theirs, ours)]
        assert jobs[0] == jobs[1] and jobs[0].config.alpha == 0.6 and jobs[0].run_options.out == Path("run")
    assert parse(["edit", "clip.mp4", "x", "--cfg", "3"]) == parse(["edit", "clip.mp4", "x", "--guidance", "3"])


WRONG = {
    "--strenght 0.5": "no option --strenght; did you mean --strength?",
    "--gaussian 5": "v2edit edit --help",  # an option of v2edit scene, like --gaussians
    "--guidence=3": "did you mean --guidance?",
    "--steps": "--steps is given without a value",
    "--steps ten": "--steps is 'ten', expected a whole number",
    "--steps=1.5": "--steps is '1.5', expected a whole number",
    "--guidance high": "--guidance is 'high', expected a number",
    "--solver euler": "--solver is 'euler', expected one of auto, ddim, ddpm, dpm-ode, dpm-sde",
    "--time": "--time is for a dry run: add --dry-run",
    "-o edited.mp4": "try -o edited",
    "--out splat.PLY": "expected a folder",
    # an option by the name that was typed
    "--strength 1.5": "--strength is 1.5, expected 0.0 to 1.0",
    "--strength 0": "--strength is 0: nothing",
    "--beta 0.9 --strength=0.8": "expected below --strength (0.8)",
    "--num_inference_steps 0": "--num_inference_steps is 0, expected",
    "--num-inference-steps ten": "--num-inference-steps is 'ten', expected a whole number",
    "--cfg 0": "--cfg is 0.0, expected",
    "--guidance-scale": "--guidance-scale is given without a value",
    "--output run.mp4": "--output is run.mp4, expected a folder, which the results are written into (a video as "
    "edited.mp4): try --output run",
    # an option of another program
    "--cfg_scale 7": "no option --cfg_scale; did you mean --guidance?",
    "--frames": "cut it first (--save-frames",
    "--lora style.safetensors": "LoRAs are not loaded",
}


@pytest.mark.parametrize(("words", "says"), WRONG.items(), ids=WRONG)
def test_a_wrong_option_is_one_line(clip: str, words: str, says: str, refusal) -> None:
    assert says in refusal("edit", clip, "make it red", *words.split())


def test_options_of_other_programs_are_answered_by_those_of_the_same_command(capsys) -> None:
    options = {}
    for command in ("edit", "scene", "eval", "batch", "bench"):
        with pytest.raises(SystemExit):
            parse([command, "--help"])
        options[command] = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out))
    for row in FOREIGN_OPTIONS:
        assert all(any(one.split()[0] in known for known in options.values()) for one in row.here), row
    answers = {
        ("edit", "--num-steps"): "--steps?", ("edit", "--denoise"): "--strength?", ("edit", "--sampler"): "--solver?",
        ("edit", "--negative"): "--negative-prompt?", ("edit", "--ckpt"): "--model?", ("edit", "--CFG"): "--guidance?",
        ("edit", "--fp16"): "--dtype float16?", ("edit", "--cpu-offload"): "--offload model?",
        ("edit", "--output-dir"): "--out?", ("eval", "--output-dir"): "--csv?", ("scene", "--n-frames"): "--frames?",
        ("edit", "--width"): "the size of their source", ("scene", "--width"): "--side?",
        ("edit", "--fps"): "the frame rate of their source", ("edit", "--input"): "the input goes first",
        ("edit", "--prompt"): "an instruction goes behind the input",
        ("eval", "--width"): "v2edit eval --help lists all",
    }  # fmt: skip
    for (command, typed), says in answers.items():
        answer = suggest_option(typed, command, options[command])
        assert says in answer and ("did you mean" in answer) == says.endswith("?"), (command, typed, answer)


def test_a_command_line_that_lacks_something_is_one_line(clip: str, refusal) -> None:
    assert refusal("edit", clip, "make", "the", "ball", "red", "--steps", "3").endswith(
        'put quotes round it, "make the ball red"'
    )
    assert "needs VIDEO: the video to edit" in refusal("edit")
    assert "needs -o FOLDER" in refusal("batch", "tasks.jsonl")
    assert refusal("edti", clip) == "there is no command 'edti'; did you mean edit?"
    assert "does not take 'second'" in refusal("view", "first", "second")
    assert "did you mean --csv?" in refusal("eval", clip, "-o", "figures.csv")
    assert "expected a folder" in refusal("sample", "-o", "clip.mp4")


@pytest.mark.parametrize("device", ["mps", "xpu:1", "cuda:99", "gpu", "meta"])
@pytest.mark.parametrize("command", ["edit", "eval"])
def test_a_device_that_is_not_there_is_one_line(clip: str, tmp_path: Path, device: str, command: str, refusal) -> None:
    words = {"edit": ["edit", clip, *WORDS, "-o", str(tmp_path / "run")], "eval": ["eval", clip]}[command]
    message = refusal(*words, "--device", device)
    assert message.startswith(f"--device is {device!r}") and "it can use cpu" in message


@pytest.mark.parametrize("command", ["edit", "scene", "batch", "prompts"])
def test_help_ends_with_the_ablations(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([command, "--help"])
    text = capsys.readouterr().out
    groups = re.findall(r"^\W*([\w-]+) options\W*$", text, re.MULTILINE)
    assert groups[-2:] == ["edit", "ablation"]
    ablations = text.partition(" ablation options ")[2]
    assert all(f"--no-{name}" in ablations for name in ("inc", "pnc", "amr", "padding-shared"))
    assert all(name not in ablations for name in ("--steps", "--seed", "--alpha", "--dry-run"))
    edit = " ".join(re.sub("[│╭╮╰╯─]", " ", text.partition(" edit options ")[2]).split())
    assert "lower keeps more" in edit and "higher lets shapes change" in edit


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            parse([command, "--help"])
        assert stop.value.code == 0 and "usage: v2edit " + command in capsys.readouterr().out


# --- models and instructions ------------------------------------------------------------------------

FAMILIES = {
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "a Wan model",
    "Lightricks/LTX-Video": "an LTX model",
    "hunyuanvideo-community/HunyuanVideo": "a HunyuanVideo model",
    "genmo/mochi-1-preview": "a Mochi model",
}
UNSUITABLE = {
    "zai-org/CogVideoX-5b-I2V": "an image-to-video CogVideoX",
    "stabilityai/stable-video-diffusion-img2vid": "takes a picture and no text",
    "guoyww/animatediff-motion-adapter-v1-5-2": "an AnimateDiff motion adapter",
    "black-forest-labs/FLUX.1-dev": "still images",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "still images",
    "Qwen/Qwen2.5-VL-7B-Instruct": "give it as --lvlm",
    "gpt-4o": "give it as --lvlm",
}


@pytest.mark.parametrize("model", [*FAMILIES, *UNSUITABLE])
def test_a_model_that_no_edit_runs_on_is_refused_before_the_network(
    clip: str, model: str, no_network: None, refusal
) -> None:
    message = refusal("edit", clip, "make the surfer a polar bear", "--model", model)
    assert (FAMILIES | UNSUITABLE)[model] in message and "such as zai-org/CogVideoX-5b" in message
    assert ("backbone of its own" in message) == (model in FAMILIES)


@pytest.mark.parametrize("model", ["zai-org/CogVideoX-2b", "someone/wanderer-video", "me/cogvideox-wan-style"])
def test_other_names_are_looked_up(clip: str, model: str, no_network: None) -> None:
    with pytest.raises(AssertionError, match="the hub was asked"):
        main(["edit", clip, *WORDS, "--model", model])


BALL = "a big red ball in the middle rests on a gray floor under a blue sky, the camera is still."
MEANT = {
    "make the bal blue": "did you mean 'make the ball blue'?",
    "make the red bal blue": "did you mean 'make the red ball blue'?",  # "red" alone would fit the ball
    "make the bal red": "does not know 'bal': the source shows a big red ball",  # which it is
    "make the cubee green": "does not know 'cubee': the source shows a big red ball",  # a cube there is not
    "make the red dog blue": "does not know 'dog': the source shows a big red ball",
    "turn the ball into a blue dog": "does not know 'dog'",
    "add a turquoise cube": "does not know 'turquoise'",
    "make the ball gren": "did you mean 'make the ball green'?",
    "turn the ball into a cubee": "did you mean 'turn the ball into a cube'?",
    "make it look like night": "try: make the sky dark",
    "make it snow": "try: make the floor white",
    "a sunset": "try: make the sky golden",
    "make it a nice sunny day": "does not understand",  # the sky is blue already
    "\U0001f534": "no words that the built-in grammar reads",
    "haz la pelota roja": "does not know 'haz', 'la', 'pelota'",
    "make the ball lighter " + "and lighter " * 200: "…': it knows colours",
}


@pytest.mark.parametrize(("instruction", "says"), MEANT.items(), ids=lambda text: text[:30])
def test_what_was_meant_is_proposed_where_the_source_has_it(clip: str, instruction: str, says: str, refusal) -> None:
    message = refusal("prompts", clip, instruction, "--source-prompt", BALL)
    assert says in message
    proposal = re.search(r"did you mean '(.*?)'|try: ([\w ]+)", message)
    assert bool(proposal) == bool(re.search("did you mean|try: ", says))
    assert not proposal or main(["prompts", clip, proposal[1] or proposal[2], "--source-prompt", BALL]) == 0


# --- before the work --------------------------------------------------------------------------------


def test_prompts_sizes_and_steps_are_told_before_the_work(clip: str, tiny_model: Path, tmp_path: Path, capsys) -> None:
    words = ["edit", clip, *WORDS, "--model", str(tiny_model), "--steps", "2", "--alpha", "1", "--no-pnc", "--no-amr"]
    assert main([*words, "--json", "-o", str(tmp_path / "run")]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [one["event"] for one in events]
    plan = [one["message"] for one in events[: kinds.index("progress")] if one["event"] == "plan"]
    assert plan[:2] == [f"source prompt: {WORDS[1]}", f"target prompt: {WORDS[3]}"]
    size = re.fullmatch(r"plan: 9 frames of 256x192, edited as 9 of (\d+)x(\d+); (1 subtask of 2 .*)", plan[2])
    assert size and size[3].startswith("1 subtask of 2 denoising steps (of 2): ")
    (note,) = [one["message"] for one in events if one["event"] == "note"]
    assert note.startswith(f"256x192 is edited at {size[1]}x{size[2]}")
    forwards = int(size[3].split(": ")[1].split()[0])
    assert forwards == 4  # two steps of the edit alone, conditional and unconditional


def test_a_dry_run_counts_and_says_so(clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("v2edit.backbones.loading.load", load)
    assert main(["edit", clip, *WORDS, "--dry-run", "--json"]) == 0
    *_, note, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert "knows only its own world" in note["message"] and "256x192 is edited at" in note["message"]
    assert result["method"] == COUNTED and set(result["seconds"]) == {"computing"} and result["flops"] > 1e9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["edit", "scene"])
def test_a_dry_run_settles_prompts_as_the_run_does(
    clip: str, splat: str, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys, refusal
) -> None:
    source, out = {"edit": clip, "scene": splat}[command], ["-o", str(tmp_path / "run")]
    assert main([command, source, "make the ball blue", "--source-prompt", BALL, "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("source  a big red ball") and printed[1].startswith("target  a big blue ball")

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("V2EDIT_LVLM_KEY", raising=False)
    faults = [(["make the red bal blue", "--source-prompt", BALL], "did you mean 'make the red ball blue'?")]
    if command == "edit":
        server = ["--lvlm", "qwen", "--lvlm-url", "http://127.0.0.1:9"]
        faults += [
            (["make it a cat", "--lvlm", "gpt-4o"], "needs a key"),
            (["make it a cat", "--lvlm", "local:./nowhere"], "no such folder"),
            (["make it a cat", *server, "--prompt-style", "no"], "no/style.toml"),
        ]
    for words, says in faults:
        message = refusal(command, source, *words, *out, "--dry-run")
        assert says in message and message == refusal(command, source, *words, *out)


def test_a_dry_run_times_on_request(clip: str, tiny_model: Path, capsys) -> None:
    words = ["edit", clip, *WORDS, "--model", str(tiny_model), "--steps", "2", "--dry-run"]
    assert main([*words, "--time"]) == 0
    assert TIMED in capsys.readouterr().out


def test_a_dry_run_of_a_batch(clip: str, tiny_model: Path, tmp_path: Path, capsys) -> None:
    prompts = {"source_prompt": WORDS[1], "target_prompt": WORDS[3]}
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    tasks = [
        {"video": clip, "name": "short", "steps": 2} | prompts,
        {"video": clip, "name": "long", "steps": 8} | prompts,
        {"video": str(tmp_path / "broken.mp4"), "name": "broken"} | prompts,
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    words = ["batch", str(tmp_path / "tasks.jsonl"), "-o", str(tmp_path / "many"), "--model", str(tiny_model)]
    assert main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 to do, 0 done, 1 that would fail" in printed and COUNTED in printed
    assert "broken: would fail: " in printed and not (tmp_path / "many").exists()
    assert main([*words, "--dry-run", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    short, long = (sum(figures["tasks"][name]["forwards"]) for name in ("short", "long"))
    assert short < long and figures["refusals"].keys() == {"broken"}


@pytest.mark.parametrize("behind", ["cat", "dog"])
def test_prompts_that_differ_behind_the_limit_are_refused(
    clip: str, tiny_model: Path, tmp_path: Path, behind: str, refusal
) -> None:
    """The tiny model reads 15 tokens and the end of a prompt."""
    same = " ".join(["a red ball on the floor"] * 3)
    words = ["--source-prompt", f"{same} fox", "--target-prompt", f"{same} {behind}", "--model", str(tiny_model)]
    for dry_run in ([], ["--dry-run"]):
        message = refusal("edit", clip, *words, "-o", str(tmp_path / "run"), *dry_run)
        assert "15 tokens" in message and "fox'" in message and f"{behind}'" in message
    assert list(tmp_path.iterdir()) == []
    words[1] = f"a blue cube {same} fox"  # now they differ where the model reads, too
    assert main(["edit", clip, *words, "--dry-run"]) == 0


# --- threads ----------------------------------------------------------------------------------------

SHOW = "import os, sys, v2edit; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("own", "policy"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, "None")],
    ids=["unset", "a policy", "a spin count"],
)
def test_idle_threads_sleep_unless_the_user_says_otherwise(own: dict[str, str], policy: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | own
    shown = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [policy, "False"]
