"""What every fuzz target does: bytes become a file, the file is read, and nothing but `UserError` may come of it.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from v2edit.errors import UserError

MEMORY = 1 << 30  # bytes that a file of some kilobytes may make the process grow by
Read = Callable[[Path], object]


def _still(name: str) -> tuple[str, Read]:
    from v2edit import video

    return name, lambda path: video.read(path, 8)


def video() -> tuple[str, Read]:
    return _still("clip.mp4")


def image() -> tuple[str, Read]:
    return _still("still.png")


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
    from v2edit.scenes.formats.ply import read_splat

    return "splat.ply", read_splat


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
    from v2edit.backbones.config_limits import check_config_sizes

    return "transformer/config.json", lambda path: check_config_sizes(path.parents[1])


def colmap() -> tuple[str, Read]:
    from v2edit.scenes.formats.colmap import read_colmap

    return "sparse/0/images.bin", lambda path: read_colmap(path.parents[2])


def colmap_cameras() -> tuple[str, Read]:
    return "sparse/0/cameras.bin", colmap()[1]


def colmap_points() -> tuple[str, Read]:
    return "sparse/0/points3D.bin", colmap()[1]


def sound() -> tuple[str, Read]:
    """A file's sound on its way into another: whatever it is, the pictures are written."""
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
    """What a language model says, which is a text from outside, too."""
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
        video, sound, image, folder, prompts, sidecar, style, answer, splat, points, transforms, camera_path,
        model_index, model_config, colmap, colmap_cameras, colmap_points, run, tasks,
    )
}  # fmt: skip
# What is JSON is changed as such, too: bytes alone hardly get past its syntax.
JSON = {"prompts", "sidecar", "answer", "transforms", "camera_path", "model_index", "model_config", "run"}
ODD = [
    None, True, -1, 0, 1, 0.5, 2**31, 2**63, 10**40, 1e308, -1e-320, math.nan, math.inf, "", "\0", "../x", "/dev/zero",
    "\ud800", "a" * 300, [], {}, [[]], [1] * 50,
]  # fmt: skip


def changed(value: Any, chance: random.Random) -> Any:
    """The same JSON with one value in it gone, doubled, moved into a list, or replaced by an odd one."""
    if isinstance(value, dict | list) and value and chance.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, new = chance.choice(keys), value.copy()
        what = chance.random()
        if what < 0.1:
            del new[key]
        elif what < 0.2 and isinstance(new, list):
            new.insert(chance.randrange(len(new) + 1), new[key])
        elif what < 0.3 and isinstance(new, dict):
            new[chance.choice([*keys, "name", "a"])] = new[key]
        else:
            new[key] = changed(new[key], chance)
        return new
    if isinstance(value, int | float) and chance.random() < 0.5:
        return chance.choice([value + 1, -value, value * 1000, value / 3])
    return chance.choice([*ODD, [value]])


def mutated(data: bytes, largest: int, seed: int) -> bytes:
    """For libFuzzer: JSON changed as JSON three times of four, as bytes otherwise."""
    import atheris

    chance = random.Random(seed)
    if chance.random() < 0.75:
        try:
            value = json.loads(data)
            for _ in range(chance.randint(1, 3)):
                value = changed(value, chance)
            if len(new := json.dumps(value).encode()) <= largest:
                return new
        except (ValueError, RecursionError, OverflowError):
            pass
    return atheris.Mutate(data, largest)


class Target:
    """A reader with a folder of its own to read from."""

    def __init__(self, name: str) -> None:
        self.kept = tempfile.TemporaryDirectory(prefix="v2edit-fuzz-")
        self.root = Path(self.kept.name) / "inside"
        file, self.read = TARGETS[name]()
        self.path = self.root / file
        self.path.parent.mkdir(parents=True)
        self._surround(name)
        self.before = self._there()
        self.start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def _surround(self, name: str) -> None:
        """What must lie beside the file for its reader to come to its end."""
        if name in ("transforms", "colmap", "colmap_cameras", "colmap_points", "style"):
            from PIL import Image

            for k in "01a":
                Image.new("RGB", (8, 6)).save(self.root / f"{k}.png")
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

            for file in BUILT_IN_FOLDER.glob("*/*"):
                there = self.root / file.relative_to(BUILT_IN_FOLDER)
                there.parent.mkdir(exist_ok=True)
                if there != self.path:
                    there.symlink_to(file)
        if name == "model_index":
            from v2edit.backbones.families import PARTS

            for part, needs in PARTS.items():
                (self.root / part).mkdir()
                for names in needs:
                    (self.root / part / names[0].replace("*", "weights")).touch()

    def __call__(self, data: bytes) -> None:
        self.shown(data)

    def shown(self, data: bytes) -> bool:
        """Whether the reader takes these bytes. Raises whatever it must not."""
        shown = False
        self.path.write_bytes(data)
        try:
            self.read(self.path)
            shown = True
        except UserError as error:
            assert str(error).strip()
        finally:
            self.path.unlink()
        assert self._there() == self.before, "something was written"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.start) * 1024
        assert grown < MEMORY, f"{grown / 2**20:.0f} MiB more memory"
        return shown

    def _there(self) -> list[Path]:
        return sorted(path for path in Path(self.kept.name).rglob("*") if path != self.path)


def main() -> None:
    import atheris

    # In the fuzzer's own process alone: tests read what is logged after a target has run in theirs.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["v2edit", "plyfile", "tomllib"]):
        target = Target(name)
    atheris.Setup(sys.argv, target, **({"custom_mutator": mutated} if name in JSON else {}))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
