"""Where an edit's prompts come from, and that one default is one default."""

import inspect
import json
from pathlib import Path

import pytest

from v2edit import backbones
from v2edit.api import edit_video, resolve_prompts
from v2edit.errors import UserError
from v2edit.prompts import PromptPair

BALL = "a big red ball in the middle stays still on a gray floor under a blue sky, the camera is still."


@pytest.fixture
def video(tmp_path: Path) -> Path:
    (tmp_path / "clip.json").write_text(json.dumps({"source_prompt": BALL}))
    return tmp_path / "clip.mp4"


def test_the_instruction_changes_the_prompt_beside_the_video(video: Path) -> None:
    pair = resolve_prompts(video, "make the ball blue", None, None, builtin=True)
    assert pair == PromptPair(BALL, BALL.replace("red", "blue"))


def test_what_the_user_says_comes_first(video: Path) -> None:
    given = resolve_prompts(video, "make the ball blue", "a cat", "a dog", builtin=True)
    assert given == PromptPair("a cat", "a dog")
    assert resolve_prompts(video, None, None, "a dog", builtin=False) == PromptPair(BALL, "a dog")


@pytest.mark.parametrize("builtin", [True, False])
def test_a_prompt_of_another_world_needs_its_target(video: Path, builtin: bool) -> None:
    with pytest.raises(UserError) as told:
        resolve_prompts(video, "make it a dog", "a cat sleeps", None, builtin)
    assert ("--target-prompt" in str(told.value)) is not builtin


def test_a_broken_file_beside_the_video(video: Path) -> None:
    for text in ("{", "[]", '{"source_prompt": 3}'):
        video.with_suffix(".json").write_text(text)
        with pytest.raises(UserError, match="--source-prompt"):
            resolve_prompts(video, "make the ball blue", None, None, builtin=True)


def test_defaults_are_those_of_loading() -> None:
    own = inspect.signature(edit_video).parameters
    for name, parameter in inspect.signature(backbones.load).parameters.items():
        assert own[name].default == parameter.default, name
