"""The time left of an edit: it counts the stages that are timed, names the others, and is never 0 before the end."""

from __future__ import annotations

import pytest
from support.clock import set_clock

from v2edit.cli.output import OutputOptions, reporter_for
from v2edit.editing.editor import Progress
from v2edit.jobs.time_left import TimeLeft

SECONDS = {"encoding": 0.01, "editing": 0.02, "decoding": 0.03, "carrying": 0.04, "writing": 0.05}  # of a frame


def run(clock: TimeLeft, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Progress, float]]:
    """Play an edit whose frames take `SECONDS`; return what was reported, each with the seconds it really had left."""
    now, reported = 0.0, []
    set_clock(monkeypatch, "v2edit.jobs.time_left", lambda: now)
    on_progress = clock.reporting(lambda one: reported.append((one, now)))

    def stage(name: str, subtask: int, count: int, frames: float, first: int = 0, **shot: int) -> None:
        nonlocal now
        for step in range(first, count + 1):
            now += SECONDS[name] * frames if step else 0
            on_progress(Progress(subtask, clock.subtasks, step, count, stage=name, **shot))

    for k, given in enumerate(clock.given):
        shot = {"shot": 2 * k + 1, "shot_number": k + 1, "shots": len(clock.given)}
        stage("encoding", 1, 1, given, **shot)
        for subtask in range(1, clock.subtasks + 1):
            stage("editing", subtask, clock.steps, given, 1, **shot)
            stage("decoding", subtask, 1, given, **shot)
        if clock.carried[k]:
            stage("carrying", clock.subtasks, clock.carried[k], 1, **shot)
    stage("writing", clock.subtasks, clock.written, 1)
    return [(one, now - at) for one, at in reported]


@pytest.mark.parametrize("subtasks", [1, 2])
def test_the_time_left_is_that_of_all_stages_once_each_is_timed(subtasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = TimeLeft([64, 128, 96], [192 * subtasks, 0, 288 * subtasks], 3, subtasks, 960)
    reported = run(clock, monkeypatch)
    assert {one.stage for one, _ in reported} == set(SECONDS)
    for one, left in reported:
        if one.seconds_left is not None:
            assert one.seconds_left < left if one.then else one.seconds_left == pytest.approx(left)
    assert reported[-1][0].seconds_left == 0 and sum(not one.then for one, _ in reported) >= 960


def test_of_a_short_clip_the_steps_alone_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = [one for one, _ in run(TimeLeft([9], [0], 4, 2, 9), monkeypatch)]
    assert [(one.stage, one.then) for one in reported] == [("editing", ())] * 8
    assert reported[0].seconds_left is None and reported[-1].seconds_left == 0
    assert reported[1].seconds_left == pytest.approx(6 * 9 * SECONDS["editing"])


def test_a_line_names_the_shot_and_what_is_to_come(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = reporter_for(OutputOptions())
    reporter.on_edit(Progress(1, 1, 1, 3, None, shot=5, shot_number=3, shots=3, seconds_left=12.2, then=("writing",)))
    reporter.on_edit(Progress(1, 1, 3, 3, None, shot=5, shot_number=3, shots=3, then=("writing",)))
    reporter.on_edit(Progress(1, 1, 0, 64, stage="decoding", shot=5, shot_number=3, shots=3, seconds_left=0.3))
    assert capsys.readouterr().err.splitlines() == [
        "shot 5 (3 of 3), subtask 1/1, step 1/3, 12 s left beside writing",
        "shot 5 (3 of 3), subtask 1/1, step 3/3, writing to come",
        "shot 5 (3 of 3), decoding, frame 0/64, less than 1 s left",
    ]
