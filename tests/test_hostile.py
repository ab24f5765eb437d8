"""Hostile files: whatever their bytes, a reader accepts them or refuses them in one line, and does nothing else."""

import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.models import pickled

from v2edit import backbones, video
from v2edit.cli.app import main
from v2edit.errors import UserError
from v2edit.jobs.evaluate import read_run
from v2edit.prompts import PromptPair, read_prompts
from v2edit.prompts.style import read_style
from v2edit.scenes.formats.colmap import read_colmap
from v2edit.scenes.formats.nerfstudio import read_transforms, write_transforms
from v2edit.scenes.formats.ply import read_points
from v2edit.scenes.formats.splats import read_splat

FUZZ = Path(__file__).resolve().parent.parent / "fuzz"
sys.path.insert(0, str(FUZZ))
from reader import TARGETS, Target  # noqa: E402  (not of the package)


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_accepted_or_refused(name: str) -> None:
    """Seeds of the fuzzer, whole, cut, and with bytes changed."""
    target = Target(name)
    seeds = [path.read_bytes() for path in sorted((FUZZ / "corpus" / name).iterdir())]
    assert any([target.accepts(seed) for seed in seeds])

    @settings(max_examples=5, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(seeds), st.data())
    def changed(seed: bytes, data: st.DataObject) -> None:
        content = bytearray(seed[: data.draw(st.integers(0, len(seed)))] if data.draw(st.booleans()) else seed)
        for _ in range(data.draw(st.integers(0, 4)) if content else 0):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        target(bytes(content))

    changed()


CPU = backbones.LoadOptions(device="cpu")


def refused(call, *arguments) -> str:
    """Return the message with which a call is refused."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


def test_an_image_that_claims_gigabytes(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12000, 12000, 8, 6, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))))
    assert "too large" in refused(video.read, tmp_path / "bomb.png")


def many_tracks(count: int) -> bytes:
    """A Matroska file with one JPEG picture and this many empty tracks of sound."""

    def element(name: str, content: bytes | int) -> bytes:
        content = content.to_bytes(4, "big") if isinstance(content, int) else content
        return bytes.fromhex(name) + (len(content) | 1 << 56).to_bytes(8, "big") + content

    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 0, 0)).save(picture, "JPEG")
    size = element("B0", 16) + element("BA", 16)
    tracks = element("AE", element("D7", 1) + element("83", 1) + element("86", b"V_MJPEG") + element("E0", size))
    form = element("B5", struct.pack(">f", 8000)) + element("9F", 1) + element("6264", 8)
    for k in range(2, count + 2):
        kind = element("D7", k) + element("83", 2) + element("86", b"A_PCM/INT/LIT")
        tracks += element("AE", kind + element("E1", form))
    cluster = element("E7", 0) + element("A3", b"\x81\0\0\x80" + picture.getvalue())
    whole = element("1549A966", element("2AD7B1", 10**6)) + element("1654AE6B", tracks) + element("1F43B675", cluster)
    return element("1A45DFA3", element("4282", b"matroska")) + element("18538067", whole)


def test_thousands_of_streams(tmp_path: Path) -> None:
    (tmp_path / "many.mkv").write_bytes(many_tracks(3000))
    clip = video.read(tmp_path / "many.mkv")
    assert clip.frames.shape == (1, 16, 16, 3)
    assert len(video.read(video.write(clip, tmp_path / "out.mp4")).frames) == 1


def test_a_heic_photo_is_not_shown_as_one_of_its_tiles(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic"))
    assert "HEIC" in refused(video.read, tmp_path / "IMG_1.HEIC")


def test_a_refusal_is_one_line_that_no_terminal_obeys(tmp_path: Path) -> None:
    message = refused(video.read, tmp_path / "two\nlines\x1b]0;title\x07\udcff.mp4")
    assert message.isprintable() and message.encode() and "lines" in message


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
    """COLMAP itself reads on to the last of 2^40 images."""
    pytest.importorskip("pycolmap")
    for empty in ("cameras", "images", "points3D"):
        (tmp_path / f"{empty}.bin").write_bytes(bytes(8))
    for content in (struct.pack("<Q", 1 << 40) + bytes(18), b""):
        (tmp_path / f"{name}.bin").write_bytes(content)
        assert "more than it does" in refused(read_colmap, tmp_path)


def test_pictures_are_written_after_a_colmap_model_was_read(tmp_path: Path) -> None:
    """Also where Pillow is imported only afterwards: pycolmap's zlib would end the process."""
    pytest.importorskip("pycolmap")
    (tmp_path / "cameras.bin").write_bytes(bytes(8))
    code = """if True:
        import sys
        from pathlib import Path
        from v2edit.errors import UserError
        from v2edit.scenes.formats.colmap import read_colmap
        try:
            read_colmap(Path(sys.argv[1]))
        except UserError:
            from PIL import Image
            Image.new("RGB", (8, 6)).save(Path(sys.argv[1], "a.png"))
    """
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[:500]
    assert (tmp_path / "a.png").is_file()


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
def test_numbers_that_make_no_camera(tmp_path: Path, facts: dict) -> None:
    refused(read_transforms, dataset(tmp_path / "in", ["0.png", "1.png"], **facts))


