"""`v2edit prompts`, and `v2edit edit` with prompts from a language model or a file, as users meet them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.models import pipeline_of
from support.processes import run_python
from support.servers import Reply, Request, completion, http_error, serve
from support.world import write_easy_sample

from v2edit import backbones, video
from v2edit.backbones.families import Defaults
from v2edit.cli.app import main
from v2edit.editing import EditConfig
from v2edit.editing.cost import count_forwards
from v2edit.errors import UserError
from v2edit.jobs.functions import edit_video, preview_edit
from v2edit.prompts import PromptPair, read_prompts
from v2edit.prompts.lvlm import LVLMConfig

PAIR = {"source": "a red ball on the floor", "target": "a blue cube on the floor"}
BETWEEN = ["a red cube on the floor"]
KEY, PASSWORD, QUERY = "sk-test-0123456789abcdef", "hunter2secret", "query-secret-1"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("V2EDIT_LVLM_KEY", KEY)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline_of("5b").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "clip.mp4"
    video.write(np.zeros((9, 32, 32, 3), np.uint8), path, fps=8)
    return str(path)


def test_prompts_by_hand_are_shown_with_what_they_share_and_what_they_cost(
    clip: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--source-prompt", PAIR["source"], "--target-prompt", PAIR["target"], "--model", model]
    out = tmp_path / "pair.json"
    assert main(["prompts", clip, *words, "--subtasks", "2", "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    source, target, diff, summary, plan, saved = printed.out.splitlines()
    assert source.split(maxsplit=1) == ["source", PAIR["source"]]
    assert target.split(maxsplit=1) == ["target", PAIR["target"]]
    assert diff.strip() == "diff  a [-red ball-] {+blue cube+} on the floor"
    assert "4 tokens shared (67%), 2 changed, 0 added, 0 removed; 6 and 6 of at most 15" in summary
    assert "2 subtasks of 45 denoising steps (of 50): 130 + 170 forwards" in plan
    assert saved.split() == ["saved", str(out)]
    assert json.loads(out.read_text())["prompts"] == {**PAIR, "intermediate": []}
    assert main(["prompts", clip, *words, "-o", str(out)]) == 2
    assert "exists; choose another -o" in capsys.readouterr().err


@pytest.mark.parametrize("colour", [True, False])
def test_colour_where_there_is_some(clip, model, colour, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR" if colour else "NO_COLOR", "1")
    assert (
        main(["prompts", clip, "--source-prompt", "a [bold] ball", "--target-prompt", "a blue ball", "--model", model])
        == 0
    )
    out = capsys.readouterr().out
    assert ("\x1b[" in out) is colour and ("[-" in out) is not colour
    assert "[bold]" in out  # nobody's text is taken for markup


def test_no_weights_are_read(clip: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model whose weights are none, the prompts can be seen all the same."""
    fake = Path(shutil.copytree(model, tmp_path / "fake_model"))
    for path in fake.rglob("*.safetensors"):
        path.write_bytes(b"no weights")
    words = [clip, "--source-prompt", PAIR["source"], "--target-prompt", PAIR["target"], "--model", str(fake)]
    assert main(["prompts", *words]) == 0
    assert main(["edit", *words, "-o", str(tmp_path / "run")]) == 2
    assert "they were cut off" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_the_outline_is_that_of_the_model(variant, tmp_path: Path) -> None:
    pipeline_of(variant).save_pretrained(tmp_path)
    checkpoint = backbones.find(str(tmp_path))
    info, whole = backbones.read_info(checkpoint), backbones.load(checkpoint, device="cpu")
    assert checkpoint.prompt_style == "cogvideox" and backbones.find().prompt_style == "primitives"
    assert (info.tokenizer.max_length, info.tokenizer.pad_id) == (whole.text_length, whole.pad_id)
    assert info.defaults == whole.defaults == Defaults(guidance=7, beta=0.5)
    built_in = backbones.find()
    assert backbones.read_info(built_in).defaults == backbones.load(built_in).defaults != whole.defaults
    for text, encoded in zip(PAIR.values(), whole.encode_text(list(PAIR.values())), strict=True):
        assert info.tokenizer.encode(text) == encoded.ids
    one, other = info.schedule(7), whole.schedule(7)
    assert one.timesteps.equal(other.timesteps) and one.a.equal(other.a) and one.s.equal(other.s)


