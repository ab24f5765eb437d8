"""What every fuzz target does: bytes become a file, the file is read, and nothing but `UserError` may come of it.

`python fuzz/reader.py TARGET [libFuzzer options]`, or `make fuzz MINUTES=20` for all of them in turn.
"""

import logging
import resource
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

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
    from v2edit.api import resolve_prompts

    return "clip.json", lambda path: resolve_prompts(path.with_suffix(".mp4"), None, None, "a ball")


def style() -> tuple[str, Read]:
    from v2edit.prompts.style import read_style

    return "style.toml", lambda path: read_style(path.parent)


def splat() -> tuple[str, Read]:
    from v2edit.scenes.splat import read_splat

    return "splat.ply", read_splat


def points() -> tuple[str, Read]:
    from v2edit.scenes.splat import read_points

    return "points.ply", read_points


def transforms() -> tuple[str, Read]:
    from v2edit.scenes.transforms import read_transforms

    return "transforms.json", read_transforms


def camera_path() -> tuple[str, Read]:
    from v2edit.scenes.paths import read_path

    return "path.json", lambda path: read_path(path, None)


def model_index() -> tuple[str, Read]:
    from v2edit.backbones.registry import find

    return "model_index.json", lambda path: find(str(path.parent))


def colmap() -> tuple[str, Read]:
    from v2edit.scenes.colmap import read_colmap

    return "sparse/0/images.bin", lambda path: read_colmap(path.parents[2])


def tasks() -> tuple[str, Read]:
    from v2edit.batch.tasks import read_tasks

    return "tasks.jsonl", read_tasks


TARGETS = {
    one.__name__: one
    for one in (
        video, image, folder, prompts, sidecar, style, splat, points, transforms, camera_path, model_index, colmap,
        tasks,
    )
}  # fmt: skip


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
        if name in ("transforms", "colmap", "style"):
            from PIL import Image

            for k in "01a":
                Image.new("RGB", (8, 6)).save(self.root / f"{k}.png")
        if name == "tasks":
            (self.root / "a.mp4").touch()
        if name == "colmap":
            pinhole = struct.pack("<QIIQQ4d", 1, 1, 1, 8, 6, 9, 9, 4, 3)
            (self.path.parent / "cameras.bin").write_bytes(pinhole)
            (self.path.parent / "points3D.bin").write_bytes(bytes(8))
        if name == "model_index":
            from v2edit.backbones.registry import PARTS

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

    with atheris.instrument_imports(include=["v2edit", "plyfile", "tomllib"]):
        target = Target(sys.argv.pop(1))
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
