"""What a newcomer types in the first hour, and what the program answers: names of options, help, dry runs, threads."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.world import BALL, FOREIGN
from test_docs import README, commands

from v2edit.cli.app import COMMANDS, main, parse
from v2edit.jobs.estimate import COUNTED, TIMED

pytest_plugins = ["support.mistakes"]  # its fixtures
WORDS = ["--source-prompt", "a red ball on the floor", "--target-prompt", "a blue cube on the floor"]


def test_readme_gives_an_instruction_or_prompts() -> None:
    for words in commands(README):
        if words[0] in ("edit", "scene"):
            job = parse(words).options["job"]
            assert (job.instruction is None) == (job.prompt_options.target_prompt is not None), words


# --- options ----------------------------------------------------------------------------------------


def test_names_of_diffusers_are_other_names_of_options() -> None:
    theirs = ["--strength", "0.6", "--guidance-scale", "3", "--num-inference-steps", "8", "--output", "run"]
    ours = ["--alpha", "0.6", "--guidance", "3", "--steps", "8", "--out", "run"]
    for command in ("edit", "scene"):
        jobs = [parse([command, "clip.mp4", "make it red", *words]).options["job"] for words in (theirs, ours)]
        assert jobs[0] == jobs[1] and jobs[0].config.alpha == 0.6 and jobs[0].run_options.out == Path("run")
    assert parse(["edit", "clip.mp4", "x", "--cfg", "3"]) == parse(["edit", "clip.mp4", "x", "--guidance", "3"])


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
    words = ["--source-prompt", FOREIGN.source, "--target-prompt", FOREIGN.target]
    assert main(["edit", clip, *words, "--dry-run", "--json"]) == 0
    *_, note, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert "knows only its own world" in note["message"] and "256x192 is edited at" in note["message"]
    assert result["method"] == COUNTED and set(result["seconds"]) == {"computing"} and result["flops"] > 1e9
    assert "equal" not in note["message"] and list(tmp_path.iterdir()) == []
    assert main(["edit", clip, "--source-prompt", BALL, "--target-prompt", BALL, "--dry-run"]) == 0
    assert "the prompts are equal" in capsys.readouterr().err


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
    assert main([*words, "--timed"]) == 0
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
