"""--strength: a dial of three words over a model's own defaults, or a number, which is alpha."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from v2edit import backbones
from v2edit.backbones import LoadedModel
from v2edit.backbones.families import BUILT_IN_DEFAULTS, FAMILIES, PUBLISHED_DEFAULTS, Defaults
from v2edit.batch.tasks import TaskDefaults, read_tasks
from v2edit.cli.app import main, parse
from v2edit.editing import EditConfig
from v2edit.editing.strength import STRENGTHS, noise_at
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_video, estimate_edit, preview_edit, resume_run
from v2edit.primitives.sample import write_sample
from v2edit.sampling import Schedule

OWN = {"alpha": 0.8, "beta": 0.1, "guidance": 3.0}


def flow_schedule(steps: int = 50, shift: float = 3.0) -> Schedule:
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return Schedule(1000 * sigmas[:-1], 1 - sigmas, sigmas)


# Each family's defaults, and those of a model of two experts.
DEFAULTS = {f"{one.name} {one.pipelines[0]}": one.defaults for one in FAMILIES}
DEFAULTS |= {"built in": BUILT_IN_DEFAULTS, "two experts": Defaults(4.0, 3.0, alpha=None, beta=None)}


@pytest.mark.parametrize("defaults", DEFAULTS.values(), ids=DEFAULTS)
def test_normal_is_the_defaults_and_the_words_are_in_order(defaults):
    schedule = flow_schedule()
    subtle, normal, strong = (EditConfig(strength=word).resolve(defaults, schedule) for word in STRENGTHS)
    assert normal == EditConfig().resolve(defaults, schedule)
    assert subtle.alpha < normal.alpha <= strong.alpha
    assert subtle.beta <= normal.beta < strong.beta < strong.alpha and subtle.beta < subtle.alpha
    assert subtle.guidance <= normal.guidance < strong.guidance
    if defaults.guidance_2 is not None:
        assert subtle.guidance_2 == normal.guidance_2 == defaults.guidance_2 < (strong.guidance_2 or 0)
    assert normal.strength == "normal" and strong.strength == "strong"


@pytest.mark.parametrize("word", STRENGTHS)
@pytest.mark.parametrize("defaults", [PUBLISHED_DEFAULTS, BUILT_IN_DEFAULTS, DEFAULTS["two experts"]], ids=str)
def test_what_is_given_goes_over_the_word(word, defaults):
    schedule = flow_schedule()
    for name, value in OWN.items():
        resolved = EditConfig(strength=word, **{name: value}).resolve(defaults, schedule)
        assert getattr(resolved, name) == value and resolved.beta < resolved.alpha
    given = EditConfig(strength=word, subtasks=3, **OWN).resolve(defaults, schedule)
    assert given == replace(EditConfig(subtasks=3, **OWN).resolve(defaults, schedule), strength=word)
    assert given.resolve(defaults, schedule) is given  # a word acts once, also where a run resumes


@pytest.mark.parametrize("word", STRENGTHS)
@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_the_controls_act_in_few_steps_too(word, steps):
    schedule = flow_schedule(steps)
    for defaults in (PUBLISHED_DEFAULTS, DEFAULTS["two experts"]):
        resolved = EditConfig(steps=steps, strength=word).resolve(defaults, schedule)
        assert any(resolved.beta < schedule.share(k) <= resolved.alpha for k in range(steps))


def test_the_words_shift_the_noise_alike_on_every_schedule():
    """The share of the steps differs with a schedule's shift, the noise where an edit starts and ends does not."""
    for word, dial in STRENGTHS.items():
        noises = []
        for shift in (1.0, 3.0, 8.0):
            schedule = flow_schedule(400, shift)
            resolved = EditConfig(strength=word).resolve(Defaults(5.0, alpha=None, beta=None), schedule)
            noises.append([noise_at(schedule, resolved.alpha), noise_at(schedule, resolved.beta)])
        assert (torch.tensor(noises).amax(0) - torch.tensor(noises).amin(0)).max() < 0.02, (word, dial)


@pytest.mark.parametrize("number", [0.6, 1, "0.6"])
def test_a_number_is_alpha(number):
    assert EditConfig(strength=number) == EditConfig(alpha=float(number))
    assert EditConfig(strength=number, alpha=float(number)).alpha == float(number)
    with pytest.raises(UserError, match=r"--strength is .* give one"):
        EditConfig(strength=number, alpha=0.3)


def test_the_command_line_takes_words_and_numbers(capsys):
    for text, config in {
        "strong": EditConfig(strength="strong"), "0.6": EditConfig(alpha=0.6), "normal": EditConfig(),
    }.items():  # fmt: skip
        assert parse(["edit", "clip.mp4", "make it red", "--strength", text]).options["job"].config == config
    for text in ("stronk", "nan", "-1"):
        assert main(["edit", "clip.mp4", "make it red", f"--strength={text}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("v2edit: error: --strength is") and error.count("\n") == 1
        assert ("subtle, normal, strong" in error) == (text == "stronk")


def test_a_batch_has_a_strength_for_each_line(tmp_path):
    (tmp_path / "a.mp4").touch()
    lines = [{}, {"strength": "subtle"}, {"strength": 0.5}, {"strength": "strong", "alpha": 0.7}]
    rows = [json.dumps({"video": "a.mp4", "instruction": "make the ball blue"} | line) for line in lines]
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    tasks = read_tasks(tmp_path / "tasks.jsonl", TaskDefaults(EditConfig(strength="strong", alpha=0.9)))
    assert [(task.config.strength, task.config.alpha) for task in tasks] == [
        ("strong", 0.9), ("subtle", 0.9), ("normal", 0.5), ("strong", 0.7),
    ]  # fmt: skip
    (tmp_path / "tasks.jsonl").write_text(rows[1].replace("subtle", "softly"))
    with pytest.raises(UserError, match="subtle, normal, strong"):
        read_tasks(tmp_path / "tasks.jsonl")


def test_a_run_records_the_word_and_what_it_became_and_resumes_with_it(tiny_model, tmp_path):
    write_sample(7, tmp_path, "recolour", frames=5, size=32)
    instruction = json.loads((tmp_path / "clip.json").read_text())["instruction"]
    options = {"video": tmp_path / "clip.mp4", "instruction": instruction, "steps": 4, "strength": "strong"}
    plan = {word: preview_edit(**options | {"strength": word}) for word in STRENGTHS}
    assert plan["subtle"].steps < plan["normal"].steps == plan["strong"].steps
    assert plan["strong"].forwards < plan["normal"].forwards  # the edit alone has fewer rows
    assert estimate_edit(**options).forwards == plan["strong"].forwards
    options["model"] = str(tiny_model)
    loaded = LoadedModel(backbones.find(str(tiny_model)), backbones.load(str(tiny_model)))

    def stop(progress: Any) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    options |= {"save_every": 1, "show_progress": False, "loaded": loaded}
    with pytest.raises(KeyboardInterrupt):
        edit_video(**options, out=tmp_path / "stopped", on_progress=stop)
    resumed = resume_run(tmp_path / "stopped", show_progress=False, loaded=loaded).folder
    config = json.loads((resumed / "run.json").read_text())["config"]
    assert config["strength"] == "strong" and 0 < config["beta"] < config["alpha"] and config["guidance"] > 2
    own = {name: config[name] for name in ("alpha", "beta", "guidance")}
    plain = edit_video(**options | {"strength": "normal"} | own, out=tmp_path / "plain").folder
    assert (resumed / "edited.mp4").read_bytes() == (plain / "edited.mp4").read_bytes()
