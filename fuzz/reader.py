"""Fuzz targets: bytes become a file, the file is read, and only `UserError` may be raised.

`python fuzz/reader.py TARGET [libFuzzer options]`, or `make fuzz MINUTES=20` for all of them in turn.
"""

import json
import logging
import math
import random
import resource
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from v2edit.errors import UserError

MAX_GROWTH = 1 << 30  # bytes of memory that a file of some kilobytes may take
Read = Callable[[Path], object]


def _media(name: str) -> tuple[str, Read]:
    from v2edit import video

    return name, lambda path: video.read(path, 8)


def video() -> tuple[str, Read]:
    return _media("clip.mp4")


def image() -> tuple[str, Read]:
    return _media("still.png")


def folder() -> tuple[str, Read]:
    from v2edit import video

    return "frames/1.png", lambda path: video.read(path.parent)


def prompts() -> tuple[str, Read]:
    from v2edit.prompts import read_prompts

    return "prompts.json", read_prompts


def sidecar() -> tuple[str, Read]:
    from v2edit.jobs.prompts import source_prompt_beside_video

    return "clip.json", lambda path: source_prompt_beside_video(path.with_suffix(".mp4"))


def style() -> tuple[str, Read]:
    from v2edit.prompts.style import read_style

    return "style.toml", lambda path: read_style(path.parent)


def splat() -> tuple[str, Read]:
    from v2edit.scenes.formats.splats import read_splat

    return "splat.ply", read_splat


def _splat(name: str) -> tuple[str, Read]:
    from v2edit.scenes.formats.splats import read_splat

    return name, read_splat


def spz() -> tuple[str, Read]:
    return _splat("scene.spz")


def dot_splat() -> tuple[str, Read]:
    return _splat("scene.splat")


def ksplat() -> tuple[str, Read]:
    return _splat("scene.ksplat")


def sog() -> tuple[str, Read]:
    return _splat("scene.sog")


def sog_meta() -> tuple[str, Read]:
    return _splat("meta.json")


def points() -> tuple[str, Read]:
    from v2edit.scenes.formats.ply import read_points

    return "points.ply", read_points


def transforms() -> tuple[str, Read]:
    from v2edit.scenes.formats.nerfstudio import read_transforms

    return "transforms.json", read_transforms


def camera_path() -> tuple[str, Read]:
    from v2edit.scenes.camera_paths import read_path

    return "path.json", lambda path: read_path(path, None)


def model_index() -> tuple[str, Read]:
    from v2edit.backbones.hub import find

    return "model_index.json", lambda path: find(str(path.parent))


def model_config() -> tuple[str, Read]:
    import torch

    from v2edit.backbones.config_limits import check_config_sizes, check_configs
    from v2edit.backbones.folder import build_part, module_parts

    def read(path: Path) -> None:
        check_configs(folder := path.parents[1])
        with torch.device("meta"):
            parts = {part: build_part(folder, part) for part in module_parts(folder)}
        check_config_sizes(folder, parts)

    return "transformer/config.json", read


def colmap() -> tuple[str, Read]:
    from v2edit.scenes.formats.colmap import read_colmap

    return "sparse/0/images.bin", lambda path: read_colmap(path.parents[2])


def colmap_cameras() -> tuple[str, Read]:
    return "sparse/0/cameras.bin", colmap()[1]


def colmap_points() -> tuple[str, Read]:
    return "sparse/0/points3D.bin", colmap()[1]


def sound() -> tuple[str, Read]:
    """The sound of a file copied into another: whatever it is, the pictures are written."""
    import numpy as np

    from v2edit import video

    def copied(path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="v2edit-fuzz-") as out:
            video.write(np.zeros((3, 16, 16, 3), np.uint8), Path(out) / "out.mp4", 10, audio_from=path)
            assert len(video.read(Path(out) / "out.mp4").frames) == 3

    return "clip.mkv", copied


def run() -> tuple[str, Read]:
    from v2edit.jobs.evaluate import read_run, sampled_edit

    def read(path: Path) -> None:
        path.write_bytes(path.read_bytes().replace(b"HERE", str(path.parent).encode()))
        sampled_edit(read_run(path.parent))

    return "run.json", read


def answer() -> tuple[str, Read]:
    """The answer of a language model, which is a text from outside, too."""
    from v2edit.prompts.chat import Answer, ask_for_json
    from v2edit.prompts.lvlm import answer_schema, parse_prompts

    def read(path: Path) -> None:
        class Says:
            name = "model"

            def ask(self, *_: object) -> Answer:
                return Answer(path.read_text(encoding="utf-8", errors="replace"))

        ask_for_json(Says(), [], answer_schema(True), lambda answer: parse_prompts(answer, True), "write them")  # pyright: ignore

    return "answer.txt", read


def tasks() -> tuple[str, Read]:
    from v2edit.batch.tasks import read_tasks

    return "tasks.jsonl", read_tasks


