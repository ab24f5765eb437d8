"""What a newcomer types wrongly, and the line that answers it: options, inputs, models, instructions."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.world import BALL

from v2edit.backbones import families
from v2edit.cli.app import main, parse
from v2edit.cli.foreign_options import FOREIGN_OPTIONS, suggest_option

pytest_plugins = ["support.mistakes"]  # its fixtures
ROOT = Path(__file__).parents[1]
WORDS = ["--source-prompt", "a red ball on the floor", "--target-prompt", "a blue cube on the floor"]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("v2edit.backbones.hub._fetch_index", fetch)


# --- options ----------------------------------------------------------------------------------------

WRONG = {
    "--strenght 0.5": "no option --strenght; did you mean --strength?",
    "--gaussian 5": "v2edit edit --help",  # an option of v2edit scene, like --gaussians
    "--guidence=3": "did you mean --guidance?",
    "--steps": "--steps is given without a value",
    "--steps ten": "--steps is 'ten', expected a whole number",
    "--steps=1.5": "--steps is '1.5', expected a whole number",
    "--guidance high": "--guidance is 'high', expected a number",
    "--solver euler": "--solver is 'euler', expected one of auto, ddim, ddpm, dpm-ode, dpm-sde",
    "--dtype fp16": "did you mean float16?",
    "--offload sequential": "did you mean group?",
    "--quantize 8bit": "did you mean int8?",
    "--attention sdpa": "did you mean torch?",
    "--timed": "--timed is for a dry run: add --dry-run",
    "-o edited.mp4": "try -o edited",
    "--out splat.PLY": "expected a folder",
    "--inc maybe": "--inc takes no value; 'maybe' is too much",
    "--no-pnc=1": "--no-pnc=1: this option takes no value",
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
    "--frames": "--start and --end say which part",
    "--lora-scale 0.5": "did you mean --lora?",
    "--lora style.bin": "--lora style.bin is a pickle",
    "--resume": "v2edit resume RUN continues",
    "--prompt blue": "an instruction goes behind the input",  # which it has already
    "-o ''": "-o is '', expected FOLDER",
    "--output=": "--output is '', expected FOLDER",
}


@pytest.mark.parametrize(("words", "says"), WRONG.items(), ids=WRONG)
def test_a_wrong_option_is_one_line(clip: str, words: str, says: str, refusal) -> None:
    assert says in refusal("edit", clip, "make it red", *shlex.split(words))


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
        ("edit", "--framerate"): "--fps?",
        ("scene", "--fps"): "only v2edit edit and batch", ("edit", "--codec"): "--format?",
        ("edit", "--input"): "the input goes first",
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


# --- inputs -----------------------------------------------------------------------------------------

INPUTS = {
    "edit 'make the ball red' {clip}": 'the video goes first, then the instruction: {clip} "make the ball red"',
    "prompts 'make the ball red' nowhere.mp4": "the video goes first, then the instruction: nowhere.mp4",
    "scene 'make the ball red' {splat}": "the scene goes first, then the instruction: {splat}",
    "edit make the ball red {clip}": 'v2edit edit {clip} "make the ball red"',
    "edit {named} make the ball red": "v2edit edit '{named}' \"make the ball red\"",
    "edit {named} 'make the ball red'": "v2edit edit '{named}' \"make the ball red\"",
    "edit {clip} make the ball red --steps 3": 'put quotes round it, "make the ball red"',
    "edit --input {clip} 'make it red' --steps 3": 'without options: v2edit edit {clip} "make it red" --steps 3',
    "prompts --video={clip} --instruction='make it red'": 'v2edit prompts {clip} "make it red"',
    "scene -p 'make it red' -i {splat}": 'v2edit scene {splat} "make it red"',
    "edit {clip} --dry-run --prompt 'make it $1'": "v2edit edit {clip} 'make it $1' --dry-run",
    "edit --init-video '{named}'": "v2edit edit '{named}'",
    "edit --input": "the input goes first, without an option",
    "view --run runs/a": "the input goes first, without an option",
    "edit '' 'make it red'": "VIDEO is empty",
    "edit {clip} 'make it red' {clip}": "takes one input and one instruction: '{clip}' is too much",
    "edit {clip} 'make it red' gone.mp4 --steps 3": "takes one input and one instruction: 'gone.mp4' is too much",
    "edit {splat} 'make the ball red'": "is a scene: v2edit scene edits it",
    "edit {posed} 'make the ball red'": "is a scene: v2edit scene edits it",
    "edit {videos} 'make the ball red'": "is a folder with videos in it: name the one to edit (my clip.mp4)",
    "scene {clip} 'make the ball red'": "It is not of the built-in model's world",
    "scene {images} 'make the ball red'": "has 0 pictures (1.png, 2.png left out, damaged)",
    "scene {splat} 'make the ball red'": "It has no photographs, and its renders are not of the built-in model's world",
    "edit https://example.com/clip.mp4 'make it red'": "nothing is fetched from an address: download it first",
    "edit '{long}' --steps 3": "no such file: make the ball red",
    "edit '{long}' {clip}": "the video goes first",
    "{clip} 'make the ball red'": "a command goes first: v2edit edit {clip}",
    "batch": "needs TASKS.jsonl: the file of tasks",
    "sample": "needs -o FOLDER: the folder to make",
    "--foo": "v2edit has no option --foo",
    "bench --seeds some": "expected one of reporting, tuning",
    "eval {tmp}": "runs are in it: give them, such as {tmp}/run",
    "eval {tmp}/run --csv {tmp}/no/figures.csv": "there is no folder {tmp}/no",  # before anything is measured
    "prompts {clip} 'make it red' -o {tmp}/no/prompts.json": "there is no folder {tmp}/no",
}


@pytest.mark.parametrize(("line", "says"), INPUTS.items(), ids=INPUTS)
def test_a_wrong_input_is_answered_by_what_it_is(
    clip: str, splat: str, tmp_path: Path, line: str, says: str, refusal
) -> None:
    places = {
        "clip": clip,
        "splat": splat,
        "named": tmp_path / "videos" / "my clip.mp4",
        "long": "make the ball red " * 99,
        "tmp": tmp_path,
    }
    for folder in ("videos", "images", "posed", "run"):
        (tmp_path / folder).mkdir()
        places[folder] = tmp_path / folder
    shutil.copy(clip, tmp_path / "videos" / "my clip.mp4")
    for name in ("images/1.png", "images/2.png", "posed/transforms.json", "run/run.json"):
        (tmp_path / name).touch()
    assert says.format(**places) in refusal(*shlex.split(line.format(**places)))


# --- models and instructions ------------------------------------------------------------------------

FAMILIES = {
    "Lightricks/LTX-2": "an LTX-2 model",
}
UNSUITABLE = {
    "zai-org/CogVideoX-5b-I2V": "an image-to-video CogVideoX",
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": "a Wan model that wants pictures",
    "hunyuanvideo-community/HunyuanVideo-I2V": "a HunyuanVideo model that wants pictures",
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


@pytest.mark.parametrize(
    "model",
    ["zai-org/CogVideoX-2b", "someone/wanderer-video", "me/cogvideox-wan-style", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"],
)
def test_other_names_are_looked_up(clip: str, model: str, no_network: None) -> None:
    with pytest.raises(AssertionError, match="the hub was asked"):
        main(["edit", clip, *WORDS, "--model", model])


def test_no_known_model_is_refused_by_its_name() -> None:
    examples = {family.example for family in families.FAMILIES}
    owners = "|".join(sorted({example.split("/")[0] for example in examples}))
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {found for page in pages for found in re.findall(rf"\b(?:{owners})/[\w.-]*\w", page.read_text())}
    for model in examples | named | {"Wan-AI/Wan2.2-TI2V-5B-Diffusers"}:
        assert families.describe_foreign(model) is None, model
    assert families.describe_foreign("someone/Wan2.2-TI2V-I2V")


# More of these in test_grammar.py.
MEANT = {
    "make the red bal blue": "did you mean 'make the red ball blue'?",
    "make the cubee green": "does not know 'cubee': the source shows a big red ball",  # a cube there is not
    "please could you make the bal blue": "did you mean 'please could you make the ball blue'?",
    "a sunset": "try: make the sky golden",
    "make it a nice sunny day": "does not understand",  # the sky is blue already
    "\U0001f534": "no words that the built-in grammar reads",
    "haz la pelota roja": "it understands plain English",
    "make the red ball blue and the box green": "nothing that fits 'the box': it shows a big red ball",
    "make the ball nicer " + "and nicer " * 200: "…': it adds",
}


@pytest.mark.parametrize(("instruction", "says"), MEANT.items(), ids=lambda text: text[:30])
def test_what_was_meant_is_proposed_where_the_source_has_it(clip: str, instruction: str, says: str, refusal) -> None:
    message = refusal("prompts", clip, instruction, "--source-prompt", BALL)
    assert says in message
    proposal = re.search(r"did you mean '(.*?)'|try: ([\w ]+)", message)
    assert bool(proposal) == bool(re.search("did you mean|try: ", says))
    assert not proposal or main(["prompts", clip, proposal[1] or proposal[2], "--source-prompt", BALL]) == 0


@pytest.mark.parametrize("command", ["edit", "scene", "prompts"])
def test_who_writes_the_prompts_is_said(clip: str, splat: str, command: str, refusal) -> None:
    message = refusal(
        command,
        splat if command == "scene" else clip,
        "make the surfer a polar bear",
        "--model",
        "zai-org/CogVideoX-5b",
    )
    assert "--lvlm" in message and "--source-prompt" in message and "--target-prompt" in message
