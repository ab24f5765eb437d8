"""The LVLM score over real HTTP: what is shown, how answers are read, kept and averaged."""

import re
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
from support.judges import SHADES, SOURCE, VIDEOS, labelled_videos, score_by_shade
from support.servers import Request, completion, http_error, serve

from v2edit.errors import UserError
from v2edit.metrics.lvlm_score import ASPECTS, JudgeConfig, Score, estimate_cost, judge, make_queries


def setting(url: str, **changes: object) -> JudgeConfig:
    return JudgeConfig(model="m", url=url, **{"queries": 6, "frames": 3} | changes)


def judged(url: str, cache: Path, **changes: object) -> dict[str, dict[str, Score]]:
    config = setting(url, **changes)
    with config.open() as chat:
        return judge(make_queries(VIDEOS, SOURCE, "make it bright", config, cache, chat.identify()), chat)


def test_all_methods_side_by_side_frame_by_frame_in_shuffled_order(tmp_path: Path) -> None:
    with serve(score_by_shade, endless=True) as server:
        scores = judged(server.url, tmp_path)
    assert len(server.requests) == 6
    orders = []
    for request in server.requests:
        frames = labelled_videos(request)
        assert len(frames) == 3 and all(frame == frames[0] for frame in frames)
        assert frames[0].pop("Original") == "source"
        assert sorted(frames[0].values()) == sorted(VIDEOS)
        orders.append(tuple(frames[0].values()))
        assert "make it bright" in request.last_text
        assert not re.search("ours|theirs|nothing:", request.text)  # no method is named
        assert len(request.messages) == 2  # each query stands alone
    assert len(set(orders)) > 2
    # Wherever a method stood, its scores are its own.
    for name in VIDEOS:
        assert scores[name] == dict.fromkeys((*ASPECTS, "overall"), Score(SHADES[name] // 3, 0.0))


def test_mean_and_spread_over_the_queries(tmp_path: Path) -> None:
    jitters = [0, 3, -2, 7, 1, 1]
    script = [lambda request, j=j: score_by_shade(request, j) for j in jitters]
    with serve(*script) as server:
        scores = judged(server.url, tmp_path)
    values = [SHADES["ours"] // 3 + j for j in jitters]
    assert scores["ours"]["quality"] == Score(fmean(values), stdev(values)) == scores["ours"]["overall"]


def test_overall_is_the_mean_of_the_aspects_of_each_query(tmp_path: Path) -> None:
    answers = [
        {"quality": 10, "preservation": 20, "fulfilment": 90},
        {"quality": 70, "preservation": 50, "fulfilment": 30},
    ]
    with serve(*(completion(dict.fromkeys("ABC", answer)) for answer in answers)) as server:
        scores = judged(server.url, tmp_path, queries=2)
    assert scores["ours"]["overall"] == Score(45.0, stdev([40, 50]))
    assert scores["ours"]["quality"] == Score(40.0, stdev([10, 70]))


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    broke = http_error(400, "out of money")
    with serve(score_by_shade, score_by_shade, broke, score_by_shade, endless=True) as server:
        with pytest.raises(UserError, match="out of money"):
            judged(server.url, tmp_path)
        config = setting(server.url)
        with config.open() as chat:
            queries = make_queries(VIDEOS, SOURCE, "make it bright", config, tmp_path, chat.identify())
        assert (estimate_cost(queries).queries, estimate_cost(queries).of_queries) == (4, 6)
        next(iter(tmp_path.glob("*.json"))).write_text('{"scores": {"A"')  # half a file, as after a power cut
        asked = len(server.requests)
        first = judged(server.url, tmp_path)
        assert len(server.requests) == asked + 5
        assert judged(server.url, tmp_path) == first
        assert len(server.requests) == asked + 5
        assert judged(server.url, tmp_path, queries=7) == first  # one more
        assert len(server.requests) == asked + 6
        judged(server.url, tmp_path, seed=1)  # other orders are other questions
        assert len(server.requests) > asked + 6
    assert all(path.suffix == ".json" for path in tmp_path.iterdir())  # nothing half-written


def test_each_judge_has_its_own_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever name it is asked for by: another model behind the address, another address, or nobody at all."""
    with serve(score_by_shade, lambda request: score_by_shade(request, 9), endless=True) as server:
        server.models = ["first.gguf"]
        first = judged(server.url, tmp_path, queries=1)
        assert judged(server.url, tmp_path, queries=1) == first and len(server.requests) == 1
        server.models = ["second.gguf"]
        assert judged(server.url, tmp_path, queries=1) != first and len(server.requests) == 2
        server.models = ["first.gguf"]
        assert judged(server.url, tmp_path, queries=1) == first and len(server.requests) == 2
        with serve(score_by_shade) as other:
            other.models = server.models
            judged(other.url, tmp_path, queries=1)
            assert len(other.requests) == 1
    monkeypatch.setattr("v2edit.prompts.endpoint.FIRST_PAUSE", 0.01)
    with pytest.raises(UserError, match="cannot reach"):
        judged(server.url, tmp_path, queries=1)


def test_a_server_without_a_list_says_who_answers(tmp_path: Path) -> None:
    replies = [completion("Hi", model=name) for name in ("small", "small", "large")]
    with serve(replies[0], score_by_shade, *replies[1:], score_by_shade) as server:
        server.models = []
        for _ in range(3):
            judged(server.url, tmp_path, queries=1)
    assert [len(request.messages) for request in server.requests] == [1, 2, 1, 1, 2]


def test_another_video_is_another_question(tmp_path: Path) -> None:
    config = setting("http://127.0.0.1:9/v1")
    names = set()
    brighter = {**VIDEOS, "ours": VIDEOS["ours"] + 9}
    for videos, source, instruction, model in (
        (VIDEOS, SOURCE, "a", "m"),
        (brighter, SOURCE, "a", "m"),
        (VIDEOS, SOURCE + 9, "a", "m"),
        (VIDEOS, SOURCE, "b", "m"),
        (VIDEOS, SOURCE, "a", "n"),
    ):
        config = JudgeConfig(model=model, queries=3, frames=3)
        names |= {query.path.name for query in make_queries(videos, source, instruction, config, tmp_path, "one")}
    assert len(names) == 15


def test_the_cost_is_known_before_anything_is_asked(tmp_path: Path) -> None:
    queries = make_queries(
        VIDEOS, SOURCE, "make it bright", setting("http://127.0.0.1:9/v1", queries=20), tmp_path, "one"
    )
    cost = estimate_cost(queries)
    assert (cost.queries, cost.pictures) == (20, 3 * 4)
    sent = sum(len(part.data_url) for part in queries[0].messages[1].parts if not isinstance(part, str))
    assert cost.megabytes == pytest.approx(sent / 1e6)
    assert cost.tokens > 12 * 255 and f"{20 * cost.tokens:,} tokens" in str(cost)
    assert list(tmp_path.iterdir()) == []


FULL = {letter: dict.fromkeys(ASPECTS, 50) for letter in "ABC"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"A": FULL["A"], "B": FULL["B"]},
        {**FULL, "C": {"quality": 1, "preservation": 2}},
        {**FULL, "C": dict.fromkeys(ASPECTS, 0)},
        {**FULL, "C": dict.fromkeys(ASPECTS, 101)},
        {**FULL, "C": dict.fromkeys(ASPECTS, "good")},
        {**FULL, "C": dict.fromkeys(ASPECTS, True)},
        {**FULL, "C": 50},
    ],
    ids=str,
)
def test_scores_that_are_none_are_asked_for_again(tmp_path: Path, wrong: dict) -> None:
    with serve(completion(wrong), completion(FULL)) as server:
        judged(server.url, tmp_path, queries=1)
    assert "video C has no" in server.requests[1].last_text
    with serve(completion(wrong), endless=True) as server, pytest.raises(UserError, match="video C has no"):
        judged(server.url, tmp_path / "other", queries=1)
    assert list((tmp_path / "other").iterdir()) == []


def test_videos_that_cannot_be_compared(tmp_path: Path) -> None:
    config = setting("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="ours has 4 frames and the source 20"):
        make_queries({"ours": SOURCE[:4]}, SOURCE, "x", config, tmp_path, "one")
    for count in (0, 27):
        with pytest.raises(UserError, match=f"{count} videos"):
            make_queries({str(k): SOURCE for k in range(count)}, SOURCE, "x", config, tmp_path, "one")


@pytest.mark.parametrize(
    ("settings", "says_so"),
    [
        ({"queries": 0}, "--judge-queries is 0"),
        ({"frames": 0}, "--judge-frames"),
        ({"timeout": 0}, "--judge-timeout"),
        ({"rate": 0}, "--judge-rate"),
        ({"rate": float("nan")}, "--judge-rate"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict, says_so: str) -> None:
    with pytest.raises(UserError, match=says_so):
        JudgeConfig(model="m", **settings)


def test_queries_keep_to_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a pause, in which none are saved up."""
    now, asked = [100.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr("v2edit.prompts.chat.time", clock)

    def answer(request: Request) -> Any:
        asked.append(now[0])
        now[0] += 50 if len(asked) == 3 else 1
        return score_by_shade(request)

    with serve(answer, endless=True) as server:
        judged(server.url, tmp_path, rate=6)
    assert asked == [100, 110, 120, 170, 180, 190]


def test_the_queries_are_the_same_in_every_run(tmp_path: Path) -> None:
    """However the videos come."""
    config = setting("http://127.0.0.1:9/v1")
    one, two = (make_queries(v, SOURCE, "x", config, tmp_path, "one") for v in (VIDEOS, dict(reversed(VIDEOS.items()))))
    assert [(q.order, q.path) for q in one] == [(q.order, q.path) for q in two]