@pytest.mark.parametrize(
    ("changes", "guidance", "expected"),
    [
        ({}, 7.0, [130]),
        ({"subtasks": 3}, 7.0, [130, 170, 170]),
        ({"subtasks": 2, "mixture": 0.0}, 7.0, [130, 130]),
        ({"subtasks": 2, "mixture": 1.0}, 7.0, [130, 130]),
        ({"pnc": False, "amr": False}, 7.0, [90]),
        ({"pnc": False}, 7.0, [130]),
        ({"inc": False}, 7.0, [150]),
        ({}, 1.0, [65]),
        ({"source_guidance": 4.0}, 1.0, [85]),
        ({"source_guidance": 1.0}, 7.0, [110]),
        ({"source_guidance": 1.0, "amr_unconditional": True}, 7.0, [130]),
        ({"source_guidance": 1.0, "subtasks": 2}, 7.0, [110, 130]),
    ],
)
def test_the_cost_is_what_the_editor_counts(changes, guidance, expected) -> None:
    """The same figures as in tests/test_editor.py, where they are counted at the network."""
    schedule = backbones.read_info(backbones.find()).schedule(50)
    assert count_forwards(schedule, EditConfig(**changes).resolve(Defaults(guidance), schedule)) == expected


# --- a language model -----------------------------------------------------------------------------


