"""Run folders: all or nothing, never over what is there, and a manifest that can be trusted."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from v2edit.errors import UserError
from v2edit.runs import RunWriter, default_run_folder, describe_input, without_secrets


@dataclass(frozen=True)
class Settings:
    steps: int = 50
    folder: Path = Path("a/b")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with RunWriter(out) as run:
        (run.folder / "edited.mp4").write_bytes(b"video")
        assert not out.exists()
        assert run.folder.parent == out.parent  # The same file system: putting it in place is one rename.
        run.write_manifest({"config": Settings(), "seed": 3}, argv=["v2edit", "edit", "clip.mp4"])
    assert names(out) == ["edited.mp4", "run.json"] and names(out.parent) == ["run"]
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["config"] == {"steps": 50, "folder": "a/b"}
    assert manifest["seed"] == 3 and manifest["status"] == "done"
    assert manifest["command"] == ["v2edit", "edit", "clip.mp4"]
    assert {"v2edit", "torch", "diffusers", "transformers", "av", "python"} == set(manifest["versions"])
    assert manifest["started"] <= manifest["finished"]


def test_two_runs_differ_in_their_times_alone(tmp_path: Path) -> None:
    manifests = []
    for name in ("one", "two"):
        with RunWriter(tmp_path / name) as run:
            run.write_manifest({"prompts": {"target": "a blue ball"}, "config": Settings()})
        manifest = json.loads((tmp_path / name / "run.json").read_text())
        manifests.append({key: manifest[key] for key in manifest if key not in ("started", "finished")})
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_run_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), RunWriter(tmp_path / "run") as run:
        (run.folder / "edited.mp4").write_bytes(b"half a video")
        raise error
    assert names(tmp_path) == []


def test_what_is_there_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("run", "file", "link"):
        with pytest.raises(UserError, match="exists; choose another -o or remove it"):
            RunWriter(tmp_path / name)
    assert (tmp_path / "run" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the folder that the user stands in."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    with RunWriter(Path(".")) as run:
        run.write_manifest({})
        (run.folder / "edited.mp4").write_bytes(b"video")
    assert names(Path(".")) == ["edited.mp4", "run.json"] and names(tmp_path) == ["run"]


def test_what_turns_up_meanwhile_is_kept(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as run:
        (run.folder / "edited.mp4").write_bytes(b"ours")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "edited.mp4").write_bytes(b"theirs")
    assert (tmp_path / "run" / "edited.mp4").read_bytes() == b"theirs"
    assert run.out == tmp_path / "run-2" and (run.out / "edited.mp4").read_bytes() == b"ours"


def test_an_unwritable_place_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(UserError, match="choose another -o"), RunWriter(tmp_path / "file" / "run"):
        pass


def test_default_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = default_run_folder(Path("in/my clip.v2.mp4"), "Make the ball blue!")
    assert first == Path("runs/my_clip.v2-make-the-ball-blue")
    for expected in ("", "-2", "-3"):
        folder = default_run_folder(Path("in/my clip.v2.mp4"), "Make the ball blue!")
        assert folder == Path(f"{first}{expected}")
        with RunWriter(folder) as run:
            run.write_manifest({})
    assert len(default_run_folder(Path("a.mp4"), "very " * 100).name) < 60
    assert default_run_folder(Path("a.mp4"), "把球变蓝") == Path("runs/a")


def test_the_input_is_identified(tmp_path: Path) -> None:
    clip, folder = tmp_path / "clip.mp4", tmp_path / "frames"
    clip.write_bytes(b"bytes")
    assert describe_input(clip) == {"path": str(clip), "sha256": hashlib.sha256(b"bytes").hexdigest()}
    folder.mkdir()
    seen = set()
    for name, content in (("1.png", b"x"), ("2.png", b"x"), ("2.png", b"y")):
        (folder / name).write_bytes(content)
        seen.add(describe_input(folder)["sha256"])
    assert len(seen) == 3


def test_secrets_are_blanked() -> None:
    shown = without_secrets(
        [
            "v2edit",
            "--api-key",
            "abc",
            "--hf-token=abc",
            "https://me:abc@host/x",
            "--lvlm-url=http://host/v1?api-version=abc&k=abc#x",
            f"hf_{'abc' * 8}",
            "--model",
            "x",
        ]
    )
    assert "abc" not in " ".join(shown)
    assert shown == [
        "v2edit",
        "--api-key",
        "***",
        "--hf-token=***",
        "https://***@host/x",
        "--lvlm-url=http://host/v1?api-version=***&k=***#x",
        "hf_***",
        "--model",
        "x",
    ]