TARGETS = {
    one.__name__: one
    for one in (
        video, sound, image, folder, prompts, sidecar, style, answer, splat, spz, dot_splat, ksplat, sog, sog_meta,
        points, transforms, camera_path, model_index, model_config, colmap, colmap_cameras, colmap_points, run, tasks,
    )
}  # fmt: skip
# Targets of JSON are mutated as JSON, too: bytes alone hardly get past its syntax.
JSON = {"prompts", "sidecar", "answer", "transforms", "camera_path", "model_index", "model_config", "run", "sog_meta"}
ODD_VALUES = [
    None, True, -1, 0, 1, 0.5, 2**31, 2**63, 10**40, 1e308, -1e-320, math.nan, math.inf, "", "\0", "../x", "/dev/zero",
    "\ud800", "a" * 300, [], {}, [[]], [1] * 50,
]  # fmt: skip


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Return the JSON with one value in it removed, doubled, moved into a list, or replaced by an odd one."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, new = rng.choice(keys), value.copy()
        draw = rng.random()
        if draw < 0.1:
            del new[key]
        elif draw < 0.2 and isinstance(new, list):
            new.insert(rng.randrange(len(new) + 1), new[key])
        elif draw < 0.3 and isinstance(new, dict):
            new[rng.choice([*keys, "name", "a"])] = new[key]
        else:
            new[key] = mutate_json(new[key], rng)
        return new
    if isinstance(value, int | float) and rng.random() < 0.5:
        return rng.choice([value + 1, -value, value * 1000, value / 3])
    return rng.choice([*ODD_VALUES, [value]])


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate JSON as JSON three times of four, as bytes otherwise: a custom mutator of libFuzzer."""
    import atheris

    rng = random.Random(seed)
    if rng.random() < 0.75:
        try:
            value = json.loads(data)
            for _ in range(rng.randint(1, 3)):
                value = mutate_json(value, rng)
            if len(new := json.dumps(value).encode()) <= max_size:
                return new
        except (ValueError, RecursionError, OverflowError):
            pass
    return atheris.Mutate(data, max_size)


class Target:
    """A reader with a folder of its own to read from."""

    def __init__(self, name: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="v2edit-fuzz-")
        self.root = Path(self.folder.name) / "inside"
        file, self.read = TARGETS[name]()
        self.path = self.root / file
        self.path.parent.mkdir(parents=True)
        self._write_surroundings(name)
        self.before = self._list_files()
        self.start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def _write_surroundings(self, name: str) -> None:
        """Write the files beside the target's that its reader needs."""
        if name in ("transforms", "colmap", "colmap_cameras", "colmap_points", "style"):
            from PIL import Image

            for k in "01a":
                Image.new("RGB", (8, 6)).save(self.root / f"{k}.png")
        if name == "sog_meta":
            with zipfile.ZipFile(Path(__file__).parent / "corpus/sog/six.sog") as archive:
                archive.extractall(self.root, [one for one in archive.namelist() if one != "meta.json"])
        if name == "tasks":
            (self.root / "a.mp4").touch()
        if name.startswith("colmap"):
            pinhole = struct.pack("<QIIQQ4d", 1, 1, 1, 8, 6, 9, 9, 4, 3)
            images = Path(__file__).parent / "corpus/colmap/images.bin"
            for file, content in (
                ("cameras.bin", pinhole), ("points3D.bin", bytes(8)), ("images.bin", images.read_bytes())
            ):  # fmt: skip
                if file != self.path.name:
                    (self.path.parent / file).write_bytes(content)
        if name == "run":
            clip = Path(__file__).parent / "corpus/video/h264.mp4"
            for file in (self.root / "edited.mp4", self.root / "clip.mp4"):
                file.write_bytes(clip.read_bytes())
            (self.root / "clip.json").write_text(
                '{"seed": 1, "kind": "recolour", "source_prompt": "a ball", "target_prompt": "a cube"}'
            )
        if name == "model_config":
            from v2edit.backbones.families import BUILT_IN_FOLDER

            for file in BUILT_IN_FOLDER.rglob("*"):
                there = self.root / file.relative_to(BUILT_IN_FOLDER)
                there.parent.mkdir(exist_ok=True)
                if there != self.path and file.is_file():
                    there.symlink_to(file)
        if name == "model_index":
            from v2edit.backbones.families import PARTS

            for part, needs in PARTS.items():
                (self.root / part).mkdir()
                for names in needs:
                    (self.root / part / names[0].replace("*", "weights")).touch()

    def __call__(self, data: bytes) -> None:
        self.accepts(data)

    def accepts(self, data: bytes) -> bool:
        """Return whether the reader accepts these bytes. Raises any error that is no `UserError`."""
        accepted = False
        self.path.write_bytes(data)
        try:
            self.read(self.path)
            accepted = True
        except UserError as error:
            assert str(error).strip()
        finally:
            self.path.unlink()
        assert self._list_files() == self.before, "something was written"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.start) * 1024
        assert grown < MAX_GROWTH, f"{grown / 2**20:.0f} MiB more memory"
        return accepted

    def _list_files(self) -> list[Path]:
        return sorted(path for path in Path(self.folder.name).rglob("*") if path != self.path)


def main() -> None:
    import atheris

    # Only in the fuzzer's process: in that of the tests, others read the log.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["v2edit", "plyfile", "tomllib"]):
        target = Target(name)
    atheris.Setup(sys.argv, target, **({"custom_mutator": mutate} if name in JSON else {}))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