def test_an_edit_whose_prompts_a_language_model_writes(
    clip: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "--steps", "2"]
    with serve(completion({**PAIR, "intermediate": BETWEEN})) as server:
        url = server.url.replace("://", f"://someone:{PASSWORD}@") + f"?api-key={QUERY}"
        lvlm = ["--lvlm", "gpt-x", "--lvlm-url", url, "--lvlm-progression"]
        assert main(["edit", clip, "turn it into a blue cube", *words, *lvlm, "-o", str(tmp_path / "run")]) == 0
        facts = json.loads((tmp_path / "run" / "run.json").read_text())
        url = server.url
    assert facts["prompts"] == {**PAIR, "intermediate": BETWEEN} and facts["config"]["subtasks"] == 2
    assert facts["lvlm"] == {"model": "gpt-x", "url": url, "style": "cogvideox", "frames": 8, "progression": True}
    assert (tmp_path / "run" / "subtask-1.mp4").is_file()
    printed = capsys.readouterr()
    everything = printed.out + printed.err + "".join(
        path.read_bytes().decode("latin-1") for path in (tmp_path / "run").iterdir()
    )  # fmt: skip
    for secret in (KEY, PASSWORD, QUERY):
        assert secret not in everything
    # The run's own manifest serves as --prompts: the same edit again, without the language model.
    manifest = str(tmp_path / "run" / "run.json")
    assert main(["edit", clip, "--prompts", manifest, *words, "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "edited.mp4").read_bytes() == (tmp_path / "run" / "edited.mp4").read_bytes()
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert again["prompts"] == facts["prompts"] and again["instruction"] == "turn it into a blue cube"


@pytest.mark.parametrize("place", ["option", "file"])
def test_a_known_source_prompt_is_kept_beside_a_language_model(
    clip: str, model: str, tmp_path: Path, place: str
) -> None:
    words = ["--source-prompt", PAIR["source"]] if place == "option" else []
    if place == "file":
        Path(clip).with_suffix(".json").write_text(json.dumps({"source_prompt": PAIR["source"]}))
    out = tmp_path / "pair.json"
    with serve(completion({"source": "a grey nothing", "target": PAIR["target"]})) as server:
        lvlm = ["--lvlm", "m", "--lvlm-url", server.url, "--model", model]
        assert main(["prompts", clip, "make it a blue cube", *words, *lvlm, "-o", str(out)]) == 0
    assert read_prompts(out)[0] == PromptPair(**PAIR)
    assert PAIR["source"] in server.requests[0].last_text


def test_a_blind_model_does_not_describe_the_built_in_world(tmp_path: Path) -> None:
    """What the classifier reads off the frames is the source, whatever the language model made up."""
    write_easy_sample(tmp_path)
    facts = json.loads((tmp_path / "clip.json").read_text())
    (tmp_path / "clip.json").unlink()
    command = ["prompts", str(tmp_path / "clip.mp4"), facts["instruction"], "-o"]
    assert main([*command, str(tmp_path / "grammar.json")]) == 0
    right, _ = read_prompts(tmp_path / "grammar.json")
    blind = {"source": "under a white sky, a huge red cube rolls on a green ground.", "target": right.target}
    with serve(completion(blind)) as server:
        assert main([*command, str(tmp_path / "pair.json"), "--lvlm", "m", "--lvlm-url", server.url]) == 0
    assert read_prompts(tmp_path / "pair.json")[0] == right


def test_where_the_classifier_may_have_misread_the_clip_is_said(tmp_path: Path) -> None:
    write_easy_sample(tmp_path)
    (tmp_path / "clip.json").unlink()
    with pytest.raises(UserError, match=r"read off its frames: if that is wrong, say it with --source-prompt"):
        preview_edit(tmp_path / "clip.mp4", "make the gold dragon blue")


def test_prompts_are_saved_edited_by_hand_and_used(
    clip: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pair.json"
    with serve(completion(PAIR)) as server:
        lvlm = ["--lvlm", "m", "--lvlm-url", server.url, "--model", model]
        assert main(["prompts", clip, "make it a cube", *lvlm, "-o", str(out)]) == 0
    assert PAIR["target"] in capsys.readouterr().out
    out.write_text(out.read_text().replace("blue cube", "red cube"))
    run = edit_video(clip, prompts=out, model=model, config=EditConfig(steps=2), out=tmp_path / "run")
    assert run.prompts == PromptPair(PAIR["source"], "a red cube on the floor")


def test_nothing_is_asked_for_an_edit_that_cannot_be(clip: str, model: str, tmp_path: Path) -> None:
    """A language model costs time and money: what is wrong with the rest is said first."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with serve(completion(PAIR), endless=True) as server:
        lvlm = LVLMConfig(model="m", url=server.url)
        for path, options in (
            (clip, {"out": tmp_path / "taken"}),
            (clip, {"model": "nothing-here"}),
            (tmp_path / "broken.mp4", {}),
            (clip, {"lvlm": LVLMConfig(model="m", url=server.url, style="no-such-style")}),
        ):
            with pytest.raises(UserError):
                edit_video(path, "make it a cube", **{"lvlm": lvlm, "model": model, "out": tmp_path / "run"} | options)
        (tmp_path / "pair.json").write_text("{}")
        with pytest.raises(UserError, match="exists"):
            preview_edit(clip, "make it a cube", lvlm=lvlm, model=model, out=tmp_path / "pair.json")
        assert server.requests == []
    assert not (tmp_path / "run").exists()


def test_what_goes_wrong_with_the_server_is_one_line_and_leaves_nothing(
    clip: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def echoes(request: Request) -> Reply:
        return http_error(401, f"no such key: {request.headers['Authorization']}")

    with serve(echoes) as server:
        lvlm = ["--lvlm", "m", "--lvlm-url", server.url]
        assert main(["edit", clip, "make it a cube", *lvlm, "--model", model, "-o", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    asking, error, end = printed.err.split("\n")
    assert printed.out == end == "" and asking == "asking m" and "***" in error and KEY not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("options", "says_so"),
    [
        ({"lvlm": LVLMConfig(model="m"), "instruction": None}, "INSTRUCTION"),
        ({"lvlm": LVLMConfig(model="m"), "target_prompt": "a"}, "prompts come from one place"),
        ({"prompts": "x.json", "lvlm": LVLMConfig(model="m")}, "prompts come from one place"),
        ({"prompts": "x.json", "target_prompt": "a"}, "prompts come from one place"),
        ({"prompts": "nowhere.json"}, "cannot read the prompts in nowhere.json"),
    ],
)
def test_prompts_come_from_one_place(clip: str, options: dict, says_so: str) -> None:
    for function in (edit_video, preview_edit):
        with pytest.raises(UserError, match=says_so):
            function(clip, **{"instruction": "make it red"} | options)


def test_as_many_subtasks_as_prompts(clip: str, model: str, tmp_path: Path) -> None:
    path = tmp_path / "pair.json"
    path.write_text(json.dumps({"prompts": {**PAIR, "intermediate": BETWEEN}}))
    for subtasks in (1, 2):
        found = preview_edit(clip, prompts=path, model=model, config=EditConfig(subtasks=subtasks))
        assert len(found.forwards) == len(found.comparisons) == 2
    with pytest.raises(UserError, match="--subtasks is 3, and the prompts have 1 between"):
        preview_edit(clip, prompts=path, model=model, config=EditConfig(subtasks=3))


def test_openai_is_not_needed_for_anything_else(clip: str, tmp_path: Path) -> None:
    """Neither its client nor what it brings is imported until a language model is asked for."""
    words = ["prompts", clip, "--source-prompt", PAIR["source"], "--target-prompt", PAIR["target"]]
    code = f"from v2edit.cli.app import main; main({words}); print('openai' in sys.modules)"
    ran = run_python(code, tmp_path)
    assert ran.returncode == 0 and "forwards" in ran.stdout and ran.stdout.endswith("\nFalse\n")
