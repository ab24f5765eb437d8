"""Files that lie: whatever their bytes, a reader shows them or refuses them in one line, nothing more."""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from v2edit import backbones, video
from v2edit.errors import UserError
from v2edit.prompts import read_prompts
from v2edit.prompts.style import read_style
from v2edit.scenes.colmap import read_colmap
from v2edit.scenes.splat import read_points, read_splat
from v2edit.scenes.transforms import read_transforms, write_transforms

FUZZ = Path(__file__).resolve().parent.parent / "fuzz"
sys.path.insert(0, str(FUZZ))
from reader import TARGETS, Target  # noqa: E402  (not of the package)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_left_of_a_good_file_is_shown_or_refused(name: str) -> None:
    """Seeds of the fuzzer, whole, cut, and with bytes changed."""
    target = Target(name)
    seeds = [path.read_bytes() for path in sorted((FUZZ / "corpus" / name).iterdir())]
    assert any([target.shown(seed) for seed in seeds])

    @settings(max_examples=15, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(seeds), st.data())
    def changed(seed: bytes, data: st.DataObject) -> None:
        content = bytearray(seed[: data.draw(st.integers(0, len(seed)))] if data.draw(st.booleans()) else seed)
        for _ in range(data.draw(st.integers(0, 4)) if content else 0):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        target(bytes(content))

    changed()


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


def test_an_image_that_claims_gigabytes(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12000, 12000, 8, 6, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))))
    assert "too large" in refused(video.read, tmp_path / "bomb.png")


def test_postscript_under_an_images_name_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    assert "not an image" in refused(video.read, tmp_path / "picture.png")


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile real.mp4\n"]
)
def test_a_playlist_leads_to_no_other_file(tmp_path: Path, text: str) -> None:
    video.write(np.zeros((2, 16, 16, 3), np.uint8), tmp_path / "real.mp4", 10)
    (tmp_path / "list.mp4").write_text(text)
    assert "not a video" in refused(video.read, tmp_path / "list.mp4")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 9999, '{"prompts": 1, "prompts": 2}', "\udcff"]
)
def test_json_bombs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    for read in (read_prompts, read_transforms):
        assert "JSON" in refused(read, path)


def test_json_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "prompts.json").open("wb") as file:
        file.truncate(1 << 33)  # sparse: it takes no room
    assert "bytes" in refused(read_prompts, tmp_path / "prompts.json")


def test_a_ply_header_that_ends_in_a_comment(tmp_path: Path) -> None:
    """The count after a false end counts too."""
    head = "ply\nformat ascii 1.0\ncomment end_header\nelement vertex 999999999999\nproperty float x\n"
    head += "property float y\nproperty float z\nend_header\n1 2 3\n"
    (tmp_path / "points.ply").write_text(head)
    assert "holds" in refused(read_points, tmp_path / "points.ply")
    (tmp_path / "splat.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 0\nproperty float f_rest_x\nend_header\n"
    )
    assert "splat" in refused(read_splat, tmp_path / "splat.ply")


@pytest.mark.parametrize("name", ["images", "points3D", "cameras", "frames", "rigs"])
def test_a_colmap_count_beyond_its_file(tmp_path: Path, name: str) -> None:
    """Found by fuzzing: COLMAP itself reads on to the last of 2^40 images."""
    pytest.importorskip("pycolmap")
    for empty in ("cameras", "images", "points3D"):
        (tmp_path / f"{empty}.bin").write_bytes(bytes(8))
    (tmp_path / f"{name}.bin").write_bytes(struct.pack("<Q", 1 << 40) + bytes(18))
    assert "more than it does" in refused(read_colmap, tmp_path)


def dataset(folder: Path, names: list[str], **facts: object) -> Path:
    folder.mkdir()
    frames = [{"file_path": name, "transform_matrix": np.eye(4).tolist()} for name in names]
    (folder / "transforms.json").write_text(json.dumps({"fl_x": 9, "w": 8, "h": 6, "frames": frames} | facts))
    return folder / "transforms.json"


def test_names_that_lead_out_of_a_dataset_write_nothing_there(tmp_path: Path) -> None:
    names = ["../a.png", "b/a.png", str(tmp_path / "a.png"), "-rf.png", "new\nline.png"]
    path = dataset(tmp_path / "in", names)
    (tmp_path / "in" / "b").mkdir()
    for name in names:
        Image.new("RGB", (8, 6)).save(tmp_path / "in" / name)
    read = read_transforms(path)
    assert len(read) == len(names)
    before = set(tmp_path.rglob("*"))
    (tmp_path / "out").mkdir()
    again = read_transforms(write_transforms(tmp_path / "out", read))
    assert all((tmp_path / "out") in (path, *path.parents) for path in set(tmp_path.rglob("*")) - before)
    assert len(set(again.names)) == len(names)  # one name is not written over another


@pytest.mark.parametrize(
    "facts",
    [
        {"fl_x": 10**400},
        {"w": float("inf")},
        {"w": 0.5},
        {"k1": float("nan")},
        {"fl_x": None, "camera_angle_x": 1e-320},
    ],
)
def test_numbers_that_are_none(tmp_path: Path, facts: dict) -> None:
    refused(read_transforms, dataset(tmp_path / "in", ["0.png", "1.png"], **facts))


def test_one_image_listed_without_end(tmp_path: Path) -> None:
    path = dataset(tmp_path / "in", ["0.png"] * 400, w=2000, h=2000)
    Image.new("RGB", (2000, 2000)).save(tmp_path / "in" / "0.png")
    assert "GiB" in refused(read_transforms, path)


def test_a_model_that_brings_code(tmp_path: Path) -> None:
    index = json.loads((backbones.registry.BUILT_IN_FOLDER / "model_index.json").read_text())
    for part in backbones.registry.PARTS:
        (tmp_path / part).mkdir()
        for file in ("config.json", "a.safetensors", "tokenizer.json", "scheduler_config.json"):
            (tmp_path / part / file).write_text("{}")
    (tmp_path / "transformer" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"transformer": ["evil", "Model"]}))
    assert "not run" in refused(backbones.find, str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("image", ["../secret.png", "link.png", "a\\u0000b"])
def test_a_style_sends_nothing_from_elsewhere(tmp_path: Path, image: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / "link.png").symlink_to(tmp_path / "secret.png")
    text = (FUZZ / "corpus" / "style" / "style.toml").read_text().replace("a.png", image)
    (tmp_path / "style" / "style.toml").write_text(text)
    assert "outside" in refused(read_style, tmp_path / "style")


def test_frames_go_out_by_the_names_they_came_in(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k, name in enumerate(("2.jpg", "10.jpg", "-a.png")):
        Image.new("RGB", (16, 24), (80 * k, 0, 0)).save(tmp_path / "in" / name)
    clip = video.read(tmp_path / "in")
    written = video.write_frames(clip, tmp_path / "out")
    assert [path.name for path in written] == ["-a.png", "2.png", "10.png"]
    assert (video.read(tmp_path / "out").frames == clip.frames).all()
    assert "cannot write" in refused(video.write_frames, clip, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3  # what was there stays