def test_one_image_listed_without_end(tmp_path: Path) -> None:
    path = dataset(tmp_path / "in", ["0.png"] * 400, w=2000, h=2000, fl_x=2000)
    Image.new("RGB", (2000, 2000)).save(tmp_path / "in" / "0.png")
    assert "GiB" in refused(read_transforms, path)


def test_a_model_that_brings_code(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    (tmp_path / "model" / "transformer" / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n"
    )
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index | {"transformer": ["evil", "Model"]}))
    assert "not run" in refused(backbones.find, str(tmp_path / "model"))
    assert not (tmp_path / "ran").exists()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def test_pickles_are_read_only_with_allow_pickle_and_never_run(tiny_model: Path, tmp_path: Path) -> None:
    good, evil = pickled(tiny_model, tmp_path / "good"), pickled(tiny_model, tmp_path / "bad", Evil(tmp_path / "ran"))
    for model in (good, evil):
        assert "--allow-pickle" in refused(backbones.load, str(model))
    loaded = backbones.load(str(good), device="cpu", allow_pickle=True)
    expected = backbones.load(str(tiny_model), device="cpu")
    for weight, original in zip(loaded.networks[0].parameters(), expected.networks[0].parameters(), strict=True):
        assert torch.equal(weight, original)
    refused(lambda: backbones.load(str(evil), device="cpu", allow_pickle=True))
    for part in ("transformer", "vae", "text_encoder"):  # empty files under the expected names
        (evil / part / "a.safetensors").touch()
    refused(backbones.load, str(evil), CPU)
    assert not (tmp_path / "ran").exists()
    torch.load(evil / "vae" / "diffusion_pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


@pytest.mark.parametrize(
    ("part", "claim"),
    [
        ("transformer", {"num_attention_heads": 100_000}),
        ("transformer", {"num_layers": 10**7}),
        ("transformer", {"sample_width": 10**6}),
        ("transformer", {"activation_fn": "none"}),
        ("vae", {"block_out_channels": [2**20] * 3}),
        ("vae", {"down_block_types": ["CogVideoXDownBlock3D"] * 10**5}),
        ("text_encoder", {"d_ff": 10**7}),
        ("text_encoder", {"num_layers": math.inf}),
    ],
    ids=str,
)
def test_a_model_that_claims_to_be_larger_than_it_is(tiny_model: Path, tmp_path: Path, part: str, claim: dict) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | claim))
    assert "config.json" in refused(backbones.load, str(tmp_path / "model"), CPU)


@pytest.mark.parametrize(
    "name", [b"bad\xff.mp4", "ü".encode() * 120 + b".mp4", b"..mp4", b"a\n\x1b[1mb.mp4", b"%s$(x).mp4"]
)
def test_no_edit_is_lost_for_the_name_of_its_video(tiny_model: Path, tmp_path: Path, name: bytes) -> None:
    try:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    except OSError:
        pytest.skip("the file system refuses this name")
    video.write(np.zeros((1, 16, 16, 3), np.uint8), tmp_path / "out.mp4", 8).rename(tmp_path / os.fsdecode(name))
    words = ["--source-prompt", "a ball", "--target-prompt", "a cube", "--model", str(tiny_model), "--steps", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(["edit", f"./{os.fsdecode(name)}", *words]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["input"]["path"] == str(tmp_path / os.fsdecode(name))


def test_a_run_that_names_a_device_for_its_source(tmp_path: Path) -> None:
    facts = {"input": {"path": "/dev/zero", "sha256": ""}, "prompts": {"source": "a", "target": "b"}}
    (tmp_path / "run.json").write_text(json.dumps(facts | {"model": {"name": "primitives"}, "status": "done"}))
    assert "is gone" in refused(read_run, tmp_path)


def test_a_scene_that_names_pipes_and_endless_names(tmp_path: Path) -> None:
    path = dataset(tmp_path / "in", ["0.png", "1.png", "pipe.png", "x" * 5000 + ".png"], w=None)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    for k in (0, 1):
        Image.new("RGB", (8, 6)).save(tmp_path / "in" / f"{k}.png")
    assert read_transforms(path).names == ("0.png", "1.png")


@pytest.mark.parametrize("text", ["a \x1b[31mball", "a ball\0", "a \udcff ball"])
def test_a_prompt_with_control_characters(text: str) -> None:
    assert "no text" in refused(PromptPair, text, "a cube") and "no text" in refused(PromptPair, "a cube", text)


@pytest.mark.parametrize("image", ["../secret.png", "link.png", "a\\u0000b"])
def test_a_style_sends_nothing_from_elsewhere(tmp_path: Path, image: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / "link.png").symlink_to(tmp_path / "secret.png")
    text = (FUZZ / "corpus" / "style" / "style.toml").read_text().replace("a.png", image)
    (tmp_path / "style" / "style.toml").write_text(text)
    assert "outside" in refused(read_style, tmp_path / "style")


def test_frames_are_written_under_the_names_they_were_read_by(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k, name in enumerate(("2.jpg", "10.jpg", "-a.png")):
        Image.new("RGB", (16, 24), (80 * k, 0, 0)).save(tmp_path / "in" / name)
    clip = video.read(tmp_path / "in")
    written = video.write_frames(clip, tmp_path / "out")
    assert [path.name for path in written] == ["-a.png", "2.png", "10.png"]
    assert (video.read(tmp_path / "out").frames == clip.frames).all()
    assert "cannot write" in refused(video.write_frames, clip, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3  # The frames written before stay.
